//! What a process wrote, on our own stdout and stderr, byte for byte.

use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;

use super::failure::{Failure, TIMED_OUT, complain_loudly};
use super::feed::{Feed, Item, cut_short};
use super::json;
use super::output::json_lines;
use super::render;
use super::units::grouped;
use crate::proto::event::Kind;
use crate::proto::watch::Status;
use crate::proto::{Batch, Data, Event, Exited, Gap, Stream, Watch, WatchState, exited};

/// When to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The process is done.
    Done,
    /// Nothing more is there now.
    CaughtUp,
}

/// The bytes of one stream.
#[derive(Debug, Default, Clone, Copy)]
struct Account {
    /// The offset up to which they were received or are known to be gone.
    through: u64,
    gone: u64,
    /// The stream's last offset is known.
    ended: bool,
}

impl Account {
    /// The stream is known to have had that many bytes by now: those not received are gone.
    fn reach(&mut self, offset: u64) {
        self.gone += offset.saturating_sub(self.through);
        self.through = self.through.max(offset);
    }
}

/// Writes a process's streams through and keeps the account of them.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    json: bool,
    stdout: Account,
    stderr: Account,
    /// Events of the process are missing.
    gap: bool,
    /// What they were could not be found out.
    unsure: bool,
    exited: Option<Exited>,
}

impl Transcript {
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            ..Self::default()
        }
    }

    /// Takes what comes, until there is no more. `links` hears of what others wait for.
    pub(super) async fn run(
        &mut self,
        feed: &mut Feed,
        until: Until,
        links: &Links,
    ) -> Result<(), Failure> {
        loop {
            match feed.next().await? {
                Item::Header(_) => {}
                Item::Batch(batch) => {
                    self.batch(&batch, links).await?;
                    if batch.caught_up && until == Until::CaughtUp {
                        return Ok(());
                    }
                }
                Item::Goodbye(goodbye) => return cut_short(&goodbye).map_or(Ok(()), Err),
            }
        }
    }

    async fn batch(&mut self, batch: &Batch, links: &Links) -> Result<(), Failure> {
        for gap in &batch.gaps {
            self.gap(gap)?;
        }
        for event in &batch.events {
            if self.json {
                json_lines([&json::event(event)])?;
            }
            self.event(event, links).await?;
        }
        Ok(())
    }

    /// What was in a gap is told by the offsets behind it.
    fn gap(&mut self, gap: &Gap) -> Result<(), Failure> {
        self.gap = true;
        if self.json {
            return json_lines([&json::gap(gap)]);
        }
        Ok(())
    }

    async fn event(&mut self, event: &Event, links: &Links) -> Result<(), Failure> {
        match &event.kind {
            Some(Kind::Data(data)) => self.data(data, links).await?,
            Some(Kind::StreamEnd(end)) => {
                let account = self.account(end.stream());
                account.reach(end.offset);
                account.ended = true;
            }
            Some(Kind::Exited(exited)) => self.exited = Some(exited.clone()),
            Some(Kind::WriteResumed(_)) => links.resumed.notify_one(),
            _ => {}
        }
        Ok(())
    }

    fn account(&mut self, stream: Stream) -> &mut Account {
        match stream {
            Stream::Stderr => &mut self.stderr,
            Stream::Stdout | Stream::Input | Stream::Unspecified => &mut self.stdout,
        }
    }

    async fn data(&mut self, data: &Data, links: &Links) -> Result<(), Failure> {
        let account = self.account(data.stream());
        let fresh = fresh(account.through, data);
        account.reach(data.offset);
        account.through = account.through.saturating_add(length(fresh));
        if self.json {
            return Ok(());
        }
        links.writing.set(Some(Instant::now()));
        let written = match data.stream() {
            Stream::Stderr => write(tokio::io::stderr(), fresh).await,
            _ => write(tokio::io::stdout(), fresh).await,
        };
        links.writing.set(None);
        written.map_err(|error| Failure::output(&error))
    }

    /// Whether events are missing that may have held the end of a stream or of the process.
    pub(super) const fn is_open(&self) -> bool {
        let ended = self.stdout.ended && self.stderr.ended && self.exited.is_some();
        self.gap && !ended
    }

    /// Takes into account what the daemon says of the process, at a moment before the end of what
    /// was received; `None` if it knows no more of it.
    pub(super) fn settle(&mut self, watch: Option<&Watch>) {
        let Some(Status::Process(status)) = watch.and_then(|watch| watch.status.as_ref()) else {
            self.unsure = true;
            return;
        };
        self.stdout.reach(status.stdout_bytes);
        self.stderr.reach(status.stderr_bytes);
        self.exited = self.exited.take().or_else(|| status.exited.clone());
    }

    /// Says in one sentence what is gone of the output of the process called `name`; whether it is all there.
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
                "{name}: events of it are gone, and whether they held output is not known"
            ));
        }
        gone.is_empty() && !self.unsure
    }

    /// How the process ended.
    pub(super) fn exited(&self, name: &str) -> Result<&Exited, Failure> {
        let exited = self.exited.as_ref();
        exited.ok_or_else(|| Failure::new(name, "its exit status is not known"))
    }
}

/// What the output side tells those who send input and signals meanwhile.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// Hears of every `WriteResumed`.
    pub(super) resumed: Notify,
    /// Since when bytes wait to be taken from us.
    writing: Cell<Option<Instant>>,
}

impl Links {
    /// Waits until nothing waits to be taken from us, or the same bytes have for `bound`;
    /// whether that is so.
    pub(super) async fn is_stuck(&self, bound: Duration) -> bool {
        loop {
            let Some(since) = self.writing.get() else {
                return false;
            };
            let Some(rest) = bound.checked_sub(since.elapsed()) else {
                return true;
            };
            tokio::time::sleep(rest).await;
        }
    }
}

/// How the process of a watch ended; none if it has not.
pub(super) fn end_of(name: &str, watch: &Watch) -> Result<Option<Exited>, Failure> {
    let Some(Status::Process(status)) = &watch.status else {
        return Err(Failure::new(name, "it is no process"));
    };
    match &status.exited {
        None if watch.state() == WatchState::Closed => {
            Err(Failure::new(name, "its exit status is not known"))
        }
        exited => Ok(exited.clone()),
    }
}

/// The exit code that stands for how a child ended: its own, or 128 + its signal, or that of timeout(1).
pub(super) fn exit_code(name: &str, exited: &Exited) -> Result<u8, Failure> {
    if exited.timed_out {
        return Ok(TIMED_OUT);
    }
    let code = match &exited.status {
        Some(exited::Status::Code(code)) => u8::try_from(*code).ok(),
        Some(exited::Status::Signal(signal)) => u8::try_from(signal.saturating_add(128)).ok(),
        Some(exited::Status::Unknown(_)) | None => None,
    };
    code.ok_or_else(|| Failure::new(name, render::exited(exited)))
}

/// Says that events are missing.
pub(super) fn complain_gap(gap: &Gap) {
    let reason = json::word(gap.reason().as_str_name(), "GAP_REASON_");
    let (from, through) = (gap.from_seq, gap.through_seq);
    let count = through.saturating_sub(from).saturating_add(1);
    complain_loudly(format_args!(
        "gap: {count} events lost, {from} to {through} ({reason})"
    ));
}

/// The part of the data that was not seen before.
fn fresh(through: u64, data: &Data) -> &[u8] {
    let known = through.saturating_sub(data.offset);
    let known = usize::try_from(known).unwrap_or(usize::MAX);
    data.data.get(known..).unwrap_or_default()
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

async fn write(mut out: impl AsyncWrite + Unpin, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes).await?;
    out.flush().await
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

    /// What is gone of stdout and of stderr. In JSON, so that a test's own output stays as it is.
    async fn gone(events: &[Event]) -> (Transcript, [u64; 2]) {
        let mut transcript = Transcript::new(true);
        for event in events {
            transcript.event(event, &Links::default()).await.unwrap();
        }
        let gone = [transcript.stdout.gone, transcript.stderr.gone];
        (transcript, gone)
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

    #[tokio::test]
    async fn only_a_hole_between_offsets_is_a_loss() {
        let (out, err) = (Stream::Stdout, Stream::Stderr);
        let joined = [data(out, 0, "ab"), data(err, 0, "x"), data(out, 2, "c")];
        assert_eq!(gone(&joined).await.1, [0, 0]);
        let again = [data(out, 0, "ab"), data(out, 1, "bc"), data(out, 3, "d")];
        assert_eq!(gone(&again).await.1, [0, 0]);
        let holes = [data(out, 5, "ab"), data(out, 9, "c"), data(err, 3, "x")];
        assert_eq!(gone(&holes).await.1, [7, 3]);
    }

    #[tokio::test]
    async fn what_is_gone_at_the_end_is_told_by_the_streams_end_or_by_the_daemon() {
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
        let (mut transcript, lost) = gone(&events).await;
        assert_eq!(lost, [0, 7]);
        transcript.gap = true;
        assert!(transcript.is_open(), "the end of stdout was in the gap");
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
        transcript.settle(Some(&watch));
        assert_eq!((transcript.stdout.gone, transcript.stderr.gone), (4, 7));
        assert!(transcript.exited("x").is_ok() && !transcript.report("x"));
    }

    #[test]
    fn exit_codes_are_the_childs_or_128_and_the_signal_and_never_made_up() {
        let code = |status| {
            exit_code(
                "x",
                &Exited {
                    status,
                    ..Exited::default()
                },
            )
        };
        assert_eq!(code(Some(exited::Status::Code(255))).unwrap(), 255);
        assert_eq!(code(Some(exited::Status::Signal(9))).unwrap(), 137);
        let unknown = code(Some(exited::Status::Unknown("kept".to_owned()))).unwrap_err();
        assert_eq!(unknown.to_string(), "x: exit status unknown: kept");
    }
}
