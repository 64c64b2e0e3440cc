"""Random calendar expressions, around changes of the clock in every zone: croniter and systemd-analyze.

EVLOOPD_CALENDAR_QUESTIONS is the number of expressions for each of them, EVLOOPD_CALENDAR_SEED where
they begin. Every difference must be explained by one of the rules that are named here and in calendars.py.
"""
import functools
import os
import re
import subprocess
import zoneinfo
from datetime import datetime
from pathlib import Path

import pytest
from calendars import ANSWERS, DAYS, HOST, TIMES, UTC, Answers, Comparison, Meaning, Questions, gap_between
from croniter import CroniterError, croniter
from peers import needs

QUESTIONS = int(os.environ.get("EVLOOPD_CALENDAR_QUESTIONS", "10000"))
SEED = int(os.environ.get("EVLOOPD_CALENDAR_SEED", "1"))
# In seconds.
YEAR = 366 * 86_400
# Expressions that have the same zone and start.
EACH = 6

pytestmark = [
    needs("systemd-analyze"),
    pytest.mark.skipif(not ANSWERS, reason="SKIPPED for want of EVLOOPD_CALENDARS, which tests/system/run sets"),
    pytest.mark.skipif(not Path(HOST, "Europe").is_dir(), reason="SKIPPED for want of tzdata"),
    # In seconds.
    pytest.mark.timeout(120 + QUESTIONS // 20),
]


@pytest.fixture(scope="module")
def questions():
    return Questions(SEED)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    return Answers(tmp_path_factory.mktemp("calendars"))


class CronField:
    """A random field of cron."""

    def __init__(self, random, low, high, stars):
        self.low, self.high, items = low, high, []
        for _ in range(random.randint(1, 3)):
            kind, first = random.randint(0, 3), random.randint(low, high - 1)
            # croniter takes a range of one number, as 6-6, for `*`: these are not made.
            last, step = random.randint(first + 1, high), random.randint(1, min(20, high - low))
            items.append([f"{first}-{last}", f"*/{step}", f"{first}-{last}/{step}", str(first)][kind])
        self.text = "*" if random.random() < stars else ",".join(items)

    @property
    def set(self):
        numbers, names = set(), {"MON": 1, "FRI": 5}
        for item in self.text.split(","):
            span, _, step = item.partition("/")
            ends = [self.low, self.high] if span == "*" else [names.get(end) or int(end) for end in span.split("-")]
            numbers.update(range(ends[0], ends[-1] + 1, int(step or 1)))
        return numbers

    @property
    def starred(self):
        return self.text.startswith("*")

    def hidden_star(self, other):
        """Whether croniter takes it for `*`: it has all numbers, and there is a `*` anywhere in the other."""
        return not self.starred and self.set >= set(range(self.low, self.high + 1)) and "*" in other.text


class Cron:
    """A random expression of cron, and what it means."""

    def __init__(self, random):
        field = functools.partial(CronField, random)
        self.second = field(0, 59, 0.2) if random.random() < 0.2 else None
        self.minute, self.hour = field(0, 59, 0.25), field(0, 23, 0.3)
        self.day, self.month, self.week = field(1, 31, 0.7), field(1, 12, 0.85), field(0, 6, 0.7)
        if random.random() < 0.15:
            pairs = [("*/2", "1"), ("1-31", "1"), ("*/3", "MON-FRI"), ("13", "FRI")]
            self.day.text, self.week.text = random.choice(pairs)

    @property
    def text(self):
        fields = [self.second, self.minute, self.hour, self.day, self.month, self.week]
        return " ".join(field.text for field in fields if field)

    @property
    def meaning(self):
        return Meaning(
            self.second.set if self.second else {0}, self.minute.set, self.hour.set, self.day.set, self.month.set,
            {(day - 1) % 7 for day in self.week.set}, fixed=not (self.minute.starred or self.hour.starred),
            either=not (self.day.starred or self.week.starred),
        )  # fmt: skip

    def croniter(self, name, start):
        """croniter's times, or why it refuses the expression."""
        begin = datetime.fromtimestamp(start, zoneinfo.ZoneInfo(name))
        try:
            times = croniter(self.text, begin, second_at_beginning=True, implement_cron_bug=True)
            return [int(times.get_next(float)) for _ in range(TIMES)]
        except CroniterError as error:
            return f"refused: {error}"


def test_cron_is_due_when_croniter_says_but_for_named_differences(questions, answers, capsys):
    comparison = Comparison("croniter")
    crons = [
        (name, start, Cron(questions.random))
        for name, start, count in questions.places(QUESTIONS, EACH)
        for _ in range(count)
    ]
    all_ours = answers.ask([("cron", name, start, cron.text) for name, start, cron in crons])
    for (name, start, cron), ours in zip(crons, all_ours, strict=True):
        text, theirs = cron.text, cron.croniter(name, start)
        if isinstance(ours, str):
            if "never comes" in ours and isinstance(theirs, str) and "failed to find next date" in theirs:
                comparison.explained("never comes: we refuse it, croniter gives up")
            else:
                comparison.unexplained(name, start, text, ours, theirs)
            continue
        if isinstance(theirs, str):
            # It is due, but rarely.
            rare = max(late - early for early, late in zip([start, *ours], ours, strict=False)) > 20 * YEAR
            if "failed to find next date" in theirs and rare:
                comparison.explained("once in 20 years or more: croniter gives up", text)
            else:
                comparison.unexplained(name, start, text, ours, theirs)
            continue
        hidden = [cron.day.hidden_star(cron.week), cron.week.hidden_star(cron.day)]
        if ours != theirs and any(hidden):
            for field, whole in zip((cron.day, cron.week), hidden, strict=True):
                field.text = "*" if whole else field.text
            ours = answers.ask([("cron", name, start, cron.text)])[0]
            rule = "all days as a list beside one with a `*` in it: croniter takes it for `*`, Vixie's cron does not"
            comparison.explained(rule, text)
        comparison.times(name, start, cron.text, cron.meaning, ours, theirs)
    comparison.finish(capsys)


def component(random, low, high, stars, from_end=False):
    """A random component of a calendar event: its text, and the set of its numbers."""
    if random.random() < stars:
        return "*", set(range(low, high + 1))
    items, numbers = [], set()
    for _ in range(random.randint(1, 3)):
        kind, first = random.randint(0, 3), random.randint(low, high)
        last, step = random.randint(first, high), random.randint(1, min(20, high - low))
        span = [first]
        if kind == 0:
            text, span = f"{first}..{last}", range(first, last + 1)
        elif kind == 1 and from_end and first - step >= low:
            text, span = f"{first}/{step}", range(first, low - 1, -step)
        elif kind == 1 and not from_end and first + step <= high:
            text, span = f"{first}/{step}", range(first, high + 1, step)
        elif kind == 2:
            text, span = f"{first}..{last}/{step}", range(first, last + 1, step)
        else:
            text = f"{first:02}" if random.random() < 0.5 else f"{first}"
        items.append(text)
        numbers.update(span)
    return ",".join(items), numbers


class Event:
    """A random calendar event, and what it means."""

    def __init__(self, random):
        from_end = random.random() < 0.25
        (second, seconds), (minute, minutes) = component(random, 0, 59, 0.2), component(random, 0, 59, 0.25)
        (hour, hours), (self.month, months) = component(random, 0, 23, 0.3), component(random, 1, 12, 0.8)
        self.day, days = component(random, 1, 28 if from_end else 31, 0.6, from_end)
        if self.day == "*":
            days = set(range(1, 32))
        week, names = set(range(7)), ""
        if random.random() < 0.3:
            first = random.randint(0, 6)
            last, other = random.randint(first, 6), random.randint(0, 6)
            week = set(range(first, last + 1)) | {other}
            names = f"{DAYS[first]}..{DAYS[last]},{random.choice([DAYS[other], DAYS[other].lower()])} "
        year, years = "*", None
        if random.random() < 0.2:
            year, years = component(random, 2010, 2035, 0)
            if re.search(r"(?<!\.)\d{4}/", year):
                year, years = "2010..2035", set(range(2010, 2036))
        self.second = None
        if random.random() < 0.5:
            self.second, seconds = second, seconds
        else:
            seconds = {0}
        date = f"{self.month}{'~' if from_end else '-'}{self.day} "
        date = f"{year}-{date}" if year != "*" or random.random() < 0.5 else date
        time = f"{hour}:{minute}" + (f":{self.second}" if self.second else "")
        self.from_end, self.text = from_end, f"{names}{date}{time}"
        fixed = "*" not in (hour, minute)
        self.meaning = Meaning(
            seconds, minutes, hours, days, months, week, fixed=fixed, from_end=from_end, years=years
        )

    def left_out(self, local):
        """The rule by which systemd leaves out this local time, far from a change of the clock."""
        repetition = r"(?<![.\d])\d+/"
        if any(re.search(repetition, part) and "," in part for part in re.split(r"[ :~-]", self.text)):
            return "N/STEP with other items: systemd steps past the end, and leaves out what comes first after it"
        if local.month == 1 and re.search(repetition, self.day):
            return "days as N/STEP: from the end of December systemd steps past the first days of January"
        if local.day == 1 and re.search(repetition, self.text.rsplit(" ", 1)[1]):
            return "a time with N/STEP: from the end of a month systemd steps past the first times of the next"
        return None

    def unanswered(self, name, start, ours, theirs):
        """The rule by which one side or both have no times, but why not."""
        never = isinstance(ours, str) and "never comes" in ours
        if isinstance(ours, str) and not never:
            return None
        if theirs == []:
            return "never comes: we refuse it, systemd says never"
        if "Resource deadlock avoided" in theirs:
            # It searches on in vain for an event that never comes.
            end = start + 2 * YEAR if never else ours[-1]
            if gap_between(name, start, end):
                return "a gap: systemd ends its search there with EDEADLK"
            if re.match(r".*\d/", self.month) and gap_between(name, start, start + YEAR):
                return "months as N/STEP, and a clock that changes: systemd ends at the end of the year with EDEADLK"
            return None
        if "parse" in theirs and self.second and re.search(r"\b(\d+)\.\.\1\b(?!/)", self.second):
            return "a range of one second: systemd refuses it, and allows one of minutes"
        if "parse" in theirs and self.lowered():
            return "days from the end: systemd lowers the bound of 28 by 3 from item to item"
        return None

    def lowered(self):
        """Whether a day is over the bound that systemd lowers by 3 from item to item, once they are sorted."""
        items = sorted([int(n) for n in re.findall(r"(?<!/)\b\d+", item)] for item in self.day.split(","))
        return self.from_end and any(max(ends, default=0) > 28 - 3 * place for place, ends in enumerate(items))


def systemd(zone, start, texts):
    """For each expression the times of systemd-analyze, or the error of one that it refuses."""
    ran = systemd_analyze(f":{zone}", start, texts)
    if zone != "UTC" and "(in UTC)" not in ran.stdout and re.search(r"Next elapse: \w+ \d", ran.stdout):
        # It shows no UTC in a zone whose time is that of UTC now, even if it was not then. A zone of the
        # expression itself gives the same times, and takes ten times as long.
        texts = [f"{text} {zone}" for text in texts]
        ran = systemd_analyze("UTC", start, texts)
    errors = re.findall(r"^Failed to (.*?'(.*)': .*)$", ran.stderr, re.M)
    times = []
    for line in ran.stdout.splitlines():
        if "Normalized form" in line:
            times.append([])
        time = re.search(r"(?:Next elapse|Iter\. #\d+|\(in UTC\)): \w+ (\d+-\d+-\d+ \d+:\d+:\d+) UTC$", line)
        if time:
            at = datetime.strptime(time[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
            times[-1].append(int(at.timestamp()))
    # The errors have an output of their own, in the same order.
    answers = []
    for text in texts:
        if errors and errors[0][1] == text:
            answers.append(errors.pop(0)[0])
        else:
            answers.append(times.pop(0))
    assert not errors and not times, ran
    return answers


def systemd_analyze(zone, start, texts):
    base = datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    command = ["systemd-analyze", "calendar", f"--iterations={TIMES}", f"--base-time={base}", "--", *texts]
    env = {"TZ": zone, "PATH": os.environ["PATH"], "LC_ALL": "C"}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_events_are_due_when_systemd_says_but_for_named_differences(questions, answers, capsys):
    comparison = Comparison("systemd")
    places = [
        (name, start, [Event(questions.random) for _ in range(count)])
        for name, start, count in questions.places(QUESTIONS, EACH)
    ]
    all_ours = iter(
        answers.ask(
            [("event", name, start, event.text) for name, start, events in places for event in events]
        )
    )
    for name, start, events in places:
        for event, theirs in zip(events, systemd(name, start, [event.text for event in events]), strict=True):
            ours, text = next(all_ours), event.text
            if isinstance(ours, list) and isinstance(theirs, list):
                comparison.times(name, start, text, event.meaning, ours, theirs, event.left_out)
                continue
            rule = event.unanswered(name, start, ours, theirs)
            if rule:
                comparison.explained(rule, text)
            else:
                comparison.unexplained(name, start, text, ours, theirs)
    comparison.finish(capsys)


# What is put into texts, and texts that both accept.
MUTATIONS = "0159*/-~.:, MoT"
ACCEPTED = ["Mon..Fri *-*-* 02:30:00", "*-02~01 00:00", "2026..2030/2-1/3-5,7 0/6:15..45/5:10",
            "Sat,Sun 12-05 08:05:40", "*:0/15", "weekly", "Wed, 17:48", "10-15", "*-*-7 0:0:0",
            "05:40:23.42/3.17", "daily UTC", "@1900000000"]  # fmt: skip
START = 1_767_225_600


def changed(random):
    """One of the texts, changed in one or two places."""
    text = list(random.choice(ACCEPTED))
    for _ in range(random.randint(1, 2)):
        at = random.randrange(len(text))
        text[at : at + random.randint(0, 1)] = random.choice(MUTATIONS) if random.random() < 0.7 else ""
    return "".join(text).strip() or "x"


def test_changed_texts_are_refused_when_systemd_refuses_them(questions, answers, capsys):
    comparison = Comparison("systemd")
    texts = [changed(questions.random) for _ in range(QUESTIONS // 2)]
    all_ours = answers.ask([("event", "UTC", START, text) for text in texts])
    batches = [systemd("UTC", START, texts[at : at + 100]) for at in range(0, len(texts), 100)]
    for text, ours, theirs in zip(texts, all_ours, [answer for batch in batches for answer in batch], strict=True):
        if ours == theirs:
            comparison.explained("both accept it, with equal times")
        elif isinstance(ours, str) and isinstance(theirs, str) and "parse" in theirs:
            comparison.explained("both refuse it")
        elif "never comes" in ours and theirs == []:
            comparison.explained("never comes: we refuse it, systemd says never")
        elif isinstance(theirs, list) and re.search(r"\.\.\d+/\d+` is refused: the repetition must", str(ours)):
            comparison.explained("N..M/STEP with a STEP beyond the range: systemd takes it for N", text)
        elif isinstance(theirs, list) and isinstance(ours, str) and re.fullmatch(r"@ +\d+", text):
            comparison.explained("a space after @: we refuse it", text)
        elif isinstance(ours, list) and "parse" in theirs and re.fullmatch(r"[a-z]+ {2,}UTC", text):
            comparison.explained("a word and a zone with several spaces between them: systemd refuses it", text)
        else:
            comparison.unexplained(repr(text), ours, theirs)
    comparison.finish(capsys)
