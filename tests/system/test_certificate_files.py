"""The files of `[tls.NAME]`: refused at the start, and replaced while they are in use."""
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import api
import daemon as daemons
import pytest
from peers import s_server

import certificates
from evloopd.v1 import watch_service_pb2 as watches

BETWEEN_THE_FILES = 5


def tls(config, **options):
    return watches.TlsOptions(config=config, **options)


def put(source, target):
    """Replaces a file as tools do: by a rename."""
    temporary = Path(f"{target}.new")
    shutil.copy(source, temporary)
    os.rename(temporary, target)


class Live:
    """A daemon whose files the test replaces."""

    def __init__(self, files, directory):
        self.cert, self.key = directory / "live.pem", directory / "live.key"
        self.ca, self.client_ca = directory / "live-ca.pem", directory / "live-client-ca.pem"
        self.pairs = [files.authority.sign(f"live-{n}", ["DNS:live.test", "IP:127.0.0.1"]) for n in range(2)]
        put(self.pairs[0].cert, self.cert)
        put(self.pairs[0].key, self.key)
        put(files.ca, self.ca)
        put(files.ca, self.client_ca)
        self.configuration = f"""
[tls.live]
cert = "{self.cert}"
key = "{self.key}"
[tls.other]
cert = "{files.host.cert}"
key = "{files.host.key}"
sni = ["live"]
[tls.trusting]
ca = "{self.ca}"
[tls.mutual]
cert = "{files.host.cert}"
key = "{files.host.key}"
client_ca = "{self.client_ca}"
"""


@pytest.fixture
def live(files, tmp_path):
    return Live(files, tmp_path)


@pytest.fixture
def loop(live):
    with daemons.running(live.configuration) as daemon, api.connect(daemon) as channel:
        with api.Loop(channel) as loop:
            loop.daemon = daemon
            yield loop


def context(files, pair=None):
    made = ssl.create_default_context(cafile=files.ca)
    if pair:
        made.load_cert_chain(pair.cert, pair.key)
    return made


def connected(files, port, name="live.test", pair=None):
    raw = socket.create_connection(("127.0.0.1", port), api.PATIENCE)
    return context(files, pair).wrap_socket(raw, server_hostname=name)


def shown(files, port):
    """The certificate that a new connection is shown."""
    with connected(files, port) as client:
        return client.getpeercert(True)


def der(pair):
    return ssl.PEM_cert_to_DER_cert(pair.cert.read_text())


def test_key_and_certificate_replaced_one_after_the_other_drop_no_connection(live, loop, files):
    """Five seconds lie between the files, and clients connect all the time."""
    listener, port = loop.listen(tls=tls("live"))
    by_name, named_port = loop.listen(tls=tls("other"))
    old, new = map(der, live.pairs)
    seen, failures, stop = [], [], threading.Event()

    def clients(port):
        while not stop.is_set():
            try:
                seen.append((port, shown(files, port)))
            except OSError as error:
                failures.append(error)

    with connected(files, port) as held:
        connection = loop.accepted(listener)
        load = [threading.Thread(target=clients, args=[port]) for port in [port, named_port]]
        try:
            for thread in load:
                thread.start()
            put(live.pairs[1].key, live.key)
            time.sleep(BETWEEN_THE_FILES)
            assert not failures
            assert {certificate for _, certificate in seen} == {old}
            put(live.pairs[1].cert, live.cert)
            end = time.monotonic() + api.PATIENCE
            while not {(port, new), (named_port, new)} <= set(seen):
                assert time.monotonic() < end, "the new certificate is not shown"
                time.sleep(0.05)
        finally:
            stop.set()
            for thread in load:
                thread.join()
        assert not failures
        held.sendall(b"still here")
        loop.received(connection, b"still here")
    assert "those before stay in use" in loop.daemon.log()
    assert not loop.of("handshakes_failed")
    assert shown(files, port) == shown(files, named_port) == new


def test_a_client_authority_that_is_removed_lets_nobody_in(live, loop, files):
    listener, port = loop.listen(tls=tls("mutual"))
    member = files.authority.sign("member", ["DNS:member.test"])
    number = 0

    def is_let_in():
        nonlocal number
        number += 1
        # The client's part of the handshake succeeds in any case.
        with connected(files, port, "host.test", member):
            loop.until(lambda: len(loop.of("accepted")) == number or loop.of("handshakes_failed"))
        return len(loop.of("accepted")) == number

    assert is_let_in()
    put(files.other_ca, live.client_ca)
    end = time.monotonic() + api.PATIENCE
    while is_let_in():
        assert time.monotonic() < end
    [failed] = loop.of("handshakes_failed")
    assert "no trusted authority has signed the peer's certificate" in failed.handshakes_failed.error.message


@pytest.mark.parametrize("flag", ["-tls1_2", "-tls1_3"])
def test_a_session_is_not_resumed_across_a_change_of_trust(live, loop, files, flag):
    """The certificate of a resumed session is not verified again."""
    with s_server(files.host, "-rev", flag) as (_, port):

        def connects():
            """Returns the negotiated session, or None if the server is not trusted."""
            watch = loop.connect(port, tls=tls("trusting"))
            loop.until(lambda: loop.of("connected", watch) or loop.of("closed", watch))
            if loop.of("closed", watch):
                return None
            loop.write(watch, b"drawer\n")
            loop.received(watch, b"reward\n")
            loop.remove(watch)
            return loop.wait("connected", watch).tls

        connects()
        assert connects().resumed
        put(files.other_ca, live.ca)
        end = time.monotonic() + api.PATIENCE
        while session := connects():
            assert session.resumed, "it was verified again and passed"
            assert time.monotonic() < end
        put(files.ca, live.ca)
        while (session := connects()) is None:
            assert time.monotonic() < end
        assert not session.resumed


def check(configuration, directory, *flags):
    path = directory / "evloopd.toml"
    socket = f'[server]\nsocket = "{directory}/evloopd.sock"\n'
    path.write_text(f"version = 1\n{socket}{configuration}")
    return subprocess.run(
        [daemons.DAEMON, "--config", path, *flags], capture_output=True, text=True, timeout=api.PATIENCE
    )


@pytest.mark.parametrize("flags", [[], ["--check-config"]])
@pytest.mark.parametrize(
    "wrong, key, text",
    [
        ("readable", "tls.live.key", "everybody can use the key"),
        ("encrypted", "tls.live.key", "is encrypted with a passphrase"),
        ("encrypted in the old way", "tls.live.key", "is encrypted with a passphrase"),
        ("mismatch", "tls.live.key", "is not the key of the first certificate in cert"),
        ("missing", "tls.live.key", "cannot be read"),
        ("fifo", "tls.live.key", "is no regular file"),
        ("directory", "tls.live.cert", "is no regular file"),
        ("no certificate", "tls.live.cert", "contains no `BEGIN CERTIFICATE`"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_words(live, files, tmp_path, wrong, key, text, flags):
    match wrong:
        case "readable":
            live.key.chmod(0o644)
        case "encrypted":
            certificates.openssl("pkey", "-in", live.pairs[0].key, "-aes256", "-passout", "pass:x", "-out", live.key)
        case "encrypted in the old way":
            certificates.openssl(
                "ec", "-in", live.pairs[0].key, "-aes256", "-passout", "pass:x", "-out", live.key
            )
        case "mismatch":
            put(live.pairs[1].key, live.key)
        case "missing":
            live.key.unlink()
        case "fifo":
            live.key.unlink()
            os.mkfifo(live.key, 0o600)
        case "directory":
            live.cert.unlink()
            live.cert.mkdir()
        case "no certificate":
            put(live.key, live.cert)
    done = check(live.configuration, tmp_path, *flags)
    assert done.returncode != 0
    assert f"{key}" in done.stderr + done.stdout
    assert text in done.stderr + done.stdout


@pytest.mark.parametrize("kind", ["EC PARAMETERS", "PKCS #1", "Ed25519"])
def test_keys_of_every_usual_form_are_taken(files, tmp_path, kind):
    key, cert = tmp_path / "a.key", tmp_path / "a.pem"
    match kind:
        case "EC PARAMETERS":
            certificates.openssl("ecparam", "-genkey", "-name", "prime256v1", "-out", key)
        case "PKCS #1":
            certificates.openssl("genrsa", "-traditional", "-out", key, 2048)
        case "Ed25519":
            certificates.openssl("genpkey", "-algorithm", "ed25519", "-out", key)
    key.chmod(0o600)
    certificates.openssl("req", "-x509", "-key", key, "-subj", "/CN=a", "-out", cert)
    done = check(f'[tls.a]\ncert = "{cert}"\nkey = "{key}"\n', tmp_path, "--check-config")
    assert done.returncode == 0, done.stderr + done.stdout
