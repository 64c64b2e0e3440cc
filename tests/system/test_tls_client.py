"""Connections with TLS, met by `openssl s_server`."""
import api
import pytest
from api import reason
from peers import Program, s_server

from evloopd.v1 import watch_service_pb2 as watches

RUNS = 50
BODY = b"0123456789abcde\n" * 65_536


def tls(config="trusting", **options):
    return watches.TlsOptions(config=config, **options)


def failure(closed):
    """The text of a handshake that failed."""
    assert reason(closed) == "ERROR"
    step, text = closed.error.message.split(" ", 1)
    assert step == closed.error.step == "handshake"
    return text.removesuffix(": Protocol error (EPROTO)")


@pytest.mark.parametrize("flag", ["-tls1_2", "-tls1_3"])
def test_lines_go_there_and_back(loop, files, flag):
    with s_server(files.host, "-rev", flag) as (_, port):
        watch = loop.connect(port, tls=tls(server_name="host.test"))
        session = loop.wait("connected", watch).tls
        assert session.version == {"-tls1_2": "TLSv1.2", "-tls1_3": "TLSv1.3"}[flag]
        assert len(session.peer_certificates) == 1
        loop.write(watch, b"drawer\n")
        loop.received(watch, b"reward\n")
        loop.call("WriteEof", watch)
        assert reason(loop.closed(watch)) == "COMPLETED"


def test_a_megabyte_arrives_and_the_end_is_clean(loop, files):
    """`-WWW` sends a file and ends the session."""
    path = files.directory / "megabyte"
    path.write_bytes(BODY)
    with Program(
        "sh", "-c", 'cd "$1" && shift && exec openssl s_server -accept 127.0.0.1:0 "$@"', "sh", files.directory,
        "-WWW", "-cert", files.host.cert, "-key", files.host.key,
    ) as server:  # fmt: skip
        port = int(server.until(rb"ACCEPT \S+:(\d+)")[1])
        watch = loop.connect(port, tls=tls())
        loop.wait("connected", watch)
        loop.write(watch, b"GET /megabyte HTTP/1.0\r\n\r\n")
        loop.closed(watch)
        assert loop.data(watch).endswith(b"\r\n\r\n" + BODY)
        assert loop.wait("eof", watch).offset == len(loop.data(watch))
        assert reason(loop.closed(watch)) == "COMPLETED"


@pytest.mark.parametrize(
    "shown, config, name, text",
    [
        ("expired", "trusting", "", "the peer's certificate expired on 2021-01-01"),
        ("early", "trusting", "", "the peer's certificate is not valid before 2048-01-01"),
        (
            "elsewhere",
            "trusting",
            "host.test",
            "the peer's certificate is valid for elsewhere.test, not for host.test",
        ),
        (
            "foreign",
            "trusting",
            "",
            "no trusted authority has signed the peer's certificate, and it is not itself trusted",
        ),
        (
            "alone",
            "trusting",
            "",
            "no trusted authority has signed the peer's certificate, and it is not itself trusted",
        ),
        (
            "host",
            "",
            "",
            "no trusted authority has signed the peer's certificate, and it is not itself trusted",
        ),
    ],
)
@pytest.mark.parametrize("flag", ["-tls1_2", "-tls1_3"])
def test_a_certificate_that_proves_nothing_is_refused_and_the_server_is_told(
    one_loop, files, shown, config, name, text, flag
):
    with s_server(getattr(files, shown), flag) as (server, port):
        watch = one_loop.connect(port, tls=tls(config, server_name=name))
        closed = one_loop.closed(watch)
        assert failure(closed) == text
        assert not one_loop.of("connected", watch)
        server.until(rb"alert")


def test_a_self_signed_certificate_passes_as_its_own_authority(one_loop, files):
    """curl agrees; so does everybody who made it by `openssl req -x509` and copied it to both sides."""
    with s_server(files.alone, "-rev") as (_, port):
        for name in ["", "host.test"]:
            watch = one_loop.connect(port, tls=tls("trusts-alone", server_name=name))
            assert one_loop.wait("connected", watch).tls.version == "TLSv1.3"
            one_loop.remove(watch)  # s_server serves one at a time
        watch = one_loop.connect(port, tls=tls("trusts-alone", server_name="other.test"))
        assert failure(one_loop.closed(watch)).startswith("the peer's certificate is valid for ")
        watch = one_loop.connect(port, tls=tls(ca_pem=files.alone.cert.read_bytes()))
        one_loop.wait("connected", watch)


@pytest.mark.parametrize(
    "config, text",
    [
        ("trusting", "the peer refuses the certificate: it requires one"),
        ("foreigner", "the peer refuses the certificate: it does not know the authority"),
        ("late", "the peer refuses the certificate: it has expired or is not valid yet"),
    ],
)
def test_a_client_certificate_that_is_refused_is_told_in_one_text(one_loop, files, config, text):
    """In TLS 1.3 the client is connected before it is refused: what it wrote meanwhile was never read."""
    asks = ["-Verify", 1, "-verify_return_error", "-CAfile", files.ca]
    with s_server(files.host, "-tls1_3", *asks) as (_, port):
        texts, unsent = set(), set()
        for run in range(RUNS):
            watch = one_loop.connect(port, tls=tls(config))
            one_loop.until(lambda: one_loop.of("connected", watch) or one_loop.of("closed", watch))
            if run % 2:
                try:
                    one_loop.call("Write", watch, data=b"x" * 1000)
                    unsent.add(one_loop.closed(watch).unsent_bytes)
                except Exception as error:
                    assert "is closed" in str(error)
            texts.add(failure(one_loop.closed(watch)))
        assert texts == {text}
        assert unsent <= {1000}


def test_a_client_certificate_is_shown_to_who_asks(one_loop, files):
    with s_server(files.host, "-Verify", 1, "-verify_return_error", "-CAfile", files.ca, "-rev") as (server, port):
        watch = one_loop.connect(port, tls=tls("member"))
        one_loop.wait("connected", watch)
        one_loop.write(watch, b"drawer\n")
        one_loop.received(watch, b"reward\n")


def test_a_server_that_is_killed_is_a_truncation(loop, files):
    with s_server(files.host) as (server, port):
        watch = loop.connect(port, tls=tls())
        loop.wait("connected", watch)
        server.send(BODY)
        assert loop.received(watch, len(BODY)) == BODY
        server.process.kill()
        assert reason(loop.closed(watch)) == "TRUNCATED"
        assert not loop.of("eof", watch)


def test_a_server_that_speaks_older_versions_is_refused_in_words(one_loop, files):
    with s_server(files.host, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0") as (_, port):
        watch = one_loop.connect(port, tls=tls())
        assert failure(one_loop.closed(watch)) == "the peer speaks neither TLS 1.3 nor TLS 1.2"


def test_a_server_of_plain_http_is_called_so(one_loop, tmp_path):
    with Program("python3", "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", tmp_path, 0) as server:
        port = int(server.until(rb"port (\d+)")[1])
        watch = one_loop.connect(port, tls=tls())
        text = failure(one_loop.closed(watch))
        assert text.startswith("the peer does not speak TLS")


def test_alpn_is_negotiated_and_none_in_common_is_said(one_loop, files):
    with s_server(files.host, "-alpn", "h2,http/1.1") as (_, port):
        watch = one_loop.connect(port, tls=tls(alpn=["http/1.1", "h2"]))
        assert one_loop.wait("connected", watch).tls.alpn == "h2"
        one_loop.remove(watch)
        watch = one_loop.connect(port, tls=tls(alpn=["spdy/1"]))
        assert failure(one_loop.closed(watch)) == "the peer has no protocol in common (ALPN)"


def test_the_server_name_is_sent_and_an_address_is_not(one_loop, files):
    by_name = ["-servername", "elsewhere.test", "-cert2", files.elsewhere.cert, "-key2", files.elsewhere.key]
    with s_server(files.host, *by_name) as (_, port):
        # Each name is one that only the certificate shown for it is valid for.
        for name in ["elsewhere.test", ""]:
            watch = one_loop.connect(port, tls=tls(server_name=name))
            one_loop.wait("connected", watch)
            one_loop.remove(watch)


# The older version first: a session of the newer one would be tried before.
@pytest.mark.parametrize("flag", ["-tls1_2", "-tls1_3"])
def test_a_session_is_resumed_but_not_with_a_certificate(one_loop, files, flag):
    # Sessions are remembered by the server's name: nobody else uses this one.
    with s_server(files.host, "-rev", flag) as (_, port):

        def connects(config):
            """Returns whether the session of a new connection is a resumed one."""
            watch = one_loop.connect(port, tls=tls(config, server_name="again.test"))
            resumed = one_loop.wait("connected", watch).tls.resumed
            # Tickets come before the data.
            one_loop.write(watch, b"drawer\n")
            one_loop.received(watch, b"reward\n")
            one_loop.remove(watch)
            return resumed

        assert [connects("trusting"), connects("trusting")] == [False, True]
        assert [connects("member"), connects("member")] == [False, False]
