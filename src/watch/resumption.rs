//! What an earlier life has left of a watch.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::{Place, Progress};
use crate::error::{Error, Result};
use crate::paths::Hub;
use crate::proto;
use crate::state::Uncommitted;

/// What an earlier life has left of a watch.
#[derive(Debug)]
pub struct Resumption {
    /// What [`Watch::keep`](super::Watch::keep) returned.
    pub of: proto::state::kept_watch_state::Of,
    /// How far its streams are.
    pub progress: Progress,
    /// What was transferred with its descriptors last.
    pub uncommitted: Uncommitted,
    /// What it took to send and did not send, in order: each part with the bytes of the stream before it.
    pub unsent: Vec<(u64, Bytes)>,
    /// Its place among the connections of the listener that accepted it.
    pub place: Option<Place>,
    /// The last number of [`Context::in_doubt`](super::Context::in_doubt), if the turn was not committed; else 0.
    pub in_doubt: u64,
    /// What the loop watches paths with; `None` once it is closed.
    pub paths: Option<Arc<Hub>>,
}

impl Resumption {
    /// Returns what was read from a stream's descriptor after the first `offset` bytes.
    pub fn unrecorded_of(
        &self,
        from: &proto::state::KeptDescriptor,
        offset: u64,
    ) -> impl Iterator<Item = &[u8]> {
        let number = from.number;
        let own = self.uncommitted.taken.iter();
        let own = own.filter(move |one| one.number == number);
        own.filter_map(move |one| one.after(offset))
    }

    /// Returns how many bytes of its outgoing stream are sent.
    ///
    /// # Errors
    /// Nothing tells whether the last ones are.
    pub fn sent(&self, to: Option<&proto::state::KeptDescriptor>) -> Result<u64> {
        let own = self.uncommitted.sent.iter();
        let mut own = own.filter(|one| to.is_some_and(|to| one.number == to.number));
        let sent = own.try_fold(self.progress.sent, |sent, one| one.after(sent));
        sent.ok_or_else(|| {
            Error::wrong_state("nothing tells whether its socket has taken the last bytes")
        })
    }
}

/// What was taken of an outgoing stream and is not sent.
#[derive(Debug, Clone, Copy)]
pub struct Unsent<'a> {
    /// The bytes that are sent.
    pub sent: u64,
    /// Those after them.
    pub queue: &'a VecDeque<Bytes>,
}
