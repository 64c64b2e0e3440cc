//! Thousands of connections that come and go in random order.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{CloseReason, Stream, TakeFdRequest, socket_address, watch};

use rustix::net::sockopt::set_socket_linger;

use crate::common::{Handover, Scene, adopted, by_id, tcp_listener};

on_each_backend!(connections_in_random_order_leave_nothing_behind);

/// The variable that says how many connections each backend gets. `tests/system/run` sets it to 2,500:
/// four backends make ten thousand.
const COUNT: &str = "EVLOOPD_TEST_CONNECTIONS";
/// How many there are without it.
const CONNECTIONS: usize = 500;
/// Most connections at once: select(2) cannot watch many.
const OPEN_MAX: usize = 100;
/// One part in this many is opened until the daemon's buffers have grown to their sizes.
const WARM_UP: usize = 5;
/// How much the daemon's memory may grow afterwards, in KiB: the records and the history of the
/// connections, which stay readable.
const GROWTH_MAX: u64 = 16 * 1024;

/// The threads that the daemon may have started afterwards: those of its pools, which end when they
/// have had nothing to do for a while.
const POOL_THREADS: u64 = 4;

/// A generator of numbers (Knuth's MMIX constants). A test that fails prints its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

/// Both ends of a connection.
struct Connection {
    ours: TcpStream,
    /// The daemon's watch of it.
    watch: u64,
    /// What the watch has been sent.
    sent: Vec<u8>,
}

/// The number of threads and the resident memory in KiB, of proc_pid_status(5).
fn threads_and_memory(scene: &Scene) -> (u64, u64) {
    let status = format!("/proc/{}/status", scene.daemon.pid());
    let status = std::fs::read_to_string(status).unwrap();
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let value = line.unwrap().trim().trim_end_matches(" kB");
        value.parse().unwrap()
    };
    (value("Threads:"), value("VmRSS:"))
}

/// Connects to the listener, whose latest `accepted` has the sequence number `seq`.
async fn open(scene: &mut Scene, listener: u64, port: u16, seq: &mut u64) -> Connection {
    let ours = TcpStream::connect(("127.0.0.1", port)).unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let event = scene.recorder.after(*seq, listener, "accepted").await;
    *seq = event.seq;
    let Some(Kind::Accepted(accepted)) = event.kind else {
        panic!("{event:?}");
    };
    Connection {
        ours,
        watch: accepted.watch_id,
        sent: Vec::new(),
    }
}

/// Takes the daemon's end of a connection out, uses it, and gives it back. The daemon adds it as
/// another watch.
async fn take_and_give(scene: &mut Scene, handover: &Handover, connection: &mut Connection) {
    let request = TakeFdRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(connection.watch),
        ..TakeFdRequest::default()
    };
    let taken = scene.daemon.watches().take_fd(request).await.unwrap();
    let closed = scene.closed(connection.watch).await;
    assert_eq!(closed.reason(), CloseReason::FdTaken);
    let theirs = TcpStream::from(handover.take(&taken.into_inner().slot));
    // An accepted connection has O_NONBLOCK set, which belongs to the socket, not to a descriptor.
    theirs.set_nonblocking(false).unwrap();
    (&theirs).write_all(b"between").unwrap();
    let mut read = [0; 7];
    connection.ours.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"between");
    let slot = handover.give(&theirs);
    drop(theirs);
    connection.watch = scene.add(Spec::Connection(adopted(slot))).await;
    connection.sent.clear();
}

/// Ends a connection in one of three ways, and checks how its watch closes.
async fn end(scene: &mut Scene, mut connection: Connection, way: usize) {
    let Connection { ours, watch, .. } = &mut connection;
    match way {
        0 => {
            ours.shutdown(Shutdown::Write).unwrap();
            scene.recorder.first(*watch, "eof").await;
            assert_eq!(scene.closed(*watch).await.reason(), CloseReason::Completed);
            assert_eq!(ours.read(&mut [0]).unwrap(), 0);
        }
        1 => {
            set_socket_linger(&*ours, Some(Duration::ZERO)).unwrap();
            let watch = *watch;
            drop(connection);
            let closed = scene.closed(watch).await;
            assert_eq!(closed.error.unwrap().name, "ECONNRESET");
        }
        _ => {
            scene.remove(*watch).await;
            assert_eq!(ours.read(&mut [0]).unwrap(), 0);
        }
    }
}

async fn connections_in_random_order_leave_nothing_behind(scene: &mut Scene) {
    let seed = u64::from(scene.daemon.pid().as_raw().unsigned_abs());
    eprintln!("the seed is {seed}");
    let mut random = Random(seed);
    let count = std::env::var(COUNT).map_or(CONNECTIONS, |count| count.parse().unwrap());
    let handover = scene.daemon.handover().await;
    let listener = scene.add(Spec::Listener(tcp_listener())).await;
    let Some(watch::Status::Listener(status)) = scene.get(listener).await.status else {
        panic!("a listener has a listener's status");
    };
    let Some(socket_address::Address::Inet(address)) = status.addresses[0].address.clone() else {
        panic!("TCP has IP addresses");
    };
    let port = u16::try_from(address.port).unwrap();
    let fds = scene.daemon.open_fds().await;
    let mut at_first = None;
    let (mut opened, mut accepted) = (0, 0);
    let mut open_now: Vec<Connection> = Vec::new();
    while opened < count || !open_now.is_empty() {
        if opened == count / WARM_UP && at_first.is_none() {
            at_first = Some(threads_and_memory(scene));
        }
        let may_open = opened < count && open_now.len() < OPEN_MAX;
        let step = random.below(8);
        if open_now.is_empty() || (may_open && step < 4) {
            opened += 1;
            open_now.push(open(scene, listener, port, &mut accepted).await);
            continue;
        }
        let index = random.below(open_now.len());
        match step {
            4 => take_and_give(scene, &handover, &mut open_now[index]).await,
            5 => {
                let connection = &mut open_now[index];
                let bytes = vec![u8::try_from(step).unwrap(); 1 + random.below(3000)];
                connection.ours.write_all(&bytes).unwrap();
                connection.sent.extend(&bytes);
                let (watch, sent) = (connection.watch, connection.sent.len());
                while scene.recorder.bytes(watch, Stream::Input).len() < sent {
                    assert!(scene.recorder.step().await);
                }
                assert_eq!(scene.recorder.bytes(watch, Stream::Input), connection.sent);
            }
            _ => {
                let connection = open_now.swap_remove(index);
                end(scene, connection, random.below(3)).await;
            }
        }
    }
    scene.remove(listener).await;
    scene
        .daemon
        .until("all descriptors are closed", |status| {
            status.open_fds.is_some_and(|open| open <= fds)
        })
        .await;
    let (threads, memory) = threads_and_memory(scene);
    let (threads_before, memory_before) = at_first.unwrap();
    assert!(
        threads <= threads_before + POOL_THREADS,
        "{threads_before} threads, then {threads}"
    );
    let grown = memory.saturating_sub(memory_before);
    assert!(grown < GROWTH_MAX, "{grown} KiB more");
}
