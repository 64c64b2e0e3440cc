//! Tests that a backend conforms to the contract; every case runs on every backend.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::addr::SocketAddrArg;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::pipe::{PipeFlags, pipe_with};

use super::file::{Purpose, claim, open_fifo};
use super::{
    AttachError, Backend, Budget, Completion, Direction, Done, Driver, Key, Lane, Nonblocking,
    Offset, Op, OpId, Outbound, SourceId, capability, open, proactor, transfer,
};

use budgets::{
    a_budget_of_nothing_waits_and_loses_nothing, a_turn_says_whether_it_got_to_everything,
    sends_leave_room_for_receiving, sources_take_turns_under_a_budget,
};
use failing_accept::accept_fails_with_an_error_that_stays;
use half_closed::{
    a_full_send_to_a_half_closed_peer_waits, a_full_writer_of_a_half_closed_peer_waits,
    what_is_only_watched_keeps_its_error,
};
use random::every_operation_ends_once;
use readiness::readiness_is_what_poll_says;
use rig::{Rig, blocking_pipe, id, words};

mod budgets;
mod by_completion;
mod differential;
#[allow(unsafe_code)]
mod failing_accept;
mod half_closed;
mod random;
mod readiness;
mod rig;

/// How long a test waits for a completion before it fails.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a test waits to see that no completion comes.
const WHILE: Duration = Duration::from_millis(30);

const READ: Op = Op::Ready(Direction::Read);
const WRITE: Op = Op::Ready(Direction::Write);
const RECV: Op = Op::Recv {
    max: 1 << 20,
    offset: Offset::at(0),
};

fn send(bytes: Bytes) -> Op {
    let offset = Offset::at(0);
    Op::Send(Box::new(Outbound { bytes, offset }))
}

const AMPLE: Budget = Budget {
    completions: 1024,
    bytes: 1 << 20,
};

macro_rules! conformance {
    ($($case:ident),+ $(,)?) => {
        conformance! { @ epoll (Rig::new(Backend::Epoll)) $($case)+ }
        conformance! { @ poll (Rig::new(Backend::Poll)) $($case)+ }
        conformance! { @ select (Rig::new(Backend::Select)) $($case)+ }
        conformance! { @ io_uring (Rig::new(Backend::IoUring)) $($case)+ }
        conformance! { @ plain_io_uring (Rig::plain_io_uring()) $($case)+ }
        conformance! { @ epoll_with_receipts (Rig::kept(Backend::Epoll)) $($case)+ }
        conformance! { @ io_uring_with_receipts (Rig::kept(Backend::IoUring)) $($case)+ }
    };
    (@ $module:ident ($rig:expr) $($case:ident)+) => {
        mod $module {
            #[allow(unused_imports)]
            use super::{Backend, Rig};

            $(#[test]
            fn $case() {
                super::$case(&mut $rig);
            })+
        }
    };
}

conformance! {
    readiness_is_one_shot_and_comes_again_if_asked,
    readiness_tells_a_half_closed_peer,
    a_full_writer_of_a_half_closed_peer_waits,
    a_full_send_to_a_half_closed_peer_waits,
    what_is_only_watched_keeps_its_error,
    readiness_is_what_poll_says,
    hangup_of_what_is_not_live_is_silent,
    a_hang_up_is_waited_for_whatever_else_is_ready,
    the_hang_up_of_a_pidfd_is_the_reaping,
    data_then_eof,
    a_terminal_that_nobody_has_open_is_an_error,
    a_fifo_without_writers_is_not_at_its_end,
    a_send_on_a_full_pipe_resumes,
    an_adopted_blocking_pipe_keeps_its_flags,
    a_reader_that_is_gone_fails_the_send,
    accept_stops_at_its_limit,
    accept_fails_with_an_error_that_stays,
    connect_succeeds_or_is_refused,
    cancel_is_told_once_and_last,
    misuse_fails_in_a_later_turn,
    a_file_is_read_only_by_completion,
    the_waker_ends_a_wait,
    waits_are_never_short,
    sources_take_turns_under_a_budget,
    sends_leave_room_for_receiving,
    a_budget_of_nothing_waits_and_loses_nothing,
    a_turn_says_whether_it_got_to_everything,
    detached_is_given_back_and_silent,
    descriptor_numbers_are_no_limit,
    every_operation_ends_once,
}

fn readiness_is_one_shot_and_comes_again_if_asked(rig: &mut Rig) {
    let (reader, writer) = blocking_pipe();
    let source = rig.attach(reader, Nonblocking::ReadinessOnly);
    rig.driver.start(id(1), source, READ);
    rig.assert_silent();
    rustix::io::write(&writer, b"x").unwrap();
    assert_eq!(rig.next(), ["1 readable."]);
    rig.assert_silent();
    rig.driver.start(id(2), source, READ);
    assert_eq!(rig.next(), ["2 readable."]);
}

fn a_hang_up_is_waited_for_whatever_else_is_ready(rig: &mut Rig) {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    peer.write_all(b"unread").unwrap();
    let source = rig.attach(ours, Nonblocking::ReadinessOnly);
    rig.driver.start(id(1), source, Op::HangUp);
    rig.assert_silent();
    // A writer beside it is told as ever.
    rig.driver.start(id(2), source, WRITE);
    assert_eq!(rig.next(), ["2 writable."]);
    rig.assert_silent();
    rig.driver.cancel(id(1), source);
    assert_eq!(rig.next(), ["1 cancelled."]);
    rig.driver.start(id(3), source, Op::HangUp);
    rig.assert_silent();
    drop(peer);
    assert_eq!(rig.next(), ["3 hangup."]);
    rig.assert_silent();
    assert!(rig.driver.detach(source).is_some());
}

fn the_hang_up_of_a_pidfd_is_the_reaping(rig: &mut Rig) {
    let mut child = crate::sys::idle_child::start();
    let pidfd = crate::sys::pidfd::open(child.id().try_into().unwrap()).unwrap();
    let source = rig.attach(pidfd, Nonblocking::ReadinessOnly);
    rig.driver.start(id(1), source, READ);
    rig.assert_silent();
    drop(child.stdin.take());
    assert_eq!(rig.next(), ["1 readable."]);
    rig.driver.start(id(2), source, Op::HangUp);
    rig.assert_silent();
    child.wait().unwrap();
    assert_eq!(rig.next(), ["2 hangup."]);
}

fn a_file_is_read_only_by_completion(rig: &mut Rig) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"text").unwrap();
    let source = rig.attach(file, Nonblocking::File);
    rig.driver
        .start(id(1), source, Op::ReadAt { offset: 1, max: 9 });
    let can = ["1 data ext."];
    let cannot = ["1 failed EOPNOTSUPP."];
    assert_eq!(rig.next(), if rig.reads_files { can } else { cannot });
    rig.assert_silent();
}

fn readiness_tells_a_half_closed_peer(rig: &mut Rig) {
    let (ours, peer) = UnixStream::pair().unwrap();
    let source = rig.attach(ours, Nonblocking::ReadinessOnly);
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    rig.driver.start(id(1), source, READ);
    assert_eq!(rig.next(), ["1 readable+half-closed."]);
    rig.driver.start(id(2), source, WRITE);
    assert_eq!(rig.next(), ["2 writable."]);
}

fn hangup_of_what_is_not_live_is_silent(rig: &mut Rig) {
    let (ours, peer) = UnixStream::pair().unwrap();
    let source = rig.attach(ours, Nonblocking::Socket);
    rig.driver.start(id(1), source, READ);
    rig.assert_silent();
    drop(peer);
    assert_eq!(rig.next(), ["1 readable+hangup+half-closed."]);
    rig.assert_silent();
    rig.driver.start(id(2), source, READ);
    rig.driver.cancel(id(2), source);
    assert_eq!(rig.next(), ["2 cancelled."]);
    rig.assert_silent();
}

fn data_then_eof(rig: &mut Rig) {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let source = rig.attach(ours, Nonblocking::Socket);
    rig.driver.start(id(1), source, RECV);
    peer.write_all(b"one").unwrap();
    assert_eq!(rig.next(), ["1 data one"]);
    rig.assert_silent();
    peer.write_all(b"two").unwrap();
    drop(peer);
    rig.expect(&["1 data two", "1 eof."]);
    rig.assert_silent();
}

/// Whether that is the end is for the watch to say: another process may open the terminal again.
fn a_terminal_that_nobody_has_open_is_an_error(rig: &mut Rig) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    fcntl_setfl(&master, OFlags::NONBLOCK).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let terminal = rustix::fs::open(&name, flags, rustix::fs::Mode::empty()).unwrap();

    let source = rig.attach(master, Nonblocking::Terminal);
    rig.driver.start(id(1), source, RECV);
    rustix::io::write(&terminal, b"hi").unwrap();
    assert_eq!(rig.next(), ["1 data hi"]);
    drop(terminal);
    assert_eq!(rig.next(), ["1 failed EIO."]);
    let terminal = rustix::fs::open(&name, flags, rustix::fs::Mode::empty()).unwrap();
    rig.driver.start(id(2), source, RECV);
    rig.assert_silent();
    rustix::io::write(&terminal, b"again").unwrap();
    assert_eq!(rig.next(), ["2 data again"]);
}

fn a_fifo_without_writers_is_not_at_its_end(rig: &mut Rig) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, mode, 0).unwrap();
    let claim = open_fifo(&path, Purpose::Reader).unwrap();
    let source = rig.attach(claim.fd, claim.mode);
    rig.driver.start(id(1), source, RECV);
    rig.assert_silent();
    let mut writer = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    writer.write_all(b"x").unwrap();
    assert_eq!(rig.next(), ["1 data x"]);
    rig.assert_silent();
    drop(writer);
    assert_eq!(rig.next(), ["1 eof."]);
}

fn a_send_on_a_full_pipe_resumes(rig: &mut Rig) {
    let (reader, writer) = blocking_pipe();
    let writer = claim(writer, Purpose::Writer).unwrap();
    let source = rig.attach(writer.fd, writer.mode);
    let sent: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let mut rest = Bytes::from(sent.clone());
    let mut received = vec![0; sent.len()];
    let mut filled = 0;
    while !rest.is_empty() {
        rig.driver.start(id(1), source, send(rest.clone()));
        let completions = rig.turn(Duration::ZERO, AMPLE);
        let completions = if completions.is_empty() {
            // The pipe is full: the send waits, and goes on as soon as there is room.
            rig.assert_silent();
            filled += rustix::io::read(&reader, &mut received[filled..]).unwrap();
            rig.turn(PATIENCE, AMPLE)
        } else {
            completions
        };
        let [
            Completion {
                done: Done::Sent(len),
                last: true,
                ..
            },
        ] = completions[..]
        else {
            panic!("{completions:?}");
        };
        rest = rest.slice(len..);
    }
    while filled < sent.len() {
        filled += rustix::io::read(&reader, &mut received[filled..]).unwrap();
    }
    assert!(received == sent);
}

fn an_adopted_blocking_pipe_keeps_its_flags(rig: &mut Rig) {
    let (reader, writer) = blocking_pipe();
    let clients = reader.try_clone().unwrap();
    let before = fcntl_getfl(&clients).unwrap();
    let reader = claim(reader, Purpose::Reader).unwrap();
    let source = rig.attach(reader.fd, reader.mode);
    rig.driver.start(id(1), source, RECV);
    rustix::io::write(&writer, b"x").unwrap();
    assert_eq!(rig.next(), ["1 data x"]);
    assert_eq!(fcntl_getfl(&clients).unwrap(), before);
    assert!(!before.contains(OFlags::NONBLOCK));

    // A read does not block when no bytes are there (another reader may have taken them).
    let mut intake = transfer::Intake::default();
    assert!(matches!(
        intake.read(rig.driver.fd(source).unwrap(), reader.mode, 1),
        Err(transfer::CallError::WouldBlock)
    ));
}

fn a_reader_that_is_gone_fails_the_send(rig: &mut Rig) {
    let (reader, writer) = blocking_pipe();
    drop(reader);
    let source = rig.attach(writer, Nonblocking::Pipe);
    rig.driver
        .start(id(1), source, send(Bytes::from_static(b"x")));
    assert_eq!(rig.next(), ["1 failed EPIPE."]);

    let (ours, peer) = UnixStream::pair().unwrap();
    drop(peer);
    let source = rig.attach(ours, Nonblocking::Socket);
    rig.driver
        .start(id(2), source, send(Bytes::from_static(b"x")));
    assert_eq!(rig.next(), ["2 failed EPIPE."]);
}

fn accept_stops_at_its_limit(rig: &mut Rig) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let clients = [(); 3].map(|()| TcpStream::connect(address).unwrap());
    let source = rig.attach(listener, Nonblocking::Own);
    rig.driver.start(id(1), source, Op::Accept { limit: 2 });
    let completions = rig.turn(PATIENCE, AMPLE);
    let Done::Accepted(connection, peer) = &completions[0].done else {
        panic!("{completions:?}");
    };
    assert!(fcntl_getfl(connection).unwrap().contains(OFlags::NONBLOCK));
    assert_eq!(
        std::net::SocketAddr::try_from(*peer.clone().unwrap()).unwrap(),
        clients[0].local_addr().unwrap()
    );
    let said: Vec<_> = completions.iter().map(words).collect();
    assert_eq!(said, ["1 accepted", "1 accepted", "1 cancelled."]);
    rig.assert_silent();

    rig.driver.start(id(2), source, Op::Accept { limit: 9 });
    assert_eq!(rig.next(), ["2 accepted"]);
    rig.driver.cancel(id(2), source);
    assert_eq!(rig.next(), ["2 cancelled."]);
}

fn connect_succeeds_or_is_refused(rig: &mut Rig) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap().as_any();
    let new_socket = || {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap()
    };
    let source = rig.attach(new_socket(), Nonblocking::Own);
    rig.driver
        .start(id(1), source, Op::Connect(Box::new(address)));
    assert_eq!(rig.next(), ["1 connected."]);
    // The address stays bound, so that no other test listens there.
    let nobody = new_socket();
    let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    rustix::net::bind(&nobody, &any).unwrap();
    let address = rustix::net::getsockname(&nobody).unwrap();
    let source = rig.attach(new_socket(), Nonblocking::Own);
    rig.driver
        .start(id(2), source, Op::Connect(Box::new(address)));
    assert_eq!(rig.next(), ["2 failed ECONNREFUSED."]);
}

fn cancel_is_told_once_and_last(rig: &mut Rig) {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let source = rig.attach(ours, Nonblocking::Socket);
    rig.driver.start(id(1), source, RECV);
    peer.write_all(b"x").unwrap();
    assert_eq!(rig.next(), ["1 data x"]);
    rig.driver.cancel(id(1), source);
    rig.driver.cancel(id(1), source);
    peer.write_all(b"y").unwrap();
    assert_eq!(rig.next(), ["1 cancelled."]);
    rig.driver.cancel(id(1), source);
    rig.assert_silent();
    // Bytes that were not received stay in the socket for the next operation.
    rig.driver.start(id(2), source, RECV);
    assert_eq!(rig.next(), ["2 data y"]);
}

fn misuse_fails_in_a_later_turn(rig: &mut Rig) {
    let (reader, _writer) = blocking_pipe();
    let source = rig.attach(reader, Nonblocking::ReadinessOnly);
    rig.driver.start(id(1), source, READ);
    rig.driver.start(id(2), source, READ);
    rig.driver.start(id(3), source, RECV);
    rig.driver.start(id(4), source, Op::Accept { limit: 1 });
    rig.driver.start(id(5), SourceId::at(77), READ);
    let nothing = Budget {
        completions: 1,
        bytes: 1,
    };
    let said: Vec<_> = rig.turn(PATIENCE, nothing).iter().map(words).collect();
    assert_eq!(
        said,
        [
            "2 failed EBUSY.",
            "3 failed EINVAL.",
            "4 failed EINVAL.",
            "5 failed EBADF."
        ]
    );
}

fn the_waker_ends_a_wait(rig: &mut Rig) {
    let mut completions = Vec::new();
    let waker = Arc::clone(&rig.waker);
    let kick = std::thread::spawn(move || rustix::io::write(&*waker, &1_u64.to_ne_bytes()));
    rig.driver.turn(None, AMPLE, &mut completions).unwrap();
    kick.join().unwrap().unwrap();
    // The waker was not read, so it ends the next wait too.
    rig.driver.turn(None, AMPLE, &mut completions).unwrap();
    assert!(completions.is_empty());
    rustix::io::read(&*rig.waker, &mut [0; 8]).unwrap();
    rig.assert_silent();
}

fn waits_are_never_short(rig: &mut Rig) {
    for micros in [1, 100, 999, 1000, 1001, 2500] {
        let timeout = Duration::from_micros(micros);
        let start = Instant::now();
        rig.turn(timeout, AMPLE);
        assert!(start.elapsed() >= timeout, "{micros} µs");
    }
    // Far longer than the system's maximum.
    rustix::io::write(&*rig.waker, &1_u64.to_ne_bytes()).unwrap();
    rig.turn(Duration::MAX, AMPLE);
}

fn detached_is_given_back_and_silent(rig: &mut Rig) {
    let (reader, writer) = blocking_pipe();
    let source = rig.attach(reader, Nonblocking::Pipe);
    rig.driver.start(id(1), source, RECV);
    rig.assert_silent();
    rig.driver.cancel(id(1), source);
    assert_eq!(rig.next(), ["1 cancelled."]);
    let reader = rig.driver.detach(source).unwrap();
    assert!(rig.driver.detach(source).is_none());
    assert!(rig.driver.fd(source).is_none());
    rustix::io::write(&writer, b"x").unwrap();
    rig.assert_silent();
    // The source's index and the descriptor's number are reused.
    let source = rig.attach(reader, Nonblocking::Pipe);
    rig.driver.start(id(2), source, RECV);
    assert_eq!(rig.next(), ["2 data x"]);
}

fn descriptor_numbers_are_no_limit(rig: &mut Rig) {
    let (reader, writer) = blocking_pipe();
    let high = rustix::io::fcntl_dupfd_cloexec(&reader, 1500).unwrap();
    let source = rig.attach(high, Nonblocking::Pipe);
    rig.driver.start(id(1), source, RECV);
    rustix::io::write(&writer, b"x").unwrap();
    assert_eq!(rig.next(), ["1 data x"]);
}

#[test]
fn select_takes_1024() {
    let mut rig = Rig::new(Backend::Select);
    let (reader, _writer) = blocking_pipe();
    for room in (1..=1024).rev() {
        assert_eq!(rig.driver.room(), room);
        rig.attach(reader.try_clone().unwrap(), Nonblocking::Pipe);
    }
    let refused = rig.driver.attach(reader, Nonblocking::Pipe);
    assert_eq!(refused, Err(AttachError::Limit(1024)));
    rig.driver.detach(SourceId::at(5)).unwrap();
    assert_eq!(rig.driver.room(), 1);
}

#[test]
fn what_the_kernel_does_not_watch_fails_the_operation() {
    let mut rig = Rig::new(Backend::Epoll);
    let file = tempfile::tempfile().unwrap();
    let source = rig.attach(file, Nonblocking::ReadinessOnly);
    rig.driver.start(id(1), source, READ);
    rig.driver.start(id(2), source, WRITE);
    assert_eq!(rig.next(), ["1 failed EPERM.", "2 failed EPERM."]);
}

#[test]
fn a_backend_of_another_system_is_not_opened() {
    let waker = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
    let refused = open(Backend::Iocp, waker, &crate::state::Keep::Own).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
    assert_eq!(refused.to_string(), "Windows only");
}
