//! Views of terminals: what they begin with, what they take, and what happens to one that falls
//! behind.

use evloopd::proto::attach_terminal_request::Message as Asked;
use evloopd::proto::attach_terminal_response::Message as Told;
use evloopd::proto::event::Kind;
use evloopd::proto::process_service_client::ProcessServiceClient;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Streaming};

use crate::common::{Daemon, Scene, by_id, connect_with, refused, shell, within};

/// A journal that is far smaller than the output of the processes, and small buffers for input.
const CONFIG: &str = r#"
[limits]
write_buffer = "64KiB"
[policy.small]
extends = "default"
journal_bytes = "512KiB"
attached_bytes = "32KiB"
journal_watch_keep = "8KiB"
[policy.small-proactor]
extends = "small"
class = "proactor"
backends = ["io_uring"]
"#;

const EVERY_CLASS: [(&str, &str); 2] = [("small", "epoll"), ("small-proactor", "io_uring")];

/// A view of a test.
struct View {
    requests: mpsc::Sender<AttachTerminalRequest>,
    told: Streaming<AttachTerminalResponse>,
    /// What it has shown since the last screen, which comes first.
    seen: Vec<u8>,
    screens: usize,
    gaps: usize,
    exited: Option<Exited>,
    state: ViewState,
    refused: Vec<InputRefused>,
    cursor: u64,
}

impl View {
    async fn open(scene: &Scene, open: OpenTerminal) -> Result<Self, tonic::Status> {
        // Small windows, so that little is in flight to a view that is not read.
        let endpoint = Endpoint::from_static("http://localhost")
            .initial_stream_window_size(64 * 1024)
            .initial_connection_window_size(64 * 1024);
        let channel = connect_with(&scene.daemon.socket, endpoint).await;
        let (requests, asked) = mpsc::channel(8);
        let message = Some(Asked::Open(OpenTerminal {
            r#loop: Some(scene.target.clone()),
            ..open
        }));
        requests
            .send(AttachTerminalRequest { message })
            .await
            .unwrap();
        let mut processes = ProcessServiceClient::new(channel);
        let told = processes
            .attach_terminal(ReceiverStream::new(asked))
            .await?;
        Ok(Self {
            requests,
            told: told.into_inner(),
            seen: Vec::new(),
            screens: 0,
            gaps: 0,
            exited: None,
            state: ViewState::default(),
            refused: Vec::new(),
            cursor: 0,
        })
    }

    async fn of(scene: &Scene, id: u64) -> Self {
        let open = OpenTerminal {
            watch: by_id(id),
            ..OpenTerminal::default()
        };
        Self::open(scene, open).await.unwrap()
    }

    async fn types(&self, keys: &[u8]) {
        let message = Some(Asked::Input(bytes::Bytes::copy_from_slice(keys)));
        self.requests
            .send(AttachTerminalRequest { message })
            .await
            .unwrap();
    }

    /// Reads the next message. Returns false at the end.
    async fn step(&mut self) -> Result<bool, tonic::Status> {
        let told = within("a message", self.told.message()).await?;
        match told.and_then(|told| told.message) {
            Some(Told::Screen(screen)) => {
                self.screens += 1;
                self.seen = screen.restore.to_vec();
                self.cursor = screen.through.unwrap().seq;
                self.exited = screen.exited.or(self.exited.take());
            }
            Some(Told::Batch(batch)) => {
                assert!(
                    batch.after <= self.cursor || self.cursor == 0,
                    "nothing is left out"
                );
                self.cursor = batch.through;
                self.gaps += batch.gaps.len();
                for event in batch.events {
                    match event.kind {
                        Some(Kind::Data(data)) => self.seen.extend_from_slice(&data.data),
                        Some(Kind::Exited(exited)) => self.exited = Some(exited),
                        _ => {}
                    }
                }
            }
            Some(Told::State(state)) => self.state = state,
            Some(Told::Refused(refused)) => self.refused.push(refused),
            Some(Told::Header(_)) => {}
            Some(Told::Goodbye(goodbye)) => {
                assert_eq!(goodbye.reason(), GoodbyeReason::Done);
                return Ok(false);
            }
            None => return Ok(false),
        }
        Ok(true)
    }

    async fn shows(&mut self, wanted: &str) {
        while !String::from_utf8_lossy(&self.seen).contains(wanted) {
            let goes_on = self.step().await.unwrap();
            assert!(goes_on, "{:?}", String::from_utf8_lossy(&self.seen));
        }
    }

    async fn ends(&mut self) {
        while self.step().await.unwrap() {}
    }
}

async fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for (policy, backend) in EVERY_CLASS {
        scenes.push(Scene::new(Daemon::start(CONFIG).await, policy, backend).await);
    }
    scenes
}

async fn spawn(scene: &mut Scene, line: &str) -> u64 {
    let mut spec = shell(line);
    spec.set_stdin(Stdio::Pty);
    spec.set_stdout(Stdio::Pty);
    spec.set_stderr(Stdio::Pty);
    scene.add(Spec::Process(spec)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_view_begins_with_the_screen_and_takes_keys() {
    for mut scene in scenes().await {
        let id = spawn(&mut scene, "echo hello; read x; echo got $x; exit 3").await;
        let mut view = View::of(&scene, id).await;
        view.shows("hello").await;
        assert_eq!(view.screens, 1);
        view.types(b"some words\n").await;
        view.shows("got some words").await;
        view.ends().await;
        assert_eq!(
            view.exited.take().unwrap().status,
            Some(exited::Status::Code(3))
        );
        assert_eq!(
            view.state,
            ViewState {
                active: true,
                views: 1
            }
        );
        // One that comes after the end finds the last screen, and the exit.
        let mut late = View::of(&scene, id).await;
        late.ends().await;
        assert!(String::from_utf8_lossy(&late.seen).contains("got some words"));
        assert!(late.exited.is_some());
        scene.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_view_that_falls_behind_gets_a_new_screen_and_holds_nobody_back() {
    for mut scene in scenes().await {
        let id = spawn(&mut scene, "echo first; read x; seq 400000; echo last").await;
        let mut behind = View::of(&scene, id).await;
        behind.shows("first").await;
        let mut other = View::of(&scene, id).await;
        other.shows("first").await;
        other.types(b"\n").await;
        // The other one reads on; this one does not, until the process has ended.
        other.ends().await;
        behind.ends().await;
        assert!(
            behind.gaps > 0 && behind.screens > 1,
            "{} {}",
            behind.gaps,
            behind.screens
        );
        let seen = String::from_utf8_lossy(&behind.seen).into_owned();
        assert!(seen.contains("400000") && seen.contains("last"), "{seen:?}");
        assert_eq!(behind.exited.unwrap().status, Some(exited::Status::Code(0)));
        scene.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn while_nobody_views_it_a_terminal_answers_by_itself() {
    for mut scene in scenes().await {
        let ask = "stty raw -echo; printf '\\033[5;7H\\033[6n'; head -c 6 | od -An -c; printf '\\033[5n'; head -c 4 | od -An -c; printf '\\033[c'; head -c 3 | od -An -c";
        let id = spawn(&mut scene, ask).await;
        scene.closed(id).await;
        let seen = scene.recorder.bytes(id, Stream::Stdout);
        let seen = String::from_utf8_lossy(&seen).into_owned();
        for answer in ["033   [   5   ;   7   R", "033   [   0   n", "033   [   ?"] {
            assert!(seen.contains(answer), "{answer}: {seen:?}");
        }
        scene.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_program_that_reads_no_answers_is_not_held_up() {
    for mut scene in scenes().await {
        // More answers than its input can hold.
        let ask = "stty raw -echo; head -c 600000 /dev/zero | sed 's/\\x00/\\x1b[c/g'; echo done";
        let id = spawn(&mut scene, ask).await;
        scene.closed(id).await;
        let seen = scene.recorder.bytes(id, Stream::Stdout);
        assert!(seen.ends_with(b"done\n"));
        scene.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_a_view_may_not_do_is_refused() {
    for mut scene in scenes().await {
        let id = spawn(&mut scene, "echo hello; exec sleep 1000").await;
        let read_only = OpenTerminal {
            watch: by_id(id),
            read_only: true,
            ..OpenTerminal::default()
        };
        let mut view = View::open(&scene, read_only).await.unwrap();
        view.shows("hello").await;
        view.types(b"x").await;
        let typed = loop {
            match view.step().await {
                Ok(true) => {}
                Ok(false) => panic!("the view ends without an error"),
                Err(status) => break status,
            }
        };
        refused(Err::<(), _>(typed), Code::FailedPrecondition, "WRONG_STATE");
        let flat = OpenTerminal {
            watch: by_id(id),
            size: Some(TerminalSize {
                rows: 0,
                columns: 1,
            }),
            ..OpenTerminal::default()
        };
        let flat = View::open(&scene, flat).await.map(drop);
        let flat = refused(flat, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(flat.fields, ["open.size"]);
        let piped = scene.add(Spec::Process(shell("exec sleep 1000"))).await;
        let none = OpenTerminal {
            watch: by_id(piped),
            ..OpenTerminal::default()
        };
        let none = View::open(&scene, none).await.map(drop);
        refused(none, Code::FailedPrecondition, "WRONG_STATE");
        scene.remove(piped).await;
        scene.remove(id).await;
        scene.finish().await;
    }
}

/// The kernel would keep 4,095 bytes of the line, and drop the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn keys_that_the_kernel_would_drop_are_refused_and_the_view_goes_on() {
    for mut scene in scenes().await {
        let id = spawn(&mut scene, "echo up; read x; echo got ${#x}").await;
        let mut view = View::of(&scene, id).await;
        view.shows("up").await;
        view.types(&[b'x'; 5000]).await;
        while view.refused.is_empty() {
            assert!(view.step().await.unwrap());
        }
        assert_eq!(view.refused[0].bytes, 5000);
        assert!(
            view.refused[0].reason.contains("4095"),
            "{:?}",
            view.refused
        );
        view.types(b"short\n").await;
        view.shows("got 5").await;
        view.ends().await;
        scene.finish().await;
    }
}

async fn screen_bytes(scene: &Scene) -> u64 {
    let status = scene.daemon.admin().get_status(GetStatusRequest {}).await;
    status.unwrap().into_inner().screen_bytes
}

/// A screen of 1,000 by 1,000 takes more than half of what all clients may take together.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn screens_take_memory_that_is_counted_and_give_it_back_at_the_end() {
    const LARGE: TerminalSize = TerminalSize {
        rows: 1000,
        columns: 1000,
    };
    let config = "[limits]\nmemory = \"128MiB\"\n";
    let mut scene = Scene::new(Daemon::start(config).await, "", "epoll").await;
    let line = |size| {
        let mut spec = crate::common::in_terminal(shell("echo up; read x"));
        spec.terminal = Some(TerminalOptions {
            size: Some(size),
            ..TerminalOptions::default()
        });
        Spec::Process(spec)
    };
    let first = scene.add(line(LARGE)).await;
    let held = screen_bytes(&scene).await;
    assert!(held > 30 << 20, "{held}");
    let second = scene.try_add(scene.request(line(LARGE))).await;
    let second = refused(second, Code::ResourceExhausted, "LIMIT");
    assert_eq!(second.word("limit"), "limits.memory");
    let small = scene
        .add(line(TerminalSize {
            rows: 24,
            columns: 80,
        }))
        .await;
    let large = scene.resize(small, 1000, 1000).await;
    refused(large, Code::ResourceExhausted, "LIMIT");
    assert_eq!(scene.terminal(small).await.size.unwrap().rows, 24);
    // A screen that nothing changes any more is kept as the bytes that show it.
    scene.write(first, b"\n").await;
    scene.closed(first).await;
    View::of(&scene, first).await.shows("up").await;
    let held = screen_bytes(&scene).await;
    assert!(held < 1 << 20, "{held}");
    scene.resize(small, 1000, 1000).await.unwrap();
    scene.resize(small, 24, 80).await.unwrap();
    scene.write(small, b"\n").await;
    scene.closed(small).await;
    scene.finish().await;
}
