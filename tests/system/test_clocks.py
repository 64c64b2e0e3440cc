"""Timers while the clock is set, the host is suspended, and its time zones are replaced, on a real kernel.

guest/clocks.sh does all that, to the timers of two loops on each backend, and prints their events.
"""
import base64
import gzip
import itertools
import json
import re

import api
import machine
import pytest

pytestmark = machine.MARKS

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
# The calendar timers, by their period.
PERIODS = {"second": SECOND, "five": 5 * SECOND, "hourly": HOUR}
# The most missed occurrences of a calendar that are counted.
COUNTED = 1000
FORWARD = ["hour", "hour-again", "hours-again", "years"]
# The emulated machine is slow: how much later an event still is at once, and a span still has its length.
AT_ONCE = 2 * SECOND
LATE = 4 * SECOND
# The lengths of guest/clocks.sh.
SUSPENDED = 15 * SECOND
AFTER = 8 * SECOND
# Of the CPU time of a process, a second.
TICKS = 100
# How often the daemon looks for other time zones.
LOOK_EVERY = 10 * SECOND


class Event:
    """An event of the watch with this name."""

    def __init__(self, name, json):
        self.name, self.kind, self.at, self.realtime = name, json["kind"], json["monotonic_ns"], json["realtime_ns"]
        for field, value in json[self.kind].items():
            setattr(self, field, value)

    def __repr__(self):
        return str(vars(self))

    @property
    def ahead(self):
        """What the clock that can be set shows more than the one that cannot."""
        return self.realtime - self.at

    @property
    def is_calendar(self):
        return self.kind == "timer_fired" and self.name in PERIODS


def events(said, loop):
    names, found = {}, []
    for line in gzip.decompress(base64.b64decode(said[f"events of {loop}"])).splitlines():
        event = json.loads(line)
        if event["kind"] == "added":
            names[event["watch_id"]] = event["added"]["name"]
        found.append(Event(names.get(event["watch_id"]), event))
    return found


class Clocks:
    """What happened on the two loops of a backend, up to the suspension by CLOCK_BOOTTIME = CLOCK_MONOTONIC."""

    def __init__(self, said, backend):
        self.loops = [f"{loop}-{backend.replace('_', '-')}" for loop in ["often", "hour"]]
        self.events = [event for loop in self.loops for event in events(said, loop)]
        self.events.sort(key=lambda event: event.at)
        lines = [line.split() for line in said["steps"].split("\n")]
        self.cpu = [(int(ticks), float(at)) for name, ticks, at in lines if name == "cpu"]
        self.steps = {name: int(float(before) * SECOND) for name, before, _ in lines if name != "cpu"}
        self.suspended, self.resumed, self.lasts = (int(float(at) * SECOND) for at in said["suspend"].split("\n")[1:4])
        # The first event after the suspension, and the length of that by the difference of the clocks.
        (self.woken,) = [event for event in self.of("every") if event.caught_up]
        self.asleep = self.woken.scheduled_ns + self.woken.late_ns - self.woken.at

    def of(self, name, kind="timer_fired"):
        return [event for event in self.events if (event.name, event.kind) == (name, kind)]

    def after(self, step):
        """The events after the clock was set, up to the next time that it is about to be."""
        begin = self.steps[step]
        end = min([at for at in self.steps.values() if at > begin], default=self.suspended)
        before = [event for event in self.events if event.at < begin][-1]
        events = [event for event in self.events if begin <= event.at < end]
        return [event for event in events if abs(event.ahead - before.ahead) > SECOND // 2]

    def fired(self, step, name):
        return [event for event in self.after(step) if (event.name, event.kind) == (name, "timer_fired")]

    def caught_up(self, step, name):
        """The one event by which a timer makes up for a step forward, the first one after it."""
        first, *others = self.fired(step, name)
        assert first.caught_up, first
        assert first.at - self.steps[step] < AT_ONCE, first
        assert not any(event.caught_up for event in others), others
        return first


@pytest.fixture(params=api.BACKENDS)
def clocks(said, request):
    return Clocks(said, request.param)


def test_each_occurrence_fires_or_is_missed_once(clocks):
    for name, period in PERIODS.items():
        all_fired, anew = clocks.of(name), clocks.fired("years-back", name)[0]
        for event in all_fired:
            # The latest one that was due.
            assert event.scheduled_ns % period == 0
            assert event.late_ns == event.realtime - event.scheduled_ns < period, event
        for before, event in itertools.pairwise(all_fired):
            missed = (event.scheduled_ns - before.scheduled_ns) // period - 1
            if event is anew:
                missed = 0
            assert (event.missed, event.missed_at_least) == (min(missed, COUNTED), missed > COUNTED), (before, event)
            assert event.tick == before.tick + event.missed + 1


def test_a_clock_set_forward_makes_each_due_timer_fire_once_and_at_once(clocks):
    for step in FORWARD:
        clocks.caught_up(step, "second")
    assert clocks.caught_up("hour", "second").missed_at_least
    assert 715 <= clocks.caught_up("hour", "five").missed <= 721
    (hourly,) = clocks.fired("hour", "hourly")
    assert hourly == clocks.caught_up("hour", "hourly") and hourly.missed == 0
    for name in PERIODS:
        years = clocks.caught_up("years", name)
        assert (years.missed, years.missed_at_least) == (COUNTED, True)
    assert clocks.caught_up("second", "second").missed <= 1


def test_a_time_that_the_clock_is_set_past_fires_once(clocks):
    (at,) = clocks.of("at")
    assert at == clocks.caught_up("hour", "at")
    assert at.late_ns == at.realtime - at.scheduled_ns
    assert (at.missed, at.tick) == (0, 1)


def test_a_clock_set_back_by_up_to_three_hours_repeats_nothing(clocks):
    for step in ["hour-back", "hours-back"]:
        after = clocks.after(step)
        assert not [event for event in after if event.is_calendar]
        assert [event for event in after if event.name == "every"]
    # The time went on, so the timer does too.
    before = [event for event in clocks.of("second") if event.at < clocks.steps["second-back"]]
    again = clocks.fired("second-back", "second")
    assert again and again[0].scheduled_ns > before[-1].scheduled_ns
    assert not any(event.caught_up for event in again)


def test_a_clock_set_back_by_years_begins_anew(clocks):
    for name in PERIODS:
        first = clocks.fired("years-back", name)[0]
        assert (first.missed, first.caught_up) == (0, False), first
        # It was set to 3 s before the hour.
        assert first.at - clocks.steps["years-back"] < 3 * SECOND + AT_ONCE
        assert first.late_ns < AT_ONCE


def test_intervals_and_delays_do_not_notice_that_the_clock_is_set(clocks):
    every = [event for event in clocks.of("every") if event.at < clocks.suspended]
    for before, event in itertools.pairwise(every):
        assert event.scheduled_ns - before.scheduled_ns == (event.missed + 1) * SECOND
    for event in every:
        assert not event.caught_up and event.late_ns < AT_ONCE, event
    steps = (clocks.suspended - min(clocks.steps.values())) // SECOND
    assert steps - 2 <= every[-1].tick
    assert clocks.of("hour") == []


def test_no_loop_spins_while_the_clock_is_set(clocks, said):
    loops = {loop["name"]: loop for loop in map(json.loads, said["loops"].strip().split("\n"))}
    for loop in clocks.loops:
        assert loops[loop]["turns"] < 20 * loops[loop]["journal"]["events"]
    (before, begin), (after, end) = clocks.cpu
    assert (after - before) / TICKS < 0.3 * (end - begin)


def test_intervals_and_delays_count_a_suspension(clocks, said):
    assert "[deep]" in said["suspend"]
    assert SUSPENDED - SECOND < clocks.asleep < clocks.resumed - clocks.suspended
    assert clocks.asleep // SECOND - 1 <= clocks.woken.missed <= clocks.asleep // SECOND + 2
    assert clocks.woken.late_ns < AT_ONCE
    (added,), (after,) = clocks.of("after", "added"), clocks.of("after")
    assert after.caught_up
    assert AFTER - AT_ONCE < after.scheduled_ns - added.at < AFTER + AT_ONCE
    assert clocks.suspended < after.scheduled_ns < clocks.resumed
    # At once, by both clocks.
    assert abs(after.scheduled_ns + after.late_ns - after.at - clocks.asleep) < SECOND
    assert after.at + clocks.asleep < clocks.resumed + AT_ONCE


def test_a_calendar_fires_once_for_a_suspension(clocks):
    for name in ["second", "five"]:
        late, *others = [event for event in clocks.of(name) if event.at > clocks.suspended and event.caught_up]
        assert not others, (late, others)
        assert late.missed >= clocks.asleep // PERIODS[name] - 1
        assert late.at + clocks.asleep < clocks.resumed + AT_ONCE


def test_leases_timeouts_and_graces_do_not_count_a_suspension(clocks):
    (added,), (closed,) = clocks.of("leased", "added"), clocks.of("leased", "closed")
    assert closed.reason == "lease_expired"
    (started,), (timed_out,) = clocks.of("late", "started"), clocks.of("late", "exited")
    assert timed_out.timed_out
    asked = next(event for event in clocks.of("stubborn", "data") if event.data["text"] == "asked\n")
    (killed,) = clocks.of("stubborn", "exited")
    assert (killed.status, killed.signal) == ("signal", 9)
    for begun, over in [(added, closed), (started, timed_out), (asked, killed)]:
        assert begun.at < clocks.suspended and clocks.woken.at < over.at
        assert clocks.lasts - SECOND < over.at - begun.at < clocks.lasts + LATE, (begun, over)


def test_timers_follow_the_zones_of_the_host_when_they_are_replaced(clocks, said):
    before, replaced = said["zones"].split("\n")[:2]
    assert "local is Etc/UTC" in before
    assert re.search("2099a, .*local is Asia/Kathmandu", said["suspend"])
    replaced = float(replaced) * SECOND
    # Noon in Nepal, and in New York in winter.
    for name, zone, noon in [("local", "Asia/Kathmandu", 6.25), ("tokyo", "Asia/Tokyo", 17)]:
        (updated,) = clocks.of(name, "updated")
        assert (updated.cause, updated.time_zone) == ("time_zone", zone)
        assert updated.next_ns % (24 * HOUR) == noon * HOUR
        assert replaced < updated.at < replaced + LOOK_EVERY + LATE
