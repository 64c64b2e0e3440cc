//! What each backend can do, as data, and what asyncio's documentation says about its own loops.

use super::Backend;
use crate::clock;
use crate::config::Survives;
use crate::kinds::WatchKind;

/// Most file descriptors that `select` watches at once: `FD_SETSIZE` of select(2).
pub const SELECT_LIMIT: usize = 1024;

/// One thing a backend can do, cannot do, or does up to a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// One of the names listed at `Capability.name` in `policy_service.proto`.
    pub name: &'static str,
    /// Whether the backend can do it.
    pub supported: bool,
    /// The largest number, or the resolution in nanoseconds; 0 if the backend itself has no limit.
    pub limit: u64,
    /// Why it is not supported, or where the limit comes from.
    pub reason: &'static str,
    /// Of a kind of watch, and of `post`: the most that it survives. `None` for anything else.
    pub survives: Option<Survives>,
}

impl Capability {
    const fn yes(name: &'static str) -> Self {
        Self::up_to(name, 0, "")
    }

    const fn up_to(name: &'static str, limit: u64, reason: &'static str) -> Self {
        Self {
            name,
            supported: true,
            limit,
            reason,
            survives: None,
        }
    }

    const fn no(name: &'static str, reason: &'static str) -> Self {
        Self {
            name,
            supported: false,
            limit: 0,
            reason,
            survives: None,
        }
    }

    /// A kind of watch.
    const fn watch(kind: WatchKind) -> Self {
        let (survives, reason) = survival(kind);
        Self {
            survives: Some(survives),
            ..Self::up_to(kind.name(), 0, reason)
        }
    }
}

/// Returns the most that a kind of watch survives, and what of it does not.
const fn survival(kind: WatchKind) -> (Survives, &'static str) {
    match kind {
        WatchKind::Fd
        | WatchKind::Timer
        | WatchKind::Signal
        | WatchKind::Listener
        | WatchKind::Process
        | WatchKind::Pid
        | WatchKind::Path
        | WatchKind::File => (Survives::Crash, ""),
        WatchKind::ReadPipe | WatchKind::WritePipe => {
            (Survives::Crash, "a device survives nothing")
        }
        WatchKind::Connection => (Survives::Crash, "with TLS it survives nothing"),
        WatchKind::Datagram => (
            Survives::Crash,
            "datagrams that wait to be sent are lost, which is told",
        ),
    }
}

/// What asyncio's documentation says of its loops on Unix.
const DOCUMENTED_ON_UNIX: [&str; 9] = [
    "fd",
    "timer",
    "process",
    "connection",
    "listener",
    "read_pipe",
    "write_pipe",
    "signal",
    "post",
];

/// Returns the backend's capabilities, kinds of watch first. Empty for a backend that this version
/// does not have.
#[must_use]
pub fn capabilities(backend: Backend) -> Vec<Capability> {
    let watched_fds = match backend {
        Backend::Epoll => (0, "RLIMIT_NOFILE and fs.epoll.max_user_watches"),
        Backend::Poll | Backend::IoUring => (0, "RLIMIT_NOFILE"),
        Backend::Select => (SELECT_LIMIT as u64, "FD_SETSIZE of select(2)"),
        Backend::Kqueue | Backend::Iocp => return Vec::new(),
    };
    let read_at = match backend {
        Backend::IoUring => Capability::up_to(
            "read_at",
            0,
            "no kind of watch uses it: files are read by threads",
        ),
        _ => Capability::no("read_at", "regular files have no readiness"),
    };
    let others = [
        Capability::no(
            "regular_file",
            "it is always ready; epoll_ctl(2) refuses it with EPERM",
        ),
        Capability::up_to("watched_fds", watched_fds.0, watched_fds.1),
        Capability::yes("unix_socket"),
        Capability::yes("tls"),
        Capability::yes("character_device"),
        Capability::up_to(
            "child_watcher",
            0,
            "pidfd, sigchld or thread: the policy chooses",
        ),
        read_at,
        Capability::up_to(
            "clock_resolution_ns",
            clock::resolution(),
            "clock_getres(2) of CLOCK_MONOTONIC",
        ),
    ];
    let post = Capability {
        survives: Some(Survives::Crash),
        ..Capability::yes("post")
    };
    let watches = WatchKind::ALL.map(Capability::watch).into_iter();
    watches.chain([post]).chain(others).collect()
}

/// A loop of asyncio, as its documentation describes it. None of these loops was run.
#[derive(Debug, Clone)]
pub struct DocumentedLoop {
    /// `unix`, `windows` or `macos`.
    pub platform: &'static str,
    /// The name of its class in asyncio.
    pub name: &'static str,
    /// The version and section of the documentation.
    pub source: &'static str,
    /// The capabilities that this section mentions; others are absent.
    pub capabilities: Vec<Capability>,
}

/// Returns asyncio's loops on the platforms that the documentation of Python 3.5.3 distinguishes.
#[must_use]
pub fn documented() -> Vec<DocumentedLoop> {
    let mut unix: Vec<_> = DOCUMENTED_ON_UNIX
        .into_iter()
        .map(Capability::yes)
        .collect();
    unix.extend([
        Capability::up_to("watched_fds", 0, "the limit of the most efficient selector"),
        Capability::yes("unix_socket"),
        Capability::yes("tls"),
        Capability::yes("datagram"),
        Capability::up_to("child_watcher", 0, "set_child_watcher()"),
    ]);
    let windows_clock = Capability::up_to(
        "clock_resolution_ns",
        15_600_000,
        "usually; as low as 0.5 ms, depending on hardware and configuration",
    );
    let not_on_windows = [
        Capability::no("signal", "add_signal_handler() is not supported"),
        Capability::no("unix_socket", "AF_UNIX is specific to Unix"),
        Capability::no("child_watcher", "set_child_watcher() is not supported"),
        windows_clock,
    ];
    let mut windows_selector = vec![
        Capability::up_to("fd", 0, "sockets only"),
        Capability::yes("timer"),
        Capability::no("process", "subprocesses are not supported"),
        Capability::yes("connection"),
        Capability::yes("listener"),
        Capability::no("read_pipe", "pipes are not supported"),
        Capability::no("write_pipe", "pipes are not supported"),
        Capability::yes("post"),
        Capability::up_to("watched_fds", 512, "SelectSelector: 512 sockets"),
        Capability::yes("tls"),
        Capability::yes("datagram"),
    ];
    windows_selector.extend(not_on_windows);
    let mut windows_proactor = vec![
        Capability::no("fd", "add_reader() and add_writer() are not supported"),
        Capability::yes("timer"),
        Capability::yes("process"),
        Capability::yes("connection"),
        Capability::yes("listener"),
        Capability::yes("read_pipe"),
        Capability::yes("write_pipe"),
        Capability::yes("post"),
        Capability::up_to("tls", 0, "SSL since Python 3.5"),
        Capability::no("datagram", "create_datagram_endpoint() is not supported"),
    ];
    windows_proactor.extend(not_on_windows);
    let macos = Capability::no(
        "character_device",
        "KqueueSelector does not support them on macOS 10.6 to 10.8; select and poll do",
    );
    let documented = |platform, name, source, capabilities| DocumentedLoop {
        platform,
        name,
        source,
        capabilities,
    };
    vec![
        documented(
            "unix",
            "SelectorEventLoop",
            "asyncio 3.5.3, 18.5.2.2",
            unix.clone(),
        ),
        documented(
            "windows",
            "SelectorEventLoop",
            "asyncio 3.5.3, 18.5.2.3.1",
            windows_selector,
        ),
        documented(
            "windows",
            "ProactorEventLoop",
            "asyncio 3.5.3, 18.5.2.3.1",
            windows_proactor,
        ),
        documented(
            "macos",
            "SelectorEventLoop",
            "asyncio 3.5.3, 18.5.2.3.2",
            [unix, vec![macos]].concat(),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn what_is_missing_has_a_reason_and_nothing_is_said_twice() {
        let ours = Backend::ALL.map(capabilities);
        let theirs = documented().into_iter().map(|l| l.capabilities);
        for can in ours.into_iter().chain(theirs) {
            let names: HashSet<_> = can.iter().map(|c| c.name).collect();
            assert_eq!(names.len(), can.len());
            let has_reason = |c: &Capability| (c.supported && c.limit == 0) || !c.reason.is_empty();
            assert!(can.iter().all(has_reason), "{can:?}");
        }
    }

    #[test]
    fn only_select_has_a_limit_of_its_own() {
        let limit_of = |backend| {
            capabilities(backend)
                .into_iter()
                .find(|capability| capability.name == "watched_fds")
                .map(|capability| capability.limit)
        };
        assert_eq!(limit_of(Backend::Epoll), Some(0));
        assert_eq!(limit_of(Backend::Poll), Some(0));
        assert_eq!(limit_of(Backend::IoUring), Some(0));
        assert_eq!(limit_of(Backend::Select), Some(1024));
        assert_eq!(limit_of(Backend::Iocp), None);
    }
}
