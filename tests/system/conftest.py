"""A daemon with certificates, and loops on every backend."""
import os
import pathlib
import shutil

import pytest

import daemon as daemons  # makes the stubs that api needs

import api
import certificates
import machine


class Files:
    """The certificates and keys that the tests use, and the configuration that names them."""

    def __init__(self, directory):
        ca = certificates.Authority(directory, "ca")
        other = certificates.Authority(directory, "other-ca")
        names = ["DNS:host.test", "DNS:again.test", "IP:127.0.0.1"]
        self.directory = directory
        self.authority, self.other_authority = ca, other
        self.ca, self.other_ca = ca.cert, other.cert
        self.host = ca.sign("host", names)
        self.expired = ca.sign("expired", names, begin="20200101", end="20210101")
        self.early = ca.sign("early", names, begin="20480101", end="20490101")
        self.foreign = other.sign("foreign", names)
        self.elsewhere = ca.sign("elsewhere", ["DNS:elsewhere.test"])
        self.wild = ca.sign("wild", ["DNS:*.wild.test"])
        self.alone = certificates.self_signed(directory, "alone", names)

    def configuration(self):
        def section(name, pair=None, **keys):
            keys = {"cert": pair and pair.cert, "key": pair and pair.key, **keys}
            lines = [f'{key} = "{value}"' for key, value in keys.items() if value]
            return "\n".join([f"[tls.{name}]", *lines, ""])

        by_name = 'sni = ["elsewhere", "wild"]\n'
        return "".join([
            section("host", self.host),
            section("elsewhere", self.elsewhere),
            section("wild", self.wild),
            section("names", self.host) + by_name,
            section("strict", self.host) + by_name + "strict_sni = true\n",
            section("mutual", self.host, client_ca=self.ca),
            section("trusting", ca=self.ca),
            section("trusts-alone", ca=self.alone.cert),
            section("member", self.host, ca=self.ca),
            section("foreigner", self.foreign, ca=self.ca),
            section("late", self.expired, ca=self.ca),
        ])  # fmt: skip


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    if not shutil.which("openssl"):
        pytest.skip("SKIPPED for want of openssl, which makes the certificates")
    return Files(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def daemon(files):
    with daemons.running(files.configuration()) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def channel(daemon):
    with api.connect(daemon) as channel:
        yield channel


@pytest.fixture(params=api.BACKENDS)
def loop(channel, request):
    """A loop on each backend."""
    with api.Loop(channel, request.param) as loop:
        yield loop


@pytest.fixture
def one_loop(channel):
    """A loop on one backend, for what does not depend on it."""
    with api.Loop(channel) as loop:
        yield loop


@pytest.fixture(scope="session")
def said(tmp_path_factory):
    """What the scripts print that run in an emulated machine: it boots once for all of them."""
    daemon = pathlib.Path(os.environ["EVLOOPD"])
    programs = [daemon, daemon.with_name("evloopctl")]
    units = [machine.PROJECT / "deploy/systemd/system/evloopd.service"]
    guest = pathlib.Path(__file__).with_name("guest")
    booted = machine.Machine(tmp_path_factory.mktemp("machine"), programs, units)
    return booted.boot([guest / "units.sh", guest / "clocks.sh"], guest / "user.sh")
