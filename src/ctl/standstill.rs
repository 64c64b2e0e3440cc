//! A loop that does not run delivers nothing: those who wait for its events are told.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::failure::{Failure, complain};
use super::session::{Session, answer};
use super::table::printable;
use crate::proto::{GetLoopRequest, Loop, LoopRef, LoopState, loop_ref};

/// The heartbeat of streams that are looked after: how soon it is told that their loop was stopped.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(2);

/// Looks after the loop of one stream.
#[derive(Debug, Default)]
pub(super) struct Standstill {
    quiet: Arc<Notify>,
    task: Option<JoinHandle<()>>,
}

impl Standstill {
    /// Looks at once, and says so if the loop does not run.
    pub(super) fn begin(&mut self, session: Session, loop_id: u64) {
        let quiet = Arc::clone(&self.quiet);
        self.end();
        self.task = Some(tokio::spawn(tell(session, loop_id, quiet)));
    }

    /// Nothing came for a while: time to look again.
    pub(super) fn look(&self) {
        self.quiet.notify_one();
    }

    fn end(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl Drop for Standstill {
    fn drop(&mut self) {
        self.end();
    }
}

/// Says once for each time that the loop stands still. Does not return.
async fn tell(session: Session, loop_id: u64, quiet: Arc<Notify>) {
    let of = LoopRef {
        r#ref: Some(loop_ref::Ref::LoopId(loop_id)),
    };
    let mut told = false;
    loop {
        // A failure is the stream's own to tell.
        if let Ok(found) = look_up(&session, &of).await {
            let message = message(&found);
            if let (Some(message), false) = (&message, told) {
                complain(message);
            }
            told = message.is_some();
        }
        quiet.notified().await;
    }
}

/// A loop as it is now.
pub(super) async fn look_up(session: &Session, of: &LoopRef) -> Result<Loop, Failure> {
    let request = GetLoopRequest {
        r#loop: Some(of.clone()),
    };
    let found = answer(session.loops().get_loop(request).await)?;
    Ok(found.r#loop.unwrap_or_default())
}

/// Why nothing comes from a loop, and what to do; `None` if that is not for want of running.
pub(super) fn message(found: &Loop) -> Option<String> {
    let state = match found.state() {
        LoopState::Created => "does not run yet",
        LoopState::Stopped => "is stopped",
        LoopState::Running | LoopState::Closed | LoopState::Unspecified => return None,
    };
    let name = printable(&found.name);
    Some(format!(
        "the loop {name} {state}: nothing is delivered until `evloopctl loop run {name}`"
    ))
}
