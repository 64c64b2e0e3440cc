//! A client of the handover socket, written from the documented wire format.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use bytes::Bytes;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use super::PATIENCE;

const MAGIC: &[u8] = b"evloopd1";
const SLOT: usize = 16;
const FDS_MAX: usize = 253;

/// A connection to the handover socket.
pub(crate) struct Handover(OwnedFd);

impl Handover {
    pub(crate) fn connect(path: &Path) -> Self {
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE)).unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        Self(socket)
    }

    /// Hands over one descriptor and returns its slot.
    pub(crate) fn give(&self, fd: impl AsFd) -> Bytes {
        self.give_all(&[fd.as_fd()]).remove(0)
    }

    pub(crate) fn give_all(&self, fds: &[BorrowedFd<'_>]) -> Vec<Bytes> {
        let (reply, _) = self.ask(MAGIC, fds);
        assert_eq!(
            reply[0],
            0,
            "GIVE: {}",
            String::from_utf8_lossy(&reply[1..])
        );
        let slots: Vec<Bytes> = reply[1..]
            .chunks(SLOT)
            .map(Bytes::copy_from_slice)
            .collect();
        assert_eq!(slots.len(), fds.len());
        slots
    }

    /// Hands over one descriptor; `None` if the daemon ended before it answered.
    pub(crate) fn try_give(&self, fd: BorrowedFd<'_>) -> Option<Bytes> {
        let (reply, _) = self.ask(MAGIC, &[fd]);
        let (status, slot) = reply.split_first()?;
        assert_eq!(*status, 0, "GIVE: {}", String::from_utf8_lossy(slot));
        Some(Bytes::copy_from_slice(slot))
    }

    /// Hands descriptors over in slots that the client chose, and does not wait for the reply.
    pub(crate) fn give_as(&self, own: &[Bytes], fds: &[BorrowedFd<'_>]) {
        self.send(&[MAGIC, &own.concat()].concat(), fds);
    }

    /// Returns the status of the next reply.
    pub(crate) fn status(&self) -> u8 {
        self.receive().0[0]
    }

    /// Returns the status of the reply to a GIVE that is refused.
    pub(crate) fn refused(&self, fd: impl AsFd) -> u8 {
        self.ask(MAGIC, &[fd.as_fd()]).0[0]
    }

    /// Takes the descriptor that the daemon gives back in that slot.
    pub(crate) fn take(&self, slot: &[u8]) -> OwnedFd {
        let (reply, fd) = self.ask(&[MAGIC, slot].concat(), &[]);
        assert_eq!(
            reply[0],
            0,
            "TAKE: {}",
            String::from_utf8_lossy(&reply[1..])
        );
        fd.expect("the reply to TAKE has a descriptor")
    }

    /// Sends a datagram and waits for the reply. An empty reply means that the connection has
    /// ended.
    pub(crate) fn ask(&self, request: &[u8], fds: &[BorrowedFd<'_>]) -> (Vec<u8>, Option<OwnedFd>) {
        self.send(request, fds);
        self.receive()
    }

    fn send(&self, request: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let request = [IoSlice::new(request)];
        match rustix::net::sendmsg(&self.0, &request, &mut control, SendFlags::NOSIGNAL) {
            // The daemon sends its refusal unasked to a client that it does not serve, and hangs
            // up.
            Ok(_) | Err(Errno::PIPE) => {}
            Err(errno) => panic!("{errno}"),
        }
    }

    fn receive(&self) -> (Vec<u8>, Option<OwnedFd>) {
        let mut reply = vec![0; 1 + SLOT * FDS_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let mut into = [IoSliceMut::new(&mut reply)];
        let received = match rustix::net::recvmsg(&self.0, &mut into, &mut control, flags) {
            Ok(received) => received,
            // The daemon was killed before it read the request.
            Err(Errno::CONNRESET) => return (Vec::new(), None),
            Err(errno) => panic!("{errno}"),
        };
        reply.truncate(received.bytes);
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        (reply, fd)
    }
}
