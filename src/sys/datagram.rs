//! Datagrams with what travels beside their bytes: addresses, interfaces, and the errors that hosts
//! report by ICMP.

use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;
use rustix::io::Errno;
use rustix::net::SocketAddrAny;
use rustix::net::addr::SocketAddrStorage;

use super::check;

/// The option of getsockopt(2), asm-generic/socket.h.
const SO_MEMINFO: libc::c_int = 55;
/// The index of the drops in what SO_MEMINFO returns, `SK_MEMINFO_DROPS` of linux/sock_diag.h.
const MEMINFO_DROPS: usize = 8;
/// The number of values that SO_MEMINFO returns, `SK_MEMINFO_VARS`.
const MEMINFO_VARS: usize = 9;

/// The origins of an error in a socket's error queue, linux/errqueue.h.
const ORIGIN_ICMP: u8 = 2;
const ORIGIN_ICMP6: u8 = 3;

/// A datagram, or an entry of a socket's error queue.
#[derive(Debug, Clone)]
pub(crate) struct Incoming {
    /// The whole length in bytes, which may be more than the buffer has.
    pub(crate) len: usize,
    /// The sender. In the error queue, the peer that the datagram was sent to.
    pub(crate) peer: Option<SocketAddrAny>,
    /// The address that it was sent to.
    pub(crate) local: Option<IpAddr>,
    /// The index of the interface that it came in on; 0 if it is not known.
    pub(crate) interface: u32,
    /// The error that a host reported by ICMP.
    pub(crate) reported: Option<Reported>,
}

/// An error that a host reported by ICMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reported {
    /// What the ICMP message means.
    pub(crate) errno: Errno,
    /// The host.
    pub(crate) by: Option<IpAddr>,
}

/// The queue of a socket to receive from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queue {
    /// The datagrams of a Unix socket. Descriptors that come with them are closed.
    Unix,
    /// The datagrams of an IP socket.
    Ip,
    /// The errors of an IP socket.
    Errors,
}

/// Space for control messages, aligned as the kernel aligns them. It holds all that a socket with
/// the options of [`tell_all`] gets, and some more that the owner of a handed-over socket may have
/// asked for.
#[repr(C, align(8))]
struct Control([u8; 512]);

/// Returns the size of a type as the system takes it. All types here have at most 128 bytes.
fn size<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

/// The most datagrams of one call of [`receive`].
pub(crate) const RECEIVED_AT_ONCE: usize = 16;

/// What the kernel fills for one datagram beside its bytes.
struct Beside {
    address: MaybeUninit<SocketAddrStorage>,
    control: MaybeUninit<Control>,
}

/// Receives as many datagrams, or errors, as wait and as the buffer has room for, without blocking;
/// each gets `size` bytes of it, and at most [`RECEIVED_AT_ONCE`] are received. Calls `take` with
/// each, in order, and with those of its bytes that the buffer has. Returns their number.
///
/// # Errors
/// Those of recvmmsg(2), which receives nothing then; EAGAIN if nothing waits.
pub(crate) fn receive(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
    size: usize,
    queue: Queue,
    mut take: impl FnMut(&Incoming, &[u8]),
) -> Result<usize, Errno> {
    // Most of the space is never used, and is not worth to be zeroed.
    const BESIDE: Beside = Beside {
        address: MaybeUninit::uninit(),
        control: MaybeUninit::uninit(),
    };
    let mut beside = [BESIDE; RECEIVED_AT_ONCE];
    const NOTHING: libc::iovec = libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    };
    let mut parts = [NOTHING; RECEIVED_AT_ONCE];
    // SAFETY: all-zero bytes are valid for it: null pointers with no lengths.
    let mut headers: [libc::mmsghdr; RECEIVED_AT_ONCE] =
        unsafe { MaybeUninit::zeroed().assume_init() };
    let mut count: libc::c_uint = 0;
    let spaces = buffer.chunks_exact_mut(size);
    for (((header, part), beside), space) in headers
        .iter_mut()
        .zip(&mut parts)
        .zip(&mut beside)
        .zip(spaces)
    {
        *part = libc::iovec {
            iov_base: space.as_mut_ptr().cast(),
            iov_len: space.len(),
        };
        let header = &mut header.msg_hdr;
        header.msg_name = beside.address.as_mut_ptr().cast();
        header.msg_namelen = self::size::<SocketAddrStorage>();
        header.msg_iov = part;
        header.msg_iovlen = 1;
        if queue != Queue::Unix {
            header.msg_control = beside.control.as_mut_ptr().cast();
            header.msg_controllen = size_of::<Control>();
        }
        count += 1;
    }
    let mut flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
    if queue == Queue::Errors {
        flags |= libc::MSG_ERRQUEUE;
    }
    let (fd, no_timeout) = (fd.as_raw_fd(), std::ptr::null_mut());
    // SAFETY: there are `count` headers, and all pointers in them are valid for writes of the
    // lengths beside them, for the whole call.
    let received = unsafe { libc::recvmmsg(fd, headers.as_mut_ptr(), count, flags, no_timeout) };
    let received = usize::try_from(check(received.into())?).unwrap_or(0);
    let bytes = buffer.chunks_exact(size);
    for ((header, beside), bytes) in headers.iter().zip(&beside).zip(bytes).take(received) {
        let mut incoming = Incoming {
            len: header.msg_len as usize,
            peer: read_address(&beside.address, header.msg_hdr.msg_namelen),
            local: None,
            interface: 0,
            reported: None,
        };
        if queue != Queue::Unix {
            read_control(&header.msg_hdr, &mut incoming);
        }
        take(&incoming, &bytes[..bytes.len().min(incoming.len)]);
    }
    Ok(received)
}

fn read_address(
    address: &MaybeUninit<SocketAddrStorage>,
    len: libc::socklen_t,
) -> Option<SocketAddrAny> {
    let known = size_of::<libc::sa_family_t>()..=size_of::<SocketAddrStorage>();
    if !known.contains(&(len as usize)) {
        return None;
    }
    // SAFETY: the kernel has written an address of `len` bytes.
    Some(unsafe { SocketAddrAny::read(address.as_ptr(), len) })
}

fn read_control(message: &libc::msghdr, into: &mut Incoming) {
    // SAFETY: the kernel has filled the control buffer up to `msg_controllen`.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !next.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return only headers within the control buffer,
        // which is aligned for them.
        let header = unsafe { &*next };
        // SAFETY: as above; the data begins within the buffer.
        let data = unsafe { libc::CMSG_DATA(next) };
        let before = (data as usize).saturating_sub(next as usize);
        let len = header.cmsg_len.saturating_sub(before);
        // SAFETY: the kernel has written `len` bytes of data after the header.
        let data = unsafe { std::slice::from_raw_parts(data, len) };
        match (header.cmsg_level, header.cmsg_type) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                if let Some(info) = read::<libc::in_pktinfo>(data) {
                    into.local = Some(from_v4(info.ipi_addr).into());
                    into.interface = info.ipi_ifindex.cast_unsigned();
                }
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                if let Some(info) = read::<libc::in6_pktinfo>(data) {
                    let to = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    into.local = Some(IpAddr::V6(to).to_canonical());
                    into.interface = info.ipi6_ifindex;
                }
            }
            (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) => {
                into.reported = reported(data);
            }
            _ => {}
        }
        // SAFETY: as for CMSG_FIRSTHDR; `next` is one of its headers.
        next = unsafe { libc::CMSG_NXTHDR(message, next) };
    }
}

fn from_v4(address: libc::in_addr) -> Ipv4Addr {
    Ipv4Addr::from(address.s_addr.to_ne_bytes())
}

/// A plain C structure of numbers, which any bytes are valid for.
///
/// # Safety
/// The type must be valid for all values of its bytes.
unsafe trait Plain: Copy {}

// SAFETY: all of them consist of numbers only.
unsafe impl Plain for libc::in_pktinfo {}
// SAFETY: as above.
unsafe impl Plain for libc::in6_pktinfo {}
// SAFETY: as above.
unsafe impl Plain for libc::sock_extended_err {}
// SAFETY: as above.
unsafe impl Plain for libc::sockaddr_in {}
// SAFETY: as above.
unsafe impl Plain for libc::sockaddr_in6 {}

fn read<T: Plain>(bytes: &[u8]) -> Option<T> {
    let whole = bytes.get(..size_of::<T>())?;
    // SAFETY: there are as many bytes as the type has, all of them valid for it.
    Some(unsafe { whole.as_ptr().cast::<T>().read_unaligned() })
}

/// Reads an error and the address of the host that reported it, which follows it.
fn reported(data: &[u8]) -> Option<Reported> {
    let error = read::<libc::sock_extended_err>(data)?;
    if ![ORIGIN_ICMP, ORIGIN_ICMP6].contains(&error.ee_origin) {
        return None;
    }
    let host = data.get(size_of::<libc::sock_extended_err>()..)?;
    let family = i32::from(u16::from_ne_bytes([*host.first()?, *host.get(1)?]));
    let by = match family {
        libc::AF_INET => read::<libc::sockaddr_in>(host).map(|a| from_v4(a.sin_addr).into()),
        libc::AF_INET6 => read::<libc::sockaddr_in6>(host)
            .map(|a| IpAddr::V6(Ipv6Addr::from(a.sin6_addr.s6_addr)).to_canonical()),
        _ => None,
    };
    let errno = i32::try_from(error.ee_errno).unwrap_or(libc::EIO);
    let errno = Errno::from_raw_os_error(errno);
    Some(Reported { errno, by })
}

/// Where to send a datagram from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Source {
    /// The address, of the family of the socket; `None` if the kernel chooses.
    pub(crate) ip: Option<IpAddr>,
    /// The index of the interface, which an int holds; 0 if the kernel chooses.
    pub(crate) interface: u32,
}

/// Sends one datagram, without blocking, to the peer that the socket is connected to if `peer` is
/// `None`.
///
/// # Errors
/// Those of sendmsg(2); EAGAIN if there is no room for it.
pub(crate) fn send(
    fd: BorrowedFd<'_>,
    data: &[u8],
    peer: Option<&SocketAddrAny>,
    source: Source,
) -> Result<(), Errno> {
    let mut control = Control([0; 512]);
    let mut part = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // SAFETY: all-zero bytes are a valid msghdr: null pointers with no lengths.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    if let Some(peer) = peer {
        message.msg_name = peer.as_ptr().cast_mut().cast();
        message.msg_namelen = peer.addr_len();
    }
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    match source.ip {
        Some(IpAddr::V4(ip)) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: source.interface.cast_signed(),
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from_ne_bytes(ip.octets()),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            write_control(
                &mut message,
                &mut control,
                libc::IPPROTO_IP,
                libc::IP_PKTINFO,
                info,
            );
        }
        Some(IpAddr::V6(ip)) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: ip.octets(),
                },
                ipi6_ifindex: source.interface,
            };
            let (level, kind) = (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO);
            write_control(&mut message, &mut control, level, kind, info);
        }
        None => {}
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: all pointers in `message` are valid for reads of the lengths beside them, for the
    // whole call; sendmsg(2) writes to none of them.
    let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) };
    check(sent as libc::c_long).map(drop)
}

/// Makes the message carry one control message.
fn write_control<T: Plain>(
    message: &mut libc::msghdr,
    control: &mut Control,
    level: libc::c_int,
    kind: libc::c_int,
    value: T,
) {
    let len = size::<T>();
    message.msg_control = (control as *mut Control).cast();
    // SAFETY: both only compute lengths.
    let (space, with_header) = unsafe { (libc::CMSG_SPACE(len), libc::CMSG_LEN(len)) };
    message.msg_controllen = space as usize;
    // SAFETY: the buffer, which is aligned for headers, has room for a header and the value: 512
    // bytes.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(message);
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = with_header as usize;
        libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
    }
}

/// Returns how many datagrams the kernel has dropped that came in for this socket, modulo 2^32
/// (SO_MEMINFO).
///
/// # Errors
/// Those of getsockopt(2).
pub(crate) fn dropped(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut values = [0_u32; MEMINFO_VARS];
    let mut len = size::<[u32; MEMINFO_VARS]>();
    // SAFETY: `values` is valid for writes of `len` bytes, and `len` for a write.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    check(result.into())?;
    Ok(values[MEMINFO_DROPS])
}

/// `struct group_filter` of linux/in.h without sources, and room for one, as some kernels want it.
#[repr(C)]
struct GroupFilter {
    interface: u32,
    group: libc::sockaddr_storage,
    mode: u32,
    sources: u32,
    source: libc::sockaddr_storage,
}

/// Returns whether a socket has joined a group on the interface with that index, which may be gone
/// since.
pub(crate) fn is_member(fd: BorrowedFd<'_>, group: IpAddr, interface: u32) -> bool {
    let level = match group {
        IpAddr::V4(_) => libc::IPPROTO_IP,
        IpAddr::V6(_) => libc::IPPROTO_IPV6,
    };
    let group = SocketAddrAny::from(std::net::SocketAddr::new(group, 0));
    // SAFETY: all-zero bytes are a valid address of no family.
    let none = || unsafe { MaybeUninit::<libc::sockaddr_storage>::zeroed().assume_init() };
    let mut filter = GroupFilter {
        interface,
        group: none(),
        mode: 0,
        sources: 0,
        source: none(),
    };
    let len = (group.addr_len() as usize).min(size_of::<libc::sockaddr_storage>());
    // SAFETY: the address has `len` bytes, and the storage has room for them; they do not overlap.
    unsafe {
        let to = (&raw mut filter.group).cast::<u8>();
        std::ptr::copy_nonoverlapping(group.as_ptr().cast::<u8>(), to, len);
    }
    let mut len = size::<GroupFilter>();
    // SAFETY: `filter` is valid for reads and writes of `len` bytes, and `len` for a write.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            libc::MCAST_MSFILTER,
            (&raw mut filter).cast(),
            &raw mut len,
        )
    };
    check(result.into()).is_ok()
}

/// Makes an IP socket tell the address and interface of each datagram, and which peer each error
/// concerns.
///
/// # Errors
/// Those of setsockopt(2).
pub(crate) fn tell_all(fd: BorrowedFd<'_>, v6: bool) -> Result<(), Errno> {
    // An IPv6 socket needs the options of IPv4 too, for the peers that it reaches by IPv4.
    set(fd, libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
    set(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
    if v6 {
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
    }
    Ok(())
}

/// Makes an IP socket get no datagrams to groups that it has not joined itself.
///
/// # Errors
/// Those of setsockopt(2).
pub(crate) fn only_own_groups(fd: BorrowedFd<'_>, v6: bool) -> Result<(), Errno> {
    set(fd, libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, 0)?;
    if v6 {
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_ALL, 0)?;
    }
    Ok(())
}

fn set(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> Result<(), Errno> {
    let len = size::<libc::c_int>();
    // SAFETY: `value` is valid for reads of `len` bytes.
    let result =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    check(result.into()).map(drop)
}
