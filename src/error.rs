//! The error type of the whole daemon. `rpc::status` has the table that maps it to gRPC statuses.

use std::borrow::Cow;
use std::fmt;

use rustix::io::Errno;

use crate::event::Cursor;
use crate::text;

/// The longest text of an error, in bytes. gRPC sends it as metadata, whose size clients limit
/// (8 KiB in grpcio).
pub const TEXT_MAX: usize = 1024;

/// A result with [`enum@Error`] as its error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that evloopd refuses or fails to do. Its `Display` is the text that a client gets.
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
    /// There is no such loop.
    #[error("there is no loop `{name}`")]
    LoopNotFound {
        /// As the caller named it.
        name: String,
    },
    /// There is no such watch.
    #[error("loop `{on}` has no watch `{watch}`")]
    WatchNotFound {
        /// The loop's full name.
        on: String,
        /// As the caller named it.
        watch: String,
    },
    /// There is no such consumer.
    #[error("there is no consumer `{name}`")]
    ConsumerNotFound {
        /// As the caller named it.
        name: String,
    },
    /// Another reader has taken the consumer over.
    #[error("another reader holds consumer `{name}` now")]
    TakenOver {
        /// The consumer's name.
        name: String,
    },
    /// There is no such policy.
    #[error("there is no policy `{name}`; there are: {known}")]
    PolicyNotFound {
        /// As the caller named it.
        name: String,
        /// The names of the policies that exist, separated by commas.
        known: String,
    },
    /// No loop is set for the context, and none is made.
    #[error("no loop is set for the context {context}, and {why}")]
    NoLoopInContext {
        /// The context, as shown to people.
        context: String,
        /// The reason why no loop was made.
        why: &'static str,
    },
    /// The slot was never given, is claimed already, has expired, or belongs to another client.
    #[error(
        "{field}: there is no such slot: it was never given, is claimed already, has expired after \
         30 s, or belongs to another client"
    )]
    SlotNotFound {
        /// Path of the field in the request.
        field: Cow<'static, str>,
    },
    /// There is no such process, or not any more.
    #[error("{field}: {why}")]
    ProcessNotFound {
        /// Path of the field in the request.
        field: Cow<'static, str>,
        /// What is wrong with it, such as `there is no process 7`.
        why: String,
    },
    /// The name is taken by another object.
    #[error("{}", name_taken(.what, .name, .differs.as_deref()))]
    NameTaken {
        /// `loop`, `watch` or `slot`.
        what: &'static str,
        /// The name.
        name: String,
        /// The field in which the existing object differs from the requested one. None if any
        /// existing object is an error.
        differs: Option<String>,
    },
    /// The loop is closed.
    #[error("loop `{name}` is closed")]
    LoopClosed {
        /// The loop's full name.
        name: String,
    },
    /// The loop is running and must be stopped first.
    #[error("loop `{name}` is running: stop it first")]
    LoopRunning {
        /// The loop's full name.
        name: String,
    },
    /// The watch is closed, or closing.
    #[error("watch {watch} is closed")]
    WatchClosed {
        /// The watch's id.
        watch: u64,
    },
    /// The object does not have this operation, or not in its present state.
    #[error("{message}")]
    WrongState {
        /// The whole text of the error.
        message: String,
    },
    /// A limit is reached.
    #[error("the limit {limit} = {value} is reached{}{hint}", if .hint.is_empty() { "" } else { ": " })]
    Limit {
        /// The limit's name: its key in the configuration, if it can be configured.
        limit: &'static str,
        /// The limit's value.
        value: u64,
        /// The advice to the user; may be empty.
        hint: Cow<'static, str>,
    },
    /// The loop's mailbox stayed full for the whole time that the command may wait.
    #[error("the mailbox of loop `{name}` stayed full for {waited_ms} ms")]
    MailboxFull {
        /// The loop's full name.
        name: String,
        /// The time that the caller waited, in milliseconds.
        waited_ms: u64,
    },
    /// The journal has no room for the events that the operation would record.
    #[error(
        "the journal has room for {available} of {needed} {unit}: acknowledge events, delete \
         consumers that nobody needs, read on with attached readers, remove watches, or wait for \
         finished_ttl"
    )]
    JournalFull {
        /// The unit of the other fields: `events` or `bytes`.
        unit: &'static str,
        /// The number that is needed.
        needed: u64,
        /// The number that is free.
        available: u64,
    },
    /// The cursor is too old, foreign or from the future.
    #[error("cursor {asked} is {why}; readable is after {epoch}:{} up to {epoch}:{newest}", .oldest.saturating_sub(1))]
    CursorOutOfRange {
        /// As the caller gave it.
        asked: Cursor,
        /// `too old`, `of another history` or `from the future`.
        why: &'static str,
        /// The sequence number of the oldest event held.
        oldest: u64,
        /// The sequence number of the newest event.
        newest: u64,
        /// The journal's epoch.
        epoch: String,
    },
    /// A write begins beyond the bytes taken so far, and would leave a hole.
    #[error("offset {offset} would leave a hole: {taken} bytes are taken")]
    WriteHole {
        /// As the caller gave it.
        offset: u64,
        /// The number of bytes taken so far, which is the next offset.
        taken: u64,
    },
    /// The backend, class or policy does not support the request.
    #[error("{capability} is not supported by {backend} ({class}): {reason}")]
    NotSupported {
        /// `selector` or `proactor`.
        class: Cow<'static, str>,
        /// The backend, or the policy that forbids it.
        backend: Cow<'static, str>,
        /// The capability that the request needs.
        capability: Cow<'static, str>,
        /// The reason why it is not supported.
        reason: Cow<'static, str>,
    },
    /// The backend is not available on this host.
    #[error("backend `{backend}` is not available: {reason}")]
    BackendUnavailable {
        /// The backend's name.
        backend: String,
        /// The reason.
        reason: String,
    },
    /// The caller is not permitted to do this.
    #[error("{message}")]
    PermissionDenied {
        /// The whole text of the error.
        message: String,
    },
    /// A system call, or another function of the system, failed.
    #[error(transparent)]
    System(#[from] SystemError),
    /// The daemon is ending.
    #[error("the daemon is ending")]
    Draining,
    /// A request with the same `request_id` was under way when an earlier life of the daemon was killed.
    #[error(
        "a request with this request_id was under way when the daemon was killed: nothing tells \
         whether it was carried out; look, and use another request_id to ask again"
    )]
    OutcomeUnknown,
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
    /// Makes an [`Error::InvalidField`].
    pub fn invalid(field: impl Into<Cow<'static, str>>, allowed: impl Into<String>) -> Self {
        Self::InvalidField {
            field: field.into(),
            allowed: allowed.into(),
        }
    }

    /// Makes an [`Error::Limit`] without advice.
    #[must_use]
    pub const fn limit(limit: &'static str, value: u64) -> Self {
        Self::Limit {
            limit,
            value,
            hint: Cow::Borrowed(""),
        }
    }

    /// Makes an [`Error::WrongState`].
    pub fn wrong_state(message: impl Into<String>) -> Self {
        Self::WrongState {
            message: message.into(),
        }
    }
}

/// The longest text of a [`SystemError`] in an event, in bytes.
const MESSAGE_MAX: usize = crate::event::largest::MESSAGE_MAX as usize;

/// An error of the system, and the step that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemError {
    /// The error number, as in errno(3); 0 where the system gives none (name resolution).
    pub errno: i32,
    /// The step that failed: `exec`, `bind`, `connect`, ...
    pub step: &'static str,
    /// The object of the step, or the system's own text; may be empty.
    pub detail: String,
}

impl SystemError {
    /// Makes an error from an error number.
    pub fn new(errno: Errno, step: &'static str, detail: impl Into<String>) -> Self {
        Self {
            errno: errno.raw_os_error(),
            step,
            detail: detail.into(),
        }
    }

    /// Makes the error of something that did not survive the daemon's end.
    pub fn lost(detail: impl Into<String>) -> Self {
        Self {
            errno: 0,
            step: "recovery",
            detail: detail.into(),
        }
    }

    /// Makes an error from an I/O error of the standard library.
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

    /// Returns the symbolic name of the errno; empty if it is unknown.
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
