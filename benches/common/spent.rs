//! CPU time, as the system counts it.

use std::time::Duration;

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use rustix::time::{ClockId, clock_gettime};

use super::Outcome;

/// Returns the CPU time that this thread has used, in nanoseconds.
pub(crate) fn own_nanos() -> u128 {
    let taken = clock_gettime(ClockId::ThreadCPUTime);
    let [seconds, nanos] =
        [taken.tv_sec, taken.tv_nsec].map(|part| u128::try_from(part).unwrap_or(0));
    seconds * 1_000_000_000 + nanos
}

/// Returns the CPU time that all threads of a process have used.
pub(crate) fn by_process(id: u32) -> Outcome<Duration> {
    let process = Pid::from_raw(i32::try_from(id)?);
    Ok(clock_getcpuclockid(process)?.now()?.into())
}

/// Returns the CPU seconds of a process and of the children that it has waited for.
pub(crate) fn with_children(pid: &str) -> Outcome<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // utime, stime, cutime and cstime of proc_pid_stat(5). The name before them may contain spaces.
    let rest = stat.rsplit_once(')').ok_or("no name")?.1;
    let ticks = rest.split_ascii_whitespace().skip(11).take(4);
    let mut seconds = 0.0;
    for ticks in ticks {
        let ticks: u32 = ticks.parse()?;
        seconds += f64::from(ticks);
    }
    Ok(seconds / f64::from(u32::try_from(rustix::param::clock_ticks_per_second())?))
}
