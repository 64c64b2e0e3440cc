"""Clients that are many, silent, or gone half-way."""
import contextlib
import os
import select
import socket
import ssl
import subprocess
import sys
import time

import api
import daemon as daemons
import pytest

from evloopd.v1 import watch_service_pb2 as watches

SILENT = 1000
CHECKS = 10_000
NAME = "host.test"


def tls(config="host", **options):
    return watches.TlsOptions(config=config, **options)


def connect(port):
    return socket.create_connection(("127.0.0.1", port), api.PATIENCE)


def secured(files, client):
    return ssl.create_default_context(cafile=files.ca).wrap_socket(client, server_hostname=NAME)


def sockets(daemon):
    """The sockets that the daemon has open."""
    directory = f"/proc/{daemon.process.pid}/fd"
    found = set()
    for name in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            link = os.readlink(f"{directory}/{name}")
            if link.startswith("socket:"):
                found.add(link)
    return found


def settled(daemon, before):
    """Waits until the daemon has no more sockets than before."""
    end = time.monotonic() + api.PATIENCE
    while len(sockets(daemon)) > before:
        assert time.monotonic() < end, f"{len(sockets(daemon))} sockets are open, not {before}"
        time.sleep(0.01)


def test_a_thousand_silent_clients_keep_nobody_waiting(loop, daemon, files):
    """Their handshakes end much later than that of the client that speaks."""
    before = len(sockets(daemon))
    listener, port = loop.listen(tls=tls(), backlog=4096)
    with contextlib.ExitStack() as crowd:
        for _ in range(SILENT):
            crowd.enter_context(connect(port))
        # The kernel hands connections out in order: these are accepted before the next one.
        with secured(files, connect(port)) as client:
            connection = loop.accepted(listener)
            client.sendall(b"hello")
            loop.received(connection, b"hello")
            status = loop.get(listener).listener
            assert (status.handshakes, status.failed_handshakes) == (SILENT, 0)
        loop.remove(listener)
    settled(daemon, before)


def test_silent_clients_are_dropped_in_time_and_told_in_one_event(loop, daemon):
    before = len(sockets(daemon))
    listener, port = loop.listen(tls=tls(handshake_timeout=api.seconds(1)))
    with contextlib.ExitStack() as crowd:
        clients = [crowd.enter_context(connect(port)) for _ in range(50)]
        for client in clients:
            assert client.recv(1) == b""
    end = time.monotonic() + api.PATIENCE
    while loop.get(listener).listener.failed_handshakes < 50:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert "handshake_timeout" in loop.wait("handshakes_failed", listener).error.message
    loop.remove(listener)
    settled(daemon, before)


def test_port_checks_flood_neither_the_journal_nor_the_log(loop, daemon):
    """Ten thousand clients connect and hang up."""
    before, logged = len(sockets(daemon)), len(daemon.log())
    listener, port = loop.listen(tls=tls(), backlog=4096)
    for _ in range(CHECKS):
        connect(port).close()
    end = time.monotonic() + api.PATIENCE
    while loop.get(listener).listener.failed_handshakes < CHECKS:
        assert time.monotonic() < end, loop.get(listener).listener
        time.sleep(0.01)
    loop.poll(0)
    events = [event for event in loop.events if event.watch_id == listener]
    assert len(events) < 10
    assert len(daemon.log()) - logged < 10_000
    loop.remove(listener)
    settled(daemon, before)


class Relay:
    """Carries bytes between a client and the daemon, and cuts after so many of the client's."""

    def __init__(self, port, limit):
        self.limit = limit
        self.server = connect(port)
        self.inner, self.outer = socket.socketpair()

    def run(self):
        left = self.limit
        while left > 0:
            readable, _, _ = select.select([self.inner, self.server], [], [], api.PATIENCE)
            assert readable
            if self.server in readable:
                data = self.server.recv(65_536)
                if not data:
                    return
                self.inner.sendall(data)
            if self.inner in readable:
                data = self.inner.recv(65_536)
                if not data:
                    return
                self.server.sendall(data[:left])
                left -= len(data[:left])

    def close(self, reset):
        if reset:
            self.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        for each in [self.server, self.inner, self.outer]:
            each.close()


CLIENT = """
import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[2])
context.maximum_version = context.minimum_version = getattr(ssl.TLSVersion, sys.argv[3])
context.load_cert_chain(sys.argv[4], sys.argv[5])
outer = socket.socket(fileno=int(sys.argv[1]))
context.wrap_socket(outer, server_hostname="host.test").sendall(b"hello")
outer.recv(1)
"""


def steps(files, port, version):
    """How many bytes a whole handshake and some data have from the client."""
    relay = Relay(port, 1 << 20)
    context = ssl.create_default_context(cafile=files.ca)
    context.maximum_version = context.minimum_version = getattr(ssl.TLSVersion, version)
    context.load_cert_chain(files.host.cert, files.host.key)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(incoming, outgoing, server_hostname=NAME)
    sent = [0]
    while True:
        try:
            session.do_handshake()
            break
        except ssl.SSLWantReadError:
            data = outgoing.read()
            relay.server.sendall(data)
            sent.append(sent[-1] + len(data))
            incoming.write(relay.server.recv(65_536))
    session.write(b"hello")
    sent.append(sent[-1] + len(outgoing.read()))
    relay.close(reset=False)
    return sent


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_clients_that_are_gone_at_every_step_of_a_handshake_leave_nothing(loop, daemon, files, version):
    """Cut at the borders of flights, next to them, and amid records; by FIN and by RST."""
    before = len(sockets(daemon))
    listener, port = loop.listen(tls=tls("mutual"))
    flights = steps(files, port, version)
    cuts = {0, 1, 3, 5, 6} | {at + by for at in flights for by in [-1, 0, 1]}
    cuts |= {(a + b) // 2 for a, b in zip(flights, flights[1:])}
    arguments = [files.ca, version, files.host.cert, files.host.key]
    for cut in sorted(cut for cut in cuts if 0 <= cut <= flights[-1]):
        for reset in [False, True]:
            relay = Relay(port, cut)
            command = [sys.executable, "-c", CLIENT, str(relay.outer.fileno()), *map(str, arguments)]
            with subprocess.Popen(command, pass_fds=[relay.outer.fileno()], stderr=subprocess.DEVNULL) as client:
                relay.outer.close()
                relay.run()
                client.kill()
            relay.close(reset)
    # The listener still serves, and all those watches are closed.
    settled(daemon, before + 1)
    loop.poll(0)
    for accepted in loop.of("accepted"):
        loop.closed(accepted.accepted.watch_id)
    loop.remove(listener)
    settled(daemon, before)


def test_servers_that_are_gone_at_every_step_of_a_handshake_leave_nothing(loop, daemon, files):
    before = len(sockets(daemon))
    for answer in [b"", b"\x16", b"\x16\x03\x03\x00\x7a\x02", b"\x15\x03\x03\x00\x02\x02\x28", b"HTTP/1.1 400\r\n"]:
        for reset in [False, True]:
            with socket.create_server(("127.0.0.1", 0)) as server:
                watch = loop.connect(server.getsockname()[1], tls=tls("trusting", server_name=NAME))
                peer, _ = server.accept()
                with peer:
                    assert peer.recv(65_536)
                    peer.sendall(answer)
                    if reset:
                        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                closed = loop.closed(watch)
                assert closed.error.step == "handshake"
                assert not loop.of("connected", watch)
    settled(daemon, before)


HOLDER = """
import sys
import daemon as daemons

import api
from evloopd.v1 import common_pb2 as common
from evloopd.v1 import watch_service_pb2 as watches

class At:
    socket = sys.argv[1]

with api.connect(At) as channel:
    loop = api.Loop(channel)
    tcp = watches.TcpListen(hosts=["127.0.0.1"])
    options = watches.TlsOptions(config="host", handshake_timeout=api.seconds(3600))
    spec = watches.WatchSpec(listener=watches.ListenerSpec(tcp=tcp, tls=options))
    request = watches.AddWatchRequest(loop=loop.ref, spec=spec, lifetime=common.LIFETIME_PROCESS)
    watch = loop.watches.AddWatch(request).watch.watch_id
    print(loop.get(watch).listener.addresses[0].inet.port, flush=True)
    sys.stdin.read()
"""


def test_a_listener_that_closes_lets_go_of_handshakes(daemon):
    """The process that it is bound to ends; the closed watch can still be read."""
    environment = {**daemon.env, "PYTHONPATH": os.pathsep.join([daemon.env["PYTHONPATH"], *sys.path])}
    command = [sys.executable, "-c", HOLDER, daemon.socket]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as holder:
        with connect(int(holder.stdout.readline())) as client:
            holder.kill()
            client.settimeout(api.PATIENCE)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""


def test_a_handshake_in_single_bytes_is_a_handshake(loop, files):
    listener, port = loop.listen(tls=tls())
    context = ssl.create_default_context(cafile=files.ca)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(incoming, outgoing, server_hostname=NAME)
    with connect(port) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def send():
            for byte in outgoing.read():
                client.sendall(bytes([byte]))

        while True:
            try:
                session.do_handshake()
                break
            except ssl.SSLWantReadError:
                send()
                incoming.write(client.recv(1))
        session.write(b"hello")
        send()
        loop.received(loop.accepted(listener), b"hello")


def test_clients_beyond_the_limit_of_handshakes_wait_and_are_then_served(files):
    """The silent ones give their places back when their time is over."""
    most = 8
    with daemons.running(f"[limits]\ntls_handshakes = {most}\n" + files.configuration()) as daemon:
        with api.connect(daemon) as channel, api.Loop(channel) as loop, contextlib.ExitStack() as crowd:
            listener, port = loop.listen(tls=tls(handshake_timeout=api.seconds(1)))
            for _ in range(most):
                crowd.enter_context(connect(port))
            with secured(files, connect(port)) as client:
                client.sendall(b"hello")
                loop.received(loop.accepted(listener), b"hello")
            assert loop.get(listener).listener.failed_handshakes == most


@pytest.mark.parametrize("end", ["close", "unwrap"])
def test_a_limit_of_open_connections_holds_for_secured_ones(loop, files, end):
    """A handshake is no open connection, and a connection beyond the limit waits after it."""
    listener, port = loop.listen(tls=tls(), max_connections=1)
    with secured(files, connect(port)) as first, secured(files, connect(port)) as second:
        connection = loop.accepted(listener)
        first.sendall(b"first")
        loop.received(connection, b"first")
        second.sendall(b"second")
        loop.poll(0)
        assert len(loop.of("accepted")) == 1
        assert loop.get(listener).listener.open_connections == 1
        if end == "unwrap":
            # The daemon answers with its own close_notify, as both directions end.
            first.unwrap()
        first.close()
        loop.received(loop.accepted(listener, 2), b"second")
        assert loop.closed(connection)
        second.sendall(b"more")
        loop.received(loop.accepted(listener, 2), b"secondmore")


def test_garbage_after_the_end_of_the_daemons_stream_is_an_error(loop, files):
    listener, port = loop.listen(tls=tls(), keep_half_open=True)
    with connect(port) as client:
        secured_client = secured(files, client.dup())
        connection = loop.accepted(listener)
        loop.wait("connected", connection)
        loop.call("WriteEof", connection)
        assert secured_client.recv(1) == b""
        client.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        closed = loop.closed(connection)
        assert "a record was damaged on its way" in closed.error.message
        secured_client.close()
