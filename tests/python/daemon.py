"""A real daemon on a private socket, and stubs that the standard generator makes from proto/."""
import contextlib
import importlib.resources
import os
import select
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

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
    """A running daemon: its socket, its process, and the environment of its command-line clients."""

    def __init__(self, directory, process):
        self.directory = Path(directory)
        self.socket = f"{directory}/evloopd.sock"
        self.process = process
        self.env = {**os.environ, "PYTHONPATH": STUBS.name, "EVLOOPD_SOCKET": self.socket}

    def log(self):
        return Path(self.directory, "log").read_text()


@contextlib.contextmanager
def running(configuration="", server="", prefix=(), ends=0):
    """A daemon with these sections of a configuration and these keys of [server], which is to end well.

    `ends` is its exit code, or the signal that the test ends it by, as a negative number.
    `prefix` is a command that runs the daemon, such as `ip netns exec NAME`; it must replace itself.
    """
    with tempfile.TemporaryDirectory(prefix="evloopd-") as directory:
        config = Path(directory, "evloopd.toml")
        path = f"{directory}/evloopd.sock"
        config.write_text(f'version = 1\n[server]\nsocket = "{path}"\n{server}\n{configuration}\n')
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, open(f"{directory}/log", "w+") as log:
            notify.bind(f"{directory}/notify")
            env = {**os.environ, "NOTIFY_SOCKET": notify.getsockname()}
            process = subprocess.Popen([*prefix, DAEMON, "--no-keeper", "--config", config], env=env, stderr=log)
            daemon = Daemon(directory, process)
            try:
                wait_until_ready(daemon, notify)
                yield daemon
            finally:
                process.terminate()
                code = process.wait(START_SECONDS)
            assert code == ends, f"the daemon ended with {code}: {daemon.log()}"


def wait_until_ready(daemon, notify):
    """Waits for READY=1 (sd_notify(3)); fails if the daemon ends first."""
    ended = os.pidfd_open(daemon.process.pid)
    try:
        while True:
            readable, _, _ = select.select([notify, ended], [], [], START_SECONDS)
            assert notify in readable, f"the daemon did not get ready: {daemon.log()}"
            if b"READY=1" in notify.recv(4096).split(b"\n"):
                return
    finally:
        os.close(ended)
