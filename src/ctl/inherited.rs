//! File descriptors that somebody opened for us.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// A duplicate of the descriptor with this number.
///
/// # Errors
/// `EBADF` if there is none.
pub(super) fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(rustix::io::Errno::BADF.into());
    }
    // SAFETY: The number is not negative. It is borrowed for one fcntl(2), which neither
    // closes nor changes what it names, and which answers EBADF where it names nothing.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
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
        for none in [-1, RawFd::MAX] {
            assert_eq!(duplicate(none).unwrap_err().raw_os_error(), Some(9));
        }
    }
}
