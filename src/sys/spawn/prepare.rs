//! What a child does between its start and its program, except for execve(2) itself. The rules are
//! those of the module above: system calls only, with data that was prepared.

use std::ffi::{CStr, c_int};
use std::os::fd::{AsRawFd, IntoRawFd};

use nix::libc;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::{
    Credentials, Failed, Origin, Place, Plan, Scheduling, Step, check, default_signal_actions,
    set_signal_mask,
};

/// Sets the child's attributes. Runs in the child.
pub(super) fn prepare_child(plan: &mut Plan<'_>) -> Result<(), Failed> {
    let at = |step| move |errno| (step, errno);
    let launch = plan.launch;
    default_signal_actions(plan.signals);
    if launch.new_session {
        rustix::process::setsid().map_err(at(Step::Setsid))?;
    } else {
        rustix::process::setpgid(None, None).map_err(at(Step::Setpgid))?;
    }
    if let Some(terminal) = launch.terminal {
        rustix::process::ioctl_tiocsctty(terminal).map_err(at(Step::Terminal))?;
    }
    if let Some(digits) = launch.oom_score_adj {
        let path = c"/proc/self/oom_score_adj";
        rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|file| rustix::io::write(file, digits))
            .map_err(at(Step::OomScoreAdj))?;
    }
    if let Some(umask) = launch.umask {
        rustix::process::umask(umask);
    }
    if let Some(user) = launch.user {
        take_rights(user).map_err(at(Step::User))?;
    }
    rustix::process::chdir(launch.cwd).map_err(at(Step::Chdir))?;
    place_descriptors(launch.descriptors, plan.sources)?;
    if launch.user.is_some() {
        // The daemon's privileges are needed for what follows.
        set_thread_res_uid(None, plan.own, None).map_err(at(Step::User))?;
    }
    // The limits are set after the last descriptor is opened, because of RLIMIT_NOFILE, and before
    // the nice value, which RLIMIT_NICE bounds.
    for (resource, limit) in launch.limits {
        rustix::process::setrlimit(*resource, *limit).map_err(at(Step::Setrlimit(*resource)))?;
    }
    if let Some(nice) = launch.nice {
        rustix::process::setpriority_process(None, nice).map_err(at(Step::Nice))?;
    }
    if let Some(scheduling) = launch.scheduling {
        schedule(scheduling).map_err(at(Step::Scheduler))?;
    }
    if let Some(Credentials { uid, gid, .. }) = launch.user {
        set_thread_res_gid(*gid, *gid, *gid)
            .and_then(|()| set_thread_res_uid(*uid, *uid, *uid))
            .map_err(at(Step::User))?;
    }
    // A change of the user resets it.
    if let Some(signal) = launch.death_signal {
        set_death_signal(signal).map_err(at(Step::DeathSignal))?;
    }
    set_signal_mask(0);
    Ok(())
}

/// Takes the rights of the user on files, in a way that can be undone.
fn take_rights(user: &Credentials) -> Result<(), Errno> {
    set_thread_groups(&user.groups)?;
    set_thread_res_gid(None, user.gid, None)?;
    set_thread_res_uid(None, user.uid, None)
}

/// Gives the child its descriptors and closes all others.
fn place_descriptors(places: &[Place<'_>], sources: &mut [c_int]) -> Result<(), Failed> {
    let stdio = |errno| (Step::Stdio, errno);
    let last = places.last().map_or(2, |place| place.number);
    // Above all numbers that are given, so that none is overwritten before it is used.
    for (place, source) in places.iter().zip(&mut *sources) {
        *source = match &place.origin {
            Origin::Given(fd) => move_above(fd.as_raw_fd(), last).map_err(stdio)?,
            Origin::File {
                path,
                flags,
                permissions,
            } => {
                let opened = open_file(path, *flags, *permissions);
                let opened = opened.map_err(|errno| (Step::Open(place.number), errno))?;
                move_above(opened, last).map_err(stdio)?
            }
            Origin::Same(_) => -1,
        };
    }
    for (place, source) in places.iter().zip(&*sources) {
        let source = match place.origin {
            Origin::Same(number) => number,
            Origin::Given(_) | Origin::File { .. } => *source,
        };
        // SAFETY: these are numbers in the child's own table. The copy is not close-on-exec.
        let placed = unsafe { libc::dup2(source, place.number) };
        check(placed.into()).map_err(stdio)?;
    }
    for pair in places.windows(2) {
        if let [low, high] = pair
            && low.number + 1 < high.number
        {
            close_range(low.number + 1, high.number - 1);
        }
    }
    close_range(last + 1, c_int::MAX);
    Ok(())
}

/// Returns a copy of a descriptor above `last`, or the descriptor itself if it is there.
fn move_above(fd: c_int, last: c_int) -> Result<c_int, Errno> {
    if fd > last {
        return Ok(fd);
    }
    // SAFETY: the call takes numbers, and the child owns its table.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, last + 1) };
    check(copy.into()).map(|_| copy)
}

/// Opens a file for the child, without waiting. The descriptor is not closed before execve(2).
fn open_file(path: &CStr, flags: OFlags, permissions: Mode) -> Result<c_int, Errno> {
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, permissions)?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) == FileType::Fifo {
        return Err(Errno::NXIO);
    }
    let status = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, status - OFlags::NONBLOCK)?;
    Ok(file.into_raw_fd())
}

/// sched_setscheduler(2) of the calling process.
fn schedule(scheduling: Scheduling) -> Result<(), Errno> {
    let priority = scheduling.priority;
    // SAFETY: the kernel reads the priority, an int, which is all that a sched_param begins with.
    let set = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            scheduling.policy,
            &raw const priority,
        )
    };
    check(set).map(drop)
}

/// The signal comes when the thread ends that has started the child, which therefore has to be as old
/// as the daemon.
fn set_death_signal(signal: c_int) -> Result<(), Errno> {
    // SAFETY: the call takes numbers.
    let set = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) };
    check(set.into()).map(drop)
}

/// Closes all descriptors from `first` to `last`. If the call fails, before Linux 5.9 or because of a
/// seccomp filter, execve(2) closes them: all descriptors that the daemon opens are close-on-exec, and
/// so are those that it inherited, by [`close_inherited_on_exec`](super::close_inherited_on_exec).
fn close_range(first: c_int, last: c_int) {
    // SAFETY: this closes descriptors in the child's own table, which the child no longer uses.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}
