//! Which file a file is.

use std::os::fd::AsFd;

use rustix::fs::{Statx, StatxFlags, fstatvfs};
use serde::{Deserialize, Serialize};

use crate::sys;

/// A time of a file in seconds and nanoseconds since 1970.
pub(super) type Born = (i64, u32);

/// The time of birth, if the file system tells it.
pub(super) fn born(stat: &Statx) -> Option<Born> {
    let has_birth = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
    has_birth.then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec))
}

/// The identity of a file, for a later life of the process.
///
/// An inode number alone does not tell two files apart: ext4 gives the number of a deleted file to
/// the next one that is created. The handle of a file (name_to_handle_at(2)) is never given again,
/// and its time of birth is another. A file system without handles is left with inode number and
/// time of birth; without both, only the inode number is compared, and the last bytes that were read
/// must tell that the file is another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The id of the file system; its device number, which may change at a boot, where it has none.
    file_system: u64,
    inode: u64,
    /// The time of birth.
    born: Option<Born>,
    /// Type and bytes.
    handle: Option<(i32, Vec<u8>)>,
}

impl Identity {
    pub(super) fn of(file: impl AsFd, stat: &Statx) -> Self {
        let id = fstatvfs(&file).map_or(0, |file_system| file_system.f_fsid);
        Self {
            file_system: if id == 0 {
                rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor)
            } else {
                id
            },
            inode: stat.stx_ino,
            born: born(stat),
            handle: sys::file::handle(&file).ok(),
        }
    }

    /// Of a file that was not opened, to be compared with `is_born_as`.
    pub(super) fn unopened(inode: u64, born: Born) -> Self {
        Self {
            file_system: 0,
            inode,
            born: Some(born),
            handle: None,
        }
    }

    /// Whether this inode, which was born then on the same file system, is the file.
    pub(super) fn is_born_as(&self, inode: u64, born: Born) -> bool {
        self.inode == inode && self.born == Some(born)
    }

    pub(super) fn is_born_since(&self, time: Born) -> bool {
        self.born.is_some_and(|born| born >= time)
    }

    /// What is known of only one of them, as an older kernel did not tell it, is not compared.
    pub(super) fn is_same_file(&self, other: &Self) -> bool {
        fn agree<T: PartialEq>(a: Option<&T>, b: Option<&T>) -> bool {
            a.zip(b).is_none_or(|(a, b)| a == b)
        }
        self.file_system == other.file_system
            && self.inode == other.inode
            && agree(self.born.as_ref(), other.born.as_ref())
            && agree(self.handle.as_ref(), other.handle.as_ref())
    }

    /// As a file system without handles has it.
    #[cfg(test)]
    pub(super) fn without_handle(&self) -> Self {
        Self {
            handle: None,
            ..self.clone()
        }
    }

    pub(super) fn inode(&self) -> u64 {
        self.inode
    }
}
