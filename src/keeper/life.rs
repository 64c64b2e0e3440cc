//! One life of the daemon, as the daemon itself sees it.

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::libc;
use nix::sys::signal::SigSet;
use rustix::io::Errno;

use super::exits::{Exits, OrphanExit};
use super::page::{Kept, Page, Phase};
use super::{Ended, LIFE_NAME};
use crate::faults;
use crate::sys::keeper as system;

/// The present life.
#[derive(Debug, Clone, Copy)]
pub struct Life {
    page: Page,
    exits: Exits,
    /// The signal mask that the first process had.
    mask: SigSet,
}

impl Life {
    /// Makes the process that has just been made one of its own. All signals are blocked.
    pub(super) fn begin(page: Page, exits: Exits, mask: SigSet) -> Self {
        let _ = rustix::thread::set_name(LIFE_NAME);
        // Ctrl-C and Ctrl-Z on a terminal concern the keeper, which passes them on.
        let _ = rustix::process::setsid();
        system::take_over_listen_pid();
        faults::arm(page.life());
        Self { page, exits, mask }
    }

    /// Returns its number, from 1 on.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.page.life()
    }

    /// Sets how many processes the kernel has killed for lack of memory so far. Returns the number that
    /// a life has set before, if one has.
    #[must_use]
    pub fn replace_oom_kills(&self, number: u64) -> Option<u64> {
        let before = self.page.oom_kills();
        self.page.set_oom_kills(number);
        before
    }

    /// Returns the pid of the keeper; `None` if it has ended.
    #[must_use]
    pub fn keeper(&self) -> Option<i32> {
        let parent = rustix::process::getppid().map(rustix::process::Pid::as_raw_pid);
        parent.filter(|pid| *pid == self.page.keeper())
    }

    /// Returns the earlier lives that are remembered, the newest first: the number, when it ended
    /// in nanoseconds of CLOCK_REALTIME, and how.
    pub fn earlier(&self) -> impl Iterator<Item = (u64, u64, Ended)> {
        self.page.earlier()
    }

    /// Returns how a child of a dead life has ended, by its pid and its start time, if the keeper has
    /// reaped it. After that the daemon gets SIGCHLD. Later lives find it, too, until it is
    /// [forgotten](Life::forget_exits).
    #[must_use]
    pub fn orphan_exit(&self, pid: i32, start: u64) -> Option<OrphanExit> {
        let mut all = self.exits.all().map(|(_, exit)| exit);
        all.find(|exit| exit.is_of(pid, start))
    }

    /// Forgets the exits of children of dead lives for which `is_over` says so. The keeper reaps no more
    /// while it has no room for exits.
    pub fn forget_exits(&self, is_over: impl Fn(&OrphanExit) -> bool) {
        for (at, exit) in self.exits.all() {
            if is_over(&exit) {
                self.exits.free(at);
            }
        }
    }

    /// Returns the numbers of the signals that were blocked before the keeper blocked all.
    #[must_use]
    pub fn mask(&self) -> Vec<i32> {
        system::numbers_in(&self.mask)
    }

    /// Says how many lives may fail in a row, each soon after its start, before no further one is
    /// started; and the longest time between two lives.
    pub fn set_restarts(&self, max: u32, delay_max: Duration) {
        self.page.set_restarts(max, delay_max);
    }

    /// Has the next life take this descriptor over.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn keep(&self, kept: Kept, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        self.page.keep(kept, fd)
    }

    /// Closes all that earlier lives have left open, but for what was [kept](Life::keep) and the
    /// descriptors of these numbers. Call it before the process opens anything.
    pub fn close_all_but(&self, numbers: impl IntoIterator<Item = RawFd>) {
        if self.page.life() > 1 {
            let kept = self.page.all_kept().chain(passed_by_systemd());
            system::close_all_but(kept.chain(numbers));
        }
    }

    /// Takes over what an earlier life kept; `None` if none did. Call it at most once for each.
    #[must_use]
    pub fn take(&self, kept: Kept) -> Option<OwnedFd> {
        self.page.kept(kept).map(system::own)
    }

    /// Says that the daemon serves.
    pub fn serving(&self) {
        self.tell(Phase::Serving);
    }

    /// Says that the daemon ends in order, because it was asked to. If the keeper is killed from now
    /// on, as service managers do with what takes too long to end, the daemon ends with it. Call it
    /// on the main thread.
    pub fn ending(&self) {
        let _ =
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        self.tell(Phase::Ending);
    }

    fn tell(&self, phase: Phase) {
        self.page.set_phase(phase);
        if let Some(keeper) = self.keeper() {
            // It looks at the page whenever it is told that a child has changed.
            let _ = system::send_signal(keeper, libc::SIGCHLD);
        }
    }
}

/// Returns the numbers of the sockets that systemd has passed (sd_listen_fds(3)).
fn passed_by_systemd() -> impl Iterator<Item = RawFd> {
    let count = std::env::var("LISTEN_FDS").ok();
    let count: RawFd = count.and_then(|count| count.parse().ok()).unwrap_or(0);
    (0..count.clamp(0, 1024)).map(|index| 3 + index)
}
