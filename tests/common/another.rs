//! A second client process: this test program started again, to do one of the acts below.
//!
//! A test file that uses it has a test `another_process` that calls [`act`].

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use evloopd::history::Recording;
use evloopd::proto::policy_service_client::PolicyServiceClient;
use evloopd::proto::watch_service_client::WatchServiceClient;
use evloopd::proto::*;
use prost::Message;

use super::{Daemon, Handover, connect, reader};

const ACT: &str = "EVLOOPD_TEST_ACT";
const SOCKET: &str = "EVLOOPD_TEST_SOCKET";
const MARK: &str = "told: ";

/// An act of the other process. To tell is to write a line that the test reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Tells the full name of the loop of its context.
    GetEventLoop,
    /// Tells that it is about to ask, makes loops of these names that live as long as this process,
    /// starts a child on the first, and tells the child's process id.
    NewLoops([&'static str; 2]),
    /// Adds a reader of a descriptor to the loop `scene` with the default lifetime, and tells its
    /// watch id.
    AddReader,
    /// Hands over a descriptor in slots 7 and 8, which it chose itself, adds a reader of slot 7 to
    /// the loop `scene`, and tells its watch id. Then adds a reader of slot 9, which is never
    /// filled.
    OwnSlots,
    /// Subscribes to the loop `scene` after this sequence number, and tells every batch.
    Subscribe { after: u64 },
}

/// The other process. It lives until it is killed or this is dropped.
pub(crate) struct Another {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Another {
    pub(crate) fn start(daemon: &Daemon, act: Act) -> Self {
        let act = match act {
            Act::GetEventLoop => "get".to_owned(),
            Act::NewLoops(names) => format!("new {}", names.join(" ")),
            Act::AddReader => "add".to_owned(),
            Act::OwnSlots => "own".to_owned(),
            Act::Subscribe { after } => after.to_string(),
        };
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "another_process", "--nocapture"])
            .env(ACT, act)
            .env(SOCKET, &daemon.socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// Returns the next thing that the other process tells.
    pub(crate) fn told(&mut self) -> String {
        loop {
            let mut line = String::new();
            let read = self.output.read_line(&mut line).unwrap();
            assert!(read > 0, "the other process ended");
            if let Some((_, told)) = line.split_once(MARK) {
                return told.trim_end().to_owned();
            }
        }
    }

    /// Records the batches that it tells until `done` holds for one, then kills it at once.
    pub(crate) fn killed_at(mut self, recording: &mut Recording, done: impl Fn(&Batch) -> bool) {
        loop {
            let bytes: Vec<u8> = self
                .told()
                .split(' ')
                .filter(|byte| !byte.is_empty())
                .map(|byte| byte.parse().unwrap())
                .collect();
            let batch = Batch::decode(bytes.as_slice()).unwrap();
            let enough = done(&batch);
            recording.batches.push(batch);
            if enough {
                return;
            }
        }
    }
}

impl Drop for Another {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Does the act, in the other process. Returns at once in a process that was given none.
pub(crate) fn act() {
    let (Ok(act), Ok(socket)) = (std::env::var(ACT), std::env::var(SOCKET)) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _kept = runtime.block_on(async {
        match act.as_str() {
            "get" => get_event_loop(Path::new(&socket)).await,
            new if new.starts_with("new ") => new_loops(Path::new(&socket), &new[4..]).await,
            "own" => return Some(own_slots(Path::new(&socket)).await),
            "add" => return Some(add_reader(Path::new(&socket)).await),
            after => subscribe(Path::new(&socket), after.parse().unwrap()).await,
        }
        None
    });
    let _ = std::io::stdin().read(&mut [0]);
}

fn tell(what: &str) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{MARK}{what}").unwrap();
    stdout.flush().unwrap();
}

async fn get_event_loop(socket: &Path) {
    let mut policies = PolicyServiceClient::new(connect(socket).await);
    let answer = policies
        .get_event_loop(GetEventLoopRequest {})
        .await
        .unwrap();
    tell(&answer.into_inner().r#loop.unwrap().full_name);
}

async fn new_loops(socket: &Path, names: &str) {
    let channel = connect(socket).await;
    tell("asking");
    for name in names.split(' ') {
        let request = NewEventLoopRequest {
            name: name.into(),
            lifetime: Lifetime::Process.into(),
            ..NewEventLoopRequest::default()
        };
        let made = PolicyServiceClient::new(channel.clone())
            .new_event_loop(request)
            .await;
        let made = made.unwrap().into_inner().r#loop.unwrap();
        assert_eq!(made.lifetime(), Lifetime::Process);
    }
    let request = AddWatchRequest {
        r#loop: names.split(' ').next().map(super::loop_named),
        spec: Some(WatchSpec {
            spec: Some(watch_spec::Spec::Process(super::exec(&["sleep", "3600"]))),
        }),
        ..AddWatchRequest::default()
    };
    let mut watches = WatchServiceClient::new(channel);
    let child = watches.add_watch(request).await.unwrap().into_inner();
    match child.watch.unwrap().status {
        Some(watch::Status::Process(process)) => tell(&process.pid.to_string()),
        other => panic!("{other:?}"),
    }
}

async fn add_reader(socket: &Path) -> std::os::unix::net::UnixStream {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let handover = format!("{}.handover", socket.display());
    let slot = Handover::connect(Path::new(&handover)).give(&theirs);
    let mut watches = WatchServiceClient::new(connect(socket).await);
    let request = AddWatchRequest {
        r#loop: Some(super::loop_named("scene")),
        spec: Some(WatchSpec {
            spec: Some(reader(slot)),
        }),
        ..AddWatchRequest::default()
    };
    let answer = watches.add_watch(request).await.unwrap().into_inner();
    tell(&answer.watch.unwrap().watch_id.to_string());
    ours
}

async fn own_slots(socket: &Path) -> std::os::unix::net::UnixStream {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let handover = Handover::connect(Path::new(&format!("{}.handover", socket.display())));
    let slot = |number| bytes::Bytes::from(vec![number; 16]);
    handover.give_as(&[slot(7), slot(8)], &[theirs.as_fd(), theirs.as_fd()]);
    let channel = connect(socket).await;
    let add = |number| {
        let request = AddWatchRequest {
            r#loop: Some(super::loop_named("scene")),
            spec: Some(WatchSpec {
                spec: Some(reader(slot(number))),
            }),
            ..AddWatchRequest::default()
        };
        let mut watches = WatchServiceClient::new(channel.clone());
        async move { watches.add_watch(request).await }
    };
    let added = add(7).await.unwrap().into_inner();
    let never = tokio::spawn(add(9));
    tell(&added.watch.unwrap().watch_id.to_string());
    never.await.unwrap().unwrap_err();
    ours
}

async fn subscribe(socket: &Path, after: u64) {
    let mut events = event_service_client::EventServiceClient::new(connect(socket).await);
    let request = SubscribeRequest {
        r#loop: Some(super::loop_named("scene")),
        start: Some(subscribe_request::Start::After(Cursor {
            epoch: String::new(),
            seq: after,
        })),
        max_batch_bytes: 1024,
        ..SubscribeRequest::default()
    };
    let mut stream = events.subscribe(request).await.unwrap().into_inner();
    while let Ok(Some(message)) = stream.message().await {
        if let Some(subscribe_response::Message::Batch(batch)) = message.message {
            let bytes = batch.encode_to_vec();
            let text: Vec<String> = bytes.iter().map(u8::to_string).collect();
            tell(&text.join(" "));
        }
    }
}
