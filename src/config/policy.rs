//! `[policy.NAME]`: how loops are made, and which loop belongs to which context.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::refusals::{self, Refusable};
use super::units;
use crate::kinds::WatchKind;
use crate::words::words;

/// Name of the policy that is in force if none is configured.
pub(super) const DEFAULT: &str = "default";
/// Name of the shipped policy that has the limits of asyncio's selector loop on Windows.
pub const WINDOWS_SELECTOR_COMPAT: &str = "windows-selector-compat";
/// Name of the shipped policy of the proactor class.
pub(super) const PROACTOR: &str = "proactor";
/// Name of the shipped policy that has the limits of asyncio's proactor loop on Windows.
pub const WINDOWS_PROACTOR_COMPAT: &str = "windows-proactor-compat";
/// Name of the shipped policy that has the limits of asyncio's kqueue loop on old versions of macOS.
pub const MACOS_KQUEUE_COMPAT: &str = "macos-kqueue-compat";
/// The usual resolution of the clock of Windows.
const WINDOWS_TICK: Duration = Duration::from_micros(15_600);

/// A policy, with all inherited values filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Its name: `[a-z0-9][a-z0-9._-]{0,62}`.
    #[serde(skip)]
    pub name: String,
    /// One sentence; not inherited.
    pub description: String,
    /// The policy from which every key that is left out is taken. None: the built-in defaults.
    pub extends: Option<String>,
    /// `selector`: loops wait for readiness; `proactor`: for completion.
    pub class: String,
    /// Backends, at least one, tried in this order; `auto` is the most efficient one of this host.
    pub backends: Vec<String>,
    /// The context whose loop a call without a session gets.
    pub context: Context,
    /// The result of GetEventLoop when the context has no loop.
    pub on_missing: OnMissing,
    /// State of a new loop.
    pub start: Start,
    /// The means by which the daemon notices the end of a child.
    pub child_watcher: ChildWatcher,
    /// The kinds of watches that its loops accept. In TOML, `all` stands for every kind.
    #[serde(with = "kinds")]
    pub watch_kinds: BTreeSet<WatchKind>,
    /// What its loops refuse all the same, each with the reason that the refusal gives.
    #[serde(with = "refusals")]
    pub refuses: BTreeMap<Refusable, String>,
    /// Whether file descriptors that clients hand over must be sockets.
    pub sockets_only: bool,
    /// Sources that one loop may have at once. None (in TOML 0): as many as its backend supports.
    #[serde(with = "units::zero_is_none")]
    pub max_sources: Option<u64>,
    /// The step of the clock by which timers fire, at most 1 s: each fires at the first multiple of
    /// it at or after its time. Zero: timers are as exact as the host's clock.
    #[serde(with = "units::duration")]
    pub timer_tick: Duration,
    /// Watches of one loop, including closed watches that are still readable, 1 to 10,000,000.
    pub max_watches: u64,
    /// Events that one journal holds, 16 to 100,000,000.
    pub journal_events: u64,
    /// Bytes that one journal holds, 64 KiB to 1 TiB; `limits.memory` bounds all journals together.
    #[serde(with = "units::size")]
    pub journal_bytes: u64,
    /// Whether events stay in the journal once all its readers have read them.
    pub history: History,
    /// The most that its loops, their watches and their consumers survive.
    pub survives: Survives,
    /// The reaction to a journal that is full of events which consumers have not acknowledged.
    pub when_full: WhenFull,
    /// Unacknowledged bytes of one watch above which that watch pauses alone, 4 KiB to
    /// `journal_bytes`. None (in TOML 0B): a quarter of `journal_bytes`.
    #[serde(with = "units::zero_size_is_none")]
    pub journal_watch_bytes: Option<u64>,
    /// The newest bytes of every watch that are trimmed last, at most `journal_bytes`. Half of
    /// `journal_bytes` is kept for these bytes of all watches.
    #[serde(with = "units::size")]
    pub journal_watch_keep: u64,
    /// Bytes of output that the slowest attached reader of a process may be behind before the
    /// process waits for it, 4 KiB to 1 GiB. An eighth of `journal_bytes` is in force if that is
    /// less.
    #[serde(with = "units::size")]
    pub attached_bytes: u64,
    /// How long a process waits for an attached reader that reads nothing, 1 s to 30 days.
    #[serde(with = "units::duration")]
    pub attached_patience: Duration,
    /// How long a consumer that nobody holds is kept unless it sets its own TTL, 1 s to 365 days.
    #[serde(with = "units::duration")]
    pub consumer_ttl: Duration,
    /// How long a closed watch stays readable, at most 30 days.
    #[serde(with = "units::duration")]
    pub finished_ttl: Duration,
    /// How long a closed loop's journal stays readable, at most 30 days.
    #[serde(with = "units::duration")]
    pub closed_ttl: Duration,
    /// Name of the loop that is made for a context; the contexts of sessions and
    /// processes append their own name to it.
    pub loop_name: String,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            name: DEFAULT.to_owned(),
            description: String::new(),
            extends: None,
            class: "selector".to_owned(),
            backends: vec!["auto".to_owned()],
            context: Context::Principal,
            on_missing: OnMissing::Create,
            start: Start::Running,
            child_watcher: ChildWatcher::Pidfd,
            watch_kinds: WatchKind::ALL.into(),
            refuses: BTreeMap::new(),
            sockets_only: false,
            max_sources: None,
            timer_tick: Duration::ZERO,
            max_watches: 100_000,
            journal_events: 1_000_000,
            journal_bytes: 64 << 20,
            history: History::Kept,
            survives: Survives::Crash,
            when_full: WhenFull::Pause,
            journal_watch_bytes: None,
            journal_watch_keep: 64 << 10,
            attached_bytes: 1 << 20,
            attached_patience: Duration::from_secs(600),
            consumer_ttl: Duration::from_secs(24 * 3600),
            finished_ttl: Duration::from_secs(3600),
            closed_ttl: Duration::from_secs(600),
            loop_name: "default".to_owned(),
        }
    }
}

impl Policy {
    /// Returns why its loops refuse something; `None` if they do not.
    #[must_use]
    pub fn refusal(&self, of: Refusable) -> Option<&str> {
        if let Some(reason) = self.refuses.get(&of) {
            return Some(reason);
        }
        match of {
            Refusable::Kind(kind) if !self.watch_kinds.contains(&kind) => {
                Some("it is not among the policy's watch_kinds")
            }
            _ => None,
        }
    }

    /// Returns the kinds of watch that its loops accept.
    pub fn accepted_kinds(&self) -> impl Iterator<Item = WatchKind> {
        let all = WatchKind::ALL.into_iter();
        all.filter(|kind| self.refusal(Refusable::Kind(*kind)).is_none())
    }
}

/// Returns the policies that exist without a file.
pub(super) fn shipped() -> [Policy; 5] {
    let default = Policy {
        description: "Everything, on the most efficient backend".to_owned(),
        ..Policy::default()
    };
    let proactor = Policy {
        name: PROACTOR.to_owned(),
        description: "Everything, by completion".to_owned(),
        extends: Some(DEFAULT.to_owned()),
        class: "proactor".to_owned(),
        ..Policy::default()
    };
    [
        default,
        proactor,
        windows_proactor(),
        windows_selector(),
        macos_kqueue(),
    ]
}

/// Section 18.5.2.3.1 of the asyncio documentation of Python 3.5.3. What it does not mention is not
/// refused, so a kind that is added later is accepted.
fn windows_proactor() -> Policy {
    Policy {
        name: WINDOWS_PROACTOR_COMPAT.to_owned(),
        description: "The documented limits of asyncio's proactor event loop on Windows".to_owned(),
        extends: Some(DEFAULT.to_owned()),
        class: "proactor".to_owned(),
        refuses: refusals::of(&[
            (
                Refusable::Kind(WatchKind::Fd),
                "add_reader() and add_writer() are not supported",
            ),
            (
                Refusable::Kind(WatchKind::Signal),
                "add_signal_handler() is not supported",
            ),
            (
                Refusable::Kind(WatchKind::Datagram),
                "create_datagram_endpoint() is not supported",
            ),
            (Refusable::UnixSocket, "AF_UNIX is specific to Unix"),
        ]),
        timer_tick: WINDOWS_TICK,
        ..Policy::default()
    }
}

/// As [`windows_proactor`].
fn windows_selector() -> Policy {
    Policy {
        name: WINDOWS_SELECTOR_COMPAT.to_owned(),
        description: "The documented limits of asyncio's selector event loop on Windows".to_owned(),
        extends: Some(DEFAULT.to_owned()),
        backends: vec!["select".to_owned()],
        refuses: refusals::of(&[
            (
                Refusable::Kind(WatchKind::Process),
                "subprocesses are not supported",
            ),
            (
                Refusable::Kind(WatchKind::ReadPipe),
                "pipes are not supported",
            ),
            (
                Refusable::Kind(WatchKind::WritePipe),
                "pipes are not supported",
            ),
            (
                Refusable::Kind(WatchKind::Signal),
                "add_signal_handler() is not supported",
            ),
            (Refusable::UnixSocket, "AF_UNIX is specific to Unix"),
        ]),
        sockets_only: true,
        max_sources: Some(512),
        timer_tick: WINDOWS_TICK,
        ..Policy::default()
    }
}

/// Section 18.5.2.3.2 of the same documentation. epoll stands for kqueue, and the policy has no
/// other backend: with select and poll these devices are supported.
fn macos_kqueue() -> Policy {
    Policy {
        name: MACOS_KQUEUE_COMPAT.to_owned(),
        description: "The documented limits of asyncio's event loop on macOS 10.6 to 10.8"
            .to_owned(),
        extends: Some(DEFAULT.to_owned()),
        backends: vec!["epoll".to_owned()],
        refuses: refusals::of(&[(
            Refusable::CharacterDevice,
            "KqueueSelector does not support them on macOS 10.6 to 10.8; select and poll do",
        )]),
        ..Policy::default()
    }
}

/// `#[serde(with)]` for sets of kinds of watch.
mod kinds {
    use serde::de::IntoDeserializer as _;
    use serde::{Deserializer, Serializer};

    use super::*;

    /// The word for every kind that this version has.
    const ALL: &str = "all";

    pub(super) fn serialize<S: Serializer>(
        kinds: &BTreeSet<WatchKind>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        if kinds.len() == WatchKind::ALL.len() {
            return serializer.collect_seq([ALL]);
        }
        serializer.collect_seq(kinds)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeSet<WatchKind>, D::Error> {
        let words = Vec::<Word>::deserialize(deserializer)?;
        Ok(words.into_iter().flat_map(|Word(kinds)| kinds).collect())
    }

    /// The kinds that one word stands for.
    struct Word(Vec<WatchKind>);

    impl<'de> Deserialize<'de> for Word {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let word = String::deserialize(deserializer)?;
            if word == ALL {
                return Ok(Self(WatchKind::ALL.into()));
            }
            WatchKind::deserialize(word.into_deserializer()).map(|kind| Self(vec![kind]))
        }
    }
}

words! {
    /// The context whose loop a call without a session gets.
    Context {
        /// The authenticated caller.
        Principal = "principal",
        /// The session that the call names; it must name one.
        Session = "session",
        /// The client process.
        Process = "process",
    }
}

words! {
    /// The result of GetEventLoop when a context has no loop.
    OnMissing {
        /// A loop is made and run.
        Create = "create",
        /// The call fails with NO_LOOP_IN_CONTEXT.
        Error = "error",
    }
}

words! {
    /// The reaction to a journal that is full of events which consumers have not acknowledged.
    WhenFull {
        /// Sources are not read until there is room: the kernel holds their producers back.
        Pause = "pause",
        /// The oldest events are dropped; a reader that has not read them gets a gap.
        DropOldest = "drop_oldest",
    }
}

words! {
    /// What a loop survives.
    Survives {
        /// It ends with the daemon.
        None = "none",
        /// It goes on in the next life of a daemon that was killed or has crashed.
        Crash = "crash",
    }
}

words! {
    /// Whether events stay in the journal once all its readers have read them.
    History {
        /// Events stay until their room is needed.
        Kept = "kept",
        /// Events are dropped.
        None = "none",
    }
}

words! {
    /// State of a new loop.
    Start {
        /// The loop polls its sources.
        Running = "running",
        /// The loop polls its sources only after RunLoop.
        Created = "created",
    }
}

words! {
    /// The means by which the daemon notices the end of a child.
    ChildWatcher {
        /// A pidfd that the loop watches, pidfd_open(2).
        Pidfd = "pidfd",
        /// SIGCHLD; the daemon then checks each child with wait(2).
        Sigchld = "sigchld",
        /// One thread per child that waits for it.
        Thread = "thread",
    }
}
