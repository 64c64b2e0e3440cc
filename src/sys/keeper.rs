//! What the keeper and the lives that it starts need of the system.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::io::Errno;
use rustix::net::SocketAddrAny;

use super::{Waited, check};

/// Makes a copy of the calling process that shares its table of file descriptors and nothing else
/// (clone(2) with CLONE_FILES). Returns the pid of the copy, and 0 in the copy.
///
/// The calling process must have one thread: of several, only the calling one would exist in the
/// copy, and locks that others hold would stay locked there.
///
/// # Errors
/// Those of clone(2).
pub(crate) fn clone_with_descriptors() -> Result<libc::pid_t, Errno> {
    let mut own_tid = std::ptr::null_mut::<libc::pid_t>();
    // SAFETY: the call writes a pointer into `own_tid`, which is valid.
    let told = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut own_tid) };
    check(told.into())?;
    let flags =
        libc::CLONE_FILES | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD;
    // SAFETY: without CLONE_VM the copy has memory and a stack of its own. The C library keeps the
    // id of the thread at the address that the kernel has just told; the kernel writes that of the
    // copy there, so that the C library's locks and signals work in it.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(flags),
            0_usize,
            0_usize,
            own_tid,
            0_usize,
        )
    };
    // A pid fits into its own type.
    check(pid).map(|pid| libc::pid_t::try_from(pid).unwrap_or_default())
}

/// A signal as sigtimedwait(2) tells it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) number: i32,
    /// Zeros if the kernel sent it.
    pub(crate) sender_pid: i32,
    pub(crate) sender_uid: u32,
    /// What sigqueue(3) was given; else 0.
    pub(crate) value: i32,
}

/// Waits for a blocked signal of the set and takes it; `None` once the time is over, or if the wait
/// was interrupted.
pub(crate) fn take_signal(set: &SigSet, time: Option<Duration>) -> Option<Taken> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let time = time.map(|time| libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: time.subsec_nanos().into(),
    });
    let limit = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the set, the siginfo and the time, if there is one, are valid for the call.
    let number = unsafe { libc::sigtimedwait(set.as_ref(), info.as_mut_ptr(), limit) };
    if number <= 0 {
        return None;
    }
    // SAFETY: all-zero bytes are a valid siginfo_t, and the kernel has overwritten whole fields.
    let info = unsafe { info.assume_init() };
    let (sender_pid, sender_uid, value) = match info.si_code {
        // SAFETY: signals with these codes have a sender.
        libc::SI_USER | libc::SI_TKILL => unsafe { (info.si_pid(), info.si_uid(), 0) },
        libc::SI_QUEUE => {
            // SAFETY: signals with this code have a sender and a value.
            let (pid, uid, value) = unsafe { (info.si_pid(), info.si_uid(), info.si_value()) };
            // The value is a pointer or a number in one place; sigqueue(3) is mostly given a number.
            let number = value.sival_ptr as usize & 0xffff_ffff;
            (
                pid,
                uid,
                u32::try_from(number).unwrap_or_default().cast_signed(),
            )
        }
        _ => (0, 0, 0),
    };
    Some(Taken {
        number,
        sender_pid,
        sender_uid,
        value,
    })
}

/// The start of the kernel's siginfo for a signal with a sender and a value, see
/// rt_sigqueueinfo(2).
#[repr(C)]
struct Queued {
    number: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    pad: libc::c_int,
    pid: libc::pid_t,
    uid: libc::uid_t,
    value: usize,
    rest: [u8; 96],
}

const _: () = assert!(size_of::<Queued>() == size_of::<libc::siginfo_t>());

/// Sends a signal that was taken to another process, with its sender and its value. Where no more
/// signals can be queued (RLIMIT_SIGPENDING), it is sent without them.
///
/// # Errors
/// ESRCH, EPERM.
pub(crate) fn pass_signal(pid: libc::pid_t, taken: Taken) -> Result<(), Errno> {
    let info = Queued {
        number: taken.number,
        errno: 0,
        code: libc::SI_QUEUE,
        pad: 0,
        pid: taken.sender_pid,
        uid: taken.sender_uid,
        value: taken.value.cast_unsigned() as usize,
        rest: [0; 96],
    };
    // SAFETY: `info` has the size and the layout of a siginfo_t and is only read.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigqueueinfo,
            pid,
            taken.number,
            &raw const info,
        )
    };
    match check(result) {
        Err(Errno::AGAIN) => send_signal(pid, taken.number),
        result => result.map(drop),
    }
}

/// Sends a signal with kill(2).
///
/// # Errors
/// ESRCH, EPERM.
pub(crate) fn send_signal(pid: libc::pid_t, number: i32) -> Result<(), Errno> {
    // SAFETY: kill takes numbers only.
    let result = unsafe { libc::kill(pid, number) };
    check(result.into()).map(drop)
}

/// Returns the next child of this process that has ended, which stays a zombie; `None` if there is
/// none.
pub(crate) fn next_ended() -> Option<(libc::pid_t, Waited)> {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    super::waitid_of(libc::P_ALL, 0, options).ok().flatten()
}

/// Reaps a child that has ended.
pub(crate) fn reap_ended(pid: libc::pid_t) {
    let options = libc::WEXITED | libc::WNOHANG;
    let _ = super::waitid_of(libc::P_PID, pid, options);
}

/// Blocks all signals in the calling thread. Returns the mask before.
///
/// # Errors
/// None are known.
pub(crate) fn block_all_signals() -> nix::Result<SigSet> {
    SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)
}

/// Returns the numbers of the signals in a set, those of real-time signals too.
pub(crate) fn numbers_in(set: &SigSet) -> Vec<i32> {
    // SAFETY: the call only reads the set.
    let has = |number: &i32| unsafe { libc::sigismember(set.as_ref(), *number) == 1 };
    (1..=libc::SIGRTMAX()).filter(has).collect()
}

/// Ends the process as this signal does by default. Returns if the signal does not end a process.
pub(crate) fn end_by(number: i32) {
    // SAFETY: the default action runs no code of this process.
    unsafe { libc::signal(number, libc::SIG_DFL) };
    if let Ok(set) = super::signal_set(&[number]) {
        let _ = set.thread_unblock();
    }
    // SAFETY: raise takes a number only.
    unsafe { libc::raise(number) };
}

/// Returns numbers in memory that this process shares with all copies that it makes of itself. They
/// begin as zeros. The memory lives as long as the last of these processes.
///
/// # Errors
/// ENOMEM.
pub(crate) fn shared_numbers<const COUNT: usize>() -> Result<&'static [AtomicU64; COUNT], Errno> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    let bytes = size_of::<[AtomicU64; COUNT]>();
    // SAFETY: a new mapping at an address that the kernel chooses touches no other memory.
    let place = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, access, flags)? };
    // SAFETY: the mapping is aligned to a page, has the size of the array, is never unmapped, and
    // holds zeros, which are valid atomic numbers.
    Ok(unsafe { &*place.cast::<[AtomicU64; COUNT]>() })
}

/// Sets LISTEN_PID, by which systemd says for which process the sockets that it passes are
/// (sd_listen_fds(3)), to this process, if it is set.
///
/// The process must have one thread.
pub(crate) fn take_over_listen_pid() {
    const NAME: &str = "LISTEN_PID";
    if std::env::var_os(NAME).is_some() {
        let pid = std::process::id().to_string();
        // SAFETY: no other thread exists that could read the environment.
        unsafe { std::env::set_var(NAME, pid) };
    }
}

/// Returns the device and the inode of the file that a descriptor of this number is open for; `None`
/// if there is no such descriptor.
pub(crate) fn identity_of(number: RawFd) -> Option<(u64, u64)> {
    let mut found = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the call takes a number, which may be that of no descriptor, and writes into `found`.
    let looked = unsafe { libc::fstat(number, found.as_mut_ptr()) };
    // SAFETY: all-zero bytes are a valid stat, and the kernel has overwritten whole fields.
    let found = unsafe { found.assume_init() };
    check(looked.into()).ok()?;
    Some((found.st_dev, found.st_ino))
}

/// Owns an open descriptor that another process opened in the table that both share.
///
/// Nothing else in this process may own a descriptor of this number.
pub(crate) fn own(number: RawFd) -> OwnedFd {
    // SAFETY: the caller says that nothing else owns it. If it is closed all the same, the calls
    // that use it fail with EBADF.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Leaves a descriptor open for the processes that share the table: this one closes it never.
pub(crate) fn leave(fd: OwnedFd) {
    let _ = fd.into_raw_fd();
}

/// Closes all descriptors but the first three and those of these numbers.
///
/// The process must not use any other.
pub(crate) fn close_all_but(numbers: impl IntoIterator<Item = RawFd>) {
    let mut kept: Vec<_> = numbers
        .into_iter()
        .filter_map(|number| libc::c_uint::try_from(number).ok())
        .collect();
    kept.sort_unstable();
    let mut from = 3;
    for number in kept.into_iter().filter(|number| *number >= 3) {
        if number > from {
            close_range(from, number - 1);
        }
        from = from.max(number + 1);
    }
    close_range(from, libc::c_uint::MAX);
}

/// Closes the descriptors of these numbers, the last one included.
fn close_range(first: libc::c_uint, last: libc::c_uint) {
    // SAFETY: the caller says that nothing uses the descriptors.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if closed < 0 {
        // A kernel before 5.9, or a filter of system calls, does not know the call.
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let limit = limit.and_then(|limit| libc::c_uint::try_from(limit).ok());
        let end = limit.unwrap_or(libc::c_uint::MAX).min(last);
        for number in first..=end {
            // SAFETY: as above.
            unsafe { libc::close(number.cast_signed()) };
        }
    }
}

/// Returns the numbers of the stream sockets that have the addresses of these listening sockets and do
/// not listen, by the number of the listening socket.
pub(crate) fn accepted_from(
    listeners: impl IntoIterator<Item = RawFd>,
) -> BTreeMap<RawFd, Vec<RawFd>> {
    let mut accepted = BTreeMap::new();
    let mut addresses = Vec::new();
    for number in listeners {
        // SAFETY: the number is only used while this function runs, and a wrong one makes calls fail.
        let listener = unsafe { BorrowedFd::borrow_raw(number) };
        if let Ok(address) = rustix::net::getsockname(listener) {
            addresses.push((address, number));
        }
    }
    if addresses.is_empty() {
        return accepted;
    }
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else {
        return accepted;
    };
    let names = open.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    for number in names.filter_map(|name| name.parse::<RawFd>().ok()) {
        // SAFETY: as above.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let Ok(own) = rustix::net::getsockname(fd) else {
            continue;
        };
        let is_accepted = rustix::net::sockopt::socket_acceptconn(fd) == Ok(false)
            && rustix::net::sockopt::socket_type(fd) == Ok(rustix::net::SocketType::STREAM);
        let listener = addresses.iter().find(|(address, _)| *address == own);
        let any = || addresses.iter().find(|(address, _)| covers(address, &own));
        if is_accepted && let Some((_, listener)) = listener.or_else(any) {
            accepted
                .entry(*listener)
                .or_insert_with(Vec::new)
                .push(number);
        }
    }
    accepted
}

/// Returns whether a socket that listens on `any` address of the host has connections to this one.
fn covers(any: &SocketAddrAny, own: &SocketAddrAny) -> bool {
    let inet = |address: &SocketAddrAny| SocketAddr::try_from(address.clone()).ok();
    let (Some(any), Some(own)) = (inet(any), inet(own)) else {
        return false;
    };
    // Without IPV6_V6ONLY it has those of IPv4, too, whose addresses are mapped.
    any.ip().is_unspecified() && any.port() == own.port() && (any.is_ipv6() || own.is_ipv4())
}

/// Ends both directions of each connected socket that was accepted from the listening socket of
/// this number, so that its peer knows at once. Allocates no memory.
pub(crate) fn shut_down_accepted(listener: RawFd) {
    // SAFETY: the number is only used while this function runs, and a wrong one makes calls fail.
    let listener = unsafe { BorrowedFd::borrow_raw(listener) };
    let Ok(address) = rustix::net::getsockname(listener) else {
        return;
    };
    // To list `/proc/self/fd` takes the kernel much longer.
    for number in 0..table_size().unwrap_or(0) {
        // SAFETY: as above.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let is_same = rustix::net::getsockname(fd).is_ok_and(|own| own == address);
        if is_same && rustix::net::sockopt::socket_acceptconn(fd) == Ok(false) {
            let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
        }
    }
}

/// Returns a number that those of all open descriptors are below. Allocates no memory.
fn table_size() -> Option<RawFd> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let status = rustix::fs::open(c"/proc/self/status", flags, rustix::fs::Mode::empty()).ok()?;
    let mut text = [0; 4096];
    let len = rustix::io::read(&status, &mut text).ok()?;
    let mut lines = text[..len].split(|byte| *byte == b'\n');
    let size = lines.find_map(|line| line.strip_prefix(b"FDSize:"))?;
    std::str::from_utf8(size).ok()?.trim().parse().ok()
}
