//! The cgroups of a daemon's children: where they are, what is left of dead daemons, and what happens
//! where there are none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command as Std;

use evloopd::proto::exited::Status;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::common::{Daemon, Scene, command, directory, exec, within};

/// Returns the directory of a daemon's cgroups; `None`, and says so, if there are none here.
async fn place(daemon: &Daemon) -> Option<PathBuf> {
    let status = daemon.status().await;
    if status.cgroups.is_empty() {
        eprintln!(
            "SKIPPED: no cgroups can be made here: {}",
            status.cgroups_missing
        );
        return None;
    }
    Some(status.cgroups.into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn cgroups_of_a_dead_daemon_are_removed_once_empty_and_those_of_a_live_one_are_not() {
    let live = Daemon::start("").await;
    let Some(of_live) = place(&live).await else {
        return;
    };
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let of_dead = place(&scene.daemon).await.unwrap();
    let id = scene.spawn(exec(&["sleep", "3600"])).await;
    let child = Pid::from_raw(scene.started(id).await);
    let child_of = PathBuf::from(scene.process(id).await.cgroup);
    assert!(child_of.starts_with(&of_dead));
    scene.daemon.signal(Signal::SIGKILL);
    scene.daemon.ended().await;
    // A process lives in one of its cgroups.
    let second = Daemon::start("").await;
    assert!(child_of.exists() && of_live.exists());
    kill(child, Signal::SIGKILL).unwrap();
    within("the end of the child", async {
        while !std::fs::read_to_string(child_of.join("cgroup.procs"))
            .unwrap()
            .is_empty()
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let third = Daemon::start("").await;
    let of_third = place(&third).await.unwrap();
    assert!(!of_dead.exists() && of_live.exists());
    assert!(place(&second).await.unwrap().exists() && of_third.exists());
    // A daemon that ends in order leaves nothing.
    drop(third);
    assert!(!of_third.exists());
}

/// The start of a program in a mount namespace, after a command there.
fn in_namespace(prepare: &str) -> Option<Vec<String>> {
    let script = format!("{prepare} && exec \"$@\"");
    let words = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let tried = Std::new(words[0]).args(&words[1..]).arg("true").status();
    if !tried.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no mount namespace can be had here (unshare(1)): {prepare}");
        return None;
    }
    Some(words.map(str::to_owned).into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_daemon_that_may_make_no_cgroup_says_why_and_starts_children_all_the_same() {
    let place_of = Daemon::start("").await;
    let Some(mount) = place(&place_of).await else {
        return;
    };
    // The daemons of tests are all in the same cgroup, which here is that of the mount.
    let mount = mount.parent().unwrap().display().to_string();
    let read_only = format!("mount -o remount,bind,ro '{mount}'");
    for (prepare, why) in [
        (
            "umount -a -t cgroup2".to_owned(),
            "no file system of cgroups of version 2 is mounted",
        ),
        (read_only, "Read-only file system"),
    ] {
        let Some(launcher) = in_namespace(&prepare) else {
            continue;
        };
        let launcher: Vec<_> = launcher.iter().map(String::as_str).collect();
        let mut scene = Scene::new(Daemon::start_by(&launcher, "").await, "", "").await;
        let status = scene.daemon.status().await;
        assert!(status.cgroups.is_empty(), "{}", status.cgroups);
        assert!(
            status.cgroups_missing.contains(why),
            "{}",
            status.cgroups_missing
        );
        let id = scene.spawn(exec(&["sh", "-c", "exit 7"])).await;
        assert_eq!(scene.exited(id).await.status, Some(Status::Code(7)));
        scene.finish().await;
    }
    let off = Daemon::start("[children]\ncgroups = \"off\"\n").await;
    let why = off.status().await.cgroups_missing;
    assert_eq!(why, "[children] cgroups = \"off\"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[allow(unsafe_code)]
async fn where_clone3_is_refused_children_start_without_a_cgroup() {
    // Its number is the same on every architecture.
    const CLONE3: i64 = 435;
    let enosys = u32::try_from(rustix::io::Errno::NOSYS.raw_os_error()).unwrap();
    let filter = SeccompFilter::new(
        BTreeMap::from([(CLONE3, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(enosys),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program = BpfProgram::try_from(filter.unwrap()).unwrap();
    let dir = directory();
    let mut command = command(dir.path(), "version = 1\n", &[]);
    // SAFETY: between fork and exec the closure only makes a system call, on memory prepared before.
    unsafe {
        command.pre_exec(move || seccompiler::apply_filter(&program).map_err(std::io::Error::other))
    };
    let mut scene = Scene::new(Daemon::start_as(dir, command).await, "", "").await;
    if place(&scene.daemon).await.is_none() {
        return;
    }
    let id = scene.spawn(exec(&["sh", "-c", "exit 7"])).await;
    let exited = scene.exited(id).await;
    assert_eq!(
        (exited.status, exited.cgroup_usage),
        (Some(Status::Code(7)), None)
    );
    let status = scene.daemon.status().await;
    let why = "starting a child in one of its own failed";
    assert!(
        status.cgroups_missing.contains(why),
        "{}",
        status.cgroups_missing
    );
    scene.finish().await;
}

/// As with `Delegate=` and `DelegateSubgroup=` of systemd: only there controllers can be enabled.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_daemon_in_a_part_of_a_delegated_cgroup_makes_its_own_beside_that_part() {
    let other = Daemon::start("").await;
    let Some(above) = place(&other).await else {
        return;
    };
    let unit = above
        .parent()
        .unwrap()
        .join(format!("unit-{}", other.pid()));
    let part = unit.join("daemon");
    std::fs::create_dir_all(&part).unwrap();
    let marked = rustix::fs::setxattr(
        &unit,
        "user.delegate",
        b"1",
        rustix::fs::XattrFlags::empty(),
    );
    if let Err(error) = marked {
        eprintln!("SKIPPED: cgroups have no attributes here: {error}");
        remove(&unit);
        return;
    }
    let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", part.display());
    let daemon = Daemon::start_by(&["sh", "-c", &script, "sh"], "").await;
    let own = place(&daemon).await.unwrap();
    assert_eq!(own.parent(), Some(&*unit));
    let mut scene = Scene::new(daemon, "", "").await;
    let id = scene.spawn(exec(&["cat", "/proc/self/cgroup"])).await;
    scene.closed(id).await;
    let said = scene.recorder.bytes(id, evloopd::proto::Stream::Stdout);
    let said = String::from_utf8(said).unwrap();
    let line = said.lines().find(|line| line.starts_with("0::")).unwrap();
    let name = own.file_name().unwrap().to_str().unwrap();
    assert!(line.contains(name), "{line}");
    drop(scene);
    remove(&unit);
}

fn remove(unit: &Path) {
    std::fs::remove_dir(unit.join("daemon")).unwrap();
    std::fs::remove_dir(unit).unwrap();
}

/// A cgroup that allows its processes this much memory; `None`, and says so, if none can be made
/// here.
struct Limited(PathBuf);

impl Limited {
    fn make(bytes: u64) -> Option<Self> {
        let name = format!("evloopd-test-{}", std::process::id());
        let roots = [
            ("/sys/fs/cgroup", "memory.max"),
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ];
        for (root, file) in roots {
            let path = Path::new(root).join(&name);
            if std::fs::create_dir(&path).is_err() {
                continue;
            }
            let made = Self(path);
            // It may be another file system, or a cgroup without the controller.
            let file = made.0.join(file);
            if file.exists() && std::fs::write(file, bytes.to_string()).is_ok() {
                return Some(made);
            }
        }
        eprintln!("SKIPPED: no cgroup that limits memory can be made here");
        None
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_limit_of_memory_beyond_that_of_the_cgroup_is_told() {
    let Some(cgroup) = Limited::make(128 << 20) else {
        return;
    };
    let place = cgroup.0.display();
    let script = format!("echo $$ > '{place}/cgroup.procs' && exec \"$@\"");
    let launcher = ["sh", "-c", &script, "sh"];
    let fits = Daemon::start_by(&launcher, "[limits]\nmemory = \"64MiB\"\n").await;
    assert!(fits.status().await.limit_troubles.is_empty());
    drop(fits);
    let daemon = Daemon::start_by(&launcher, "[limits]\nmemory = \"100MiB\"\n").await;
    let told = daemon.status().await.limit_troubles;
    let [trouble] = &told[..] else {
        panic!("{told:?}")
    };
    let allowed = "allowed here is at most 96MiB";
    for part in ["limits.memory is 100MiB", &place.to_string(), allowed] {
        assert!(trouble.contains(part), "{trouble}");
    }
    assert!(daemon.log().contains(allowed), "{}", daemon.log());
    let dir = directory();
    let config = "version = 1\n[limits]\nmemory = \"100MiB\"\n";
    let mut check = command(dir.path(), config, &launcher);
    let checked = within("the check", check.arg("--check-config").status()).await;
    // It is a warning, with the place of the value.
    assert_eq!(checked.unwrap().code(), Some(0));
    let said = crate::common::log(dir.path());
    assert!(
        said.contains("evloopd.toml:3: warning: limits.memory is 100MiB"),
        "{said}"
    );
    drop(daemon);
}
