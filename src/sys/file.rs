//! File handles and leases, which neither rustix nor nix offers.

use std::os::fd::{AsFd, AsRawFd};

use nix::libc;
use rustix::io::Errno;

/// The longest file handle, in bytes: `MAX_HANDLE_SZ` of linux/exportfs.h.
const HANDLE_MAX: u32 = 128;

/// `F_SETSIG` of asm-generic/fcntl.h.
const F_SETSIG: libc::c_int = 10;

/// `struct file_handle` of linux/fs.h, with room for the longest handle.
#[repr(C)]
struct FileHandle {
    length: libc::c_uint,
    kind: libc::c_int,
    bytes: [u8; HANDLE_MAX as usize],
}

/// Whether a file is open for writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writers {
    /// No process has it open, or mapped, for writing.
    None,
    /// At least one has.
    Some,
    /// The kernel does not tell: the file belongs to someone else and the process lacks
    /// `CAP_LEASE`, or its file system has no leases.
    Unknown,
}

/// The type and the bytes of the handle of an open file, see name_to_handle_at(2). Needs no
/// privilege.
///
/// # Errors
/// EOPNOTSUPP from a file system without handles.
pub(crate) fn handle(file: impl AsFd) -> Result<(i32, Vec<u8>), Errno> {
    let mut handle = FileHandle {
        length: HANDLE_MAX,
        kind: 0,
        bytes: [0; HANDLE_MAX as usize],
    };
    let mut mount = 0;
    // SAFETY: the path is a C string, `handle` has the layout of the kernel's struct and room for
    // as many bytes as `length` says, and both are written to during the call only.
    let result = unsafe {
        libc::name_to_handle_at(
            file.as_fd().as_raw_fd(),
            c"".as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    check(result)?;
    let length = handle.length.min(HANDLE_MAX) as usize;
    Ok((handle.kind, handle.bytes[..length].to_vec()))
}

/// Asks who has `file` open for writing, by a read lease that is given back at once.
///
/// A process that opens the file for writing in between waits for these microseconds, or gets
/// EWOULDBLOCK if it does not want to wait, and the kernel sends this process a signal: SIGURG,
/// which is ignored by default, instead of SIGIO, which would end the process.
pub(crate) fn writers(file: impl AsFd) -> Writers {
    match fcntl(&file, F_SETSIG, libc::SIGURG)
        .and_then(|()| fcntl(&file, libc::F_SETLEASE, libc::F_RDLCK))
    {
        Ok(()) => match fcntl(&file, libc::F_SETLEASE, libc::F_UNLCK) {
            Ok(()) => Writers::None,
            Err(_) => Writers::Unknown,
        },
        Err(Errno::AGAIN) => Writers::Some,
        Err(_) => Writers::Unknown,
    }
}

/// fcntl(2) with a number as its argument.
fn fcntl(file: impl AsFd, command: libc::c_int, argument: libc::c_int) -> Result<(), Errno> {
    // SAFETY: the commands used here take a number and touch no memory of the process.
    check(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, argument) })
}

fn check(result: libc::c_int) -> Result<(), Errno> {
    if result < 0 {
        let errno = std::io::Error::last_os_error().raw_os_error();
        return Err(Errno::from_raw_os_error(errno.unwrap_or(0)));
    }
    Ok(())
}
