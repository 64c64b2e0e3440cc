"""The selector on evloopd agrees with `selectors.DefaultSelector` on the same descriptors."""
import array
import contextlib
import os
import random
import selectors
import socket
import threading
import time

import grpc
import pytest

from evloopd.v1 import admin_service_pb2 as admin
from evloopd.v1 import admin_service_pb2_grpc as admin_grpc
from evloopd.v1 import common_pb2 as common
from evloopd.v1 import watch_service_pb2 as watches
from selector import Selector

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
PATIENCE = 30


@pytest.fixture
def channel(daemon):
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix:{daemon.socket}", options=options) as channel:
        yield channel


@pytest.fixture
def ours(channel):
    info = admin_grpc.AdminServiceStub(channel).GetServerInfo(admin.GetServerInfoRequest())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as side:
        side.connect(info.handover_socket)
        side.setblocking(False)
        with Selector(channel, lambda fileobj: hand_over_as(side, fileobj)) as selector:
            yield selector


def hand_over_as(side, fileobj):
    """Gives a duplicate in a slot that this client chose, without waiting for the reply; returns the slot."""
    with contextlib.suppress(BlockingIOError):
        while reply := side.recv(4096):
            assert reply[0] == 0, reply
    slot = os.urandom(16)
    rights = array.array("i", [fileobj.fileno()])
    side.sendmsg([b"evloopd1", slot], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    return slot


def found(selector, timeout=0):
    return {(key.data, mask) for key, mask in selector.select(timeout)}


@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_with_the_default_selector_after_random_steps(ours, seed):
    chance = random.Random(seed)
    pairs = [socket.socketpair() for _ in range(5)]
    for here, there in pairs:
        here.setblocking(False)
        there.setblocking(False)
    with selectors.DefaultSelector() as theirs:

        def both(what, *arguments):
            for selector in (ours, theirs):
                getattr(selector, what)(*arguments)

        registered = set()
        for step in range(60):
            number = chance.randrange(len(pairs))
            here, there = pairs[number]
            match chance.choice(["register", "modify", "unregister", "send", "drain", "fill", "empty"]):
                case "register" if number not in registered:
                    both("register", here, chance.choice([READ, WRITE, READ | WRITE]), number)
                    registered.add(number)
                case "modify" if number in registered:
                    both("modify", here, chance.choice([READ, WRITE, READ | WRITE]), number)
                case "unregister" if number in registered and chance.random() < 0.3:
                    both("unregister", here)
                    registered.remove(number)
                case "send":
                    pour(there, 1)
                case "drain":
                    drink(here)
                case "fill":
                    pour(here, 1 << 24)
                case "empty":
                    drink(there)
            assert found(ours) == found(theirs), f"step {step}"
            assert {key.data for key in ours.get_map().values()} == registered
        for number, (here, there) in enumerate(pairs):
            there.close()
            assert found(ours) == found(theirs), f"after the peer of {number} was closed"
    for here, _ in pairs:
        here.close()


@pytest.mark.parametrize("events", [READ, WRITE, READ | WRITE])
@pytest.mark.parametrize("stays", ["the reader", "the writer"])
def test_it_agrees_about_a_pipe_whose_other_end_is_gone(ours, stays, events):
    ends = [open(fd, mode, buffering=0) for fd, mode in zip(os.pipe(), ["rb", "wb"])]
    here, there = ends if stays == "the reader" else reversed(ends)
    with here, there, selectors.DefaultSelector() as theirs:
        for selector in (ours, theirs):
            selector.register(here, events, stays)
        assert found(ours) == found(theirs)
        there.close()
        assert found(ours) == found(theirs) != set()


def pour(stream, size):
    try:
        while size > 0:
            size -= stream.send(bytes(min(size, 65_536)))
    except BlockingIOError:
        pass


def drink(stream):
    try:
        while stream.recv(65_536):
            pass
    except BlockingIOError:
        pass


def test_it_waits_for_the_timeout_and_no_longer_than_needed(ours):
    here, there = socket.socketpair()
    with here, there:
        ours.register(here, READ, "here")
        began = time.monotonic()
        assert found(ours, 0.2) == set()
        assert time.monotonic() - began >= 0.2
        later = threading.Timer(0.2, there.send, [b"x"])
        later.start()
        assert found(ours, PATIENCE) == {("here", READ)}
        assert time.monotonic() - began < PATIENCE
        later.join()
        # Readiness that was found and then handled is not found again.
        there.send(b"y")
        assert here.recv(16) == b"xy"
        assert found(ours) == set()
        with pytest.raises(KeyError):
            ours.register(here, READ)
        with pytest.raises(KeyError):
            ours.modify(there, READ)


def test_it_reports_that_its_watch_was_removed(ours):
    here, there = socket.socketpair()
    with here, there:
        ours.register(here, READ)
        _, watch = ours.keys[here.fileno()]
        ref = common.WatchRef(watch_id=watch)
        ours.watches.RemoveWatch(watches.RemoveWatchRequest(loop=ours.loop, watch=ref))
        with pytest.raises(OSError, match="is gone"):
            ours.select(PATIENCE)
