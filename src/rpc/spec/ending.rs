//! Checks of how a child process ends.

use std::time::Duration;

use super::HOUR;
use crate::error::{Error, Result};
use crate::proto;
use crate::rpc::convert;
use crate::watch::{AtEnd, EndSignals, ProcessChange};

/// Shortest time that a child may be given.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);
/// Longest time that a child may be given.
const TIMEOUT_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Checks the fields that concern the end of the child.
pub(super) fn checked(process: &proto::ProcessSpec) -> Result<ProcessChange> {
    let grace = |field, given| convert::optional_duration(field, given, HOUR);
    Ok(ProcessChange {
        pipe_grace: grace("spec.process.pipe_grace", process.pipe_grace)?,
        kill_grace: grace("spec.process.kill_grace", process.kill_grace)?,
        timeout: timeout(process.timeout)?,
        at_end: match proto::AtEnd::try_from(process.at_end) {
            Ok(proto::AtEnd::Unspecified | proto::AtEnd::KillTree) => AtEnd::KillTree,
            Ok(proto::AtEnd::Keep) => AtEnd::Keep,
            Err(_) => {
                let allowed = "must be KILL_TREE or KEEP";
                return Err(Error::invalid("spec.process.at_end", allowed));
            }
        },
        signals: end_signals(process)?,
    })
}

/// Returns the signals that ask the child to end.
fn end_signals(process: &proto::ProcessSpec) -> Result<EndSignals> {
    let mut signals = EndSignals::default();
    if process.stop_signal.is_empty() {
        // An interactive shell ignores SIGTERM, and ends when its terminal hangs up.
        signals.hang_up = process.terminal.is_some();
    } else {
        signals.first = convert::signal("spec.process.stop_signal", &process.stop_signal)?;
    }
    Ok(signals)
}

fn timeout(given: Option<prost_types::Duration>) -> Result<Option<Duration>> {
    convert::optional_within("spec.process.timeout", given, TIMEOUT_MIN..=TIMEOUT_MAX)
}
