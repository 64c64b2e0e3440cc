//! The attributes of a child: all of them are set before its program is executed.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use evloopd::proto::batch_add_watches_result::Result as Added;
use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::thread::CapabilitySet;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use tempfile::TempDir;
use tokio::process::Command;
use tonic::Code;

use crate::common::{Daemon, Scene, command, directory, exec, refused, shell};

async fn scene(daemon: Daemon) -> Scene {
    Scene::new(daemon, "", "").await
}

/// Runs a process to its end and returns its stdout.
async fn output(scene: &mut Scene, spec: ProcessSpec) -> String {
    let id = scene.spawn(spec).await;
    scene.closed(id).await;
    String::from_utf8(scene.recorder.bytes(id, Stream::Stdout)).unwrap()
}

async fn pid_of(scene: &mut Scene, id: u64) -> Pid {
    match scene.recorder.first(id, "started").await.kind {
        Some(Kind::Started(started)) => Pid::from_raw(started.pid),
        other => panic!("{other:?}"),
    }
}

fn limit(resource: &str, soft: u64, hard: u64) -> ResourceLimit {
    ResourceLimit {
        resource: resource.into(),
        soft: Some(soft),
        hard: Some(hard),
    }
}

/// A child that prints its umask, its nice value, and its limits as `/proc/self/limits` names them.
fn prints_attributes() -> ProcessSpec {
    shell("umask; nice; cat /proc/self/oom_score_adj /proc/self/limits")
}

#[derive(Debug, PartialEq, Eq)]
struct PrintedAttributes {
    umask: String,
    nice: String,
    oom_score_adj: String,
    limits: String,
}

impl PrintedAttributes {
    async fn of(scene: &mut Scene, spec: ProcessSpec) -> Self {
        let text = output(scene, spec).await;
        let mut lines = text.lines().map(str::to_owned);
        let mut line = || lines.next().unwrap_or_else(|| panic!("{text}"));
        Self {
            umask: line(),
            nice: line(),
            oom_score_adj: line(),
            limits: lines.collect::<Vec<_>>().join("\n"),
        }
    }

    /// Returns a limit as `SOFT:HARD`.
    fn limit(&self, name: &str) -> String {
        let line = self.limits.lines().find_map(|line| line.strip_prefix(name));
        let mut words = line
            .unwrap_or_else(|| panic!("{self:?}"))
            .split_whitespace();
        format!("{}:{}", words.next().unwrap(), words.next().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_child_ever_sees_the_limit_that_the_daemon_raised_for_itself() {
    let daemon = Daemon::start_by(&["prlimit", "--nofile=64:4096"], "").await;
    let mut scene = scene(daemon).await;
    let one = AddWatchRequest {
        spec: Some(WatchSpec {
            spec: Some(Spec::Process(shell("ulimit -Sn; ulimit -Hn"))),
        }),
        ..AddWatchRequest::default()
    };
    let request = BatchAddWatchesRequest {
        r#loop: Some(scene.target.clone()),
        requests: vec![one; 200],
        ..BatchAddWatchesRequest::default()
    };
    let answer = scene.daemon.watches().batch_add_watches(request).await;
    for result in answer.unwrap().into_inner().results {
        let Some(Added::Added(added)) = result.result else {
            panic!("{result:?}");
        };
        let id = added.watch.unwrap().watch_id;
        scene.closed(id).await;
        let told = scene.recorder.bytes(id, Stream::Stdout);
        assert_eq!(String::from_utf8(told).unwrap(), "64\n4096\n");
    }
    scene.finish().await;
}

/// A daemon that inherits a locked file, as from a shell that used flock(1).
fn with_a_lock(dir: &TempDir) -> Command {
    let lock = dir.path().join("lock");
    let script = "exec 9>>\"$0\"; flock -n 9; exec \"$@\"";
    let launcher = ["sh", "-c", script, lock.to_str().unwrap()];
    command(dir.path(), "version = 1\n", &launcher)
}

async fn a_lock_dies_with_the_daemon(dir: Arc<TempDir>, command: Command) {
    let mut scene = scene(Daemon::start_as(dir, command).await).await;
    let lock = File::open(scene.daemon.dir.path().join("lock")).unwrap();
    let exclusive = FlockOperation::NonBlockingLockExclusive;
    rustix::fs::flock(&lock, exclusive).expect_err("the daemon has it");
    let id = scene.spawn(exec(&["sleep", "3600"])).await;
    let pid = pid_of(&mut scene, id).await;
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut open: Vec<_> = open.map(|entry| entry.unwrap().file_name()).collect();
    open.sort();
    assert_eq!(open, ["0", "1", "2"]);
    scene.daemon.signal(Signal::SIGKILL);
    scene.daemon.ended().await;
    let locked = rustix::fs::flock(&lock, exclusive);
    kill(pid, Signal::SIGKILL).expect("the child outlives the daemon");
    locked.expect("the lock is free");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn descriptors_inherited_by_the_daemon_reach_no_child() {
    let dir = directory();
    let command = with_a_lock(&dir);
    a_lock_dies_with_the_daemon(dir, command).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn descriptors_inherited_by_the_daemon_reach_no_child_without_close_range() {
    // Before Linux 5.9 there is no close_range(2). Its number is the same on every architecture.
    const CLOSE_RANGE: i64 = 436;
    let enosys = u32::try_from(rustix::io::Errno::NOSYS.raw_os_error()).unwrap();
    let filter = SeccompFilter::new(
        BTreeMap::from([(CLOSE_RANGE, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(enosys),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program = BpfProgram::try_from(filter.unwrap()).unwrap();
    let dir = directory();
    let mut command = with_a_lock(&dir);
    // SAFETY: between fork and exec the closure only makes a system call, on memory prepared
    // before.
    unsafe {
        command.pre_exec(move || seccompiler::apply_filter(&program).map_err(std::io::Error::other))
    };
    a_lock_dies_with_the_daemon(dir, command).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_daemons_terminal_is_not_its_childrens() {
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
    let master = rustix::pty::openpt(flags).unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let terminal = rustix::pty::ptsname(&master, Vec::new()).unwrap();
    let dir = directory();
    let mut command = command(dir.path(), "version = 1\n", &[]);
    // SAFETY: between fork and exec the closure only makes system calls, on memory prepared before.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            // A session leader without a controlling terminal gets this one when it opens it
            // (tty_ioctl(4)).
            rustix::fs::open(&terminal, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            Ok(())
        })
    };
    let mut scene = scene(Daemon::start_as(dir, command).await).await;
    let stat = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // proc_pid_stat(5): after the name come state, ppid, pgrp, session, tty_nr.
    let of = |stat: String| -> Vec<i32> {
        let (_, rest) = stat.rsplit_once(") ").unwrap();
        let words = rest.split(' ').skip(2).take(3);
        words.map(|word| word.parse().unwrap()).collect()
    };
    let daemon = of(stat(&scene.daemon.pid().to_string()));
    assert_ne!(daemon[2], 0, "the daemon has a terminal");

    let id = scene.spawn(exec(&["sleep", "3600"])).await;
    let pid = pid_of(&mut scene, id).await;
    assert_eq!(of(stat(&pid.to_string())), [pid.as_raw(), pid.as_raw(), 0]);

    // A background child that shared the daemon's terminal would be stopped for ever.
    let id = scene.spawn(exec(&["cat", "/dev/tty"])).await;
    scene.closed(id).await;
    assert_eq!(scene.exited(id).await.status, Some(exited::Status::Code(1)));
    let said = String::from_utf8(scene.recorder.bytes(id, Stream::Stderr)).unwrap();
    assert!(said.contains("No such device or address"), "{said}");
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_spec_overrides_the_configuration_which_overrides_inherited_values() {
    let config = "[children]\numask = \"0070\"\nnice = 18\nlimits = { nofile = \"50:60\" }\n";
    let mut scene = scene(Daemon::start(config).await).await;

    let configured = PrintedAttributes::of(&mut scene, prints_attributes()).await;
    assert_eq!(
        (configured.umask.as_str(), configured.nice.as_str()),
        ("0070", "18")
    );
    assert_eq!(configured.limit("Max open files"), "50:60");

    let inherited = ProcessSpec {
        inherited_attributes: Some(InheritedAttributes {
            umask: Some(0o7),
            limits: vec![limit("nofile", 30, 40), limit("core", 0, 0)],
            nice: Some(19),
        }),
        ..prints_attributes()
    };
    let told = PrintedAttributes::of(&mut scene, inherited.clone()).await;
    assert_eq!((told.umask.as_str(), told.nice.as_str()), ("0070", "18"));
    assert_eq!(told.limit("Max open files"), "50:60");
    assert_eq!(told.limit("Max core file size"), "0:0");

    let asked = ProcessSpec {
        umask: Some(0o27),
        nice: Some(19),
        oom_score_adj: Some(1000),
        limits: vec![limit("nofile", 20, 25), limit("cpu", 1000, u64::MAX)],
        ..inherited
    };
    let told = PrintedAttributes::of(&mut scene, asked).await;
    assert_eq!((told.umask.as_str(), told.nice.as_str()), ("0027", "19"));
    assert_eq!(told.oom_score_adj, "1000");
    assert_eq!(told.limit("Max open files"), "20:25");
    assert_eq!(told.limit("Max cpu time"), "1000:unlimited");
    assert_eq!(told.limit("Max core file size"), "0:0");

    // The attributes of one child have not changed those of the daemon.
    assert_eq!(
        PrintedAttributes::of(&mut scene, prints_attributes()).await,
        configured
    );
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn inherited_attributes_are_applied_as_far_as_the_daemon_can() {
    let launcher = ["prlimit", "--nofile=64:128", "nice", "-n", "5"];
    let mut scene = scene(Daemon::start_by(&launcher, "").await).await;
    let own = PrintedAttributes::of(&mut scene, prints_attributes()).await;
    assert_eq!(own.limit("Max open files"), "64:128");
    let spec = ProcessSpec {
        inherited_attributes: Some(InheritedAttributes {
            umask: Some(0o7),
            limits: vec![limit("nofile", 100, 1000)],
            nice: Some(-20),
        }),
        ..prints_attributes()
    };
    let told = PrintedAttributes::of(&mut scene, spec).await;
    assert_eq!((told.umask.as_str(), &told.nice), ("0007", &own.nice));
    assert_eq!(told.limit("Max open files"), "100:128");
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn attributes_without_the_privilege_are_refused_by_step_and_nothing_runs() {
    let dir = directory();
    let mut command = command(dir.path(), "version = 1\n", &[]);
    // SAFETY: between fork and exec the closure only makes system calls, on memory prepared before.
    unsafe {
        command.pre_exec(|| {
            for capability in [CapabilitySet::SYS_RESOURCE, CapabilitySet::SYS_NICE] {
                // A process that may not drop it from the bounding set does not have the capability
                // either.
                let _ = rustix::thread::remove_capability_from_bounding_set(capability);
            }
            Ok(())
        })
    };
    let mut scene = scene(Daemon::start_as(dir, command).await).await;
    let ran = scene.daemon.dir.path().join("ran");
    let attempt = || exec(&["touch", ran.to_str().unwrap()]);
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let more = own.maximum.map_or(u64::MAX, |hard| hard + 1);
    let specs = [
        ProcessSpec {
            limits: vec![limit("nofile", 64, more)],
            ..attempt()
        },
        ProcessSpec {
            nice: Some(-20),
            ..attempt()
        },
        ProcessSpec {
            oom_score_adj: Some(-1000),
            ..attempt()
        },
    ];
    let refusals = [
        ("EPERM", "setrlimit"),
        ("EACCES", "nice"),
        ("EACCES", "oom_score_adj"),
    ];
    for (spec, expected) in specs.into_iter().zip(refusals) {
        let request = scene.request(Spec::Process(spec));
        let error = scene.try_add(request).await;
        let refusal = refused(error, Code::PermissionDenied, "SYSTEM");
        assert_eq!((refusal.word("errno_name"), refusal.word("step")), expected);
    }
    assert!(!ran.exists(), "a program ran");
    let daemon = scene.daemon.pid();
    let mut children = String::new();
    for task in std::fs::read_dir(format!("/proc/{daemon}/task")).unwrap() {
        let list = task.unwrap().path().join("children");
        children += &std::fs::read_to_string(list).unwrap_or_default();
    }
    assert_eq!(
        children, "",
        "a child of the daemon is left, perhaps as a zombie"
    );
    assert_eq!(scene.open_watches().await, 0);
    scene.finish().await;
}
