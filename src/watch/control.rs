//! The part of a loop's record of a watch that the watch changes, and what follows from a call of it.

use std::any::Any;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use super::{Need, Reaping, Services, Sources, Watch};
use crate::driver::Key;
use crate::error::SystemError;
use crate::event::{CloseReason, FailedAttempt, Stream};
use crate::faults::{self, Point};
use crate::journal::About;
use crate::proto;
use crate::proto::state::KeptDescriptor;
use crate::state::Start;

/// The reason for the end of a watch.
#[derive(Debug, Clone)]
pub struct End {
    /// The reason.
    pub reason: CloseReason,
    /// The error of the system, with [`CloseReason::Error`].
    pub error: Option<SystemError>,
    /// The attempts to connect, if none of them succeeded.
    pub failed_attempts: Vec<FailedAttempt>,
}

impl End {
    /// Returns the end of a watch that has done its work.
    #[must_use]
    pub fn completed() -> Self {
        Self {
            reason: CloseReason::Completed,
            error: None,
            failed_attempts: Vec::new(),
        }
    }
}

/// A connection that a listener accepted and that becomes a watch.
#[derive(Debug)]
pub struct Adoption {
    /// The watch to add.
    pub watch: Box<dyn Watch>,
    /// Its need, which was granted, with that of its Accepted.
    pub need: Need,
    /// The address of the peer.
    pub peer: Option<proto::SocketAddress>,
    /// The socket, if a later life must tell it from those that were never reported.
    pub socket: Option<KeptDescriptor>,
}

/// The part of a loop's record of a watch that its [`Context`](super::Context) changes.
#[derive(Debug)]
pub struct ControlBlock {
    /// The name of the watch for the driver.
    pub key: Key,
    /// The name of the watch in events.
    pub about: About,
    /// The sources that the watch has attached, and their live operations.
    pub sources: Sources,
    /// The number of events reserved one by one, beyond those of its [`Need`].
    pub reserved: u32,
    /// The end of the watch, once it was requested.
    pub end: Option<Box<End>>,
    /// Whether the watch has ended its operations itself.
    pub finished: bool,
    /// Whether its operations were cancelled because it ends.
    pub cancelling: bool,
}

impl ControlBlock {
    /// Returns the control block of a watch without operations and sources.
    #[must_use]
    pub fn new(key: Key, about: About) -> Self {
        Self {
            key,
            about,
            sources: Sources::default(),
            reserved: 0,
            end: None,
            finished: false,
            cancelling: false,
        }
    }
}

/// What is done once the turn is committed: until then a later life would need what ends with it.
#[derive(Debug)]
pub enum Afterwards {
    /// A descriptor is closed. The flag says whether other processes may share it.
    Close(OwnedFd, bool),
    /// A child is reaped whose exit was told, or left to the reaper.
    Reap(Box<Reaping>),
    /// Something is dropped on a thread that may block.
    Drop(Box<dyn Any + Send>),
    /// The rest of the output of a child that has ended is read and dropped.
    Drain(OwnedFd, i32, Stream),
    /// The start of a child counts as recorded.
    Started(Start),
}

impl Afterwards {
    /// Returns the number of the descriptor that it closes.
    #[must_use]
    pub fn closes(&self) -> Option<RawFd> {
        match self {
            Self::Close(fd, _) => Some(fd.as_raw_fd()),
            Self::Drop(_) | Self::Drain(..) | Self::Reap(_) | Self::Started(_) => None,
        }
    }

    /// Does it.
    pub fn run(self, services: &Services) {
        match self {
            Self::Close(fd, shared) => {
                faults::point(Point::BeforeClose);
                services.close(fd, shared);
            }
            Self::Drop(it) => drop(services.runtime.spawn_blocking(move || drop(it))),
            Self::Drain(output, pid, stream) => services.drain.take(output, pid, stream),
            Self::Reap(reaping) => reaping.run(),
            Self::Started(start) => {
                faults::point(Point::StartRecorded);
                drop(start);
            }
        }
    }
}
