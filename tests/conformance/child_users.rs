//! The user, the session, the scheduling and the parent-death signal of children.

use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    ChildSession, ProcessSpec, Scheduling, SchedulingPolicy, Stream, exited::Status,
};
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tonic::Code;

use crate::common::{Daemon, PATIENCE, Scene, exec, in_terminal, refusal, refused, shell};

on_each_child_watcher!(
    another_user_can_open_its_own_streams,
    another_user_has_its_own_identity,
    a_child_of_another_user_that_cannot_start_is_told,
);

on_each_backend!(
    users_that_do_not_exist_are_named,
    a_child_can_lead_a_group_in_the_session_of_the_daemon,
    a_child_is_scheduled_as_it_was_asked_for,
    bad_attributes_are_refused,
);

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn as_user(user: &str, spec: ProcessSpec) -> ProcessSpec {
    ProcessSpec {
        user: user.into(),
        ..spec
    }
}

/// Runs a process to its end and returns its stdout, by words.
async fn words(scene: &mut Scene, spec: ProcessSpec) -> Vec<String> {
    let id = scene.spawn(spec).await;
    scene.closed(id).await;
    let all = scene.recorder.bytes(id, Stream::Stdout);
    let errors = scene.recorder.bytes(id, Stream::Stderr);
    assert_eq!(String::from_utf8_lossy(&errors), "");
    let all = String::from_utf8(all).unwrap();
    all.split_whitespace().map(str::to_owned).collect()
}

/// The kernel checks the permissions of the pipe and of the terminal.
async fn another_user_can_open_its_own_streams(scene: &mut Scene) {
    let spec = as_user("nobody", shell("echo x > /dev/stdout; echo y > /dev/fd/1"));
    if !is_root() {
        let request = scene.request(Spec::Process(spec));
        let denied = scene.try_add(request).await;
        refused(denied, Code::PermissionDenied, "PERMISSION_DENIED");
        return;
    }
    assert_eq!(words(scene, spec.clone()).await, ["x", "y"]);
    assert_eq!(words(scene, in_terminal(spec)).await, ["x", "y"]);
    let owner = as_user("nobody", shell("stat -Lc '%U %a' /dev/stdin"));
    assert_eq!(words(scene, in_terminal(owner)).await, ["nobody", "600"]);
}

async fn another_user_has_its_own_identity(scene: &mut Scene) {
    if !is_root() {
        return;
    }
    let shown = "id -ru; id -u; id -rg; id -g; id -G; grep -h CapEff /proc/self/status";
    let none = ["CapEff:", "0000000000000000"];
    let told = words(scene, as_user("nobody", shell(shown))).await;
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let (uid, gid) = (nobody.uid.to_string(), nobody.gid.to_string());
    assert_eq!(told[..4], [&*uid, &uid, &gid, &gid]);
    assert_eq!(told[told.len() - 2..], none);
    let spec = ProcessSpec {
        group: "12345".into(),
        groups: vec!["4".into(), "23456".into()],
        ..as_user("54321", shell(shown))
    };
    let told = words(scene, spec).await;
    let identity = ["54321", "54321", "12345", "12345", "12345", "4", "23456"];
    assert_eq!(told, [&identity[..], &none].concat());
    // A file that it makes is its own, and the directory is looked at with its rights.
    let dir = scene.daemon.dir.path().join("theirs");
    std::fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(nobody.uid.as_raw()), None).unwrap();
    let file = evloopd::proto::FileStdio {
        path: dir.join("file").to_str().unwrap().into(),
        ..Default::default()
    };
    let parent = scene.daemon.dir.path();
    std::fs::set_permissions(parent, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let spec = ProcessSpec {
        stdout: evloopd::proto::Stdio::File.into(),
        stdout_file: Some(file),
        ..as_user("nobody", exec(&["id", "-un"]))
    };
    let id = scene.spawn(spec).await;
    scene.closed(id).await;
    let owner = std::fs::metadata(dir.join("file")).unwrap();
    assert_eq!(
        std::os::unix::fs::MetadataExt::uid(&owner),
        nobody.uid.as_raw()
    );
}

/// Such a child has a copy of the daemon's memory, and still says what failed.
async fn a_child_of_another_user_that_cannot_start_is_told(scene: &mut Scene) {
    if !is_root() {
        return;
    }
    let closed = scene.daemon.dir.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let spec = ProcessSpec {
        cwd: closed.to_str().unwrap().into(),
        ..as_user("nobody", exec(&["true"]))
    };
    let request = scene.request(Spec::Process(spec));
    let error = refusal(&scene.try_add(request).await.unwrap_err());
    let told = (error.code, error.word("errno_name"), error.word("step"));
    assert_eq!(told, (Code::PermissionDenied, "EACCES", "chdir"));
    let spec = as_user("nobody", exec(&["/nonexistent/program"]));
    let request = scene.request(Spec::Process(spec));
    let error = refusal(&scene.try_add(request).await.unwrap_err());
    assert_eq!(
        (error.word("errno_name"), error.word("step")),
        ("ENOENT", "exec")
    );
    // The daemon itself is as it was.
    assert_eq!(words(scene, exec(&["id", "-u"])).await, ["0"]);
}

async fn users_that_do_not_exist_are_named(scene: &mut Scene) {
    let base = exec(&["true"]);
    let groups = || ProcessSpec {
        groups: vec!["0".into()],
        ..base.clone()
    };
    let mut cases = vec![
        ("spec.process.user", as_user("no-such-user", base.clone())),
        (
            "spec.process.group",
            ProcessSpec {
                group: "0".into(),
                ..base.clone()
            },
        ),
        ("spec.process.groups", groups()),
    ];
    if is_root() {
        cases.extend([
            ("spec.process.group", as_user("54321", base.clone())),
            (
                "spec.process.groups",
                ProcessSpec {
                    groups: vec!["no-such-group".into()],
                    ..as_user("nobody", base.clone())
                },
            ),
        ]);
    }
    for (field, spec) in cases {
        let request = scene.request(Spec::Process(spec));
        let bad = scene.try_add(request).await;
        let bad = refused(bad, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(bad.fields, [field]);
    }
}

async fn a_child_can_lead_a_group_in_the_session_of_the_daemon(scene: &mut Scene) {
    // Its process id, group and session.
    let line = "read p c s pp g sid rest < /proc/$$/stat; echo $p $g $sid";
    let own = nix::unistd::getsid(Some(scene.daemon.pid()))
        .unwrap()
        .to_string();
    for (session, of_daemon) in [
        (ChildSession::Unspecified, false),
        (ChildSession::NewSession, false),
        (ChildSession::NewGroup, true),
    ] {
        let spec = ProcessSpec {
            session: session.into(),
            ..shell(line)
        };
        let told = words(scene, spec).await;
        assert_eq!(told[0], told[1], "it leads its group");
        let expected = if of_daemon { &own } else { &told[0] };
        assert_eq!(&told[2], expected, "{session:?}");
    }
}

async fn a_child_is_scheduled_as_it_was_asked_for(scene: &mut Scene) {
    // The policy is field 41 of proc_pid_stat(5), the priority field 40.
    let shown = exec(&["cut", "-d", " ", "-f40,41", "/proc/self/stat"]);
    let mut cases = vec![
        (SchedulingPolicy::Batch, 0, ["0", "3"]),
        (SchedulingPolicy::Idle, 0, ["0", "5"]),
        (SchedulingPolicy::Other, 0, ["0", "0"]),
    ];
    if is_root() {
        cases.push((SchedulingPolicy::Rr, 7, ["7", "2"]));
    }
    for (policy, priority, expected) in cases {
        let spec = ProcessSpec {
            scheduling: Some(Scheduling {
                policy: policy.into(),
                priority,
                reset_on_fork: policy == SchedulingPolicy::Batch,
            }),
            ..shown.clone()
        };
        assert_eq!(words(scene, spec).await, expected);
    }
}

async fn bad_attributes_are_refused(scene: &mut Scene) {
    let scheduled = |policy: i32, priority| ProcessSpec {
        scheduling: Some(Scheduling {
            policy,
            priority,
            reset_on_fork: false,
        }),
        ..exec(&["true"])
    };
    let fifo: i32 = SchedulingPolicy::Fifo.into();
    let mut cases = vec![
        ("spec.process.scheduling.policy", scheduled(0, 0)),
        ("spec.process.scheduling.policy", scheduled(99, 0)),
        ("spec.process.scheduling.priority", scheduled(fifo, 0)),
        ("spec.process.scheduling.priority", scheduled(fifo, 100)),
        (
            "spec.process.scheduling.priority",
            scheduled(SchedulingPolicy::Other.into(), 1),
        ),
    ];
    let session = |session: i32, spec| ProcessSpec { session, ..spec };
    cases.push(("spec.process.session", session(99, exec(&["true"]))));
    let group = ChildSession::NewGroup.into();
    let terminal = in_terminal(exec(&["true"]));
    cases.push(("spec.process.session", session(group, terminal)));
    cases.push((
        "spec.process.parent_death_signal",
        ProcessSpec {
            parent_death_signal: "SIGNOTHING".into(),
            ..exec(&["true"])
        },
    ));
    for (field, spec) in cases {
        let request = scene.request(Spec::Process(spec));
        let bad = scene.try_add(request).await;
        let bad = refused(bad, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(bad.fields, [field]);
    }
}

fn dies_with_the_daemon(spec: ProcessSpec) -> ProcessSpec {
    ProcessSpec {
        parent_death_signal: "SIGKILL".into(),
        ..spec
    }
}

/// The signal comes when the thread ends that has started the child. The threads of the runtime's
/// pool end when they are idle for 10 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_parent_death_signal_does_not_come_while_the_daemon_lives() {
    let mut scene = Scene::new(Daemon::start("").await, "", "epoll").await;
    let mut ids = Vec::new();
    for _ in 0..100 {
        let spec = dies_with_the_daemon(exec(&["sleep", "13"]));
        ids.push(scene.spawn(spec).await);
    }
    for id in ids {
        assert_eq!(scene.exited(id).await.status, Some(Status::Code(0)));
    }
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_child_with_a_parent_death_signal_does_not_outlive_a_crash() {
    let mut scene = Scene::new(Daemon::start("").await, "", "epoll").await;
    let mut specs = vec![
        exec(&["sleep", "3600"]),
        in_terminal(exec(&["sleep", "3600"])),
    ];
    if is_root() {
        // A change of the user resets the signal.
        specs.push(as_user("nobody", exec(&["sleep", "3600"])));
    }
    let mut children = Vec::new();
    for spec in specs {
        let id = scene.spawn(dies_with_the_daemon(spec)).await;
        let pid = Pid::from_raw(scene.started(id).await).unwrap();
        children.push(pidfd_open(pid, PidfdFlags::empty()).unwrap());
    }
    scene.daemon.signal(Signal::SIGKILL);
    for child in &children {
        let mut ended = [PollFd::new(child, PollFlags::IN)];
        let timeout = rustix::time::Timespec::try_from(PATIENCE).unwrap();
        assert_eq!(poll(&mut ended, Some(&timeout)), Ok(1), "it lives on");
    }
}
