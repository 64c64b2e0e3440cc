//! One scenario that reaches all points, whenever its daemon dies.

use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::Arc;

use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::Death;
use super::client::{Client, give, within};
use crate::CONFIG;
use crate::common::{
    Daemon, adopted, command_with_keeper, datagrams_at, directory, in_terminal, inet, lasting,
    never, shell, tcp_listener, timer,
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
    fn new(stream: TcpStream) -> Self {
        let (mut reader, mut writer) = stream.into_split();
        let (send, mut pieces) = tokio::sync::mpsc::unbounded_channel::<Vec<u8>>();
        tokio::spawn(async move {
            while let Some(piece) = pieces.recv().await {
                writer.write_all(&piece).await.unwrap();
            }
            writer.shutdown().await.unwrap();
        });
        let got = tokio::spawn(async move {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).await.unwrap();
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

/// The pids that children of that name have written.
fn started(client: &Client, name: &str) -> Vec<i32> {
    let path = client.daemon.dir.path().join(name);
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// A child that first writes down that it was started.
fn child(client: &Client, name: &str, line: &str) -> ProcessSpec {
    let path: PathBuf = client.daemon.dir.path().join(name);
    ProcessSpec {
        stdin: Stdio::Pipe.into(),
        ..shell(&format!("echo $$ >> {}; {line}", path.display()))
    }
}

/// Adds a child, and checks that it was started once.
async fn start(client: &mut Client, name: &str, spec: ProcessSpec) -> u64 {
    let add = async |_: &Daemon| Spec::Process(spec.clone());
    client.add(name, add).await
}

/// Checks that a child that has ended was started once, and that nobody knows of another.
fn check_started(client: &Client, name: &str, pid: i32) {
    let pids = started(client, name);
    let known = pids.iter().filter(|one| **one == pid).count();
    assert_eq!(known, 1, "{name}: {pid} of {pids:?}");
    let others: Vec<_> = pids.iter().filter(|one| **one != pid).collect();
    // Of one that was to be started by a request without an answer, the client is told so.
    let in_doubt = client.in_doubt.iter().filter(|one| *one == name).count();
    assert!(others.len() <= in_doubt, "{name}: {pid} of {pids:?}");
    for other in others {
        let state = std::fs::read_to_string(format!("/proc/{other}/cmdline"));
        let lives = state.is_ok_and(|line| line.contains(name));
        assert!(!lives, "{name}: {other} still lives");
    }
}

fn pid_of(watch: &Watch) -> i32 {
    match &watch.status {
        Some(watch::Status::Process(process)) => process.pid,
        other => panic!("{other:?}"),
    }
}

fn exit_code(client: &Client, id: u64) -> Option<i32> {
    match client.seen.exited.get(&id)?.status.clone()? {
        exited::Status::Code(code) => Some(code),
        other => panic!("{other:?}"),
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
    let theirs = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ours = TcpStream::connect(theirs.local_addr().unwrap()).await;
    let ours = ours.unwrap().into_std().unwrap();
    let (other, _) = theirs.accept().await.unwrap();
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

    let line = "i=0; while [ $i -lt 200 ]; do echo $i; i=$((i+1)); done >&2; cat; exit 7";
    let spec = child(&client, "piped", line);
    let piped = start(&mut client, "piped", spec).await;
    let line = format!("stty raw -echo; echo ready; head -c {ALL}; exit 5");
    let spec = in_terminal(child(&client, "typist", &line));
    let typist = start(&mut client, "typist", spec).await;
    client
        .until("the terminal", |seen| {
            seen.of(typist, Stream::Stdout).starts_with(b"ready")
        })
        .await;
    let pids = [
        ("piped", pid_of(&client.get(piped).await)),
        ("typist", pid_of(&client.get(typist).await)),
    ];
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
                let echoed = seen.of(piped, Stream::Stdout).len() >= end;
                let received = [accepted, shared].into_iter().all(|id| {
                    let bytes = seen.bytes.get(&(id, Stream::Input.into()));
                    bytes.is_some_and(|bytes| bytes.len() >= end)
                });
                echoed && received
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
    let spec = child(&client, "short", "exit 3");
    let short = start(&mut client, "short", spec).await;
    let short_pid = pid_of(&client.get(short).await);
    for id in [accepted, shared, piped] {
        client.write_eof(id).await;
    }
    let got = [peer.end().await, shared_peer.end().await];
    let all = [accepted, shared, piped, typist, short];
    client
        .until("all ends", |seen| {
            all.iter().all(|id| seen.closed.contains_key(id))
        })
        .await;
    client.remove(short).await;
    client.remove(ticks).await;
    client.remove(listening).await;
    client.remove(datagrams).await;
    let newest = client.info().await.journal.unwrap().newest_seq;
    client.until("the rest", |seen| seen.newest >= newest).await;

    check(&client, death).await;
    for id in all {
        let closed = &client.seen.closed[&id];
        assert_eq!(closed.reason(), CloseReason::Completed, "{id}: {closed:?}");
    }
    for (name, pid) in pids.into_iter().chain([("short", short_pid)]) {
        check_started(&client, name, pid);
    }
    let codes = [piped, typist, short].map(|id| exit_code(&client, id));
    assert_eq!(codes, [Some(7), Some(5), Some(3)]);
    assert_eq!(client.seen.accepted.len(), 1);
    let of = |id, stream| client.seen.of(id, stream);
    assert!(got[0] == out[0], "what the peer got");
    assert!(got[1] == out[1], "what the other peer got");
    assert!(of(accepted, Stream::Input) == incoming[0]);
    assert!(of(shared, Stream::Input) == incoming[1]);
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
    let how = ended.and_then(|one| one.how.clone());
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
