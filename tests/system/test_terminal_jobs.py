"""`evloopctl run` as a job of a shell at a real terminal, which is tmux, and every way to leave it."""
import os
import shlex
import signal
import sys

import pytest

import daemon as daemons
from panes import BASH, Tmux
from peers import needs

pytestmark = needs("tmux")

ZSH = ["zsh", "-f", "-i", "-o", "no_prompt_sp"]
SHELLS = [pytest.param(BASH, id="bash"), pytest.param(ZSH, id="zsh", marks=needs("zsh"))]

# Turns on the kitty keyboard protocol and prints all keys that come.
KITTY = r"""
import os, tty
tty.setraw(0)
os.write(1, b"\x1b[>1uall keys\r\n")
while True:
    os.write(1, repr(os.read(0, 4096)).encode() + b"\r\n")
"""
# Asks the terminal what it is, where the cursor is and how it is, and prints the answers.
ASKS = r"""
import os, tty
tty.setraw(0)
os.write(1, b"ab\x1b[c\x1b[6n\x1b[5n")
answer = b""
while not answer.endswith(b"0n"):
    answer += os.read(0, 4096)
os.write(1, repr(answer).encode() + b"\r\n")
"""
# Writes without end, most of it while something is turned on.
FLOODS = r"""
import os
on, off = b"\x1b[?1049h\x1b[?1003h\x1b[?25l\x1b[31m", b"\x1b[m\x1b[?25h\x1b[?1003l\x1b[?1049l"
while True:
    os.write(1, on + b"flood " * 3000 + off)
"""
# Prints every size that the terminal gets.
SIZES = """
import itertools, os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
for number in itertools.count(1):
    columns, rows = os.get_terminal_size()
    print(f"{number}: {rows} rows, {columns} columns", flush=True)
    signal.sigwait([signal.SIGWINCH])
"""
# Turns on all that a shell would not like to find.
LOUD = r"printf '\033[?1049h\033[?1003h\033[?1006h\033[?2004h\033[?1h\033=\033[?25l\033[3;9r\033]2;loud\007here'"


@pytest.fixture(scope="module")
def daemon():
    with daemons.running() as daemon:
        yield daemon


@pytest.fixture
def tmux(tmp_path):
    with Tmux(tmp_path) as tmux:
        yield tmux


def python(tmux, code):
    """The command that runs this code."""
    file = tmux.directory / "code.py"
    file.write_text(code)
    return shlex.join([sys.executable, str(file)])


def shows_loud(pane):
    pane.until_shows("here")
    pane.until(lambda: pane.flags()["pane_title"] == "loud", "with the title of the program")
    flags = pane.flags()
    assert flags["mouse_all_flag"] == flags["keypad_flag"] == flags["alternate_on"] == "1"


def test_keys_of_kitty_reach_the_program_and_leave_it(tmux, daemon):
    user = tmux.pane(daemon)
    modes, flags = user.modes(), user.flags()
    written = tmux.directory / "written"
    tmux.run("pipe-pane", "-t", user.name, f"cat > {written}")
    user.enters(f"evloopctl run -it --name kitty -- {python(tmux, KITTY)}")
    user.until_shows("all keys")
    user.sends(b"\x1b[97;5u")
    user.until_shows(r"b'\x1b[97;5u'")
    # Num lock is on; the key is pressed and released.
    user.sends(b"\x1b[112;133u\x1b[112;133:3u\x1b[113;133u")
    user.until_prompt()
    user.until(lambda: b"\x1b[<1u" in written.read_bytes(), "told to use its old keys")
    assert user.status() == 0
    assert (user.modes(), user.flags()) == (modes, flags)

    # A terminal without that protocol joins it.
    user.enters("evloopctl attach kitty")
    user.until_shows(r"b'\x1b[97;5u'")
    user.sends(b"\x10")
    user.types("x")
    user.until_shows(r"b'\x10x'")
    user.presses("C-p", "C-q")
    assert "runs on" in user.until_prompt()
    assert (user.modes(), user.flags()) == (modes, flags)


def test_a_stopped_daemon_keeps_nobody(tmux):
    with daemons.running() as daemon:
        user = tmux.pane(daemon)
        modes, flags = user.modes(), user.flags()
        user.enters(f'evloopctl run -it --name loud -- sh -c "{LOUD}; exec cat"')
        shows_loud(user)
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            # The program would get Ctrl-Z, if the daemon said so.
            user.presses("C-z")
            user.types("abc")
            user.presses("C-p", "C-q")
            user.until_prompt()
            assert user.flags() == flags
            assert user.status() == 0
            assert user.modes() == modes
        finally:
            daemon.process.send_signal(signal.SIGCONT)


def test_a_killed_daemon_leaves_the_terminal_as_it_was(tmux):
    with daemons.running(ends=-signal.SIGKILL) as daemon:
        user, other = tmux.pane(daemon), tmux.pane(daemon)
        modes, flags = user.modes(), user.flags()
        user.enters(f'evloopctl run -it --name loud -- sh -c "{LOUD}; exec cat"')
        shows_loud(user)
        other.enters("evloopctl attach loud")
        shows_loud(other)
        os.kill(daemon.process.pid, signal.SIGKILL)
        # Whoever does not want to wait for another daemon leaves.
        daemon.process.wait()
        other.presses("C-p", "C-q")
        assert "evloopctl: loud: left" in other.until_prompt()
        seen = user.until_prompt()
        assert "evloopctl: " in seen and "daemon" in seen
        for pane in [user, other]:
            assert pane.flags() == flags
        assert user.status() == 125
        assert user.modes() == modes


@pytest.mark.parametrize("shell", SHELLS)
def test_ctrl_z_suspends_and_fg_comes_back(tmux, daemon, shell):
    user = tmux.pane(daemon, shell=shell)
    modes, flags = user.modes(), user.flags()
    user.enters(f'evloopctl run -- sh -c "{LOUD}; exec cat"')
    shows_loud(user)
    user.presses("C-z")
    user.until_prompt()
    assert user.flags() == flags
    assert user.modes() == modes
    user.enters("fg")
    shows_loud(user)
    user.enters("hello")
    user.until(lambda: user.text().count("hello") == 2, "with the line and its echo")
    user.presses("C-d")
    user.until_prompt()
    assert user.flags() == flags
    assert user.status() == 0


@pytest.mark.parametrize("shell", SHELLS)
def test_a_job_in_the_background_is_not_stopped(tmux, daemon, shell):
    user = tmux.pane(daemon, shell=shell)
    modes = user.modes()
    # It asks for a terminal in one case, and in the other it gets none by itself.
    for options in ["-t", ""]:
        user.enters(f"evloopctl run {options} -- sh -c 'echo from-$((6*7)); read x < /dev/null; exit 5' &")
        user.until_shows("from-42")
        user.enters("wait $!; echo ended=$?")
        user.until_shows("ended=5")
        assert user.modes() == modes


@pytest.mark.parametrize("options", ["-T", "-t", ""])
def test_ctrl_c_ends_a_loop_of_runs(tmux, daemon, options):
    user = tmux.pane(daemon)
    modes = user.modes()
    user.enters(
        f"for i in 1 2 3; do evloopctl run {options} -- sh -c 'echo round-$0; exec sleep 1000' $i; done"
    )
    user.until_shows("\nround-1")
    user.presses("C-c")
    assert "\nround-2" not in user.until_prompt()
    assert user.status() == 130
    assert user.modes() == modes


def test_two_runs_at_once_leave_the_modes(tmux, daemon):
    user = tmux.pane(daemon)
    modes = user.modes()
    user.enters("printf '%s\\n' 1 2 3 4 | xargs -P2 -n1 sh -c 'evloopctl run -- echo number-$0 < /dev/tty'")
    user.until_shows(*[f"number-{number}" for number in range(1, 5)])
    user.until_prompt()
    assert user.status() == 0
    assert user.modes() == modes


def test_programs_without_a_viewer_get_answers(tmux, daemon):
    user = tmux.pane(daemon)
    user.enters(f"evloopctl run -d -t --name asks -- {python(tmux, ASKS)}; evloopctl wait asks; echo ended=$?")
    user.until_shows("ended=0")
    # What was asked is not asked again by what shows it.
    for verb in ["logs", "attach"]:
        user.enters(f"clear; evloopctl {verb} asks; echo {verb}=$?")
        seen = user.until_shows(f"{verb}=0")
        assert r"abb'\x1b[?62;22c\x1b[1;3R\x1b[0n'" in seen
        user.until_prompt()


@needs("fish")
def test_fish_starts_at_once_where_nobody_views_it(tmux, daemon):
    user = tmux.pane(daemon)
    user.enters("evloopctl run -d -t --name fish -- fish --private")
    user.until_shows("\nfish")
    user.enters("clear; evloopctl attach --read-only fish")
    seen = user.until_shows("Welcome to fish")
    assert "Primary Device Attribute" not in seen
    user.presses("C-c")
    user.until_prompt()


@pytest.mark.parametrize("whose", ["latest", "smallest"])
def test_the_size_is_that_of_the_option(tmux, daemon, whose):
    large, small = tmux.pane(daemon, 100, 30), tmux.pane(daemon, 60, 20)
    name = f"size-{whose}"
    large.enters(f"evloopctl run -it --name {name} --size-of {whose} -- {python(tmux, SIZES)}")
    large.until_shows("1: 30 rows, 100 columns")
    small.enters(f"evloopctl attach {name}")
    small.until_shows("2: 20 rows, 60 columns")
    large.types("x")
    if whose == "latest":
        small.until_shows("3: 30 rows, 100 columns")
        small.types("x")
        large.until_shows("4: 20 rows, 60 columns")
    small.presses("C-p", "C-q")
    small.until_prompt()
    number = {"latest": 5, "smallest": 3}[whose]
    large.until_shows(f"{number}: 30 rows, 100 columns")


def test_a_reader_types_nothing_and_leaves_by_ctrl_c(tmux, daemon):
    user = tmux.pane(daemon)
    modes, flags = user.modes(), user.flags()
    user.enters(f'evloopctl run -it --name read -- sh -c "{LOUD}; exec cat"')
    shows_loud(user)
    for keys in [["C-c"], ["C-p", "C-q"]]:
        reader = tmux.pane(daemon, 60, 20)
        before = reader.modes()
        reader.enters("evloopctl attach --read-only read")
        shows_loud(reader)
        reader.types("nothing of this")
        reader.presses(*keys)
        assert "evloopctl: read: left; it runs on" in reader.until_prompt()
        assert reader.modes() == before
    user.enters("hello")
    seen = user.until(lambda: user.text().count("hello") == 2 and user.text(), "with the line and its echo")
    assert "nothing" not in seen
    user.presses("C-d")
    user.until_prompt()
    assert (user.modes(), user.flags()) == (modes, flags)


def test_leaving_amid_a_flood_of_output_leaves_nothing_on(tmux, daemon):
    user = tmux.pane(daemon)
    modes, flags = user.modes(), user.flags()
    user.enters(f"evloopctl run -it --name floods -- {python(tmux, FLOODS)}")
    for _ in range(8):
        user.until_shows("flood flood")
        user.presses("C-p", "C-q")
        user.until_shows("evloopctl: floods: left")
        user.until_prompt()
        assert user.flags() == flags
        assert user.modes() == modes
        user.enters("clear; evloopctl attach floods")
    user.until_shows("flood flood")
    user.presses("C-c")
    user.until_prompt()
    assert user.flags() == flags
    assert user.status() == 130


def test_a_paste_is_bracketed_after_coming_back(tmux, daemon):
    user, other = tmux.pane(daemon), tmux.pane(daemon, 90, 20)
    pastes = KITTY.replace("[>1u", "[?2004h")
    user.enters(f"evloopctl run -it --name pastes -- {python(tmux, pastes)}")
    user.until_shows("all keys")
    user.presses("C-p", "C-q")
    user.until_prompt()
    other.enters("evloopctl attach pastes")
    other.until_shows("all keys")
    tmux.run("set-buffer", "two\nlines")
    tmux.run("paste-buffer", "-p", "-t", other.name)
    other.until_shows(r"b'\x1b[200~two\rlines\x1b[201~'")


def test_a_closed_window_ends_what_has_no_name(tmux, daemon):
    user = tmux.pane(daemon)
    for options, hung, running in [
        ("", 1, 0),
        ("-t --name kept", 1, 1),
        ("-t --name ended --on-hangup end", 2, 1),
    ]:
        window = tmux.pane(daemon)
        window.enters(f"evloopctl run {options} -- sh -c 'echo be''gun; exec sleep 1000'")
        window.until_shows("begun")
        tmux.run("kill-session", "-t", window.name)

        def is_so():
            user.enters("clear; evloopctl ps | grep sleep")
            seen = user.until_prompt()
            return (seen.count("SIGHUP"), seen.count("running")) == (hung, running)

        user.until(is_so, f"{hung} hung up and {running} running")
