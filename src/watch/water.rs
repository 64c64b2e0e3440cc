//! The water marks of bytes that wait to be sent: when WritePaused and WriteResumed are appended.

use super::{Context, TransportLimits};
use crate::error::Result;
use crate::event::{Kind, WritePaused, WriteResumed};
use crate::proto;

/// When a transport reports that too many bytes are unsent, and that there is room again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaterMarks {
    /// WritePaused is appended when more bytes than this are unsent.
    pub high: u32,
    /// WriteResumed is appended when at most this many bytes are unsent; not above `high`.
    pub low: u32,
}

impl WaterMarks {
    /// The part of a high mark that is its low mark, unless that is given.
    const PART: usize = 4;

    /// Returns the marks of a transport for which none are given.
    #[must_use]
    pub fn of(limits: TransportLimits) -> Self {
        Self::with_high(limits.high_water)
    }

    /// Returns a high mark with its low mark, a quarter of it.
    #[must_use]
    pub fn with_high(high: usize) -> Self {
        let mark = |bytes| u32::try_from(bytes).unwrap_or(u32::MAX);
        Self {
            high: mark(high),
            low: mark(high / Self::PART),
        }
    }
}

impl From<WaterMarks> for proto::WaterMarks {
    fn from(marks: WaterMarks) -> Self {
        Self {
            high_bytes: Some(marks.high.into()),
            low_bytes: Some(marks.low.into()),
        }
    }
}

/// Appends WritePaused and WriteResumed in turns.
#[derive(Debug)]
pub(super) struct Gauge {
    marks: WaterMarks,
    /// Whether WritePaused was appended and WriteResumed was not yet.
    paused: bool,
}

impl Gauge {
    pub(super) const fn new(marks: WaterMarks) -> Self {
        Self {
            marks,
            paused: false,
        }
    }

    /// Goes on as the gauge of an earlier life.
    pub(super) fn go_on(&mut self, cx: &mut Context<'_>, paused: bool) {
        if paused {
            // Without room, WriteResumed takes more than the journal is meant to have.
            let _ = cx.reserve();
        }
        self.paused = paused;
    }

    pub(super) const fn is_paused(&self) -> bool {
        self.paused
    }

    pub(super) const fn marks(&self) -> WaterMarks {
        self.marks
    }

    /// Reserves room for both events if writing pauses with `buffered` unsent bytes, or because a
    /// write is cut short. Returns whether it pauses; then [`Gauge::pause`] must follow.
    ///
    /// # Errors
    /// The journal has no room.
    pub(super) fn prepare(
        &self,
        cx: &mut Context<'_>,
        buffered: usize,
        is_cut: bool,
    ) -> Result<bool> {
        let pauses = !self.paused && (is_cut || buffered > self.marks.high as usize);
        if pauses {
            // Room for WritePaused, and for the WriteResumed that must follow.
            cx.reserve()?;
            cx.reserve().inspect_err(|_| cx.unreserve())?;
        }
        Ok(pauses)
    }

    /// Appends the WritePaused that was prepared.
    pub(super) fn pause(&mut self, cx: &mut Context<'_>, buffered: usize) {
        self.paused = true;
        cx.emit_reserved(Kind::WritePaused(WritePaused {
            buffered_bytes: buffered as u64,
        }));
    }

    /// Appends WriteResumed if writing was paused and so few bytes are left.
    pub(super) fn sink(&mut self, cx: &mut Context<'_>, buffered: usize) {
        if self.paused && buffered <= self.marks.low as usize {
            self.paused = false;
            cx.emit_reserved(Kind::WriteResumed(WriteResumed {
                buffered_bytes: buffered as u64,
            }));
        }
    }

    /// Moves the marks, and appends the event that follows from it.
    ///
    /// # Errors
    /// The journal has no room for it. Then the marks stay.
    pub(super) fn set(
        &mut self,
        cx: &mut Context<'_>,
        marks: WaterMarks,
        buffered: usize,
    ) -> Result<()> {
        let before = std::mem::replace(&mut self.marks, marks);
        let pauses = self.prepare(cx, buffered, false);
        match pauses.inspect_err(|_| self.marks = before)? {
            true => self.pause(cx, buffered),
            false => self.sink(cx, buffered),
        }
        Ok(())
    }
}
