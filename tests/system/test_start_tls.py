"""StartTls in mid-stream, met by Python's ssl on either side."""
import socket
import ssl

import api
import grpc
import pytest
from api import reason

from evloopd.v1 import watch_service_pb2 as watches

MEGABYTE = b"plain text\n" * 95_325
NAME = "host.test"


def tls(config, **options):
    return watches.TlsOptions(config=config, **options)


def client_context(files):
    return ssl.create_default_context(cafile=files.ca)


def server_context(files):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(files.host.cert, files.host.key)
    return made


def connect(port):
    client = socket.create_connection(("127.0.0.1", port), api.PATIENCE)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def read(stream, count):
    data = b""
    while len(data) < count:
        chunk = stream.recv(count - len(data))
        assert chunk, f"it ended after {len(data)} bytes: {data[-100:]}"
        data += chunk
    return data


def client_hello(context):
    """A session that is not bound to a socket, and the first bytes that it sends."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(incoming, outgoing, server_hostname=NAME)
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    return session, incoming, outgoing


def drive(client, session, incoming, outgoing, step, more=b""):
    """Carries out one step of such a session over a socket; `more` goes into the segment of its first output."""
    while True:
        try:
            result = step()
        except ssl.SSLWantReadError:
            result = None
        if sent := outgoing.read():
            client.sendall(sent + more)
            more = b""
        if result is not None:
            return result
        received = client.recv(65_536)
        if not received:
            incoming.write_eof()
        incoming.write(received)


def test_smtp_with_the_daemon_as_the_server(loop, files):
    listener, port = loop.listen()
    with connect(port) as client:
        client.sendall(b"EHLO x\r\nSTARTTLS\r\n")
        connection = loop.accepted(listener)
        loop.received(connection, b"STARTTLS\r\n")
        loop.write(connection, b"220 go ahead\r\n")
        loop.call("StartTls", connection, server=True, tls=tls("host"), offset=len(b"EHLO x\r\nSTARTTLS\r\n"))
        assert read(client, 14) == b"220 go ahead\r\n"
        with client_context(files).wrap_socket(client, server_hostname=NAME) as secured:
            secured.sendall(b"MAIL FROM:<x>\r\n")
            loop.received(connection, b"MAIL FROM:<x>\r\n")
            started = loop.wait("tls_started", connection)
            assert started.output_offset == 14
            after = [event.data for event in loop.of("data", connection)][-1]
            assert (after.offset, after.data) == (started.input_offset, b"MAIL FROM:<x>\r\n")
            assert started.tls.server_name == NAME
            loop.write(connection, b"250 ok\r\n")
            assert read(secured, 8) == b"250 ok\r\n"
            secured.unwrap()
    assert loop.wait("eof", connection)
    assert reason(loop.closed(connection)) == "COMPLETED"


def test_smtp_with_the_daemon_as_the_client(loop, files):
    with socket.create_server(("127.0.0.1", 0)) as server:
        watch = loop.connect(server.getsockname()[1])
        peer, _ = server.accept()
        with peer:
            loop.wait("connected", watch)
            loop.write(watch, b"STARTTLS\r\n")
            assert read(peer, 10) == b"STARTTLS\r\n"
            peer.sendall(b"220 go ahead\r\n")
            loop.received(watch, b"220 go ahead\r\n")
            loop.call("StartTls", watch, tls=tls("trusting", server_name=NAME), offset=14)
            # Taken during the handshake, and encrypted.
            loop.call("Write", watch, data=b"MAIL FROM:<x>\r\n")
            with server_context(files).wrap_socket(peer, server_side=True) as secured:
                assert read(secured, 15) == b"MAIL FROM:<x>\r\n"
                secured.sendall(b"250 ok\r\n")
                loop.received(watch, b"250 ok\r\n")
                assert loop.wait("tls_started", watch).input_offset == 14
                loop.call("WriteEof", watch)
                assert secured.recv(1) == b""


def test_a_proxy_line_and_the_client_hello_in_one_segment(loop, files):
    """What was read ahead belongs to the handshake, told as Data or not."""
    listener, port = loop.listen()
    line = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
    with connect(port) as client:
        session, incoming, outgoing = client_hello(client_context(files))
        client.sendall(line + outgoing.read())
        connection = loop.accepted(listener)
        assert loop.received(connection, len(line) + 1).startswith(line)
        loop.call("StartTls", connection, server=True, tls=tls("host"), offset=len(line))
        drive(client, session, incoming, outgoing, lambda: session.do_handshake() or True)
        session.write(b"hello")
        client.sendall(outgoing.read())
        started = loop.wait("tls_started", connection)
        loop.received(connection, b"hello")
        last = [event.data for event in loop.of("data", connection)][-1]
        assert (last.offset, last.data) == (started.input_offset, b"hello")


def test_early_data_of_the_application_right_behind_the_handshake(loop, files):
    """The last message of the handshake, data and close_notify in one segment."""
    listener, port = loop.listen()
    with connect(port) as client:
        client.sendall(b"STARTTLS\r\n")
        connection = loop.accepted(listener)
        loop.received(connection, 10)
        loop.call("StartTls", connection, server=True, tls=tls("host"), offset=10)
        session, incoming, outgoing = client_hello(client_context(files))
        client.sendall(outgoing.read())
        while True:
            incoming.write(client.recv(65_536))
            try:
                session.do_handshake()
                break
            except ssl.SSLWantReadError:
                continue
        session.write(MEGABYTE[:100_000])
        with pytest.raises(ssl.SSLWantReadError):
            session.unwrap()
        client.sendall(outgoing.read())
        loop.received(connection, MEGABYTE[:100_000])
        loop.wait("eof", connection)


def test_injected_plaintext_is_never_taken_for_encrypted_by_a_server(loop, files):
    listener, port = loop.listen()
    with connect(port) as client:
        client.sendall(b"STARTTLS\r\nEVIL\r\n")
        connection = loop.accepted(listener)
        loop.received(connection, b"EVIL\r\n")
        loop.call("StartTls", connection, server=True, tls=tls("host"), offset=10)
        client.settimeout(api.PATIENCE)
        closed = loop.closed(connection)
        assert closed.error.step == "handshake"
        assert "the peer does not speak TLS: it sent `EVIL\\r\\n`" in closed.error.message
        assert not loop.of("tls_started", connection)
        assert loop.data(connection) == b"STARTTLS\r\nEVIL\r\n"


def test_injected_plaintext_is_never_taken_for_encrypted_by_a_client(loop, files):
    with socket.create_server(("127.0.0.1", 0)) as server:
        watch = loop.connect(server.getsockname()[1])
        peer, _ = server.accept()
        with peer:
            peer.sendall(b"220 go ahead\r\nEVIL\r\n")
            loop.received(watch, b"EVIL\r\n")
            options = tls("trusting", server_name=NAME)
            with pytest.raises(grpc.RpcError) as refused:
                loop.call("StartTls", watch, tls=options, offset=14)
            assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
            # The connection stays as it is.
            loop.write(watch, b"QUIT\r\n")
            assert read(peer, 6) == b"QUIT\r\n"
            # Not read yet when TLS starts: it meets the handshake.
            loop.call("PauseReading", watch)
            peer.sendall(b"MORE EVIL\r\n")
            loop.call("StartTls", watch, tls=options, offset=20)
            closed = loop.closed(watch)
            assert "the peer does not speak TLS" in closed.error.message
            assert b"MORE" not in loop.data(watch)


@pytest.mark.parametrize("server", [True, False])
def test_a_megabyte_that_was_taken_before_goes_out_in_the_clear_first(loop, files, server):
    """Flow control goes on through it: WritePaused and WriteResumed stay paired."""
    listener, port = loop.listen()
    with connect(port) as client:
        connection = loop.accepted(listener)
        loop.wait("connected", connection)
        taken = loop.call("Write", connection, data=MEGABYTE[: 1 << 20]).taken
        assert taken > 1 << 19
        loop.wait("write_paused", connection)
        options = tls("host") if server else tls("trusting", server_name=NAME)
        loop.call("StartTls", connection, server=server, tls=options, offset=0)
        secret = loop.call("Write", connection, data=b"secret" * 1000)
        assert read(client, taken) == MEGABYTE[:taken]
        if server:
            secured = client_context(files).wrap_socket(client, server_hostname=NAME)
        else:
            secured = server_context(files).wrap_socket(client, server_side=True)
        with secured:
            assert loop.wait("tls_started", connection).output_offset == taken
            assert read(secured, secret.taken - taken) == (b"secret" * 1000)[: secret.taken - taken]
            loop.write(connection, MEGABYTE)
            assert read(secured, len(MEGABYTE)) == MEGABYTE
            loop.until(lambda: len(loop.of("write_resumed")) == len(loop.of("write_paused")))


def fill(loop, connection):
    """Writes until neither the kernel nor the daemon takes more; returns how many bytes were taken."""
    taken = 0
    while True:
        piece = MEGABYTE[taken % (1 << 19) :]
        answer = loop.call("Write", connection, data=piece)
        if answer.taken < taken + len(piece):
            return answer.taken
        taken = answer.taken


# Nothing here may end because of this.
HOUR = api.seconds(3600)


@pytest.mark.parametrize("begun", ["the handshake has begun", "the plaintext is not sent yet"])
@pytest.mark.parametrize("end", ["remove", "abort", "kill the peer", "the handshake fails"])
def test_what_was_to_be_encrypted_is_never_sent_in_the_clear(loop, end, begun):
    """However the connection ends before the handshake is complete; and it ends at once."""
    listener, port = loop.listen()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.settimeout(api.PATIENCE)
        client.connect(("127.0.0.1", port))
        connection = loop.accepted(listener)
        loop.wait("connected", connection)
        taken = fill(loop, connection) if "plaintext" in begun else 0
        options = tls("host", handshake_timeout=HOUR)
        loop.call("StartTls", connection, server=True, tls=options, offset=0)
        if taken:
            # All that the daemon has room for is plaintext. Some must be sent before more is taken.
            while loop.get(connection).transport.buffered_bytes > 1_000_000:
                read(client, 65_536)
        assert loop.call("Write", connection, data=b"secret" * 1000).taken == taken + 6000
        match end:
            case "remove":
                loop.remove(connection)
            case "abort":
                loop.call("Abort", connection)
            case "kill the peer":
                client.shutdown(socket.SHUT_WR)
            case "the handshake fails":
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        received = b""
        try:
            while chunk := client.recv(65_536):
                received += chunk
        except ConnectionResetError:
            assert end == "abort"
        else:
            assert end != "abort", "it was not reset"
        assert b"secret" not in received
    closed = loop.closed(connection)
    assert closed.unsent_bytes >= 6000


def test_a_session_in_mid_stream_that_is_cut_is_a_truncation(loop, files):
    listener, port = loop.listen()
    with connect(port) as client:
        connection = loop.accepted(listener)
        loop.wait("connected", connection)
        loop.call("StartTls", connection, server=True, tls=tls("host"), offset=0)
        secured = client_context(files).wrap_socket(client, server_hostname=NAME)
        secured.sendall(b"half")
        loop.received(connection, b"half")
        # A socket that is closed with unread session tickets is reset.
        loop.write(connection, b"all read")
        assert read(secured, 8) == b"all read"
        secured.close()
        assert reason(loop.closed(connection)) == "TRUNCATED"


def test_what_makes_no_sense_is_refused(one_loop, files):
    listener, port = one_loop.listen()
    with connect(port) as client:
        client.sendall(b"x" * 100)
        connection = one_loop.accepted(listener)
        one_loop.received(connection, 100)

        def refusal(**fields):
            with pytest.raises(grpc.RpcError) as refused:
                one_loop.call("StartTls", connection, server=True, **fields)
            return refused.value.details()

        assert "offset" in refusal(tls=tls("host"))
        assert "at most 100" in refusal(tls=tls("host"), offset=101)
        assert "there is no section [tls.nowhere]" in refusal(tls=tls("nowhere"), offset=100)
        assert "tls.config" in refusal(tls=tls("trusting"), offset=100)
        assert "tls.config" in refusal(offset=100)
        one_loop.call("StartTls", connection, server=True, tls=tls("host"), offset=100)
        assert "TLS" in refusal(tls=tls("host"), offset=100)
        with client_context(files).wrap_socket(client, server_hostname=NAME) as secured:
            one_loop.wait("tls_started", connection)
            assert "TLS already" in refusal(tls=tls("host"), offset=100)
            secured.unwrap()
