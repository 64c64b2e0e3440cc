//! What later lives of the daemon need of a terminal, and how they go on with it.

use std::os::fd::{AsFd as _, OwnedFd};

use super::{Terminal, Typing};
use crate::proto::TerminalSize;
use crate::proto::state::KeptTerminal;
use crate::state::descriptor;
use crate::sys;
use crate::watch::process::relay::Relay;
use crate::watch::process::typed::Line;
use crate::watch::transport::Incoming;
use crate::watch::water::{Gauge, WaterMarks};
use crate::watch::{Context, Resumption};

impl Terminal {
    /// Returns what later lives need; `None` if they do not go on with it.
    pub(in crate::watch::process) fn kept(&self) -> Option<KeptTerminal> {
        let relay = self.relay.as_ref()?;
        let typing = self.typing.as_ref();
        let (line_bytes, line_quoted) =
            typing.map(|typing| typing.line.parts()).unwrap_or_default();
        Some(KeptTerminal {
            control: descriptor(self.control.as_fd()),
            slave: self
                .slave
                .as_ref()
                .and_then(|slave| descriptor(slave.as_fd())),
            relay: descriptor(relay.output.as_fd()),
            relay_input: descriptor(relay.input.as_fd()),
            typed: typing.and_then(|_| descriptor(relay.typed.as_fd())),
            size: Some(self.size),
            flushes: self.flushes,
            flushed_at: self.flushed_at,
            line_bytes: u32::try_from(line_bytes).unwrap_or(u32::MAX),
            line_quoted,
            eofs: typing.map_or(0, |typing| typing.eofs.into()),
            write_paused: typing.is_some_and(|typing| typing.gauge.is_paused()),
        })
    }

    /// Returns how many bytes of its relay were read.
    pub(in crate::watch::process) fn relayed(&self) -> u64 {
        self.relay.as_ref().map_or(0, |relay| relay.read)
    }

    /// Returns a terminal of an earlier life. It is not read before [`Terminal::go_on`].
    pub(in crate::watch::process) fn of_earlier_life(earlier: EarlierTerminal) -> Self {
        Self {
            control: earlier.control,
            slave: earlier.slave,
            size: TerminalSize::default(),
            typing: None,
            flushes: 0,
            flushed_at: 0,
            relay: Some(earlier.relay),
        }
    }

    /// Goes on with a terminal of an earlier life: appends what was read and not recorded. Returns how
    /// many bytes were typed.
    pub(in crate::watch::process) fn go_on(
        &mut self,
        cx: &mut Context<'_>,
        output: &mut Incoming,
        kept: &KeptTerminal,
        rest: &Resumption,
    ) -> u64 {
        (self.flushes, self.flushed_at) = (kept.flushes, kept.flushed_at);
        self.size = kept.size.unwrap_or_default();
        let progress = rest.progress;
        let Some(relay) = &mut self.relay else {
            return 0;
        };
        relay.read = progress.relayed;
        let packets = kept.relay.as_ref().into_iter();
        let packets = packets.flat_map(|from| rest.unrecorded_of(from, progress.relayed));
        for packet in packets {
            relay.read += packet.len() as u64;
            match packet {
                [report] if report & sys::PACKET_FLUSHED != 0 => {
                    self.flushes += 1;
                    self.flushed_at = output.offset;
                }
                [_, data @ ..] if !data.is_empty() => output.deliver(cx, data),
                _ => {}
            }
        }
        if kept.typed.is_none() {
            return progress.taken;
        }
        let typed = relay.typed_bytes().max(progress.taken);
        let unrecorded = relay.typed_since(progress.taken, typed);
        let modes = self.modes().unwrap_or_default();
        let line = Line::of((kept.line_bytes as usize, kept.line_quoted));
        let mut gauge = Gauge::new(WaterMarks::with_high(0));
        gauge.go_on(cx, kept.write_paused);
        let typing = Typing {
            source: output.source,
            taken: typed,
            line: line.after(&modes, &unrecorded).unwrap_or_default(),
            eofs: u8::try_from(kept.eofs).unwrap_or(u8::MAX),
            gauge,
        };
        if kept.write_paused || typing.eofs > 0 {
            typing.wait(cx);
        }
        self.typing = Some(typing);
        typed
    }
}

/// What an earlier life has left of a terminal.
#[derive(Debug)]
pub struct EarlierTerminal {
    /// The master.
    pub control: OwnedFd,
    /// The terminal, if its child has not ended.
    pub slave: Option<OwnedFd>,
    /// What it is read through.
    pub relay: Relay,
}
