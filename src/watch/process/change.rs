//! Changes of a running process by UpdateWatch: they concern its end.

use std::time::Duration;

use super::timeout::Timeout;
use super::{AtEnd, EndSignals, Process};
use crate::clock::nanos;
use crate::error::{Error, Result};
use crate::watch::Context;

/// How a child ends.
#[derive(Debug, Clone, Copy)]
pub struct ProcessChange {
    /// How long other processes may keep its output open; `None` means the configured time.
    pub pipe_grace: Option<Duration>,
    /// The time between the first signal and SIGKILL; `None` means the configured time.
    pub kill_grace: Option<Duration>,
    /// How long it may run, from its start on.
    pub timeout: Option<Duration>,
    /// What happens to it when its watch ends.
    pub at_end: AtEnd,
    /// What asks it to end.
    pub signals: EndSignals,
}

impl Process {
    /// Changes how the child ends.
    ///
    /// # Errors
    /// It has ended, or its time is over already.
    pub(super) fn change_end(&mut self, cx: &mut Context<'_>, to: &ProcessChange) -> Result<()> {
        if self.exited.is_some() {
            return Err(Error::wrong_state("the child has ended"));
        }
        let timeout = to.timeout.map_or(Timeout::None, |time| {
            Timeout::At(self.started.saturating_add(nanos(time)))
        });
        if self.timeout.is_over() {
            return Err(Error::wrong_state(
                "the child has exceeded its timeout and is being ended",
            ));
        }
        self.timeout = timeout;
        self.set_next_alarm(cx);
        self.at_end = to.at_end;
        self.pipe_grace = to.pipe_grace.unwrap_or(cx.services.pipe_grace);
        self.kill_grace = to.kill_grace.unwrap_or(cx.services.kill_grace);
        if let Some(child) = &mut self.child {
            child.signals = to.signals;
        }
        Ok(())
    }
}
