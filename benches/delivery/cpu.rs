//! The CPU time that the daemon spends on an event, all its threads together, from the byte in the
//! pipe to the client's socket; compared with a plain epoll loop that waits for as many bytes and
//! reads them. The writes of the bytes do not count on either side.

use tokio::runtime::Runtime;

use crate::Outcome;
use crate::daemon::{BACKENDS, Daemon};
use crate::peers;
use crate::pipes::{EVENTS, PIPES, each};
use crate::report::{Report, Side, Target, in_turns};
use crate::throughput::Remote;

/// Returns the largest allowed ratio to plain epoll.
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
