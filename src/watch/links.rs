//! Follows the network interfaces of the host, as rtnetlink(7) tells them, while somebody wants to
//! know.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use nix::libc;
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::error::{Result, SystemError};
use crate::sys;

/// The group of messages about interfaces, `RTMGRP_LINK` of linux/rtnetlink.h.
const LINKS: u32 = 1;
/// The bytes of one read: the kernel's messages are smaller.
const READ: usize = 32 * 1024;
/// The least number of listeners at which those that are gone are forgotten.
const TIDY_MIN: usize = 16;
/// The most jobs of [`Links::run`] at once: each keeps a thread, and the kernel does one change of its
/// network setup at a time anyway.
const JOBS_MAX: usize = 16;

/// What happened to an interface of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkChange {
    /// The one with this index went away.
    Gone(u32),
    /// One came, or changed.
    Changed,
    /// More happened than the kernel had room to tell: any of them may have gone away.
    Unknown,
}

/// Is told what happens to interfaces. Must not block.
pub(super) trait LinkListener: Send + Sync + fmt::Debug {
    /// Takes one change.
    fn changed(&self, change: LinkChange);
}

/// The interfaces of the host. Nothing runs while nobody listens.
#[derive(Debug)]
pub struct Links {
    runtime: Handle,
    jobs: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether a task reads the kernel's messages.
    followed: bool,
    listeners: Vec<Weak<dyn LinkListener>>,
    /// The number of listeners at which those that are gone are forgotten next.
    tidy_at: usize,
}

impl Links {
    /// Makes it; what follows the interfaces will run on that runtime.
    #[must_use]
    pub fn new(runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            runtime,
            jobs: Arc::new(Semaphore::new(JOBS_MAX)),
            state: Mutex::default(),
        })
    }

    /// Tells the listener of all changes from now on, for as long as it exists.
    ///
    /// # Errors
    /// The system refuses a netlink socket.
    pub(super) fn listen(self: &Arc<Self>, listener: Weak<dyn LinkListener>) -> Result<()> {
        let mut state = self.state.lock();
        if !state.followed {
            let failed = |errno: Errno| SystemError::new(errno, "netlink", "");
            let socket = socket().map_err(failed)?;
            let _entered = self.runtime.enter();
            let socket = sys::async_fd(Arc::new(socket), Interest::READABLE)
                .map_err(|error| SystemError::from_io(&error, "netlink", ""))?;
            self.runtime.spawn(follow(Arc::downgrade(self), socket));
            state.followed = true;
        }
        if state.listeners.len() >= state.tidy_at {
            state.listeners.retain(|known| known.strong_count() > 0);
            state.tidy_at = (2 * state.listeners.len()).max(TIDY_MIN);
        }
        state.listeners.push(listener);
        Ok(())
    }

    /// Runs what changes something because of a change of interfaces, on a thread that may block,
    /// in its turn.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let jobs = Arc::clone(&self.jobs);
        self.runtime.spawn(async move {
            if let Ok(_turn) = jobs.acquire_owned().await {
                // Whatever the job holds is dropped if it fails.
                let _ = tokio::task::spawn_blocking(job).await;
            }
        });
    }

    /// Tells all listeners. Returns whether there are any.
    fn tell(&self, changes: &[LinkChange]) -> bool {
        let (listeners, any): (Vec<_>, _) = {
            let mut state = self.state.lock();
            state.listeners.retain(|known| known.strong_count() > 0);
            state.followed = !state.listeners.is_empty();
            let listeners = state.listeners.iter().filter_map(Weak::upgrade);
            (listeners.collect(), state.followed)
        };
        for listener in &listeners {
            for change in changes {
                listener.changed(*change);
            }
        }
        any
    }

    /// Records that nothing is followed any more, and tells that anything may have happened.
    fn lost(&self) {
        self.tell(&[LinkChange::Unknown]);
        self.state.lock().followed = false;
    }
}

fn socket() -> std::result::Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, LINKS))?;
    Ok(socket)
}

/// Reads the kernel's messages for as long as there are listeners.
async fn follow(links: Weak<Links>, socket: AsyncFd<Arc<OwnedFd>>) {
    let mut buffer = vec![0; READ];
    loop {
        let read = match socket.readable().await {
            Ok(mut ready) => ready.try_io(|socket| {
                let flags = RecvFlags::DONTWAIT;
                let (_, len) = rustix::net::recv(socket.as_fd(), &mut buffer[..], flags)?;
                Ok(len)
            }),
            Err(error) => Ok(Err(error)),
        };
        let changes = match read {
            // Nothing was there.
            Err(_) => continue,
            Ok(Ok(len)) => changes(&buffer[..len.min(READ)]),
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                vec![LinkChange::Unknown]
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "the network interfaces cannot be followed any more");
                if let Some(links) = links.upgrade() {
                    links.lost();
                }
                return;
            }
        };
        match links.upgrade() {
            Some(links) if changes.is_empty() || links.tell(&changes) => {}
            _ => return,
        }
    }
}

/// Reads the messages of one datagram: headers (`nlmsghdr`), each followed by an `ifinfomsg`.
fn changes(mut messages: &[u8]) -> Vec<LinkChange> {
    const HEADER: usize = size_of::<libc::nlmsghdr>();
    let mut found = Vec::new();
    while let Some((header, _)) = messages.split_at_checked(HEADER) {
        let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let Some(message) = messages.get(HEADER..len) else {
            break;
        };
        // The family, a gap, the type of two bytes, and the index. Messages of another family, such
        // as that of bridges, tell of a part of an interface and not of the interface.
        if let [family, _, _, _, i0, i1, i2, i3, ..] = *message
            && i32::from(family) == libc::AF_UNSPEC
        {
            match kind {
                libc::RTM_DELLINK => {
                    let index = u32::from_ne_bytes([i0, i1, i2, i3]);
                    found.push(LinkChange::Gone(index));
                }
                libc::RTM_NEWLINK => found.push(LinkChange::Changed),
                _ => {}
            }
        }
        // The next one is aligned to four bytes.
        messages = messages.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, family: u8, index: u32, more: usize) -> Vec<u8> {
        let len = u32::try_from(32 + more).unwrap();
        let mut bytes = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10]].concat();
        bytes.extend([family, 0, 0, 0]);
        bytes.extend(index.to_ne_bytes());
        bytes.resize((32 + more).next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn interfaces_that_come_and_go_are_found_among_other_messages() {
        let all = [
            message(libc::RTM_NEWLINK, 0, 3, 0),
            message(libc::RTM_NEWADDR, 0, 3, 5),
            // A port leaves a bridge.
            message(libc::RTM_DELLINK, 7, 4, 0),
            message(libc::RTM_DELLINK, 0, 0x1_0203, 7),
        ];
        let found = [LinkChange::Changed, LinkChange::Gone(0x1_0203)];
        assert_eq!(changes(&all.concat()), found);
    }

    #[test]
    fn a_message_that_is_cut_is_left_out() {
        let whole = message(libc::RTM_DELLINK, 0, 9, 0);
        for len in 0..whole.len() {
            assert_eq!(changes(&whole[..len]), []);
        }
        let mut longer = whole.clone();
        longer[0] = 200;
        assert_eq!(changes(&longer), []);
        let mut empty = whole;
        empty[..4].fill(0);
        assert_eq!(changes(&empty), []);
    }
}
