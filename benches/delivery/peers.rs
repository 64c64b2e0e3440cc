//! Programs that do in one process what the daemon does for its clients: write to all pipes, wait,
//! and read all that are ready. Each has one thread and is started again for every round.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::Instant;

use rustix::event::epoll;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::Notify;
use tokio::task::LocalSet;

use crate::Outcome;
use crate::pipes::{EVENTS, PIPES, each, pipes, rate};
use crate::spent::own_nanos;
use crate::yardstick::{Process, python};

/// The first argument of such a process; the second names the peer.
pub(crate) const YARDSTICK: &str = "throughput-yardstick";

/// Another way to wait for many pipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Plain epoll(7).
    Epoll,
    /// One tokio task for each pipe.
    Tokio,
    /// `add_reader` of Python's asyncio on uvloop.
    Uvloop,
}

impl Peer {
    pub(crate) const ALL: [Self; 3] = [Self::Epoll, Self::Tokio, Self::Uvloop];

    pub(crate) const fn ratio(self) -> &'static str {
        match self {
            Self::Epoll => "throughput_vs_inprocess_epoll",
            Self::Tokio => "throughput_vs_inprocess_tokio",
            Self::Uvloop => "throughput_vs_uvloop",
        }
    }

    /// Returns why this peer cannot run here; `None` if it can.
    pub(crate) fn missing(self) -> Option<&'static str> {
        static MISSING: OnceLock<bool> = OnceLock::new();
        let imports = || {
            let mut python = Command::new(python());
            python.args(["-c", "import uvloop"]).stderr(Stdio::null());
            !python.status().is_ok_and(|status| status.success())
        };
        (self == Self::Uvloop && *MISSING.get_or_init(imports))
            .then_some("the Python, EVLOOPD_BENCH_PYTHON or python3, has no uvloop")
    }

    /// Runs one round in a process of its own and returns its rate.
    pub(crate) fn round(self) -> Outcome<f64> {
        let mut process = match self {
            Self::Epoll => Process::start(&[YARDSTICK, "epoll"])?,
            Self::Tokio => Process::start(&[YARDSTICK, "tokio"])?,
            Self::Uvloop => {
                let (pipes, events) = (PIPES.to_string(), EVENTS.to_string());
                let script = include_str!("readers.py");
                Process::start_program(python().as_ref(), &["-c", script, &pipes, &events])?
            }
        };
        Ok(process.line()?.parse()?)
    }
}

/// Runs one round in this process, which does nothing else, and prints the rate.
pub(crate) fn measure(which: &str) -> Outcome<()> {
    let rate = match which {
        "epoll" => Local::new()?.round()?,
        "epoll-reads" => Local::new()?.reads()?,
        _ => measure_tokio()?,
    };
    println!("{rate}");
    Ok(())
}

/// What waiting and reading alone takes of a processor's time, nanoseconds an event.
pub(crate) fn epoll_reads() -> Outcome<f64> {
    let mut process = Process::start(&[YARDSTICK, "epoll-reads"])?;
    Ok(process.line()?.parse()?)
}

fn measure_tokio() -> Outcome<f64> {
    let (readers, writers) = pipes(PIPES)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outstanding = Rc::new(Cell::new(0));
    let all_read = Rc::new(Notify::new());
    LocalSet::new().block_on(&runtime, async {
        for reader in readers {
            rustix::io::ioctl_fionbio(&reader, true)?;
            let receiver = Receiver::from_owned_fd(reader)?;
            let (outstanding, all_read) = (Rc::clone(&outstanding), Rc::clone(&all_read));
            tokio::task::spawn_local(async move {
                let mut buffer = vec![0; 4096];
                while receiver.readable().await.is_ok() {
                    let Ok(len) = receiver.try_read(&mut buffer) else {
                        continue;
                    };
                    outstanding.set(outstanding.get() - len);
                    if outstanding.get() == 0 {
                        all_read.notify_one();
                    }
                }
            });
        }
        // All tasks are waiting before the clock starts.
        tokio::task::yield_now().await;
        let begun = Instant::now();
        for _ in 0..EVENTS / PIPES {
            outstanding.set(PIPES);
            for writer in &writers {
                rustix::io::write(writer, b"x")?;
            }
            all_read.notified().await;
        }
        Ok(rate(EVENTS, begun))
    })
}

struct Local {
    epoll: OwnedFd,
    readers: Vec<OwnedFd>,
    writers: Vec<OwnedFd>,
    ready: Vec<epoll::Event>,
    buffer: Vec<u8>,
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
            ready: Vec::with_capacity(PIPES),
            buffer: vec![0; 256 * 1024],
        })
    }

    fn round(&mut self) -> Outcome<f64> {
        let begun = Instant::now();
        for _ in 0..EVENTS / PIPES {
            self.write_all()?;
            self.read_all()?;
        }
        Ok(rate(EVENTS, begun))
    }

    fn reads(&mut self) -> Outcome<f64> {
        let mut taken = 0;
        for _ in 0..EVENTS / PIPES {
            self.write_all()?;
            let begun = own_nanos();
            self.read_all()?;
            taken += own_nanos() - begun;
        }
        Ok(each(taken))
    }

    fn write_all(&self) -> Outcome<()> {
        for writer in &self.writers {
            rustix::io::write(writer, b"x")?;
        }
        Ok(())
    }

    fn read_all(&mut self) -> Outcome<()> {
        let mut outstanding = PIPES;
        while outstanding > 0 {
            let ready = rustix::buffer::spare_capacity(&mut self.ready);
            epoll::wait(&self.epoll, ready, None)?;
            for event in self.ready.drain(..) {
                let reader = &self.readers[usize::try_from(event.data.u64())?];
                outstanding -= rustix::io::read(reader, &mut *self.buffer)?;
            }
        }
        Ok(())
    }
}
