//! The incoming half of a byte stream.

use rustix::io::Errno;

use crate::driver::{Direction, Done, Lane, Offset, Op, SourceId};
use crate::event::Stream;
use crate::proto::state::KeptDescriptor;
use crate::watch::{Context, Resumption};

/// A pipe is widened when this many bytes are read from it at once, because its writer is fast.
const BUSY: usize = 32 * 1024;
/// The size of a widened pipe, bytes, so that fewer turns read as many bytes. The kernel's default
/// is 64 KiB.
const PIPE: usize = 256 * 1024;

/// The end of an incoming stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::watch) enum Ended {
    Eof,
    Failed(Errno),
    /// The operation was cancelled because the stream or the watch is ending.
    Cancelled,
}

/// The incoming half: reads bytes and appends them as `Data` with their offsets.
#[derive(Debug)]
pub(in crate::watch) struct Incoming {
    pub(in crate::watch) lane: Lane,
    pub(in crate::watch) source: SourceId,
    pub(in crate::watch) stream: Stream,
    pub(in crate::watch) offset: u64,
    /// Whether the client paused it.
    pub(in crate::watch) paused: bool,
    /// Whether it is paused because the journal has no room.
    pub(in crate::watch) held: bool,
    pub(in crate::watch) ended: bool,
    /// The offset before which all output of an ended child lies. The largest number while the
    /// child runs.
    pub(in crate::watch) own_end: u64,
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
    pub(in crate::watch) const fn new(
        lane: Lane,
        source: SourceId,
        stream: Stream,
        paused: bool,
    ) -> Self {
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
    pub(in crate::watch) const fn that_survives(
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
    pub(in crate::watch) const fn of_pipe(lane: Lane, source: SourceId, stream: Stream) -> Self {
        let mut new = Self::that_survives(lane, source, stream, false);
        new.widens = true;
        new
    }

    /// As [`Incoming::new`], of a terminal, which the watch reads itself when the operation reports
    /// that it is ready; then it calls [`Incoming::go_on`].
    pub(in crate::watch) const fn of_terminal(
        lane: Lane,
        source: SourceId,
        stream: Stream,
    ) -> Self {
        let mut new = Self::that_survives(lane, source, stream, false);
        new.by_readiness = true;
        new
    }

    /// Returns whether the stream is to be read now.
    pub(in crate::watch) const fn is_read(&self) -> bool {
        !self.paused && !self.held && !self.ended
    }

    /// Starts a read, unless the stream is paused, held, ended or read already.
    pub(in crate::watch) fn start(&self, cx: &mut Context<'_>) {
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
    pub(in crate::watch) fn go_on(
        &mut self,
        cx: &mut Context<'_>,
        ended: Option<Ended>,
    ) -> Option<Ended> {
        let ended = ended.or((self.ending || cx.is_cancelling()).then_some(Ended::Cancelled));
        self.ended = ended.is_some();
        self.start(cx);
        ended
    }

    pub(in crate::watch) fn pause(&mut self, cx: &mut Context<'_>, pause: bool) {
        self.paused = pause;
        if pause {
            cx.cancel(self.lane);
        } else {
            self.start(cx);
        }
    }

    /// As [`Incoming::pause`], because the journal has no room. Returns whether the stream has not
    /// ended.
    pub(in crate::watch) fn hold(&mut self, cx: &mut Context<'_>, hold: bool) -> bool {
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
    pub(in crate::watch) fn end(&mut self, cx: &mut Context<'_>) -> bool {
        self.ending = true;
        cx.cancel(self.lane);
        cx.is_live(self.lane)
    }

    /// Handles a completion of its operation. Returns whether the stream has ended with it.
    #[inline]
    pub(in crate::watch) fn complete(&mut self, cx: &mut Context<'_>, done: Done) -> Option<Ended> {
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
    pub(in crate::watch) fn deliver(&mut self, cx: &mut Context<'_>, data: &[u8]) {
        let offset = self.offset;
        self.offset += data.len() as u64;
        if self.survives {
            cx.progressed();
        }
        cx.emit_data(self.stream, offset, data);
    }

    /// Says that no later life goes on with the stream.
    pub(in crate::watch) const fn ends_with_daemon(&mut self) {
        self.survives = false;
    }

    /// Goes on with a stream of an earlier life, which was that one of the watch: appends what was taken
    /// of it and not recorded.
    pub(in crate::watch) fn take_up(
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
