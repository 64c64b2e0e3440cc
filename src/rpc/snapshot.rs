//! The snapshot at the beginning of a stream, built part by part while the client reads it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::error::Result;
use crate::event_loop::{Part, Snapshot};
use crate::proto;

/// The size at which a part of a snapshot ends, bytes: with one more watch it still fits into a
/// message.
pub(super) const PART_BYTES: usize = 256 * 1024;

type Asked = Pin<Box<dyn Future<Output = Result<Part>> + Send>>;

/// The part of a snapshot that is not read yet.
pub(super) struct Unread {
    snapshot: Arc<Snapshot>,
    /// The loop, which goes into the first part.
    on: Option<proto::Loop>,
    asked: Option<Asked>,
}

impl fmt::Debug for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unread")
            .field("snapshot", &self.snapshot)
            .finish_non_exhaustive()
    }
}

impl Unread {
    pub(super) fn new(snapshot: Snapshot, on: proto::Loop) -> Self {
        Self {
            snapshot: Arc::new(snapshot),
            on: Some(on),
            asked: None,
        }
    }

    /// Polls for the next part, which is little more than `bytes` large.
    pub(super) fn poll_part(
        &mut self,
        cx: &mut Context<'_>,
        bytes: usize,
    ) -> Poll<Result<proto::Snapshot>> {
        let asked = self.asked.get_or_insert_with(|| {
            let snapshot = Arc::clone(&self.snapshot);
            Box::pin(async move { snapshot.next(bytes).await })
        });
        let part = ready!(asked.as_mut().poll(cx));
        self.asked = None;
        let Part { watches, last } = part?;
        Poll::Ready(Ok(proto::Snapshot {
            cursor: Some(self.snapshot.cursor().into()),
            r#loop: self.on.take(),
            watches,
            last,
        }))
    }
}
