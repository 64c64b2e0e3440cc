//! The two directions of an established connection, plain or with TLS.

use std::os::fd::BorrowedFd;

use bytes::Bytes;
use rustix::io::Errno;
use rustix::net::Shutdown;

use super::linger::{self, Linger};
use super::secure::{StartTls, Starting, TLS_STARTED, Tls};
use super::{IN, OUT, StreamOptions};
use crate::driver::{Done, SourceId};
use crate::error::{Error, Result, SystemError};
use crate::event::{CloseReason, Eof, Kind, Stream};
use crate::proto::state::KeptConnection;
use crate::sys;
use crate::tls::Session;
use crate::watch::transport::{Ended, Incoming, Outgoing};
use crate::watch::{Context, Progress, Resumption, Taken, Teardown};

#[derive(Debug)]
pub(super) struct Streams {
    pub(super) input: Incoming,
    pub(super) output: Outgoing,
    keep_half_open: bool,
    /// What the kernel had counted of bytes to send when the outgoing stream began.
    counted: Option<u64>,
    /// Whether shutdown(2) of the outgoing direction was called.
    shut: bool,
    /// The state of its orderly close, once that has begun.
    linger: Option<Linger>,
    pub(super) tls: Option<Box<Tls>>,
    /// The start of TLS in mid-stream, until nothing is under way in the clear.
    pub(super) starting: Option<Box<Starting>>,
}

impl Streams {
    pub(super) fn new(cx: &Context<'_>, source: SourceId, options: StreamOptions) -> Self {
        let counted = cx.fd(source).and_then(sys::bytes_taken_to_send);
        Self::counted_from(source, options, counted)
    }

    fn counted_from(source: SourceId, options: StreamOptions, counted: Option<u64>) -> Self {
        let mut output = Outgoing::that_survives(OUT, source, options.marks);
        if counted.is_some() {
            output.is_counted();
        }
        Self {
            input: Incoming::that_survives(IN, source, Stream::Input, options.paused),
            output,
            keep_half_open: options.keep_half_open,
            counted,
            shut: false,
            linger: None,
            tls: None,
            starting: None,
        }
    }

    /// Returns what later lives need beside the socket and its options; `None` if they do not go on.
    pub(super) fn kept(&self) -> Option<KeptConnection> {
        (self.tls.is_none() && self.starting.is_none()).then(|| KeptConnection {
            input_ended: self.input.ended,
            output_ended: self.output.eof,
            shut: self.shut,
            counted_before: self.counted,
            ..KeptConnection::default()
        })
    }

    pub(super) fn progress(&self) -> Progress {
        Progress {
            received: [self.input.offset, 0],
            ..self.output.progress()
        }
    }

    /// Returns how many bytes of the outgoing stream an earlier life has sent over this socket.
    ///
    /// # Errors
    /// Nothing tells.
    pub(super) fn sent_over(
        socket: BorrowedFd<'_>,
        kept: &KeptConnection,
        rest: &Resumption,
    ) -> Result<u64> {
        let progress = rest.progress;
        match kept.counted_before {
            // The end of the stream counts as well.
            Some(_) if kept.shut => Ok(progress.taken),
            Some(before) => {
                let unknown = Error::wrong_state("its socket does not tell what it has taken");
                let now = sys::bytes_taken_to_send(socket).ok_or(unknown)?;
                let sent = now.saturating_sub(before);
                Ok(sent.clamp(progress.sent, progress.taken.max(progress.sent)))
            }
            None => rest.sent(kept.descriptor.as_ref()),
        }
    }

    /// Goes on with the streams of an earlier life, of which `sent` bytes are sent.
    pub(super) fn of_earlier_life(
        cx: &mut Context<'_>,
        (source, options): (SourceId, StreamOptions),
        sent: u64,
        kept: &KeptConnection,
        rest: &Resumption,
    ) -> Self {
        let mut streams = Self::counted_from(source, options, kept.counted_before);
        streams.input.ended = kept.input_ended;
        let from = kept.descriptor.as_ref();
        streams.input.take_up(cx, from, 0, rest);
        streams.output.eof = kept.output_ended;
        streams.shut = kept.shut;
        streams.output.go_on(cx, sent, rest);
        streams
    }

    /// Goes on with a source whose handshake is complete.
    pub(super) fn secure(&mut self, cx: &mut Context<'_>, source: SourceId, session: Session) {
        (self.input.source, self.output.source) = (source, source);
        self.input.ends_with_daemon();
        self.output.ends_with_daemon();
        cx.changed();
        self.output.encode();
        self.tls = Some(Box::new(Tls::new(cx, session)));
    }

    /// Starts to read, and to send what waits.
    pub(super) fn start(&mut self, cx: &mut Context<'_>) {
        self.read_on(cx);
        self.pump(cx);
        self.close_if_ended(cx);
    }

    /// Appends what has arrived with the handshake, then reads.
    fn read_on(&mut self, cx: &mut Context<'_>) {
        if self.input.paused || self.input.held {
            return;
        }
        if let Some(tls) = &mut self.tls {
            if !tls.deliver_rest(cx, &mut self.input) {
                return;
            }
            if tls.session.has_ended() {
                self.peer_ended(cx);
                return;
            }
        }
        self.input.start(cx);
    }

    pub(super) fn hold(&mut self, cx: &mut Context<'_>, hold: bool) -> bool {
        // Input is dropped during a linger, so it takes no room.
        if self.linger.is_some() {
            return false;
        }
        self.input.held = hold;
        self.read_or_stop(cx, hold);
        !self.input.ended
    }

    pub(super) fn pause(&mut self, cx: &mut Context<'_>, pause: bool) {
        self.input.paused = pause;
        self.read_or_stop(cx, pause);
        self.close_if_ended(cx);
    }

    fn read_or_stop(&mut self, cx: &mut Context<'_>, stop: bool) {
        if self.starting.is_some() || self.linger.is_some() {
            // Nothing is read until the handshake is complete, or appended any more.
        } else if stop {
            cx.cancel(IN);
        } else {
            self.read_on(cx);
        }
    }

    pub(super) fn write(
        &mut self,
        cx: &mut Context<'_>,
        data: Bytes,
        at: Option<u64>,
    ) -> Result<Taken> {
        let taken = self.output.write(cx, data, at)?;
        self.pump(cx);
        Ok(taken)
    }

    pub(super) fn write_eof(&mut self, cx: &mut Context<'_>) {
        cx.changed();
        self.output.eof = true;
        self.close_if_ended(cx);
    }

    /// Handles a completion of the incoming direction.
    pub(super) fn received(&mut self, cx: &mut Context<'_>, done: Done) {
        if let (Done::Ready(found), Some(linger)) = (&done, &mut self.linger) {
            linger.ready(cx, self.input.source, *found);
        } else if let Some(starting) = &mut self.starting {
            starting.received(cx, &mut self.input, &done);
        } else if self.tls.is_some() {
            self.received_encrypted(cx, done);
        } else {
            match self.input.complete(cx, done) {
                Some(Ended::Eof) => self.input_ended(cx),
                Some(Ended::Failed(errno)) => fail_now(cx, errno, "read"),
                Some(Ended::Cancelled) => self.listen(cx),
                None => return,
            }
        }
        self.close_if_ended(cx);
    }

    fn listen(&self, cx: &mut Context<'_>) {
        if let Some(linger) = &self.linger {
            linger.listen(cx, self.input.source);
        }
    }

    /// Reports the end of the incoming bytes, and of the connection below them.
    fn input_ended(&mut self, cx: &mut Context<'_>) {
        cx.changed();
        self.input.ended = true;
        let offset = self.input.offset;
        cx.emit(Kind::Eof(Eof { offset }));
        if let Some(linger) = &mut self.linger {
            linger.peer_ended = true;
        }
    }

    fn received_encrypted(&mut self, cx: &mut Context<'_>, done: Done) {
        match done {
            // What follows the end of the data has no meaning.
            Done::Data(_) if self.input.ended => {}
            Done::Data(data) => self.decrypt(cx, &data),
            Done::Eof | Done::Failed(_) if self.input.ended => {
                if let Some(linger) = &mut self.linger {
                    linger.peer_ended = true;
                }
            }
            Done::Eof => self.connection_ended(cx),
            Done::Failed(errno) => {
                let broken = self.tls.as_ref().and_then(|tls| tls.broken);
                match broken {
                    Some(errno) => fail_now(cx, errno, "write"),
                    None => fail_now(cx, errno, "read"),
                }
            }
            other => {
                if self.input.complete(cx, other) == Some(Ended::Cancelled) {
                    self.listen(cx);
                }
            }
        }
    }

    fn decrypt(&mut self, cx: &mut Context<'_>, wire: &[u8]) {
        let Some(tls) = &mut self.tls else { return };
        match tls.decrypt(cx, &mut self.input, wire) {
            Err(error) => self.fail_secured(cx, &error),
            Ok(()) => {
                let ended = tls.session.has_ended();
                self.pump(cx);
                if ended {
                    self.peer_ended(cx);
                }
            }
        }
    }

    /// Handles the peer's close_notify.
    fn peer_ended(&mut self, cx: &mut Context<'_>) {
        self.input.ended = true;
        let offset = self.input.offset;
        cx.emit(Kind::Eof(Eof { offset }));
        self.input.end(cx);
        if let Some(errno) = self.tls.as_ref().and_then(|tls| tls.broken) {
            self.cannot_send(cx, errno);
        }
    }

    /// Handles the end of the connection below TLS without close_notify.
    fn connection_ended(&mut self, cx: &mut Context<'_>) {
        let tls = self.tls.as_ref();
        if let Some(errno) = tls.and_then(|tls| tls.broken) {
            fail_now(cx, errno, "write");
        } else if tls.is_some_and(|tls| tls.session.allows_truncation()) || self.linger.is_some() {
            self.input_ended(cx);
        } else {
            self.input.ended = true;
            cx.close(CloseReason::Truncated);
        }
    }

    /// Ends the connection because of an error of TLS, and tells the peer.
    fn fail_secured(&mut self, cx: &mut Context<'_>, error: &SystemError) {
        if let Some(tls) = &mut self.tls {
            tls.refused = tls.session.was_refused(error);
            if self.output.encoded() == 0 {
                tls.send_last(cx, self.input.source);
            }
        }
        self.input.ended = true;
        cx.close_with_error(error.clone());
        cx.finish();
    }

    /// Handles a completion of the outgoing direction.
    pub(super) fn sent(&mut self, cx: &mut Context<'_>, done: &Done) {
        match (self.output.complete(cx, done), &mut self.tls) {
            (Ok(()), _) => self.pump(cx),
            // The peer may have sent an alert that says why, so what it sent is read first.
            (Err(errno), Some(tls))
                if !self.input.ended && cx.is_live(IN) && self.linger.is_none() =>
            {
                tls.broken = Some(errno);
            }
            (Err(errno), _) => self.cannot_send(cx, errno),
        }
        self.close_if_ended(cx);
    }

    /// Handles that the kernel takes no more bytes.
    fn cannot_send(&mut self, cx: &mut Context<'_>, errno: Errno) {
        let closes = self.output.eof || !self.keep_half_open;
        if self.input.ended && closes && self.output.buffered() == 0 && self.linger.is_none() {
            // Both streams are complete. Only close_notify is left, which a peer that is gone does
            // not need.
            self.output.close();
        } else {
            fail_now(cx, errno, "write");
        }
    }

    /// Encrypts what waits to be sent.
    fn pump(&mut self, cx: &mut Context<'_>) {
        if let Some(tls) = &mut self.tls {
            tls.pump(cx, &mut self.output);
        }
    }

    /// Sends the end of the outgoing stream, and closes the connection, as far as its directions
    /// have ended.
    fn close_if_ended(&mut self, cx: &mut Context<'_>) {
        if self.starting.is_some() {
            // What ends the streams is encrypted.
            return;
        }
        if cx.is_closing() && self.linger.is_none() {
            // The connection was aborted, is broken, or its socket was taken: the socket is left as
            // it is.
            return;
        }
        if self.input.ended && !self.keep_half_open && !self.output.eof {
            cx.changed();
            self.output.eof = true;
        }
        if self.output.eof {
            self.pump(cx);
        }
        if !self.output.is_finished() {
            return;
        }
        if !self.shut {
            cx.changed();
            self.shut = true;
            if let Some(fd) = cx.fd(self.output.source) {
                // This fails if the peer is gone, which the incoming stream reports.
                let _ = rustix::net::shutdown(fd, Shutdown::Write);
            }
        }
        match &self.linger {
            None if self.input.ended => cx.close(CloseReason::Completed),
            Some(linger) if linger.peer_ended => cx.finish(),
            _ => {}
        }
    }

    /// Begins TLS in mid-stream: the bytes that were taken so far are sent in the clear, and nothing
    /// more is read in the clear.
    pub(super) fn start_tls(&mut self, cx: &mut Context<'_>, order: StartTls) -> Result<()> {
        if self.tls.is_some() || self.starting.is_some() {
            return Err(Error::wrong_state("the connection has TLS already"));
        }
        if self.output.eof || self.input.ended {
            return Err(Error::wrong_state(
                "one direction of the connection has ended",
            ));
        }
        let starting = Starting::check(cx, order, self.input.offset)?;
        cx.reserve_event(TLS_STARTED)?;
        self.starting = Some(Box::new(starting));
        self.output.hold_back();
        cx.cancel(IN);
        Ok(())
    }

    /// Looks whether the orderly close may complete.
    pub(super) fn look(&mut self, cx: &mut Context<'_>) {
        let sent = self.output.is_finished();
        if let Some(linger) = &mut self.linger
            && linger.is_over(cx, self.input.source, sent)
        {
            cx.finish();
        }
    }

    /// Begins the orderly close, which may take until `deadline`, in nanoseconds of the monotonic
    /// clock.
    pub(super) fn closing(&mut self, cx: &mut Context<'_>, deadline: u64) -> Teardown {
        let source = self.input.source;
        self.starting = None;
        self.output.eof = true;
        self.pump(cx);
        if self.output.is_finished() && linger::is_idle(cx, source) {
            return Teardown::Now;
        }
        let mut linger = Linger::until(deadline, self.input.ended);
        if !self.input.ended && !self.input.end(cx) {
            self.input.ended = true;
            linger.listen(cx, source);
        }
        if linger.is_over(cx, source, false) {
            return Teardown::Now;
        }
        self.linger = Some(linger);
        self.close_if_ended(cx);
        Teardown::Later
    }

    /// Returns the bytes that were taken and never sent, or that the peer refused.
    pub(super) fn closed(&mut self, cx: &mut Context<'_>) -> u64 {
        let sent = self.output.encoded() == 0;
        let mut unsent = self.output.close();
        let in_order = cx.ends_in_order();
        if let Some(mut tls) = self.tls.take() {
            if tls.refused {
                unsent = self.output.taken;
            }
            if in_order && sent && unsent == 0 {
                // On a stopped loop nothing was sent since the close began.
                tls.send_end(cx, self.output.source);
            }
            tls.closed(cx);
        }
        if in_order {
            linger::drop_unread(cx, self.input.source);
        }
        unsent
    }
}

/// Ends the watch with an error. If it is ending already, ends it now.
fn fail_now(cx: &mut Context<'_>, errno: Errno, step: &'static str) {
    cx.fail(errno, step);
    cx.finish();
}
