//! Files in the directory of a name that may have had it.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, statx};

use super::identity::{Born, Identity, born};

/// How many entries of a directory are looked at.
const ENTRIES_MAX: usize = 4096;

/// How many symbolic links are followed from the name, as the kernel does.
const LINKS_MAX: usize = 40;

/// How names of compressed files end.
const COMPRESSED: [&str; 5] = [".gz", ".xz", ".zst", ".bz2", ".lz4"];

/// A file that may have had the name.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) path: PathBuf,
    pub(super) inode: u64,
    pub(super) born: Born,
    /// In bytes.
    pub(super) size: u64,
    written: Born,
}

/// What was found in a directory.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// In the order in which they had the name.
    pub(super) files: Vec<Candidate>,
    /// Not all of the directory could be looked at.
    pub(super) is_partial: bool,
}

/// The files beside the one that the name leads to, if their names begin with its name.
pub(super) fn find(path: &Path, wanted: impl Fn(&Candidate) -> bool) -> Found {
    let mut found = Found::default();
    let path = without_links(path);
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return found;
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            // A directory that is gone has no files.
            found.is_partial = error.kind() != io::ErrorKind::NotFound;
            return found;
        }
    };
    for (count, entry) in entries.enumerate() {
        let Ok(entry) = entry else {
            found.is_partial = true;
            break;
        };
        if count >= ENTRIES_MAX {
            found.is_partial = true;
            break;
        }
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_file && is_rotated(name, &entry.file_name()) {
            let candidate = Candidate::new(entry.path());
            found.files.extend(candidate.filter(&wanted));
        }
    }
    found.files.sort_by(Candidate::order);
    found
}

impl Candidate {
    /// None where the file system tells no time of birth.
    fn new(path: PathBuf) -> Option<Self> {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let stat: Statx = statx(CWD, &path, AtFlags::SYMLINK_NOFOLLOW, wanted).ok()?;
        Some(Self {
            path,
            inode: stat.stx_ino,
            born: born(&stat)?,
            size: stat.stx_size,
            written: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
        })
    }

    pub(super) fn is(&self, identity: &Identity) -> bool {
        identity.is_born_as(self.inode, self.born)
    }

    /// Files that were born in one tick of the kernel are told apart by what is left.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        (self.born, self.written)
            .cmp(&(other.born, other.written))
            .then_with(|| {
                let names = [self, other].map(|one| one.path.as_os_str().as_bytes());
                natural_order(names[0], names[1])
            })
    }
}

/// Whether `name` is what `original` may be called when it lost its name.
fn is_rotated(original: &OsStr, name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.strip_prefix(original.as_bytes())
        .is_some_and(|rest| !rest.is_empty())
        && !COMPRESSED
            .iter()
            .any(|ending| name.ends_with(ending.as_bytes()))
}

/// The name at the end of the symbolic links, which may lead to nothing.
fn without_links(path: &Path) -> PathBuf {
    let mut path = path.to_path_buf();
    for _ in 0..LINKS_MAX {
        let Ok(target) = fs::read_link(&path) else {
            break;
        };
        path = path.parent().unwrap_or(Path::new("/")).join(target);
    }
    path
}

/// Compares numbers in names by their value: `log.9` comes before `log.10`.
fn natural_order(mut a: &[u8], mut b: &[u8]) -> Ordering {
    while let (Some(&first_a), Some(&first_b)) = (a.first(), b.first()) {
        let order = if first_a.is_ascii_digit() && first_b.is_ascii_digit() {
            let (number_a, number_b) = (take_number(&mut a), take_number(&mut b));
            let by_value = number_a.len().cmp(&number_b.len());
            by_value.then_with(|| number_a.cmp(number_b))
        } else {
            (a, b) = (&a[1..], &b[1..]);
            first_a.cmp(&first_b)
        };
        if order.is_ne() {
            return order;
        }
    }
    a.len().cmp(&b.len())
}

/// Takes the digits from the start of `text`. Returns them without leading zeros.
fn take_number<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = text.split_at(digits);
    *text = rest;
    let zeros = number.iter().take_while(|&&byte| byte == b'0').count();
    &number[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_are_compared_by_their_value() {
        let mut names = ["log.10", "log.9", "log.b", "log.010.a", "log", "log.1"];
        names.sort_by(|a, b| natural_order(a.as_bytes(), b.as_bytes()));
        let ordered = ["log", "log.1", "log.9", "log.10", "log.010.a", "log.b"];
        assert_eq!(names, ordered);
    }

    #[test]
    fn compressed_files_and_other_names_are_not_taken_for_rotated_ones() {
        let is = |name: &str| is_rotated(OsStr::new("log"), OsStr::new(name));
        for name in ["log.1", "log-20261128", "log.2.old", "log~"] {
            assert!(is(name), "{name}");
        }
        for name in ["log", "other.log", "lo", ".log.1", "log.1.gz", "log.2.zst"] {
            assert!(!is(name), "{name}");
        }
    }
}
