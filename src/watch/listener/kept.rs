//! What later lives of the daemon need of a listener, and how they go on with it.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use super::{Accepted, Accepting, Listener, PLAIN, SocketFile, Watch, no_room};
use crate::descriptors;
use crate::driver::{Driver, Nonblocking};
use crate::proto::state::{KeptListener, KeptMode};
use crate::state::descriptor;
use crate::watch::{Context, address};

/// A listener of an earlier life.
#[derive(Debug)]
pub struct EarlierListener {
    /// Its sockets.
    pub sockets: Vec<OwnedFd>,
    /// How they avoid to block.
    pub mode: Nonblocking,
    /// What it does with connections.
    pub accepting: Accepting,
    /// The file of its Unix socket, with the device and inode by which it is known.
    pub file: Option<(PathBuf, (u64, u64))>,
    /// The connections that were accepted and not reported.
    pub unreported: Unreported,
}

/// Connections that earlier lives have accepted, for which no watch was added.
pub enum Unreported {
    /// Those that no other watch has taken once all watches go on.
    Later(Box<dyn FnOnce() -> Vec<OwnedFd> + Send>),
    /// They wait for places and room.
    Found(VecDeque<OwnedFd>),
}

impl fmt::Debug for Unreported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unreported").finish_non_exhaustive()
    }
}

impl Unreported {
    fn find(self) -> VecDeque<OwnedFd> {
        match self {
            Self::Later(find) => find().into(),
            Self::Found(found) => found,
        }
    }
}

impl EarlierListener {
    /// Builds the watch. It is not started.
    #[must_use]
    pub fn build(self) -> Box<dyn Watch> {
        let addresses = self.sockets.iter();
        let addresses = addresses.filter_map(|socket| address::local(socket.as_fd()));
        let addresses = addresses.collect();
        let mut listener = Listener::new((self.sockets, self.mode), addresses, self.accepting);
        let file = self.file;
        listener.file = file.map(|(path, inode)| SocketFile::of_earlier_life(path, inode));
        listener.unreported = Some(self.unreported);
        Box::new(listener)
    }
}

impl Listener {
    pub(super) fn kept(&self, driver: &dyn Driver) -> Option<KeptListener> {
        let sockets = self.sources.iter();
        let sockets = sockets.map(|source| descriptor(driver.fd(*source)?));
        let file = self.file.as_ref().and_then(SocketFile::inode);
        let (file_device, file_inode) = file.unwrap_or_default();
        Some(KeptListener {
            sockets: sockets.collect::<Option<_>>()?,
            mode: KeptMode::from(self.mode).into(),
            file_device,
            file_inode,
            tls: self.securing.is_some(),
            port: self
                .addresses
                .iter()
                .find_map(address::port)
                .unwrap_or_default(),
        })
    }

    /// Makes watches of the connections that earlier lives have accepted and not reported, as far as
    /// there are places and room.
    pub(super) fn report_earlier(&mut self, cx: &mut Context<'_>) {
        if cx.is_closing() || self.held {
            return;
        }
        let Some(unreported) = self.unreported.take() else {
            return;
        };
        let mut found = unreported.find();
        while let Some(places) = self.places.clone().filter(|_| !found.is_empty())
            && places.take(1) == 1
        {
            if let Err(full) = cx.grant(PLAIN, 1) {
                places.give_back(1);
                self.pause(cx, descriptors::closings(), no_room(&full));
                break;
            }
            if let Some(socket) = found.pop_front() {
                let peer = address::peer(socket.as_fd());
                self.adopt(cx, Accepted::Plain(socket), PLAIN, peer);
            }
        }
        self.unreported = (!found.is_empty()).then_some(Unreported::Found(found));
    }
}
