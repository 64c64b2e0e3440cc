//! `evloopctl stop --all`, also without an answer of the daemon.

use std::process::{Output, Stdio};

use evloopd::proto::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Daemon, Recorder, Scene, command_with_keeper, directory, shell, within};
use crate::{life, murder, start, start_in, state};

async fn stop_all(daemon: &Daemon, options: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_evloopctl"));
    command
        .args(["stop", "--all"])
        .args(options)
        .env("EVLOOPD_SOCKET", &daemon.socket)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = command.output();
    within("the end of evloopctl", output).await.unwrap()
}

/// Whether a process has ended: its parent may not have reaped it.
fn is_over(pid: Pid) -> bool {
    state(pid).is_none_or(|(state, _)| state == 'Z')
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn spawn(scene: &mut Scene, spec: ProcessSpec) -> (u64, Pid) {
    let id = scene.spawn(spec).await;
    scene.output(id, "ready\n").await;
    (id, Pid::from_raw(scene.process(id).await.pid))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn it_ends_all_processes_and_closes_all_loops_and_the_daemon_stays() {
    let mut scene = Scene::new(start("").await, "", "").await;
    let deaf = shell("trap '' TERM; echo ready; while :; do sleep 1000; done");
    let (_, deaf) = spawn(&mut scene, deaf).await;
    let kept = ProcessSpec {
        at_end: AtEnd::Keep.into(),
        ..shell("echo ready; exec sleep 1000")
    };
    let (outlived, kept) = spawn(&mut scene, kept).await;
    scene.remove(outlived).await;
    let request = NewEventLoopRequest {
        name: "other".into(),
        ..NewEventLoopRequest::default()
    };
    let mut policies = scene.daemon.policies();
    policies.new_event_loop(request).await.unwrap();
    let daemon = scene.daemon.info().await;
    let stopped = stop_all(&scene.daemon, &["-t", "300ms"]).await;
    let (said, wrong) = (text(&stopped.stdout), text(&stopped.stderr));
    assert_eq!((stopped.status.code(), &*wrong), (Some(0), ""), "{said}");
    let principal = &daemon.principal;
    for line in [
        format!("{principal}/scene closed; ended: @1"),
        format!("{principal}/other closed"),
        format!("pid {kept} (sleep) ended"),
    ] {
        assert!(said.lines().any(|one| one == line), "{line} in {said}");
    }
    assert!(is_over(deaf) && is_over(kept));
    let mut loops = scene.daemon.loops();
    let loops = loops.list_loops(ListLoopsRequest::default());
    assert!(loops.await.unwrap().into_inner().loops.is_empty());
    let now = scene.daemon.info().await;
    assert_eq!((now.pid, now.instance), (daemon.pid, daemon.instance));
    let again = stop_all(&scene.daemon, &[]).await;
    assert_eq!((again.status.code(), again.stdout), (Some(0), Vec::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn forced_it_needs_no_answer_and_kills_no_stranger() {
    let dir = directory();
    // The program that executes the keeper has a child already.
    let line = "sleep 1000 & echo $! > \"$0\"; exec \"$@\"";
    let file = dir.path().join("stranger");
    let launcher = ["sh", "-c", line, file.to_str().unwrap()];
    let config = "version = 1\n[children]\ncgroups = \"off\"\n";
    let command = command_with_keeper(dir.path(), config, &launcher);
    let daemon = Daemon::start_as(std::sync::Arc::clone(&dir), command).await;
    let stranger: i32 = std::fs::read_to_string(file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let stranger = Pid::from_raw(stranger);
    let mut scene = Scene::new(daemon, "", "").await;
    let spec = || shell("trap '' TERM; setsid sh -c 'echo ready; sleep 1000; :'; exit 3");
    let (_, older) = spawn(&mut scene, spec()).await;
    murder(&scene.daemon, 1).await;
    let target = scene.target.clone();
    scene.recorder = Recorder::of(&scene.daemon, &target).await;
    let (id, newer) = spawn(&mut scene, spec()).await;
    let keeper = scene.daemon.pid();
    let of = life(keeper).unwrap();
    for hung in [of, keeper] {
        kill(hung, Signal::SIGSTOP).unwrap();
    }
    let stopped = stop_all(&scene.daemon, &["--force"]).await;
    let (said, wrong) = (text(&stopped.stdout), text(&stopped.stderr));
    assert_eq!(stopped.status.code(), Some(0), "{said}{wrong}");
    assert!(is_over(older) && is_over(newer), "{said}");
    // Both shells of each, at least.
    assert!(said.matches(" ended").count() >= 4, "{said}");
    assert!(!is_over(stranger), "{said}");
    assert!(
        wrong.contains(&format!("pid {stranger} (sleep)")),
        "{wrong}"
    );
    assert!(wrong.contains("does not answer"), "{wrong}");
    assert!(!is_over(of) && !is_over(keeper));
    for hung in [keeper, of] {
        kill(hung, Signal::SIGCONT).unwrap();
    }
    // The daemon goes on, and tells how they have ended.
    let killed = Some(exited::Status::Signal(Signal::SIGKILL as i32));
    within("the exit", async {
        while scene.process(id).await.exited.and_then(|it| it.status) != killed {}
    })
    .await;
    assert_eq!(life(keeper), Some(of));
    kill(stranger, Signal::SIGKILL).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn forced_it_closes_the_loops_of_a_daemon_that_answers() {
    let mut scene = Scene::new(start("").await, "", "").await;
    let (_, child) = spawn(&mut scene, shell("echo ready; exec sleep 1000")).await;
    let stopped = stop_all(&scene.daemon, &["--force"]).await;
    let said = text(&stopped.stdout);
    assert_eq!(stopped.status.code(), Some(0), "{said}");
    assert!(
        said.contains(&format!("pid {child} (sleep) ended")),
        "{said}"
    );
    assert!(said.contains("/scene closed"), "{said}");
    let mut loops = scene.daemon.loops();
    let loops = loops.list_loops(ListLoopsRequest::default());
    assert!(loops.await.unwrap().into_inner().loops.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn forced_it_says_when_there_is_no_daemon() {
    let dir = directory();
    let mut daemon = start_in(std::sync::Arc::clone(&dir), "").await;
    daemon.signal(Signal::SIGTERM);
    daemon.ended().await;
    let stopped = stop_all(&daemon, &["--force"]).await;
    let wrong = text(&stopped.stderr);
    assert_eq!(stopped.status.code(), Some(1), "{wrong}");
    assert!(wrong.contains("no daemon"), "{wrong}");
    let alone = std::process::Command::new(env!("CARGO_BIN_EXE_evloopctl"))
        .args(["stop", "--force", "job"])
        .output();
    assert_eq!(alone.unwrap().status.code(), Some(2));
}
