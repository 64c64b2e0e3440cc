//! Starts a program in the same way as posix_spawn(3): the child shares the daemon's memory, and
//! the calling thread waits until the child executes its program or ends.
//!
//! posix_spawn(3) itself cannot be used: it makes the child ignore signals 32 and 33, which
//! glibc reserves, and it cannot set limits, the umask, the nice value or the OOM score.
//! Before execve(2) the child only makes system calls with data that `spawn` has prepared. It takes
//! no lock, allocates nothing and cannot panic, since other threads of the daemon may hold any lock
//! at that moment.
//!
//! A child that runs as another user has a copy of the daemon's memory instead, since from then on
//! that user may trace it (ptrace(2)), and since a change of user makes the memory that it shares
//! undumpable (prctl(2)).

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::libc;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use rustix::process::{Gid, Resource, Rlimit, Uid, WaitId, WaitIdOptions, waitid};

use super::{check, clone3};
use crate::faults::{self, Point};
use crate::state::has_started;
use prepare::prepare_child;

mod prepare;

/// The program to start and its attributes, all prepared before the child exists.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// The file to execute; it is not looked up in PATH.
    pub(crate) path: &'a CStr,
    pub(crate) argv: &'a [CString],
    /// The environment: strings `NAME=value`.
    pub(crate) env: &'a [CString],
    pub(crate) cwd: &'a CStr,
    /// The descriptors that it gets, by ascending number from 0; at least 0, 1 and 2.
    pub(crate) descriptors: &'a [Place<'a>],
    /// Whether it leads a new session, not only a new process group.
    pub(crate) new_session: bool,
    /// The controlling terminal of the new session.
    pub(crate) terminal: Option<BorrowedFd<'a>>,
    pub(crate) umask: Option<Mode>,
    pub(crate) limits: &'a [(Resource, Rlimit)],
    pub(crate) nice: Option<i32>,
    /// The value in decimal digits.
    pub(crate) oom_score_adj: Option<&'a [u8]>,
    pub(crate) scheduling: Option<Scheduling>,
    /// The user that it runs as; `None`: the daemon's.
    pub(crate) user: Option<&'a Credentials>,
    /// The signal that it gets when the calling thread ends.
    pub(crate) death_signal: Option<i32>,
    /// Where the child says that it is there, see [`has_started`]; `None` if no later life looks for it.
    pub(crate) start: Option<&'a AtomicU64>,
    /// The directory of the cgroup to start it in. `None`: the daemon's.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
}

/// A descriptor of the child.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    /// Its number in the child.
    pub(crate) number: c_int,
    pub(crate) origin: Origin<'a>,
}

/// Where a descriptor of the child comes from.
#[derive(Debug)]
pub(crate) enum Origin<'a> {
    /// A descriptor of the daemon. It is not 0, 1 or 2: if those are closed, the standard library
    /// opens them before `main`.
    Given(BorrowedFd<'a>),
    /// A file, which is opened by the child with the rights of its user.
    File {
        path: &'a CStr,
        flags: OFlags,
        permissions: Mode,
    },
    /// The same open file as another descriptor of the child, of a lower number.
    Same(c_int),
}

/// A user and groups. The groups are supplementary.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) groups: Vec<Gid>,
}

/// The arguments of sched_setscheduler(2).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scheduling {
    pub(crate) policy: c_int,
    pub(crate) priority: c_int,
}

/// The steps of starting a program, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Fork,
    Setsid,
    Setpgid,
    /// To make the terminal the controlling one.
    Terminal,
    OomScoreAdj,
    /// To take the user's rights, or all of its identity.
    User,
    Chdir,
    /// To open the file for the descriptor of this number.
    Open(c_int),
    /// To give the descriptors their numbers.
    Stdio,
    Setrlimit(Resource),
    Nice,
    Scheduler,
    DeathSignal,
    Exec,
}

type Failed = (Step, Errno);

/// The data that `spawn` gives to the child, and the error that the child returns.
struct Plan<'a> {
    launch: &'a Launch<'a>,
    argv: *const *const c_char,
    env: *const *const c_char,
    /// Signals whose action is another than the default.
    signals: u64,
    /// For each descriptor, the number under which the child has it until all are there.
    sources: &'a mut [c_int],
    /// The daemon's effective user.
    own: Uid,
    /// Where the child says what failed.
    report: *mut Slot,
}

/// Starts a child. It leads a process group of its own, has only the descriptors that it is given,
/// blocks no signal, and has the default action for every signal. Returns its process id and its
/// pidfd once it has executed the program.
///
/// # Errors
/// The step that failed and its errno. Then there is no child.
pub(crate) fn spawn(launch: &Launch<'_>) -> Result<(i32, OwnedFd), (Step, Errno)> {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        let pointers = strings.iter().map(|string| string.as_ptr());
        pointers.chain([ptr::null()]).collect()
    };
    let (argv, env) = (pointers(launch.argv), pointers(launch.env));
    let report = match REPORT.take() {
        Some(report) => report,
        None => Report::new().map_err(|errno| (Step::Fork, errno))?,
    };
    report.reset();
    let mut sources = vec![-1; launch.descriptors.len()];
    let mut plan = Plan {
        launch,
        argv: argv.as_ptr(),
        env: env.as_ptr(),
        signals: own_actions(),
        sources: &mut sources,
        own: rustix::process::geteuid(),
        report: report.0,
    };
    let stack = match STACK.take() {
        Some(stack) => stack,
        None => Stack::new().map_err(|errno| (Step::Fork, errno))?,
    };
    let memory = match launch.user {
        None => libc::CLONE_VM,
        Some(_) => 0,
    };
    let flags = memory | libc::CLONE_VFORK | libc::CLONE_PIDFD;
    let mut pidfd: c_int = -1;
    // Signals are blocked, since a handler of the daemon that ran in the child would change the
    // daemon's memory.
    let before = set_signal_mask(u64::MAX);
    let given = (&raw mut plan).cast();
    faults::point(Point::BeforeFork);
    // SAFETY, both: the child runs `child` with the plan, on a stack of its own. Both outlive the
    // call, which returns once the child no longer uses our memory (CLONE_VFORK), or it has a copy
    // of it. The child writes only to what the plan names, and its descriptor table is a copy (no
    // CLONE_FILES). The kernel stores the pidfd.
    let cloned = match launch.cgroup {
        None => {
            let flags = flags | libc::SIGCHLD;
            // SAFETY: as above.
            let cloned = unsafe { libc::clone(child, stack.top(), flags, given, &raw mut pidfd) };
            check(cloned.into())
        }
        Some(cgroup) => {
            let arguments = clone3::Arguments {
                flags: u64::from(flags.cast_unsigned()) | clone3::INTO_CGROUP,
                pidfd: (&raw mut pidfd).addr() as u64,
                exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
                stack: stack.bottom().addr() as u64,
                stack_size: Stack::SIZE as u64,
                cgroup: u64::from(cgroup.as_raw_fd().cast_unsigned()),
                ..clone3::Arguments::default()
            };
            // SAFETY: as above.
            unsafe { clone3::clone3(&arguments, child, given) }
        }
    };
    set_signal_mask(before);
    STACK.set(Some(stack));
    let failed = report.take();
    REPORT.set(Some(report));
    let pid = cloned.map_err(|errno| (Step::Fork, errno))?;
    // SAFETY: the kernel has just made it for us (CLONE_PIDFD), close-on-exec.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    if let Some(failed) = failed {
        // The child has ended, and is reaped here so that it does not stay a zombie.
        let ended = WaitIdOptions::EXITED;
        let wait = || waitid(WaitId::PidFd(pidfd.as_fd()), ended);
        while matches!(wait(), Err(Errno::INTR)) {}
        return Err(failed);
    }
    let pid = i32::try_from(pid).map_err(|_| (Step::Fork, Errno::OVERFLOW))?;
    Ok((pid, pidfd))
}

extern "C" fn child(plan: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes its plan, and does not use it before the child has executed or ended.
    let plan = unsafe { &mut *plan.cast::<Plan<'_>>() };
    let failed = match prepare_child(plan) {
        Err(failed) => failed,
        // Nobody is there any more to be told.
        Ok(()) if !may_start(plan.launch) => return 127,
        Ok(()) => {
            // SAFETY: the path ends with NUL, both lists with null, and their strings with NUL.
            unsafe { libc::execve(plan.launch.path.as_ptr(), plan.argv, plan.env) };
            (Step::Exec, last_errno())
        }
    };
    // SAFETY: it points to the memory of a `Report`, which the daemon reads when the child has ended.
    unsafe { (&raw mut (*plan.report).failed).write(MaybeUninit::new(failed)) };
    // SAFETY: as above. It comes last: somebody may kill the child in between.
    unsafe { (*plan.report).is_there.store(true, Ordering::Release) };
    127
}

fn may_start(launch: &Launch<'_>) -> bool {
    let pid = || rustix::process::getpid().as_raw_pid();
    launch.start.is_none_or(|start| {
        let before = start.load(Ordering::Acquire);
        faults::point_of_child(Point::ChildBeforeSwap, || true);
        faults::point_of_child(Point::ChildAbandoned, || {
            start.load(Ordering::Acquire) != before
        });
        let may_start = has_started(start, pid());
        faults::point_of_child(Point::ChildAfterSwap, || true);
        may_start
    })
}

fn last_errno() -> Errno {
    Errno::from_raw_os_error(nix::errno::Errno::last_raw())
}

/// The size of the kernel's signal set in bytes: one bit for each of 64 signals.
const SIGNAL_SET: usize = size_of::<u64>();

/// What the kernel knows of a signal's action: its `sigaction` is smaller on every architecture.
type Action = [u64; 8];

/// rt_sigaction(2), of any signal, 32 and 33 too, for which glibc's own function is an error.
fn signal_action(signal: u32, new: Option<&Action>, old: Option<&mut Action>) {
    let new = new.map_or(ptr::null(), ptr::from_ref);
    let old = old.map_or(ptr::null_mut(), ptr::from_mut);
    // SAFETY: null, or valid for reading or writing more than the kernel's sigaction. SIGKILL and
    // SIGSTOP can be asked for; to set them is an error. The default action, which is all that is
    // set here, runs no code of ours.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, new, old, SIGNAL_SET) };
}

/// The signals, one bit each, whose action is not the default: ignored, mostly by whoever started us
/// and by the standard library before `main`, or handled. Nobody changes one later.
fn own_actions() -> u64 {
    static OWN: OnceLock<u64> = OnceLock::new();
    *OWN.get_or_init(|| {
        let is_own = |signal: &u32| {
            let mut action = Action::default();
            signal_action(*signal, None, Some(&mut action));
            // The handler comes first; SIG_DFL is 0.
            action[0] != 0
        };
        let own = (1..=64).filter(is_own);
        own.fold(0, |set, signal| set | 1 << (signal - 1))
    })
}

/// A handler would run on our memory, and what is ignored stays so in the program.
fn default_signal_actions(mut signals: u64) {
    while signals != 0 {
        // The kernel's sigaction of zeros is SIG_DFL without flags.
        signal_action(signals.trailing_zeros() + 1, Some(&Action::default()), None);
        signals &= signals - 1;
    }
}

/// Sets the calling thread's signal mask and returns the old one. glibc's function leaves out
/// signals 32 and 33.
fn set_signal_mask(mask: u64) -> u64 {
    let mut old = 0_u64;
    // SAFETY: both pointers are valid for the given size. With this size and operation the call
    // cannot fail.
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

/// What a child says.
struct Slot {
    is_there: AtomicBool,
    failed: MaybeUninit<Failed>,
}

/// Memory in which a child says what has failed, whether it shares the daemon's memory or not.
struct Report(*mut Slot);

impl Report {
    fn new() -> Result<Self, Errno> {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED;
        // SAFETY: this maps new memory at an address that the kernel chooses.
        let page = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), size_of::<Slot>(), rights, flags)
        }?;
        Ok(Self(page.cast()))
    }

    fn reset(&self) {
        let empty = Slot {
            is_there: AtomicBool::new(false),
            failed: MaybeUninit::uninit(),
        };
        // SAFETY: `new` has mapped enough memory, and a page is aligned for every type. No child uses
        // it now.
        unsafe { self.0.write(empty) };
    }

    /// Returns what the child has said. It has ended, or has executed its program.
    fn take(&self) -> Option<Failed> {
        // SAFETY: `reset` has written a whole value, and nothing else writes to it any more.
        let slot = unsafe { &*self.0 };
        // SAFETY: the child has written it before it has set the flag. It contains no pointer.
        (slot.is_there.load(Ordering::Acquire)).then(|| unsafe { slot.failed.assume_init() })
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // SAFETY: `new` has mapped it, and no child uses it any more.
        let _ = unsafe { rustix::mm::munmap(self.0.cast(), size_of::<Slot>()) };
    }
}

/// Sets close-on-exec for every descriptor from 3 on, since the parent of the daemon may have left
/// some open.
///
/// # Errors
/// The kernel is older than 5.11, and `/proc/self/fd` cannot be read.
pub(crate) fn close_inherited_on_exec() -> std::io::Result<()> {
    // A life that goes on with thousands of descriptors would list them for long.
    let (first, last, flags) = (3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: the call takes only numbers, and closes nothing.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } == 0 {
        return Ok(());
    }
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.parse::<i32>().ok());
        if let Some(number) = number.filter(|number| *number > 2) {
            // SAFETY: the call takes only numbers. It also sets the descriptor that reads the
            // directory, which is harmless.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

thread_local! {
    /// The stack of the thread's last child: to map one takes longer than a child uses it.
    static STACK: Cell<Option<Stack>> = const { Cell::new(None) };
    /// The memory for the report of the thread's last child.
    static REPORT: Cell<Option<Report>> = const { Cell::new(None) };
}

/// The stack of a child until it executes its program, with a guard page below: address and length.
struct Stack(*mut c_void, usize);

impl Stack {
    /// The usable bytes. System calls need little stack, but an unoptimised build has large frames.
    const SIZE: usize = 64 * 1024;

    fn new() -> Result<Self, Errno> {
        let guard = rustix::param::page_size();
        let len = guard + Self::SIZE;
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::STACK;
        // SAFETY: this maps new memory at an address that the kernel chooses.
        let stack = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), len, rights, flags) };
        let stack = Self(stack?, len);
        // SAFETY: this protects the lowest page of the new mapping, which is not in use.
        unsafe { rustix::mm::mprotect(stack.0, guard, MprotectFlags::empty()) }?;
        Ok(stack)
    }

    /// Returns the lowest usable byte.
    fn bottom(&self) -> *mut c_void {
        // SAFETY: the guard page is a part of the mapping.
        unsafe { self.0.byte_add(self.1 - Self::SIZE) }
    }

    /// Returns the end of the mapping, where the stack begins: it grows downwards.
    const fn top(&self) -> *mut c_void {
        // SAFETY: the result is one past the end of the mapping.
        unsafe { self.0.byte_add(self.1) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: `new` has mapped it, and no child uses it any more.
        let _ = unsafe { rustix::mm::munmap(self.0, self.1) };
    }
}
