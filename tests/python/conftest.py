"""A real daemon on a private socket, and stubs that the standard generator makes from proto/."""
import importlib.resources
import os
import select
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]
DAEMON = os.environ.get("EVLOOPD", str(ROOT / "target/debug/evloopd"))
START_SECONDS = 30
STUBS = tempfile.TemporaryDirectory(prefix="evloopd-stubs-")


def generate_stubs():
    protos = sorted(str(path) for path in (ROOT / "proto").rglob("*.proto"))
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    includes = [f"-I{ROOT / 'proto'}", f"-I{well_known}"]
    outputs = [f"--python_out={STUBS.name}", f"--grpc_python_out={STUBS.name}"]
    assert protoc.main(["protoc", *includes, *outputs, *protos]) == 0


generate_stubs()
sys.path.insert(0, STUBS.name)


class Daemon:
    """The socket of a running daemon, and the environment of its command-line clients."""

    def __init__(self, directory):
        self.socket = f"{directory}/evloopd.sock"
        self.env = {**os.environ, "PYTHONPATH": STUBS.name, "EVLOOPD_SOCKET": self.socket}


@pytest.fixture(scope="module")
def daemon():
    with tempfile.TemporaryDirectory(prefix="evloopd-") as directory:
        daemon = Daemon(directory)
        config = Path(directory, "evloopd.toml")
        config.write_text(f'version = 1\n[server]\nsocket = "{daemon.socket}"\n')
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, open(f"{directory}/log", "w+") as log:
            notify.bind(f"{directory}/notify")
            env = {**os.environ, "NOTIFY_SOCKET": notify.getsockname()}
            process = subprocess.Popen([DAEMON, "--config", config], env=env, stderr=log)
            try:
                wait_until_ready(process, notify, log)
                yield daemon
            finally:
                process.terminate()
                code = process.wait(START_SECONDS)
            assert code == 0, f"the daemon ended with {code}: {Path(log.name).read_text()}"


def wait_until_ready(process, notify, log):
    """Waits for READY=1 (sd_notify(3)); fails if the daemon ends first."""
    ended = os.pidfd_open(process.pid)
    try:
        while True:
            readable, _, _ = select.select([notify, ended], [], [], START_SECONDS)
            if notify not in readable:
                pytest.fail(f"the daemon did not get ready: {Path(log.name).read_text()}")
            if b"READY=1" in notify.recv(4096).split(b"\n"):
                return
    finally:
        os.close(ended)
