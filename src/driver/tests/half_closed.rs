//! Tests of writing to a peer that has shut down its sending side.

use std::net::Shutdown;

use rustix::net::sockopt;

use super::*;

/// Returns a socket whose send buffer is full, and its peer, which has shut down its sending side.
fn full() -> (UnixStream, UnixStream) {
    let (ours, peer) = UnixStream::pair().unwrap();
    fill(&ours);
    peer.shutdown(Shutdown::Write).unwrap();
    (ours, peer)
}

fn fill(mut socket: impl Write + std::os::fd::AsFd) {
    let flags = fcntl_getfl(&socket).unwrap();
    fcntl_setfl(&socket, flags | OFlags::NONBLOCK).unwrap();
    let chunk = vec![1; 64 * 1024];
    while socket.write(&chunk).is_ok() {}
    fcntl_setfl(&socket, flags).unwrap();
}

fn empty(peer: &mut UnixStream) {
    peer.set_nonblocking(true).unwrap();
    let mut chunk = vec![0; 1 << 20];
    while peer.read(&mut chunk).is_ok_and(|len| len > 0) {}
}

pub(super) fn a_full_writer_of_a_half_closed_peer_waits(rig: &mut Rig) {
    let (ours, mut peer) = full();
    let source = rig.attach(ours, Nonblocking::ReadinessOnly);
    rig.driver.start(id(1), source, WRITE);
    rig.assert_silent();
    // The read direction is ready; the write direction stays silent.
    rig.driver.start(id(2), source, READ);
    assert_eq!(rig.next(), ["2 readable+half-closed."]);
    rig.assert_silent();
    // The waker still ends a wait.
    rustix::io::write(&rig.waker, &1_u64.to_ne_bytes()).unwrap();
    assert!(rig.turn(PATIENCE, AMPLE).is_empty());
    rustix::io::read(&rig.waker, &mut [0; 8]).unwrap();
    rig.driver.cancel(id(1), source);
    assert_eq!(rig.next(), ["1 cancelled."]);

    rig.driver.start(id(3), source, WRITE);
    rig.assert_silent();
    empty(&mut peer);
    assert_eq!(rig.next(), ["3 writable."]);
    rig.driver.start(id(4), source, WRITE);
    assert_eq!(rig.next(), ["4 writable."]);
    assert!(rig.driver.detach(source).is_some());
}

pub(super) fn a_full_send_to_a_half_closed_peer_waits(rig: &mut Rig) {
    for nonblocking in [false, true] {
        let (ours, mut peer) = full();
        ours.set_nonblocking(nonblocking).unwrap();
        let source = rig.attach(ours, Nonblocking::Socket);
        let bytes = || send(Bytes::from_static(b"x"));
        rig.driver.start(id(1), source, bytes());
        rig.assert_silent();
        rig.driver.cancel(id(1), source);
        assert_eq!(rig.next(), ["1 cancelled."]);
        rig.driver.start(id(2), source, bytes());
        rig.assert_silent();
        empty(&mut peer);
        assert_eq!(rig.next(), ["2 sent 1."]);
    }
}

pub(super) fn what_is_only_watched_keeps_its_error(rig: &mut Rig) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for round in 0..20 {
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        fill(&ours);
        let client = ours.try_clone().unwrap();
        let source = rig.attach(ours, Nonblocking::ReadinessOnly);
        rig.driver.start(id(round), source, WRITE);
        // The peer closes with unread bytes, so the connection is reset.
        let resets = std::thread::spawn(move || drop(peer));
        let said = rig.next();
        resets.join().unwrap();
        // The kernel sets the error before it shuts both directions down; poll may see that.
        let told =
            ["writable+hangup+error", "writable+error"].map(|what| [format!("{round} {what}.")]);
        assert!(told.iter().any(|told| said == *told), "{said:?}");
        let error = sockopt::socket_error(&client).unwrap();
        assert!(error.is_err(), "it was taken out");
        rig.driver.detach(source);
    }
}
