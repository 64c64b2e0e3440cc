//! The outgoing half of a byte stream.

use std::collections::VecDeque;

use bytes::Bytes;
use rustix::io::Errno;

use crate::driver::{Done, Lane, Offset, Op, Outbound, SourceId};
use crate::error::{Error, Result};
use crate::watch::water::{Gauge, WaterMarks};
use crate::watch::{Context, Progress, Resumption, Taken, Unsent};

/// Returns those bytes of `data` that come after the `taken` ones of the stream. `at` is the offset of
/// `data`, `None` the end of the taken bytes.
///
/// # Errors
/// `at` leaves a hole.
pub(in crate::watch) fn fresh(mut data: Bytes, at: Option<u64>, taken: u64) -> Result<Bytes> {
    let offset = at.unwrap_or(taken);
    if offset > taken {
        return Err(Error::WriteHole { offset, taken });
    }
    let known = usize::try_from(taken - offset).unwrap_or(usize::MAX);
    Ok(data.split_off(known.min(data.len())))
}

/// What is done with the bytes before they are sent.
#[derive(Debug)]
enum Encoding {
    /// They are sent as they are.
    Plain,
    /// So many more are sent as they are; those after them wait.
    PlainUntil(usize),
    /// They are encoded by somebody else, and these are, the oldest first.
    Encoded(VecDeque<Encoded>),
}

/// Bytes as they go over the wire.
#[derive(Debug)]
struct Encoded {
    wire: Bytes,
    /// The number of bytes of the stream that they stand for.
    plain: usize,
}

/// The outgoing half: sends bytes in order, as fast as the kernel takes them.
#[derive(Debug)]
pub(in crate::watch) struct Outgoing {
    pub(in crate::watch) lane: Lane,
    pub(in crate::watch) source: SourceId,
    queue: VecDeque<Bytes>,
    buffered: usize,
    pub(in crate::watch) taken: u64,
    gauge: Gauge,
    /// Whether the stream was ended, so that it takes no more bytes.
    pub(in crate::watch) eof: bool,
    encoding: Encoding,
    /// Whether later lives go on with it.
    survives: bool,
    /// Whether the kernel counts what it takes of it.
    counted: bool,
}

impl Outgoing {
    pub(in crate::watch) const fn new(lane: Lane, source: SourceId, marks: WaterMarks) -> Self {
        Self {
            lane,
            source,
            queue: VecDeque::new(),
            buffered: 0,
            taken: 0,
            gauge: Gauge::new(marks),
            eof: false,
            encoding: Encoding::Plain,
            survives: false,
            counted: false,
        }
    }

    /// As [`Outgoing::new`], of a stream with which later lives go on.
    pub(in crate::watch) const fn that_survives(
        lane: Lane,
        source: SourceId,
        marks: WaterMarks,
    ) -> Self {
        let mut new = Self::new(lane, source, marks);
        new.survives = true;
        new
    }

    /// Says that the kernel counts what it takes of a stream with which later lives go on: it needs no
    /// receipts.
    pub(in crate::watch) const fn is_counted(&mut self) {
        self.counted = true;
    }

    /// Says that no later life goes on with the stream.
    pub(in crate::watch) const fn ends_with_daemon(&mut self) {
        self.survives = false;
    }

    /// Goes on with a stream of an earlier life, of which `sent` bytes are sent.
    pub(in crate::watch) fn go_on(&mut self, cx: &mut Context<'_>, sent: u64, rest: &Resumption) {
        let mut at = sent;
        for (offset, bytes) in &rest.unsent {
            let known = usize::try_from(at.saturating_sub(*offset)).unwrap_or(usize::MAX);
            if known < bytes.len() {
                let rest = bytes.slice(known..);
                at += rest.len() as u64;
                self.buffered += rest.len();
                self.queue.push_back(rest);
            }
        }
        self.taken = rest.progress.taken;
        self.gauge.go_on(cx, rest.progress.write_paused);
        self.gauge.sink(cx, self.buffered);
        self.send(cx);
    }

    /// Returns how many bytes are sent.
    pub(in crate::watch) const fn sent(&self) -> u64 {
        self.taken - self.buffered as u64
    }

    /// Returns what is to be sent, if later lives go on with it.
    pub(in crate::watch) fn unsent(&self) -> Option<Unsent<'_>> {
        self.survives.then(|| Unsent {
            sent: self.sent(),
            queue: &self.queue,
        })
    }

    /// Returns how far it is, of a watch without an incoming stream.
    pub(in crate::watch) fn progress(&self) -> Progress {
        Progress {
            received: [0; 2],
            relayed: 0,
            taken: self.taken,
            sent: self.sent(),
            write_paused: self.gauge.is_paused(),
        }
    }

    pub(in crate::watch) const fn buffered(&self) -> u64 {
        self.buffered as u64
    }

    /// Takes as much of `data` as there is room for. `at` is its offset in the stream, `None` the
    /// end.
    pub(in crate::watch) fn write(
        &mut self,
        cx: &mut Context<'_>,
        data: Bytes,
        at: Option<u64>,
    ) -> Result<Taken> {
        let mut fresh = fresh(data, at, self.taken)?;
        if self.eof && !fresh.is_empty() {
            return Err(Error::wrong_state(
                "the outgoing stream was ended by WriteEof",
            ));
        }
        let limits = cx.services.transport;
        let room = limits.write_buffer.saturating_sub(self.buffered);
        let is_cut = fresh.len() > room;
        if is_cut {
            // Copied, because a slice would keep the whole request in memory.
            fresh = Bytes::copy_from_slice(&fresh[..room]);
        }
        // Whoever is told that not all was taken waits for WriteResumed.
        let pauses = self
            .gauge
            .prepare(cx, self.buffered + fresh.len(), is_cut)?;
        if self.survives {
            cx.progressed();
        }
        if !fresh.is_empty() {
            self.taken += fresh.len() as u64;
            self.buffered += fresh.len();
            self.queue.push_back(fresh);
            self.send(cx);
        }
        if pauses {
            self.gauge.pause(cx, self.buffered);
        }
        Ok(Taken {
            taken: self.taken,
            buffered: self.buffered(),
        })
    }

    /// Starts to send, if there is something to send and nothing is being sent.
    pub(in crate::watch) fn send(&mut self, cx: &mut Context<'_>) {
        if cx.is_live(self.lane) {
            return;
        }
        let next = match &self.encoding {
            Encoding::Plain => self.queue.front(),
            Encoding::PlainUntil(0) => None,
            // The limit lies between two elements of the queue.
            Encoding::PlainUntil(_) => self.queue.front(),
            Encoding::Encoded(chunks) => chunks.front().map(|chunk| &chunk.wire),
        };
        if let Some(next) = next {
            let bytes = next.clone();
            let offset = match self.survives && !self.counted {
                true => Offset::at(self.sent()),
                false => Offset::NONE,
            };
            let send = Op::Send(Box::new(Outbound { bytes, offset }));
            cx.start(self.lane, self.source, send);
        }
    }

    /// Sends the bytes that were taken so far, and holds back those that are taken from now on.
    pub(in crate::watch) fn hold_back(&mut self) {
        self.encoding = Encoding::PlainUntil(self.buffered);
    }

    /// Returns whether all bytes are sent that are not held back.
    pub(in crate::watch) const fn is_held_back(&self) -> bool {
        matches!(self.encoding, Encoding::PlainUntil(0))
    }

    /// Sends from now on what [`Outgoing::push_encoded`] gives it.
    pub(in crate::watch) fn encode(&mut self) {
        self.encoding = Encoding::Encoded(VecDeque::new());
    }

    /// Moves up to `most` bytes that wait to be encoded to the end of `onto`.
    pub(in crate::watch) fn pull(&mut self, onto: &mut Vec<u8>, most: usize) {
        let end = onto.len() + most;
        while onto.len() < end
            && let Some(front) = self.queue.front_mut()
        {
            let taken = front.split_to(front.len().min(end - onto.len()));
            onto.extend_from_slice(&taken);
            if front.is_empty() {
                self.queue.pop_front();
            }
        }
    }

    /// Adds encoded bytes, which stand for `plain` bytes of the stream.
    pub(in crate::watch) fn push_encoded(&mut self, wire: Vec<u8>, plain: usize) {
        if let Encoding::Encoded(chunks) = &mut self.encoding
            && !wire.is_empty()
        {
            let wire = wire.into();
            chunks.push_back(Encoded { wire, plain });
        }
    }

    /// Returns how many chunks of encoded bytes wait to be sent.
    pub(in crate::watch) fn encoded(&self) -> usize {
        match &self.encoding {
            Encoding::Encoded(chunks) => chunks.len(),
            Encoding::Plain | Encoding::PlainUntil(_) => 0,
        }
    }

    /// Takes the sent bytes from the front.
    fn advance(&mut self, sent: usize) {
        if let Encoding::Encoded(chunks) = &mut self.encoding {
            if let Some(front) = chunks.front_mut() {
                let _ = front.wire.split_to(sent.min(front.wire.len()));
                if front.wire.is_empty() {
                    self.buffered -= front.plain;
                    chunks.pop_front();
                }
            }
            return;
        }
        if let Encoding::PlainUntil(left) = &mut self.encoding {
            *left = left.saturating_sub(sent);
        }
        self.buffered -= sent;
        if let Some(front) = self.queue.front_mut() {
            let _ = front.split_to(sent.min(front.len()));
            if front.is_empty() {
                self.queue.pop_front();
            }
        }
    }

    /// Handles a completion of the send.
    ///
    /// # Errors
    /// The send failed.
    pub(in crate::watch) fn complete(
        &mut self,
        cx: &mut Context<'_>,
        done: &Done,
    ) -> Result<(), Errno> {
        match *done {
            Done::Sent(sent) => {
                self.advance(sent);
                if self.survives {
                    cx.progressed();
                }
                self.gauge.sink(cx, self.buffered);
                self.send(cx);
                Ok(())
            }
            Done::Failed(errno) => Err(errno),
            _ => Ok(()),
        }
    }

    /// Drops the unsent bytes and returns how many they are. They stay counted as
    /// [buffered](Self::buffered).
    pub(in crate::watch) fn close(&mut self) -> u64 {
        self.queue = VecDeque::new();
        if let Encoding::Encoded(chunks) = &mut self.encoding {
            *chunks = VecDeque::new();
        }
        self.buffered()
    }

    /// Returns the water marks.
    pub(in crate::watch) const fn marks(&self) -> WaterMarks {
        self.gauge.marks()
    }

    /// Moves the water marks, see [`Gauge::set`].
    pub(in crate::watch) fn set_marks(
        &mut self,
        cx: &mut Context<'_>,
        marks: WaterMarks,
    ) -> Result<()> {
        self.gauge.set(cx, marks, self.buffered)
    }

    /// Returns whether all bytes that were taken are sent, or are held back, and the stream was ended.
    pub(in crate::watch) fn is_finished(&self) -> bool {
        let sent = match &self.encoding {
            Encoding::Plain => self.buffered == 0,
            Encoding::PlainUntil(left) => *left == 0,
            Encoding::Encoded(chunks) => self.buffered == 0 && chunks.is_empty(),
        };
        self.eof && sent
    }
}
