//! Finds out why no event comes from a loop: the loop does not run, or its journal is full of events that a consumer has not
//! acknowledged. Verbs that wait for events report this on stderr.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::failure::complain;
use super::holder::{Holder, is_held};
use super::lookup;
use super::session::Session;
use super::style::printable;
use super::units::since;
use crate::proto::{Loop, LoopRef, LoopState, PausedSource, loop_ref};

/// The heartbeat of streams whose events a verb waits for, and so the time after which a standstill is noticed.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long a source must have been paused before that is reported. Shorter pauses are normal.
const PAUSED: Duration = Duration::from_secs(2);

/// Looks for a standstill of the loop of one stream.
#[derive(Debug, Default)]
pub(super) struct Standstill {
    quiet: Arc<Notify>,
    task: Option<JoinHandle<()>>,
}

impl Standstill {
    /// Looks at the loop now, and reports why no event can come from it, or from these watches.
    pub(super) fn begin(&mut self, session: Session, loop_id: u64, watch_ids: Vec<u64>) {
        let quiet = Arc::clone(&self.quiet);
        self.end();
        self.task = Some(tokio::spawn(tell(session, loop_id, watch_ids, quiet)));
    }

    /// Looks at the loop again, because no event came for the time of [`HEARTBEAT`].
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

/// Reports each standstill once. Does not return.
async fn tell(session: Session, loop_id: u64, watch_ids: Vec<u64>, quiet: Arc<Notify>) {
    let of = LoopRef {
        r#ref: Some(loop_ref::Ref::LoopId(loop_id)),
    };
    let mut told = false;
    loop {
        // A failure is ignored: it ends the stream too, whose reader reports it.
        if let Ok(found) = lookup::loop_of(&session, of.clone()).await {
            let message = match message(&found) {
                None => held_up(&session, &found, &watch_ids).await,
                message => message,
            };
            if let (Some(message), false) = (&message, told) {
                complain(message);
            }
            told = message.is_some();
        }
        quiet.notified().await;
    }
}

/// Returns why no event comes from one of these watches, and what to do, if the loop has not read its source for [`PAUSED`]
/// because of a consumer.
pub(super) async fn held_up(session: &Session, found: &Loop, watch_ids: &[u64]) -> Option<String> {
    let (source, _) = paused(found, watch_ids).filter(|(_, time)| *time >= PAUSED)?;
    let holder = Holder::find(session).await?;
    let name = match source.name.as_str() {
        "" => format!("@{}", source.watch_id),
        name => printable(name),
    };
    Some(format!(
        "the loop does not read the output of {name}, because the journal is full: {holder}"
    ))
}

/// Returns how long to wait until [`held_up`] reports a pause of one of these watches; `None` if no source is paused.
pub(super) fn held_up_in(found: &Loop, watch_ids: &[u64]) -> Option<Duration> {
    let (_, time) = paused(found, watch_ids)?;
    Some(PAUSED.saturating_sub(time))
}

/// Returns the source of these watches that has been paused for the longest time because of a consumer, and that time.
fn paused<'a>(found: &'a Loop, watch_ids: &[u64]) -> Option<(&'a PausedSource, Duration)> {
    let sources = found.journal.as_ref()?.paused_sources.iter();
    let ours = sources.filter(|source| watch_ids.contains(&source.watch_id));
    let held = ours.filter_map(|source| {
        let pause = source.pause.as_ref().filter(|pause| is_held(pause))?;
        Some((source, since(pause.since).unwrap_or_default()))
    });
    held.max_by_key(|(_, time)| *time)
}

/// Returns why no event comes from a loop that does not run, and what to do; `None` if it runs.
pub(super) fn message(found: &Loop) -> Option<String> {
    let state = match found.state() {
        LoopState::Created => "does not run yet",
        LoopState::Stopped => "is stopped",
        LoopState::Running | LoopState::Closed | LoopState::Unspecified => return None,
    };
    let name = printable(&found.name);
    Some(format!(
        "the loop {name} {state}: it delivers no events until `evloopctl loop run {name}`"
    ))
}
