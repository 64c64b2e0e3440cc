//! The rest of what the module promises.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{Reader, hub, is_change, recursive};
use evloopd::paths::{
    Change, GoneReason, Hub, InboxLimits, Kinds, Limits, PathFault, Refused, RescanReason, Spec,
    Told,
};
use tempfile::tempdir;

fn refused(limits: Limits, spec: Spec) -> Refused {
    Reader::try_new(&Hub::new(limits), spec)
        .err()
        .expect("refused")
}

#[test]
fn bad_requests_name_the_field() {
    let paths: [(&[u8], PathFault); 4] = [
        (b"", PathFault::Empty),
        (b"tmp", PathFault::NotAbsolute),
        (b"/tmp/\0", PathFault::Nul),
        (&[b'/'; 4_096], PathFault::TooLong),
    ];
    for (path, fault) in paths {
        let spec = Spec::new(OsString::from_vec(path.to_vec()));
        assert_eq!(refused(Limits::default(), spec), Refused::Path(fault));
    }
    let spec = Spec {
        kinds: Kinds::empty(),
        ..Spec::new("/tmp")
    };
    assert_eq!(refused(Limits::default(), spec), Refused::NoKinds);
    for bad in ["[a", "a//b", "../x", "a\\", &"x".repeat(1_025)] {
        let spec = Spec {
            ignore: vec!["ok".into(), bad.into()],
            ..Spec::new("/tmp")
        };
        assert!(
            matches!(
                refused(Limits::default(), spec),
                Refused::Pattern { index: 1, .. }
            ),
            "{bad}"
        );
    }
    let spec = Spec {
        ignore: vec!["x".into(); 257],
        ..Spec::new("/tmp")
    };
    assert_eq!(
        refused(Limits::default(), spec),
        Refused::TooManyPatterns {
            given: 257,
            limit: 256
        }
    );
    let spec = Spec {
        inbox: InboxLimits {
            entries: 0,
            bytes: 1,
        },
        ..Spec::new("/tmp")
    };
    assert_eq!(
        refused(Limits::default(), spec),
        Refused::InboxTooSmall { field: "entries" }
    );
    let none = Limits {
        subscriptions: 0,
        ..Limits::default()
    };
    assert_eq!(
        refused(none, Spec::new("/tmp")),
        Refused::Subscriptions { limit: 0 }
    );
    let few = Limits {
        watches: 1,
        ..Limits::default()
    };
    assert!(matches!(
        refused(few, Spec::new("/tmp/x/y")),
        Refused::HubWatches { limit: 1, .. }
    ));
    let top = tempdir().unwrap();
    std::os::unix::fs::symlink("loop", top.path().join("loop")).unwrap();
    let spec = Spec::new(top.path().join("loop"));
    assert!(
        refused(Limits::default(), spec)
            .to_string()
            .contains("symbolic links")
    );
}

#[test]
fn a_window_makes_equal_changes_one_with_a_count() {
    let top = tempdir().unwrap();
    let hub = hub();
    let spec = Spec {
        window: Duration::from_secs(3_600),
        kinds: Kinds::MODIFIED | Kinds::WRITE_ENDED | Kinds::CREATED,
        ..Spec::new(top.path())
    };
    let (mut reader, _) = Reader::synced(&hub, spec);
    for _ in 0..100 {
        fs::write(top.path().join("a"), b"x").unwrap();
        fs::write(top.path().join("b"), b"x").unwrap();
    }
    assert!(reader.subscription.inbox().is_empty());
    // What is not held back comes after what was: nothing waits for the window's end then.
    fs::remove_dir(top.path()).unwrap_err();
    fs::remove_dir_all(top.path()).unwrap();
    let told = reader.until(|told| matches!(told, Told::RootGone { .. }));
    let of = |path: &[u8], kind: Kinds| {
        let mut all = told.iter().filter_map(|told| match told {
            Told::Changed(Change {
                path: at,
                kinds,
                count,
                ..
            }) if at == path && *kinds == kind => Some(*count),
            _ => None,
        });
        let count = all.next().expect("told");
        assert_eq!(all.next(), None, "{told:?}");
        count
    };
    assert_eq!((of(b"a", Kinds::CREATED), of(b"b", Kinds::CREATED)), (1, 1));
    assert_eq!(
        (of(b"a", Kinds::WRITE_ENDED), of(b"b", Kinds::WRITE_ENDED)),
        (100, 100)
    );
    assert!(of(b"a", Kinds::MODIFIED) >= 100);
}

#[test]
fn a_window_ends_by_itself() {
    let top = tempdir().unwrap();
    let hub = hub();
    let spec = Spec {
        window: Duration::from_millis(5),
        ..Spec::new(top.path())
    };
    let (mut reader, _) = Reader::synced(&hub, spec);
    for file in ["a", "b"] {
        fs::write(top.path().join(file), b"x").unwrap();
        reader.until_change(file, Kinds::WRITE_ENDED);
    }
}

#[test]
fn a_slow_reader_is_told_to_look_itself() {
    let top = tempdir().unwrap();
    let hub = hub();
    let inbox = InboxLimits {
        entries: 4,
        bytes: 1 << 20,
    };
    let (mut reader, _) = Reader::synced(
        &hub,
        Spec {
            inbox,
            ..Spec::new(top.path())
        },
    );
    for file in 0..10 {
        fs::write(top.path().join(format!("{file}")), b"x").unwrap();
    }
    // Another subscription on the same queue: what it is told, the first was told before.
    while reader.subscription.status().rescans == 0 {
        Reader::synced(&hub, Spec::new(top.path()));
    }
    assert_eq!(
        reader.next(),
        Told::Rescan {
            reason: RescanReason::ReaderTooSlow,
            path: Vec::new()
        }
    );
    assert!(matches!(reader.next(), Told::Synced(_)));
    // Changes of the ten files that come only now may fill the inbox once more: then it is told to look
    // again, and not of this one.
    let is_after = |told: &Told| is_change(told, "after", Kinds::WRITE_ENDED);
    loop {
        fs::write(top.path().join("after"), b"x").unwrap();
        let told = reader.until(|told| is_after(told) || matches!(told, Told::Synced(_)));
        if told.last().is_some_and(is_after) {
            break;
        }
    }
}

#[test]
fn a_root_that_is_replaced_is_followed() {
    let top = tempdir().unwrap();
    let (root, other) = (top.path().join("root"), top.path().join("other"));
    fs::create_dir_all(root.join("old")).unwrap();
    fs::create_dir_all(other.join("new")).unwrap();
    let hub = hub();
    let (mut reader, synced) = Reader::synced(&hub, recursive(&root));
    assert_eq!((synced.directories, synced.entries), (2, 1));
    fs::rename(&root, top.path().join("aside")).unwrap();
    reader.until(|told| {
        *told
            == Told::RootGone {
                reason: GoneReason::Missing,
            }
    });
    fs::write(top.path().join("aside/x"), b"").unwrap();
    fs::rename(&other, &root).unwrap();
    let told = reader.until(|told| matches!(told, Told::Synced(_)));
    assert!(
        told.iter()
            .any(|told| is_change(told, "new", Kinds::CREATED)),
        "{told:?}"
    );
    assert!(
        !told.iter().any(|told| is_change(told, "x", Kinds::all())),
        "{told:?}"
    );
    fs::write(root.join("new/y"), b"").unwrap();
    reader.until_change("new/y", Kinds::CREATED);
    // A file where a directory was.
    fs::remove_dir_all(&root).unwrap();
    fs::write(&root, b"x").unwrap();
    reader.until(|told| *told == Told::RootAppeared { is_dir: false });
    fs::write(&root, b"xx").unwrap();
    reader.until_change("", Kinds::WRITE_ENDED);
}

#[test]
fn names_that_are_not_utf8_are_told_as_they_are() {
    let top = tempdir().unwrap();
    let hub = hub();
    let (mut reader, _) = Reader::synced(&hub, recursive(top.path()));
    let name = OsString::from_vec(b"\xff\n\xfe".to_vec());
    fs::create_dir(top.path().join(&name)).unwrap();
    fs::write(top.path().join(&name).join("x"), b"").unwrap();
    reader.until(|told| matches!(told, Told::Changed(change) if change.path == b"\xff\n\xfe/x"));
}

#[test]
fn links_within_the_tree_are_not_followed() {
    let (top, out) = (tempdir().unwrap(), tempdir().unwrap());
    fs::create_dir(out.path().join("dir")).unwrap();
    std::os::unix::fs::symlink(out.path(), top.path().join("link")).unwrap();
    let hub = hub();
    let (mut reader, synced) = Reader::synced(&hub, recursive(top.path()));
    assert_eq!((synced.directories, synced.entries), (1, 1));
    fs::write(out.path().join("dir/x"), b"").unwrap();
    fs::write(top.path().join("end"), b"").unwrap();
    assert!(is_change(&reader.next(), "end", Kinds::CREATED));
}

#[test]
fn what_is_too_deep_is_named() {
    let top = tempdir().unwrap();
    fs::create_dir_all(top.path().join("a/b/c/d")).unwrap();
    let hub = Hub::new(Limits {
        depth: 3,
        ..Limits::default()
    });
    let mut reader = Reader::new(&hub, recursive(top.path()));
    let told = reader.until(|told| matches!(told, Told::Synced(_)));
    let named = Told::Rescan {
        reason: RescanReason::TooDeep { limit: 3 },
        path: b"a/b/c".to_vec(),
    };
    assert!(told.contains(&named), "{told:?}");
}

#[test]
fn the_end_of_the_hub_is_told_and_gives_everything_back() {
    let top = tempdir().unwrap();
    let hub = hub();
    let (mut reader, _) = Reader::synced(&hub, recursive(top.path()));
    drop(hub);
    let told = reader.until(|told| matches!(told, Told::Failed { .. }));
    assert_eq!(
        told.last(),
        Some(&Told::Failed {
            error: Arc::new(Refused::Ended)
        })
    );
    assert!(reader.subscription.inbox().is_empty());
}

#[test]
fn a_dropped_subscription_leaves_no_watch() {
    let top = tempdir().unwrap();
    fs::create_dir_all(top.path().join("a/b/c")).unwrap();
    let hub = hub();
    let other = tempdir().unwrap();
    let _other = Reader::synced(&hub, Spec::new(other.path()));
    let before = hub.status();
    let reader = Reader::synced(&hub, recursive(top.path()));
    assert!(hub.status().watches > before.watches && hub.status().subscriptions == 2);
    drop(reader);
    while hub.status().subscriptions > 1 {
        std::thread::yield_now();
    }
    assert_eq!(hub.status().watches, before.watches);
}
