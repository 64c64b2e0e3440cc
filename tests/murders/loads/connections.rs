//! Connections, TCP and Unix, that the daemon accepts and that it makes. What a peer saw established is
//! not lost, and every byte is there once in both directions.

use std::collections::{BTreeSet, HashMap};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::client::{Site, reason};
use crate::common::{
    PATIENCE, connection, listener, lives, tcp as to_tcp, tcp_listener, unix_path,
};
use crate::field::{Hand, Inbox};

/// So slowly do peers write that the daemon dies many times meanwhile.
const PACE: Duration = Duration::from_millis(1);

/// The other end of a connection, with the calls that all kinds of socket have.
pub(super) trait Peer: Read + Write + Send + Sized + 'static {
    fn copy(&self) -> Self;
    fn end(&self);
    fn patient(self) -> Self;
}

macro_rules! peer {
    ($kind:ty) => {
        impl Peer for $kind {
            fn copy(&self) -> Self {
                self.try_clone().unwrap()
            }

            fn end(&self) {
                self.shutdown(Shutdown::Write).unwrap();
            }

            fn patient(self) -> Self {
                self.set_read_timeout(Some(PATIENCE)).unwrap();
                self.set_write_timeout(Some(PATIENCE)).unwrap();
                self
            }
        }
    };
}

peer!(TcpStream);
peer!(UnixStream);

/// Sends bytes and their end, and gets the same back.
fn exchange(mut peer: impl Peer, bytes: &[u8], what: &str) {
    let mut other = peer.copy();
    let sent = bytes.to_vec();
    let writer = std::thread::spawn(move || {
        for piece in lives::pieces(&sent) {
            other.write_all(piece).unwrap();
            std::thread::sleep(PACE);
        }
        other.end();
    });
    let mut got = Vec::new();
    let read = peer.read_to_end(&mut got);
    if let Err(error) = read {
        panic!(
            "{what}: {error} after {} of {} bytes",
            got.len(),
            bytes.len()
        );
    }
    writer.join().unwrap();
    let first = got.iter().zip(bytes).position(|(got, sent)| got != sent);
    assert_eq!((got.len(), first), (bytes.len(), None), "{what}");
}

/// Makes connections one after the other.
fn call_again<P: Peer>(site: &Site, what: &str, connect: impl Fn() -> std::io::Result<P>) {
    while !site.is_over() {
        let key = site.key();
        let peer = connect().unwrap_or_else(|error| panic!("{what}: {error}"));
        let len = match key % 4 {
            0 => 100,
            1 => 5_000,
            _ => 60_000 + usize::try_from(key % 1000).unwrap() * 100,
        };
        exchange(peer.patient(), &lives::pattern(key % 256, len), what);
        site.figures.count("connections to the daemon", 1);
    }
}

/// What becomes of the connections of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// They complete. They stay open when the peer has ended its direction.
    Plain,
    /// They are lost when the daemon dies. They close when the peer has ended its direction.
    Tls,
}

/// Adds a listener and returns its id and its address.
pub(super) async fn listen(hand: &Hand, inbox: &Inbox, spec: ListenerSpec) -> (u64, SocketAddress) {
    let id = hand.add(inbox, Spec::Listener(spec)).await;
    let Some(watch::Status::Listener(status)) = hand.get(id).await.status else {
        panic!("a listener");
    };
    (id, status.addresses[0].clone())
}

pub(crate) fn port(address: &SocketAddress) -> u16 {
    match &address.address {
        Some(socket_address::Address::Inet(inet)) => inet.port.try_into().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Gives each connection of a listener back what it sends, until all peers have ended; then removes the
/// listener.
pub(super) async fn serve(
    hand: &Hand,
    mut inbox: Inbox,
    id: u64,
    fate: Fate,
    mut peers: JoinSet<()>,
) {
    let mut tasks = JoinSet::new();
    let mut open: HashMap<u64, mpsc::UnboundedSender<Event>> = HashMap::new();
    let mut accepted = BTreeSet::new();
    let (mut removal, mut removed) = (None, false);
    // One more connection may have been accepted before the listener was removed, if its peer has gone.
    while !removed || !open.is_empty() {
        if peers.is_empty() && open.is_empty() && removal.is_none() {
            let hand = hand.clone();
            removal = Some(tokio::spawn(async move { hand.ask_to_remove(id).await }));
        }
        let event = tokio::select! {
            event = inbox.next("anything of a listener") => event,
            Some(done) = peers.join_next() => {
                done.unwrap();
                continue;
            }
            Some(done) = tasks.join_next() => {
                let connection = done.unwrap();
                open.remove(&connection);
                continue;
            }
        };
        if event.watch_id != id {
            let connection = event.watch_id;
            if matches!(event.kind, Some(Kind::Added(_))) {
                let (sender, events) = mpsc::unbounded_channel();
                open.insert(connection, sender);
                let hand = hand.clone();
                tasks.spawn(async move {
                    give_back(&hand, connection, events, fate).await;
                    connection
                });
            } else {
                open[&connection].send(event).unwrap();
            }
            continue;
        }
        match event.kind.unwrap() {
            Kind::Added(_) | Kind::HandshakesFailed(_) => {}
            Kind::Accepted(new) => {
                assert!(accepted.insert(new.watch_id), "{new:?}");
                hand.count("connections accepted", 1);
            }
            Kind::Closed(closed) => {
                assert_eq!(closed.reason(), CloseReason::Removed, "{closed:?}");
                assert!(removal.is_some());
            }
            Kind::Removed(_) => removed = true,
            other => panic!("{other:?}"),
        }
    }
    removal.unwrap().await.unwrap();
}

/// Writes what was read to the same connection.
async fn give_back(hand: &Hand, id: u64, mut events: mpsc::UnboundedReceiver<Event>, fate: Fate) {
    let mut offset = 0;
    // A connection that the daemon has lost meanwhile takes nothing.
    let lost = |status: &tonic::Status| fate == Fate::Tls && reason(status) == "WATCH_CLOSED";
    loop {
        let event = match tokio::time::timeout(PATIENCE, events.recv()).await {
            Ok(event) => event.expect("it is not removed"),
            Err(_) => panic!("nothing of connection {id} on {}", hand.field.backend),
        };
        match event.kind.unwrap() {
            Kind::Data(data) => {
                assert_eq!(data.offset, offset);
                offset += data.data.len() as u64;
                hand.count("bytes read", data.data.len() as u64);
                let written = hand.write_all(id, data.data, data.offset).await;
                if let Err(status) = written {
                    assert!(lost(&status), "{status:?}");
                }
            }
            Kind::Eof(eof) => {
                assert_eq!(eof.offset, offset);
                if fate == Fate::Plain {
                    hand.write_eof(id).await;
                }
            }
            Kind::Closed(closed) => {
                if fate == Fate::Tls && closed.reason() == CloseReason::Lost {
                    assert!(hand.deaths() > 0, "{closed:?}");
                    hand.count("TLS connections lost", 1);
                } else {
                    let backend = hand.field.backend;
                    let reason = closed.reason();
                    assert_eq!(reason, CloseReason::Completed, "{closed:?} on {backend}");
                }
                break;
            }
            Kind::Connected(_) | Kind::WritePaused(_) | Kind::WriteResumed(_) => {}
            other => panic!("{other:?}"),
        }
    }
    hand.ask_to_remove(id).await;
    let removed = events.recv().await.and_then(|event| event.kind);
    assert!(matches!(removed, Some(Kind::Removed(_))), "{removed:?}");
}

fn half_open(spec: ListenerSpec) -> ListenerSpec {
    ListenerSpec {
        keep_half_open: true,
        ..spec
    }
}

pub(super) async fn tcp(hand: Hand) {
    let inbox = hand.inbox();
    let (id, address) = listen(&hand, &inbox, half_open(tcp_listener())).await;
    let to = ("127.0.0.1", port(&address));
    let mut peers = JoinSet::new();
    for _ in 0..2 {
        let site = Arc::clone(&hand.field.site);
        let what = format!("TCP to {}", hand.field.backend);
        peers.spawn_blocking(move || call_again(&site, &what, || TcpStream::connect(to)));
    }
    serve(&hand, inbox, id, Fate::Plain, peers).await;
}

fn path(hand: &Hand, name: &str) -> PathBuf {
    let name = format!("{name}-{}", hand.field.backend);
    hand.field.site.dir.join(name)
}

pub(super) async fn unix(hand: Hand) {
    let inbox = hand.inbox();
    let path = path(&hand, "service");
    let target = listener_spec::Target::Unix(unix_path(&path));
    let (id, _) = listen(&hand, &inbox, half_open(listener(target))).await;
    let mut peers = JoinSet::new();
    let site = Arc::clone(&hand.field.site);
    let what = format!("Unix to {}", hand.field.backend);
    peers.spawn_blocking(move || call_again(&site, &what, || UnixStream::connect(&path)));
    serve(&hand, inbox, id, Fate::Plain, peers).await;
}

/// A server of the test: it gives each connection back what it sends, until nobody holds `end` any more.
fn server<P: Peer>(end: &mpsc::Receiver<()>, accept: impl Fn() -> std::io::Result<P>) {
    let mut threads = Vec::new();
    loop {
        let mut peer = match accept() {
            Ok(peer) => peer.patient(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => match end.is_closed() {
                true => break,
                false => continue,
            },
            Err(error) => panic!("{error}"),
        };
        threads.push(std::thread::spawn(move || {
            let mut other = peer.copy();
            // A life that died while it connected may have left one that sends nothing.
            std::io::copy(&mut peer, &mut other).unwrap();
            peer.end();
        }));
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

/// How often a server looks whether it has to end.
fn accept_for_a_while(listener: impl AsFd) {
    let while_ = Some(Duration::from_millis(50));
    set_socket_timeout(listener, Timeout::Recv, while_).unwrap();
}

/// Connections that the daemon makes, one after the other.
async fn made(hand: &Hand, target: impl Fn() -> ConnectionSpec) {
    const ALL: usize = 300_000;
    while !hand.is_over() {
        let mut inbox = hand.inbox();
        let spec = ConnectionSpec {
            keep_half_open: true,
            ..target()
        };
        let id = hand.add(&inbox, Spec::Connection(spec)).await;
        let bytes = Bytes::from(lives::pattern(inbox.key % 255, ALL));
        let writing = async {
            let mut offset = 0;
            for piece in lives::pieces(&bytes) {
                let piece = bytes.slice_ref(piece);
                let len = piece.len() as u64;
                hand.write_all(id, piece, offset).await.unwrap();
                offset += len;
            }
            hand.write_eof(id).await;
        };
        let reading = async {
            let (mut at, mut connected, mut ended) = (0, 0, 0);
            loop {
                match inbox.next("the end of a connection").await.kind.unwrap() {
                    Kind::Added(_) | Kind::WritePaused(_) | Kind::WriteResumed(_) => {}
                    Kind::Connected(_) => connected += 1,
                    Kind::Data(data) => {
                        let end = at + data.data.len();
                        let backend = hand.field.backend;
                        assert_eq!(data.offset, at as u64);
                        assert!(data.data == bytes[at..end], "at {at} on {backend}");
                        hand.count("bytes read", data.data.len() as u64);
                        at = end;
                    }
                    Kind::Eof(eof) => {
                        assert_eq!(eof.offset, ALL as u64);
                        ended += 1;
                    }
                    Kind::Closed(closed) => {
                        assert_eq!(closed.reason(), CloseReason::Completed, "{closed:?}");
                        break;
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!((at, connected, ended), (ALL, 1, 1));
        };
        tokio::join!(writing, reading);
        hand.remove(&mut inbox, id).await;
        hand.count("connections from the daemon", 1);
    }
}

pub(super) async fn made_tcp(hand: Hand) {
    let theirs = TcpListener::bind("127.0.0.1:0").unwrap();
    accept_for_a_while(&theirs);
    let to = theirs.local_addr().unwrap();
    let (serving, end) = mpsc::channel(1);
    let server = move || server(&end, || Ok(theirs.accept()?.0));
    let server = tokio::task::spawn_blocking(server);
    made(&hand, || to_tcp("127.0.0.1", to.port().into())).await;
    drop(serving);
    server.await.unwrap();
}

pub(super) async fn made_unix(hand: Hand) {
    let path = path(&hand, "theirs");
    let theirs = UnixListener::bind(&path).unwrap();
    accept_for_a_while(&theirs);
    let (serving, end) = mpsc::channel(1);
    let server = move || server(&end, || Ok(theirs.accept()?.0));
    let server = tokio::task::spawn_blocking(server);
    let target = || connection(connection_spec::Target::Unix(unix_path(&path)));
    made(&hand, target).await;
    drop(serving);
    server.await.unwrap();
}
