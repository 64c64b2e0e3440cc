"""A link that is down for real: two hosts, each a network namespace, with a link between them."""
import contextlib
import os
import subprocess
import sys

import api
import daemon as daemons
import pytest
from api import reason
from peers import Program, needs

from evloopd.v1 import watch_service_pb2 as watches

pytestmark = needs("ip", root=True)

OURS, THEIRS = "192.0.2.1", "192.0.2.2"
# Accepts connections and reads what comes.
SINK = """
import socket, sys, threading
server = socket.create_server((sys.argv[1], 0))
print("port", server.getsockname()[1], flush=True)
def sink(peer):
    while peer.recv(65536):
        pass
while True:
    peer, _ = server.accept()
    threading.Thread(target=sink, args=[peer], daemon=True).start()
"""


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def hosts():
    """The names of two namespaces, connected by `wire` in each."""
    ours, theirs = (f"evloopd-{os.getpid()}-{side}" for side in ["a", "b"])
    with contextlib.ExitStack() as stack:
        for name in [ours, theirs]:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
        ip("-n", ours, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", theirs)
        addresses = {ours: (OURS, "02:00:00:00:00:01"), theirs: (THEIRS, "02:00:00:00:00:02")}
        for name, (address, mac) in addresses.items():
            ip("-n", name, "link", "set", "wire", "address", mac)
            ip("-n", name, "address", "add", f"{address}/24", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
        # The neighbours are known for ever: nothing tells either host that the other one is gone.
        ip("-n", ours, "neighbour", "replace", THEIRS, "lladdr", addresses[theirs][1], "dev", "wire", "nud", "permanent")
        ip("-n", theirs, "neighbour", "replace", OURS, "lladdr", addresses[ours][1], "dev", "wire", "nud", "permanent")
        yield ours, theirs


@pytest.mark.parametrize("backend", api.BACKENDS)
def test_a_peer_that_is_gone_while_bytes_are_on_their_way_ends_the_connection_in_time(backend):
    """Keep-alive alone does not notice: it asks only while nothing is unacknowledged."""
    limit = watches.TcpOptions(user_timeout=api.seconds(2))
    alive = watches.TcpKeepAlive(idle=api.seconds(1), interval=api.seconds(1), count=1)
    with hosts() as (ours, theirs), daemons.running(prefix=["ip", "netns", "exec", ours]) as daemon:
        with api.connect(daemon) as channel, api.Loop(channel, backend) as loop:
            with Program("ip", "netns", "exec", theirs, sys.executable, "-u", "-c", SINK, THEIRS) as sink:
                port = int(sink.until(rb"port (\d+)")[1])
                sending = loop.connect(port, THEIRS, tcp_options=limit)
                asking = loop.connect(port, THEIRS, tcp_options=watches.TcpOptions(keep_alive=alive))
                waiting = loop.connect(port, THEIRS, tcp_options=watches.TcpOptions(keep_alive=alive))
                silent = loop.connect(port, THEIRS, tcp_options=limit)
                for watch in [sending, asking, waiting, silent]:
                    loop.wait("connected", watch)
                ip("-n", theirs, "link", "set", "wire", "down")
                loop.call("Write", sending, data=b"are you there?")
                loop.call("Write", waiting, data=b"are you there?")
                for watch in [sending, asking]:
                    closed = loop.closed(watch)
                    assert (reason(closed), closed.error.name) == ("ERROR", "ETIMEDOUT")
                # This has bytes on their way too, and no limit for them.
                assert not loop.of("closed", waiting)
                # This has sent nothing and does not ask.
                assert not loop.of("closed", silent)
                for watch in [waiting, silent]:
                    loop.call("Abort", watch)
