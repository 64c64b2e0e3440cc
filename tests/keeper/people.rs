//! What people do with both processes: at a terminal, in a container, by signals.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use evloopd::proto::*;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::common::{Daemon, Scene, command_with_keeper, directory, read_pipe, shell};
use crate::{life, name, start, state, until};

fn children(pid: Pid) -> Vec<Pid> {
    let children = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(children).unwrap_or_default();
    let pids = children.split_whitespace();
    pids.map(|pid| Pid::from_raw(pid.parse().unwrap()))
        .collect()
}

fn status(daemon: &Daemon) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_evloopctl"))
        .arg("status")
        .env("EVLOOPD_SOCKET", &daemon.socket)
        .output()
        .unwrap();
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{wrong}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns what a line of `status` says.
fn said<'a>(status: &'a str, label: &str) -> &'a str {
    let mut lines = status.lines().map(str::trim);
    let line = lines.find_map(|line| line.strip_prefix(label)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{label} in {status}")).trim()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn ctrl_z_fg_and_ctrl_c_act_once_on_both() {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let path = ptsname(&terminal, Vec::new()).unwrap();
    let own = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path.to_str().unwrap())
        .unwrap();
    let dir = directory();
    // In the foreground of the terminal.
    let mut command = command_with_keeper(dir.path(), "version = 1\n", &["setsid", "--ctty"]);
    command.stdin(Stdio::from(own));
    let mut daemon = Daemon::start_as(Arc::clone(&dir), command).await;
    let (keeper, of) = (daemon.pid(), life(daemon.pid()).unwrap());
    let sessions = [keeper, of].map(|pid| state(pid).unwrap().1);
    assert_eq!(sessions, [keeper.as_raw(), of.as_raw()]);
    let stopped = |pid| state(pid).is_some_and(|(state, _)| state == 'T');
    let mut keys = std::fs::File::from(terminal);
    for _ in 0..2 {
        keys.write_all(b"\x1a").unwrap();
        until("both are stopped", || stopped(keeper) && stopped(of)).await;
        // As `fg` does.
        killpg(keeper, Signal::SIGCONT).unwrap();
        until("both go on", || !stopped(keeper) && !stopped(of)).await;
        daemon.info().await;
    }
    keys.write_all(b"\x03").unwrap();
    assert_eq!(daemon.ended().await, Some(0));
    let log = daemon.log();
    assert_eq!(log.matches("asks the daemon to end").count(), 1, "{log}");
    assert!(log.contains("ended in order"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn as_process_1_the_keeper_heeds_signals_reaps_strangers_and_says_what_it_is() {
    let dir = directory();
    let mut launcher = vec!["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    if !rustix::process::geteuid().is_root() {
        launcher.extend(["--user", "--map-root-user"]);
    }
    let command = command_with_keeper(dir.path(), "version = 1\n", &launcher);
    let mut daemon = Daemon::start_as(Arc::clone(&dir), command).await;
    let keeper = children(daemon.pid())[0];
    assert_eq!(name(keeper).as_deref(), Some("evloopd-keeper"));
    assert_eq!(daemon.status().await.keeper.unwrap().pid, 1);
    let text = status(&daemon);
    assert!(said(&text, "process 1").contains("all processes"), "{text}");
    let inside = |line: &str| {
        let mut command = Command::new("nsenter");
        let target = keeper.to_string();
        let words = ["--target", &target, "--pid", "--mount", "sh", "-c", line];
        assert!(command.args(words).status().unwrap().success(), "{line}");
    };
    // It is orphaned at once.
    inside("sleep 1000 <&- >&- 2>&- &");
    let stranger = || {
        let mut all = children(keeper).into_iter();
        all.find(|pid| name(*pid).as_deref() == Some("sleep"))
    };
    until("the stranger", || stranger().is_some()).await;
    kill(stranger().unwrap(), Signal::SIGKILL).unwrap();
    until("it is reaped", || children(keeper).len() == 1).await;
    // One that is no child of the daemon is not ended by force either.
    inside("sleep 1000 <&- >&- 2>&- &");
    until("another stranger", || stranger().is_some()).await;
    let forced = Command::new(env!("CARGO_BIN_EXE_evloopctl"))
        .args(["stop", "--all", "--force"])
        .env("EVLOOPD_SOCKET", &daemon.socket)
        .output()
        .unwrap();
    let wrong = String::from_utf8_lossy(&forced.stderr);
    assert!(wrong.contains("(sleep)"), "{wrong}");
    assert!(stranger().is_some(), "{wrong}");
    daemon.info().await;
    inside("kill -HUP 1; kill -TERM 1");
    assert_eq!(daemon.ended().await, Some(0));
    let log = daemon.log();
    assert!(
        log.contains("SIGHUP") && log.contains("ended in order"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sighup_ends_nothing_and_sigterm_no_child_that_is_to_stay() {
    let mut scene = Scene::new(start("").await, "", "").await;
    let stays = ProcessSpec {
        at_end: AtEnd::Keep.into(),
        ..shell("exec sleep 1000")
    };
    let mut pids = Vec::new();
    for spec in [stays, shell("exec sleep 1000")] {
        let id = scene.spawn(spec).await;
        pids.push(Pid::from_raw(scene.process(id).await.pid));
    }
    let Scene { mut daemon, .. } = scene;
    let before = (life(daemon.pid()), daemon.info().await.instance);
    daemon.signal(Signal::SIGHUP);
    until("it is told", || daemon.log().contains("SIGHUP")).await;
    assert_eq!((life(daemon.pid()), daemon.info().await.instance), before);
    let runs = |pid: Pid| state(pid).is_some_and(|(state, _)| state != 'Z');
    assert!(pids.iter().all(|pid| runs(*pid)));
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.ended().await, Some(0));
    assert!(runs(pids[0]) && !runs(pids[1]));
    kill(pids[0], Signal::SIGKILL).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn status_tells_what_each_kind_of_end_would_lose() {
    let mut scene = Scene::new(
        start("[policy.fleeting]\nsurvives = \"none\"").await,
        "",
        "",
    )
    .await;
    let text = status(&scene.daemon);
    assert_eq!(said(&text, "a crash loses"), "nothing");
    assert!(said(&text, "level").starts_with("crash"), "{text}");
    let directory = scene.daemon.socket.parent().unwrap().to_str().unwrap();
    assert_eq!(said(&text, "directory"), directory);
    let files = format!("{}.state", scene.daemon.socket.display());
    assert!(said(&text, "state").starts_with(&files), "{text}");
    let request = NewEventLoopRequest {
        name: "fleeting".into(),
        policy: "fleeting".into(),
        ..NewEventLoopRequest::default()
    };
    let mut policies = scene.daemon.policies();
    policies.new_event_loop(request).await.unwrap();
    scene.spawn(shell("exec sleep 1000")).await;
    // A device survives nothing.
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    rustix::fs::fcntl_setfl(&terminal, OFlags::RDWR | OFlags::NONBLOCK).unwrap();
    let slot = scene.daemon.handover().await.give(&terminal);
    scene.add(read_pipe(slot)).await;
    let text = status(&scene.daemon);
    assert_eq!(said(&text, "a crash loses"), "1 loop, 1 watch");
    let alone = "1 loop, 1 watch; 1 process goes on without its output";
    assert_eq!(said(&text, "with its keeper"), alone);
    for end in ["a restart", "a reboot"] {
        assert_eq!(said(&text, end), "2 loops, 2 watches; 1 process ends");
    }
    scene.daemon.signal(Signal::SIGKILL);
    scene
        .daemon
        .until("the keeper's end", |status| {
            status.keeper.as_ref().is_some_and(|keeper| keeper.pid == 0)
        })
        .await;
    let text = status(&scene.daemon);
    assert!(said(&text, "level").starts_with("none"), "{text}");
    assert_eq!(said(&text, "a crash loses"), alone);
    let pid = Pid::from_raw(scene.daemon.info().await.pid);
    kill(pid, Signal::SIGTERM).unwrap();
    until("its end", || {
        state(pid).is_none_or(|(state, _)| state == 'Z')
    })
    .await;
}
