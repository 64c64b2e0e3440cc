"""Listeners with TLS, met by curl and `openssl s_client`."""
import api
import pytest
from api import reason
from peers import Program, curl, needs, s_client

from evloopd.v1 import common_pb2 as common
from evloopd.v1 import watch_service_pb2 as watches

pytestmark = needs("curl")

BODY = bytes(range(256)) * 4096
REFUSED_AT_ONCE = "-verify_return_error"


def tls(config="host", **options):
    return watches.TlsOptions(config=config, **options)


def failure(loop, listener):
    """The text of the first failed handshake."""
    failed = loop.wait("handshakes_failed", listener)
    step, text = failed.error.message.split(" ", 1)
    assert step == failed.error.step == "handshake"
    return text.removesuffix(": Protocol error (EPROTO)")


def answer(loop, connection, body):
    """Answers a request. The end of the answer is the end of the connection, which curl insists on."""
    loop.received(connection, b"\r\n\r\n")
    loop.write(connection, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body, eof=True)


def test_curl_gets_its_answer(loop, files):
    listener, port = loop.listen(tls=tls(alpn=["http/1.1"]))
    url = f"https://host.test:{port}/"
    with curl("--cacert", files.ca, "--resolve", f"host.test:{port}:127.0.0.1", url) as client:
        connection = loop.accepted(listener)
        session = loop.wait("connected", connection).tls
        answer(loop, connection, BODY)
        assert client.finish() == BODY
        assert client.process.returncode == 0
    assert (session.version, session.alpn, session.server_name) == ("TLSv1.3", "http/1.1", "host.test")
    assert reason(loop.closed(connection)) == "COMPLETED"


def test_curl_sends_a_megabyte(loop, files):
    listener, port = loop.listen(tls=tls())
    body = files.directory / "body"
    body.write_bytes(BODY)
    url = f"https://127.0.0.1:{port}/"
    headers = ["-H", "Expect:", "--data-binary", f"@{body}"]
    with curl("--cacert", files.ca, *headers, url) as client:
        connection = loop.accepted(listener)
        loop.until(lambda: loop.data(connection).endswith(BODY))
        assert loop.data(connection).startswith(b"POST / HTTP/1.1\r\n")
        answer(loop, connection, b"thanks")
        assert client.finish() == b"thanks"


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_both_versions_are_spoken_and_a_clean_end_is_an_eof(loop, files, version):
    listener, port = loop.listen(tls=tls())
    flag = {"TLSv1.2": "-tls1_2", "TLSv1.3": "-tls1_3"}[version]
    with s_client(port, flag, "-quiet", "-CAfile", files.ca, REFUSED_AT_ONCE) as client:
        connection = loop.accepted(listener)
        session = loop.wait("connected", connection).tls
        client.send(b"hello\n")
        loop.received(connection, b"hello\n")
        loop.write(connection, b"welcome\n")
        client.until(b"welcome\n")
        assert session.version == version
        assert session.cipher_suite.startswith("TLS_")
    # -quiet ignores the end of its input, so this one was killed: an end without close_notify.
    assert reason(loop.closed(connection)) == "TRUNCATED"
    assert not loop.of("eof", connection)
    with s_client(port, flag, "-CAfile", files.ca, REFUSED_AT_ONCE) as client:
        connection = loop.accepted(listener, 2)
        client.send(b"hello\n")
        loop.received(connection, b"hello\n")
        client.finish()
        assert loop.wait("eof", connection).offset == len(b"hello\n")
        assert reason(loop.closed(connection)) == "COMPLETED"


def test_a_cut_after_a_megabyte_is_told_apart_from_a_clean_end(loop, files):
    listener, port = loop.listen(tls=tls())
    with s_client(port, "-quiet", "-CAfile", files.ca) as client:
        client.send(BODY)
        connection = loop.accepted(listener)
        assert loop.received(connection, len(BODY)) == BODY
        client.process.kill()
        assert reason(loop.closed(connection)) == "TRUNCATED"
    listener, port = loop.listen(tls=tls(allow_truncation=True))
    with s_client(port, "-quiet", "-CAfile", files.ca) as client:
        client.send(BODY)
        connection = loop.accepted(listener)
        assert loop.received(connection, len(BODY)) == BODY
        client.process.kill()
        assert loop.wait("eof", connection).offset == len(BODY)


@pytest.mark.parametrize("flag", ["-tls1", "-tls1_1"])
def test_older_versions_are_refused_in_words(one_loop, files, flag):
    listener, port = one_loop.listen(tls=tls())
    with s_client(port, flag, "-cipher", "ALL:@SECLEVEL=0") as client:
        client.until(b"alert (protocol version|handshake failure)")
    assert failure(one_loop, listener) == "the peer speaks neither TLS 1.3 nor TLS 1.2"
    assert not one_loop.of("accepted")


def test_plain_http_on_a_tls_port_is_called_so(loop):
    listener, port = loop.listen(tls=tls())
    with curl(f"http://127.0.0.1:{port}/") as client:
        client.finish()
        assert client.process.returncode != 0
    assert failure(loop, listener) == "the peer does not speak TLS: it sent `GET / HT`"


def test_who_does_not_trust_the_certificate_is_named(one_loop, files):
    listener, port = one_loop.listen(tls=tls())
    with s_client(port, "-CAfile", files.other_ca, REFUSED_AT_ONCE) as client:
        client.finish()
    assert failure(one_loop, listener) == "the peer refuses the certificate: it does not know the authority"
    assert one_loop.of("handshakes_failed")[0].handshakes_failed.peer.inet.ip == "127.0.0.1"


def test_alpn_is_the_servers_choice_and_none_in_common_is_said(one_loop, files):
    listener, port = one_loop.listen(tls=tls(alpn=["h2", "http/1.1"]))
    with s_client(port, "-alpn", "http/1.1,h2") as client:
        client.until(b"ALPN protocol: h2")
        assert one_loop.wait("connected", one_loop.accepted(listener)).tls.alpn == "h2"
    with s_client(port) as client:
        client.until(b"No ALPN negotiated")
        assert one_loop.wait("connected", one_loop.accepted(listener, 2)).tls.alpn == ""
    with s_client(port, "-alpn", "spdy/1") as client:
        client.until(b"alert no application protocol")
    assert failure(one_loop, listener) == "no protocol in common (ALPN)"


@pytest.mark.parametrize(
    "asked, shown, strictly",
    [
        (["-servername", "host.test"], "host", "host"),
        (["-servername", "ELSEWHERE.test"], "elsewhere", "elsewhere"),
        (["-servername", "a.wild.test"], "wild", "wild"),
        (["-servername", "a.b.wild.test"], "host", None),
        (["-servername", "wild.test"], "host", None),
        (["-servername", "unknown.test"], "host", None),
        (["-noservername"], "host", None),
    ],
)
def test_the_certificate_is_the_one_of_the_name_or_the_default_or_none(one_loop, asked, shown, strictly):
    for section, name in [("names", shown), ("strict", strictly)]:
        for flag in ["-tls1_2", "-tls1_3"]:
            listener, port = one_loop.listen(tls=tls(section))
            with s_client(port, flag, *asked) as client:
                if name is None:
                    client.until(b"alert")
                    assert failure(one_loop, listener) == "no certificate has the name that the client asked for"
                else:
                    client.until(f"subject=CN = {name}\n".encode())


@pytest.mark.parametrize(
    "shown, text",
    [
        (None, "the client showed no certificate"),
        (
            "foreign",
            "no trusted authority has signed the peer's certificate, and it is not itself trusted",
        ),
        ("early", "the peer's certificate is not valid before 2048-01-01"),
        ("expired", "the peer's certificate expired on 2021-01-01"),
    ],
)
@pytest.mark.parametrize("flag", ["-tls1_2", "-tls1_3"])
def test_a_client_certificate_that_is_missing_foreign_or_expired_is_refused(one_loop, files, shown, text, flag):
    listener, port = one_loop.listen(tls=tls("mutual"))
    pair = shown and getattr(files, shown)
    arguments = ["-cert", pair.cert, "-key", pair.key] if pair else []
    with s_client(port, flag, *arguments) as client:
        client.until(b"alert")
    assert failure(one_loop, listener).startswith(text)
    assert not one_loop.of("accepted")


def test_a_client_with_a_certificate_is_let_in_and_shown(one_loop, files):
    listener, port = one_loop.listen(tls=tls("mutual"))
    with s_client(port, "-cert", files.host.cert, "-key", files.host.key) as client:
        session = one_loop.wait("connected", one_loop.accepted(listener)).tls
        assert len(session.peer_certificates) == 1
        assert session.HasField("peer_certificate_expires")
        client.finish()


def session_file(loop, files, listener, port, flag, number, *arguments):
    """Connects, waits until the tickets have arrived, and returns the file with the session."""
    path = files.directory / f"session-{listener}-{number}"
    with s_client(port, flag, "-sess_out", path, *arguments) as client:
        connection = loop.accepted(listener, number)
        # Tickets come before the data.
        loop.write(connection, b"the tickets are there\n")
        client.until(b"the tickets are there")
        client.finish()
    return path


@pytest.mark.parametrize("flag", ["-tls1_2", "-tls1_3"])
def test_a_session_is_resumed(one_loop, files, flag):
    listener, port = one_loop.listen(tls=tls())
    path = session_file(one_loop, files, listener, port, flag, 1)
    with s_client(port, flag, "-sess_in", path) as client:
        client.until(b"Reused, TLS")
        session = one_loop.wait("connected", one_loop.accepted(listener, 2)).tls
        assert session.resumed
    assert not one_loop.of("connected")[0].connected.tls.resumed


@pytest.mark.parametrize("flag", ["-tls1_2", "-tls1_3"])
def test_a_session_with_a_client_certificate_is_not_resumed(one_loop, files, flag):
    """Else the certificate would not be verified for as long as the ticket lives."""
    listener, port = one_loop.listen(tls=tls("mutual"))
    shown = ["-cert", files.host.cert, "-key", files.host.key]
    path = session_file(one_loop, files, listener, port, flag, 1, *shown)
    if path.exists():
        with s_client(port, flag, "-sess_in", path, *shown) as client:
            client.until(b"New, TLS")
            assert not one_loop.wait("connected", one_loop.accepted(listener, 2)).tls.resumed
    # Nor one of a listener that asks for no certificate, and has the same key.
    easy, easy_port = one_loop.listen(tls=tls("host"))
    path = session_file(one_loop, files, easy, easy_port, flag, 1)
    with s_client(port, flag, "-sess_in", path) as client:
        client.until(b"alert")
    assert failure(one_loop, listener) == "the client showed no certificate"


def test_keys_are_updated_in_mid_stream(loop, files):
    """s_client's command K asks for new keys of both sides."""
    listener, port = loop.listen(tls=tls())
    with s_client(port, "-tls1_3", "-CAfile", files.ca) as client:
        connection = loop.accepted(listener)
        for number in range(3):
            client.send(b"line %d\n" % number)
            loop.received(connection, b"line %d\n" % number)
            client.send(b"K\n")
            client.until(rb"KEYUPDATE")
            loop.write(connection, b"answer %d\n" % number)
            client.until(b"answer %d\n" % number)
        client.finish()
        assert reason(loop.closed(connection)) == "COMPLETED"


def test_a_new_handshake_in_mid_stream_is_refused(loop, files):
    """s_client's command R begins one, which TLS 1.2 knows; it is what attackers like (CVE-2009-3555)."""
    listener, port = loop.listen(tls=tls())
    with s_client(port, "-tls1_2", "-CAfile", files.ca) as client:
        connection = loop.accepted(listener)
        client.send(b"before\n")
        loop.received(connection, b"before\n")
        client.send(b"R\n")
        client.until(b"RENEGOTIATING")
        client.until(b"no renegotiation|alert|error")
    loop.closed(connection)
    assert loop.data(connection) == b"before\n"


def test_a_unix_socket_speaks_tls_too(loop, files, tmp_path):
    where = tmp_path / "socket"
    address = common.UnixAddress(path=str(where))
    listener = loop.add(listener=watches.ListenerSpec(unix=address, tls=tls()))
    with Program("openssl", "s_client", "-unix", where, "-CAfile", files.ca, REFUSED_AT_ONCE) as client:
        connection = loop.accepted(listener)
        client.send(b"hello\n")
        loop.received(connection, b"hello\n")
        loop.write(connection, b"welcome\n", eof=True)
        client.until(b"welcome\n")
        client.finish()
    assert reason(loop.closed(connection)) == "COMPLETED"
