//! `run`, `attach` and `logs` whose output is read slowly, in bursts, or not at all for a while.

use std::path::Path;

use evloopd::proto::{GetLoopRequest, JournalStatus, SourcePauseReason};
use nix::sys::signal::Signal;

use crate::common::{Daemon, loop_named, within};
use crate::program::{Ended, Following, ctl};

/// Journals far smaller than the output of the processes.
const CONFIG: &str = r#"
[policy.small]
extends = "default"
journal_bytes = "512KiB"
attached_bytes = "32KiB"
[policy.small-proactor]
extends = "small"
class = "proactor"
backends = ["io_uring"]
"#;

const EVERY_BACKEND: [&str; 4] = ["epoll", "poll", "select", "io_uring"];

/// The last number that `seq` prints: 6.9 MB, more than pipes, connections and the journal hold
/// together.
const NUMBERS: u32 = 1_000_000;

async fn daemon() -> Daemon {
    let daemon = Daemon::start(CONFIG).await;
    for backend in EVERY_BACKEND {
        let policy = match backend {
            "io_uring" => "small-proactor",
            _ => "small",
        };
        let new = [
            "loop",
            "new",
            backend,
            "--policy",
            policy,
            "--backend",
            backend,
        ];
        ctl(&daemon.socket, &new).await.good();
    }
    daemon
}

fn numbers() -> String {
    format!("seq {NUMBERS}; echo done >&2; exit 7")
}

/// Asserts that a run has the whole output and the exit code.
#[track_caller]
fn whole(ended: &Ended) {
    let expected: String = (1..=NUMBERS).map(|n| format!("{n}\n")).collect();
    assert!(ended.stdout == expected, "{} bytes", ended.stdout.len());
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(7), "done\n"));
}

async fn journal(daemon: &Daemon, on: &str) -> JournalStatus {
    let request = GetLoopRequest {
        r#loop: Some(loop_named(on)),
    };
    let answer = daemon.loops().get_loop(request).await.unwrap();
    answer.into_inner().r#loop.unwrap().journal.unwrap()
}

/// Waits until a process waits for its readers, and no more events come: every buffer is full.
async fn waits(daemon: &Daemon, on: &str) {
    within("a process that waits for its reader", async {
        let mut before = u64::MAX;
        loop {
            let journal = journal(daemon, on).await;
            if let [paused] = &journal.paused_sources[..]
                && journal.newest_seq == before
            {
                let reason = paused.pause.as_ref().unwrap().reason();
                assert_eq!(reason, SourcePauseReason::Readers);
                return;
            }
            before = journal.newest_seq;
        }
    })
    .await;
}

fn start(socket: &Path, on: &str, words: &[&str]) -> Following {
    Following::start(socket, &[&["--loop", on], words].concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_run_whose_output_is_not_read_for_a_while_loses_nothing() {
    let daemon = daemon().await;
    for on in EVERY_BACKEND {
        let run = start(&daemon.socket, on, &["run", "--", "sh", "-c", &numbers()]);
        waits(&daemon, on).await;
        // While it is stopped by SIGSTOP, another run is not delayed.
        run.signal(Signal::SIGSTOP);
        let other = ["--loop", on, "run", "--", "sh", "-c", &numbers()];
        whole(&ctl(&daemon.socket, &other).await);
        run.signal(Signal::SIGCONT);
        whole(&run.ended().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn attach_and_followed_logs_lose_nothing_either() {
    let daemon = daemon().await;
    for on in EVERY_BACKEND {
        let gated = format!("echo ready; read go; {}", numbers());
        let run = [
            "run", "-d", "-i", "--name", "gated", "--", "sh", "-c", &gated,
        ];
        ctl(&daemon.socket, &[&["--loop", on], &run[..]].concat())
            .await
            .good();
        let mut attach = start(&daemon.socket, on, &["attach", "--no-stdin", "gated"]);
        let mut logs = start(&daemon.socket, on, &["logs", "-f", "gated"]);
        // Both read: each has received the first line.
        assert_eq!(attach.line().await, "ready");
        assert_eq!(logs.line().await, "ready");
        let write = ["--loop", on, "write", "gated", "go\n"];
        ctl(&daemon.socket, &write).await.good();
        waits(&daemon, on).await;
        let (attach, logs) = tokio::join!(attach.ended(), logs.ended());
        whole(&attach);
        assert_eq!((logs.code, logs.stderr.as_str()), (Some(0), "done\n"));
        assert!(logs.stdout == attach.stdout);
    }
}
