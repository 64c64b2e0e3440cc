//! What was found of watches of an earlier life.

use bytes::Bytes;
use prost::Message as _;

use super::WATCH_STATE;
use crate::proto::state::kept_watch_state::Of;
use crate::proto::state::{KeptDescriptor, KeptWatch, KeptWatchState};
use crate::state::Found;
use crate::watch::Progress;

/// A watch of an earlier life.
#[derive(Debug)]
pub struct FoundWatch {
    /// Its id.
    pub id: u64,
    /// As it was added or last updated.
    pub watch: KeptWatch,
    /// As it stood when that life ended.
    pub state: KeptWatchState,
    /// How far its streams were.
    pub progress: Progress,
    /// What it had taken to send: each part with the bytes of the stream before it, in order.
    pub unsent: Vec<(u64, Bytes)>,
    /// How much was under way that nothing counts.
    pub in_doubt: u64,
}

/// Returns the listening sockets of what was found of watches, from which connections without TLS are
/// accepted.
pub fn listening(found: &[Found]) -> Vec<KeptDescriptor> {
    let mut all = Vec::new();
    for of in states(found) {
        if let Of::Listener(listener) = of
            && !listener.tls
        {
            all.extend(listener.sockets);
        }
    }
    all
}

/// Returns the open files of what was found of watches.
pub fn descriptors(found: &[Found]) -> Vec<KeptDescriptor> {
    states(found).into_iter().flat_map(descriptors_of).collect()
}

fn states(found: &[Found]) -> Vec<Of> {
    let mut all = Vec::new();
    for found in found.iter().filter(|found| found.owner != 0) {
        found.peek(|kind, bytes| {
            if kind == WATCH_STATE
                && let Ok(state) = KeptWatchState::decode(bytes)
            {
                all.extend(state.of);
            }
        });
    }
    all
}

pub(in crate::event_loop) fn descriptors_of(of: Of) -> Vec<KeptDescriptor> {
    match of {
        Of::Timer(_) | Of::Signal(_) | Of::Path(_) => Vec::new(),
        Of::Fd(fd) => fd.descriptor.into_iter().collect(),
        Of::Pipe(pipe) => pipe.descriptor.into_iter().collect(),
        Of::Connection(connection) => {
            let attempts = connection.attempts.into_iter().flat_map(|all| all.live);
            let attempts = attempts.filter_map(|one| one.descriptor);
            connection.descriptor.into_iter().chain(attempts).collect()
        }
        Of::Listener(listener) => listener.sockets,
        Of::File(file) => file.files,
        Of::Datagrams(socket) => socket.descriptor.into_iter().collect(),
        Of::Pid(pid) => pid.descriptor.into_iter().collect(),
        Of::Child(child) => {
            let streams = [child.stdout, child.stderr].into_iter().flatten();
            let streams = streams.filter_map(|stream| stream.descriptor);
            let others = [child.pidfd, child.stdin].into_iter().flatten();
            let terminal = child.terminal.into_iter().flat_map(|terminal| {
                let relay = [terminal.relay, terminal.relay_input];
                let others = [terminal.control, terminal.slave, terminal.typed];
                relay.into_iter().chain(others).flatten()
            });
            streams.chain(others).chain(terminal).collect()
        }
    }
}
