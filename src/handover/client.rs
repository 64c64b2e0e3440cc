//! The client of the handover socket, for `evloopctl` and tests.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recvmsg, socket_with,
};

use super::protocol::{FDS_MAX, MAGIC, Status, control, send};
use super::slots::{SLOT_BYTES, Slot};

/// The longest reply, in bytes: that to a GIVE of the most descriptors. Texts are shorter.
const REPLY_MAX: usize = 1 + FDS_MAX * SLOT_BYTES;

/// How long a daemon may take to reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to a daemon's handover socket. Its calls block, at most 10 s.
#[derive(Debug)]
pub struct Client(OwnedFd);

impl Client {
    /// Connects to the socket that `GetServerInfo` names.
    ///
    /// # Errors
    /// Those of the system: `ENOENT` and `ECONNREFUSED` if no daemon serves the socket.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, direction, Some(REPLY_TIMEOUT))?;
        }
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self(socket))
    }

    /// Hands file descriptors over, at most [`FDS_MAX`]. Returns a slot for each, in order.
    ///
    /// # Errors
    /// A refusal with the text of the daemon, or an error of the system. Then the daemon has kept
    /// none of the descriptors.
    pub fn give(&self, fds: &[BorrowedFd<'_>]) -> io::Result<Vec<Slot>> {
        let (bytes, _) = self.ask(&MAGIC, fds)?;
        let (slots, rest) = bytes.as_chunks();
        if slots.len() != fds.len() || !rest.is_empty() {
            return Err(malformed());
        }
        Ok(slots.to_vec())
    }

    /// Takes the file descriptor out of a slot, such as TakeFd returns.
    ///
    /// # Errors
    /// A refusal with the text of the daemon, or an error of the system.
    pub fn take(&self, slot: &Slot) -> io::Result<OwnedFd> {
        let request = [MAGIC.as_slice(), slot].concat();
        let (_, fds) = self.ask(&request, &[])?;
        fds.into_iter().next().ok_or_else(malformed)
    }

    fn ask(&self, request: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        send(self.0.as_fd(), request, fds).or_else(|error| match error.kind() {
            // The daemon replies to a client that it does not serve, and closes the connection,
            // before any request. That reply is read below.
            io::ErrorKind::BrokenPipe => Ok(()),
            _ => Err(error),
        })?;
        let mut bytes = vec![0; REPLY_MAX];
        let mut control = control();
        let mut control = RecvAncillaryBuffer::new(&mut control);
        let received = recvmsg(
            &self.0,
            &mut [io::IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let fds = rights.flatten().collect();
        match bytes.get(..received.bytes) {
            Some([status, payload @ ..]) if *status == Status::Ok as u8 => {
                Ok((payload.to_vec(), fds))
            }
            Some([_, message @ ..]) => Err(io::Error::other(
                String::from_utf8_lossy(message).into_owned(),
            )),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn malformed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the daemon's reply is malformed",
    )
}
