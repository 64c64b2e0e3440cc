//! Tests that plant a violation of every rule: that rule refuses the history, and no other does.

use crate::kinds::event_kind_name;
use std::collections::BTreeSet;

use super::*;

/// Returns the index of the `nth` (from 0) event of that kind of the watch.
fn find(facts: &[Fact], watch_id: u64, kind: &str, nth: usize) -> usize {
    let here = |(_, f): &(usize, &Fact)| f.watch_id == watch_id && event_kind_name(&f.kind) == kind;
    let found = facts.iter().enumerate().filter(here).nth(nth);
    found.expect("the good history has it").0
}

fn drop_fact(facts: &mut Vec<Fact>, watch_id: u64, kind: &str) {
    facts.remove(find(facts, watch_id, kind, 0));
}

fn repeat(facts: &mut Vec<Fact>, watch_id: u64, kind: &str) {
    let at = find(facts, watch_id, kind, 0);
    facts.insert(at, facts[at].clone());
}

fn replace(facts: &mut [Fact], watch_id: u64, kind: &str, nth: usize, new: Kind) {
    let at = find(facts, watch_id, kind, nth);
    facts[at].kind = new;
}

fn insert_after(facts: &mut Vec<Fact>, watch_id: u64, kind: &str, new: Kind) {
    let at = find(facts, watch_id, kind, 0);
    facts.insert(at + 1, fact(watch_id, new));
}

fn timer(scheduled_ns: u64, tick: u64, missed: u64) -> Kind {
    Kind::TimerFired(TimerFired {
        scheduled_ns,
        late_ns: 0,
        missed,
        tick,
        clock: TimerClock::Boottime.into(),
        ..TimerFired::default()
    })
}

fn early(clock: TimerClock, scheduled_ns: u64) -> Kind {
    Kind::TimerFired(TimerFired {
        scheduled_ns,
        tick: 1,
        clock: clock.into(),
        ..TimerFired::default()
    })
}

type PlantFact = fn(&mut Vec<Fact>);
type PlantBatch = fn(&mut Recording);

#[rustfmt::skip]
const FACTS: &[(Rule, PlantFact)] = &[
    (Rule::Clock, |f| f[5].clock_ns = -5000),
    (Rule::AddedFirst, |f| drop_fact(f, 9, "added")),
    (Rule::AddedFirst, |f| repeat(f, 3, "added")),
    (Rule::AddedFirst, |f| insert_after(f, 3, "started", added("process", 0))),
    (Rule::ClosedOnce, |f| repeat(f, 9, "closed")),
    (Rule::AfterClosed, |f| insert_after(f, 9, "closed", data(Stream::Input, 2, 1))),
    (Rule::AfterClosed, |f| insert_after(f, 3, "closed", exited())),
    (Rule::RemovedUnclosed, |f| drop_fact(f, 2, "closed")),
    (Rule::AfterRemoved, |f| repeat(f, 2, "removed")),
    (Rule::AfterRemoved, |f| insert_after(f, 1, "removed", added("timer", 0))),
    (Rule::ErrorSet, |f| replace(f, 9, "closed", 0, Kind::Closed(Closed {
        reason: CloseReason::Error.into(), ..Closed::default() }))),
    (Rule::ErrorSet, |f| replace(f, 3, "stream_end", 0, Kind::StreamEnd(StreamEnd {
        stream: Stream::Stdout.into(), offset: 9, reason: StreamEndReason::Error.into(), ..StreamEnd::default() }))),
    (Rule::ForeignKind, |f| insert_after(f, 1, "added", ready())),
    (Rule::ForeignKind, |f| insert_after(f, 3, "started", data(Stream::Input, 0, 1))),
    (Rule::ForeignKind, |f| insert_after(f, 0, "posted", exited())),
    (Rule::ForeignKind, |f| insert_after(f, 7, "added", Kind::Posted(Posted::default()))),
    (Rule::UserData, |f| { let at = find(f, 3, "exited", 0); f[at].user_data = 1; }),
    (Rule::DataOffset, |f| replace(f, 3, "data", 2, data(Stream::Stdout, 6, 3))),
    (Rule::DataOffset, |f| replace(f, 3, "data", 2, data(Stream::Stdout, 4, 5))),
    (Rule::DataOffset, |f| replace(f, 9, "data", 0, data(Stream::Input, 1, 1))),
    (Rule::DataOffset, |f| drop_fact(f, 3, "data")),
    (Rule::DataSize, |f| replace(f, 9, "data", 0, data(Stream::Input, 0, 0))),
    (Rule::DataSize, |f| replace(f, 9, "data", 0, data(Stream::Input, 0, 262_145))),
    (Rule::AfterEnd, |f| insert_after(f, 3, "stream_end", data(Stream::Stdout, 9, 1))),
    (Rule::AfterEnd, |f| insert_after(f, 4, "eof", data(Stream::Input, 8, 1))),
    (Rule::AfterEnd, |f| repeat(f, 3, "stream_end")),
    (Rule::AfterEnd, |f| repeat(f, 4, "eof")),
    (Rule::EndOffset, |f| replace(f, 3, "stream_end", 1, stream_end(Stream::Stderr, 4))),
    (Rule::EndOffset, |f| replace(f, 4, "eof", 0, eof(7))),
    (Rule::StartedFirst, |f| drop_fact(f, 3, "started")),
    (Rule::StartedFirst, |f| repeat(f, 3, "started")),
    (Rule::ExitedOnce, |f| repeat(f, 3, "exited")),
    (Rule::CompletedEarly, |f| drop_fact(f, 3, "exited")),
    (Rule::CompletedEarly, |f| drop_fact(f, 3, "stream_end")),
    (Rule::ConnectedFirst, |f| repeat(f, 4, "connected")),
    (Rule::ConnectedFirst, |f| insert_after(f, 4, "added", paused())),
    (Rule::WriteFlow, |f| repeat(f, 4, "write_paused")),
    (Rule::WriteFlow, |f| drop_fact(f, 3, "write_paused")),
    (Rule::AcceptedAdded, |f| insert_after(f, 5, "accepted", Kind::AcceptPaused(AcceptPaused::default()))),
    (Rule::AcceptedAdded, |f| replace(f, 6, "added", 0, added("connection", 4))),
    (Rule::AcceptedAdded, |f| drop_fact(f, 5, "accepted")),
    (Rule::TimerEarly, |f| replace(f, 1, "timer_fired", 0, early(TimerClock::Monotonic, 1_000_013_000))),
    (Rule::TimerEarly, |f| replace(f, 1, "timer_fired", 0, early(TimerClock::Realtime, 1_700_000_001_001_000_000))),
    (Rule::TimerTick, |f| replace(f, 2, "timer_fired", 2, fired(5, 1))),
    (Rule::TimerTick, |f| replace(f, 2, "timer_fired", 1, fired(1, 0))),
    (Rule::TimerTick, |f| replace(f, 2, "timer_fired", 0, fired(0, 0))),
    (Rule::TimerRate, |f| replace(f, 2, "timer_fired", 2, timer(2400, 5, 2))),
    (Rule::TimerRate, |f| replace(f, 2, "timer_fired", 1, timer(400, 2, 0))),
    (Rule::TimerCompleted, |f| drop_fact(f, 1, "timer_fired")),
    (Rule::TimerCompleted, |f| replace(f, 2, "closed", 0, closed(CloseReason::Completed))),
    (Rule::ReadyEmpty, |f| replace(f, 7, "ready", 0, Kind::Ready(Ready::default()))),
    (Rule::ReadyEmpty, |f| replace(f, 7, "ready", 0, Kind::Ready(Ready {
        read_fired: true, ..Ready::default() }))),
    (Rule::ReadyEmpty, |f| replace(f, 7, "ready", 0, Kind::Ready(Ready {
        hangup: true, read_fired: true, write_fired: true, ..Ready::default() }))),
    (Rule::ReadyEmpty, |f| replace(f, 7, "ready", 0, Kind::Ready(Ready {
        writable: true, read_fired: true, ..Ready::default() }))),
    (Rule::ReadyEmpty, |f| replace(f, 7, "ready", 0, Kind::Ready(Ready {
        half_closed: true, write_fired: true, ..Ready::default() }))),
    (Rule::SignalCount, |f| replace(f, 8, "signal", 0, signal(0))),
    (Rule::LoopState, |f| replace(f, 0, "loop_state_changed", 1, state(LoopState::Created))),
    (Rule::LoopState, |f| repeat(f, 0, "loop_state_changed")),
    (Rule::LoopIdle, |f| { let at = find(f, 0, "loop_state_changed", 1); f.insert(at + 1, fact(7, ready())); }),
    (Rule::LoopClosed, |f| f.push(fact(0, Kind::Posted(Posted::default())))),
];

const BATCHES: &[(Rule, PlantBatch)] = &[
    (Rule::BatchAfter, |r| r.start = 1),
    (Rule::BatchAfter, |r| r.batches[2].after += 1),
    (Rule::BatchAfter, |r| drop(r.batches.remove(2))),
    (Rule::BatchThrough, |r| {
        r.batches[2].events.clear();
        r.batches[2].through = 1;
    }),
    (Rule::EventOrder, |r| {
        r.view = View::Watches;
        r.batches[2].events.swap(0, 1);
    }),
    (Rule::EventOrder, |r| {
        r.batches[2].events[1].seq = r.batches[2].events[0].seq;
    }),
    (Rule::Outside, |r| r.batches[2].through -= 1),
    (Rule::Outside, |r| {
        let early = r.batches[1].events[0].clone();
        r.batches[2].events.insert(0, early);
    }),
    (Rule::Outside, |r| r.batches[0].gaps.push(gap(5, 5))),
    (Rule::GapShape, |r| r.batches[0].gaps.push(gap(3, 2))),
    (Rule::GapShape, |r| {
        lose(r, 1, 1);
        r.batches[0].gaps[0].reason = 0;
    }),
    (Rule::Overlap, |r| r.batches[0].gaps.push(gap(2, 3))),
    (Rule::Overlap, |r| {
        lose(r, 2, 3);
        r.batches[0].gaps.push(gap(3, 3));
    }),
    (Rule::Unaccounted, |r| drop(r.batches[2].events.remove(1))),
    (Rule::Unaccounted, |r| drop(r.batches[2].events.pop())),
    (Rule::Unaccounted, |r| {
        r.batches.last_mut().unwrap().through += 1;
    }),
];

#[test]
fn every_planted_violation_is_found_by_its_rule() {
    let mut found = BTreeSet::from([
        Rule::Epoch,
        Rule::ResumeHole,
        Rule::Content,
        Rule::LostAndFound,
        Rule::AddedFence,
        Rule::RemovedFence,
    ]);
    for (number, (rule, plant)) in FACTS.iter().enumerate() {
        let mut facts = good();
        plant(&mut facts);
        for per_batch in [1, 4, 100] {
            let violation = check(&record(&facts, per_batch)).expect_err(rule.name());
            assert_eq!(violation.rule, *rule, "fact {number}: {violation}");
        }
        found.insert(*rule);
    }
    for (number, (rule, plant)) in BATCHES.iter().enumerate() {
        let mut recording = record(&good(), 4);
        plant(&mut recording);
        let violation = check(&recording).expect_err(rule.name());
        assert_eq!(violation.rule, *rule, "batch {number}: {violation}");
        found.insert(*rule);
    }
    found.extend(subscriptions::PLANTED.iter().map(|(rule, _)| *rule));
    let all: BTreeSet<Rule> = Rule::ALL.iter().copied().collect();
    assert_eq!(found, all, "every rule has a planted violation");
}

/// Returns the part of the good history in (`start`, `through`].
fn subscription(start: u64, through: u64) -> Recording {
    let mut recording = Recording::new("e", start);
    for mut batch in record(&good(), 1).batches {
        if batch.after >= start && batch.through <= through {
            batch.caught_up = false;
            recording.batches.push(batch);
        }
    }
    recording
}

fn refused<T: std::fmt::Debug>(result: Result<T, Violation>) -> Rule {
    result.unwrap_err().rule
}

#[test]
fn subscriptions_that_resume_have_everything_once() {
    let end = u64::try_from(good().len()).unwrap();
    let subscriptions = [
        subscription(0, 10),
        subscription(7, 20),
        subscription(20, 20),
        subscription(20, end),
    ];
    let summary = check_resumed(&subscriptions).unwrap();
    assert_eq!((summary.events, summary.lost), (end, 0));
    assert_eq!(summary, check(&record(&good(), 1)).unwrap());
}

#[test]
fn a_life_that_resumes_too_late_is_found() {
    assert_eq!(
        refused(check_resumed(&[subscription(0, 10), subscription(11, 20)])),
        Rule::ResumeHole
    );
}

#[test]
fn a_redelivery_that_differs_is_found() {
    let mut second = subscription(7, 20);
    second.batches[0].events[0].realtime_ns += 1;
    assert_eq!(
        refused(check_same(&subscription(0, 10), &second)),
        Rule::Content
    );
    assert_eq!(
        refused(check_resumed(&[subscription(0, 10), second])),
        Rule::Content
    );
    check_same(&subscription(0, 10), &subscription(7, 20)).unwrap();
}

#[test]
fn a_lost_event_that_comes_later_is_found() {
    let mut first = subscription(0, 10);
    lose(&mut first, 8, 8);
    assert_eq!(
        refused(check_resumed(&[first.clone(), subscription(7, 20)])),
        Rule::LostAndFound
    );
    let mut second = subscription(7, 20);
    lose(&mut second, 8, 8);
    assert_eq!(check_resumed(&[first, second]).unwrap().lost, 1);
}

#[test]
fn another_history_is_found() {
    let mut second = subscription(10, 20);
    second.epoch = "f".into();
    assert_eq!(
        refused(check_resumed(&[subscription(0, 10), second.clone()])),
        Rule::Epoch
    );
    assert_eq!(
        refused(check_same(&subscription(0, 10), &second)),
        Rule::Epoch
    );
}

#[test]
fn a_reply_that_disagrees_with_the_stream_is_found() {
    let facts = good();
    let recording = record(&facts, 4);
    let at = |kind| u64::try_from(find(&facts, 2, kind, 0)).unwrap() + 1;
    let (added, removed) = (at("added"), at("removed"));

    check_fence(added, 2, &recording).unwrap();
    check_removal_fence(removed, 2, &recording).unwrap();
    for wrong in [added - 1, added + 1] {
        assert_eq!(refused(check_fence(wrong, 2, &recording)), Rule::AddedFence);
    }
    for wrong in [removed - 1, removed + 1] {
        let found = refused(check_removal_fence(wrong, 2, &recording));
        assert_eq!(found, Rule::RemovedFence);
    }
}
