//! How processes ended, and the exit codes of evloopctl that follow from it.

use super::failure::{Failure, TIMED_OUT};
use super::render;
use crate::proto::watch::Status;
use crate::proto::{Exited, Watch, WatchState, exited};

/// Returns how the process of a watch ended; `None` if it has not ended.
///
/// # Errors
/// The watch is not a process, or how the process ended is not known. `name` is for the message.
pub(super) fn end_of(name: &str, watch: &Watch) -> Result<Option<Exited>, Failure> {
    let Some(Status::Process(status)) = &watch.status else {
        return Err(no_process(name, watch));
    };
    match &status.exited {
        None if watch.state() == WatchState::Closed => {
            Err(Failure::new(name, "its exit status is not known"))
        }
        exited => Ok(exited.clone()),
    }
}

/// Returns the failure for a watch that is not a process.
pub(super) fn no_process(name: &str, watch: &Watch) -> Failure {
    let kind = watch.watch_kind.replace('_', " ");
    let failure = Failure::new(name, format!("it is a {kind}, not a process"));
    failure.advice(format!(
        "`evloopctl events --watch {name}` prints its events"
    ))
}

/// Returns whether the process exited with 0 before its timeout.
pub(super) fn is_success(exited: &Exited) -> bool {
    exited.status == Some(exited::Status::Code(0)) && !exited.timed_out
}

/// Returns the exit code of evloopctl for a process that ended: its own, 128 + the number of the signal that ended it, or
/// that of timeout(1).
///
/// # Errors
/// How the process ended is not known, or its code does not fit into 8 bits.
pub(super) fn exit_code(name: &str, exited: &Exited) -> Result<u8, Failure> {
    if exited.timed_out {
        return Ok(TIMED_OUT);
    }
    let code = match &exited.status {
        Some(exited::Status::Code(code)) => u8::try_from(*code).ok(),
        Some(exited::Status::Signal(signal)) => u8::try_from(signal.saturating_add(128)).ok(),
        Some(exited::Status::Unknown(_)) | None => None,
    };
    code.ok_or_else(|| Failure::new(name, render::exited(exited)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_childs_or_128_and_the_signal_and_never_made_up() {
        let code = |status| {
            exit_code(
                "x",
                &Exited {
                    status,
                    ..Exited::default()
                },
            )
        };
        assert_eq!(code(Some(exited::Status::Code(255))).unwrap(), 255);
        assert_eq!(code(Some(exited::Status::Signal(9))).unwrap(), 137);
        let unknown = code(Some(exited::Status::Unknown("kept".to_owned()))).unwrap_err();
        assert_eq!(unknown.to_string(), "x: exit status unknown: kept");
    }
}
