//! Who asks, and which context that is.

use std::sync::Arc;

use crate::access::{ClientProcess, Principal, ProcessKey};
use crate::config::{Context, Policy};
use crate::error::{Error, Result};

/// Longest name of a session: with a loop's base name it must still be a loop's name.
pub const SESSION_NAME_MAX: usize = 40;
/// Longest name of a loop.
pub const LOOP_NAME_MAX: usize = 63;

/// Who asks, as far as loops are concerned.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Whose loops are meant.
    pub principal: Principal,
    /// May act for everybody.
    pub administrator: bool,
    /// The session the call names.
    pub session: Option<String>,
    /// The client process, if it can be seen.
    pub process: Option<Arc<ClientProcess>>,
}

/// How a client names a loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoopName {
    /// The loop of the caller's context.
    Context,
    /// `build`, or in full `uid:1000/build`.
    Name(String),
    /// By its id.
    Id(u64),
}

/// Whose loop it is, as a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ContextKey {
    /// The principal's own.
    Principal(Principal),
    /// A session's of the principal.
    Session(Principal, String),
    /// A client process' of the principal.
    Process(Principal, ProcessKey),
}

impl ContextKey {
    /// The process whose context it is.
    pub(super) const fn process(&self) -> Option<ProcessKey> {
        match self {
            Self::Process(_, process) => Some(*process),
            _ => None,
        }
    }
}

/// Whether this is a loop's name.
#[must_use]
pub fn is_loop_name(name: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let rest = |b: u8| word(b) || matches!(b, b'.' | b'_' | b'-');
    !name.is_empty()
        && name.len() <= LOOP_NAME_MAX
        && word(name.as_bytes()[0])
        && name.bytes().all(rest)
}

/// As [`is_loop_name`], as an error that names the field.
///
/// # Errors
/// [`Error::InvalidField`].
pub fn check_loop_name(field: &'static str, name: &str) -> Result<()> {
    if is_loop_name(name) {
        return Ok(());
    }
    Err(Error::invalid(field, "must be [a-z0-9][a-z0-9._-]{0,62}"))
}

/// The context that a call is in.
pub(super) fn context_key(policy: &Policy, caller: &Caller) -> Result<ContextKey> {
    let principal = caller.principal.clone();
    if let Some(session) = &caller.session {
        return Ok(ContextKey::Session(principal, session.clone()));
    }
    match (policy.context, &caller.process) {
        (Context::Principal, _) => Ok(ContextKey::Principal(principal)),
        (Context::Process, Some(process)) => Ok(ContextKey::Process(principal, process.key())),
        (Context::Process, None) => Err(Error::wrong_state(
            "the policy's context is the client process, which cannot be seen from here",
        )),
        (Context::Session, _) => Err(Error::invalid(
            "evloopd-session",
            format!(
                "policy `{}` needs this metadata: the session's name",
                policy.name
            ),
        )),
    }
}

/// The context for people.
pub(super) fn shown(key: &ContextKey, caller: &Caller) -> String {
    match key {
        ContextKey::Principal(principal) => principal.to_string(),
        ContextKey::Session(principal, session) => format!("{principal}, session {session}"),
        ContextKey::Process(principal, _) => {
            let pid = caller.process.as_ref().map_or(0, |process| process.pid());
            format!("{principal}, process {pid}")
        }
    }
}
