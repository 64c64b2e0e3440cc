//! A test rig: a driver without a loop, and its completions as text.

use super::*;
use crate::state::{Arena, Keep};

pub(super) struct Rig {
    pub(super) driver: Box<dyn Driver>,
    pub(super) waker: Arc<OwnedFd>,
    /// Whether the backend's capabilities include `read_at`.
    pub(super) reads_files: bool,
}

impl Rig {
    pub(super) fn new(backend: Backend) -> Self {
        let mut can = capability::capabilities(backend).into_iter();
        let reads_files = can.any(|c| c.name == "read_at" && c.supported);
        Self::with(reads_files, |waker| open(backend, waker, &Keep::Own))
    }

    /// Opens a backend of which later lives find what it transfers.
    pub(super) fn kept(backend: Backend) -> Self {
        let keep = Keep::Kept(Arena::new().unwrap(), 1);
        let reads_files = Self::new(backend).reads_files;
        Self::with(reads_files, |waker| open(backend, waker, &keep))
    }

    /// Opens a ring that behaves as on an older kernel.
    pub(super) fn plain_io_uring() -> Self {
        Self::with(true, proactor::open_plain)
    }

    fn with(
        reads_files: bool,
        open: impl FnOnce(Arc<OwnedFd>) -> io::Result<Box<dyn Driver>>,
    ) -> Self {
        let waker = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        Self {
            driver: open(Arc::clone(&waker)).unwrap(),
            waker,
            reads_files,
        }
    }

    pub(super) fn attach(&mut self, fd: impl Into<OwnedFd>, mode: Nonblocking) -> SourceId {
        self.driver.attach(fd.into(), mode).unwrap()
    }

    pub(super) fn turn(&mut self, timeout: Duration, budget: Budget) -> Vec<Completion> {
        let mut completions = Vec::new();
        self.driver.committed();
        self.driver
            .turn(Some(timeout), budget, &mut completions)
            .unwrap();
        completions
    }

    /// Takes turns until there is a completion. Returns the turn's completions as text.
    pub(super) fn next(&mut self) -> Vec<String> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            let completions = self.turn(PATIENCE, AMPLE);
            if !completions.is_empty() {
                return completions.iter().map(words).collect();
            }
        }
        panic!("nothing happened");
    }

    /// Takes turns until there are as many completions as expected, and compares them.
    pub(super) fn expect(&mut self, expected: &[&str]) {
        let mut said = Vec::new();
        while said.len() < expected.len() {
            said.extend(self.next());
        }
        assert_eq!(said, expected);
    }

    /// Checks that no completion comes and that the turn waits for its whole timeout.
    pub(super) fn assert_silent(&mut self) {
        let start = Instant::now();
        let completions = self.turn(WHILE, AMPLE);
        assert!(completions.is_empty(), "{completions:?}");
        assert!(start.elapsed() >= WHILE, "it did not wait");
    }
}

pub(super) fn id(number: u32) -> OpId {
    OpId {
        watch: Key {
            slot: number,
            generation: 0,
        },
        lane: Lane(0),
    }
}

/// Formats a completion as `NUMBER RESULT`, with a full stop if it is the last.
pub(super) fn words(completion: &Completion) -> String {
    let what = match &completion.done {
        Done::Ready(ready) => [
            (ready.readable, "readable"),
            (ready.writable, "writable"),
            (ready.hangup, "hangup"),
            (ready.half_closed, "half-closed"),
            (ready.error, "error"),
        ]
        .into_iter()
        .filter_map(|(set, name)| set.then_some(name))
        .collect::<Vec<_>>()
        .join("+"),
        Done::Data(bytes) => format!("data {}", bytes.escape_ascii()),
        Done::Eof => "eof".to_owned(),
        Done::Accepted(..) => "accepted".to_owned(),
        Done::Connected => "connected".to_owned(),
        Done::Sent(len) => format!("sent {len}"),
        Done::Failed(errno) => {
            let errno = nix::errno::Errno::from_raw(errno.raw_os_error());
            format!("failed {errno:?}")
        }
        Done::Cancelled => "cancelled".to_owned(),
    };
    let stop = if completion.last { "." } else { "" };
    format!("{} {what}{stop}", completion.id.watch.slot)
}

pub(super) fn blocking_pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).unwrap()
}
