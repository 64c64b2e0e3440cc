//! What a process wrote, on our own stdout and stderr, byte for byte.

use std::io;

use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;

use super::failure::{Failure, OWN_FAILURE, complain_loudly};
use super::feed::{Feed, Item, cut_short};
use super::json;
use super::output::json_lines;
use super::render;
use crate::proto::event::Kind;
use crate::proto::{Batch, Data, Event, Exited, Gap, Stream, exited};

/// When to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The process is done.
    Done,
    /// Nothing more is there now.
    CaughtUp,
}

/// Writes a process's streams through and keeps the account of them.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    json: bool,
    /// Bytes of stdout and of stderr that were seen.
    seen: [u64; 2],
    /// Events or bytes are missing.
    pub(super) incomplete: bool,
    exited: Option<Exited>,
}

impl Transcript {
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            ..Self::default()
        }
    }

    /// Takes what comes, until there is no more. `resumed` hears of every `WriteResumed`.
    pub(super) async fn run(
        &mut self,
        feed: &mut Feed,
        until: Until,
        resumed: &Notify,
    ) -> Result<(), Failure> {
        loop {
            match feed.next().await? {
                Item::Header(_) => {}
                Item::Batch(batch) => {
                    self.batch(&batch, resumed).await?;
                    if batch.caught_up && until == Until::CaughtUp {
                        return Ok(());
                    }
                }
                Item::Goodbye(goodbye) => return cut_short(&goodbye).map_or(Ok(()), Err),
            }
        }
    }

    async fn batch(&mut self, batch: &Batch, resumed: &Notify) -> Result<(), Failure> {
        for gap in &batch.gaps {
            self.gap(gap)?;
        }
        for event in &batch.events {
            if self.json {
                json_lines([&json::event(event)])?;
            }
            self.event(event, resumed).await?;
        }
        Ok(())
    }

    fn gap(&mut self, gap: &Gap) -> Result<(), Failure> {
        self.incomplete = true;
        complain_gap(gap);
        if self.json {
            json_lines([&json::gap(gap)])
        } else {
            Ok(())
        }
    }

    async fn event(&mut self, event: &Event, resumed: &Notify) -> Result<(), Failure> {
        match &event.kind {
            Some(Kind::Data(data)) => self.data(data).await?,
            Some(Kind::Exited(exited)) => self.exited = Some(exited.clone()),
            Some(Kind::WriteResumed(_)) => resumed.notify_one(),
            _ => {}
        }
        Ok(())
    }

    async fn data(&mut self, data: &Data) -> Result<(), Failure> {
        let index = usize::from(data.stream() == Stream::Stderr);
        let Some(seen) = self.seen.get_mut(index) else {
            return Ok(());
        };
        let fresh = fresh(*seen, data);
        if data.offset > *seen {
            self.incomplete = true;
            let name = ["stdout", "stderr"][index];
            complain_loudly(format_args!(
                "{} bytes of {name} are lost",
                data.offset - *seen
            ));
        }
        *seen = (*seen).max(data.offset.saturating_add(length(&data.data)));
        if self.json {
            return Ok(());
        }
        let written = match index {
            0 => write(tokio::io::stdout(), fresh).await,
            _ => write(tokio::io::stderr(), fresh).await,
        };
        written.map_err(|error| Failure::output(&error))
    }

    /// The exit code to return for the process: its own, or 128 + its signal.
    pub(super) fn exit_code(&self, name: &str) -> Result<u8, Failure> {
        let code = match &self.exited {
            Some(exited) => exit_code(name, exited)?,
            None => return Err(Failure::new(name, "it ended without an exit status")),
        };
        Ok(if self.incomplete { OWN_FAILURE } else { code })
    }
}

/// The exit code that stands for how a child ended.
pub(super) fn exit_code(name: &str, exited: &Exited) -> Result<u8, Failure> {
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
fn fresh(seen: u64, data: &Data) -> &[u8] {
    let known = seen.saturating_sub(data.offset);
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
