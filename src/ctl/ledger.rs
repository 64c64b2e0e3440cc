//! Counts the output of a process: which bytes were received, which are gone, and how the process ended.

use super::failure::{Failure, complain_loudly};
use super::units::grouped;
use crate::proto::event::Kind;
use crate::proto::watch::Status;
use crate::proto::{Data, Event, Exited, Stream, Watch};

/// The count of one stream.
#[derive(Debug, Default, Clone, Copy)]
struct Account {
    /// The offset up to which bytes were received or are known to be gone.
    through: u64,
    /// The number of bytes that are gone.
    gone: u64,
    /// Bytes after `through` are not counted: the stream has ended there, or later bytes were not asked for.
    complete: bool,
}

impl Account {
    /// Counts bytes before `offset` that were not received as gone.
    fn count_gone_before(&mut self, offset: u64) {
        self.gone += offset.saturating_sub(self.through);
        self.through = self.through.max(offset);
    }
}

/// Counts the output of a process by its events.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    stdout: Account,
    stderr: Account,
    /// Events of the process may be missing.
    gap: bool,
    /// The daemon does not know whether the missing events held output.
    unsure: bool,
    exited: Option<Exited>,
}

impl Ledger {
    /// Counts an event. If it holds output, returns its bytes that were not received before.
    pub(super) fn event<'a>(&mut self, event: &'a Event) -> Option<&'a [u8]> {
        match &event.kind {
            Some(Kind::Data(data)) => return Some(self.data(data)),
            Some(Kind::StreamEnd(end)) => {
                let account = self.account(end.stream());
                account.count_gone_before(end.offset);
                account.complete = true;
            }
            Some(Kind::Exited(exited)) => self.exited = Some(exited.clone()),
            _ => {}
        }
        None
    }

    /// Counts an event after the output that was asked for: bytes that are missing before it are gone; its own bytes and
    /// later bytes are not counted.
    pub(super) fn end_before(&mut self, event: &Event) {
        let (stream, offset) = match &event.kind {
            Some(Kind::Data(data)) => (data.stream(), data.offset),
            Some(Kind::StreamEnd(end)) => (end.stream(), end.offset),
            _ => return,
        };
        let account = self.account(stream);
        if !account.complete {
            account.count_gone_before(offset);
            account.complete = true;
        }
    }

    fn data<'a>(&mut self, data: &'a Data) -> &'a [u8] {
        let account = self.account(data.stream());
        let fresh = fresh(account.through, data);
        account.count_gone_before(data.offset);
        account.through = account.through.saturating_add(length(fresh));
        fresh
    }

    fn account(&mut self, stream: Stream) -> &mut Account {
        match stream {
            Stream::Stderr => &mut self.stderr,
            Stream::Stdout | Stream::Input | Stream::Unspecified => &mut self.stdout,
        }
    }

    /// Notes that events may be missing. The offsets of later events show how many bytes they held.
    pub(super) const fn gap(&mut self) {
        self.gap = true;
    }

    /// Returns the number of bytes that are gone.
    pub(super) const fn gone(&self) -> u64 {
        self.stdout.gone + self.stderr.gone
    }

    /// Ignores what is gone so far, because it was not asked for.
    pub(super) const fn ignore_losses(&mut self) {
        (self.stdout.gone, self.stderr.gone) = (0, 0);
        (self.gap, self.unsure) = (false, false);
    }

    /// Returns whether missing events may have held output, or the end of the process, that no later event shows.
    pub(super) const fn is_incomplete(&self) -> bool {
        self.output_is_incomplete() || self.gap && self.exited.is_none()
    }

    /// Returns whether missing events may have held output that no later event shows.
    pub(super) const fn output_is_incomplete(&self) -> bool {
        self.gap && !(self.stdout.complete && self.stderr.complete)
    }

    /// Counts bytes as gone that the daemon has read from the process and that were not received, and takes over how the
    /// process ended. `watch` is the process as it was before the last event was received; `None` if the daemon no longer
    /// knows the process.
    pub(super) fn compare_with_totals(&mut self, watch: Option<&Watch>) {
        let Some(Status::Process(status)) = watch.and_then(|watch| watch.status.as_ref()) else {
            self.unsure = true;
            return;
        };
        for (account, bytes) in [
            (&mut self.stdout, status.stdout_bytes),
            (&mut self.stderr, status.stderr_bytes),
        ] {
            if !account.complete {
                account.count_gone_before(bytes);
            }
        }
        self.exited = self.exited.take().or_else(|| status.exited.clone());
    }

    /// Reports on stderr how many bytes of the output of the process `name` are gone. Returns true if none are.
    pub(super) fn report(&self, name: &str) -> bool {
        let bytes = |account: &Account, stream: &str| {
            let count = grouped(account.gone);
            let unit = if account.gone == 1 { "byte" } else { "bytes" };
            (account.gone > 0).then(|| format!("{count} {unit} of {stream}"))
        };
        let gone = [bytes(&self.stdout, "stdout"), bytes(&self.stderr, "stderr")];
        let gone: Vec<_> = gone.into_iter().flatten().collect();
        if !gone.is_empty() {
            let gone = gone.join(" and ");
            complain_loudly(format_args!(
                "{name}: {gone} are gone: the journal no longer holds them"
            ));
        } else if self.unsure {
            complain_loudly(format_args!(
                "{name}: events of it are gone, and it is not known whether they held output"
            ));
        }
        gone.is_empty() && !self.unsure
    }

    /// Returns how the process ended.
    ///
    /// # Errors
    /// It is not known. `name` is for the message.
    pub(super) fn exited(&self, name: &str) -> Result<&Exited, Failure> {
        let exited = self.exited.as_ref();
        exited.ok_or_else(|| Failure::new(name, "its exit status is not known"))
    }
}

/// Returns the bytes of the data after the offset `through`.
fn fresh(through: u64, data: &Data) -> &[u8] {
    let known = through.saturating_sub(data.offset);
    let known = usize::try_from(known).unwrap_or(usize::MAX);
    data.data.get(known..).unwrap_or_default()
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{ProcessStatus, StreamEnd};

    fn data(stream: Stream, offset: u64, text: &'static str) -> Event {
        let data = Data {
            offset,
            data: bytes::Bytes::from_static(text.as_bytes()),
            stream: stream.into(),
        };
        Event {
            kind: Some(Kind::Data(data)),
            ..Event::default()
        }
    }

    /// Returns the ledger after these events, and the numbers of bytes that are gone of stdout and of stderr.
    fn gone(events: &[Event]) -> (Ledger, [u64; 2]) {
        let mut ledger = Ledger::default();
        for event in events {
            ledger.event(event);
        }
        let gone = [ledger.stdout.gone, ledger.stderr.gone];
        (ledger, gone)
    }

    #[test]
    fn bytes_seen_before_are_not_written_again() {
        let data = Data {
            offset: 10,
            data: bytes::Bytes::from_static(b"abcd"),
            stream: 2,
        };
        assert_eq!(fresh(10, &data), b"abcd");
        assert_eq!(fresh(12, &data), b"cd");
        assert_eq!(fresh(99, &data), b"");
    }

    #[test]
    fn only_a_hole_between_offsets_is_a_loss() {
        let (out, err) = (Stream::Stdout, Stream::Stderr);
        let joined = [data(out, 0, "ab"), data(err, 0, "x"), data(out, 2, "c")];
        assert_eq!(gone(&joined).1, [0, 0]);
        let again = [data(out, 0, "ab"), data(out, 1, "bc"), data(out, 3, "d")];
        assert_eq!(gone(&again).1, [0, 0]);
        let holes = [data(out, 5, "ab"), data(out, 9, "c"), data(err, 3, "x")];
        assert_eq!(gone(&holes).1, [7, 3]);
    }

    #[test]
    fn what_is_gone_at_the_end_is_told_by_the_streams_end_or_by_the_daemon() {
        let end = StreamEnd {
            stream: Stream::Stderr.into(),
            offset: 9,
            ..StreamEnd::default()
        };
        let end = Event {
            kind: Some(Kind::StreamEnd(end)),
            ..Event::default()
        };
        let events = [data(Stream::Stderr, 0, "ab"), end];
        let (mut ledger, lost) = gone(&events);
        assert_eq!(lost, [0, 7]);
        ledger.gap = true;
        assert!(ledger.is_incomplete(), "the end of stdout was in the gap");
        let status = ProcessStatus {
            stdout_bytes: 4,
            stderr_bytes: 9,
            exited: Some(Exited::default()),
            ..ProcessStatus::default()
        };
        let watch = Watch {
            status: Some(Status::Process(status)),
            ..Watch::default()
        };
        ledger.compare_with_totals(Some(&watch));
        assert_eq!((ledger.stdout.gone, ledger.stderr.gone), (4, 7));
        assert!(ledger.exited("x").is_ok() && !ledger.report("x"));
    }
}
