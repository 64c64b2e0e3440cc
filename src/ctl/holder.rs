//! Finds the consumer whose unacknowledged events fill a journal, so that the loop does not read its sources.

use std::fmt;

use super::lookup;
use super::session::Session;
use super::style::printable;
use super::units::size;
use crate::proto::{Consumer, LoopRef, SourcePause, SourcePauseReason, loop_ref};

/// Returns whether the loop does not read the source because of events that a consumer has not acknowledged.
pub(super) fn is_held(pause: &SourcePause) -> bool {
    matches!(
        pause.reason(),
        SourcePauseReason::JournalFull | SourcePauseReason::WatchShare
    )
}

/// The consumer of a loop for which the journal keeps the most bytes.
#[derive(Debug)]
pub(super) struct Holder {
    consumer: Consumer,
    /// The option that names the loop, with a space before it; empty for the loop of the context.
    on: String,
}

impl Holder {
    /// Finds the consumer on the session's loop. Returns `None` if the journal keeps no event for a consumer, or the call
    /// fails.
    pub(super) async fn find(session: &Session) -> Option<Self> {
        let consumers = lookup::consumers(session).await.ok()?;
        let consumer = consumers.into_iter().max_by_key(|c| c.lag_bytes)?;
        (consumer.lag_bytes > 0).then(|| Self {
            consumer,
            on: option(session.loop_ref.as_ref()),
        })
    }
}

/// Says which consumer has not acknowledged how much, and what to do.
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = printable(&self.consumer.name);
        let bytes = size(self.consumer.lag_bytes);
        write!(
            f,
            "the consumer {name} has not acknowledged {bytes} of events"
        )?;
        if !self.consumer.held {
            write!(f, ", and it has no reader")?;
        }
        write!(
            f,
            "; `evloopctl consumer delete {name}{}` frees the journal",
            self.on
        )
    }
}

fn option(of: Option<&LoopRef>) -> String {
    match of.and_then(|of| of.r#ref.as_ref()) {
        Some(loop_ref::Ref::Name(name)) => format!(" --loop {}", printable(name)),
        Some(loop_ref::Ref::LoopId(id)) => format!(" --loop @{id}"),
        None => String::new(),
    }
}
