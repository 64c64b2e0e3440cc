//! Pipes, connections and listeners through many deaths of the daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use evloopd::proto::event::Kind;
use evloopd::proto::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::common::{
    Scene, adopted, connection, listener, read_pipe, tcp, tcp_listener, unix_path, within,
    write_pipe,
};
use crate::{BACKENDS, murder, murder_amid, resume, start, the_loop};

/// Reads a loop through all lives, each event once.
struct Collector {
    epoch: String,
    seen: u64,
    bytes: BTreeMap<u64, Vec<u8>>,
    /// Watches of accepted connections, by their listeners.
    accepted: BTreeMap<u64, Vec<u64>>,
    connected: BTreeSet<u64>,
    ended: BTreeSet<u64>,
    closed: BTreeMap<u64, Closed>,
}

impl Collector {
    async fn new(scene: &Scene) -> Self {
        Self {
            epoch: the_loop(scene).await.journal.unwrap().epoch,
            seen: 0,
            bytes: BTreeMap::new(),
            accepted: BTreeMap::new(),
            connected: BTreeSet::new(),
            ended: BTreeSet::new(),
            closed: BTreeMap::new(),
        }
    }

    fn of(&self, id: u64) -> &[u8] {
        self.bytes.get(&id).map_or(&[], Vec::as_slice)
    }

    fn accepted(&self, listener: u64) -> &[u64] {
        self.accepted.get(&listener).map_or(&[], Vec::as_slice)
    }

    fn take(&mut self, event: Event) {
        assert_eq!(event.seq, self.seen + 1);
        self.seen = event.seq;
        let id = event.watch_id;
        match event.kind {
            Some(Kind::Data(data)) => {
                let bytes = self.bytes.entry(id).or_default();
                assert_eq!(data.offset, bytes.len() as u64, "watch {id}");
                bytes.extend_from_slice(&data.data);
            }
            Some(Kind::Accepted(accepted)) => {
                self.accepted.entry(id).or_default().push(accepted.watch_id);
            }
            Some(Kind::Connected(_)) => assert!(self.connected.insert(id), "watch {id}"),
            Some(Kind::Eof(eof)) => {
                assert_eq!(eof.offset, self.of(id).len() as u64, "watch {id}");
                assert!(self.ended.insert(id), "watch {id}");
            }
            Some(Kind::Closed(closed)) => {
                assert!(self.closed.insert(id, closed).is_none(), "watch {id}");
            }
            _ => {}
        }
    }

    /// Reads until `done`, without missing anything.
    async fn until(&mut self, scene: &Scene, what: &str, done: impl Fn(&Self) -> bool) {
        if done(self) {
            return;
        }
        let request = SubscribeRequest {
            r#loop: Some(scene.target.clone()),
            start: Some(subscribe_request::Start::After(Cursor {
                epoch: self.epoch.clone(),
                seq: self.seen,
            })),
            ..SubscribeRequest::default()
        };
        let stream = scene.daemon.events().subscribe(request).await.unwrap();
        let mut stream = stream.into_inner();
        while !done(self) {
            let message = within(what, stream.message()).await.unwrap().unwrap();
            if let Some(subscribe_response::Message::Batch(batch)) = message.message {
                assert!(batch.gaps.is_empty(), "{:?}", batch.gaps);
                batch.events.into_iter().for_each(|event| self.take(event));
            }
        }
    }
}

/// What each side of a stream sends: different for each stream.
fn pattern(salt: u64, len: usize) -> Vec<u8> {
    let words = (0..len as u64 / 8 + 1).flat_map(|word| (word << 8 | salt).to_be_bytes());
    words.take(len).collect()
}

/// So slowly do others write that the daemon is killed many times meanwhile.
const PACE: Duration = Duration::from_millis(1);

/// Cuts bytes into pieces of many sizes.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut rest, mut len) = (bytes, 1);
    std::iter::from_fn(move || {
        let (now, later) = rest.split_at(rest.len().min(len));
        rest = later;
        len = len * 7 % 4999 + 1;
        (!now.is_empty()).then_some(now)
    })
}

/// What is written to a watch.
struct Writing {
    id: u64,
    bytes: Vec<u8>,
    taken: usize,
}

impl Writing {
    fn new(id: u64, bytes: Vec<u8>) -> Self {
        Self {
            id,
            bytes,
            taken: 0,
        }
    }

    /// Writes some more, and the end after all. The daemon may be killed meanwhile.
    async fn go_on(&mut self, scene: &Scene) {
        let end = self.bytes.len().min(self.taken + 3000);
        if self.taken == end {
            // It may have closed already.
            let _ = scene.try_write_eof(self.id).await;
            return;
        }
        let offset = Some(self.taken as u64);
        let data = &self.bytes[self.taken..end];
        if let Ok(answer) = scene.write_at(self.id, data, offset).await {
            self.taken = usize::try_from(answer.taken).unwrap();
        }
    }

    /// Looks how much was taken, after an answer may have been lost.
    async fn look(&mut self, scene: &Scene) {
        if let Ok(answer) = scene.write_at(self.id, b"", None).await {
            let taken = usize::try_from(answer.taken).unwrap();
            assert!(taken >= self.taken, "{taken} of {}", self.taken);
            self.taken = taken;
        }
    }
}

/// Both directions of the other end of a connection.
trait Peer: Send + 'static {
    fn copy(&self) -> Box<dyn Peer>;
    fn end(&self);
    fn get(&mut self, bytes: &mut [u8]) -> usize;
    fn put(&mut self, bytes: &[u8]);
}

macro_rules! peer {
    ($kind:ty) => {
        impl Peer for $kind {
            fn copy(&self) -> Box<dyn Peer> {
                Box::new(self.try_clone().unwrap())
            }

            fn end(&self) {
                self.shutdown(Shutdown::Write).unwrap();
            }

            fn get(&mut self, bytes: &mut [u8]) -> usize {
                self.read(bytes).unwrap()
            }

            fn put(&mut self, bytes: &[u8]) {
                self.write_all(bytes).unwrap();
            }
        }
    };
}

peer!(TcpStream);
peer!(UnixStream);

/// Sends all of `bytes` and then the end, and returns what comes back.
fn exchange(mut peer: Box<dyn Peer>, bytes: Vec<u8>) -> JoinHandle<Vec<u8>> {
    let mut other = peer.copy();
    let writer = std::thread::spawn(move || {
        // Pieces of many sizes.
        for piece in pieces(&bytes) {
            other.put(piece);
            std::thread::sleep(PACE);
        }
        other.end();
    });
    std::thread::spawn(move || {
        let mut got = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match peer.get(&mut buffer) {
                0 => break,
                len => got.extend_from_slice(&buffer[..len]),
            }
        }
        writer.join().unwrap();
        got
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_of_connections_is_there_once_through_many_deaths() {
    const ALL: usize = 2_000_000;
    for (policy, backend) in BACKENDS {
        let mut scene = Scene::new(start().await, policy, backend).await;
        let mut collector = Collector::new(&scene).await;
        let half_open = |spec| ListenerSpec {
            keep_half_open: true,
            ..spec
        };
        let to_peer = |spec| {
            watch_spec::Spec::Connection(ConnectionSpec {
                keep_half_open: true,
                ..spec
            })
        };
        let spec = watch_spec::Spec::Listener(half_open(tcp_listener()));
        let tcp_id = scene.add(spec).await;
        let port = listening_port(&scene, tcp_id).await;
        let dir = crate::directory();
        let path = dir.path().join("service");
        let target = listener_spec::Target::Unix(unix_path(&path));
        let spec = watch_spec::Spec::Listener(half_open(listener(target)));
        let unix_id = scene.add(spec).await;
        let theirs = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = theirs.local_addr().unwrap();
        let dialled = to_peer(tcp("127.0.0.1", to.port().into()));
        let dialled = scene.add(dialled).await;
        let their_path = dir.path().join("theirs");
        let their_unix = UnixListener::bind(&their_path).unwrap();
        let target = connection_spec::Target::Unix(unix_path(&their_path));
        let unix_dialled = scene.add(to_peer(connection(target))).await;
        let peers: Vec<Box<dyn Peer>> = vec![
            Box::new(TcpStream::connect(("127.0.0.1", port)).unwrap()),
            Box::new(UnixStream::connect(&path).unwrap()),
            Box::new(theirs.accept().unwrap().0),
            Box::new(their_unix.accept().unwrap().0),
        ];
        collector
            .until(&scene, "connections", |seen| {
                seen.accepted.len() == 2 && seen.connected.len() == 4
            })
            .await;
        let ids = [
            collector.accepted(tcp_id)[0],
            collector.accepted(unix_id)[0],
            dialled,
            unix_dialled,
        ];
        let threads: Vec<_> = peers
            .into_iter()
            .zip(0..)
            .map(|(peer, salt)| exchange(peer, pattern(salt, ALL)))
            .collect();
        let out = ids.into_iter().zip(10..);
        let mut out: Vec<_> = out
            .map(|(id, salt)| Writing::new(id, pattern(salt, ALL)))
            .collect();
        let mut round = 0;
        while collector.closed.len() < 4 {
            round += 1;
            if round > 40 {
                // The rest, without any more deaths.
                for writing in &mut out {
                    writing.go_on(&scene).await;
                }
            } else {
                murder_amid(&scene.daemon, round, async || {
                    for writing in &mut out {
                        writing.go_on(&scene).await;
                    }
                })
                .await;
                for writing in &mut out {
                    writing.look(&scene).await;
                }
            }
            let newest = the_loop(&scene).await.journal.unwrap().newest_seq;
            collector
                .until(&scene, "progress", |seen| seen.seen >= newest)
                .await;
        }
        for (index, thread) in threads.into_iter().enumerate() {
            let id = ids[index];
            let closed = &collector.closed[&id];
            assert_eq!(closed.reason(), CloseReason::Completed, "{closed:?}");
            let got = thread.join().unwrap();
            assert_eq!((got.len(), out[index].taken), (ALL, ALL), "stream {index}");
            assert!(got == out[index].bytes, "stream {index} on {backend}");
            let sent = pattern(index as u64, ALL);
            assert_eq!(collector.of(id).len(), ALL, "stream {index}");
            assert!(collector.of(id) == sent, "stream {index} on {backend}");
        }
        drop(theirs);
    }
}

async fn listening_port(scene: &Scene, id: u64) -> u16 {
    let Some(watch::Status::Listener(status)) = scene.get(id).await.status else {
        panic!("a listener");
    };
    let Some(socket_address::Address::Inet(inet)) = status.addresses[0].address.clone() else {
        panic!("an IP address");
    };
    inet.port.try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_that_a_peer_saw_established_is_lost() {
    const ALL: u32 = 600;
    for (policy, backend) in BACKENDS {
        let mut scene = Scene::new(start().await, policy, backend).await;
        let mut collector = Collector::new(&scene).await;
        let spec = watch_spec::Spec::Listener(tcp_listener());
        let id = scene.add(spec).await;
        let port = listening_port(&scene, id).await;
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let peers = std::thread::spawn(move || {
            let mut peers = Vec::new();
            for number in 0..ALL {
                let mut peer = TcpStream::connect(("127.0.0.1", port)).unwrap();
                peer.write_all(&number.to_be_bytes()).unwrap();
                peers.push(peer);
            }
            told.store(true, Ordering::Release);
            peers
        });
        while !over.load(Ordering::Acquire) {
            murder(&scene.daemon).await;
        }
        let peers = peers.join().unwrap();
        let all = ALL as usize;
        collector
            .until(&scene, "all connections", |seen| {
                let whole = seen.bytes.values().filter(|bytes| bytes.len() == 4);
                whole.count() >= all
            })
            .await;
        let accepted = collector.accepted(id).to_vec();
        assert_eq!(accepted.len(), all, "on {backend}");
        let numbers: BTreeSet<_> = accepted.iter().map(|id| collector.of(*id)).collect();
        let wanted: Vec<_> = (0..ALL).map(u32::to_be_bytes).collect();
        assert!(numbers.into_iter().eq(wanted.iter().map(|w| &w[..])));
        assert!(collector.closed.is_empty(), "{:?}", collector.closed);
        let Some(watch::Status::Listener(status)) = scene.get(id).await.status else {
            panic!("a listener");
        };
        assert_eq!(
            (status.accepted, status.open_connections),
            (all as u64, ALL)
        );
        // They are closed by their peers, and not reported once more.
        drop(peers);
        murder(&scene.daemon).await;
        collector
            .until(&scene, "their ends", |seen| seen.closed.len() == all)
            .await;
        assert_eq!(collector.accepted(id).len(), all, "on {backend}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_being_connected_goes_on() {
    for (policy, backend) in BACKENDS {
        let mut scene = Scene::new(start().await, policy, backend).await;
        let mut collector = Collector::new(&scene).await;
        // Its queue takes one connection, and the kernel lets another one wait for it.
        let listener = rustix::net::socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        );
        let listener = listener.unwrap();
        let any: std::net::SocketAddr = ([127, 0, 0, 1], 0).into();
        rustix::net::bind(&listener, &any).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let listener = TcpListener::from(listener);
        let to = listener.local_addr().unwrap();
        let first = TcpStream::connect(to).unwrap();
        let spec = watch_spec::Spec::Connection(tcp("127.0.0.1", to.port().into()));
        let id = scene.add(spec).await;
        murder(&scene.daemon).await;
        murder(&scene.daemon).await;
        assert!(collector.connected.is_empty());
        drop(first);
        let _first = listener.accept().unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        collector
            .until(&scene, "the connection", |seen| {
                seen.connected.contains(&id)
            })
            .await;
        theirs.write_all(b"hello").unwrap();
        collector
            .until(&scene, "bytes", |seen| seen.of(id) == b"hello")
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_of_pipes_is_there_once_through_many_deaths() {
    const ALL: usize = 2_000_000;
    for (policy, backend) in BACKENDS {
        let mut scene = Scene::new(start().await, policy, backend).await;
        let mut collector = Collector::new(&scene).await;
        let handover = scene.daemon.handover().await;
        let (from, mut to) = std::io::pipe().unwrap();
        let (mut their_from, their_to) = std::io::pipe().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let read = scene.add(read_pipe(handover.give(&from))).await;
        let written = scene.add(write_pipe(handover.give(&their_to))).await;
        let socket = scene.add(read_pipe(handover.give(&theirs))).await;
        drop((from, their_to, theirs, handover));
        let [sent, out, over_socket] = [0, 1, 2].map(|salt| pattern(salt, ALL));
        let copy = (sent.clone(), over_socket.clone());
        let writers = [
            std::thread::spawn(move || {
                for piece in pieces(&copy.0) {
                    to.write_all(piece).unwrap();
                    std::thread::sleep(PACE);
                }
            }),
            std::thread::spawn(move || {
                for piece in pieces(&copy.1) {
                    (&ours).write_all(piece).unwrap();
                    std::thread::sleep(PACE);
                }
            }),
        ];
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            their_from.read_to_end(&mut got).unwrap();
            got
        });
        let mut writing = Writing::new(written, out);
        let mut round = 0;
        while collector.closed.len() < 3 {
            round += 1;
            if round > 40 {
                writing.go_on(&scene).await;
            } else {
                let work = async || writing.go_on(&scene).await;
                murder_amid(&scene.daemon, round, work).await;
                writing.look(&scene).await;
            }
            let newest = the_loop(&scene).await.journal.unwrap().newest_seq;
            collector
                .until(&scene, "progress", |seen| seen.seen >= newest)
                .await;
        }
        writers
            .into_iter()
            .for_each(|writer| writer.join().unwrap());
        let out = writing.bytes;
        let got = reader.join().unwrap();
        let first = got.iter().zip(&out).position(|(got, sent)| got != sent);
        assert_eq!(
            (got.len(), first),
            (out.len(), None),
            "written on {backend}"
        );
        assert!(collector.of(read) == sent, "read on {backend}");
        assert!(collector.of(socket) == over_socket, "socket on {backend}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_socket_that_was_handed_over_goes_on() {
    for (policy, backend) in BACKENDS {
        let mut scene = Scene::new(start().await, policy, backend).await;
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let slot = scene.daemon.handover().await.give(&theirs);
        drop(theirs);
        let id = scene.add(watch_spec::Spec::Connection(adopted(slot))).await;
        let mut got = [0; 5];
        for round in 0..3_u64 {
            assert_eq!(scene.write(id, b"hello").await, round * 5 + 5);
            ours.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"hello");
            let told = the_loop(&scene).await.journal.unwrap();
            murder(&scene.daemon).await;
            ours.write_all(b"world").unwrap();
            let mut recorder = resume(&scene, &told.epoch, told.newest_seq).await;
            let Some(Kind::Data(data)) = recorder.first(id, "data").await.kind else {
                panic!("bytes");
            };
            assert_eq!((data.offset, &data.data[..]), (round * 5, &b"world"[..]));
        }
    }
}
