//! What an event takes of processors' time in the daemon, all its threads together, from the byte in
//! the pipe to the client's socket; over a plain epoll loop that waits for as many bytes and reads
//! them. Nobody's writes count.

use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::daemon::{BACKENDS, Daemon};
use crate::peers;
use crate::pipes::{EVENTS, PIPES};
use crate::report::{Report, Side, Target, in_turns};
use crate::throughput::Remote;

/// At most, over plain epoll.
fn target_of(backend: &str) -> Option<Target> {
    match backend {
        "epoll" => Some(Target::AtMost(1.3)),
        "io_uring" => Some(Target::AtMost(1.1)),
        _ => None,
    }
}

pub(crate) fn run(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let mut sides: Vec<Side<'_, f64>> = Vec::new();
    for backend in BACKENDS {
        let daemon = Daemon::start_on(backend)?;
        let mut remote = runtime.block_on(Remote::new(&daemon, PIPES))?;
        sides.push(Box::new(move || {
            let before = daemon.cpu()?;
            remote.round(runtime, EVENTS)?;
            Ok(each((daemon.cpu()? - before).as_nanos()))
        }));
    }
    sides.push(Box::new(peers::epoll_reads));
    let mut taken = in_turns(sides)?;
    let theirs = taken.pop().unwrap_or_default();
    for (backend, ours) in BACKENDS.into_iter().zip(taken) {
        let name = ("daemon_cpu_per_event_vs_epoll_reads", backend);
        report.ratio(name, "ns", target_of(backend), (ours, theirs.clone()));
    }
    Ok(())
}

/// Of so many nanoseconds for all events, one event's.
pub(crate) fn each(nanos: u128) -> f64 {
    let of = |number: u128| u32::try_from(number / 1000).map_or(f64::NAN, f64::from);
    of(nanos) / of(EVENTS as u128)
}

/// The processor's time that this thread has had, nanoseconds.
pub(crate) fn own_nanos() -> u128 {
    let taken = clock_gettime(ClockId::ThreadCPUTime);
    let [seconds, nanos] =
        [taken.tv_sec, taken.tv_nsec].map(|part| u128::try_from(part).unwrap_or(0));
    seconds * 1_000_000_000 + nanos
}
