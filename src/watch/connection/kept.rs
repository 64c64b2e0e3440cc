//! What later lives of the daemon need of a connection, and how they go on with it.

use std::os::fd::{AsFd as _, OwnedFd};

use super::attempts::Attempts;
use super::streams::Streams;
use super::{Connection, Dialling, Phase, StreamOptions, Target};
use crate::driver::{Driver, Nonblocking};
use crate::error::{Error, Result};
use crate::proto::state::kept_watch_state::Of;
use crate::proto::state::{KeptConnection, KeptMode};
use crate::state::descriptor;
use crate::watch::{Context, Resumption, Watch};

/// A connection of an earlier life.
#[derive(Debug)]
pub struct EarlierConnection {
    /// Its socket; `None` if it is not established.
    pub socket: Option<OwnedFd>,
    /// How the socket avoids to block.
    pub mode: Nonblocking,
    /// The options of the connection.
    pub options: StreamOptions,
    /// How it is made; `None` if it is established.
    pub target: Option<Target>,
    /// The sockets of the attempts in progress, the oldest first; `None` for one that is gone.
    pub attempts: Vec<Option<OwnedFd>>,
}

impl EarlierConnection {
    /// Builds the watch. It is not started.
    #[must_use]
    pub fn build(self) -> Box<dyn Watch> {
        let options = self.options;
        Box::new(Connection::new(Phase::Earlier(Box::new(self)), options))
    }
}

impl Connection {
    pub(super) fn kept(&self, driver: &dyn Driver) -> Option<KeptConnection> {
        if self.tls.is_some() {
            return None;
        }
        let (descriptor, kept) = match &self.phase {
            Phase::Open(streams) => {
                let socket = descriptor(driver.fd(streams.input.source)?)?;
                (Some(socket), streams.kept()?)
            }
            Phase::Connecting(attempts) => {
                let attempts = Some(attempts.kept(driver));
                let kept = KeptConnection {
                    attempts,
                    ..KeptConnection::default()
                };
                (None, kept)
            }
            _ => return None,
        };
        Some(KeptConnection {
            descriptor,
            mode: KeptMode::from(self.mode).into(),
            keep_half_open: self.options.keep_half_open,
            paused: self.options.paused,
            water_marks: Some(self.options.marks.into()),
            local: self.local.clone(),
            peer: self.peer.clone(),
            ..kept
        })
    }

    /// Goes on with a connection of an earlier life.
    pub(super) fn go_on(&mut self, cx: &mut Context<'_>, mut rest: Resumption) -> Result<()> {
        let (Of::Connection(kept), Phase::Earlier(earlier)) = (
            rest.of.clone(),
            std::mem::replace(&mut self.phase, Phase::Closed),
        ) else {
            return Err(Error::Internal("what was kept is no connection"));
        };
        cx.changed();
        self.place = rest.place.take();
        let earlier = *earlier;
        let Some(socket) = earlier.socket else {
            self.try_on(cx, earlier, &kept);
            return Ok(());
        };
        let sent = Streams::sent_over(socket.as_fd(), &kept, &rest)?;
        self.mode = earlier.mode;
        let Some(source) = cx.attach(socket, earlier.mode) else {
            return Ok(());
        };
        self.connected = true;
        let of = (source, self.options);
        let streams = Streams::of_earlier_life(cx, of, sent, &kept, &rest);
        (self.local, self.peer) = (kept.local, kept.peer);
        self.phase = Phase::Open(Box::new(streams));
        self.start_streams(cx);
        Ok(())
    }

    /// Goes on with the attempts to connect.
    fn try_on(&mut self, cx: &mut Context<'_>, earlier: EarlierConnection, kept: &KeptConnection) {
        let Some(target) = earlier.target else { return };
        let before = kept.attempts.clone().unwrap_or_default();
        self.attempts_max = target.attempts();
        let attempts = match target {
            // It has no attempts.
            Target::Adopted(_) => return,
            Target::Unix(name) => {
                let mut attempts = Attempts::new(before.deadline, Dialling::default());
                let to = name.kernel().ok().map(Into::into);
                attempts.go_on(cx, &before, earlier.attempts, to.as_ref());
                attempts
            }
            Target::Tcp {
                host,
                port,
                dialling,
                owner,
            } => {
                let mut attempts = Attempts::new(before.deadline, *dialling);
                if before.resolving {
                    attempts.resolve(cx, &owner, host, port);
                }
                attempts.go_on(cx, &before, earlier.attempts, None);
                attempts
            }
        };
        self.phase = Phase::Connecting(Box::new(attempts));
        if let Phase::Connecting(attempts) = &mut self.phase {
            attempts.advance(cx);
        }
    }
}
