//! The first process. It starts the daemon as a copy of itself that shares its table of file
//! descriptors, and starts the next life of the daemon when one has died.
//!
//! What a life had open when it was killed is therefore still open: connections wait in the queues
//! of the listening sockets, and nothing has to be passed on. The next life takes over what
//! earlier ones have recorded in a page of memory that all share, and closes everything else before
//! it opens anything.
//!
//! The keeper has one thread and no descriptor of its own. It blocks all signals, takes them one by
//! one, and passes those that concern the daemon on, with sender and value. Orphans of a dead life
//! become its children, and it reaps them.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::SigSet;
use rustix::io::Errno;
use sd_notify::NotifyState;

use crate::faults::{self, Point};
use crate::sys::keeper::{self as system, Taken};

mod exits;
mod life;
mod page;

use exits::Exits;
pub use exits::OrphanExit;
pub use life::Life;
use page::{Page, Phase};

pub use page::Kept;

/// The name of the keeper's process, so that `killall evloopd` ends the daemon alone.
const NAME: &std::ffi::CStr = c"evloopd-keeper";
/// The name of a life's process.
const LIFE_NAME: &std::ffi::CStr = c"evloopd";
/// A life that served for less than this long counts as a failure of its start.
const LONG_LIFE: Duration = Duration::from_secs(10);
/// The time before the second restart in a row. It doubles with each further one.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The longest time between two lives, whatever the configuration says.
const DELAY_LIMIT: Duration = Duration::from_secs(3600);

/// How a life has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this exit code.
    Exited(u8),
    /// By this signal.
    Killed(u8),
}

impl Ended {
    const KILLED: u64 = 1 << 8;

    fn to_word(self) -> u64 {
        match self {
            Self::Exited(code) => code.into(),
            Self::Killed(signal) => Self::KILLED | u64::from(signal),
        }
    }

    fn from_word(word: u64) -> Self {
        let number = word.to_le_bytes()[0];
        if word & Self::KILLED == 0 {
            Self::Exited(number)
        } else {
            Self::Killed(number)
        }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with {code}"),
            Self::Killed(signal) => write!(f, "was killed by signal {signal}"),
        }
    }
}

/// What [`start`] returns, once in each process.
#[derive(Debug)]
pub enum Role {
    /// This is a life: it has to serve.
    Life(Life),
    /// This is the keeper, the last life has ended, and so has this process to.
    Ended(ExitCode),
}

/// Makes the calling process the keeper, and returns in each life.
///
/// The process must have one thread.
///
/// # Errors
/// The system refuses the first life.
pub fn start() -> Result<Role, Errno> {
    let page = Page::new()?;
    let exits = Exits::new()?;
    // The first call may open a file. Later the keeper opens none: each life closes what it does not know.
    let _ = crate::clock::boot_ticks();
    faults::arm(0);
    let before = system::block_all_signals();
    let before = before.map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
    let mut keeper = Keeper {
        page,
        exits,
        signals: SigSet::all(),
        has_served: false,
        is_told_serving: false,
        is_told_ending: false,
        passed: 0,
        failures: 0,
        waiting: None,
    };
    loop {
        page.begin();
        match system::clone_with_descriptors() {
            Ok(0) => return Ok(Role::Life(Life::begin(page, exits, before))),
            Ok(life) => {
                keeper.settle();
                let ended = keeper.attend(life);
                if let Some(code) = keeper.after(ended) {
                    return Ok(Role::Ended(code));
                }
            }
            Err(errno) if page.life() == 1 => {
                let _ = before.thread_set_mask();
                return Err(errno);
            }
            Err(_) => {
                if let Some(code) = keeper.after(Ended::Exited(1)) {
                    return Ok(Role::Ended(code));
                }
            }
        }
    }
}

struct Keeper {
    page: Page,
    exits: Exits,
    /// All signals that can be blocked.
    signals: SigSet,
    /// Some life has served.
    has_served: bool,
    /// The service manager was told that the daemon serves, and that it ends.
    is_told_serving: bool,
    is_told_ending: bool,
    /// The signal that was passed on last.
    passed: i32,
    /// How many lives in a row have failed within [`LONG_LIFE`].
    failures: u32,
    /// A signal that asked the daemon to end when there was no life.
    waiting: Option<Taken>,
}

impl Keeper {
    /// Does what the keeper does once, after the first life has been made: a life must inherit none
    /// of it.
    fn settle(&self) {
        if self.page.life() == 1 {
            let _ = rustix::thread::set_name(NAME);
            let _ = rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1));
        }
    }

    /// Passes signals on until the life has ended.
    fn attend(&mut self, life: libc::pid_t) -> Ended {
        self.passed = 0;
        if let Some(taken) = self.waiting.take() {
            self.pass(life, taken);
        }
        let begun = Instant::now();
        loop {
            match system::take_signal(&self.signals, None) {
                Some(taken) if taken.number == libc::SIGCHLD => {
                    let ended = self.reap(life);
                    self.tell();
                    if let Some(ended) = ended {
                        let was_long = begun.elapsed() >= LONG_LIFE && self.has_served;
                        self.failures = if was_long { 1 } else { self.failures + 1 };
                        return ended;
                    }
                }
                Some(taken) => self.pass(life, taken),
                None => {}
            }
        }
    }

    /// Reaps all that has ended. Returns how the life has, if it has.
    fn reap(&self, life: libc::pid_t) -> Option<Ended> {
        let mut ended = None;
        let mut has_recorded = false;
        while let Some((pid, waited)) = system::next_ended() {
            if pid == life {
                let status = waited.status.to_le_bytes()[0];
                ended = Some(if waited.code == libc::CLD_EXITED {
                    Ended::Exited(status)
                } else {
                    Ended::Killed(status)
                });
            } else {
                faults::point(Point::KeeperLooked);
                // An orphan, which may be a child of a dead life: recorded, then reaped.
                let at = crate::clock::boot_ticks();
                if !self.exits.record(&OrphanExit { pid, at, waited }) {
                    break;
                }
                faults::point(Point::KeeperRecorded);
                has_recorded = true;
            }
            system::reap_ended(pid);
            if has_recorded {
                faults::point(Point::KeeperReaped);
            }
        }
        if has_recorded && ended.is_none() && life > 0 {
            // It looks at the exits whenever it is told that a child has ended.
            let _ = system::send_signal(life, libc::SIGCHLD);
        }
        ended
    }

    /// Tells the service manager what the life says of itself. Only the main process of a service is
    /// heard there by default.
    fn tell(&mut self) {
        let phase = self.page.phase();
        if phase != Phase::Starting {
            self.has_served = true;
            if !std::mem::replace(&mut self.is_told_serving, true) {
                let _ = sd_notify::notify(&[NotifyState::Ready]);
            }
        }
        if phase == Phase::Ending && !std::mem::replace(&mut self.is_told_ending, true) {
            let _ = sd_notify::notify(&[NotifyState::Stopping]);
        }
    }

    fn pass(&mut self, life: libc::pid_t, taken: Taken) {
        match taken.number {
            // The terminal stops the keeper's process group, in which the life is not.
            libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => {
                let _ = system::send_signal(life, libc::SIGSTOP);
                let _ = system::send_signal(std::process::id().cast_signed(), libc::SIGSTOP);
                let _ = system::send_signal(life, libc::SIGCONT);
            }
            number => {
                self.passed = number;
                let _ = system::pass_signal(life, taken);
            }
        }
    }

    /// Decides what follows the end of a life: the exit code, or the next life, for which it waits.
    fn after(&mut self, ended: Ended) -> Option<ExitCode> {
        self.page.ended(ended);
        if let Some(service) = self.page.kept(Kept::Service) {
            system::shut_down_accepted(service);
        }
        let was_asked = match ended {
            Ended::Exited(_) => false,
            // SIGQUIT, for example, or a signal that nobody watches.
            Ended::Killed(signal) => i32::from(signal) == self.passed,
        };
        if !self.has_served || was_asked || self.page.phase() == Phase::Ending {
            return Some(end_as(ended));
        }
        if u64::from(self.failures) > self.page.restarts_max() {
            complain(format_args!(
                "evloopd {ended}, and so did {} lives before it: no further one is started",
                self.failures - 1
            ));
            return Some(end_as(ended));
        }
        let delay = self.delay();
        complain(format_args!(
            "evloopd {ended}: the next life starts in {delay:?}"
        ));
        self.pause(delay);
        None
    }

    /// Returns the time to wait before the next life.
    fn delay(&self) -> Duration {
        let Some(doublings) = self.failures.checked_sub(2) else {
            return Duration::ZERO;
        };
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        let delay = FIRST_DELAY.saturating_mul(factor);
        delay.min(self.page.delay_max(DELAY_LIMIT))
    }

    /// Waits. A signal that asks the daemon to end ends the wait: the next life ends in order. All
    /// other signals wait for the next life.
    fn pause(&mut self, delay: Duration) {
        let numbers = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT];
        let Ok(heeded) = crate::sys::signal_set(&numbers) else {
            return;
        };
        let until = Instant::now() + delay;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            match system::take_signal(&heeded, Some(left)) {
                Some(taken) if taken.number == libc::SIGCHLD => {
                    // Its life has ended before; whoever else has is reaped.
                    let _ = self.reap(0);
                }
                Some(taken) => {
                    self.waiting = Some(taken);
                    return;
                }
                None => {}
            }
        }
    }
}

/// Returns the exit code of a life, or ends this process by the signal that ended the life.
fn end_as(ended: Ended) -> ExitCode {
    match ended {
        Ended::Exited(code) => ExitCode::from(code),
        Ended::Killed(signal) => {
            let no_core = rustix::process::Rlimit {
                current: Some(0),
                maximum: Some(0),
            };
            let _ = rustix::process::setrlimit(rustix::process::Resource::Core, no_core);
            system::end_by(signal.into());
            ExitCode::from(128 | signal)
        }
    }
}

/// Writes one line to standard error, without the buffers and locks of std.
fn complain(line: std::fmt::Arguments<'_>) {
    let line = format!("{line}\n");
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
}
