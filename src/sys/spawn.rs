//! Starting a program, in the way of posix_spawn(3): a child that shares our memory, while the
//! calling thread waits until it executes its program or ends.
//!
//! posix_spawn(3) itself ignores signals 32 and 33 in the child, glibc's own, and knows no limits,
//! umask, nice value or OOM score. What the child calls between the two is of one sort: system
//! calls with what `spawn` has prepared. It takes no lock, allocates nothing and cannot panic, since
//! other threads of ours may hold any lock at that moment.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use nix::libc;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use rustix::process::{Resource, Rlimit, WaitId, WaitIdOptions, waitid};

use super::check;

/// All of it is prepared before there is a child.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// The file to execute; not looked up.
    pub(crate) path: &'a CStr,
    pub(crate) argv: &'a [CString],
    /// `NAME=value`
    pub(crate) env: &'a [CString],
    pub(crate) cwd: &'a CStr,
    /// stdin, stdout, stderr. None of them is 0, 1 or 2: the standard library opens those before
    /// `main` where nobody has.
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    pub(crate) umask: Option<Mode>,
    pub(crate) limits: &'a [(Resource, Rlimit)],
    pub(crate) nice: Option<i32>,
    /// In decimal digits.
    pub(crate) oom_score_adj: Option<&'a [u8]>,
}

/// What is done to get to the program, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Fork,
    Setsid,
    Stdio,
    OomScoreAdj,
    Chdir,
    Setrlimit(Resource),
    Nice,
    Exec,
}

type Failed = (Step, Errno);

/// What the child is given, and gives back.
struct Plan<'a> {
    launch: &'a Launch<'a>,
    argv: *const *const c_char,
    env: *const *const c_char,
    failed: Option<Failed>,
}

/// Starts a child: leader of a session of its own, with the descriptors 0, 1 and 2, no signal blocked
/// and every action the default. Returns its process id and its pidfd once the program is executed.
///
/// # Errors
/// The step that failed. Then there is no child.
pub(crate) fn spawn(launch: &Launch<'_>) -> Result<(i32, OwnedFd), (Step, Errno)> {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        let pointers = strings.iter().map(|string| string.as_ptr());
        pointers.chain([ptr::null()]).collect()
    };
    let (argv, env) = (pointers(launch.argv), pointers(launch.env));
    let mut plan = Plan {
        launch,
        argv: argv.as_ptr(),
        env: env.as_ptr(),
        failed: None,
    };
    let stack = Stack::new().map_err(|errno| (Step::Fork, errno))?;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    let mut pidfd: c_int = -1;
    // A handler of ours that ran in the child would run on our memory.
    let before = set_signal_mask(u64::MAX);
    let given = (&raw mut plan).cast();
    // SAFETY: the child runs `child` with the plan, on a stack of its own. All of it outlives the
    // call, which returns once the child no longer uses our memory (CLONE_VFORK). It writes to the
    // plan only, and the descriptor table is a copy (no CLONE_FILES). The kernel stores the pidfd.
    let cloned = unsafe { libc::clone(child, stack.top(), flags, given, &raw mut pidfd) };
    let cloned = check(cloned.into());
    set_signal_mask(before);
    let pid = cloned.map_err(|errno| (Step::Fork, errno))?;
    // SAFETY: the kernel has just made it for us (CLONE_PIDFD), close-on-exec.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    if let Some(failed) = plan.failed {
        // It has ended, and must not stay a zombie.
        let ended = WaitIdOptions::EXITED;
        let wait = || waitid(WaitId::PidFd(pidfd.as_fd()), ended);
        while matches!(wait(), Err(Errno::INTR)) {}
        return Err(failed);
    }
    let pid = i32::try_from(pid).map_err(|_| (Step::Fork, Errno::OVERFLOW))?;
    Ok((pid, pidfd))
}

extern "C" fn child(plan: *mut c_void) -> c_int {
    // SAFETY: `spawn` gives its plan, and touches it again only when we are gone.
    let plan = unsafe { &mut *plan.cast::<Plan<'_>>() };
    plan.failed = Some(match settle(plan.launch) {
        Err(failed) => failed,
        Ok(()) => {
            // SAFETY: the path ends in NUL, both lists in null, and the strings in them in NUL.
            unsafe { libc::execve(plan.launch.path.as_ptr(), plan.argv, plan.env) };
            (Step::Exec, last_errno())
        }
    });
    127
}

fn last_errno() -> Errno {
    Errno::from_raw_os_error(nix::errno::Errno::last_raw())
}

/// Runs in the child.
fn settle(launch: &Launch<'_>) -> Result<(), Failed> {
    let at = |step| move |errno| (step, errno);
    default_signal_actions();
    rustix::process::setsid().map_err(at(Step::Setsid))?;
    let [stdin, stdout, stderr] = launch.stdio;
    rustix::stdio::dup2_stdin(stdin)
        .and_then(|()| rustix::stdio::dup2_stdout(stdout))
        .and_then(|()| rustix::stdio::dup2_stderr(stderr))
        .map_err(at(Step::Stdio))?;
    close_above_stderr();
    if let Some(digits) = launch.oom_score_adj {
        let path = c"/proc/self/oom_score_adj";
        rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|file| rustix::io::write(file, digits))
            .map_err(at(Step::OomScoreAdj))?;
    }
    rustix::process::chdir(launch.cwd).map_err(at(Step::Chdir))?;
    if let Some(umask) = launch.umask {
        rustix::process::umask(umask);
    }
    // After the last descriptor is opened, and before the nice value, which one of them bounds.
    for (resource, limit) in launch.limits {
        rustix::process::setrlimit(*resource, *limit).map_err(at(Step::Setrlimit(*resource)))?;
    }
    if let Some(nice) = launch.nice {
        rustix::process::setpriority_process(None, nice).map_err(at(Step::Nice))?;
    }
    set_signal_mask(0);
    Ok(())
}

/// Bytes of the kernel's set of signals, which are 64.
const SIGNAL_SET: usize = size_of::<u64>();

/// All of them, 32 and 33 too, for which glibc's own function is an error.
fn default_signal_actions() {
    // The kernel's sigaction of zeros is SIG_DFL without flags; it is smaller than this.
    let default = [0_u64; 8];
    for signal in 1..=64 {
        // SAFETY: valid for reading, and nothing is stored. SIGKILL and SIGSTOP are an error.
        unsafe {
            let old = ptr::null_mut::<c_void>();
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                old,
                SIGNAL_SET,
            )
        };
    }
}

/// Sets the calling thread's mask and returns what it was; glibc's own function leaves out 32 and 33.
fn set_signal_mask(mask: u64) -> u64 {
    let mut old = 0_u64;
    // SAFETY: both are valid for the size that is given; with it, and this operation, nothing can fail.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            &raw mut old,
            SIGNAL_SET,
        )
    };
    old
}

/// Closes what is not the child's. Before Linux 5.9, and where a seccomp filter keeps us from it,
/// execve(2) does: all that we open is close-on-exec, and so is what we have inherited since
/// [`close_inherited_on_exec`].
fn close_above_stderr() {
    // SAFETY: closes descriptors of the child's own table, which nothing in the child uses.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
}

/// Makes every descriptor from 3 on close-on-exec: whoever started us may have left some open.
///
/// # Errors
/// If `/proc/self/fd` cannot be read.
pub(crate) fn close_inherited_on_exec() -> std::io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.parse::<i32>().ok());
        if let Some(number) = number.filter(|number| *number > 2) {
            // SAFETY: takes numbers only. The one that the directory is read with is among them.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// A child's stack until it executes its program, with a guard page below.
struct Stack(*mut c_void, usize);

impl Stack {
    /// System calls need little; the frames of an unoptimised build are larger.
    const SIZE: usize = 64 * 1024;

    fn new() -> Result<Self, Errno> {
        let guard = rustix::param::page_size();
        let len = guard + Self::SIZE;
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::STACK;
        // SAFETY: new memory, where the kernel likes.
        let stack = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), len, rights, flags) };
        let stack = Self(stack?, len);
        // SAFETY: its lowest page, which nobody uses.
        unsafe { rustix::mm::mprotect(stack.0, guard, MprotectFlags::empty()) }?;
        Ok(stack)
    }

    /// Where it begins: it grows downwards.
    const fn top(&self) -> *mut c_void {
        // SAFETY: one past the end of the mapping.
        unsafe { self.0.byte_add(self.1) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and the child is done with it.
        let _ = unsafe { rustix::mm::munmap(self.0, self.1) };
    }
}
