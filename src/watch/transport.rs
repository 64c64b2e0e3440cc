//! The incoming and the outgoing half of a byte stream, used by connections, pipes and child
//! processes.

use std::collections::VecDeque;

use bytes::Bytes;
use rustix::io::Errno;

use super::water::{Gauge, WaterMarks};
use super::{Context, Progress, Resumption, Taken, Unsent};
use crate::driver::{Direction, Done, Lane, Offset, Op, Outbound, SourceId};
use crate::error::{Error, Result};
use crate::event::Stream;
use crate::proto::state::KeptDescriptor;

/// A pipe is widened when this many bytes are read from it at once, because its writer is fast.
const BUSY: usize = 32 * 1024;
/// The size of a widened pipe, bytes, so that fewer turns read as many bytes. The kernel's default
/// is 64 KiB.
const PIPE: usize = 256 * 1024;

/// The end of an incoming stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Eof,
    Failed(Errno),
    /// The operation was cancelled because the stream or the watch is ending.
    Cancelled,
}

/// The incoming half: reads bytes and appends them as `Data` with their offsets.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) lane: Lane,
    pub(super) source: SourceId,
    pub(super) stream: Stream,
    pub(super) offset: u64,
    /// Whether the client paused it.
    pub(super) paused: bool,
    /// Whether it is paused because the journal has no room.
    pub(super) held: bool,
    pub(super) ended: bool,
    /// The offset before which all output of an ended child lies. The largest number while the
    /// child runs.
    pub(super) own_end: u64,
    /// Whether the stream ends once its operation is cancelled.
    ending: bool,
    /// Whether the source is a pipe that may be widened.
    widens: bool,
    /// Whether later lives go on with it.
    survives: bool,
    /// Whether the driver only waits for bytes, and the watch reads them.
    by_readiness: bool,
}

impl Incoming {
    pub(super) const fn new(lane: Lane, source: SourceId, stream: Stream, paused: bool) -> Self {
        Self {
            lane,
            source,
            stream,
            offset: 0,
            paused,
            held: false,
            ended: false,
            own_end: u64::MAX,
            ending: false,
            widens: false,
            survives: false,
            by_readiness: false,
        }
    }

    /// As [`Incoming::new`], of a stream with which later lives go on.
    pub(super) const fn that_survives(
        lane: Lane,
        source: SourceId,
        stream: Stream,
        paused: bool,
    ) -> Self {
        let mut new = Self::new(lane, source, stream, paused);
        new.survives = true;
        new
    }

    /// As [`Incoming::that_survives`], of a pipe that the daemon has made.
    pub(super) const fn of_pipe(lane: Lane, source: SourceId, stream: Stream) -> Self {
        let mut new = Self::that_survives(lane, source, stream, false);
        new.widens = true;
        new
    }

    /// As [`Incoming::new`], of a terminal, which the watch reads itself when the operation reports
    /// that it is ready; then it calls [`Incoming::go_on`].
    pub(super) const fn of_terminal(lane: Lane, source: SourceId, stream: Stream) -> Self {
        let mut new = Self::new(lane, source, stream, false);
        new.by_readiness = true;
        new
    }

    /// Returns whether the stream is to be read now.
    pub(super) const fn is_read(&self) -> bool {
        !self.paused && !self.held && !self.ended
    }

    /// Starts a read, unless the stream is paused, held, ended or read already.
    pub(super) fn start(&self, cx: &mut Context<'_>) {
        if self.is_read() && !cx.is_live(self.lane) {
            let max = u32::try_from(cx.services.transport.read_size).unwrap_or(u32::MAX);
            let read = if self.by_readiness {
                Op::Ready(Direction::Read)
            } else {
                Op::Recv {
                    max,
                    offset: if self.survives {
                        Offset::at(self.offset)
                    } else {
                        Offset::NONE
                    },
                }
            };
            cx.start(self.lane, self.source, read);
        }
    }

    /// Waits for more bytes after the watch has read some itself, or ends if `ended` says so or the
    /// end of the stream was requested. Returns whether it has ended.
    pub(super) fn go_on(&mut self, cx: &mut Context<'_>, ended: Option<Ended>) -> Option<Ended> {
        let ended = ended.or((self.ending || cx.is_cancelling()).then_some(Ended::Cancelled));
        self.ended = ended.is_some();
        self.start(cx);
        ended
    }

    pub(super) fn pause(&mut self, cx: &mut Context<'_>, pause: bool) {
        self.paused = pause;
        if pause {
            cx.cancel(self.lane);
        } else {
            self.start(cx);
        }
    }

    /// As [`Incoming::pause`], because the journal has no room. Returns whether the stream has not
    /// ended.
    pub(super) fn hold(&mut self, cx: &mut Context<'_>, hold: bool) -> bool {
        self.held = hold;
        if hold {
            cx.cancel(self.lane);
        } else {
            self.start(cx);
        }
        !self.ended
    }

    /// Requests the end of the stream. Returns false if it has no live operation: then no
    /// completion will follow, and the stream ends with this call.
    pub(super) fn end(&mut self, cx: &mut Context<'_>) -> bool {
        self.ending = true;
        cx.cancel(self.lane);
        cx.is_live(self.lane)
    }

    /// Handles a completion of its operation. Returns whether the stream has ended with it.
    #[inline]
    pub(super) fn complete(&mut self, cx: &mut Context<'_>, done: Done) -> Option<Ended> {
        let ended = match done {
            Done::Data(data) => {
                self.deliver(cx, &data);
                if self.widens && data.len() >= BUSY {
                    self.widen(cx);
                }
                return None;
            }
            Done::Eof => Ended::Eof,
            Done::Failed(errno) => Ended::Failed(errno),
            Done::Cancelled if self.ending || cx.is_cancelling() => Ended::Cancelled,
            // The read was cancelled by a pause, or by one that was resumed before the cancellation
            // completed.
            _ => {
                self.start(cx);
                return None;
            }
        };
        self.ended = true;
        Some(ended)
    }

    /// Appends bytes of the stream as `Data`.
    #[inline]
    pub(super) fn deliver(&mut self, cx: &mut Context<'_>, data: &[u8]) {
        let offset = self.offset;
        self.offset += data.len() as u64;
        if self.survives {
            cx.progressed();
        }
        cx.emit_data(self.stream, offset, data);
    }

    /// Says that no later life goes on with the stream.
    pub(super) const fn ends_with_daemon(&mut self) {
        self.survives = false;
    }

    /// Goes on with a stream of an earlier life, which was that one of the watch: appends what was taken
    /// of it and not recorded.
    pub(super) fn take_up(
        &mut self,
        cx: &mut Context<'_>,
        from: Option<&KeptDescriptor>,
        index: usize,
        rest: &Resumption,
    ) {
        self.offset = rest.progress.received[index];
        let Some(from) = from else { return };
        for bytes in rest.unrecorded_of(from, self.offset) {
            self.deliver(cx, bytes);
        }
    }

    #[cold]
    fn widen(&mut self, cx: &Context<'_>) {
        self.widens = false;
        if let Some(pipe) = cx.fd(self.source) {
            // Fails beyond the user's limit for pipes: then the size stays as it is.
            let _ = rustix::pipe::fcntl_setpipe_size(pipe, PIPE);
        }
    }
}

/// Returns those bytes of `data` that come after the `taken` ones of the stream. `at` is the offset of
/// `data`, `None` the end of the taken bytes.
///
/// # Errors
/// `at` leaves a hole.
pub(super) fn fresh(mut data: Bytes, at: Option<u64>, taken: u64) -> Result<Bytes> {
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
pub(super) struct Outgoing {
    pub(super) lane: Lane,
    pub(super) source: SourceId,
    queue: VecDeque<Bytes>,
    buffered: usize,
    pub(super) taken: u64,
    gauge: Gauge,
    /// Whether the stream was ended, so that it takes no more bytes.
    pub(super) eof: bool,
    encoding: Encoding,
    /// Whether later lives go on with it.
    survives: bool,
    /// Whether the kernel counts what it takes of it.
    counted: bool,
}

impl Outgoing {
    pub(super) const fn new(lane: Lane, source: SourceId, marks: WaterMarks) -> Self {
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
    pub(super) const fn that_survives(lane: Lane, source: SourceId, marks: WaterMarks) -> Self {
        let mut new = Self::new(lane, source, marks);
        new.survives = true;
        new
    }

    /// Says that the kernel counts what it takes of a stream with which later lives go on: it needs no
    /// receipts.
    pub(super) const fn is_counted(&mut self) {
        self.counted = true;
    }

    /// Says that no later life goes on with the stream.
    pub(super) const fn ends_with_daemon(&mut self) {
        self.survives = false;
    }

    /// Goes on with a stream of an earlier life, of which `sent` bytes are sent.
    pub(super) fn go_on(&mut self, cx: &mut Context<'_>, sent: u64, rest: &Resumption) {
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
    pub(super) const fn sent(&self) -> u64 {
        self.taken - self.buffered as u64
    }

    /// Returns what is to be sent, if later lives go on with it.
    pub(super) fn unsent(&self) -> Option<Unsent<'_>> {
        self.survives.then(|| Unsent {
            sent: self.sent(),
            queue: &self.queue,
        })
    }

    /// Returns how far it is, of a watch without an incoming stream.
    pub(super) fn progress(&self) -> Progress {
        Progress {
            received: [0; 2],
            taken: self.taken,
            sent: self.sent(),
            write_paused: self.gauge.is_paused(),
        }
    }

    pub(super) const fn buffered(&self) -> u64 {
        self.buffered as u64
    }

    /// Takes as much of `data` as there is room for. `at` is its offset in the stream, `None` the
    /// end.
    pub(super) fn write(
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
    pub(super) fn send(&mut self, cx: &mut Context<'_>) {
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
    pub(super) fn hold_back(&mut self) {
        self.encoding = Encoding::PlainUntil(self.buffered);
    }

    /// Returns whether all bytes are sent that are not held back.
    pub(super) const fn is_held_back(&self) -> bool {
        matches!(self.encoding, Encoding::PlainUntil(0))
    }

    /// Sends from now on what [`Outgoing::push_encoded`] gives it.
    pub(super) fn encode(&mut self) {
        self.encoding = Encoding::Encoded(VecDeque::new());
    }

    /// Moves up to `most` bytes that wait to be encoded to the end of `onto`.
    pub(super) fn pull(&mut self, onto: &mut Vec<u8>, most: usize) {
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
    pub(super) fn push_encoded(&mut self, wire: Vec<u8>, plain: usize) {
        if let Encoding::Encoded(chunks) = &mut self.encoding
            && !wire.is_empty()
        {
            let wire = wire.into();
            chunks.push_back(Encoded { wire, plain });
        }
    }

    /// Returns how many chunks of encoded bytes wait to be sent.
    pub(super) fn encoded(&self) -> usize {
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
    pub(super) fn complete(&mut self, cx: &mut Context<'_>, done: &Done) -> Result<(), Errno> {
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
    pub(super) fn close(&mut self) -> u64 {
        self.queue = VecDeque::new();
        if let Encoding::Encoded(chunks) = &mut self.encoding {
            *chunks = VecDeque::new();
        }
        self.buffered()
    }

    /// Returns the water marks.
    pub(super) const fn marks(&self) -> WaterMarks {
        self.gauge.marks()
    }

    /// Moves the water marks, see [`Gauge::set`].
    pub(super) fn set_marks(&mut self, cx: &mut Context<'_>, marks: WaterMarks) -> Result<()> {
        self.gauge.set(cx, marks, self.buffered)
    }

    /// Returns whether all bytes that were taken are sent, or are held back, and the stream was ended.
    pub(super) fn is_finished(&self) -> bool {
        let sent = match &self.encoding {
            Encoding::Plain => self.buffered == 0,
            Encoding::PlainUntil(left) => *left == 0,
            Encoding::Encoded(chunks) => self.buffered == 0 && chunks.is_empty(),
        };
        self.eof && sent
    }
}
