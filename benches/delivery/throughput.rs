//! Bytes written to many pipes until they are read, one event each: through the daemon,
//! and with epoll(7) in the process that writes them.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use evloopd::proto::{EventKind, event};
use rustix::event::epoll;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::daemon::{Daemon, Subscription};
use crate::report::{Report, Target, alternate};

const PIPES: usize = 1000;
const EVENTS: usize = 200 * PIPES;
/// A round that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let daemon = Daemon::start()?;
    let mut remote = runtime.block_on(Remote::new(&daemon))?;
    let mut local = Local::new()?;
    let rates = alternate(|| remote.round(runtime), || local.round())?;
    report.ratio(
        "throughput_vs_inprocess_epoll",
        "events/ms",
        Target::AtLeast(0.9),
        rates,
    );
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
        let (due, to_write) = mpsc::channel::<Vec<usize>>();
        let (writers, events, offsets) = (&self.writers, &mut self.events, &mut self.offsets);
        thread::scope(|scope| {
            let writer = scope.spawn(move || -> io::Result<()> {
                for pipe in to_write.into_iter().flatten() {
                    rustix::io::write(&writers[pipe], b"x")?;
                }
                Ok(())
            });
            let begun = Instant::now();
            let receive = receive(events, offsets, due);
            runtime.block_on(async { tokio::time::timeout(PATIENCE, receive).await })??;
            let rate = rate(begun);
            writer.join().map_err(|_| "the writer panicked")??;
            Ok(rate)
        })
    }
}

/// Receives a round's events, and says which pipes are due to be written to.
async fn receive(
    events: &mut Subscription,
    offsets: &mut [u64],
    due: mpsc::Sender<Vec<usize>>,
) -> Outcome<()> {
    due.send((0..PIPES).collect())?;
    let (mut sent, mut received) = (PIPES, 0);
    while received < EVENTS {
        let batch = events.next().await?;
        let mut pipes = Vec::with_capacity(batch.events.len());
        for event in &batch.events {
            let pipe = usize::try_from(event.user_data)?;
            match (&event.kind, offsets.get_mut(pipe)) {
                (Some(event::Kind::Data(data)), Some(offset))
                    if data.data.len() == 1 && data.offset == *offset =>
                {
                    *offset += 1;
                    pipes.push(pipe);
                }
                _ => return Err(format!("not the pipe's next byte: {event:?}").into()),
            }
        }
        received += pipes.len();
        pipes.truncate(EVENTS - sent);
        sent += pipes.len();
        if !pipes.is_empty() {
            due.send(pipes)?;
        }
    }
    Ok(())
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
