//! The signals of the daemon's own process: one thread takes them all, and passes each to its
//! subscribers.
//!
//! [`block_all`] runs before any other thread exists. All threads inherit the mask, so every one of
//! these signals is read from the signalfd of [`SignalHub`]. Child processes would inherit the mask
//! too, as those of `std::process::Command` do; `sys::spawn` clears it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use crate::error::{Error, Result, SystemError};
use crate::poison::Critical;
use crate::sys;

/// The signals that the daemon itself needs. Clients cannot watch them.
pub const RESERVED: [i32; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD];

/// One signal that arrived. The kernel merges equal standard signals that are pending, including
/// SIGCHLD; it queues real-time signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The signal's number, as in signal(7).
    pub number: i32,
    /// The process id of the sender, or of the child for SIGCHLD; 0 if the kernel sent it.
    pub sender_pid: i32,
    /// The real user id of that process.
    pub sender_uid: u32,
    /// The value given to sigqueue(3); 0 if there was none.
    pub value: i32,
}

impl From<&siginfo> for Received {
    fn from(info: &siginfo) -> Self {
        let queued = info.ssi_code == libc::SI_QUEUE;
        Self {
            number: i32::try_from(info.ssi_signo).unwrap_or_default(),
            sender_pid: i32::try_from(info.ssi_pid).unwrap_or_default(),
            sender_uid: info.ssi_uid,
            value: if queued { info.ssi_int } else { 0 },
        }
    }
}

/// A receiver of signals, for example a closure.
pub trait SignalSink: Send + Sync {
    /// Takes one signal. Called on the signal thread: it must not block.
    fn signal(&self, received: Received);
}

impl<F: Fn(Received) + Send + Sync> SignalSink for F {
    fn signal(&self, received: Received) {
        self(received);
    }
}

/// Blocks the allowed signals and the [`RESERVED`] ones in the calling thread and all
/// threads that it starts; with a mask, exactly these and those of the mask. Also restores the
/// default action of SIGCHLD: if the daemon inherited it as ignored, the kernel would discard the
/// exit status of every child.
///
/// # Errors
/// [`Error::InvalidField`] for a number that is not a signal.
pub fn block_all(allowed: &[i32], mask: Option<&[i32]>) -> Result<()> {
    let failed = |errno, step| SystemError::new(errno_of(errno), step, "");
    let set = owned_set(allowed)?;
    sys::default_action(Signal::SIGCHLD).map_err(|errno| failed(errno, "signal"))?;
    let blocked = match mask {
        Some(mask) => owned_set(&[allowed, mask].concat())?.thread_set_mask(),
        None => set.thread_block(),
    };
    Ok(blocked.map_err(|errno| failed(errno, "pthread_sigmask"))?)
}

fn owned_set(allowed: &[i32]) -> Result<SigSet> {
    let numbers = [allowed, &RESERVED].concat();
    sys::signal_set(&numbers).map_err(|_| {
        let highest = libc::SIGRTMAX();
        Error::invalid(
            "signals.allow",
            format!("allowed are the signals 1 to {highest}"),
        )
    })
}

fn errno_of(errno: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(errno as i32)
}

struct Subscriber {
    id: u64,
    numbers: Vec<i32>,
    sink: Arc<dyn SignalSink>,
}

struct Subscribers {
    list: Vec<Subscriber>,
    last_id: u64,
    signals: Arc<SignalFd>,
    /// Those that the thread takes.
    taken: SigSet,
}

impl Subscribers {
    /// Takes the [`RESERVED`] signals only while somebody wants them; until then, they wait in the
    /// kernel. So SIGTERM is not lost while the daemon starts, and a SIGCHLD of each child wakes the
    /// thread only where it tells something.
    fn heed_reserved(&mut self) {
        let before = self.taken;
        for signal in RESERVED
            .iter()
            .filter_map(|number| Signal::try_from(*number).ok())
        {
            let mut numbers = self.list.iter().flat_map(|s| &s.numbers);
            if numbers.any(|number| *number == signal as i32) {
                self.taken.add(signal);
            } else {
                self.taken.remove(signal);
            }
        }
        if self.taken != before {
            // It fails for what is no signalfd only.
            let _ = self.signals.set_mask(&self.taken);
        }
    }

    fn of(&self, number: i32) -> Vec<Arc<dyn SignalSink>> {
        let wanted = self.list.iter().filter(|s| s.numbers.contains(&number));
        wanted.map(|s| Arc::clone(&s.sink)).collect()
    }
}

/// The owner of the signal thread. Dropping it ends the thread.
pub struct SignalHub {
    allowed: Vec<i32>,
    subscribers: Arc<Mutex<Subscribers>>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl SignalHub {
    /// Starts the thread. The signals must be blocked already, with [`block_all`].
    ///
    /// # Errors
    /// [`Error::InvalidField`] for a number that is not a signal, or an error of the system.
    pub fn start(allowed: &[i32]) -> Result<Arc<Self>> {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let taken = owned_set(allowed)?;
        let signals = SignalFd::with_flags(&taken, flags)
            .map_err(|errno| SystemError::new(errno_of(errno), "signalfd", ""))?;
        let signals = Arc::new(signals);
        let stop = eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|errno| SystemError::new(errno, "eventfd", ""))?;
        let stop = Arc::new(stop);
        let mut subscribers = Subscribers {
            list: Vec::new(),
            last_id: 0,
            signals: Arc::clone(&signals),
            taken,
        };
        subscribers.heed_reserved();
        let subscribers = Arc::new(Mutex::new(subscribers));
        let thread = {
            let (stop, subscribers) = (Arc::clone(&stop), Arc::clone(&subscribers));
            std::thread::Builder::new()
                .name("signals".into())
                .spawn(move || {
                    // Without this thread the daemon is deaf.
                    let _critical = Critical::new();
                    fan_out(&signals, &stop, &subscribers);
                })
                .map_err(|error| SystemError::from_io(&error, "pthread_create", "signals"))?
        };
        Ok(Arc::new(Self {
            allowed: allowed.to_vec(),
            subscribers,
            stop,
            thread: Some(thread),
        }))
    }

    /// Whether a client may watch the signal: it is on the allow-list, and not [`RESERVED`].
    #[must_use]
    pub fn allowed(&self, number: i32) -> bool {
        self.allowed.contains(&number) && !RESERVED.contains(&number)
    }

    /// Sends the signals of these numbers to `sink` until the returned value is dropped. Every
    /// number is accepted, but a signal that is neither allowed nor reserved never arrives. A
    /// signal without a subscriber is dropped, unless it is reserved: then it waits for one.
    ///
    /// The number of subscriptions has no limit here: the limits on watches and children bound it.
    pub fn subscribe(&self, numbers: &[i32], sink: Arc<dyn SignalSink>) -> Subscription {
        let mut subscribers = self.subscribers.lock();
        subscribers.last_id += 1;
        let id = subscribers.last_id;
        subscribers.list.push(Subscriber {
            id,
            numbers: numbers.to_vec(),
            sink,
        });
        subscribers.heed_reserved();
        Subscription {
            subscribers: Arc::downgrade(&self.subscribers),
            id,
        }
    }
}

impl fmt::Debug for SignalHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subscribers = self.subscribers.lock().list.len();
        f.debug_struct("SignalHub")
            .field("allowed", &self.allowed)
            .field("subscribers", &subscribers)
            .finish_non_exhaustive()
    }
}

impl Drop for SignalHub {
    fn drop(&mut self) {
        let asked = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        let Some(thread) = self.thread.take() else {
            return;
        };
        // A sink may have held the last reference. This is then the signal thread, which cannot
        // join itself.
        if asked.is_ok() && thread.thread().id() != std::thread::current().id() {
            let _ = thread.join();
        }
    }
}

/// A subscription, which ends when it is dropped. A signal that is just being delivered may still
/// arrive after that.
#[must_use = "dropping it ends the subscription"]
pub struct Subscription {
    subscribers: Weak<Mutex<Subscribers>>,
    id: u64,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Subscription").field(&self.id).finish()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let Some(subscribers) = self.subscribers.upgrade() else {
            return;
        };
        let mut locked = subscribers.lock();
        let place = locked.list.iter().position(|s| s.id == self.id);
        let ended = place.map(|place| locked.list.remove(place));
        locked.heed_reserved();
        drop(locked);
        // Dropped without the lock: this may drop the last reference to the sink, and the sink may
        // hold subscriptions whose drop takes the lock.
        drop(ended);
    }
}

fn fan_out(signals: &SignalFd, stop: &OwnedFd, subscribers: &Mutex<Subscribers>) {
    loop {
        match next(signals, stop) {
            Ok(Some(received)) => {
                // Sinks are called without the lock, since they may subscribe and unsubscribe.
                let sinks = subscribers.lock().of(received.number);
                for sink in sinks {
                    sink.signal(received);
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "the signal thread has failed: no more signals are taken");
                return;
            }
        }
    }
}

/// Waits for the next signal; returns `None` when the thread has to end.
fn next(signals: &SignalFd, stop: &OwnedFd) -> io::Result<Option<Received>> {
    loop {
        let mut fds = [
            PollFd::new(signals, PollFlags::IN),
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        if !fds[1].revents().is_empty() {
            return Ok(None);
        }
        match signals.read_signal() {
            Ok(Some(info)) => return Ok(Some(Received::from(&info))),
            Ok(None) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
