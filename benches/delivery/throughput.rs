//! Bytes written to many pipes until they are read, one event each: through the daemon,
//! and with epoll(7) in the process that writes them.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use evloopd::proto::{EventKind, event};
use rustix::event::epoll;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::daemon::{Daemon, Subscription};
use crate::report::{Report, Target, alternate};
use crate::yardstick::Process;

/// First argument of the process that uses epoll by itself.
pub(crate) const YARDSTICK: &str = "epoll-yardstick";

const PIPES: usize = 1000;
const EVENTS: usize = 200 * PIPES;
/// A round that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let daemon = Daemon::start()?;
    let mut remote = runtime.block_on(Remote::new(&daemon))?;
    let rates = alternate(
        || remote.round(runtime),
        || Ok(Process::start(&[YARDSTICK])?.line()?.parse()?),
    )?;
    report.ratio(
        "throughput_vs_inprocess_epoll",
        "events/ms",
        Some(Target::AtLeast(1.0)),
        rates,
    );
    Ok(())
}

/// The same with another subscriber, on a connection of its own, that does not read.
pub(crate) fn run_neighbour(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let daemon = Daemon::start()?;
    let remote = std::cell::RefCell::new(runtime.block_on(Remote::new(&daemon))?);
    let rates = alternate(
        || {
            let stuck = runtime.block_on(async {
                let channel = daemon.connect().await?;
                Subscription::open(channel, EventKind::Data).await
            })?;
            let rate = remote.borrow_mut().round(runtime)?;
            drop(stuck);
            Ok(rate)
        },
        || remote.borrow_mut().round(runtime),
    )?;
    let target = Some(Target::AtLeast(0.95));
    report.ratio("stuck_neighbour", "events/ms", target, rates);
    Ok(())
}

/// The yardstick: one round, in a process that does nothing else.
pub(crate) fn measure_epoll() -> Outcome<()> {
    println!("{}", Local::new()?.round()?);
    Ok(())
}

/// Reading ends and writing ends.
pub(crate) fn pipes(count: usize) -> Outcome<(Vec<OwnedFd>, Vec<OwnedFd>)> {
    let pipes = (0..count).map(|_| pipe_with(PipeFlags::CLOEXEC));
    Ok(pipes.collect::<Result<_, _>>()?)
}

fn rate(begun: Instant) -> f64 {
    let events = u32::try_from(EVENTS).map_or(f64::NAN, f64::from);
    events / begun.elapsed().as_secs_f64() / 1000.0
}

/// The pipes' reading ends are in the daemon.
///
/// A pipe is written to again when its event has come, so that every byte makes an event of
/// its own: at most as many are on the way as there are pipes.
struct Remote {
    writers: Vec<OwnedFd>,
    events: Subscription,
    /// Bytes that came, by pipe.
    offsets: Vec<u64>,
}

impl Remote {
    async fn new(daemon: &Daemon) -> Outcome<Self> {
        let (readers, writers) = pipes(PIPES)?;
        let channel = daemon.connect().await?;
        daemon.watch_pipes(channel.clone(), &readers).await?;
        Ok(Self {
            writers,
            events: Subscription::open(channel, EventKind::Data).await?,
            offsets: vec![0; PIPES],
        })
    }

    fn round(&mut self, runtime: &Runtime) -> Outcome<f64> {
        let begun = Instant::now();
        let exchange = self.exchange();
        runtime.block_on(async { tokio::time::timeout(PATIENCE, exchange).await })??;
        Ok(rate(begun))
    }

    async fn exchange(&mut self) -> Outcome<()> {
        let (mut sent, mut received) = (PIPES, 0);
        for writer in &self.writers {
            rustix::io::write(writer, b"x")?;
        }
        while received < EVENTS {
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
                if sent < EVENTS {
                    sent += 1;
                    rustix::io::write(&self.writers[pipe], b"x")?;
                }
            }
        }
        Ok(())
    }
}

/// One process and one thread: writes to all pipes, waits, reads all that are ready.
struct Local {
    epoll: OwnedFd,
    readers: Vec<OwnedFd>,
    writers: Vec<OwnedFd>,
}

impl Local {
    fn new() -> Outcome<Self> {
        let (readers, writers) = pipes(PIPES)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (index, reader) in (0..).zip(&readers) {
            let data = epoll::EventData::new_u64(index);
            epoll::add(&epoll, reader, data, epoll::EventFlags::IN)?;
        }
        Ok(Self {
            epoll,
            readers,
            writers,
        })
    }

    fn round(&mut self) -> Outcome<f64> {
        let mut ready = Vec::with_capacity(PIPES);
        let mut buffer = vec![0; 256 * 1024];
        let begun = Instant::now();
        let mut received = 0;
        while received < EVENTS {
            for writer in &self.writers {
                rustix::io::write(writer, b"x")?;
            }
            let mut outstanding = PIPES;
            while outstanding > 0 {
                epoll::wait(
                    &self.epoll,
                    rustix::buffer::spare_capacity(&mut ready),
                    None,
                )?;
                for event in ready.drain(..) {
                    let reader = &self.readers[usize::try_from(event.data.u64())?];
                    outstanding -= rustix::io::read(reader, &mut *buffer)?;
                }
            }
            received += PIPES;
        }
        Ok(rate(begun))
    }
}
