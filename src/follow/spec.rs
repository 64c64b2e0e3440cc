//! What to read, and within which bounds.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::error::Error;
use super::position::Position;

/// Where reading begins in the file that the path leads to when it is opened. Files that come
/// later are read from their start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Begin {
    /// At the first byte.
    #[default]
    Start,
    /// At the end: only what is written from now on.
    End,
    /// At this byte, counted from 0. Not beyond the end of the file.
    Offset(u64),
}

/// What to read, and within which bounds. [`Spec::new`] gives the defaults.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The file's name: absolute. Symbolic links are followed each time it is looked up.
    pub path: PathBuf,
    /// True: follow the name for ever; it may lead to nothing yet. False: read the file to its end
    /// once.
    pub follow: bool,
    /// Where reading begins. Not used with `resume`.
    pub from: Begin,
    /// Goes on where an earlier `Follower` stood, instead of beginning with `from`.
    pub resume: Option<Position>,
    /// How many files that lost the name are kept open at most, 1 to 1,024. The oldest is given up
    /// when there are more.
    pub keep_generations: usize,
    /// How much disk space deleted files may hold because they are kept open, in bytes. The oldest
    /// is given up when it is more.
    pub keep_bytes: u64,
    /// How long a file that lost the name makes later ones wait while its writer still has it
    /// open, up to a day. If the kernel does not tell whether a writer is left, the file is closed
    /// when nothing was written to it for this long.
    pub rotated_wait: Duration,
    /// After how long the name and the files are looked at again without a path event, 10 ms to a
    /// day.
    pub check_every: Duration,
    /// The most bytes of one `Told::Data`, 1 to 16 MiB.
    pub read_size: usize,
}

impl Spec {
    /// A `Spec` with default bounds that reads, or follows, a file from its start.
    pub fn new(path: impl Into<PathBuf>, follow: bool) -> Self {
        Self {
            path: path.into(),
            follow,
            from: Begin::Start,
            resume: None,
            keep_generations: 8,
            keep_bytes: 1 << 30,
            rotated_wait: Duration::from_secs(10),
            check_every: Duration::from_secs(1),
            read_size: 64 << 10,
        }
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        if !self.path.is_absolute() {
            return Err(invalid("path", "must be absolute"));
        }
        within("keep_generations", &self.keep_generations, 1..=1024)?;
        within("rotated_wait", &self.rotated_wait, Duration::ZERO..=DAY)?;
        within(
            "check_every",
            &self.check_every,
            Duration::from_millis(10)..=DAY,
        )?;
        within("read_size", &self.read_size, 1..=16 << 20)?;
        if !self.resume.as_ref().is_none_or(Position::is_one) {
            return Err(invalid("resume", "is not a position that a follower gave"));
        }
        Ok(())
    }
}

pub(super) fn invalid(field: &'static str, allowed: impl Into<String>) -> Error {
    Error::InvalidField {
        field,
        allowed: allowed.into(),
    }
}

fn within<T: PartialOrd + std::fmt::Debug>(
    field: &'static str,
    value: &T,
    allowed: RangeInclusive<T>,
) -> Result<(), Error> {
    if allowed.contains(value) {
        return Ok(());
    }
    let (least, most) = allowed.into_inner();
    Err(invalid(field, format!("must be {least:?} to {most:?}")))
}
