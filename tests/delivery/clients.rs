//! Client processes that are killed: this test program started again. Each keeps what it has
//! received in files, as a real client would: the bytes and the cursor that belongs to them.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use evloopd::history::{Checker, View};
use evloopd::proto::event_service_client::EventServiceClient;
use evloopd::proto::process_service_client::ProcessServiceClient;
use evloopd::proto::*;
use tonic::transport::Channel;

use crate::common::{Daemon, loop_named};

const ACT: &str = "EVLOOPD_TEST_CLIENT";
const SOCKET: &str = "EVLOOPD_TEST_SOCKET";
const FILES: &str = "EVLOOPD_TEST_FILES";
const MARK: &str = "did: ";
pub(crate) const CONSUMER: &str = "builder";
pub(crate) const PROCESS: &str = "numbers";

/// How the client reads.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way {
    /// Subscribes as a consumer and acknowledges.
    Consumer,
    /// Calls Run with the name of the process and a cursor.
    Run,
}

/// A client that lives until it is killed. It takes a step only when asked to, so that its progress
/// in one life does not depend on timing.
pub(crate) struct Client {
    child: Child,
    output: BufReader<ChildStdout>,
    /// One byte on its stdin starts the next step.
    go_on: ChildStdin,
    /// Whether it waits for that byte.
    waits: bool,
}

impl Client {
    pub(crate) fn start(daemon: &Daemon, way: Way, files: &Path) -> Self {
        let act = match way {
            Way::Consumer => "consumer",
            Way::Run => "run",
        };
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "client_process", "--nocapture"])
            .env(ACT, act)
            .env(SOCKET, &daemon.socket)
            .env(FILES, files)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let go_on = child.stdin.take().unwrap();
        Self {
            child,
            output,
            go_on,
            waits: false,
        }
    }

    fn let_go_on(&mut self) {
        if std::mem::take(&mut self.waits) {
            self.go_on.write_all(b".").unwrap();
        }
    }

    /// Returns the step that it has done next; `None` once it has ended.
    pub(crate) fn did(&mut self) -> Option<String> {
        self.let_go_on();
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some((_, did)) = line.split_once(MARK) {
                self.waits = true;
                return Some(did.trim_end().to_owned());
            }
        }
    }

    /// Kills it during its next step.
    pub(crate) fn kill(mut self) {
        self.let_go_on();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn ended_well(mut self) -> bool {
        self.let_go_on();
        self.child.wait().unwrap().success()
    }
}

/// Acts as the client, in its process. Returns at once in a process that was given no act.
pub(crate) fn act() {
    let words = [ACT, SOCKET, FILES].map(std::env::var);
    let [Ok(act), Ok(socket), Ok(files)] = words else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let channel = crate::common::connect(Path::new(&socket)).await;
        let mut kept = Kept::open(&PathBuf::from(files));
        match act.as_str() {
            "consumer" => consume(channel, &mut kept).await,
            _ => run(channel, &mut kept).await,
        }
    });
}

fn did(what: &str) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{MARK}{what}").unwrap();
    stdout.flush().unwrap();
    std::io::stdin().read_exact(&mut [0]).unwrap();
}

/// The state of a client that survives its lives.
struct Kept {
    data: File,
    state: File,
    /// The `through` of the last batch that is kept; `None` before the first.
    through: Option<u64>,
    len: u64,
    done: bool,
}

impl Kept {
    fn open(files: &Path) -> Self {
        let open = |name: &str| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            options.open(files.join(name)).unwrap()
        };
        let (data, state) = (open("data"), open("state"));
        let mut words = [0; 16];
        let known = state.read_exact_at(&mut words, 0).is_ok();
        let word = |at: usize| u64::from_le_bytes(words[at..at + 8].try_into().unwrap());
        let len = if known { word(8) } else { 0 };
        // Bytes that were written without their cursor will be received again.
        data.set_len(len).unwrap();
        Self {
            data,
            state,
            through: known.then(|| word(0)),
            len,
            done: false,
        }
    }

    fn keep(&mut self, batch: &Batch) {
        assert!(batch.gaps.is_empty(), "lost: {:?}", batch.gaps);
        for event in &batch.events {
            match &event.kind {
                Some(event::Kind::Data(data)) => {
                    assert_eq!(data.offset, self.len, "a hole, or bytes that came twice");
                    self.data.write_all_at(&data.data, self.len).unwrap();
                    self.len += data.data.len() as u64;
                }
                Some(event::Kind::Closed(_)) => self.done = true,
                _ => {}
            }
        }
        did("written");
        let words = [batch.through.to_le_bytes(), self.len.to_le_bytes()].concat();
        self.state.write_all_at(&words, 0).unwrap();
        self.through = Some(batch.through);
        did("kept");
    }

    fn cursor(&self) -> Option<Cursor> {
        self.through.map(|seq| Cursor {
            epoch: String::new(),
            seq,
        })
    }
}

async fn consume(channel: Channel, kept: &mut Kept) {
    let mut events = EventServiceClient::new(channel.clone());
    let oldest = subscribe_request::Start::StartAt(StartAt::Oldest.into());
    let request = SubscribeRequest {
        r#loop: Some(loop_named("scene")),
        start: Some(
            kept.cursor()
                .map_or(oldest, subscribe_request::Start::After),
        ),
        consumer: CONSUMER.into(),
        ..SubscribeRequest::default()
    };
    let mut stream = events.subscribe(request).await.unwrap().into_inner();
    let mut checker = None;
    while !kept.done {
        match stream.message().await.unwrap().and_then(|m| m.message) {
            Some(subscribe_response::Message::Header(header)) => {
                checker = Some(Checker::new(header.after, View::All, header.after == 0));
            }
            Some(subscribe_response::Message::Batch(batch)) => {
                did("received");
                checker.as_mut().unwrap().push(&batch).unwrap();
                kept.keep(&batch);
                let request = AckRequest {
                    r#loop: Some(loop_named("scene")),
                    consumer: CONSUMER.into(),
                    cursor: kept.cursor(),
                    ..AckRequest::default()
                };
                events.ack(request).await.unwrap();
                did("acknowledged");
            }
            other => panic!("{other:?}"),
        }
    }
    did("done");
}

async fn run(channel: Channel, kept: &mut Kept) {
    let request = RunRequest {
        r#loop: Some(loop_named("scene")),
        name: PROCESS.into(),
        after: kept.cursor(),
        ..RunRequest::default()
    };
    let mut processes = ProcessServiceClient::new(channel);
    let mut stream = processes.run(request).await.unwrap().into_inner();
    let mut checker = None;
    while !kept.done {
        match stream.message().await.unwrap().and_then(|m| m.message) {
            Some(run_response::Message::Header(header)) => {
                let added = header.added.unwrap().seq;
                let start = kept.through.unwrap_or(added - 1);
                checker = Some(Checker::new(start, View::Watches, start < added));
            }
            Some(run_response::Message::Batch(batch)) => {
                did("received");
                checker.as_mut().unwrap().push(&batch).unwrap();
                kept.keep(&batch);
            }
            other => panic!("{other:?}"),
        }
    }
    did("done");
}
