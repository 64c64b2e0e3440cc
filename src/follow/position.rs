//! How far was read, in a form that outlives the process.

use serde::{Deserialize, Serialize};

use super::identity::Identity;
use super::missed::Since;

/// How many of the last bytes that were read are kept to tell whether the file was rewritten.
pub(super) const TAIL: usize = 64;

/// How far was read. Keep it together with what was told: another `Follower` that begins with it
/// tells what comes next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The newest generation.
    pub(super) generation: u64,
    /// The offset up to which was told.
    pub(super) offset: u64,
    /// The generation that the name led to.
    pub(super) named: Option<u64>,
    /// The files that were not read to their end, in the order of reading.
    pub(super) files: Vec<FilePosition>,
    /// None: of a follower that did not look for files that it had missed.
    #[serde(default)]
    pub(super) since: Option<Since>,
}

/// How far one file was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FilePosition {
    pub(super) generation: u64,
    pub(super) identity: Identity,
    /// The next byte to read.
    pub(super) at: u64,
    /// The bytes before `at`, at most `TAIL`.
    pub(super) tail: Vec<u8>,
    /// The size when it was last looked at, in bytes.
    pub(super) seen: u64,
}
