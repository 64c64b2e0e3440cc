//! The keeper: what it starts again, passes on, and leaves alone.

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]
// Not every test binary uses all helpers.
#![allow(dead_code)]

#[path = "../common/mod.rs"]
mod common;
mod people;
mod stop_all;
mod vanished;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use evloopd::proto::ended_life::How;
use evloopd::proto::event::Kind;
use evloopd::proto::subscribe_request::Start;
use evloopd::proto::{
    GetConfigRequest, GetStatusResponse, Keeper, NewEventLoopRequest, StartAt, SubscribeRequest,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use common::{Daemon, Scene, command_with_keeper, directory, loop_named, shell, signals, within};

async fn start_in(dir: Arc<TempDir>, config: &str) -> Daemon {
    let command = command_with_keeper(dir.path(), &format!("version = 1\n{config}"), &[]);
    Daemon::start_as(dir, command).await
}

async fn start(config: &str) -> Daemon {
    start_in(directory(), config).await
}

/// Returns the pid of the daemon whose keeper this is; `None` between two lives.
fn life(keeper: Pid) -> Option<Pid> {
    let children = format!("/proc/{keeper}/task/{keeper}/children");
    let children = std::fs::read_to_string(children).ok()?;
    let named = |pid: &Pid| name(*pid).as_deref() == Some("evloopd");
    let pids = children.split_whitespace();
    let mut pids = pids.map(|pid| Pid::from_raw(pid.parse().unwrap()));
    pids.rfind(named)
}

fn name(pid: Pid) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

/// Returns the state of a process, as ps(1) shows it, and its session.
fn state(pid: Pid) -> Option<(char, i32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut words = rest.split(' ');
    let state = words.next()?.chars().next()?;
    Some((state, words.nth(2)?.parse().unwrap()))
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    within(what, async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Returns the status by a connection of its own, once this life or a later one serves.
async fn status_of(daemon: &Daemon, number: u64) -> (GetStatusResponse, Keeper) {
    within("the next life", async {
        loop {
            let channel = daemon.another_channel().await;
            let mut admin = evloopd::proto::admin_service_client::AdminServiceClient::new(channel);
            let answer = admin.get_status(evloopd::proto::GetStatusRequest {}).await;
            if let Ok(answer) = answer {
                let status = answer.into_inner();
                let keeper = status.keeper.clone().expect("it has a keeper");
                if keeper.life >= number {
                    return (status, keeper);
                }
            }
        }
    })
    .await
}

/// Kills the daemon, and waits until its next life serves.
async fn murder(daemon: &Daemon, number: u64) -> Keeper {
    kill(life(daemon.pid()).unwrap(), Signal::SIGKILL).unwrap();
    status_of(daemon, number + 1).await.1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_killed_daemon_is_started_again_and_its_clients_know_at_once() {
    let daemon = start("").await;
    let request = NewEventLoopRequest {
        name: "stage".into(),
        ..NewEventLoopRequest::default()
    };
    daemon.policies().new_event_loop(request).await.unwrap();
    let request = SubscribeRequest {
        r#loop: Some(loop_named("stage")),
        start: Some(Start::StartAt(StartAt::Oldest.into())),
        ..SubscribeRequest::default()
    };
    let stream = daemon.events().subscribe(request).await.unwrap();
    let mut stream = stream.into_inner();
    assert!(stream.message().await.unwrap().is_some());
    let keeper = daemon.pid();
    let first = life(keeper).unwrap();
    assert_eq!(name(keeper).as_deref(), Some("evloopd-keeper"));
    assert_eq!(
        state(first).unwrap().1,
        first.as_raw(),
        "a session of its own"
    );
    kill(first, Signal::SIGKILL).unwrap();
    within("the end of the stream", async {
        while stream.message().await.is_ok() {}
    })
    .await;
    let (_, told) = status_of(&daemon, 2).await;
    assert_eq!((told.pid, told.life), (keeper.as_raw(), 2));
    let ended = &told.ended_lives[0];
    assert_eq!((ended.life, &ended.how), (1, &Some(How::Signal(9))));
    assert_ne!(life(keeper), Some(first));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_connect_is_refused_while_the_daemon_is_dead() {
    let daemon = start("[server]\nrestarts = 100\nrestart_delay = \"50ms\"").await;
    let over = Arc::new(AtomicBool::new(false));
    let (socket, seen) = (daemon.socket.clone(), Arc::clone(&over));
    let caller = std::thread::spawn(move || {
        let mut calls = 0;
        while !seen.load(Ordering::Relaxed) {
            let mut called = UnixStream::connect(&socket).unwrap();
            // The start of HTTP/2 (RFC 9113, section 3.4), with empty settings.
            let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
            // Answered, or cut by the keeper.
            let _ = called.write_all(hello).and_then(|()| called.read(&mut [0]));
            calls += 1;
        }
        calls
    });
    for number in 1..=5 {
        murder(&daemon, number).await;
    }
    over.store(true, Ordering::Relaxed);
    assert!(caller.join().unwrap() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_dead_lives_had_open_is_closed() {
    let daemon = start("[server]\nrestarts = 100\nrestart_delay = \"50ms\"").await;
    let open = |pid: Pid| {
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .count()
    };
    murder(&daemon, 1).await;
    let keeper = daemon.pid();
    // The streams of this test's own connections close a moment later.
    let before = open(keeper);
    for number in 2..=10 {
        murder(&daemon, number).await;
    }
    until("as few descriptors as before", || open(keeper) <= before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sigterm_ends_both_in_order() {
    let mut daemon = start("").await;
    let first = life(daemon.pid()).unwrap();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.ended().await, Some(0));
    assert!(state(first).is_none());
    assert!(!daemon.socket.exists());
    assert!(daemon.log().contains("ended in order"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_failure_of_the_first_start_is_the_keepers_exit_code() {
    let dir = directory();
    let first = start_in(Arc::clone(&dir), "").await;
    // Its socket is taken.
    let mut command = command_with_keeper(dir.path(), "version = 1\n", &[]);
    let ended = within("its end", command.status()).await.unwrap();
    assert_eq!(ended.code(), Some(1));
    assert!(!common::log(dir.path()).contains("next life"));
    first.info().await;

    let mut command = command_with_keeper(dir.path(), "version = 2\n", &[]);
    let ended = within("its end", command.status()).await.unwrap();
    assert_eq!(ended.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_daemon_that_dies_again_and_again_is_given_up() {
    let dir = directory();
    let config = "version = 1\n[server]\nrestarts = 2\nrestart_delay = \"200ms\"\n";
    let mut command = command_with_keeper(dir.path(), config, &[]);
    let mut daemon = command.spawn().unwrap();
    let keeper = Pid::from_raw(daemon.id().unwrap().try_into().unwrap());
    let killer = tokio::spawn(async move {
        let socket = dir.path().join("evloopd.sock");
        loop {
            // It has to have served, or no further one is started. The file of the socket is there
            // before anybody can connect.
            if common::log(dir.path()).contains("ready")
                && let Some(life) = life(keeper)
            {
                let _ = common::connect(&socket).await;
                let _ = kill(life, Signal::SIGKILL);
            }
            tokio::task::yield_now().await;
        }
    });
    let ended = within("its end", daemon.wait()).await.unwrap();
    killer.abort();
    assert_eq!(ended.signal(), Some(9));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_signal_keeps_its_sender_and_its_value() {
    let daemon = start("[signals]\nallow = [\"SIGRTMIN+2\", \"SIGUSR1\"]").await;
    let mut scene = Scene::new(daemon, "", "epoll").await;
    let id = scene.add(signals(&["SIGRTMIN+2", "SIGUSR1"])).await;
    let keeper = scene.daemon.pid().to_string();
    let mut send = Command::new("kill");
    send.args(["-q", "42", "-s", "RTMIN+2", &keeper]);
    let mut sender = send.spawn().unwrap();
    let sender_pid = sender.id();
    assert!(sender.wait().unwrap().success());
    let Some(Kind::Signal(signal)) = scene.recorder.first(id, "signal").await.kind else {
        panic!("a signal");
    };
    assert_eq!(signal.value, 42);
    assert_eq!(u32::try_from(signal.sender_pid).unwrap(), sender_pid);
    scene.daemon.signal(Signal::SIGUSR1);
    let Some(Kind::Signal(signal)) = scene.recorder.nth(id, "signal", 2).await.kind else {
        panic!("a signal");
    };
    assert_eq!(
        u32::try_from(signal.sender_pid).unwrap(),
        std::process::id()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn stopping_the_keeper_from_the_terminal_stops_both() {
    let daemon = start("").await;
    let keeper = daemon.pid();
    let of = life(keeper).unwrap();
    let is = |pid, wanted| state(pid).is_some_and(|(state, _)| state == wanted);
    daemon.signal(Signal::SIGTSTP);
    until("both are stopped", || is(keeper, 'T') && is(of, 'T')).await;
    daemon.signal(Signal::SIGCONT);
    until("both go on", || !is(keeper, 'T') && !is(of, 'T')).await;
    daemon.info().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_next_life_has_the_configuration_in_force() {
    let dir = directory();
    let daemon = start_in(Arc::clone(&dir), "[limits]\nloops = 7").await;
    let (_, told) = status_of(&daemon, 1).await;
    assert!(told.changed_keys.is_empty(), "{told:?}");
    let changed = "version = 1\n[limits]\nloops = 8\n";
    std::fs::write(dir.path().join("evloopd.toml"), changed).unwrap();
    let told = murder(&daemon, 1).await;
    assert_eq!(told.changed_keys, ["limits.loops"]);
    let config = daemon.admin().get_config(GetConfigRequest {}).await;
    let values = config.unwrap().into_inner().values;
    let loops = values.iter().find(|value| value.key == "limits.loops");
    assert_eq!(loops.unwrap().value, "7");
    // What the files have now is told, not what they had when the life began.
    for (file, keys, wrong) in [
        (
            "[limits]\nloops = 7\nslots = 9",
            &["limits.slots"][..],
            false,
        ),
        ("[limits]\nloops = 7", &[], false),
        ("[limits]\nlops = 7", &[], true),
    ] {
        let file = format!("version = 1\n{file}\n");
        std::fs::write(dir.path().join("evloopd.toml"), file).unwrap();
        let told = status_of(&daemon, 2).await.1;
        assert_eq!(told.changed_keys, keys);
        assert_eq!(!told.config_errors.is_empty(), wrong, "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_daemon_outlives_its_keeper_and_says_so() {
    let daemon = start("").await;
    let of = life(daemon.pid()).unwrap();
    daemon.signal(Signal::SIGKILL);
    let (status, told) = within("the keeper's end", async {
        loop {
            let status = daemon.status().await;
            let told = status.keeper.clone().unwrap();
            if told.pid == 0 {
                return (status, told);
            }
        }
    })
    .await;
    assert_eq!((told.life, status.draining), (1, false));
    kill(of, Signal::SIGTERM).unwrap();
    until("its end", || {
        state(of).is_none_or(|(state, _)| state == 'Z')
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_daemon_that_takes_too_long_to_end_is_killed_with_its_keeper() {
    let daemon = start("[server]\ndrain_timeout = \"1h\"\n[children]\nkill_grace = \"1h\"").await;
    let mut scene = Scene::new(daemon, "", "epoll").await;
    let id = scene
        .spawn(shell("trap '' TERM; echo ready; exec sleep 1000"))
        .await;
    let Some(Kind::Started(started)) = scene.recorder.first(id, "started").await.kind else {
        panic!("its start");
    };
    scene.recorder.first(id, "data").await;
    let of = life(scene.daemon.pid()).unwrap();
    scene.daemon.signal(Signal::SIGTERM);
    within("draining", async {
        while !scene.daemon.status().await.draining {}
    })
    .await;
    scene.daemon.signal(Signal::SIGKILL);
    until("its end", || {
        state(of).is_none_or(|(state, _)| state == 'Z')
    })
    .await;
    kill(Pid::from_raw(started.pid), Signal::SIGKILL).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sigterm_between_two_lives_ends_the_daemon_in_order() {
    let mut daemon = start("[server]\nrestart_delay = \"1h\"\nrestarts = 1000").await;
    // The third restart in a row is not at once.
    for number in 1..=2 {
        murder(&daemon, number).await;
    }
    kill(life(daemon.pid()).unwrap(), Signal::SIGKILL).unwrap();
    until("no life", || life(daemon.pid()).is_none()).await;
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.ended().await, Some(0));
    assert!(!Path::new(&daemon.socket).exists());
}
