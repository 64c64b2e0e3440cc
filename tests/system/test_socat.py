"""socat at the other end: pipes, Unix sockets, datagrams, multicast, TCP and TLS."""
import os
import socket

import api
import pytest
from api import reason
from peers import Program, needs

from evloopd.v1 import common_pb2 as common
from evloopd.v1 import watch_service_pb2 as watches

pytestmark = needs("socat")

BODY = b"0123456789abcde\n" * 65_536
GROUP = "239.5.6.7"


def socat(*arguments):
    """Runs socat, which waits long enough after one direction has ended."""
    return Program("socat", "-t", api.PATIENCE, *arguments)


def listening(*arguments):
    """As `socat`, with a listening socket; returns the port as well."""
    server = Program("socat", "-t", api.PATIENCE, "-d", "-d", *arguments)
    return server, lambda: int(server.until(rb"listening on .*:(\d+)\n")[1])


def at(ip, port=0):
    return common.SocketAddress(inet=common.InetAddress(ip=ip, port=port))


def path(where):
    return common.UnixAddress(path=str(where))


def file(directory, content):
    target = directory / "content"
    target.write_bytes(content)
    return target


def test_a_fifo_is_read_until_its_writer_closes_it(loop, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    watch = loop.add(read_pipe=watches.ReadPipeSpec(fifo_path=str(fifo)))
    with socat("-u", f"FILE:{file(tmp_path, BODY)}", f"OPEN:{fifo},wronly") as writer:
        assert loop.received(watch, len(BODY)) == BODY
        writer.finish()
    assert loop.wait("eof", watch).offset == len(BODY)
    assert reason(loop.closed(watch)) == "COMPLETED"


def test_a_fifo_is_written_and_ended(loop, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with socat("-u", f"OPEN:{fifo},rdonly", "-") as reader:
        # Opening for writing waits for a reader, and so ends when socat has opened it.
        with open(fifo, "wb"):
            watch = loop.add(write_pipe=watches.WritePipeSpec(fifo_path=str(fifo)))
        loop.write(watch, BODY, eof=True)
        assert reader.finish() == BODY
    assert reason(loop.closed(watch)) == "COMPLETED"


def test_a_reader_that_is_killed_is_seen_without_a_write(loop, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with socat("-u", f"OPEN:{fifo},rdonly", "-") as reader:
        with open(fifo, "wb"):
            watch = loop.add(write_pipe=watches.WritePipeSpec(fifo_path=str(fifo)))
        reader.process.kill()
        assert loop.closed(watch).unsent_bytes == 0


def test_unix_streams_both_ways(loop, tmp_path):
    where = tmp_path / "listener"
    listener = loop.add(listener=watches.ListenerSpec(unix=path(where)))
    with socat("-", f"UNIX-CONNECT:{where}") as client:
        client.send(b"hello")
        connection = loop.accepted(listener)
        loop.received(connection, b"hello")
        loop.write(connection, BODY, eof=True)
        assert client.finish() == BODY
    where = tmp_path / "server"
    with socat("-d", "-d", f"UNIX-LISTEN:{where}", f"FILE:{file(tmp_path, BODY)}") as server:
        server.until(b"listening on")
        watch = loop.add(connection=watches.ConnectionSpec(unix=path(where)))
        assert loop.received(watch, len(BODY)) == BODY
        assert reason(loop.closed(watch)) == "COMPLETED"


def test_unix_datagrams_there_and_back(loop, tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    watch = loop.add(datagram=watches.DatagramSpec(local=common.SocketAddress(unix=path(ours))))
    with socat("-", f"UNIX-SENDTO:{ours},bind={theirs}") as peer:
        peer.send(b"hello")
        datagram = loop.wait("datagram", watch)
        assert (datagram.data, datagram.peer.unix.path) == (b"hello", str(theirs))
        loop.call("SendTo", watch, data=b"welcome", peer=datagram.peer)
        peer.until(b"welcome")


def test_udp_there_and_back(loop):
    watch = loop.add(datagram=watches.DatagramSpec(local=at("127.0.0.1")))
    port = loop.get(watch).datagram.local.inet.port
    with socat("-", f"UDP4:127.0.0.1:{port}") as peer:
        for number in range(3):
            peer.send(b"%d" % number)
            datagram = loop.wait("datagram", watch, number + 1)
            assert datagram.data == b"%d" % number
            loop.call("SendTo", watch, data=b"answer %d" % number, peer=datagram.peer)
            peer.until(b"answer %d" % number)


def test_a_group_is_heard_and_spoken_to_on_the_loopback(loop):
    groups = [watches.MulticastGroup(ip=GROUP, interface="lo")]
    watch = loop.add(datagram=watches.DatagramSpec(local=at("0.0.0.0"), groups=groups))
    port = loop.get(watch).datagram.local.inet.port
    with socat("-", f"UDP4-DATAGRAM:{GROUP}:{port},ip-multicast-if=127.0.0.1,bind=127.0.0.1") as peer:
        peer.send(b"hello, all")
        datagram = loop.wait("datagram", watch)
        assert (datagram.data, datagram.local_ip) == (b"hello, all", GROUP)
        assert datagram.interface_index == socket.if_nametoindex("lo")
        loop.call("SendTo", watch, data=b"hello, you", peer=datagram.peer)
        peer.until(b"hello, you")
    # socat cannot tell which port the kernel chose for it, so it gets the one that was just free.
    sender = loop.add(
        datagram=watches.DatagramSpec(local=at("127.0.0.1"), multicast_interface="lo", multicast_loop=True)
    )
    loop.remove(watch)
    member = Program("socat", "-u", "-d", "-d", f"UDP4-RECV:{port},ip-add-membership={GROUP}:127.0.0.1", "-")
    with member:
        member.until(b"starting data transfer loop")
        loop.call("SendTo", sender, data=b"hello, group", peer=at(GROUP, port))
        member.until(b"hello, group")


def test_tcp_both_ways(loop, tmp_path):
    listener, port = loop.listen()
    with socat("-", f"TCP4:127.0.0.1:{port}") as client:
        client.send(b"hello")
        connection = loop.accepted(listener)
        loop.received(connection, b"hello")
        loop.write(connection, BODY, eof=True)
        assert client.finish() == BODY
    server, port = listening("TCP4-LISTEN:0,bind=127.0.0.1", f"FILE:{file(tmp_path, BODY)}")
    with server:
        watch = loop.connect(port())
        assert loop.received(watch, len(BODY)) == BODY
        assert reason(loop.closed(watch)) == "COMPLETED"


@pytest.mark.parametrize("section", ["host", "mutual"])
def test_openssl_connects(loop, files, section):
    listener, port = loop.listen(tls=watches.TlsOptions(config=section))
    shown = f",cert={files.host.cert},key={files.host.key}" if section == "mutual" else ""
    with socat("-", f"OPENSSL:127.0.0.1:{port},cafile={files.ca},commonname=host.test{shown}") as client:
        client.send(b"hello")
        connection = loop.accepted(listener)
        loop.received(connection, b"hello")
        loop.write(connection, BODY, eof=True)
        assert client.finish() == BODY


@pytest.mark.parametrize("section", ["trusting", "member"])
def test_openssl_listens(loop, files, tmp_path, section):
    verify = f"verify=1,cafile={files.ca}" if section == "member" else "verify=0"
    address = f"OPENSSL-LISTEN:0,bind=127.0.0.1,cert={files.host.cert},key={files.host.key},{verify}"
    server, port = listening(address, "PIPE")
    with server:
        watch = loop.connect(port(), tls=watches.TlsOptions(config=section))
        loop.wait("connected", watch)
        # PIPE gives back what it gets, so both directions are busy at once.
        loop.write(watch, BODY)
        assert loop.received(watch, len(BODY)) == BODY
        loop.call("WriteEof", watch)
        assert reason(loop.closed(watch)) == "COMPLETED"
        assert loop.wait("eof", watch).offset == len(BODY)
