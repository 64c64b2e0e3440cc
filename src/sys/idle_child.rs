//! Children of tests.

use std::process::{Child, Command, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Held for writing while a test starts a child. Until it executes its program, the child has copies
/// of all descriptors of this process, also of those that are closed on exec.
static STARTING: RwLock<()> = RwLock::new(());

/// Starts a child that ends when its standard input is closed.
pub(crate) fn start() -> Child {
    let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    Command::new("cat").stdin(Stdio::piped()).spawn().unwrap()
}

/// While the result lives, no other test starts a child: what this one closes is closed.
pub(crate) fn none_starts() -> RwLockReadGuard<'static, ()> {
    STARTING.read().unwrap_or_else(PoisonError::into_inner)
}
