//! A snapshot as its stream tells it: built part by part, as it is read.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::error::Result;
use crate::event_loop::{Part, Snapshot};
use crate::proto;

/// A part of a snapshot ends once it holds this many bytes: one more watch still fits a message.
pub(super) const PART_BYTES: usize = 256 * 1024;

type Asked = Pin<Box<dyn Future<Output = Result<Part>> + Send>>;

/// What is left to read of a snapshot.
pub(super) struct Unread {
    snapshot: Arc<Snapshot>,
    /// For the first part.
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

    /// The next part; it has little more than so many bytes.
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
