//! One scenario that reaches all points, whenever its daemon dies.

use std::fs::OpenOptions;
use std::net::UdpSocket;
use std::sync::Arc;

use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

use super::Death;
use super::client::{Client, give, within};
use crate::CONFIG;
use crate::common::{
    Daemon, adopted, command_with_keeper, datagrams_at, directory, inet, lasting, never,
    tcp_listener, timer,
};

/// The rounds in which a little of everything happens, and what goes over each stream in one.
const ROUNDS: usize = 4;
const PIECE: usize = 3000;
const ALL: usize = ROUNDS * PIECE;
/// The round before which the first life is killed if the death is one of a later life.
const MURDER: usize = 2;

/// What is sent over a stream: different for each.
fn pattern(salt: u8) -> Vec<u8> {
    let bytes = (0..ALL).map(|at| (at % 251).to_le_bytes()[0].wrapping_add(salt));
    bytes.collect()
}

/// The other end of a connection: sends what it is given, and returns what it gets.
struct Peer {
    send: tokio::sync::mpsc::UnboundedSender<Vec<u8>>,
    got: JoinHandle<Vec<u8>>,
}

impl Peer {
    fn new(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (send, mut pieces) = tokio::sync::mpsc::unbounded_channel::<Vec<u8>>();
        tokio::spawn(async move {
            while let Some(piece) = pieces.recv().await {
                // It fails if the daemon's end is lost.
                let _ = writer.write_all(&piece).await;
            }
            let _ = writer.shutdown().await;
        });
        let got = tokio::spawn(async move {
            let mut got = Vec::new();
            let _ = reader.read_to_end(&mut got).await;
            got
        });
        Self { send, got }
    }

    /// Sends its end, and returns all that it got.
    async fn end(self) -> Vec<u8> {
        drop(self.send);
        within("the peer's end", self.got).await.unwrap()
    }
}

fn port(address: &SocketAddress) -> u16 {
    match &address.address {
        Some(socket_address::Address::Inet(inet)) => inet.port.try_into().unwrap(),
        other => panic!("{other:?}"),
    }
}

pub(super) async fn start_daemon(word: &str) -> Daemon {
    let dir = directory();
    let mut command = command_with_keeper(dir.path(), CONFIG, &[]);
    command.env("EVLOOPD_TEST_POINT", word);
    Daemon::start_as(Arc::clone(&dir), command).await
}

/// Ends the daemon and its keeper at once: nothing of it is needed any more.
pub(super) async fn end_daemon(client: &Client) {
    let pid = client.pid().await;
    let _ = kill(client.daemon.pid(), Signal::SIGKILL);
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

pub(super) async fn run(death: Death, backend: (&'static str, &'static str)) {
    let daemon = start_daemon(&death.word()).await;
    let mut client = Client::new(daemon, backend).await;

    let listener = ListenerSpec {
        keep_half_open: true,
        ..tcp_listener()
    };
    let listening = client
        .add("listener", async |_: &Daemon| {
            Spec::Listener(listener.clone())
        })
        .await;
    let Some(watch::Status::Listener(status)) = client.get(listening).await.status else {
        panic!("a listener");
    };
    let to = ("127.0.0.1", port(&status.addresses[0]));
    let peer = Peer::new(TcpStream::connect(to).await.unwrap());

    // One that was handed over, which other processes may have open, too.
    let (ours, other) = UnixStream::pair().unwrap();
    let shared = client
        .add("shared", async |daemon: &Daemon| {
            Spec::Connection(ConnectionSpec {
                keep_half_open: true,
                ..adopted(give(daemon, &ours).await)
            })
        })
        .await;
    let shared_peer = Peer::new(other);

    let datagrams = client
        .add("datagrams", async |_: &Daemon| {
            Spec::Datagram(datagrams_at(inet("127.0.0.1", 0)))
        })
        .await;
    let Some(watch::Status::Datagram(status)) = client.get(datagrams).await.status else {
        panic!("a datagram socket");
    };
    let datagrams_to = ("127.0.0.1", port(status.local.as_ref().unwrap()));
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();

    let every = timer_spec::Schedule::Every(lasting(std::time::Duration::from_millis(20)));
    let ticks = client
        .add("ticks", async |_: &Daemon| timer(every.clone()))
        .await;

    drop(ours);
    // It ends only once it may, also if the daemon's ends of its pipes are closed.
    let may_end = client.daemon.dir.path().join("may-end");
    mknodat(CWD, &may_end, FileType::Fifo, Mode::RWXU, 0).unwrap();
    let line = format!(
        "trap '' PIPE; i=0; while [ $i -lt 200 ]; do echo $i; i=$((i+1)); done >&2; cat; \
         : < {}; exit 7",
        may_end.display()
    );
    let (piped, piped_pid) = client.start("piped", &line, false).await;
    let line = format!("stty raw -echo; echo ready; head -c {ALL}; exit 5");
    let (typist, typist_pid) = client.start("typist", &line, true).await;
    client
        .until("the terminal", |seen| {
            seen.of(typist, Stream::Stdout).starts_with(b"ready")
        })
        .await;
    client
        .until("a connection", |seen| !seen.accepted.is_empty())
        .await;
    let accepted = client.seen.accepted[0];

    let ids = [accepted, shared, piped, typist];
    let out: Vec<_> = (0..4).map(pattern).collect();
    let incoming: Vec<_> = (10..12).map(pattern).collect();
    let mut taken = [0; 4];
    for round in 0..ROUNDS {
        if death.life > 1 && round == MURDER {
            // Something is under way.
            let pid = Pid::from_raw(client.pid().await);
            kill(pid, Signal::SIGKILL).unwrap();
        }
        let part = round * PIECE..(round + 1) * PIECE;
        peer.send.send(incoming[0][part.clone()].to_vec()).unwrap();
        let shared_part = incoming[1][part.clone()].to_vec();
        shared_peer.send.send(shared_part).unwrap();
        for number in 0..3 {
            let number = u8::try_from(round * 3 + number).unwrap();
            sender.send_to(&[number], datagrams_to).unwrap();
        }
        client.post(round as u64).await;
        for (at, id) in ids.into_iter().enumerate() {
            // In pieces of several sizes.
            let middle = part.start + 7 + round * 500;
            for end in [part.start + 5, middle, part.end] {
                client.write(id, &out[at], &mut taken[at], end).await;
            }
        }
        let end = part.end;
        client
            .until("all of the round", |seen| {
                let is_here = |id, stream| seen.of(id, stream).len() >= end;
                is_here(piped, Stream::Stdout)
                    && is_here(accepted, Stream::Input)
                    && (is_here(shared, Stream::Input) || seen.closed.contains_key(&shared))
            })
            .await;
        client.acknowledge().await;
        let name = format!("hour-{round}");
        let hour = client.add(&name, async |_: &Daemon| never()).await;
        if round % 2 == 0 {
            client.remove(hour).await;
        } else {
            client.get(hour).await;
        }
    }
    let (short, short_pid) = client.start("short", "exit 3", false).await;
    for id in [accepted, shared, piped] {
        client.write_eof(id).await;
    }
    client.check_started("piped", piped_pid);
    if death.point == "ChildAbandoned" {
        // An abandoned child does not execute its program.
        assert_eq!(client.pids("piped"), [piped_pid]);
    }
    let may_end = OpenOptions::new().read(true).write(true).open(may_end);
    let got = [peer.end().await, shared_peer.end().await];
    let all = [accepted, shared, piped, typist, short];
    client
        .until("all ends", |seen| {
            all.iter().all(|id| seen.closed.contains_key(id))
        })
        .await;
    drop(may_end.unwrap());
    client.remove(short).await;
    client.remove(ticks).await;
    client.remove(listening).await;
    client.remove(datagrams).await;
    let newest = client.info().await.journal.unwrap().newest_seq;
    client.until("the rest", |seen| seen.newest >= newest).await;

    check(&client, death).await;
    // Nothing tells whether a Unix socket that others may have has taken the last bytes.
    let may_lose = ["SendInDoubt", "SocketTook"].contains(&death.point);
    for id in all {
        let closed = &client.seen.closed[&id];
        let wanted = match id == shared && may_lose {
            true => CloseReason::Lost,
            false => CloseReason::Completed,
        };
        assert_eq!(closed.reason(), wanted, "{id}: {closed:?}");
    }
    for (name, id, pid, code) in [
        ("piped", piped, piped_pid, 7),
        ("typist", typist, typist_pid, 5),
        ("short", short, short_pid, 3),
    ] {
        client.check_started(name, pid);
        assert_eq!(
            client.exit_of(id),
            Some(exited::Status::Code(code)),
            "{name}"
        );
    }
    assert_eq!(client.seen.accepted.len(), 1);
    let of = |id, stream| client.seen.of(id, stream);
    assert!(got[0] == out[0], "what the peer got");
    assert!(out[1].starts_with(&got[1]), "what the other peer got");
    assert!(may_lose || got[1].len() == ALL);
    assert!(of(accepted, Stream::Input) == incoming[0]);
    assert!(incoming[1].starts_with(of(shared, Stream::Input)));
    assert!(may_lose || of(shared, Stream::Input).len() == ALL);
    assert!(of(piped, Stream::Stdout) == out[2]);
    let numbers: String = (0..200).map(|number| format!("{number}\n")).collect();
    assert_eq!(of(piped, Stream::Stderr), numbers.as_bytes());
    let screen = of(typist, Stream::Stdout);
    let echoed = screen.len().checked_sub(ALL).map(|start| &screen[start..]);
    assert!(echoed == Some(&out[3]), "{} bytes echoed", screen.len());
    let datagrams = client.seen.datagrams.remove(&datagrams).unwrap_or_default();
    let missing = 3 * ROUNDS as u64 - datagrams.len() as u64;
    assert!(datagrams.is_sorted() && missing <= client.seen.lost_datagrams);
    let mut distinct = datagrams.clone();
    distinct.dedup();
    assert_eq!(distinct, datagrams, "a datagram came twice");
    end_daemon(&client).await;
}

/// Checks what the daemon says of itself, and what it has confirmed.
async fn check(client: &Client, death: Death) {
    let keeper = client.status().await.keeper.unwrap();
    let ended = keeper.ended_lives.iter().find(|one| one.life == death.life);
    let how = ended.and_then(|one| one.how);
    assert_eq!(how, Some(death.seen()), "{:?}", keeper.ended_lives);
    assert_eq!(keeper.life, death.life + 1);
    assert!(keeper.set_aside_loops.is_empty());
    // One that was made in the second life knows of one death less.
    assert!(client.seen.recovered <= death.life);
    let consumer = client.consumer().await;
    assert_eq!(consumer.acked.unwrap().seq, client.acked);
    let mut posted = client.seen.posted.clone();
    posted.retain(|number| !client.maybe_posted.contains(number));
    assert_eq!(posted, client.posted);
    let mut all = client.seen.posted.clone();
    all.dedup();
    assert_eq!(all, client.seen.posted, "a post came twice");
    for round in 0..ROUNDS {
        let name = format!("hour-{round}");
        let found = client.find(crate::common::by_name(&name)).await;
        assert_eq!(found.is_some(), round % 2 == 1, "{name}");
    }
}
