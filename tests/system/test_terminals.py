"""Full-screen programs in `evloopctl run -it`, seen through a real terminal, which is tmux."""
import dataclasses
import shlex
import sys

import pytest

import daemon as daemons
from panes import Tmux
from peers import needs

pytestmark = needs("tmux")

TEXT = "".join(f"\033[3{number % 8}mline {number}\033[m of a long text\n" for number in range(1, 301))


@dataclasses.dataclass
class Program:
    """A program and how it is used."""

    argv: list
    # What it shows when it is ready for keys.
    ready: str
    # Keys before detaching, and what shows that they came: names of keys, or texts with a blank before.
    keys: list
    shows: str
    # The same after coming back, and in a terminal of yet another size.
    more: list
    then: str
    # Keys that end it.
    quits: list
    # Whether it uses the alternate screen.
    full_screen: bool = False

    def needed(self):
        """The program itself, which may have `env` before it."""
        before = ("env", "-u", "TMUX")
        return next(word for word in self.argv if word not in before and "=" not in word)


PROGRAMS = {
    "vim": Program(
        ["vim", "-Nu", "NONE", "-n", "-c", "set mouse=a title hlsearch ruler", "FILE"],
        ready="line 1",
        keys=[" /line 77", "Enter", " Ohello from vim", "Escape"],
        shows="hello from vim",
        more=[" Oback again", "Escape", " :set titlestring=other", "Enter"],
        then="back again",
        quits=[" :q!", "Enter"],
        full_screen=True,
    ),
    "htop": Program(
        ["htop", "-d", "100"],
        ready="F10Quit",
        keys=["F4", " evloop"],
        shows="Filter: evloop",
        more=[" ctl"],
        then="Filter: evloopctl",
        quits=["Escape", "F10"],
        full_screen=True,
    ),
    "less": Program(
        ["less", "-R", "FILE"],
        ready="line 1",
        keys=[" /line 177", "Enter"],
        shows="line 177",
        more=[" /line 255", "Enter"],
        then="line 255",
        quits=[" q"],
        full_screen=True,
    ),
    "fish": Program(
        ["fish", "--private"],
        ready="~",
        keys=[" echo hello-(math 6 x 7)", "Enter"],
        shows="hello-42",
        more=[" echo again-(math 7 x 8)", "Enter"],
        then="again-56",
        quits=[" exit", "Enter"],
    ),
    "zsh": Program(
        ["env", "PS1=zsh-%% ", "zsh", "-f", "-i"],
        ready="\nzsh-%",
        keys=[" echo hello-$((6*7))", "Enter"],
        shows="hello-42",
        more=[" echo again-$((7*8))", "Enter"],
        then="again-56",
        quits=[" exit", "Enter"],
    ),
    "python": Program(
        [sys.executable, "-q"],
        ready=">>>",
        keys=[" 'hello-%d' % (6*7)", "Enter"],
        shows="hello-42",
        more=[" 'again-%d' % (7*8)", "Enter"],
        then="again-56",
        quits=[" exit()", "Enter"],
    ),
    "tmux": Program(
        ["env", "-u", "TMUX", "tmux", "-S", "INNER", "-f", "/dev/null", "new-session", "bash --norc --noprofile"],
        ready="[0] 0:",
        keys=[" echo hello-$((6*7))", "Enter"],
        shows="hello-42",
        more=["C-b", "%", " echo again-$((7*8))", "Enter"],
        then="again-56",
        quits=["C-b", "&", " y"],
        full_screen=True,
    ),
}


@pytest.fixture(scope="module")
def daemon():
    with daemons.running() as daemon:
        yield daemon


@pytest.fixture
def tmux(tmp_path):
    with Tmux(tmp_path) as tmux:
        yield tmux


def press(pane, keys):
    for key in keys:
        if key.startswith(" "):
            pane.types(key[1:])
        else:
            pane.presses(key)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs(program.needed())) for name, program in PROGRAMS.items()]
)
def test_a_program_is_left_and_joined_from_another_terminal(tmux, daemon, name):
    program = PROGRAMS[name]
    places = {"FILE": tmux.directory / "text", "INNER": tmux.directory / "inner"}
    places["FILE"].write_text(TEXT)
    argv = shlex.join(str(places.get(word, word)) for word in program.argv)
    command = shlex.join(["sh", "-c", f"echo it-be''gins; {argv}; echo it-en''ds"])

    user = tmux.pane(daemon)
    modes, flags = user.modes(), user.flags()
    user.enters(f"evloopctl run -it --name {name} -- {command}")
    user.until_shows(program.ready)
    press(user, program.keys)
    user.until_shows(program.shows)
    assert (user.flags()["alternate_on"] == "1") == program.full_screen

    # One more user, who stays.
    stays = tmux.pane(daemon, 100, 30)
    untouched = stays.flags()
    stays.enters(f"evloopctl attach {name}")
    stays.until_shows(program.shows)

    user.presses("C-p", "C-q")
    seen = user.until_prompt()
    assert f"\nevloopctl: {name}: left; it runs on: `evloopctl attach {name}` joins it\n" in seen
    assert user.flags() == flags
    assert user.status() == 0
    assert user.modes() == modes

    again = tmux.pane(daemon, 100, 30)
    again.enters(f"evloopctl attach {name}")
    again.until_looks_like(stays, program.shows)
    press(again, program.more)
    again.until_looks_like(stays, program.then)

    for pane in [stays, again]:
        pane.resize(71, 19)
    again.until(lambda: again.value("#{pane_width}") == "71", "of the new size")
    again.until_looks_like(stays, program.then)

    press(again, program.quits)
    for pane in [stays, again]:
        pane.until_shows("it-begins", "it-ends")
        pane.until_prompt()
    again.until_looks_like(stays)
    for pane in [stays, again]:
        # Region and tab stops are those of the new size.
        sized = {"scroll_region_lower": "18", "pane_tabs": "8,16,24,32,40,48,56,64"}
        assert pane.flags() == {**untouched, **sized}
        assert pane.status() == 0
