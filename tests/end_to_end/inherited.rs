//! A daemon that is process 1 of its pid namespace, as in a container, or that was executed in a
//! process with children. It reaps inherited children, which it did not start, and never
//! mistakes the children of its watches for inherited ones.

use std::process::Command;

use evloopd::proto::batch_add_watches_result::Result as Item;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Daemon, Scene, shell, within};

/// The children of one run: more than one thread starts at once, and more than one turn takes.
const CHILDREN: i32 = 300;

const CONFIG: &str = r#"
[policy.pidfd]
extends = "default"
child_watcher = "pidfd"
[policy.sigchld]
extends = "default"
child_watcher = "sigchld"
[policy.thread]
extends = "default"
child_watcher = "thread"
"#;

/// Returns a command that starts a program as process 1; `None` where that is not permitted, which
/// is printed.
fn launcher() -> Option<Vec<&'static str>> {
    let own = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"];
    let mapped = [&own[..], &["--map-root-user"]].concat();
    let works = |words: &Vec<&str>| {
        let status = Command::new(words[0])
            .args(&words[1..])
            .arg("true")
            .status();
        status.is_ok_and(|status| status.success())
    };
    let found = [own.to_vec(), mapped].into_iter().find(works);
    if found.is_none() {
        eprintln!("SKIPPED: no pid namespace can be had here (unshare(1)): nothing was tested");
    }
    found
}

/// Returns the children of one thread of a process.
fn children(process: Pid, thread: Pid) -> Vec<Pid> {
    let list = std::fs::read_to_string(format!("/proc/{process}/task/{thread}/children"));
    let list = list.unwrap_or_default();
    let pids = list.split_ascii_whitespace();
    pids.map(|pid| Pid::from_raw(pid.parse().unwrap()))
        .collect()
}

/// Returns the threads of a process.
fn threads(process: Pid) -> Vec<Pid> {
    let entries = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .map(|name| Pid::from_raw(name.parse().unwrap()))
        .collect()
}

/// Counts the children of all threads of a process that have ended and are not reaped.
fn zombies(process: Pid) -> usize {
    let all = threads(process).into_iter();
    let ended = |pid: &Pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(") ");
        fields.is_some_and(|(_, state)| state.starts_with('Z'))
    };
    all.flat_map(|thread| children(process, thread))
        .filter(ended)
        .count()
}

/// Checks that a thread which outlives the child has started it. When a thread ends, its children
/// become the main thread's, where the daemon would take them for inherited ones.
async fn a_lasting_thread_starts_children(scene: &mut Scene, evloopd: Pid) {
    let id = scene.spawn(shell("exec sleep 3600")).await;
    let parents = threads(evloopd)
        .into_iter()
        .filter(|thread| *thread != evloopd && !children(evloopd, *thread).is_empty());
    let names = parents.map(|thread| {
        let name = std::fs::read_to_string(format!("/proc/{evloopd}/task/{thread}/comm"));
        name.unwrap()
    });
    let names: Vec<_> = names.collect();
    assert!(
        names.len() == 1 && names[0].starts_with("start-"),
        "{names:?}"
    );
    scene.remove(id).await;
}

/// Starts many children that each leave an orphan behind. Every exit must be that of the child
/// itself, and no zombie may be left.
async fn every_exit_is_the_childs_own(scene: &mut Scene, evloopd: Pid) {
    let spec = |n: i32| WatchSpec {
        spec: Some(Spec::Process(shell(&format!(
            "(sh -c 'exit 9' >&- 2>&- &); (exit 8 >&- 2>&- &); exit {}",
            n % 200
        )))),
    };
    let item = |n| AddWatchRequest {
        spec: Some(spec(n)),
        ..AddWatchRequest::default()
    };
    let request = BatchAddWatchesRequest {
        r#loop: Some(scene.target.clone()),
        requests: (0..CHILDREN).map(item).collect(),
        ..BatchAddWatchesRequest::default()
    };
    let answer = scene.daemon.watches().batch_add_watches(request).await;
    for (n, result) in (0..).zip(answer.unwrap().into_inner().results) {
        let Some(Item::Added(added)) = result.result else {
            panic!("child {n}: {result:?}");
        };
        let status = scene.exited(added.watch.unwrap().watch_id).await.status;
        assert_eq!(status, Some(exited::Status::Code(n % 200)));
    }
    within("the end of the last zombie", async {
        while zombies(evloopd) > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn as_process_1(policy: &str) {
    let Some(launcher) = launcher() else { return };
    let daemon = Daemon::start_by(&launcher, CONFIG).await;
    assert_eq!(daemon.info().await.pid, 1);
    let evloopd = children(daemon.pid(), daemon.pid())[0];
    let mut scene = Scene::new(daemon, policy, "").await;
    a_lasting_thread_starts_children(&mut scene, evloopd).await;
    every_exit_is_the_childs_own(&mut scene, evloopd).await;
    kill(evloopd, Signal::SIGTERM).unwrap();
    scene.daemon.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn process_1_reaps_inherited_children_and_its_own_children_by_pidfd() {
    as_process_1("pidfd").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn process_1_reaps_inherited_children_and_its_own_children_by_sigchld() {
    as_process_1("sigchld").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn process_1_reaps_inherited_children_and_its_own_children_by_threads() {
    as_process_1("thread").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn children_from_before_the_daemon_was_executed_are_reaped() {
    let before = "sh -c 'exit 9' & sleep 300 & exec \"$@\"";
    let daemon = Daemon::start_by(&["sh", "-c", before, "sh"], CONFIG).await;
    let evloopd = daemon.pid();
    let inherited = children(evloopd, evloopd);
    let inherited = *inherited
        .last()
        .expect("the inherited child that still runs");
    let mut scene = Scene::new(daemon, "", "").await;
    every_exit_is_the_childs_own(&mut scene, evloopd).await;
    kill(inherited, Signal::SIGKILL).unwrap();
    within("the inherited child to be reaped", async {
        while kill(inherited, None).is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    scene.finish().await;
}
