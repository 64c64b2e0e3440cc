//! The consumer for which a loop holds so many events that sources are not read.

use std::fmt;

use super::lookup;
use super::session::Session;
use super::style::printable;
use super::units::size;
use crate::proto::{Consumer, LoopRef, SourcePause, SourcePauseReason, loop_ref};

/// Whether the source is not read because of events that a consumer has not acknowledged.
pub(super) fn is_held(pause: &SourcePause) -> bool {
    matches!(
        pause.reason(),
        SourcePauseReason::JournalFull | SourcePauseReason::WatchShare
    )
}

/// The consumer of a loop for which most events are held.
#[derive(Debug)]
pub(super) struct Holder {
    consumer: Consumer,
    /// The option that names its loop, with a blank before it; empty for the loop of the context.
    on: String,
}

impl Holder {
    /// Asks for the consumer of the session's loop for which most events are held; none if there is none, or if the
    /// daemon does not tell.
    pub(super) async fn find(session: &Session) -> Option<Self> {
        let consumers = lookup::consumers(session).await.ok()?;
        let consumer = consumers.into_iter().max_by_key(|c| c.lag_bytes)?;
        (consumer.lag_bytes > 0).then(|| Self {
            consumer,
            on: option(session.loop_ref.as_ref()),
        })
    }
}

/// What holds the events, and what to do about it.
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = printable(&self.consumer.name);
        let bytes = size(self.consumer.lag_bytes);
        write!(
            f,
            "the consumer {name} has not acknowledged {bytes} of events"
        )?;
        if !self.consumer.held {
            write!(f, " and nobody reads as it")?;
        }
        write!(
            f,
            "; `evloopctl consumer delete {name}{}` lets them go",
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
