//! The one domain error. `rpc::status` has the table that turns it into gRPC.

use std::borrow::Cow;
use std::fmt;

use rustix::io::Errno;

use crate::event::Cursor;
use crate::text;

/// Longest text in which an error is told, bytes: it travels as metadata, which clients bound
/// (8 KiB in grpcio).
pub const TEXT_MAX: usize = 1024;

/// A result with the domain error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that evloopd refuses or fails to do, in the words a client gets.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A field's value is not allowed.
    #[error("{field}: {allowed}")]
    InvalidField {
        /// Path of the field in the request, such as `spec.timer.every`.
        field: Cow<'static, str>,
        /// What is wrong and what is allowed.
        allowed: String,
    },
    /// No such loop.
    #[error("there is no loop `{name}`")]
    LoopNotFound {
        /// As the caller named it.
        name: String,
    },
    /// No such watch.
    #[error("loop `{on}` has no watch `{watch}`")]
    WatchNotFound {
        /// The loop's full name.
        on: String,
        /// As the caller named it.
        watch: String,
    },
    /// No such consumer.
    #[error("there is no consumer `{name}`")]
    ConsumerNotFound {
        /// As the caller named it.
        name: String,
    },
    /// Somebody else reads as the consumer.
    #[error("somebody else reads as consumer `{name}` now")]
    TakenOver {
        /// Its name.
        name: String,
    },
    /// No such policy.
    #[error("there is no policy `{name}`; there are: {known}")]
    PolicyNotFound {
        /// As the caller named it.
        name: String,
        /// Those that exist.
        known: String,
    },
    /// Nothing is set for the context and the policy creates nothing.
    #[error("no loop is set for the context {context}, and {why}")]
    NoLoopInContext {
        /// Whose context.
        context: String,
        /// Why none was made.
        why: &'static str,
    },
    /// The slot was never given, is used up, expired, or another principal's.
    #[error(
        "{field}: no such slot: never given, claimed already, expired after 30 s, or not yours"
    )]
    SlotNotFound {
        /// Path of the field in the request.
        field: Cow<'static, str>,
    },
    /// The name belongs to something else.
    #[error("{}", name_taken(.what, .name, .differs.as_deref()))]
    NameTaken {
        /// `loop` or `watch`.
        what: &'static str,
        /// The name.
        name: String,
        /// The field in which an existing specification differs, if that is the matter.
        differs: Option<String>,
    },
    /// The loop is closed.
    #[error("loop `{name}` is closed")]
    LoopClosed {
        /// The loop's full name.
        name: String,
    },
    /// The loop has to be stopped first.
    #[error("loop `{name}` is running: stop it first")]
    LoopRunning {
        /// The loop's full name.
        name: String,
    },
    /// The watch is closed, or closing.
    #[error("watch {watch} is closed")]
    WatchClosed {
        /// Its id.
        watch: u64,
    },
    /// The object has no such operation, or not now.
    #[error("{message}")]
    WrongState {
        /// What is the matter.
        message: String,
    },
    /// A limit is reached.
    #[error("the limit {limit} = {value} is reached{}{hint}", if .hint.is_empty() { "" } else { ": " })]
    Limit {
        /// Its name, as in the configuration where it is there.
        limit: &'static str,
        /// Its value.
        value: u64,
        /// What to do about it; may be empty.
        hint: &'static str,
    },
    /// No place in the mailbox came free in time.
    #[error("the mailbox of loop `{name}` stayed full for {waited_ms} ms")]
    MailboxFull {
        /// The loop's full name.
        name: String,
        /// How long the caller waited.
        waited_ms: u64,
    },
    /// What would have to be recorded does not fit.
    #[error(
        "the journal has room for {available} of {needed} {unit}: acknowledge events, delete \
         consumers that nobody needs, let attached readers go on, remove watches, or wait for \
         finished_ttl"
    )]
    JournalFull {
        /// What is short: `events` or `bytes`.
        unit: &'static str,
        /// How much was asked for.
        needed: u64,
        /// How much is free.
        available: u64,
    },
    /// The cursor is too old, foreign or from the future.
    #[error("cursor {asked} is {why}; readable is after {epoch}:{} up to {epoch}:{newest}", .oldest.saturating_sub(1))]
    CursorOutOfRange {
        /// As the caller gave it.
        asked: Cursor,
        /// `too old`, `of another history` or `from the future`.
        why: &'static str,
        /// Oldest event held.
        oldest: u64,
        /// Newest event.
        newest: u64,
        /// The journal's epoch.
        epoch: String,
    },
    /// A write would leave a hole.
    #[error("offset {offset} would leave a hole: {taken} bytes are taken")]
    WriteHole {
        /// As the caller gave it.
        offset: u64,
        /// Where to go on.
        taken: u64,
    },
    /// The backend, class or policy lacks it.
    #[error("{capability} is not supported by {backend} ({class}): {reason}")]
    NotSupported {
        /// `selector` or `proactor`.
        class: Cow<'static, str>,
        /// The backend, or the policy that forbids it.
        backend: Cow<'static, str>,
        /// What was asked for.
        capability: Cow<'static, str>,
        /// Why it is not there.
        reason: Cow<'static, str>,
    },
    /// The backend cannot be had on this host.
    #[error("backend `{backend}` is not available: {reason}")]
    BackendUnavailable {
        /// Its name.
        backend: String,
        /// Why.
        reason: String,
    },
    /// The caller may not.
    #[error("{message}")]
    PermissionDenied {
        /// What is not allowed to whom.
        message: String,
    },
    /// The system refused.
    #[error(transparent)]
    System(#[from] SystemError),
    /// The daemon is ending.
    #[error("the daemon is ending")]
    Draining,
    /// A defect of evloopd.
    #[error("internal error: {0}")]
    Internal(&'static str),
}

fn name_taken(what: &str, name: &str, differs: Option<&str>) -> String {
    match differs {
        Some(field) => format!("{what} `{name}` exists with another `{field}`"),
        None => format!("{what} `{name}` exists"),
    }
}

impl Error {
    /// A field's value is not allowed.
    pub fn invalid(field: impl Into<Cow<'static, str>>, allowed: impl Into<String>) -> Self {
        Self::InvalidField {
            field: field.into(),
            allowed: allowed.into(),
        }
    }

    /// A limit is reached, with nothing to advise.
    #[must_use]
    pub const fn limit(limit: &'static str, value: u64) -> Self {
        Self::Limit {
            limit,
            value,
            hint: "",
        }
    }

    /// The object has no such operation, or not now.
    pub fn wrong_state(message: impl Into<String>) -> Self {
        Self::WrongState {
            message: message.into(),
        }
    }
}

/// Most bytes of a [`SystemError`] in words, in events.
const MESSAGE_MAX: usize = crate::event::largest::MESSAGE_MAX as usize;

/// What the system refused, and at which step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemError {
    /// The error number, as in errno(3); 0 where the system gives none (name resolution).
    pub errno: i32,
    /// What was being done: `exec`, `bind`, `connect`, ...
    pub step: &'static str,
    /// To what, or the system's own words; may be empty.
    pub detail: String,
}

impl SystemError {
    /// From an error number.
    pub fn new(errno: Errno, step: &'static str, detail: impl Into<String>) -> Self {
        Self {
            errno: errno.raw_os_error(),
            step,
            detail: detail.into(),
        }
    }

    /// From an I/O error of the standard library.
    pub fn from_io(error: &std::io::Error, step: &'static str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        match error.raw_os_error() {
            Some(errno) => Self {
                errno,
                step,
                detail,
            },
            None if detail.is_empty() => Self {
                errno: 0,
                step,
                detail: error.to_string(),
            },
            None => Self {
                errno: 0,
                step,
                detail: format!("{detail}: {error}"),
            },
        }
    }

    /// The errno's symbolic name; empty if it has none here.
    #[must_use]
    pub fn name(&self) -> String {
        match nix::errno::Errno::from_raw(self.errno) {
            nix::errno::Errno::UnknownErrno => String::new(),
            errno => format!("{errno:?}"),
        }
    }
}

impl fmt::Display for SystemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.step)?;
        if !self.detail.is_empty() {
            write!(f, " {}", self.detail)?;
        }
        if self.errno != 0 {
            let errno = nix::errno::Errno::from_raw(self.errno);
            write!(f, ": {} ({})", errno.desc(), self.name())?;
        }
        Ok(())
    }
}

impl std::error::Error for SystemError {}

impl From<&SystemError> for crate::proto::SystemError {
    fn from(error: &SystemError) -> Self {
        Self {
            errno: error.errno,
            name: error.name(),
            step: error.step.to_owned(),
            message: text::escaped(error, MESSAGE_MAX).to_string(),
        }
    }
}
