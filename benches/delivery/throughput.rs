//! Bytes that are written to many pipes until they are read, with one event each: through the
//! daemon, and by the programs in [`peers`](crate::peers), which read in the process that writes.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use evloopd::proto::{EventKind, event};
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::daemon::{BACKENDS, Daemon, Subscription};
use crate::peers::Peer;
use crate::pipes::{EVENTS, PIPES, pipes, rate};
use crate::report::{Report, Side, Target, alternate, in_turns};

/// The time after which a round has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Returns the target relative to plain epoll. io_uring has none: the client's own write(2) is half
/// of all that plain epoll does, and with the client's decoding more than two thirds, whatever the
/// daemon does. What the daemon itself takes has a case of its own, see [`cpu`](crate::cpu).
fn target_of(backend: &str) -> Option<Target> {
    (backend == "epoll").then_some(Target::AtLeast(1.05))
}

pub(crate) fn run(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let mut sides: Vec<Side<'_, f64>> = Vec::new();
    let mut daemons = Vec::new();
    for backend in BACKENDS {
        let daemon = Daemon::start_on(backend)?;
        let mut remote = runtime.block_on(Remote::new(&daemon, PIPES))?;
        sides.push(Box::new(move || remote.round(runtime, EVENTS)));
        daemons.push(daemon);
    }
    for peer in Peer::ALL {
        if let Some(reason) = peer.missing() {
            eprintln!("throughput: without {peer:?}: {reason}");
            continue;
        }
        sides.push(Box::new(move || peer.round()));
    }
    let mut taken = in_turns(sides)?;
    let mut peers = taken.split_off(BACKENDS.len()).into_iter();
    for peer in Peer::ALL {
        if peer.missing().is_some() {
            continue;
        }
        let theirs = peers.next().unwrap_or_default();
        for (backend, ours) in BACKENDS.into_iter().zip(&taken) {
            let target = match peer {
                Peer::Epoll => target_of(backend),
                Peer::Tokio | Peer::Uvloop => None,
            };
            let rates = (ours.clone(), theirs.clone());
            report.ratio((peer.ratio(), backend), "events/ms", target, rates);
        }
    }
    Ok(())
}

/// Measures the same with another subscriber, on its own connection, that does not read.
pub(crate) fn run_neighbour(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    for backend in BACKENDS {
        let daemon = Daemon::start_on(backend)?;
        let remote = std::cell::RefCell::new(runtime.block_on(Remote::new(&daemon, PIPES))?);
        let rates = alternate(
            || {
                let stuck = runtime.block_on(async {
                    let channel = daemon.connect().await?;
                    Subscription::open(channel, EventKind::Data).await
                })?;
                let rate = remote.borrow_mut().round(runtime, EVENTS)?;
                drop(stuck);
                Ok(rate)
            },
            || remote.borrow_mut().round(runtime, EVENTS),
        )?;
        let target = Some(Target::AtLeast(0.95));
        report.ratio(("stuck_neighbour", backend), "events/ms", target, rates);
    }
    Ok(())
}

/// Pipes whose reading ends are in the daemon.
///
/// A pipe is written to again only once its event has been received, so that every byte makes an
/// event of its own. At most one byte for each pipe is in flight.
pub(crate) struct Remote {
    writers: Vec<OwnedFd>,
    events: Subscription,
    /// The number of bytes received, by pipe.
    offsets: Vec<u64>,
}

impl Remote {
    pub(crate) async fn new(daemon: &Daemon, count: usize) -> Outcome<Self> {
        let (readers, writers) = pipes(count)?;
        let channel = daemon.connect().await?;
        daemon.watch_pipes(channel.clone(), &readers).await?;
        Ok(Self {
            writers,
            events: Subscription::open(channel, EventKind::Data).await?,
            offsets: vec![0; count],
        })
    }

    /// Waits for that many events and returns the rate.
    pub(crate) fn round(&mut self, runtime: &Runtime, events: usize) -> Outcome<f64> {
        let begun = Instant::now();
        let exchange = self.exchange(events);
        runtime.block_on(async { tokio::time::timeout(PATIENCE, exchange).await })??;
        Ok(rate(events, begun))
    }

    async fn exchange(&mut self, events: usize) -> Outcome<()> {
        let (mut sent, mut received) = (self.writers.len(), 0);
        for writer in &self.writers {
            rustix::io::write(writer, b"x")?;
        }
        while received < events {
            for event in self.events.next().await?.events {
                let pipe = usize::try_from(event.user_data)?;
                match (&event.kind, self.offsets.get_mut(pipe)) {
                    (Some(event::Kind::Data(data)), Some(offset))
                        if data.data.len() == 1 && data.offset == *offset =>
                    {
                        *offset += 1;
                    }
                    _ => return Err(format!("not the pipe's next byte: {event:?}").into()),
                }
                received += 1;
                if sent < events {
                    sent += 1;
                    rustix::io::write(&self.writers[pipe], b"x")?;
                }
            }
        }
        Ok(())
    }
}
