//! The datagrams: requests of clients, and the daemon's replies.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{MaybeUninit, take};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::slots::{SLOT_BYTES, Slot};
use crate::error::{Error, TEXT_MAX};
use crate::text;

/// The bytes at the beginning of every request.
pub const MAGIC: [u8; 8] = *b"evloopd1";

/// The largest number of file descriptors in one datagram: the kernel's limit, `SCM_MAX_FD`.
pub const FDS_MAX: usize = 253;

/// The first byte of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// The request is done.
    Ok = 0,
    /// The datagram is neither a GIVE nor a TAKE.
    BadDatagram = 1,
    /// Not all file descriptors arrived (`MSG_CTRUNC`).
    Truncated = 2,
    /// One of the file descriptors is of a kind that cannot be watched.
    RefusedKind = 3,
    /// The slot was never given, is claimed, has expired, or belongs to another principal.
    NoSuchSlot = 4,
    /// There is no room for all file descriptors.
    LimitReached = 5,
    /// The caller is not served; the connection is closed.
    NotServed = 6,
    /// The system refused.
    System = 7,
    /// A slot chosen by the client is in use, or named twice.
    SlotTaken = 8,
}

/// The refusal of a request, with the text of the reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: Status,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(status: Status, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }
}

impl From<&Error> for Refusal {
    fn from(error: &Error) -> Self {
        let status = match error {
            Error::SlotNotFound { .. } => Status::NoSuchSlot,
            Error::Limit { .. } => Status::LimitReached,
            Error::NameTaken { .. } => Status::SlotTaken,
            Error::PermissionDenied { .. } => Status::NotServed,
            Error::InvalidField { .. } => Status::BadDatagram,
            _ => Status::System,
        };
        Self::new(status, text::escaped(error, TEXT_MAX).to_string())
    }
}

/// A request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// GIVE: keep the descriptors of the datagram, in the slots that the client has chosen, if any.
    Give(Option<Vec<Slot>>),
    /// TAKE: send the descriptor of the slot.
    Take(Slot),
}

/// One byte more than the longest request, so that a longer datagram is noticed.
const BYTES_MAX: usize = MAGIC.len() + FDS_MAX * SLOT_BYTES + 1;

/// Makes a buffer for the control data of the largest datagram.
pub(super) const fn control() -> [MaybeUninit<u8>; CONTROL_BYTES] {
    [MaybeUninit::uninit(); CONTROL_BYTES]
}

const CONTROL_BYTES: usize = cmsg_space!(ScmRights(FDS_MAX));

/// A datagram as received.
#[derive(Debug)]
pub(super) struct Datagram {
    bytes: Vec<u8>,
    flags: ReturnFlags,
    pub(super) fds: Vec<OwnedFd>,
}

impl Datagram {
    /// Receives one. Returns `None` at the end of the connection, and for an empty datagram, which
    /// looks the same.
    pub(super) fn receive(
        socket: BorrowedFd<'_>,
        control: &mut [MaybeUninit<u8>],
    ) -> io::Result<Option<Self>> {
        let mut bytes = vec![0; BYTES_MAX];
        let mut control = RecvAncillaryBuffer::new(control);
        let received = recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
        )?;
        bytes.truncate(received.bytes);
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let datagram = Self {
            bytes,
            flags: received.flags,
            fds: rights.flatten().collect(),
        };
        let nothing = datagram.bytes.is_empty()
            && datagram.fds.is_empty()
            && !datagram.flags.contains(ReturnFlags::CTRUNC);
        Ok((!nothing).then_some(datagram))
    }

    /// Parses the request.
    pub(super) fn request(&self) -> Result<Request, Refusal> {
        if self.flags.contains(ReturnFlags::CTRUNC) {
            let message = format!(
                "only {} of the file descriptors arrived, since the daemon may not open more \
                 (RLIMIT_NOFILE); hand over fewer at once",
                self.fds.len()
            );
            return Err(Refusal::new(Status::Truncated, message));
        }
        match self.bytes.strip_prefix(&MAGIC) {
            Some([]) if !self.fds.is_empty() => Ok(Request::Give(None)),
            Some(own) if !self.fds.is_empty() && own.len() == self.fds.len() * SLOT_BYTES => {
                Ok(Request::Give(Some(own.as_chunks().0.to_vec())))
            }
            Some(slot) if self.fds.is_empty() => {
                let slot = Slot::try_from(slot).map_err(|_| self.malformed())?;
                Ok(Request::Take(slot))
            }
            _ => Err(self.malformed()),
        }
    }

    fn malformed(&self) -> Refusal {
        let more = if self.bytes.len() == BYTES_MAX {
            " or more"
        } else {
            ""
        };
        let message = format!(
            "the datagram has {} bytes{more} and {} file descriptors; a GIVE is the 8 bytes `evloopd1` with 1 to \
             {FDS_MAX} file descriptors, and optionally {SLOT_BYTES} bytes of slot for each; a \
             TAKE is `evloopd1` and {SLOT_BYTES} bytes of slot, without file descriptors",
            self.bytes.len(),
            self.fds.len()
        );
        Refusal::new(Status::BadDatagram, message)
    }

    /// Takes the descriptors out of the datagram, to keep them.
    pub(super) fn take_fds(&mut self) -> Vec<OwnedFd> {
        take(&mut self.fds)
    }
}

/// Returns the bytes of a reply to GIVE.
pub(super) fn given(slots: &[Slot]) -> Vec<u8> {
    let mut bytes = vec![Status::Ok as u8];
    bytes.extend_from_slice(slots.as_flattened());
    bytes
}

/// Returns the bytes of a reply to TAKE; the descriptor is sent along.
pub(super) fn taken() -> Vec<u8> {
    vec![Status::Ok as u8]
}

/// Returns the bytes of a refusal.
pub(super) fn refused(refusal: &Refusal) -> Vec<u8> {
    let mut bytes = vec![refusal.status as u8];
    bytes.extend_from_slice(refusal.message.as_bytes());
    bytes
}

/// Sends one datagram.
pub(super) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut control = control();
    let mut control = SendAncillaryBuffer::new(&mut control);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        let message = format!("a datagram carries at most {FDS_MAX} file descriptors");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let bytes = [IoSlice::new(bytes)];
    // The kernel sends a datagram as a whole or not at all, so the length is not checked.
    sendmsg(socket.as_fd(), &bytes, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    fn sent(bytes: &[u8], fds: usize, control: &mut [MaybeUninit<u8>]) -> Datagram {
        let (ours, theirs) = pair();
        send(theirs.as_fd(), bytes, &vec![theirs.as_fd(); fds]).unwrap();
        Datagram::receive(ours.as_fd(), control).unwrap().unwrap()
    }

    #[test]
    fn only_the_two_requests_are_understood() {
        let request = |bytes: &[u8], fds| sent(bytes, fds, &mut control()).request();
        let with = |bytes: &[u8]| [MAGIC.as_slice(), bytes].concat();
        let slot: Slot = std::array::from_fn(|at| u8::try_from(at).unwrap());
        assert_eq!(request(&MAGIC, 1), Ok(Request::Give(None)));
        assert_eq!(request(&MAGIC, FDS_MAX), Ok(Request::Give(None)));
        let own = vec![slot; FDS_MAX];
        let named = request(&with(own.as_flattened()), FDS_MAX);
        assert_eq!(named, Ok(Request::Give(Some(own))));
        assert_eq!(request(&with(&slot), 0), Ok(Request::Take(slot)));
        for (bytes, fds) in [
            (MAGIC.to_vec(), 0),
            (b"evloopd2".to_vec(), 1),
            (MAGIC[..7].to_vec(), 1),
            (with(&slot), 2),
            (with(&[0; 2 * SLOT_BYTES]), 1),
            (with(&slot[1..]), 1),
            (with(&slot[1..]), 0),
            (with(&[0; 17]), 0),
            (with(&[0; 5000]), 0),
            (Vec::new(), 1),
        ] {
            let refusal = request(&bytes, fds).unwrap_err();
            assert_eq!(refusal.status, Status::BadDatagram, "{bytes:?} {fds}");
        }
    }

    #[test]
    fn descriptors_that_did_not_arrive_refuse_the_datagram() {
        let mut room_for_one = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let datagram = sent(&MAGIC, 8, &mut room_for_one);
        assert!(!datagram.fds.is_empty());
        assert_eq!(datagram.request().unwrap_err().status, Status::Truncated);
        // Without the flag, a datagram that lost all its descriptors would look like a TAKE or the
        // end.
        let datagram = sent(&MAGIC, 1, &mut []);
        assert_eq!(datagram.request().unwrap_err().status, Status::Truncated);
        assert_eq!(
            sent(&[], 1, &mut []).request().unwrap_err().status,
            Status::Truncated
        );
    }

    #[test]
    fn the_end_is_told_from_a_datagram() {
        let (ours, theirs) = pair();
        let receive = || Datagram::receive(ours.as_fd(), &mut control());
        assert_eq!(receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
        assert!(receive().unwrap().is_none());
    }
}
