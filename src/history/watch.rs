//! Checks of the events of one watch against its grammar.

use crate::kinds::{WatchKind, event_kind, event_kind_name};
use crate::proto::event::Kind;
use crate::proto::{
    CloseReason, Closed, Data, Event, EventKind, FileChangeKind, FileChanged, Stream, StreamEnd,
    StreamEndReason,
};

use super::coverage::Coverage;
use super::grammar::{self, Completion, Grammar, Origin};
use super::violation::require;
use super::{Rule, Violation};

mod timer;

use timer::last_tick;

/// Most bytes of one `Data`.
const MAX_DATA: usize = 256 * 1024;

/// A value, and the sequence number of the event that reported it.
#[derive(Debug, Clone, Copy)]
struct Observed {
    seq: u64,
    value: u64,
}

/// One byte stream. `bytes` is `None` if it is not known, because the recording begins later or the
/// stream does not begin at 0 and has had no event.
#[derive(Debug, Clone, Copy, Default)]
struct StreamHistory {
    bytes: Option<Observed>,
    had_data: bool,
    ended: bool,
}

/// What the checker remembers of a watch until it is removed.
#[derive(Debug)]
pub(super) struct WatchHistory {
    id: u64,
    user_data: u64,
    /// The sequence number of `Added`; `None` if the recording begins later.
    added: Option<u64>,
    /// The kind that `Added` named; `None` if that was not seen, or is newer than this checker.
    kind: Option<WatchKind>,
    /// The sequence number of the last event.
    last: u64,
    started: bool,
    exited: bool,
    /// The watch has had an event that `Started` or `Connected` must precede.
    active: bool,
    closed: bool,
    streams: [StreamHistory; 3],
    /// Whether writing is paused (1) or not (0).
    paused: Option<Observed>,
    tick: Option<Observed>,
    scheduled_ns: u64,
    /// Whether the last tick was one that a calendar may have made.
    by_calendar: bool,
    interval_ns: Option<u64>,
}

impl WatchHistory {
    /// Makes the history of a watch from the first of its events that was delivered.
    pub(super) fn first(event: &Event, kind: &Kind, coverage: Coverage) -> Result<Self, Violation> {
        let (id, seq) = (event.watch_id, event.seq);
        let mut watch = Self {
            id,
            user_data: event.user_data,
            added: None,
            kind: None,
            last: seq,
            started: false,
            exited: false,
            active: false,
            closed: false,
            streams: [StreamHistory::default(); 3],
            paused: None,
            tick: None,
            scheduled_ns: 0,
            by_calendar: false,
            interval_ns: None,
        };
        if let Kind::Added(added) = kind {
            let zero = Some(Observed { seq, value: 0 });
            watch.added = Some(seq);
            watch.kind = added.watch_kind.parse().ok();
            watch.paused = zero;
            watch.tick = zero;
            // A file may be read from any byte on; its first event says from which.
            let begin = zero.filter(|_| watch.kind != Some(WatchKind::File));
            for stream in &mut watch.streams {
                stream.bytes = begin;
            }
            return Ok(watch);
        }
        require(coverage.lossy_from_start(), Rule::AddedFirst, || {
            format!(
                "event {seq}, the first of watch {id}, is {} instead of Added",
                event_kind_name(kind)
            )
        })?;
        watch.next(event, kind, coverage)?;
        Ok(watch)
    }

    /// Returns whether `Closed` has not been seen.
    pub(super) const fn is_open(&self) -> bool {
        !self.closed
    }

    /// Checks the next event.
    pub(super) fn next(
        &mut self,
        event: &Event,
        kind: &Kind,
        coverage: Coverage,
    ) -> Result<(), Violation> {
        let (id, seq) = (self.id, event.seq);
        require(event.user_data == self.user_data, Rule::UserData, || {
            format!(
                "event {seq} has the user_data {}, but watch {id} has {}",
                event.user_data, self.user_data
            )
        })?;
        self.order(seq, kind, coverage)?;
        require(belongs(kind, self.kind), Rule::ForeignKind, || {
            let of = self.kind.map_or("watch", WatchKind::name);
            format!(
                "event {seq} is {}, which watch {id}, a {of}, cannot have",
                event_kind_name(kind)
            )
        })?;
        self.first_things_first(seq, kind, coverage)?;
        match kind {
            Kind::Data(data) => self.data(seq, data, coverage)?,
            Kind::StreamEnd(end) => self.stream_end(seq, end, coverage)?,
            Kind::Eof(eof) => self.end(seq, Stream::Input, eof.offset, coverage)?,
            Kind::Exited(_) => {
                require(!self.exited, Rule::ExitedOnce, || {
                    format!("event {seq} is a second Exited of watch {id}")
                })?;
                self.exited = true;
            }
            Kind::WritePaused(_) => self.write_flow(seq, 1, coverage)?,
            Kind::WriteResumed(_) => self.write_flow(seq, 0, coverage)?,
            Kind::TimerFired(fired) => self.fired(event, fired, coverage)?,
            Kind::Ready(r) => {
                let some = r.readable || r.writable || r.hangup || r.error || r.half_closed;
                require(some, Rule::ReadyEmpty, || {
                    format!("event {seq} is Ready, but names nothing that is ready")
                })?;
                let read = r.readable || r.half_closed || r.read_fired;
                let write = r.writable || r.write_fired;
                let one = !(r.read_fired || r.write_fired) || !(read && write);
                require(one, Rule::ReadyEmpty, || {
                    format!("event {seq} reports readiness of a direction that did not fire")
                })?;
            }
            Kind::Signal(signal) => {
                require(signal.count >= 1, Rule::SignalCount, || {
                    format!("event {seq} is Signal with a count of 0")
                })?;
            }
            Kind::Closed(closed) => self.close(seq, closed, coverage)?,
            Kind::FileChanged(changed) => self.file_changed(seq, changed, coverage)?,
            // Its schedule may be another one now.
            Kind::Updated(_) => {
                (self.tick, self.interval_ns) = (None, None);
            }
            // No rule but the grammar applies to other kinds.
            _ => {}
        }
        self.last = seq;
        Ok(())
    }

    /// Checks `Added … Closed Removed`.
    fn order(&self, seq: u64, kind: &Kind, coverage: Coverage) -> Result<(), Violation> {
        let id = self.id;
        match kind {
            Kind::Added(_) => require(false, Rule::AddedFirst, || {
                format!(
                    "event {seq} adds watch {id}, which has had event {}",
                    self.last
                )
            }),
            Kind::Removed(_) => {
                let excused = self.added.is_none() && self.last == seq;
                let unseen = excused || coverage.lossy_since(self.last);
                require(self.closed || unseen, Rule::RemovedUnclosed, || {
                    format!("event {seq} removes watch {id}, which is not closed")
                })
            }
            Kind::Closed(_) => require(!self.closed, Rule::ClosedOnce, || {
                format!("event {seq} closes watch {id} a second time")
            }),
            _ => require(!self.closed, Rule::AfterClosed, || {
                format!(
                    "event {seq} is {} of watch {id}, which is closed",
                    event_kind_name(kind)
                )
            }),
        }
    }

    /// A process starts, and a connection connects, before it does anything else.
    fn first_things_first(
        &mut self,
        seq: u64,
        kind: &Kind,
        coverage: Coverage,
    ) -> Result<(), Violation> {
        let id = self.id;
        match kind {
            Kind::Started(_) => {
                require(!self.active, Rule::StartedFirst, || {
                    format!(
                        "event {seq} is Started, but watch {id} has had other events since Added"
                    )
                })?;
                self.started = true;
            }
            Kind::Connected(_) => require(!self.active, Rule::ConnectedFirst, || {
                format!("event {seq} is Connected, but watch {id} has had other events since Added")
            })?,
            Kind::Updated(_) => return Ok(()),
            _ if self.begins_with() == Some(EventKind::Started) => {
                let unseen = self.added.is_none_or(|added| coverage.lossy_since(added));
                require(self.started || unseen, Rule::StartedFirst, || {
                    format!(
                        "event {seq} is {}, but watch {id} has not started",
                        event_kind_name(kind)
                    )
                })?;
            }
            _ => {}
        }
        self.active = true;
        Ok(())
    }

    fn grammar(&self) -> Option<Grammar> {
        self.kind.map(grammar::of_watch)
    }

    fn begins_with(&self) -> Option<EventKind> {
        self.grammar()?.begins_with
    }

    fn stream(&mut self, stream: Stream) -> &mut StreamHistory {
        match stream {
            Stream::Unspecified | Stream::Input => &mut self.streams[0],
            Stream::Stdout => &mut self.streams[1],
            Stream::Stderr => &mut self.streams[2],
        }
    }

    fn data(&mut self, seq: u64, data: &Data, coverage: Coverage) -> Result<(), Violation> {
        let id = self.id;
        let (stream, len) = (data.stream(), data.data.len());
        let grammar = self.grammar();
        let expected = grammar.is_none_or(|of| of.streams.contains(&stream));
        require(expected, Rule::ForeignKind, || {
            format!("event {seq} is of {stream:?}, which watch {id} does not have")
        })?;
        require((1..=MAX_DATA).contains(&len), Rule::DataSize, || {
            format!("event {seq} has {len} bytes; Data has 1 to {MAX_DATA}")
        })?;
        let history = self.stream(stream);
        require(!history.ended, Rule::AfterEnd, || {
            format!("event {seq} has data of watch {id} after the end of {stream:?}")
        })?;
        require(
            agrees(history.bytes, data.offset, coverage),
            Rule::DataOffset,
            || {
                format!(
                    "event {seq} has the offset {} in {stream:?} of watch {id}, but {}",
                    data.offset,
                    ends(history.bytes)
                )
            },
        )?;
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        history.had_data = true;
        history.bytes = Some(Observed {
            seq,
            value: data.offset.saturating_add(len),
        });
        Ok(())
    }

    /// Data of a file goes on where it ended, or behind a hole.
    fn file_changed(
        &mut self,
        seq: u64,
        changed: &FileChanged,
        coverage: Coverage,
    ) -> Result<(), Violation> {
        let length = match changed.change() {
            FileChangeKind::Hole => changed.length,
            FileChangeKind::Reading => 0,
            _ => return Ok(()),
        };
        let id = self.id;
        let stream = self.stream(Stream::Input);
        require(
            agrees(stream.bytes, changed.offset, coverage),
            Rule::DataOffset,
            || {
                format!(
                    "event {seq} has the offset {} in the file of watch {id}, but {}",
                    changed.offset,
                    ends(stream.bytes)
                )
            },
        )?;
        stream.bytes = Some(Observed {
            seq,
            value: changed.offset.saturating_add(length),
        });
        Ok(())
    }

    fn stream_end(
        &mut self,
        seq: u64,
        end: &StreamEnd,
        coverage: Coverage,
    ) -> Result<(), Violation> {
        let failed = end.reason() == StreamEndReason::Error;
        require(failed == end.error.is_some(), Rule::ErrorSet, || {
            format!(
                "event {seq} ends a stream with {:?}, but its error is {:?}",
                end.reason(),
                end.error
            )
        })?;
        let stream = end.stream();
        let outgoing = matches!(stream, Stream::Stdout | Stream::Stderr);
        require(outgoing, Rule::ForeignKind, || {
            format!("event {seq} ends {stream:?}, which no process has")
        })?;
        self.end(seq, stream, end.offset, coverage)
    }

    fn end(
        &mut self,
        seq: u64,
        of: Stream,
        offset: u64,
        coverage: Coverage,
    ) -> Result<(), Violation> {
        let id = self.id;
        let stream = self.stream(of);
        require(!stream.ended, Rule::AfterEnd, || {
            format!("event {seq} ends {of:?} of watch {id} a second time")
        })?;
        require(
            agrees(stream.bytes, offset, coverage),
            Rule::EndOffset,
            || {
                format!(
                    "event {seq} ends {of:?} of watch {id} at {offset}, but {}",
                    ends(stream.bytes)
                )
            },
        )?;
        stream.ended = true;
        Ok(())
    }

    fn write_flow(&mut self, seq: u64, paused: u64, coverage: Coverage) -> Result<(), Violation> {
        let before = self.paused.replace(Observed { seq, value: paused });
        let alternates = before.is_none_or(|b| b.value != paused || coverage.lossy_since(b.seq));
        require(alternates, Rule::WriteFlow, || {
            let what = if paused == 1 { "pauses" } else { "resumes" };
            format!(
                "event {seq} {what} writing of watch {} a second time",
                self.id
            )
        })
    }

    fn close(&mut self, seq: u64, closed: &Closed, coverage: Coverage) -> Result<(), Violation> {
        let failed = matches!(closed.reason(), CloseReason::Error | CloseReason::Lost);
        require(failed == closed.error.is_some(), Rule::ErrorSet, || {
            format!(
                "event {seq} closes with {:?}, but its error is {:?}",
                closed.reason(),
                closed.error
            )
        })?;
        self.closed = true;
        let whole = self.added.is_some_and(|added| !coverage.lossy_since(added));
        if !whole || closed.reason() != CloseReason::Completed {
            return Ok(());
        }
        match self.grammar().map_or(Completion::Any, |of| of.completes) {
            Completion::ExitAndStreamEnds => {
                let unended = |stream: &StreamHistory| stream.had_data && !stream.ended;
                let done = self.exited && !self.streams.iter().any(unended);
                require(done, Rule::CompletedEarly, || {
                    format!(
                        "event {seq} completes watch {} before its Exited or the end of a stream",
                        self.id
                    )
                })
            }
            Completion::Eof => require(self.streams[0].ended, Rule::CompletedEarly, || {
                format!("event {seq} completes watch {} before its Eof", self.id)
            }),
            Completion::Tick => require(
                self.tick
                    .is_some_and(|tick| tick.value == 1 || (tick.value > 1 && self.by_calendar)),
                Rule::TimerCompleted,
                || {
                    format!(
                        "event {seq} completes watch {}, but the last tick is {}",
                        self.id,
                        last_tick(self.tick)
                    )
                },
            ),
            Completion::Any => Ok(()),
        }
    }
}

/// Returns whether `value` is the one observed last, or more if events in between may be missing
/// from the recording.
fn agrees(last: Option<Observed>, value: u64, coverage: Coverage) -> bool {
    last.is_none_or(|last| {
        value == last.value || (value > last.value && coverage.lossy_since(last.seq))
    })
}

/// Returns how far a stream is known to go, for a report.
fn ends(bytes: Option<Observed>) -> String {
    bytes.map_or_else(
        || "its length is not known".to_owned(),
        |Observed { seq, value }| format!("the stream has {value} bytes at event {seq}"),
    )
}

/// Returns whether a watch of this kind may have such an event. If the kind is unknown, only events
/// of the loop are excluded.
fn belongs(event: &Kind, watch: Option<WatchKind>) -> bool {
    match (event, watch) {
        (Kind::Added(_) | Kind::Updated(_) | Kind::Closed(_) | Kind::Removed(_), _) => true,
        (_, Some(kind)) => grammar::of_watch(kind).events.contains(&event_kind(event)),
        (_, None) => grammar::of_event(event) != Origin::Loop,
    }
}
