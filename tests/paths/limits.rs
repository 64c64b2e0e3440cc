//! Limits of the kernel and of the hub, and file systems that tell nothing: one test for each way in
//! which users of other watchers ran into them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{Reader, hub, recursive, rescans};
use evloopd::paths::{Hub, Kinds, Limits, Refused, RescanReason, Spec, Told};
use tempfile::tempdir;

// 35
#[test]
fn an_ignored_tree_costs_no_watches() {
    let top = tempdir().unwrap();
    for package in 0..3_000 {
        fs::create_dir_all(top.path().join(format!("app/node_modules/{package}"))).unwrap();
    }
    let hub = Hub::new(Limits {
        watches: 64,
        ..Limits::default()
    });
    let spec = Spec {
        ignore: vec!["node_modules/".into(), "/out/*.log".into()],
        ..recursive(top.path())
    };
    let (mut reader, synced) = Reader::synced(&hub, spec);
    assert_eq!((synced.directories, synced.unwatched), (2, 0));
    fs::write(top.path().join("app/node_modules/x"), b"").unwrap();
    fs::create_dir_all(top.path().join("out/node_modules/y")).unwrap();
    fs::write(top.path().join("out/a.log"), b"").unwrap();
    fs::write(top.path().join("app/end"), b"").unwrap();
    let told = reader.until_change("app/end", Kinds::CREATED);
    assert_eq!(rescans(&told), 0);
    let ignored = |told: &Told| matches!(told, Told::Changed(change) if change.path.ends_with(b".log") || change.path.windows(12).any(|part| part == b"node_modules"));
    assert!(!told.iter().any(ignored), "{told:?}");
}

// 35
#[test]
fn a_limit_reached_midway_is_a_rescan_and_is_tried_again() {
    let top = tempdir().unwrap();
    for dir in 0..20 {
        fs::create_dir(top.path().join(format!("d{dir}"))).unwrap();
    }
    let limits = Limits {
        watches: 16,
        retry: Duration::from_millis(10),
        ..Limits::default()
    };
    let hub = Hub::new(limits);
    let mut reader = Reader::new(&hub, recursive(top.path()));
    let told = reader.until(|told| matches!(told, Told::Synced(_)));
    let Some(Told::Synced(synced)) = told.last() else {
        unreachable!()
    };
    assert!(synced.unwatched > 0 && synced.directories > 0, "{synced:?}");
    let named: Vec<_> = told
        .iter()
        .filter_map(|told| match told {
            Told::Rescan {
                reason: RescanReason::TooManyWatches(refused),
                path,
            } => Some((refused, path)),
            _ => None,
        })
        .collect();
    assert_eq!(named.len() as u64, synced.unwatched);
    assert!(
        matches!(**named[0].0, Refused::HubWatches { limit: 16, .. }),
        "{}",
        named[0].0
    );
    let (_, missed) = named[0];
    // Room: everything but one of the others goes.
    for dir in 0..20 {
        let dir = format!("d{dir}");
        if dir.as_bytes() != &missed[..] {
            fs::remove_dir(top.path().join(dir)).unwrap();
        }
    }
    reader.until(|told| matches!(told, Told::Rescan { reason: RescanReason::WatchedAgain, path } if path == missed));
    reader.until(|told| matches!(told, Told::Synced(synced) if synced.unwatched == 0));
    let missed = String::from_utf8(missed.clone()).unwrap();
    fs::write(top.path().join(&missed).join("x"), b"").unwrap();
    reader.until_change(&format!("{missed}/x"), Kinds::CREATED);
}

// 35
#[test]
fn all_that_waits_for_room_gets_its_turn() {
    let (top, other) = (tempdir().unwrap(), tempdir().unwrap());
    for dir in 0..600 {
        fs::create_dir(top.path().join(format!("d{dir}"))).unwrap();
        fs::create_dir(other.path().join(format!("d{dir}"))).unwrap();
    }
    let hub = Hub::new(Limits {
        watches: 640,
        retry: Duration::from_millis(10),
        ..Limits::default()
    });
    let (before, _) = Reader::synced(&hub, recursive(other.path()));
    let (mut reader, synced) = Reader::synced(&hub, recursive(top.path()));
    assert!(synced.unwatched > 512, "{synced:?}");
    drop(before);
    reader.until(|told| matches!(told, Told::Synced(synced) if synced.unwatched == 0));
}

/// Makes `count` directories below each other.
fn chain(top: &Path, count: usize) {
    fs::create_dir_all(top.join(names(0..count))).unwrap();
}

fn names(range: std::ops::Range<usize>) -> String {
    let names: Vec<_> = range.map(|level| format!("d{level}")).collect();
    names.join("/")
}

// 35
#[test]
fn what_is_too_deep_is_named_and_watched_when_it_is_moved_up() {
    let top = tempdir().unwrap();
    chain(top.path(), 160);
    let hub = hub();
    let (mut reader, synced) = Reader::synced(&hub, recursive(top.path()));
    assert_eq!((synced.directories, synced.unwatched), (128, 1));
    let (old, up) = (top.path().join(names(0..101)), top.path().join("up"));
    fs::rename(old, &up).unwrap();
    let named = format!("up/{}", names(101..128));
    reader.until(|told| matches!(told, Told::Rescan { reason: RescanReason::WatchedAgain, path } if *path == named.as_bytes()));
    let told = reader.until(|told| matches!(told, Told::Synced(_)));
    assert!(
        matches!(told.last(), Some(Told::Synced(synced)) if synced.directories == 161 && synced.unwatched == 0),
        "{told:?}"
    );
    let file = format!("{}/file", names(101..150));
    fs::write(up.join(&file), b"").unwrap();
    reader.until_change(&format!("up/{file}"), Kinds::CREATED);

    // Back down: what is watched stays so, what is new is named.
    fs::rename(&up, top.path().join(names(0..101))).unwrap();
    fs::create_dir(top.path().join(names(0..150)).join("new")).unwrap();
    let named = format!("{}/new", names(0..150));
    reader.until(|told| matches!(told, Told::Rescan { reason: RescanReason::TooDeep { limit: 128 }, path } if *path == named.as_bytes()));
}

/// Runs this test again where the sysctl `name` is `value`. False: this is that run.
fn again_with(name: &str, value: &str, test: &str) -> bool {
    if std::env::var_os("PATHS_INNER").is_some() {
        return false;
    }
    let script = format!(
        "echo {value} > /proc/sys/user/{name} && exec \"$0\" --exact limits::{test} --nocapture"
    );
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env("PATHS_INNER", "1")
        .output();
    match output {
        Ok(output) if output.status.success() => {
            assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
        }
        Ok(output) if String::from_utf8_lossy(&output.stderr).contains("unshare:") => {
            eprintln!(
                "SKIPPED {test}: no user namespace here: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        other => panic!("{other:?}"),
    }
    true
}

// 35
#[test]
fn the_limit_on_watches_is_not_told_as_a_full_disk() {
    if again_with(
        "max_inotify_watches",
        "3",
        "the_limit_on_watches_is_not_told_as_a_full_disk",
    ) {
        return;
    }
    let top = tempdir().unwrap();
    let deep = top.path().join("a/b/c/d/e");
    fs::create_dir_all(&deep).unwrap();
    let hub = hub();
    let refused = Reader::try_new(&hub, Spec::new(&deep))
        .err()
        .expect("refused");
    let text = refused.to_string();
    assert!(
        matches!(refused, Refused::KernelWatches { used: 3, needed, .. } if needed >= 1),
        "{text}"
    );
    assert!(
        text.contains("user.max_inotify_watches = 3 ") && text.contains("3 watches"),
        "{text}"
    );
    assert_eq!(hub.status().watches, 0, "what was added is given back");
}

// 35
#[test]
fn the_limit_on_instances_is_named() {
    if again_with(
        "max_inotify_instances",
        "0",
        "the_limit_on_instances_is_named",
    ) {
        return;
    }
    let refused = Reader::try_new(&hub(), Spec::new("/"))
        .err()
        .expect("refused");
    assert!(
        refused
            .to_string()
            .contains("user.max_inotify_instances = 0 "),
        "{refused}"
    );
}

// 36
#[test]
fn file_systems_that_tell_nothing_are_refused() {
    let hub = hub();
    for path in [
        "/proc/self/status",
        "/proc",
        "/proc/1/no/such",
        "/sys/class",
    ] {
        let refused = Reader::try_new(&hub, Spec::new(path))
            .err()
            .expect("refused");
        assert!(
            matches!(refused, Refused::Silent { .. }),
            "{path}: {refused}"
        );
        assert!(refused.to_string().contains("poll"), "{refused}");
    }
    assert_eq!(hub.status().watches, 0);
}

// 36
#[test]
fn file_systems_that_tell_nothing_are_polled_if_asked() {
    let hub = hub();
    let poll = Some(Duration::from_millis(10));
    let mut child = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let spec = Spec {
        poll,
        ..Spec::new(format!("/proc/{}", child.id()))
    };
    let (mut reader, synced) = Reader::synced(&hub, spec);
    assert!(synced.entries > 10);
    assert_eq!(hub.status().polled, 1);
    drop(child.stdin.take());
    child.wait().unwrap();
    reader.until(|told| matches!(told, Told::RootGone { .. }));

    let spec = Spec {
        poll,
        kinds: Kinds::WRITE_ENDED,
        ..Spec::new("/proc")
    };
    assert!(matches!(
        Reader::try_new(&hub, spec),
        Err(Refused::PollKinds)
    ));
    let spec = Spec {
        poll: Some(Duration::ZERO),
        ..Spec::new("/proc")
    };
    assert!(matches!(
        Reader::try_new(&hub, spec),
        Err(Refused::PollInterval { .. })
    ));
}

// 36
#[test]
fn a_silent_file_system_within_the_tree_is_named() {
    if std::env::var_os("PATHS_INNER").is_none() {
        let script = "mkdir $1/p $1/q && mount -t proc proc $1/p && exec \"$0\" --exact a_silent_file_system_within_the_tree_is_named --nocapture";
        let top = tempdir().unwrap();
        let output = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "sh", "-c", script])
            .arg(std::env::current_exe().unwrap())
            .arg(top.path())
            .env("PATHS_INNER", top.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        if text.contains("unshare:") || text.contains("mount:") {
            eprintln!("SKIPPED: no mount namespace here: {text}");
        } else {
            assert!(output.status.success(), "{output:?}");
        }
        return;
    }
    let top = std::env::var_os("PATHS_INNER").unwrap();
    let hub = hub();
    let mut reader = Reader::new(&hub, recursive(Path::new(&top)));
    let told = reader.until(|told| matches!(told, Told::Synced(_)));
    let named = Told::Rescan {
        reason: RescanReason::Silent {
            file_system: "proc",
        },
        path: b"p".to_vec(),
    };
    assert!(told.contains(&named), "{told:?}");
    assert!(
        matches!(told.last(), Some(Told::Synced(synced)) if synced.unwatched == 1 && synced.directories == 2)
    );
}
