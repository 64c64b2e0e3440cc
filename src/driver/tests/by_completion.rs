//! Tests of problems that only a proactor backend can have: operations in the kernel, and bytes
//! that are received before they are reported.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;

const NOTHING: Budget = Budget {
    completions: 0,
    bytes: 0,
};

macro_rules! on_each_ring {
    ($($case:ident),+ $(,)?) => {$(
        mod $case {
            use super::{Backend, Rig};

            #[test]
            fn io_uring() {
                super::$case(Rig::new(Backend::IoUring));
            }
            #[test]
            fn plain_io_uring() {
                super::$case(Rig::plain_io_uring());
            }
        }
    )+};
}

on_each_ring! {
    what_is_in_flight_is_reaped_when_the_driver_is_dropped,
    what_cannot_be_reaped_is_leaked,
    taken_bytes_come_before_the_end_of_a_cancelled_operation,
    taken_bytes_come_when_there_is_budget,
    exposed_bytes_are_within_the_budget,
    nothing_is_exposed_while_nobody_receives,
    receiving_goes_on_when_there_are_buffers_again,
    what_is_paused_again_and_again_takes_no_more_memory,
    a_turn_that_does_not_wait_misses_nothing,
    a_file_is_read_where_asked,
    a_read_of_a_file_is_told_as_far_as_the_budget_goes,
    files_and_sockets_are_read_beside_each_other,
    ten_thousand_idle_sources,
    more_at_once_than_the_rings_hold,
}

fn file_of(text: &[u8]) -> std::fs::File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text).unwrap();
    file
}

fn a_file_is_read_where_asked(mut rig: Rig) {
    let source = rig.attach(file_of(b"one two three"), Nonblocking::File);
    let at = |offset, max| Op::ReadAt { offset, max };
    for (number, op, what) in [
        (1, at(4, 3), "1 data two."),
        (2, at(8, 100), "2 data three."),
        (3, at(13, 100), "3 eof."),
        (4, at(0, 3), "4 data one."),
        (5, READ, "5 failed EINVAL."),
        (6, RECV, "6 failed EINVAL."),
        (7, at(0, 0), "7 failed EINVAL."),
        (8, at(u64::MAX, 1), "8 failed EINVAL."),
    ] {
        rig.driver.start(id(number), source, op);
        assert_eq!(rig.next(), [what]);
    }
    rig.assert_silent();
    assert!(rig.driver.detach(source).is_some());
}

fn a_read_of_a_file_is_told_as_far_as_the_budget_goes(mut rig: Rig) {
    let source = rig.attach(file_of(b"one two three"), Nonblocking::File);
    let start = |rig: &mut Rig| {
        let op = Op::ReadAt { offset: 0, max: 7 };
        rig.driver.start(id(1), source, op);
    };
    start(&mut rig);
    let untold = Budget {
        completions: 0,
        ..AMPLE
    };
    let scarce = Budget { bytes: 3, ..AMPLE };
    assert!(rig.turn(WHILE, untold).is_empty());
    let mut said = Vec::new();
    while said.len() < 3 {
        let told = rig.turn(PATIENCE, scarce);
        assert!(!told.is_empty(), "{said:?}");
        said.extend(told.iter().map(words));
    }
    assert_eq!(said.concat(), "1 data one1 data  tw1 data o.");
    // A cancelled read still reports the bytes that it has read, and ends once.
    start(&mut rig);
    assert!(rig.turn(WHILE, untold).is_empty());
    rig.driver.cancel(id(1), source);
    assert_eq!(rig.next(), ["1 data one two."]);
    rig.assert_silent();
}

/// Reads files whose pages must come from storage, files in the page cache, and sockets at the same
/// time: each operation gets its own bytes, in whichever order they complete.
fn files_and_sockets_are_read_beside_each_other(mut rig: Rig) {
    const MAX: u32 = 40_000;
    const SIZE: usize = MAX as usize;
    let mut expected = std::collections::HashMap::new();
    let mut got = std::collections::HashMap::<u32, Vec<u8>>::new();
    let mut peers = Vec::new();
    for number in 0..24_u8 {
        let bytes = vec![number + 1; SIZE];
        expected.insert(u32::from(number), bytes.clone());
        if number % 3 == 2 {
            let (ours, mut peer) = UnixStream::pair().unwrap();
            let source = rig.attach(ours, Nonblocking::Socket);
            rig.driver.start(id(number.into()), source, RECV);
            peer.write_all(&bytes).unwrap();
            peers.push(peer);
        } else {
            let file = file_of(&bytes);
            if number % 3 == 1 {
                file.sync_all().unwrap();
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            }
            let source = rig.attach(file, Nonblocking::File);
            let op = Op::ReadAt {
                offset: 0,
                max: MAX,
            };
            rig.driver.start(id(number.into()), source, op);
        }
    }
    let begun = Instant::now();
    while got.values().map(Vec::len).sum::<usize>() < 24 * SIZE && begun.elapsed() < PATIENCE {
        for Completion { id, done, .. } in rig.turn(PATIENCE, AMPLE) {
            if let Done::Data(bytes) = done {
                got.entry(id.watch.slot).or_default().extend(&*bytes);
            }
        }
    }
    assert!(got == expected);
}

/// Bytes that record when they are freed.
struct Watched {
    bytes: Vec<u8>,
    freed: Arc<AtomicBool>,
}

impl AsRef<[u8]> for Watched {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.freed.store(true, Ordering::SeqCst);
    }
}

fn watched(len: usize) -> (Bytes, Arc<AtomicBool>) {
    let freed = Arc::new(AtomicBool::new(false));
    let owner = Watched {
        bytes: vec![7; len],
        freed: Arc::clone(&freed),
    };
    (Bytes::from_owner(owner), freed)
}

/// Starts one operation of every kind that waits. Returns the peers, and a flag set once the bytes
/// to send are freed.
fn start_all(rig: &mut Rig) -> (Vec<OwnedFd>, Arc<AtomicBool>) {
    let (bytes, freed) = watched(1 << 20);
    let (ours, peer) = UnixStream::pair().unwrap();
    let socket = rig.attach(ours, Nonblocking::Socket);
    rig.driver.start(id(1), socket, RECV);
    let (reader, writer) = blocking_pipe();
    let pipe = rig.attach(reader, Nonblocking::Pipe);
    rig.driver.start(id(2), pipe, RECV);
    let (reader, full) = blocking_pipe();
    let full = rig.attach(full, Nonblocking::Pipe);
    rig.driver.start(id(3), full, send(bytes.clone()));
    let (readiness, other) = blocking_pipe();
    let readiness = rig.attach(readiness, Nonblocking::ReadinessOnly);
    rig.driver.start(id(4), readiness, READ);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = rig.attach(listener, Nonblocking::Own);
    rig.driver.start(id(5), listener, Op::Accept { limit: 1 });
    // An empty pipe stands for a file on slow storage.
    let (file, slow) = blocking_pipe();
    let file = rig.attach(file, Nonblocking::File);
    let op = Op::ReadAt {
        offset: 0,
        max: 4096,
    };
    rig.driver.start(id(6), file, op);
    assert_eq!(rig.next(), ["3 sent 65536."]);
    // The pipe is full: this send stays in the kernel.
    rig.driver.start(id(3), full, send(bytes));
    rig.assert_silent();
    (vec![peer.into(), writer, reader, other, slow], freed)
}

fn what_is_in_flight_is_reaped_when_the_driver_is_dropped(mut rig: Rig) {
    let (peers, freed) = start_all(&mut rig);
    assert!(!freed.load(Ordering::SeqCst));
    drop(rig);
    assert!(freed.load(Ordering::SeqCst), "lost");
    // No operation keeps the descriptors open: the peers see end of file or EPIPE.
    let mut rest = vec![0; 1 << 20];
    assert_eq!(rustix::io::read(&peers[2], &mut rest).unwrap(), 65536);
    assert_eq!(rustix::io::read(&peers[2], &mut rest).unwrap(), 0);
    assert_eq!(rustix::io::read(&peers[0], &mut rest).unwrap(), 0);
    assert_eq!(rustix::io::write(&peers[1], b"x"), Err(Errno::PIPE));
    assert_eq!(rustix::io::write(&peers[3], b"x"), Err(Errno::PIPE));
    assert_eq!(rustix::io::write(&peers[4], b"x"), Err(Errno::PIPE));
}

fn what_cannot_be_reaped_is_leaked(mut rig: Rig) {
    let (_peers, freed) = start_all(&mut rig);
    // Only the thread that ran the turns can submit to the ring, so this drop cannot cancel.
    std::thread::spawn(move || drop(rig)).join().unwrap();
    assert!(!freed.load(Ordering::SeqCst), "freed in flight");
}

/// Returns a source with a receive whose ten bytes were received but not reported.
fn taken(rig: &mut Rig) -> SourceId {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let source = rig.attach(ours, Nonblocking::Socket);
    rig.driver.start(id(1), source, RECV);
    assert!(rig.turn(Duration::ZERO, AMPLE).is_empty());
    let exposed = rig.driver.exposed();
    assert!(exposed > 0);
    peer.write_all(b"ten bytes!").unwrap();
    assert!(rig.turn(WHILE, NOTHING).is_empty());
    assert!(rig.driver.exposed() <= exposed);
    assert!(rustix::io::ioctl_fionread(rig.driver.fd(source).unwrap()).unwrap() == 0);
    source
}

fn taken_bytes_come_before_the_end_of_a_cancelled_operation(mut rig: Rig) {
    let source = taken(&mut rig);
    rig.driver.cancel(id(1), source);
    let said: Vec<_> = rig.turn(PATIENCE, NOTHING).iter().map(words).collect();
    assert_eq!(said[0], "1 data ten bytes!");
    // The peer was closed; the kernel may report that before the cancellation.
    assert!(["1 cancelled.", "1 eof."].contains(&said[1].as_str()));
    assert_eq!(said.len(), 2);
    rig.assert_silent();
    assert!(rig.driver.detach(source).is_some());
}

fn taken_bytes_come_when_there_is_budget(mut rig: Rig) {
    taken(&mut rig);
    let few = Budget {
        completions: 1,
        bytes: 4,
    };
    for expected in ["1 data ten ", "1 data byte", "1 data s!"] {
        let said: Vec<_> = rig.turn(PATIENCE, few).iter().map(words).collect();
        assert_eq!(said, [expected]);
    }
}

fn exposed_bytes_are_within_the_budget(mut rig: Rig) {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let source = rig.attach(ours, Nonblocking::Socket);
    assert_eq!(rig.driver.exposed(), 0);
    rig.driver.start(id(1), source, RECV);
    let mut last = 0;
    for bytes in [0, 1, 100, 5000, 100_000, 1 << 24] {
        let budget = Budget {
            completions: 9,
            bytes,
        };
        assert!(rig.turn(Duration::ZERO, budget).is_empty());
        let exposed = rig.driver.exposed();
        assert!((last..=bytes).contains(&exposed), "{exposed} of {bytes}");
        assert!(bytes == 0 || exposed > 0);
        last = exposed;
    }
    // With a smaller budget, exposed buffers are neither taken back nor added.
    peer.write_all(&[0; 1000]).unwrap();
    let few = Budget {
        completions: 9,
        bytes: 1000,
    };
    let mut received = 0;
    while received < 1000 {
        for completion in rig.turn(PATIENCE, few) {
            match completion.done {
                Done::Data(data) => received += data.len(),
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(rig.driver.exposed() <= last - 1000);
}

fn nothing_is_exposed_while_nobody_receives(mut rig: Rig) {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let source = rig.attach(ours, Nonblocking::Socket);
    rig.driver.start(id(1), source, READ);
    rig.assert_silent();
    assert_eq!(rig.driver.exposed(), 0);
    rig.driver.cancel(id(1), source);
    assert_eq!(rig.next(), ["1 cancelled."]);
    for _ in 0..3 {
        rig.driver.start(id(2), source, RECV);
        peer.write_all(b"x").unwrap();
        assert_eq!(rig.next(), ["2 data x"]);
        assert!(rig.driver.exposed() > 0);
        rig.driver.cancel(id(2), source);
        assert_eq!(rig.next(), ["2 cancelled."]);
        rig.assert_silent();
        assert_eq!(rig.driver.exposed(), 0);
    }
}

fn receiving_goes_on_when_there_are_buffers_again(mut rig: Rig) {
    const EACH: usize = 50_000;
    let writers: Vec<OwnedFd> = (0..20)
        .map(|number| {
            let (reader, writer) = blocking_pipe();
            rustix::io::write(&writer, &vec![0; EACH]).unwrap();
            let source = rig.attach(reader, Nonblocking::Pipe);
            rig.driver.start(id(number), source, RECV);
            writer
        })
        .collect();
    let budget = Budget {
        completions: 3,
        bytes: 7000,
    };
    let mut received = 0;
    while received < EACH * writers.len() {
        let completions = rig.turn(PATIENCE, budget);
        assert!(!completions.is_empty(), "stopped after {received}");
        for completion in completions {
            match completion.done {
                Done::Data(data) => received += data.len(),
                other => panic!("{other:?}"),
            }
        }
    }
    rig.assert_silent();
    rustix::io::write(&writers[7], b"more").unwrap();
    assert_eq!(rig.next(), ["7 data more"]);
}

fn what_is_paused_again_and_again_takes_no_more_memory(mut rig: Rig) {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let source = rig.attach(ours, Nonblocking::Socket);
    for _ in 0..1000 {
        rig.driver.start(id(1), source, RECV);
        assert!(rig.turn(Duration::ZERO, NOTHING).is_empty());
        rig.driver.cancel(id(1), source);
        let said: Vec<_> = rig.turn(PATIENCE, NOTHING).iter().map(words).collect();
        assert_eq!(said, ["1 cancelled."]);
    }
    let shown = format!("{:?}", rig.driver);
    let (_, waiting) = shown.split_once("waiting_receives: ").unwrap();
    let waiting: usize = waiting.split([',', ' ']).next().unwrap().parse().unwrap();
    assert!(waiting < 100, "{shown}");
    rig.driver.start(id(2), source, RECV);
    peer.write_all(b"x").unwrap();
    assert_eq!(rig.next(), ["2 data x"]);
}

fn a_turn_that_does_not_wait_misses_nothing(mut rig: Rig) {
    let (reader, writer) = blocking_pipe();
    rustix::io::write(&writer, &[0; 65536]).unwrap();
    let source = rig.attach(writer, Nonblocking::Pipe);
    let bytes = Bytes::from_static(b"no room");
    rig.driver.start(id(1), source, send(bytes));
    assert!(rig.turn(Duration::ZERO, AMPLE).is_empty());
    drop(reader);
    // The kernel needs two calls to report this.
    let said: Vec<_> = rig.turn(Duration::ZERO, AMPLE).iter().map(words).collect();
    assert_eq!(said, ["1 failed EPIPE."]);
}

/// Raises the limit on open files to the maximum, for one test at a time.
fn all_files() -> parking_lot::MutexGuard<'static, ()> {
    static FILES: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    let guard = FILES.lock();
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    guard
}

fn ten_thousand_idle_sources(rig: Rig) {
    let _files = all_files();
    let mut rig = rig;
    let (reader, writer) = blocking_pipe();
    let pipe = rig.attach(reader, Nonblocking::Pipe);
    rig.driver.start(id(0), pipe, RECV);
    let idle: Vec<SourceId> = (1..=10_000)
        .map(|number| {
            let idle = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            let source = rig.attach(idle, Nonblocking::ReadinessOnly);
            rig.driver.start(id(number), source, READ);
            source
        })
        .collect();
    rig.assert_silent();
    for _ in 0..10 {
        rustix::io::write(&writer, b"x").unwrap();
        assert_eq!(rig.next(), ["0 data x"]);
    }
    let one = rig.driver.fd(idle[5000]).unwrap();
    rustix::io::write(one, &1_u64.to_ne_bytes()).unwrap();
    assert_eq!(rig.next(), ["5001 readable."]);
    for (number, source) in (1..).zip(&idle) {
        rig.driver.cancel(id(number), *source);
    }
    let mut ended = 0;
    while ended < 9_999 {
        let completions = rig.turn(PATIENCE, NOTHING);
        assert!(completions.iter().all(|c| c.last));
        ended += completions.len();
    }
    rig.assert_silent();
}

fn more_at_once_than_the_rings_hold(rig: Rig) {
    const MANY: u32 = 3000;
    let _files = all_files();
    let mut rig = rig;
    let peers: Vec<_> = (0..MANY)
        .map(|number| {
            let (ours, peer) = UnixStream::pair().unwrap();
            let source = rig.attach(ours, Nonblocking::Socket);
            rig.driver.start(id(number), source, RECV);
            peer
        })
        .collect();
    rig.assert_silent();
    for mut peer in &peers {
        peer.write_all(b"x").unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
    }
    let mut said = std::collections::HashMap::new();
    while said
        .values()
        .filter(|words: &&Vec<String>| words.len() == 2)
        .count()
        < peers.len()
    {
        let completions = rig.turn(PATIENCE, AMPLE);
        assert!(!completions.is_empty());
        for completion in &completions {
            let words = words(completion);
            let (number, what) = words.split_once(' ').unwrap();
            said.entry(number.to_owned())
                .or_insert_with(Vec::new)
                .push(what.to_owned());
        }
    }
    assert!(said.values().all(|words| *words == ["data x", "eof."]));
}
