//! Callers, their contexts, and the names of loops.

use std::sync::Arc;

use crate::access::{ClientProcess, Principal, ProcessKey};
use crate::config::{Context, Policy};
use crate::error::{Error, Result};

/// The longest name of a session, in bytes. It leaves room for the policy's `loop_name` before it
/// in the name of the session's loop.
pub const SESSION_NAME_MAX: usize = 40;
/// The longest name of a loop, in bytes.
pub const LOOP_NAME_MAX: usize = 63;

/// The caller of an operation on loops.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The principal whose loops the caller uses.
    pub principal: Principal,
    /// Whether it may use the loops of every principal.
    pub administrator: bool,
    /// The session that the call names.
    pub session: Option<String>,
    /// The client process, if the daemon can see it.
    pub process: Option<Arc<ClientProcess>>,
}

/// A client's reference to a loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoopName {
    /// The loop of the caller's context.
    Context,
    /// The name: `build`, or in full `uid:1000/build`.
    Name(String),
    /// The loop's id.
    Id(u64),
}

/// The key of a context.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ContextKey {
    /// The context of a principal.
    Principal(Principal),
    /// The context of a session of the principal.
    Session(Principal, String),
    /// The context of a client process of the principal.
    Process(Principal, ProcessKey),
}

impl ContextKey {
    /// Returns the process whose context it is, if it is one of a process.
    pub(super) const fn process(&self) -> Option<ProcessKey> {
        match self {
            Self::Process(_, process) => Some(*process),
            _ => None,
        }
    }
}

/// Whether `name` is a valid name of a loop.
#[must_use]
pub fn is_loop_name(name: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let rest = |b: u8| word(b) || matches!(b, b'.' | b'_' | b'-');
    !name.is_empty()
        && name.len() <= LOOP_NAME_MAX
        && word(name.as_bytes()[0])
        && name.bytes().all(rest)
}

/// Checks the name of a loop in the field `field` of a request.
///
/// # Errors
/// [`Error::InvalidField`] if it is not valid.
pub fn check_loop_name(field: &'static str, name: &str) -> Result<()> {
    if is_loop_name(name) {
        return Ok(());
    }
    Err(Error::invalid(
        field,
        "must match [a-z0-9][a-z0-9._-]{0,62}",
    ))
}

/// Returns the context of a call.
pub(super) fn context_key(policy: &Policy, caller: &Caller) -> Result<ContextKey> {
    let principal = caller.principal.clone();
    if let Some(session) = &caller.session {
        return Ok(ContextKey::Session(principal, session.clone()));
    }
    match (policy.context, &caller.process) {
        (Context::Principal, _) => Ok(ContextKey::Principal(principal)),
        (Context::Process, Some(process)) => Ok(ContextKey::Process(principal, process.key())),
        (Context::Process, None) => Err(Error::wrong_state(
            "the policy has a context for each client process, but the daemon cannot see yours",
        )),
        (Context::Session, _) => Err(Error::invalid(
            "evloopd-session",
            format!(
                "must be set to the name of the session: policy `{}` has a context for each session",
                policy.name
            ),
        )),
    }
}

/// Returns the text of a context for people.
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
