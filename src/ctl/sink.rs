//! Writes bytes to stdout or stderr: without a copy, and without another thread where the system can
//! report that a write would block (`RWF_NOWAIT`, for pipes and sockets; a terminal is opened again).

use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags, pwritev2, writev};
use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size};
use rustix::termios::isatty;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys::async_fd;

/// The largest number of pieces in one write.
const PIECES: usize = 64;
/// The size that a pipe gets when it is full for the first time, bytes. The default is 64 KiB.
const PIPE: usize = 256 * 1024;

/// stdout or stderr. Other processes may share its open file description, so it is never made
/// non-blocking.
#[derive(Debug)]
pub(super) struct Sink {
    fd: Arc<OwnedFd>,
    waits: Waits,
}

/// How [`Sink::write`] waits until the stream takes more bytes.
#[derive(Debug)]
enum Waits {
    /// No write has had to wait yet.
    Unknown,
    /// Until epoll(7) reports that it can be written.
    Epoll(AsyncFd<Arc<OwnedFd>>),
    /// Until epoll(7) reports that the terminal can be written, which is open here once more, without
    /// blocking.
    Terminal(AsyncFd<Arc<OwnedFd>>),
    /// In a blocking write of another thread.
    Thread,
}

impl Sink {
    /// Makes a sink for a stream, of which it keeps a duplicate.
    ///
    /// # Errors
    /// The stream is closed, or too many files are open.
    pub(super) fn new(stream: impl AsFd) -> io::Result<Self> {
        Ok(Self {
            fd: Arc::new(stream.as_fd().try_clone_to_owned()?),
            waits: Waits::Unknown,
        })
    }

    /// Writes all pieces in order. Calls `taken` after each write that has written bytes.
    pub(super) async fn write(
        &mut self,
        mut pieces: Vec<Bytes>,
        taken: impl Fn(),
    ) -> io::Result<()> {
        let mut first = 0;
        while first < pieces.len() {
            let slices: Vec<_> = pieces[first..]
                .iter()
                .take(PIECES)
                .map(|piece| IoSlice::new(piece))
                .collect();
            let written = match &self.waits {
                Waits::Unknown => write_now(&self.fd, &slices),
                Waits::Epoll(fd) => {
                    let write = |fd: &Arc<OwnedFd>| write_now(fd, &slices);
                    fd.async_io(Interest::WRITABLE, write).await
                }
                Waits::Terminal(fd) => {
                    let write = |fd: &Arc<OwnedFd>| Ok(writev(fd, &slices)?);
                    fd.async_io(Interest::WRITABLE, write).await
                }
                Waits::Thread => {
                    return write_in_thread(Arc::clone(&self.fd), pieces.split_off(first)).await;
                }
            };
            match written {
                Ok(written) => {
                    first += advance(&mut pieces[first..], written);
                    taken();
                }
                Err(error) => self.waits = self.after(error)?,
            }
        }
        Ok(())
    }

    /// Returns how to wait after a write that has written no bytes.
    ///
    /// # Errors
    /// The error is not one that waiting can solve.
    fn after(&self, error: io::Error) -> io::Result<Waits> {
        match Errno::from_io_error(&error) {
            Some(Errno::AGAIN) => {
                if fcntl_getpipe_size(&self.fd).is_ok_and(|size| size < PIPE) {
                    // An error, such as of the user's limit for pipes, is ignored: a larger pipe only saves time.
                    let _ = fcntl_setpipe_size(&self.fd, PIPE);
                }
                let fd = async_fd(Arc::clone(&self.fd), Interest::WRITABLE);
                // epoll does not take regular files.
                Ok(fd.map_or(Waits::Thread, Waits::Epoll))
            }
            Some(Errno::OPNOTSUPP | Errno::NOSYS) => {
                let terminal = terminal(&self.fd);
                Ok(terminal.map_or(Waits::Thread, Waits::Terminal))
            }
            _ => Err(error),
        }
    }
}

/// Opens the terminal that a stream is once more, without blocking. `None` if it is none, or belongs
/// to another user.
fn terminal(fd: &OwnedFd) -> Option<AsyncFd<Arc<OwnedFd>>> {
    if !isatty(fd) {
        return None;
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let terminal = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    async_fd(Arc::new(terminal), Interest::WRITABLE).ok()
}

fn write_now(fd: &OwnedFd, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    loop {
        match pwritev2(fd, slices, u64::MAX, ReadWriteFlags::NOWAIT) {
            Err(Errno::INTR) => {}
            written => return Ok(written?),
        }
    }
}

async fn write_in_thread(fd: Arc<OwnedFd>, pieces: Vec<Bytes>) -> io::Result<()> {
    let written = tokio::task::spawn_blocking(move || {
        let mut file = File::from(fd.try_clone()?);
        pieces.iter().try_for_each(|piece| file.write_all(piece))
    });
    written.await.map_err(io::Error::other)?
}

/// Removes the written bytes from the pieces. Returns how many pieces are empty then.
fn advance(pieces: &mut [Bytes], mut written: usize) -> usize {
    let mut done = 0;
    for piece in pieces {
        let part = written.min(piece.len());
        piece.advance(part);
        written -= part;
        if !piece.is_empty() {
            break;
        }
        done += 1;
    }
    done
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn pieces() -> (Vec<Bytes>, Vec<u8>) {
        let piece = |i: u32| {
            let byte = i.to_le_bytes()[0];
            Bytes::from(vec![byte; usize::try_from(i).unwrap() * 7])
        };
        let pieces: Vec<_> = (0..300).map(piece).collect();
        let all = pieces.concat();
        (pieces, all)
    }

    #[tokio::test]
    async fn a_pipe_gets_all_in_order_however_slowly_it_is_read() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (pieces, all) = pieces();
        let read = tokio::task::spawn_blocking(move || {
            let (mut read, mut buf) = (Vec::new(), [0; 5000]);
            loop {
                match reader.read(&mut buf).unwrap() {
                    0 => return read,
                    len => read.extend_from_slice(&buf[..len]),
                }
            }
        });
        let mut sink = Sink::new(&writer).unwrap();
        drop(writer);
        sink.write(pieces, || ()).await.unwrap();
        drop(sink);
        assert!(read.await.unwrap() == all);
    }

    #[tokio::test]
    async fn a_file_gets_all_and_a_closed_pipe_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (pieces, all) = pieces();
        let mut sink = Sink::new(file.as_file()).unwrap();
        sink.write(pieces.clone(), || ()).await.unwrap();
        assert!(std::fs::read(file.path()).unwrap() == all);

        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut sink = Sink::new(&writer).unwrap();
        let error = sink.write(pieces, || ()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_terminal_gets_all_however_slowly_it_is_read_and_stays_as_it_was() {
        let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
        let mut modes = rustix::termios::tcgetattr(&slave).unwrap();
        modes.make_raw();
        let now = rustix::termios::OptionalActions::Now;
        rustix::termios::tcsetattr(&slave, now, &modes).unwrap();
        let (pieces, all) = pieces();
        let len = all.len();
        let read = tokio::task::spawn_blocking(move || {
            let (mut read, mut buf) = (Vec::new(), [0; 1000]);
            while read.len() < len {
                let more = rustix::io::read(&master, &mut buf).unwrap();
                read.extend_from_slice(&buf[..more]);
            }
            read
        });
        let mut sink = Sink::new(&slave).unwrap();
        sink.write(pieces, || ()).await.unwrap();
        assert!(matches!(sink.waits, Waits::Terminal(_)));
        assert!(read.await.unwrap() == all);
        let flags = rustix::fs::fcntl_getfl(&slave).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK));
    }
}
