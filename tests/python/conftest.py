"""A real daemon for the tests of a file."""
import pytest

import daemon as daemons


@pytest.fixture(scope="module")
def daemon():
    with daemons.running() as daemon:
        yield daemon
