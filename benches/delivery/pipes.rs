//! The pipes that throughput and CPU time are measured with, on all sides.

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::pipe::{PipeFlags, pipe_with};

use crate::Outcome;

pub(crate) const PIPES: usize = 1000;
pub(crate) const EVENTS: usize = 200 * PIPES;

/// Returns the reading ends and the writing ends.
pub(crate) fn pipes(count: usize) -> Outcome<(Vec<OwnedFd>, Vec<OwnedFd>)> {
    let pipes = (0..count).map(|_| pipe_with(PipeFlags::CLOEXEC));
    Ok(pipes.collect::<Result<_, _>>()?)
}

/// Returns the events per millisecond.
pub(crate) fn rate(events: usize, begun: Instant) -> f64 {
    let events = u32::try_from(events).map_or(f64::NAN, f64::from);
    events / begun.elapsed().as_secs_f64() / 1000.0
}

/// Returns the nanoseconds of one event, given those of all of them.
pub(crate) fn each(nanos: u128) -> f64 {
    let of = |number: u128| u32::try_from(number / 1000).map_or(f64::NAN, f64::from);
    of(nanos) / of(EVENTS as u128)
}
