//! `[policy.NAME]`: how loops are made, and which loop belongs to which context.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units;
use crate::kinds::WatchKind;
use crate::words::words;

/// Name of the policy in force where nothing else is said.
pub(super) const DEFAULT: &str = "default";
/// Name of the shipped policy that has the limits of asyncio's selector loop on Windows.
pub const WINDOWS_SELECTOR_COMPAT: &str = "windows-selector-compat";
/// Name of the shipped policy of the proactor class.
pub(super) const PROACTOR: &str = "proactor";
/// Name of the shipped policy that has the limits of asyncio's proactor loop on Windows.
pub(super) const WINDOWS_PROACTOR_COMPAT: &str = "windows-proactor-compat";

/// A rule set, all it inherits filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// `[a-z0-9][a-z0-9._-]{0,62}`
    #[serde(skip)]
    pub name: String,
    /// One sentence; not inherited.
    pub description: String,
    /// The policy that every key left out is taken from. None: the built-in defaults.
    pub extends: Option<String>,
    /// `selector`: loops wait for readiness; `proactor`: for completion.
    pub class: String,
    /// Tried in this order; `auto` is the most efficient that works here. At least one.
    pub backends: Vec<String>,
    /// Whose loop a call without a session gets.
    pub context: Context,
    /// What is done when the context has no loop.
    pub on_missing: OnMissing,
    /// State of a new loop.
    pub start: Start,
    /// How the end of a child is noticed.
    pub child_watcher: ChildWatcher,
    /// What its loops watch. In TOML, `all` stands for every kind.
    #[serde(with = "kinds")]
    pub watch_kinds: BTreeSet<WatchKind>,
    /// Unix sockets may be connected to and listened on.
    pub unix_sockets: bool,
    /// Of file descriptors handed over only sockets are taken.
    pub sockets_only: bool,
    /// Sources one loop watches at once. None (in TOML 0): as many as its backend can.
    #[serde(with = "units::zero_is_none")]
    pub max_sources: Option<u64>,
    /// Watches of one loop, closed ones that can still be read included, 1 to 10,000,000.
    pub max_watches: u64,
    /// Events one journal holds, 16 to 100,000,000.
    pub journal_events: u64,
    /// Bytes one journal holds, 64 KiB to 1 TiB; all journals together stay within `limits.memory`.
    #[serde(with = "units::size")]
    pub journal_bytes: u64,
    /// Whether events stay once everybody who reads has them.
    pub history: History,
    /// What a journal does that is full of what consumers have not acknowledged.
    pub when_full: WhenFull,
    /// Bytes of one watch that may be unacknowledged before it pauses alone, up to
    /// `journal_bytes`. None (in TOML 0B): a quarter of that.
    #[serde(with = "units::zero_size_is_none")]
    pub journal_watch_bytes: Option<u64>,
    /// Newest bytes of every watch that give way last, as far as half of `journal_bytes` goes, up to
    /// `journal_bytes`.
    #[serde(with = "units::size")]
    pub journal_watch_keep: u64,
    /// Bytes of a process's output that its attached readers may be behind before it waits for them,
    /// 4 KiB to 1 GiB; at most an eighth of `journal_bytes`.
    #[serde(with = "units::size")]
    pub attached_bytes: u64,
    /// How long it waits for attached readers that read nothing, 1 s to 30 days.
    #[serde(with = "units::duration")]
    pub attached_patience: Duration,
    /// How long a consumer that nobody holds is kept, if it does not say, 1 s to 365 days.
    #[serde(with = "units::duration")]
    pub consumer_ttl: Duration,
    /// How long a closed watch stays readable, at most 30 days.
    #[serde(with = "units::duration")]
    pub finished_ttl: Duration,
    /// How long a closed loop's journal stays readable, at most 30 days.
    #[serde(with = "units::duration")]
    pub closed_ttl: Duration,
    /// Name of the loop that is made for a context; the contexts of sessions and
    /// processes add theirs to it.
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
            unix_sockets: true,
            sockets_only: false,
            max_sources: None,
            max_watches: 100_000,
            journal_events: 1_000_000,
            journal_bytes: 64 << 20,
            history: History::Kept,
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

/// The policies that exist without a file.
pub(super) fn shipped() -> [Policy; 4] {
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
    // 18.5.2.3.1 of asyncio 3.5.3's documentation, as is the next.
    let windows_proactor = Policy {
        name: WINDOWS_PROACTOR_COMPAT.to_owned(),
        description: "The documented limits of asyncio's proactor event loop on Windows".to_owned(),
        extends: Some(DEFAULT.to_owned()),
        class: "proactor".to_owned(),
        watch_kinds: [
            WatchKind::Timer,
            WatchKind::Process,
            WatchKind::Connection,
            WatchKind::Listener,
            WatchKind::ReadPipe,
            WatchKind::WritePipe,
        ]
        .into(),
        unix_sockets: false,
        ..Policy::default()
    };
    let windows_selector = Policy {
        name: WINDOWS_SELECTOR_COMPAT.to_owned(),
        description: "The documented limits of asyncio's selector event loop on Windows".to_owned(),
        extends: Some(DEFAULT.to_owned()),
        backends: vec!["select".to_owned()],
        watch_kinds: [
            WatchKind::Fd,
            WatchKind::Timer,
            WatchKind::Connection,
            WatchKind::Listener,
        ]
        .into(),
        unix_sockets: false,
        sockets_only: true,
        max_sources: Some(512),
        ..Policy::default()
    };
    [default, proactor, windows_proactor, windows_selector]
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
    /// Whose loop a call without a session gets.
    Context {
        /// The authenticated caller's.
        Principal = "principal",
        /// The session's that the call names; it must name one.
        Session = "session",
        /// The client process's.
        Process = "process",
    }
}

words! {
    /// What is done when a context has no loop.
    OnMissing {
        /// One is made and run.
        Create = "create",
        /// The call fails: NO_LOOP_IN_CONTEXT.
        Error = "error",
    }
}

words! {
    /// What a journal does that is full of what consumers have not acknowledged.
    WhenFull {
        /// Sources are not read until there is room: the kernel holds their producers back.
        Pause = "pause",
        /// The oldest events give way; who has not read them gets a gap.
        DropOldest = "drop_oldest",
    }
}

words! {
    /// Whether events stay once everybody who reads has them.
    History {
        /// Until there is no room for them any more.
        Kept = "kept",
        /// They go.
        None = "none",
    }
}

words! {
    /// State of a new loop.
    Start {
        /// Its sources are polled.
        Running = "running",
        /// Not before RunLoop.
        Created = "created",
    }
}

words! {
    /// How the end of a child is noticed.
    ChildWatcher {
        /// By a pidfd the loop watches, pidfd_open(2).
        Pidfd = "pidfd",
        /// By SIGCHLD, then asking for each child.
        Sigchld = "sigchld",
        /// By a thread a child that waits for it.
        Thread = "thread",
    }
}
