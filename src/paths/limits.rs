//! What bounds the module, and what the kernel allows.

use std::fs;
use std::time::Duration;

/// Bounds of a [`Hub`](super::Hub).
#[derive(Debug, Clone)]
pub struct Limits {
    /// Kernel watches that the hub holds at most, over all subscriptions.
    pub watches: usize,
    /// Subscriptions at most.
    pub subscriptions: usize,
    /// Calls of `watch` that wait for the hub's thread at most; further ones block.
    pub commands: usize,
    /// Bytes of directory entries that one piece of a scan looks at, at least 4 KiB: the kernel's queue is
    /// drained between pieces.
    pub scan_piece: usize,
    /// Events taken from the kernel's queue before the next piece of a scan.
    pub drain_events: usize,
    /// Moves of a subscription whose other half has not come yet. The oldest gives way.
    pub pending_moves: usize,
    /// How long the second half of a move is waited for. The kernel queues both in one go.
    pub move_expiry: Duration,
    /// How long until what could not be watched is tried again.
    pub retry: Duration,
    /// Entries of one directory remembered while it is scanned, so that none is told twice.
    pub seen_names: usize,
    /// Directories below each other, counted from the root, which is the first.
    pub depth: usize,
    /// Attempts to open a directory that is being renamed before it is given up with a `Rescan`.
    pub attempts: u8,
    /// Ignore patterns of a subscription.
    pub patterns: usize,
    /// Bytes of one ignore pattern.
    pub pattern_bytes: usize,
    /// Entries that a polled subscription looks at in one round.
    pub poll_entries: usize,
    /// The shortest interval of polling.
    pub poll_interval_min: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            watches: 131_072,
            subscriptions: 4_096,
            commands: 64,
            scan_piece: 8 << 10,
            drain_events: 8_192,
            pending_moves: 64,
            move_expiry: Duration::from_millis(50),
            retry: Duration::from_secs(10),
            seen_names: 65_536,
            depth: 128,
            attempts: 16,
            patterns: 256,
            pattern_bytes: 1_024,
            poll_entries: 65_536,
            poll_interval_min: Duration::from_millis(10),
        }
    }
}

/// Bounds of one subscription's [`Inbox`](super::Inbox).
#[derive(Debug, Clone, Copy)]
pub struct InboxLimits {
    /// Events that wait for the reader.
    pub entries: usize,
    /// Bytes of their paths, and [`EVENT_BYTES`] for each.
    pub bytes: usize,
}

/// What an event counts in an inbox besides its paths, in bytes.
pub const EVENT_BYTES: usize = 64;

impl Default for InboxLimits {
    fn default() -> Self {
        Self {
            entries: 16_384,
            bytes: 4 << 20,
        }
    }
}

/// The kernel's limits for this user, as they are now. None: not readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelLimits {
    /// `fs.inotify.max_user_watches`.
    pub max_user_watches: Option<u64>,
    /// `fs.inotify.max_user_instances`.
    pub max_user_instances: Option<u64>,
    /// `fs.inotify.max_queued_events`; an instance keeps the value of its start.
    pub max_queued_events: Option<u64>,
}

/// A limit of the kernel on what a user may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserLimit {
    /// The sysctl.
    pub name: &'static str,
    /// Its value now. None: not readable.
    pub value: Option<u64>,
}

impl UserLimit {
    /// That on watches.
    pub(super) fn watches() -> Self {
        let host = ("fs.inotify.max_user_watches", "fs/inotify/max_user_watches");
        let own = ("user.max_inotify_watches", "user/max_inotify_watches");
        Self::lower(host, own)
    }

    /// That on instances.
    pub(super) fn instances() -> Self {
        let host = (
            "fs.inotify.max_user_instances",
            "fs/inotify/max_user_instances",
        );
        let own = ("user.max_inotify_instances", "user/max_inotify_instances");
        Self::lower(host, own)
    }

    /// The one that is reached first: a user namespace other than the host's has limits of its own.
    fn lower(host: (&'static str, &str), own: (&'static str, &str)) -> Self {
        let read = |(name, file)| Self {
            name,
            value: sysctl(file),
        };
        let (host, own) = (read(host), read(own));
        match (host.value, own.value) {
            (Some(most), Some(value)) if value < most => own,
            (None, Some(_)) => own,
            _ => host,
        }
    }
}

fn sysctl(file: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/sys/{file}")).ok()?;
    text.trim().parse().ok()
}

impl KernelLimits {
    /// Reads them from `/proc/sys/fs/inotify`.
    #[must_use]
    pub fn read() -> Self {
        let read = |name: &str| sysctl(&format!("fs/inotify/{name}"));
        Self {
            max_user_watches: read("max_user_watches"),
            max_user_instances: read("max_user_instances"),
            max_queued_events: read("max_queued_events"),
        }
    }
}
