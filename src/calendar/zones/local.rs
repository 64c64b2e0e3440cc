//! The host's own zone, localtime(5).

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use jiff::tz::TimeZone;

/// The largest file that is read. The largest of the database has less than 4 KiB.
const FILE_MAX: u64 = 64 * 1024;
/// The directory of the database within a path, wherever it is.
const DATABASE: &str = "zoneinfo/";

/// What `/etc/localtime` is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Local {
    /// A link into the database, to the zone of this name.
    Named(String),
    /// A copy of a zone.
    File(TimeZone),
    /// There is none.
    Absent,
    /// It is none of these.
    Unreadable(String),
}

impl Local {
    /// Reads the link or file.
    pub(super) fn read(path: &Path) -> Self {
        if let Ok(target) = fs::read_link(path) {
            // A link to a link, as alternatives are made.
            let whole = fs::canonicalize(path).ok();
            let targets = [Some(target), whole].into_iter().flatten();
            if let Some(name) = targets
                .into_iter()
                .find_map(|target| name_in_path(&target).map(str::to_owned))
            {
                return Self::Named(name);
            }
        }
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {
                return Self::Absent;
            }
            Err(error) => return Self::Unreadable(error.to_string()),
        };
        let mut bytes = Vec::new();
        if let Err(error) = file.take(FILE_MAX).read_to_end(&mut bytes) {
            return Self::Unreadable(error.to_string());
        }
        TimeZone::tzif("", &bytes).map_or_else(
            |_| Self::Unreadable("it is not a file of a time zone (TZif)".to_owned()),
            Self::File,
        )
    }
}

/// Returns the name of a zone from a path in the database.
pub(super) fn name_in_path(path: &Path) -> Option<&str> {
    let (_, name) = path.to_str()?.split_once(DATABASE)?;
    let name = name.strip_prefix("posix/").unwrap_or(name);
    (!name.is_empty()).then_some(name)
}
