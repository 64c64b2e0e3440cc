use std::io::Write;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{CWD, fcntl_getfl, mkfifoat, open};
use rustix::pipe::pipe;

use super::*;

/// A signalfd reports the signals of the process that polls it, which would be the daemon.
#[test]
fn a_signalfd_is_refused() {
    let mut signals = nix::sys::signal::SigSet::empty();
    signals.add(nix::sys::signal::Signal::SIGWINCH);
    let fd = nix::sys::signalfd::SignalFd::new(&signals).unwrap();
    let fd = fd.as_fd().try_clone_to_owned().unwrap();
    assert_eq!(refusal(fd, Purpose::Readiness), "a signalfd");
}

fn path(path: &str, flags: OFlags) -> OwnedFd {
    open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn refusal(fd: impl Into<OwnedFd>, purpose: Purpose) -> &'static str {
    unfit(claim(fd.into(), purpose).unwrap_err())
}

fn unfit(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Unfit { what, .. } => what,
        Refusal::System(error) => panic!("{error}"),
    }
}

#[test]
fn a_datagram_watch_takes_only_udp_and_unix_datagrams() {
    use rustix::net::SocketFlags;

    let udp = || std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mode = |fd: OwnedFd| claim(fd, Purpose::Datagram).unwrap().mode;
    assert_eq!(mode(udp().into()), Nonblocking::Socket);
    assert_eq!(
        mode(UnixDatagram::unbound().unwrap().into()),
        Nonblocking::Socket
    );
    let (stream, _peer) = UnixStream::pair().unwrap();
    assert_eq!(refusal(stream, Purpose::Datagram), "a stream socket");
    let (family, kind) = (AddressFamily::NETLINK, SocketType::DGRAM);
    let flags = SocketFlags::CLOEXEC;
    let other = rustix::net::socket_with(family, kind, flags, None).unwrap();
    assert_eq!(refusal(other, Purpose::Datagram), "a datagram socket");
    assert_eq!(refusal(udp(), Purpose::Connection), "a datagram socket");
}

#[test]
fn what_is_always_ready_is_refused() {
    let file = tempfile::tempfile().unwrap();
    assert_eq!(refusal(file, Purpose::Readiness), "a regular file");
    let directory = path("/", OFlags::RDONLY);
    assert_eq!(refusal(directory, Purpose::Readiness), "a directory");
    let null = path("/dev/null", OFlags::RDWR);
    let refusal = claim(null, Purpose::Reader).unwrap_err();
    assert!(refusal.to_string().contains("EPERM"), "{refusal}");
    assert_eq!(unfit(refusal), "a character device");
}

#[test]
fn kinds_are_told_apart() {
    let (reader, _writer) = pipe().unwrap();
    let (stream, _peer) = UnixStream::pair().unwrap();
    let pidfd = rustix::process::pidfd_open(
        rustix::process::getpid(),
        rustix::process::PidfdFlags::empty(),
    );
    let cases: [(OwnedFd, &str); 5] = [
        (reader, "pipe"),
        (stream.into(), "socket"),
        (eventfd(0, EventfdFlags::empty()).unwrap(), "eventfd"),
        (pidfd.unwrap(), "pidfd"),
        (epoll::create(epoll::CreateFlags::empty()).unwrap(), "epoll"),
    ];
    for (fd, name) in cases {
        let claim = claim(fd, Purpose::Readiness).unwrap();
        assert_eq!(claim.kind.name(), name);
        assert_eq!(claim.mode, Nonblocking::ReadinessOnly);
        let flags = rustix::io::fcntl_getfd(&claim.fd).unwrap();
        assert!(flags.contains(FdFlags::CLOEXEC), "{name}");
    }
}

#[test]
fn a_stream_has_to_fit_its_purpose() {
    let (reader, writer) = pipe().unwrap();
    let refused = claim(writer, Purpose::Reader).unwrap_err();
    assert_eq!(refused.to_string(), "a pipe: it is open for writing only");
    let refused = claim(reader, Purpose::Writer).unwrap_err();
    assert_eq!(refused.to_string(), "a pipe: it is open for reading only");

    let counter = eventfd(0, EventfdFlags::empty()).unwrap();
    assert_eq!(refusal(counter, Purpose::Reader), "an eventfd");
    let (datagrams, _peer) = UnixDatagram::pair().unwrap();
    assert_eq!(refusal(datagrams, Purpose::Connection), "a datagram socket");
    let (stream, _peer) = UnixStream::pair().unwrap();
    assert_eq!(refusal(stream, Purpose::Listener), "a stream socket");
}

#[test]
fn a_listener_has_to_be_non_blocking_already() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("s")).unwrap();
    let blocking = listener.try_clone().unwrap();
    assert_eq!(refusal(blocking, Purpose::Listener), "a listening socket");
    listener.set_nonblocking(true).unwrap();
    let claim = claim(listener.into(), Purpose::Listener).unwrap();
    assert_eq!(claim.mode, Nonblocking::Listener);
}

#[test]
fn a_fifo_is_reopened_and_its_flags_stay() {
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().join("fifo");
    mkfifoat(CWD, &name, Mode::RUSR | Mode::WUSR).unwrap();
    let end = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&name)
        .unwrap();

    for purpose in [Purpose::Reader, Purpose::Writer] {
        let claim = claim(end.try_clone().unwrap().into(), purpose).unwrap();
        assert_eq!((claim.kind, claim.mode), (FileKind::Fifo, Nonblocking::Own));
        assert!(fcntl_getfl(&claim.fd).unwrap().contains(OFlags::NONBLOCK));
        assert!(!fcntl_getfl(&end).unwrap().contains(OFlags::NONBLOCK));
    }
    // An O_PATH descriptor is refused: reopening it would use the daemon's permissions.
    let named = open(&name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    assert_eq!(
        refusal(named, Purpose::Reader),
        "a descriptor opened with O_PATH"
    );
}

#[test]
fn a_fifo_is_opened_by_path_and_nothing_else_is() {
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().join("fifo");
    mkfifoat(CWD, &name, Mode::RUSR | Mode::WUSR).unwrap();
    let nobody_reads = open_fifo(&name, Purpose::Writer).unwrap_err();
    let Refusal::System(error) = nobody_reads else {
        panic!("{nobody_reads:?}");
    };
    assert_eq!(error.name(), "ENXIO");
    let reader = open_fifo(&name, Purpose::Reader).unwrap();
    let writer = open_fifo(&name, Purpose::Writer).unwrap();
    std::fs::File::from(writer.fd).write_all(b"x").unwrap();
    assert_eq!(rustix::io::read(&reader.fd, &mut [0; 8]), Ok(1));

    let null = open_fifo(Path::new("/dev/null"), Purpose::Reader);
    assert_eq!(unfit(null.unwrap_err()), "a character device");
}

#[test]
fn of_a_pseudoterminal_only_the_terminal_is_reopened() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let terminal = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();

    let claimed = claim(terminal.try_clone().unwrap(), Purpose::Reader).unwrap();
    assert_eq!(
        (claimed.kind, claimed.mode),
        (FileKind::Tty, Nonblocking::Own)
    );
    assert_eq!(
        rustix::fs::fstat(&claimed.fd).unwrap().st_rdev,
        rustix::fs::fstat(&terminal).unwrap().st_rdev
    );
    assert!(!fcntl_getfl(&terminal).unwrap().contains(OFlags::NONBLOCK));
    assert_eq!(
        refusal(master, Purpose::Reader),
        "the master side of a pseudoterminal"
    );
}
