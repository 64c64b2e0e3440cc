//! What the tests share that kill the daemon.

use nix::unistd::Pid;

/// Policies and backends: each class of loop, and each way of a selector loop to wait.
pub(crate) const BACKENDS: [(&str, &str); 4] = [
    ("", "epoll"),
    ("", "poll"),
    ("", "select"),
    ("proactor", "io_uring"),
];

/// Returns the pid of the daemon whose keeper this is; `None` between two lives.
pub(crate) fn life(keeper: Pid) -> Option<Pid> {
    let children = format!("/proc/{keeper}/task/{keeper}/children");
    let children = std::fs::read_to_string(children).ok()?;
    let named = |pid: &Pid| name(*pid).as_deref() == Some("evloopd");
    let pids = children.split_whitespace();
    let mut pids = pids.map(|pid| Pid::from_raw(pid.parse().unwrap()));
    pids.rfind(named)
}

/// Returns the name of a process, as `killall` knows it.
pub(crate) fn name(pid: Pid) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

/// What each side of a stream sends: different for each stream.
pub(crate) fn pattern(salt: u64, len: usize) -> Vec<u8> {
    let words = (0..len as u64 / 8 + 1).flat_map(|word| (word << 8 | salt).to_be_bytes());
    words.take(len).collect()
}

/// Cuts bytes into pieces of many sizes.
pub(crate) fn pieces(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut rest, mut len) = (bytes, 1);
    std::iter::from_fn(move || {
        let (now, later) = rest.split_at(rest.len().min(len));
        rest = later;
        len = len * 7 % 4999 + 1;
        (!now.is_empty()).then_some(now)
    })
}
