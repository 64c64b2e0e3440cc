//! The descendants of a child, with a cgroup of its own for each child and without.

use evloopd::proto::{
    CgroupUsage, ProcessSpec, SendSignalRequest, SendSignalResponse, SignalTarget,
    StopProcessRequest, StopProcessResponse, Stream, exited::Status,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Scene, by_id, exec, millis, seconds, shell, within};

with_and_without_cgroups!(
    stop_ends_descendants_in_other_groups_and_sessions,
    stop_ends_or_counts_what_has_escaped_and_nothing_else_dies,
    stop_kills_what_ignores_the_signal,
    stop_ends_a_stopped_child,
    stop_ends_a_traced_child,
    stop_ends_a_fork_bomb,
    stop_sends_the_specs_own_signal,
    stop_of_an_ended_child_tells_its_exit,
    stop_works_on_a_stopped_loop,
    a_signal_to_the_tree_reaches_other_sessions,
    a_removed_child_ends_with_its_cgroup,
    a_child_has_a_cgroup_and_its_usage_where_it_can,
);

/// Prints its own pid, and then sleeps as that process.
const SLEEPS: &str = "echo $$; exec sleep 3600";

/// A child, one in a group of the child, one in a session of its own.
const FAMILY: &str = "echo $$; sh -c 'echo $$; exec sleep 3600' & \
                      setsid sh -c 'echo $$; exec sleep 3600' & wait";

async fn has_cgroups(scene: &Scene) -> bool {
    let status = scene.daemon.status().await;
    // Without them it says why.
    assert_ne!(status.cgroups.is_empty(), status.cgroups_missing.is_empty());
    !status.cgroups.is_empty()
}

/// Starts a child and waits until so many processes have printed their pids, the child first.
async fn family(scene: &mut Scene, spec: ProcessSpec, members: usize) -> (u64, Vec<Pid>) {
    let id = scene.spawn(spec).await;
    let mut pids = Vec::new();
    let mut nth = 0;
    while pids.len() < members {
        nth += 1;
        scene.recorder.nth(id, "data", nth).await;
        let said = String::from_utf8(scene.recorder.bytes(id, Stream::Stdout)).unwrap();
        let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let numbers = whole.lines().filter_map(|line| line.parse().ok());
        pids = numbers.map(Pid::from_raw).collect();
    }
    let child = scene.started(id).await;
    pids.sort_by_key(|pid| pid.as_raw() != child);
    assert_eq!(pids[0].as_raw(), child);
    (id, pids)
}

/// Returns whether a process runs: it is there, and no zombie.
fn lives(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.as_bytes()[0]);
    state.is_some_and(|state| state != b'Z')
}

fn alive(pids: &[Pid]) -> Vec<Pid> {
    pids.iter().copied().filter(|pid| lives(*pid)).collect()
}

async fn stop(scene: &Scene, id: u64, grace: prost_types::Duration) -> StopProcessResponse {
    let request = StopProcessRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        grace: Some(grace),
        ..StopProcessRequest::default()
    };
    let mut processes = scene.daemon.processes();
    let answer = processes.stop_process(request);
    within("the end of the tree", answer)
        .await
        .unwrap()
        .into_inner()
}

fn status(stopped: &StopProcessResponse) -> Option<Status> {
    stopped
        .exited
        .as_ref()
        .and_then(|exited| exited.status.clone())
}

async fn stop_ends_descendants_in_other_groups_and_sessions(scene: &mut Scene) {
    let (id, pids) = family(scene, shell(FAMILY), 3).await;
    let stopped = stop(scene, id, seconds(60)).await;
    assert_eq!(alive(&pids), []);
    assert_eq!((stopped.ended, stopped.killed), (3, false));
    assert_eq!(status(&stopped), Some(Status::Signal(15)));
    assert!(stopped.survivor_pids.is_empty());
    assert_eq!(
        (stopped.may_have_escaped, stopped.escaped_pids),
        (0, vec![])
    );
    scene.closed(id).await;
}

async fn stop_ends_or_counts_what_has_escaped_and_nothing_else_dies(scene: &mut Scene) {
    // Neighbours, of which one is an orphan that the daemon has adopted, and a process of this test.
    let others = format!("(sh -c '{SLEEPS}' &); {FAMILY}");
    let (other, neighbours) = family(scene, shell(&others), 4).await;
    let mut stranger = std::process::Command::new("sleep")
        .arg("3600")
        .spawn()
        .unwrap();
    // A daemon: it has another parent, another group and another session than all others.
    let escapes = format!("(setsid sh -c '{SLEEPS}' &); {SLEEPS}");
    let (id, pids) = family(scene, shell(&escapes), 2).await;
    within("the end of the parent", async {
        let orphan =
            || nix::unistd::getsid(Some(pids[1])) == Ok(pids[1]) && parent(pids[1]) != pids[0];
        while !orphan() || parent(pids[1]) != scene.daemon.pid() && !has_cgroups(scene).await {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let stopped = stop(scene, id, seconds(60)).await;
    if has_cgroups(scene).await {
        assert_eq!(alive(&pids), []);
        assert_eq!((stopped.ended, stopped.may_have_escaped), (2, 0));
    } else {
        assert_eq!(alive(&pids), [pids[1]]);
        assert_eq!((stopped.ended, stopped.may_have_escaped), (1, 1));
        assert_eq!(stopped.escaped_pids, [pids[1].as_raw()]);
        kill(pids[1], Signal::SIGKILL).unwrap();
    }
    assert_eq!(alive(&neighbours), neighbours);
    assert_eq!(stranger.try_wait().unwrap(), None);
    assert_eq!(stop(scene, other, seconds(60)).await.ended, 4);
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

fn parent(pid: Pid) -> Pid {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    Pid::from_raw(rest.split(' ').nth(1).unwrap().parse().unwrap())
}

async fn stop_kills_what_ignores_the_signal(scene: &mut Scene) {
    let deaf = format!("trap '' TERM; {FAMILY}");
    let (id, pids) = family(scene, shell(&deaf), 3).await;
    let stopped = stop(scene, id, millis(100)).await;
    assert_eq!(alive(&pids), []);
    assert_eq!((stopped.ended, stopped.killed), (3, true));
    assert_eq!(status(&stopped), Some(Status::Signal(9)));
}

async fn stop_ends_a_stopped_child(scene: &mut Scene) {
    let (id, pids) = family(scene, shell(FAMILY), 3).await;
    for pid in &pids {
        kill(*pid, Signal::SIGSTOP).unwrap();
    }
    scene
        .process_until(id, "the stop", |process| process.stopped)
        .await;
    let stopped = stop(scene, id, seconds(60)).await;
    assert_eq!(alive(&pids), []);
    assert_eq!(
        (status(&stopped), stopped.killed),
        (Some(Status::Signal(15)), false)
    );
}

/// SIGTERM waits for the tracer; SIGKILL does not. The exit waits for the tracer as well.
async fn stop_ends_a_traced_child(scene: &mut Scene) {
    let (id, pids) = family(scene, shell(SLEEPS), 1).await;
    let (let_go, held) = std::sync::mpsc::channel::<()>();
    let (tell, traced) = tokio::sync::oneshot::channel();
    let pid = pids[0];
    let tracer = std::thread::spawn(move || {
        let _ = tell.send(crate::ends::trace(pid));
        // The tracing ends with this thread.
        let _ = held.recv();
    });
    if let Err(error) = traced.await.unwrap() {
        eprintln!("SKIPPED: ptrace(2) is not permitted here: {error}");
        return;
    }
    let stopped = stop(scene, id, millis(50)).await;
    assert_eq!((stopped.ended, stopped.killed), (1, true));
    assert!(stopped.survivor_pids.is_empty());
    assert_eq!(
        status(&stopped),
        None,
        "it is not known before the tracer has let go"
    );
    drop(let_go);
    tracer.join().unwrap();
    assert_eq!(scene.exited(id).await.status, Some(Status::Signal(9)));
}

/// Every process of it goes on starting others, ignores SIGTERM, and half of them lead sessions.
async fn stop_ends_a_fork_bomb(scene: &mut Scene) {
    let mark = format!("bomb-of-{}", scene.daemon.pid());
    let bomb = format!(
        "trap '' TERM; \
         b='if [ $1 -gt 0 ]; then sh -c \"$b\" $0 $(($1-1)) & setsid sh -c \"$b\" $0 $(($1-1)) & fi; \
            [ $1 -gt 0 ] || echo up; while :; do sleep 0.02 & wait $!; done'; \
         export b; sh -c \"$b\" {mark} 3"
    );
    let id = scene.spawn(shell(&bomb)).await;
    let mut nth = 0;
    while scene.recorder.bytes(id, Stream::Stdout).len() < "up\n".len() * 8 {
        nth += 1;
        scene.recorder.nth(id, "data", nth).await;
    }
    let stopped = stop(scene, id, millis(0)).await;
    assert!(stopped.killed && stopped.ended >= 15, "{stopped:?}");
    assert!(
        stopped.survivor_pids.is_empty() && stopped.may_have_escaped == 0,
        "{stopped:?}"
    );
    assert_eq!(status(&stopped), Some(Status::Signal(9)));
    // All that is left would still hold its output.
    scene.closed(id).await;
    let events = scene.recorder.kinds(id);
    assert_eq!(
        events.iter().filter(|kind| **kind == "stream_end").count(),
        2
    );
    assert_eq!(processes_of(&mark), Vec::<String>::new());
}

/// Returns the command lines that contain a word.
fn processes_of(mark: &str) -> Vec<String> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = pids.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.contains(mark)).collect()
}

async fn stop_sends_the_specs_own_signal(scene: &mut Scene) {
    let spec = ProcessSpec {
        stop_signal: "SIGUSR1".into(),
        ..shell("trap 'exit 7' USR1; trap '' TERM; echo $$; while :; do sleep 0.05; done")
    };
    let (id, _) = family(scene, spec, 1).await;
    // A sleep of it may end by the signal; the shell exits.
    let stopped = stop(scene, id, seconds(60)).await;
    assert_eq!(
        (status(&stopped), stopped.killed),
        (Some(Status::Code(7)), false)
    );
    let refused = scene.request(evloopd::proto::watch_spec::Spec::Process(ProcessSpec {
        stop_signal: "SIGNONE".into(),
        ..shell("true")
    }));
    let refused = crate::common::refusal(&scene.try_add(refused).await.unwrap_err());
    assert_eq!(refused.word("field"), "spec.process.stop_signal");
}

async fn stop_of_an_ended_child_tells_its_exit(scene: &mut Scene) {
    let id = scene.spawn(shell("exit 3")).await;
    scene.closed(id).await;
    let stopped = stop(scene, id, seconds(60)).await;
    assert_eq!(
        (status(&stopped), stopped.ended),
        (Some(Status::Code(3)), 0)
    );
}

async fn stop_works_on_a_stopped_loop(scene: &mut Scene) {
    let (id, pids) = family(scene, shell(FAMILY), 3).await;
    scene.stop().await;
    let stopped = stop(scene, id, seconds(60)).await;
    assert_eq!((alive(&pids), stopped.ended), (vec![], 3));
    assert_eq!(stopped.exited, None, "it is told once the loop runs");
    assert!(scene.process(id).await.ended_untold);
    scene.run().await;
    assert_eq!(scene.exited(id).await.status, Some(Status::Signal(15)));
}

async fn a_signal_to_the_tree_reaches_other_sessions(scene: &mut Scene) {
    let (id, pids) = family(scene, shell(FAMILY), 3).await;
    let request = |signal: &str| SendSignalRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        signal: signal.into(),
        target: SignalTarget::Tree.into(),
        ..SendSignalRequest::default()
    };
    let sent = scene
        .daemon
        .processes()
        .send_signal(request("SIGKILL"))
        .await;
    let SendSignalResponse { processes, refused } = sent.unwrap().into_inner();
    assert_eq!((processes, refused), (3, 0));
    scene.closed(id).await;
    within("their ends", async {
        while !alive(&pids).is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn a_removed_child_ends_with_its_cgroup(scene: &mut Scene) {
    let (id, pids) = family(scene, shell(FAMILY), 3).await;
    scene.remove(id).await;
    assert_eq!(scene.exited(id).await.status, Some(Status::Signal(15)));
    let (own_session, others) = (pids[1..].iter().copied())
        .partition::<Vec<_>, _>(|pid| nix::unistd::getsid(Some(*pid)) == Ok(*pid));
    within("the end of the group", async {
        while !alive(&others).is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    if has_cgroups(scene).await {
        within("the end of the cgroup", async {
            while !alive(&own_session).is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    } else {
        for pid in alive(&own_session) {
            kill(pid, Signal::SIGKILL).unwrap();
        }
    }
}

async fn a_child_has_a_cgroup_and_its_usage_where_it_can(scene: &mut Scene) {
    let (id, pids) = family(scene, shell(FAMILY), 3).await;
    let process = scene.process(id).await;
    if !has_cgroups(scene).await {
        assert!(process.cgroup.is_empty() && process.cgroup_usage.is_none());
        let stopped = stop(scene, id, seconds(60)).await;
        assert_eq!(stopped.exited.unwrap().cgroup_usage, None);
        return;
    }
    let cgroup = std::path::PathBuf::from(&process.cgroup);
    let inside = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
    let mut inside: Vec<i32> = inside.lines().map(|pid| pid.parse().unwrap()).collect();
    let mut expected: Vec<i32> = pids.iter().map(|pid| pid.as_raw()).collect();
    inside.sort_unstable();
    expected.sort_unstable();
    assert_eq!(inside, expected);
    let so_far = process.cgroup_usage.expect("what it has used so far");
    let exited = stop(scene, id, seconds(60)).await.exited.unwrap();
    let usage = exited.cgroup_usage.expect("what it has used");
    let time = |usage: &CgroupUsage| {
        let times = [usage.user_time.unwrap(), usage.system_time.unwrap()];
        let times = times.map(|time| std::time::Duration::try_from(time).unwrap());
        times.iter().sum::<std::time::Duration>()
    };
    assert!(time(&usage) >= time(&so_far) && !time(&usage).is_zero());
    scene.closed(id).await;
    assert!(scene.process(id).await.cgroup.is_empty());
    within("the removal of its cgroup", async {
        while cgroup.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // A child that exits at once has one too, and `exec` keeps the pid.
    let id = scene.spawn(exec(&["true"])).await;
    assert!(scene.exited(id).await.cgroup_usage.is_some());
}
