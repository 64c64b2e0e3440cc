//! The verbs that stop reading from a watch and go on with it.

use super::super::failure::{Failure, Outcome};
use super::super::lookup;
use super::super::names::OneWatch;
use super::super::output;
use super::super::parse;
use super::super::session::{Session, answer};
use crate::kinds::WatchKind;
use crate::proto::{PauseReadingRequest, ResumeReadingRequest, WatchRef};

pub(super) const PAUSE_EXAMPLES: &str = "Example:
  evloopctl watch pause upload

The kernel then holds the sender back, except a sender of UDP: what does not fit the buffer of the \
socket is dropped.";

pub(super) const RESUME_EXAMPLES: &str = "Example:
  evloopctl watch resume upload";

pub(super) async fn pause(session: &Session, watch: OneWatch) -> Outcome {
    let asked = watch.reference();
    let request = PauseReadingRequest {
        r#loop: session.loop_ref.clone(),
        watch: Some(asked.clone()),
        request_id: String::new(),
    };
    match answer(session.transports().pause_reading(request).await) {
        Ok(paused) if session.json => output::messages([&paused])?,
        Ok(_) => {}
        Err(failure) => return Err(unread(session, failure, &asked, "pause").await),
    }
    Ok(0)
}

pub(super) async fn resume(session: &Session, watch: OneWatch) -> Outcome {
    let asked = watch.reference();
    let request = ResumeReadingRequest {
        r#loop: session.loop_ref.clone(),
        watch: Some(asked.clone()),
        request_id: String::new(),
    };
    match answer(session.transports().resume_reading(request).await) {
        Ok(resumed) if session.json => output::messages([&resumed])?,
        Ok(_) => {}
        Err(failure) => return Err(unread(session, failure, &asked, "resume").await),
    }
    Ok(0)
}

/// Names the watch in the failure, and says what pauses a timer, which is not read.
async fn unread(session: &Session, failure: Failure, asked: &WatchRef, verb: &str) -> Failure {
    if failure.reason != "WRONG_STATE" {
        return failure;
    }
    let name = parse::watch_name(asked);
    let found = lookup::watch(session, asked).await;
    let failure = failure.about(&name);
    match found {
        Ok(found) if found.watch_kind == WatchKind::Timer.name() => {
            failure.advice(format!("`evloopctl update {name} --{verb}`"))
        }
        _ => failure,
    }
}
