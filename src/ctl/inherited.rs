//! Accesses file descriptors that evloopctl inherited from the program that started it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// Duplicates the inherited descriptor with this number.
///
/// # Errors
/// `EBADF` if there is none. Descriptors that evloopctl has opened itself, such as its connection to the daemon, count as
/// none: they have `FD_CLOEXEC`, which no descriptor has that came through execve(2).
pub(super) fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(rustix::io::Errno::BADF.into());
    }
    // SAFETY: The number is not negative. It is borrowed for two calls of fcntl(2), which neither close nor change a
    // descriptor, and which fail with EBADF if no descriptor has the number.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    if rustix::io::fcntl_getfd(borrowed)?.contains(rustix::io::FdFlags::CLOEXEC) {
        return Err(rustix::io::Errno::BADF.into());
    }
    Ok(rustix::io::fcntl_dupfd_cloexec(borrowed, 0)?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn a_number_that_names_nothing_is_an_error() {
        let stdin = io::stdin();
        let copy = duplicate(stdin.as_raw_fd()).unwrap();
        assert_ne!(copy.as_raw_fd(), stdin.as_raw_fd());
        // `copy` was opened by this process.
        for none in [-1, RawFd::MAX, copy.as_raw_fd()] {
            assert_eq!(duplicate(none).unwrap_err().raw_os_error(), Some(9));
        }
    }
}
