"""Programs at the other end of a connection."""
import contextlib
import os
import re
import shutil
import subprocess
import threading

import pytest

import api


def needs(*programs, root=False):
    """Skips the tests of a file where a program is missing, or without root if they need that."""
    missing = [program for program in programs if not shutil.which(program)]
    if root and os.geteuid() != 0:
        missing.append("root")
    return pytest.mark.skipif(bool(missing), reason=f"SKIPPED for want of {' and '.join(missing)}")


class Program:
    """A running program, whose output is read as it comes. It is killed at the end."""

    def __init__(self, *argv, stderr=subprocess.STDOUT):
        self.process = subprocess.Popen(
            [str(word) for word in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
        )
        self.output = b""
        self.changed = threading.Condition()
        self.ended = False
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self):
        while chunk := self.process.stdout.read1(65_536):
            with self.changed:
                self.output += chunk
                self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.thread.join()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()

    def send(self, data):
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def finish(self):
        """Ends its input, waits for its end, and returns all its output."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(api.PATIENCE)
        self.thread.join()
        return self.output

    def until(self, pattern):
        """Waits until its output matches a pattern, and returns the match."""

        def found():
            return re.search(pattern, self.output)

        with self.changed:
            self.changed.wait_for(lambda: found() or self.ended, api.PATIENCE)
            assert found(), f"{self.process.args}: {pattern} is not in {self.output}"
            return found()


def curl(*arguments):
    return Program("curl", "--silent", "--show-error", "--max-time", api.PATIENCE, *arguments)


def s_client(port, *arguments):
    return Program("openssl", "s_client", "-connect", f"127.0.0.1:{port}", *arguments)


@contextlib.contextmanager
def s_server(pair, *arguments):
    """`openssl s_server`, and its port."""
    shown = ["-cert", pair.cert, "-key", pair.key] if pair else ["-nocert"]
    with Program("openssl", "s_server", "-accept", "127.0.0.1:0", *shown, *arguments) as server:
        yield server, int(server.until(rb"ACCEPT \S+:(\d+)")[1])
