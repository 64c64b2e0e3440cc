//! Tests of the checker: which histories it must accept and which it must refuse.

use bytes::Bytes;

use super::*;
use crate::proto::*;

mod generated;
mod planted;
mod subscriptions;

/// An event without a sequence number.
#[derive(Debug, Clone)]
struct Fact {
    watch_id: u64,
    user_data: u64,
    kind: Kind,
    /// How far the clock is ahead (or behind, if negative) of its regular time.
    clock_ns: i64,
}

fn fact(watch_id: u64, kind: Kind) -> Fact {
    Fact {
        watch_id,
        user_data: watch_id * 10,
        kind,
        clock_ns: 0,
    }
}

/// Gives the facts sequence numbers from 1, and puts `per_batch` of them in each batch.
fn record(facts: &[Fact], per_batch: usize) -> Recording {
    let mut recording = Recording::new("e", 0);
    let events: Vec<Event> = (1..)
        .zip(facts)
        .map(|(seq, fact)| event(seq, fact))
        .collect();
    for chunk in events.chunks(per_batch) {
        recording.batches.push(Batch {
            after: recording.through(),
            through: chunk[chunk.len() - 1].seq,
            events: chunk.to_vec(),
            ..Batch::default()
        });
    }
    recording
}

fn event(seq: u64, fact: &Fact) -> Event {
    let elapsed = 1_000_000_000 + seq * 1000;
    Event {
        seq,
        monotonic_ns: elapsed.saturating_add_signed(fact.clock_ns),
        realtime_ns: 1_700_000_000_000_000_000 + elapsed,
        watch_id: fact.watch_id,
        user_data: fact.user_data,
        kind: Some(fact.kind.clone()),
    }
}

fn added(kind: &str, parent: u64) -> Kind {
    Kind::Added(Added {
        watch_kind: kind.into(),
        parent_watch_id: parent,
        ..Added::default()
    })
}

fn closed(reason: CloseReason) -> Kind {
    Kind::Closed(Closed {
        reason: reason.into(),
        error: (reason == CloseReason::Error).then(SystemError::default),
        ..Closed::default()
    })
}

fn removed() -> Kind {
    Kind::Removed(Removed::default())
}

fn data(stream: Stream, offset: u64, len: usize) -> Kind {
    Kind::Data(Data {
        stream: stream.into(),
        offset,
        data: Bytes::from(vec![b'x'; len]),
    })
}

fn stream_end(stream: Stream, offset: u64) -> Kind {
    Kind::StreamEnd(StreamEnd {
        stream: stream.into(),
        offset,
        reason: StreamEndReason::Eof.into(),
        ..StreamEnd::default()
    })
}

fn eof(offset: u64) -> Kind {
    Kind::Eof(Eof { offset })
}

fn exited() -> Kind {
    Kind::Exited(Exited {
        status: Some(exited::Status::Code(0)),
        ..Exited::default()
    })
}

fn fired(tick: u64, missed: u64) -> Kind {
    Kind::TimerFired(TimerFired {
        scheduled_ns: 500 * tick,
        late_ns: 1_000_000_000,
        missed,
        tick,
        clock: TimerClock::Boottime.into(),
        ..TimerFired::default()
    })
}

fn state(state: LoopState) -> Kind {
    Kind::LoopStateChanged(LoopStateChanged {
        state: state.into(),
        ..LoopStateChanged::default()
    })
}

fn paused() -> Kind {
    Kind::WritePaused(WritePaused::default())
}

fn resumed() -> Kind {
    Kind::WriteResumed(WriteResumed::default())
}

fn ready() -> Kind {
    Kind::Ready(Ready {
        readable: true,
        ..Ready::default()
    })
}

fn signal(count: u64) -> Kind {
    Kind::Signal(Signal {
        count,
        ..Signal::default()
    })
}

fn accepted(watch_id: u64) -> Kind {
    Kind::Accepted(Accepted {
        watch_id,
        peer: None,
    })
}

/// Returns the history of a loop with a watch of every kind. The ids of the watches: 1 timer, 2
/// ticking timer, 3 process, 4 connection, 5 listener, 6 accepted connection, 7 fd, 8 signal, 9
/// read pipe.
fn good() -> Vec<Fact> {
    use CloseReason::{Completed, Error, LoopClosed, Removed};
    use Stream::{Input, Stderr, Stdout};
    [
        (0, state(LoopState::Running)),
        (1, added("timer", 0)),
        (2, added("timer", 0)),
        (3, added("process", 0)),
        (3, Kind::Started(Started { pid: 7 })),
        (3, data(Stdout, 0, 5)),
        (2, fired(1, 0)),
        (3, data(Stderr, 0, 3)),
        (3, data(Stdout, 5, 4)),
        (3, paused()),
        (3, resumed()),
        (1, fired(1, 0)),
        (1, closed(Completed)),
        (1, removed()),
        (2, fired(2, 0)),
        (3, stream_end(Stdout, 9)),
        (3, exited()),
        (3, stream_end(Stderr, 3)),
        (3, closed(Completed)),
        (2, fired(5, 2)),
        (2, closed(Removed)),
        (2, removed()),
        (4, added("connection", 0)),
        (4, Kind::Connected(Connected::default())),
        (4, data(Input, 0, 8)),
        (4, paused()),
        (4, resumed()),
        (4, eof(8)),
        (4, paused()),
        (4, closed(Completed)),
        (5, added("listener", 0)),
        (5, accepted(6)),
        (6, added("connection", 5)),
        (6, data(Input, 0, 1)),
        (6, closed(Error)),
        (7, added("fd", 0)),
        (7, ready()),
        (8, added("signal", 0)),
        (8, signal(1)),
        (9, added("read_pipe", 0)),
        (9, data(Input, 0, 2)),
        (9, eof(2)),
        (9, closed(Completed)),
        (0, Kind::Posted(Posted::default())),
        (0, state(LoopState::Stopped)),
        (5, closed(LoopClosed)),
        (7, closed(LoopClosed)),
        (0, state(LoopState::Closed)),
    ]
    .into_iter()
    .map(|(watch_id, kind)| fact(watch_id, kind))
    .collect()
}

/// Turns a recording's events from `from` to `through` into a gap.
fn lose(recording: &mut Recording, from: u64, through: u64) {
    for batch in &mut recording.batches {
        let first = from.max(batch.after + 1);
        let last = through.min(batch.through);
        if first > last {
            continue;
        }
        batch.events.retain(|e| e.seq < first || e.seq > last);
        batch.gaps.push(gap(first, last));
    }
}

fn gap(from_seq: u64, through_seq: u64) -> Gap {
    Gap {
        from_seq,
        through_seq,
        reason: GapReason::Trimmed.into(),
    }
}

#[test]
fn a_good_history_is_accepted_and_counted() {
    let facts = good();
    let events = u64::try_from(facts.len()).unwrap();
    for per_batch in [1, 3, 100] {
        let summary = check(&record(&facts, per_batch)).unwrap();
        assert_eq!((summary.events, summary.through), (events, events));
        assert_eq!((summary.watches, summary.open_watches), (9, 1));
        assert_eq!(summary.kinds["data"], 6);
        assert_eq!(summary.lost, 0);
    }
}

#[test]
fn every_loss_that_is_told_is_accepted() {
    let facts = good();
    let events = u64::try_from(facts.len()).unwrap();
    for from in 1..=events {
        for through in from..=events {
            let mut recording = record(&facts, 4);
            lose(&mut recording, from, through);
            let summary = check(&recording).unwrap();
            assert_eq!(summary.lost, through - from + 1);
        }
    }
}

#[test]
fn a_recording_may_begin_anywhere() {
    let whole = record(&good(), 1);
    for start in 0..whole.batches.len() {
        let mut later = Recording::new("e", u64::try_from(start).unwrap());
        later.batches = whole.batches[start..].to_vec();
        check(&later).unwrap();
    }
}

/// Returns the history of a file that is read once.
fn file(parts: &[Kind], end: u64) -> Vec<Fact> {
    let mut kinds = vec![added("file", 0)];
    kinds.extend(parts.iter().cloned());
    kinds.extend([eof(end), closed(CloseReason::Completed)]);
    kinds.into_iter().map(|kind| fact(1, kind)).collect()
}

fn of_file(change: FileChangeKind, offset: u64, length: u64) -> Kind {
    Kind::FileChanged(FileChanged {
        change: change.into(),
        generation: 1,
        offset,
        length,
        ..FileChanged::default()
    })
}

#[test]
fn a_file_is_read_from_any_byte_on() {
    use FileChangeKind::{Hole, Reading};
    let data = |offset, len| data(Stream::Input, offset, len);
    let reading = |offset| of_file(Reading, offset, 0);
    for (parts, end) in [
        // From its end, of an empty file, or from a byte in its middle.
        (vec![], 10),
        (vec![], 0),
        (vec![reading(7), data(7, 3)], 10),
        // With a hole in front, in the middle and at the end.
        (vec![of_file(Hole, 7, 20), reading(27), data(27, 3)], 30),
        (
            vec![reading(0), data(0, 5), of_file(Hole, 5, 90), data(95, 5)],
            100,
        ),
        (vec![reading(3), data(3, 5), of_file(Hole, 8, 2)], 10),
        (vec![of_file(Hole, 10, 90)], 100),
    ] {
        let facts = file(&parts, end);
        for per_batch in [1, 100] {
            check(&record(&facts, per_batch)).unwrap();
        }
        let events = u64::try_from(facts.len()).unwrap();
        for from in 1..=events {
            let mut recording = record(&facts, 1);
            lose(&mut recording, from, from);
            check(&recording).unwrap();
        }
        // Once it has begun, nothing may be left out or told twice.
        if !parts.is_empty() {
            for wrong in [end - 1, end + 1] {
                let found = check(&record(&file(&parts, wrong), 1)).unwrap_err();
                assert_eq!(found.rule, Rule::EndOffset, "{parts:?}");
            }
        }
    }
    for parts in [
        vec![reading(7), data(8, 2)],
        vec![data(7, 3), of_file(Hole, 9, 1)],
        vec![of_file(Hole, 7, 2), reading(10)],
        vec![of_file(Hole, 7, 2), data(8, 2)],
    ] {
        let found = check(&record(&file(&parts, 10), 1)).unwrap_err();
        assert_eq!(found.rule, Rule::DataOffset, "{parts:?}");
    }
}

/// The daemon delivers this to a reader that filters by the kind Ready.
#[test]
fn readiness_comes_with_the_ends_of_watches() {
    let ready = Kind::Ready(Ready {
        readable: true,
        ..Ready::default()
    });
    let closed = Kind::Closed(Closed {
        reason: CloseReason::Removed.into(),
        ..Closed::default()
    });
    let told = [
        fact(1, ready.clone()),
        fact(2, closed.clone()),
        fact(1, closed),
        fact(1, ready),
    ];
    let view = |facts| Recording {
        view: View::Kinds,
        ..record(facts, 1)
    };
    let summary = check(&view(&told[..3])).unwrap();
    assert_eq!((summary.watches, summary.open_watches), (2, 0));
    let violation = check(&view(&told)).unwrap_err();
    assert_eq!(violation.rule, Rule::AfterClosed);
}

#[test]
fn a_filter_may_leave_out_watches_or_kinds() {
    for view in [View::Watches, View::Kinds] {
        let mut recording = record(&good(), 4);
        recording.view = view;
        for batch in &mut recording.batches {
            batch.events.retain(|event| match view {
                View::Watches => event.watch_id == 3,
                _ => matches!(event.kind, Some(Kind::Data(_) | Kind::Closed(_))),
            });
        }
        let summary = check(&recording).unwrap();
        assert_eq!(
            summary.kinds["closed"],
            if view == View::Watches { 1 } else { 8 }
        );
    }
}
