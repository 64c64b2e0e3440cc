"""Random calendar expressions, changes of the clock in every zone, and evloopd's answers about them.

EVLOOPD_CALENDARS is the program that answers: the test program `calendars` of cargo.
"""
import calendar
import collections
import os
import random
import shutil
import subprocess
import zoneinfo
from datetime import datetime, timedelta, timezone
from pathlib import Path

ANSWERS = os.environ.get("EVLOOPD_CALENDARS")
HOST = "/usr/share/zoneinfo"
UTC = timezone.utc
# Due times that are compared for each expression.
TIMES = 8
# A difference belongs to a change of the clock no further away: the longest jump is a day, and croniter
# and systemd go wrong until the next day.
NEAR = timedelta(hours=36)
# What a scan needs before that, to know which times the clock has shown.
BEFORE = timedelta(hours=30)
MINUTE = timedelta(minutes=1)
DAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]


def offset(zone, at):
    return at.astimezone(zone).utcoffset()


def changes(zone, begin, end, step):
    """The instants at which the offset changes, to the second; of several within a step the last one."""
    found = []
    while begin < end:
        low, high = begin, begin + step
        before, after = offset(zone, low), offset(zone, high)
        while before != after and high - low > timedelta(seconds=1):
            middle = (low + (high - low) / 2).replace(microsecond=0)
            low, high = (low, middle) if offset(zone, middle) == after else (middle, high)
        if before != after:
            found.append(high)
        begin += step
    return found


def gap_between(name, start, end):
    """Whether the clock of a zone is set forward between two instants, or near them."""
    zone = zoneinfo.ZoneInfo(name)
    begin, end = (datetime.fromtimestamp(stamp, UTC) for stamp in (start, end))
    found = changes(zone, begin - NEAR, end + NEAR, timedelta(days=4))
    return any(offset(zone, at) > offset(zone, at - timedelta(seconds=1)) for at in found)


class Questions:
    """Zones and starts in turn over all zones of the host, most of the starts near a change of the clock."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        zoneinfo.reset_tzpath([HOST])
        names = sorted(path.relative_to(HOST).as_posix() for path in Path(HOST).rglob("*") if is_zone(path))
        begin, end = datetime(2010, 1, 1, tzinfo=UTC), datetime(2028, 1, 1, tzinfo=UTC)
        self.zones = {}
        for name in names:
            zone = zoneinfo.ZoneInfo(name)
            self.zones[name] = changes(zone, begin, end, timedelta(days=4))
        assert len(names) > 400 and sum(map(bool, self.zones.values())) > 200

    def places(self, count, each):
        """So many pairs of the name of a zone and a start, each pair `each` times."""
        names = list(self.zones)
        while count > 0:
            self.random.shuffle(names)
            for name in names[: -(-count // each)]:
                yield name, self.start(name), min(each, count)
                count -= each

    def start(self, name):
        kind = self.random.random()
        if self.zones[name] and kind < 0.8:
            # With frequent times the last ones of an answer are still near the start.
            early, late = (-60, 120) if kind < 0.4 else (-240, 600)
            start = self.random.choice(self.zones[name]) - self.random.randint(early, late) * MINUTE
        else:
            start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.random.randint(0, 31_000_000))
        return int(start.timestamp())


def is_zone(path):
    """Whether a file of the host's data is a zone by its own name."""
    top = path.relative_to(HOST).parts[0]
    if top in ("posix", "right", "posixrules", "localtime", "Factory") or not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"TZif"


class Answers:
    """What evloopd answers, by the host's data, which the others have too."""

    def __init__(self, directory):
        # As if they were newer than those of the program.
        self.zoneinfo = Path(directory, "zoneinfo")
        shutil.copytree(HOST, self.zoneinfo)
        Path(self.zoneinfo, "tzdata.zi").write_text("# version 2999a\n")

    def ask(self, questions):
        """For each question, a kind, a zone, a start and an expression, its times or why it is refused."""
        lines = [f"{kind}\t{zone}\t{start}\t{TIMES}\t{text}\n" for kind, zone, start, text in questions]
        command = [ANSWERS, "answer", self.zoneinfo]
        ran = subprocess.run(command, input="".join(lines), capture_output=True, text=True, check=True)
        answers = ran.stdout.splitlines()
        assert len(answers) == len(lines)
        return [answer if answer.startswith("refused") else seconds(answer) for answer in answers]


def seconds(answer):
    """The whole seconds of an answer's times. systemd shows them so."""
    return [int(float(time)) for time in answer.split()]


class Meaning:
    """The sets of an expression's numbers, told by its construction and not by a parser."""

    def __init__(self, second, minute, hour, day, month, week, *, fixed, either=False, from_end=False, years=None):
        self.second, self.minute, self.hour = sorted(second), minute, hour
        self.day, self.month, self.week, self.years = day, month, week, years
        self.fixed, self.either, self.from_end = fixed, either, from_end

    def minute_matches(self, t):
        """Whether a local time matches, whatever its second. Monday is 0."""
        if t.minute not in self.minute or t.hour not in self.hour or t.month not in self.month:
            return False
        day = calendar.monthrange(t.year, t.month)[1] - t.day + 1 if self.from_end else t.day
        day, week = day in self.day, t.weekday() in self.week
        return (day or week if self.either else day and week) and (self.years is None or t.year in self.years)

    def matches(self, t):
        return t.second in self.second and self.minute_matches(t)

    def scan(self, zone, begin, end):
        """The instants between them that a scan finds, minute by minute, by cron's rule.

        If elapsed time counts, an instant is due if the local clock matches; else if any time matches that
        the clock reaches or passes for the first time. Offsets are whole minutes.
        """
        at = begin.replace(second=0) - BEFORE
        reached = at.astimezone(zone).replace(tzinfo=None)
        found = set()
        while at < end:
            at += MINUTE
            clock = at.astimezone(zone).replace(tzinfo=None)
            again, instant = clock <= reached, int(at.timestamp())
            while reached + MINUTE < clock:
                reached += MINUTE
                if self.fixed and self.minute_matches(reached):
                    found.add(instant)
            reached = max(reached, clock)
            if not (self.fixed and again) and self.minute_matches(clock):
                found.update(instant + second for second in self.second)
        return found


class Comparison:
    """Counts equal answers and differences, those by the rule that explains them. Others are failures."""

    def __init__(self, them):
        self.them = them
        self.rules = collections.Counter()
        self.examples = {}
        self.failures = []

    def explained(self, rule, example=""):
        self.rules[rule] += 1
        if example:
            self.examples.setdefault(rule, example)

    def unexplained(self, *what):
        self.failures.append(" | ".join(map(str, what)))

    def times(self, name, start, text, meaning, ours, theirs, left_out=lambda local: None):
        """Explains each time that only one side has: by a change of the clock near it, or if they leave it
        out, by the rule that `left_out` returns for its local time.
        """
        if ours == theirs:
            self.explained("equal")
            return
        zone = zoneinfo.ZoneInfo(name)
        # Nothing is known of the times after the last one that was asked for.
        ends = [times[-1] for times in (ours, theirs) if len(times) == TIMES]
        last = min(ends, default=max(ours + theirs))
        rules, scans = set(), {}
        for time in sorted(set(ours) ^ set(theirs)):
            if time > last:
                break
            at = datetime.fromtimestamp(time, UTC)
            only_ours = time in ours
            side = "leaves one out" if only_ours else "has one more"
            near = changes(zone, at - NEAR, at + NEAR, NEAR / 6)
            if near:
                if near[0] not in scans:
                    scans[near[0]] = meaning.scan(zone, near[0] - NEAR, near[0] + 2 * NEAR)
                due = time in scans[near[0]] and time > start
                what = "due once per civil time" if meaning.fixed else "elapsed time counts"
                rule = f"change of the clock, {what}: {self.them} {side}, a scan agrees with us"
            else:
                due = meaning.matches(at.astimezone(zone).replace(tzinfo=None))
                rule = only_ours and left_out(at.astimezone(zone))
            if due != only_ours or not rule:
                self.unexplained(name, start, text, ours, theirs, f"at first {at.astimezone(zone)}")
                return
            rules.add(rule)
            self.examples.setdefault(rule, f"{text} in {name}: {at.astimezone(zone).isoformat()}")
        if not rules or sorted(ours) != ours or sorted(theirs) != theirs:
            self.unexplained(name, start, text, ours, theirs, "no time that only one side has")
        for rule in rules:
            self.explained(rule)

    def finish(self, capsys):
        """Shows the rules with their counts, and fails if there are differences that none explains."""
        with capsys.disabled():
            print()
            for rule, count in self.rules.most_common():
                print(f"{count:7} {rule}")
                if rule in self.examples:
                    print(f"            such as {self.examples[rule]}")
        assert not self.failures, "\n".join([f"{len(self.failures)} not explained:", *self.failures[:20]])
