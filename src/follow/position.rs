//! How far was read, in a form that outlives the process.

use serde::{Deserialize, Serialize};

use super::identity::Identity;
use super::missed::Since;
use super::told::Status;
use crate::proto::state::KeptDescriptor;

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
    /// Files that were closed and may come back, the newest last.
    #[serde(default)]
    pub(super) closed: Vec<FilePosition>,
    #[serde(default)]
    pub(super) given_up: u64,
    #[serde(default)]
    pub(super) given_up_bytes: u64,
}

/// How far was told, with what a later life of the process needs to go on with the files that are open.
#[derive(Debug, Clone)]
pub struct Standing {
    /// How far was told.
    pub position: Position,
    /// The open files, in the order of reading.
    pub files: Vec<KeptDescriptor>,
}

impl Position {
    /// Figures, as far as they are known without a look at the files.
    #[must_use]
    pub fn status(&self) -> Status {
        let unread = self.files.iter();
        let rotated = self.files.iter().filter(|file| file.rotated.is_some());
        Status {
            generation: self.generation,
            offset: self.offset,
            open: self.files.len(),
            rotated: rotated.count(),
            unread_bytes: unread.map(|file| file.seen.saturating_sub(file.at)).sum(),
            deleted_bytes: 0,
            given_up: self.given_up,
            given_up_bytes: self.given_up_bytes,
        }
    }

    pub(super) fn is_one(&self) -> bool {
        let mut all = self.files.iter().chain(&self.closed);
        all.all(|file| file.tail.len() <= TAIL && file.tail.len() as u64 <= file.at)
    }
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
    /// Bytes from `at` on that were seen.
    #[serde(default)]
    pub(super) peeked: Vec<u8>,
    /// NULs were read of it.
    #[serde(default)]
    pub(super) sparse: bool,
    /// It is read without regard to its size.
    #[serde(default)]
    pub(super) sizeless: bool,
    /// The number of the failure that was told and is not over.
    #[serde(default)]
    pub(super) failing: Option<i32>,
    /// It has lost the name.
    #[serde(default)]
    pub(super) rotated: Option<RotatedPosition>,
}

/// The time of a file that lost its name. Times are nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RotatedPosition {
    pub(super) since: u64,
    pub(super) active: u64,
    pub(super) mark: Option<u64>,
    pub(super) late: bool,
}
