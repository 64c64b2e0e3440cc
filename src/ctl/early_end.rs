//! Why a watch closed whose events were printed, if it closed before it was complete.

use super::description;
use super::failure::{Failure, complain};
use super::render;
use crate::proto::timer_spec::Schedule;
use crate::proto::watch_spec::Spec;
use crate::proto::{CloseReason, Closed, Watch};

/// Says why a watch closed before it was complete.
///
/// # Errors
/// It did, and that was not asked for. Who removes a watch that has no other end asks for it.
pub(super) fn early_end(watch: &Watch, closed: &Closed) -> Result<(), Failure> {
    let name = description::reference(watch);
    let why = match closed.reason() {
        CloseReason::Unspecified | CloseReason::Completed => return Ok(()),
        CloseReason::Removed => "it was removed",
        CloseReason::Error => {
            let error = closed.error.clone().unwrap_or_default();
            return Err(Failure::new(name, render::system_error(&error)));
        }
        CloseReason::Aborted => "it was aborted",
        CloseReason::FdTaken => "its descriptor was taken out of the daemon",
        CloseReason::ProcessEnded => "the process that it was bound to ended",
        CloseReason::LoopClosed => "its loop was closed",
        CloseReason::Truncated => "the peer ended it without close_notify",
        CloseReason::LeaseExpired => "its lease ran out",
        CloseReason::Lost => {
            let error = closed.error.clone().unwrap_or_default();
            let why = render::system_error(&error);
            return Err(Failure::new(name, format!("lost: {why}")));
        }
    };
    let by_client = matches!(
        closed.reason(),
        CloseReason::Removed | CloseReason::Aborted | CloseReason::FdTaken
    );
    if by_client && is_endless(watch) {
        complain(format_args!("{name}: {why}"));
        return Ok(());
    }
    Err(Failure::new(name, why))
}

/// Returns whether a watch is never complete by itself.
fn is_endless(watch: &Watch) -> bool {
    match watch.spec.as_ref().and_then(|spec| spec.spec.as_ref()) {
        Some(Spec::Timer(timer)) => matches!(
            timer.schedule,
            Some(Schedule::Every(_) | Schedule::Cron(_) | Schedule::OnCalendar(_))
        ),
        Some(Spec::File(file)) => file.follow,
        Some(
            Spec::Fd(_)
            | Spec::Listener(_)
            | Spec::WritePipe(_)
            | Spec::Signal(_)
            | Spec::Path(_)
            | Spec::Datagram(_),
        ) => true,
        Some(Spec::Process(_) | Spec::Connection(_) | Spec::ReadPipe(_) | Spec::Pid(_)) | None => {
            false
        }
    }
}
