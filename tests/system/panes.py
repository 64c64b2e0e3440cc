"""Panes of a tmux of one's own: the terminals of users who type and look."""
import re
import subprocess
import time
from pathlib import Path

import daemon as daemons

# Seconds after which whatever a test waits for has failed.
PATIENCE = 30
# Seconds between two looks at what is waited for.
LOOK = 0.02
# What tmux says about a pane besides its text.
FLAGS = """alternate_on insert_flag wrap_flag origin_flag keypad_flag keypad_cursor_flag cursor_flag
    mouse_any_flag mouse_all_flag mouse_button_flag mouse_standard_flag mouse_sgr_flag mouse_utf8_flag
    scroll_region_upper scroll_region_lower pane_tabs pane_title""".split()
PROMPT = "ready$ "
BASH = ["bash", "--norc", "--noprofile", "-i"]
SETTINGS = [
    "set -s exit-empty off",
    "set -s escape-time 0",
    "set -s extended-keys on",
    "set -g status off",
    "set -g default-shell /bin/bash",
    "set -wg automatic-rename off",
    "set -wg remain-on-exit on",
]


class Tmux:
    """A tmux server with no configuration but SETTINGS; it ends with its panes at the end."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.env = {
            "HOME": str(self.directory),
            "LC_ALL": "C.UTF-8",
            "PATH": f"{Path(daemons.DAEMON).parent}:/usr/local/bin:/usr/bin:/bin",
            "PS1": PROMPT,
            "HISTFILE": "/dev/null",
            "SHELL": "/bin/bash",
        }
        self.panes = 0
        # Else the first fish makes completions in the background, which outlives it.
        (self.directory / ".local/share/fish/generated_completions").mkdir(parents=True)

    def __enter__(self):
        self.run("start-server", *[word for line in SETTINGS for word in [";", *line.split()]])
        return self

    def __exit__(self, *_):
        self.run("kill-server")

    def run(self, *words):
        command = ["tmux", "-S", self.directory / "outer", "-f", "/dev/null", *map(str, words)]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def pane(self, daemon, columns=80, rows=24, shell=BASH):
        """A pane of this size with a shell (more than one word), whose evloopctl reaches that daemon."""
        self.panes += 1
        pane = Pane(self, f"pane{self.panes}")
        size = ["-x", columns, "-y", rows, "-c", self.directory]
        environment = ["-e", f"EVLOOPD_SOCKET={daemon.socket}"]
        self.run("new-session", "-d", "-s", pane.name, *size, *environment, *shell)
        pane.until_prompt()
        return pane


class Pane:
    """A terminal of a user."""

    def __init__(self, tmux, name):
        self.tmux = tmux
        self.name = name

    def types(self, text):
        """Types this text as it is."""
        self.tmux.run("send-keys", "-t", self.name, "-l", "--", text)

    def presses(self, *keys):
        """Presses keys that have names, such as `Enter` and `C-p`."""
        self.tmux.run("send-keys", "-t", self.name, *keys)

    def sends(self, data):
        """Sends these bytes, as another terminal would encode its keys."""
        self.tmux.run("send-keys", "-t", self.name, "-H", *[f"{byte:02x}" for byte in data])

    def enters(self, line):
        self.types(line)
        self.presses("Enter")

    def resize(self, columns, rows):
        self.tmux.run("resize-window", "-t", self.name, "-x", columns, "-y", rows)

    def value(self, format):
        return self.tmux.run("display-message", "-p", "-t", self.name, format).rstrip("\n")

    def text(self):
        return self.tmux.run("capture-pane", "-p", "-t", self.name)

    def flags(self):
        """What tmux says about the pane besides its text."""
        values = self.value("\n".join(f"#{{{flag}}}" for flag in FLAGS))
        return dict(zip(FLAGS, values.split("\n"), strict=True))

    def looks(self):
        """All that is seen: text with its attributes, flags, and where the cursor is."""
        colours = self.tmux.run("capture-pane", "-p", "-e", "-t", self.name)
        return {**self.flags(), "cursor": self.value("#{cursor_x},#{cursor_y}"), "text": colours}

    def until(self, holds, what):
        """Waits until `holds()`, and returns what it returns."""
        end = time.monotonic() + PATIENCE
        while not (result := holds()):
            assert time.monotonic() < end, f"{self.name}: not {what} in\n{self.text()}{self.flags()}"
            time.sleep(LOOK)
        return result

    def until_shows(self, *texts):
        """Waits until these texts are on the screen, and returns its text."""

        def shown():
            seen = self.text()
            return seen if all(text in seen for text in texts) else None

        return self.until(shown, f"all of {texts}")

    def until_prompt(self):
        """Waits until the shell asks for a line, and returns the text of the screen."""

        def asks():
            lines = self.text().rstrip("\n").split("\n")
            return "\n".join(lines) if lines[-1].rstrip() == PROMPT.rstrip() else None

        return self.until(asks, "a prompt at the end")

    def until_looks_like(self, other, *texts):
        """Waits until this pane shows all that the other does, and both these texts."""

        def alike():
            ours, theirs = self.looks(), other.looks()
            return ours == theirs and all(text in self.text() for text in texts)

        try:
            self.until(alike, f"like {other.name} with {texts}")
        except AssertionError:
            # Tells apart which of it differs.
            assert self.looks() == other.looks()
            raise

    def status(self):
        """The exit status of the shell's last command."""
        self.presses("C-l")
        self.until(lambda: self.text().strip() == PROMPT.strip(), "an empty screen")
        self.enters("echo status=$?")
        seen = self.until(lambda: re.search(r"^status=(\d+)$", self.text(), re.M), "a status")
        self.until_prompt()
        return int(seen[1])

    def modes(self):
        """How the terminal is set, as stty(1) says it to a command of the shell."""
        file = self.tmux.directory / f"{self.name}.modes"
        file.unlink(missing_ok=True)
        self.enters(f"clear; stty -a > {file}.new; mv {file}.new {file}")
        self.until(file.exists, "the modes of the terminal")
        self.until_prompt()
        return file.read_text()
