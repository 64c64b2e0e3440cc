//! A process and its attached readers: the process waits for the slowest of them, the readers lose
//! nothing, and no other process or reader waits.

use std::fs::File;

use evloopd::proto::event::Kind;
use evloopd::proto::*;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::fs::{CWD, Mode, mkfifoat};
use tonic::transport::Endpoint;

use crate::common::{Daemon, Recorder, by_name, connect_with, loop_named, millis, shell, within};

/// Journals far smaller than the output of the processes.
const CONFIG: &str = r#"
[policy.small]
extends = "default"
journal_bytes = "512KiB"
attached_bytes = "32KiB"
journal_watch_keep = "8KiB"
[policy.small-proactor]
extends = "small"
class = "proactor"
backends = ["io_uring"]
[policy.roomy]
extends = "small"
journal_bytes = "1MiB"
[policy.roomy-proactor]
extends = "small-proactor"
journal_bytes = "1MiB"
[policy.impatient]
extends = "small"
attached_patience = "1s"
"#;

/// The policy and the backend of every case.
const EVERY_BACKEND: [(&str, &str); 4] = [
    ("small", "epoll"),
    ("small", "poll"),
    ("small", "select"),
    ("small-proactor", "io_uring"),
];

/// The last number that `seq` prints: 2.7 MB of output.
const NUMBERS: u32 = 400_000;

/// A loop of a daemon of its own. It has only the readers that a test starts.
struct Stage {
    daemon: Daemon,
    target: LoopRef,
}

impl Stage {
    async fn new((policy, backend): (&str, &str)) -> Self {
        let daemon = Daemon::start(CONFIG).await;
        let request = NewEventLoopRequest {
            name: "stage".into(),
            policy: policy.into(),
            backend: backend.into(),
            ..NewEventLoopRequest::default()
        };
        daemon.policies().new_event_loop(request).await.unwrap();
        let target = loop_named("stage");
        Self { daemon, target }
    }

    /// Runs or joins a process that writes the numbers and exits with 7.
    async fn run(&self, name: &str) -> Recorder {
        let line = format!("seq {NUMBERS}; echo done >&2; exit 7");
        self.run_with(name, Some(shell(&line))).await
    }

    async fn run_with(&self, name: &str, spec: Option<ProcessSpec>) -> Recorder {
        let request = RunRequest {
            r#loop: Some(self.target.clone()),
            name: name.into(),
            spec,
            ..RunRequest::default()
        };
        // Small windows, so that little is in flight to a reader that stops.
        let endpoint = Endpoint::from_static("http://localhost")
            .initial_stream_window_size(64 * 1024)
            .initial_connection_window_size(64 * 1024);
        let channel = connect_with(&self.daemon.socket, endpoint).await;
        Recorder::run_over(channel, request).await.unwrap()
    }

    async fn write(&self, name: &str, data: &'static str) {
        let request = WriteRequest {
            r#loop: Some(self.target.clone()),
            watch: by_name(name),
            data: data.into(),
            ..WriteRequest::default()
        };
        self.daemon.transports().write(request).await.unwrap();
    }

    async fn journal(&self) -> JournalStatus {
        let request = GetLoopRequest {
            r#loop: Some(self.target.clone()),
        };
        let answer = self.daemon.loops().get_loop(request).await.unwrap();
        answer.into_inner().r#loop.unwrap().journal.unwrap()
    }

    /// Waits until `wanted` holds for the journal's status.
    async fn until(&self, what: &str, wanted: impl Fn(&JournalStatus) -> bool) -> JournalStatus {
        within(what, async {
            loop {
                let journal = self.journal().await;
                if wanted(&journal) {
                    return journal;
                }
            }
        })
        .await
    }

    /// Waits until so many processes wait for their readers, and those have something to read.
    async fn waiting(&self, processes: usize) {
        let journal = self
            .until("waiting processes", |journal| {
                journal.paused_sources.len() == processes && journal.unread_bytes > 16 * 1024
            })
            .await;
        for paused in &journal.paused_sources {
            let reason = paused.pause.as_ref().unwrap().reason();
            assert_eq!(reason, SourcePauseReason::Readers, "{journal:?}");
        }
        assert!(journal.bytes <= journal.max_bytes, "{journal:?}");
    }
}

/// Checks that the run has the whole output, the exit code, and no gap.
async fn whole(mut run: Recorder) {
    assert_eq!(run.end().await.reason(), GoodbyeReason::Done);
    let id = run.run.as_ref().unwrap().watch_id;
    let gaps: Vec<&Gap> = run.recording.batches.iter().flat_map(|b| &b.gaps).collect();
    assert!(gaps.is_empty(), "{gaps:?}");
    let expected: String = (1..=NUMBERS).map(|n| format!("{n}\n")).collect();
    assert!(run.bytes(id, Stream::Stdout) == expected.as_bytes());
    assert_eq!(run.bytes(id, Stream::Stderr), b"done\n");
    match run.first(id, "exited").await.kind {
        Some(Kind::Exited(exited)) => assert_eq!(exited.status, Some(exited::Status::Code(7))),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_run_loses_nothing_however_fast_the_child_is() {
    for case in EVERY_BACKEND {
        let stage = Stage::new(case).await;
        whole(stage.run("fast").await).await;
        let journal = stage.journal().await;
        assert!(
            journal.trimmed > 0,
            "the output was larger than the journal"
        );
        assert_eq!((journal.unread_bytes, journal.readers_let_go), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stopped_reader_holds_up_only_its_own_process() {
    for case in EVERY_BACKEND {
        let stage = Stage::new(case).await;
        let stopped = stage.run("stopped").await;
        stage.waiting(1).await;
        // A neighbour that writes many times the size of the journal is not slowed down by the
        // wait.
        whole(stage.run("neighbour").await).await;
        stage.waiting(1).await;
        whole(stopped).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_bursty_reader_loses_nothing() {
    for case in EVERY_BACKEND {
        let stage = Stage::new(case).await;
        let mut bursty = stage.run("bursty").await;
        for _ in 0..5 {
            stage.waiting(1).await;
            within("a batch", bursty.step()).await;
        }
        whole(bursty).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_process_waits_for_the_slowest_of_its_readers() {
    for (policy, backend) in EVERY_BACKEND {
        // What the slow reader does not wait for any more, up to two batches of 256 KiB on their way
        // to it, must still be there for the one that joins.
        let policy = policy.replace("small", "roomy");
        let stage = Stage::new((&policy, backend)).await;
        let slow = stage.run("shared").await;
        stage.waiting(1).await;
        // A reader that joins once the child waits still finds the whole output.
        let fast = tokio::spawn(whole(stage.run_with("shared", None).await));
        stage.waiting(1).await;
        whole(slow).await;
        fast.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reader_that_goes_away_holds_up_nothing() {
    for case in EVERY_BACKEND {
        let stage = Stage::new(case).await;
        let gone = stage.run("left").await;
        stage.waiting(1).await;
        drop(gone);
        stage
            .until("the end of the wait", |journal| {
                journal.paused_sources.is_empty() && journal.unread_bytes == 0
            })
            .await;
        // The child goes on without a reader: the newest output and the exit stay in the journal.
        let mut back = stage.run_with("left", None).await;
        assert_eq!(back.end().await.reason(), GoodbyeReason::Done);
        let id = back.run.as_ref().unwrap().watch_id;
        assert!(back.bytes(id, Stream::Stdout).ends_with(b"\n400000\n"));
        assert!(back.kinds(id).contains(&"exited"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reader_that_reads_nothing_for_long_is_let_go_and_gets_a_gap() {
    let stage = Stage::new(("impatient", "epoll")).await;
    let mut stuck = stage.run("stuck").await;
    let done = |journal: &JournalStatus| journal.readers_let_go == 1;
    stage.until("the reader to be let go", done).await;
    // Another reader that keeps reading sees the child run to its end in the meantime.
    let mut other = stage.run_with("stuck", None).await;
    assert_eq!(other.end().await.reason(), GoodbyeReason::Done);
    assert_eq!(stuck.end().await.reason(), GoodbyeReason::Done);
    let gaps = stuck.recording.batches.iter().flat_map(|b| &b.gaps);
    assert!(gaps.count() > 0, "the loss is reported as a gap");
    let id = stuck.run.as_ref().unwrap().watch_id;
    assert!(stuck.kinds(id).contains(&"exited"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn many_stopped_readers_do_not_hold_up_others_for_long() {
    let stage = Stage::new(("small", "epoll")).await;
    let gate = stage.daemon.dir.path().join("gate");
    mkfifoat(CWD, &gate, Mode::RUSR | Mode::WUSR).unwrap();
    let gated = format!(
        ": < {}; seq {NUMBERS}; echo done >&2; exit 7",
        gate.display()
    );
    let neighbour = stage.run_with("neighbour", Some(shell(&gated))).await;
    let mut stopped = Vec::new();
    for n in 0..12 {
        let name = format!("stopped-{n}");
        stopped.push(stage.run_with(&name, Some(shell(&gated))).await);
    }
    // The unread output of all readers together is larger than the journal. The daemon lets go of
    // readers that read nothing, so that the other processes do not have to wait for them.
    let _open = File::options().write(true).open(&gate).unwrap();
    whole(neighbour).await;
    assert!(stage.journal().await.readers_let_go > 0);
    for mut run in stopped {
        assert_eq!(run.end().await.reason(), GoodbyeReason::Done);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_noisy_neighbour_does_not_erase_a_quiet_process() {
    for case in EVERY_BACKEND {
        let stage = Stage::new(case).await;
        let quiet = shell("echo one; echo two >&2; exit 3");
        let mut first = stage.run_with("quiet", Some(quiet.clone())).await;
        first.end().await;
        let cursor = first.recording.batches[0].after + 2;
        whole(stage.run("noisy").await).await;
        // A reader that joins now gets everything from the first event on.
        let mut back = stage.run_with("quiet", Some(quiet)).await;
        back.end().await;
        assert!(back.run.as_ref().unwrap().existed);
        let events: Vec<&Event> = first.recording.events().collect();
        assert_eq!(back.recording.events().collect::<Vec<_>>(), events);
        assert!(back.recording.batches.iter().all(|b| b.gaps.is_empty()));
        // So does a reader that resumes at a cursor in the middle: the cursor is not too old.
        let request = RunRequest {
            r#loop: Some(stage.target.clone()),
            name: "quiet".into(),
            after: Some(Cursor {
                epoch: String::new(),
                seq: cursor,
            }),
            ..RunRequest::default()
        };
        let mut resumed = Recorder::run(&stage.daemon, request).await.unwrap();
        resumed.end().await;
        let rest: Vec<&Event> = events.into_iter().filter(|e| e.seq > cursor).collect();
        assert_eq!(resumed.recording.events().collect::<Vec<_>>(), rest);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn output_of_other_processes_does_not_delay_the_end_of_the_pipe_grace() {
    for case in EVERY_BACKEND {
        let stage = Stage::new(case).await;
        // The reader falls behind again and again, so that the flood is paused and resumed.
        let spec = ProcessSpec {
            pipe_grace: Some(millis(200)),
            ..shell("yes & exit 3")
        };
        let mut run = stage.run_with("flooded", Some(spec)).await;
        assert_eq!(run.end().await.reason(), GoodbyeReason::Done);
        let id = run.run.as_ref().unwrap().watch_id;
        match run.first(id, "started").await.kind {
            Some(Kind::Started(started)) => killpg(Pid::from_raw(started.pid), Signal::SIGKILL),
            other => panic!("{other:?}"),
        }
        .unwrap();
        match run.first(id, "exited").await.kind {
            Some(Kind::Exited(exited)) => assert_eq!(exited.status, Some(exited::Status::Code(3))),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn readers_that_together_hold_up_a_loop_are_let_go_although_none_is_far_behind() {
    let stage = Stage::new(("small", "epoll")).await;
    // Each writes a little for each line that it is given: how much can be in flight to a reader that
    // does not read depends on the host.
    let line = "while read line; do head -c 4000 /dev/zero; done";
    let names: Vec<_> = (0..40).map(|n| format!("stopped-{n}")).collect();
    let mut stopped = Vec::new();
    for name in &names {
        let spec = ProcessSpec {
            stdin: Stdio::Pipe.into(),
            ..shell(line)
        };
        stopped.push(stage.run_with(name, Some(spec)).await);
    }
    // The unread bytes of all readers together become larger than the journal before one of them is so
    // far behind that its process waits for it.
    let waits = |source: &PausedSource| {
        let pause = source.pause.as_ref();
        pause.is_some_and(|pause| pause.reason() == SourcePauseReason::Readers)
    };
    within("readers to be let go", async {
        loop {
            let journal = stage.journal().await;
            if journal.readers_let_go > 0 {
                break;
            }
            assert!(!journal.paused_sources.iter().any(waits), "{journal:?}");
            for name in &names {
                stage.write(name, "\n").await;
            }
        }
    })
    .await;
    whole(stage.run("neighbour").await).await;
}
