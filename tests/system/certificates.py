"""Certificates and keys, made by openssl."""
import subprocess
from pathlib import Path

NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


def openssl(*arguments):
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, f"openssl {arguments}: {done.stderr}"


class Pair:
    """A certificate with its key, as PEM files: `NAME.pem` and `NAME.key`."""

    def __init__(self, directory, name):
        self.cert = Path(directory, f"{name}.pem")
        self.key = Path(directory, f"{name}.key")

    def certified(self):
        self.key.chmod(0o600)
        return self


class Authority:
    """An authority, which signs certificates."""

    def __init__(self, directory, name):
        self.directory = Path(directory)
        self.pair = Pair(directory, name)
        openssl(
            "req", "-x509", *NEW_KEY, "-keyout", self.pair.key, "-out", self.pair.cert, "-days", 30,
            "-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip
        self.cert = self.pair.cert
        self.config = Path(directory, f"{name}.cnf")
        self.config.write_text(
            f"""[ca]
default_ca = this
[this]
database = {directory}/{name}.index
new_certs_dir = {directory}
certificate = {self.pair.cert}
private_key = {self.pair.key}
rand_serial = yes
default_md = sha256
unique_subject = no
policy = any
[any]
commonName = supplied
"""
        )
        Path(directory, f"{name}.index").touch()

    def sign(self, name, names, begin=None, end=None):
        """A certificate for these subjectAltNames, such as `DNS:host.test`, and this time: `YYYYMMDD`."""
        pair = Pair(self.directory, name)
        request = Path(self.directory, f"{name}.csr")
        openssl("req", "-new", *NEW_KEY, "-keyout", pair.key, "-subj", f"/CN={name}", "-out", request)
        extensions = Path(self.directory, f"{name}.ext")
        extensions.write_text(f"subjectAltName={','.join(names)}\nbasicConstraints=critical,CA:FALSE\n")
        # `openssl x509` cannot make a certificate that begins in the past.
        days = ["-startdate", f"{begin}000000Z", "-enddate", f"{end}000000Z"] if begin else ["-days", 30]
        openssl(
            "ca", "-batch", "-notext", "-config", self.config, "-extfile", extensions, *days,
            "-in", request, "-out", pair.cert,
        )  # fmt: skip
        return pair.certified()


def self_signed(directory, name, names):
    """What `openssl req -x509` makes by itself: a certificate that is its own issuer and marked as an authority."""
    pair = Pair(directory, name)
    openssl(
        "req", "-x509", *NEW_KEY, "-keyout", pair.key, "-out", pair.cert, "-days", 30, "-subj", f"/CN={name}",
        "-addext", f"subjectAltName={','.join(names)}",
    )  # fmt: skip
    return pair.certified()
