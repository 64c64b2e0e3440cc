//! Paths: what happens to them is told, or where to look is.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    Event, PathChangeKind, PathChanged, PathSpec, RescanReason, UpdateWatchRequest, WatchSpec,
    watch,
};
use tonic::Code;

use crate::common::{Scene, by_id, directory, refused};

on_each_backend!(
    what_happens_in_a_directory_is_told_in_its_order,
    a_tree_that_comes_at_once_is_told_whole,
    a_file_is_watched_by_its_name,
    a_path_that_does_not_exist_yet_is_waited_for,
    what_is_ignored_is_never_told,
    a_file_system_that_tells_nothing_is_refused_or_polled,
    a_bad_path_or_pattern_is_named,
    a_removed_watch_tells_nothing,
    a_change_watches_anew,
);

pub(crate) fn path(at: &Path) -> PathSpec {
    PathSpec {
        path: at.to_str().unwrap().to_owned(),
        ..PathSpec::default()
    }
}

/// Adds a watch and waits until it is synced.
pub(crate) async fn synced(scene: &mut Scene, spec: PathSpec) -> u64 {
    let id = scene.add(Spec::Path(spec)).await;
    scene.recorder.first(id, "path_synced").await;
    id
}

fn change(event: &Event) -> Option<&PathChanged> {
    match &event.kind {
        Some(Kind::PathChanged(changed)) => Some(changed),
        _ => None,
    }
}

/// Waits for a change of that kind at that path.
async fn told(scene: &mut Scene, id: u64, kind: PathChangeKind, path: &str) -> PathChanged {
    let what = format!("{kind:?} {path:?}");
    let event = scene.recorder.find(&what, |event| {
        event.watch_id == id
            && change(event)
                .is_some_and(|changed| changed.path == path && changed.kinds().any(|k| k == kind))
    });
    change(&event.await).unwrap().clone()
}

async fn what_happens_in_a_directory_is_told_in_its_order(scene: &mut Scene) {
    let dir = directory();
    let id = synced(scene, path(dir.path())).await;
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    fs::write(&a, "one").unwrap();
    fs::rename(&a, &b).unwrap();
    fs::remove_file(&b).unwrap();
    told(scene, id, PathChangeKind::Deleted, "b").await;
    let events = scene.recorder.recording.events();
    let kinds: Vec<_> = events
        .filter_map(change)
        .map(|changed| {
            (
                changed.kinds().next().unwrap(),
                changed.path.clone(),
                changed.from_path.clone(),
            )
        })
        .collect();
    let of = |kind, path: &str, from: &str| (kind, path.to_owned(), from.to_owned());
    assert_eq!(
        kinds,
        [
            of(PathChangeKind::Created, "a", ""),
            of(PathChangeKind::Modified, "a", ""),
            of(PathChangeKind::WriteEnded, "a", ""),
            of(PathChangeKind::Moved, "b", "a"),
            of(PathChangeKind::Deleted, "b", ""),
        ]
    );
    match scene.get(id).await.status {
        Some(watch::Status::Path(status)) => {
            assert!(status.synced && status.directories == 1 && status.kernel_watches >= 1);
        }
        other => panic!("{other:?}"),
    }
}

async fn a_tree_that_comes_at_once_is_told_whole(scene: &mut Scene) {
    let dir = directory();
    let spec = PathSpec {
        recursive: true,
        ..path(dir.path())
    };
    let id = synced(scene, spec).await;
    for n in 0..20 {
        let deep = dir.path().join(format!("{n}/x/y"));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), "").unwrap();
    }
    for n in 0..20 {
        told(scene, id, PathChangeKind::Created, &format!("{n}/x/y/file")).await;
    }
}

async fn a_file_is_watched_by_its_name(scene: &mut Scene) {
    let dir = directory();
    let file = dir.path().join("conf");
    fs::write(&file, "1").unwrap();
    let id = synced(scene, path(&file)).await;
    // An editor writes another file and renames it, again and again; another name is none of ours.
    for round in 1..=3 {
        let new = dir.path().join("conf.new");
        fs::write(&new, round.to_string()).unwrap();
        fs::rename(&new, &file).unwrap();
        // It is gone, and another one is there.
        scene.recorder.nth(id, "path_root", 2 * round).await;
    }
    fs::write(&file, "4").unwrap();
    let last = told(scene, id, PathChangeKind::WriteEnded, "").await;
    assert!(!last.is_directory);
    let events = scene.recorder.recording.events();
    assert!(
        events
            .filter_map(change)
            .all(|changed| changed.path.is_empty())
    );
}

async fn a_path_that_does_not_exist_yet_is_waited_for(scene: &mut Scene) {
    let dir = directory();
    let id = scene
        .add(Spec::Path(path(&dir.path().join("a/link/c"))))
        .await;
    fs::create_dir_all(dir.path().join("real/c")).unwrap();
    fs::create_dir(dir.path().join("a")).unwrap();
    symlink("../real", dir.path().join("a/link")).unwrap();
    match scene.recorder.first(id, "path_root").await.kind {
        Some(Kind::PathRoot(root)) => assert!(root.present && root.is_directory),
        other => panic!("{other:?}"),
    }
    scene.recorder.first(id, "path_synced").await;
    fs::write(dir.path().join("real/c/file"), "").unwrap();
    told(scene, id, PathChangeKind::Created, "file").await;
    // The link leads elsewhere.
    fs::create_dir_all(dir.path().join("other/c")).unwrap();
    fs::remove_file(dir.path().join("a/link")).unwrap();
    symlink("../other", dir.path().join("a/link")).unwrap();
    scene.recorder.nth(id, "path_synced", 2).await;
    fs::write(dir.path().join("other/c/second"), "").unwrap();
    told(scene, id, PathChangeKind::Created, "second").await;
}

async fn what_is_ignored_is_never_told(scene: &mut Scene) {
    let dir = directory();
    fs::create_dir(dir.path().join("target")).unwrap();
    let spec = PathSpec {
        recursive: true,
        ignore: vec!["target/".to_owned(), "*.o".to_owned(), "!keep.o".to_owned()],
        ..path(dir.path())
    };
    let id = synced(scene, spec).await;
    for name in ["target/a", "a.o", "keep.o", "end"] {
        fs::write(dir.path().join(name), "").unwrap();
    }
    told(scene, id, PathChangeKind::Created, "end").await;
    let events = scene.recorder.recording.events();
    let created: Vec<_> = events
        .filter_map(change)
        .filter(|changed| changed.kinds().any(|kind| kind == PathChangeKind::Created))
        .map(|changed| changed.path.clone())
        .collect();
    assert_eq!(created, ["keep.o", "end"]);
}

async fn a_file_system_that_tells_nothing_is_refused_or_polled(scene: &mut Scene) {
    let proc = Path::new("/proc/self/status");
    let request = scene.request(Spec::Path(path(proc)));
    let refusal = scene.try_add(request).await;
    let bad = refused(refusal, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(bad.fields, ["spec.path.path"]);
    let spec = PathSpec {
        poll: Some(crate::common::millis(50)),
        ..path(Path::new("/proc/sys/kernel"))
    };
    let id = scene.add(Spec::Path(spec)).await;
    scene.recorder.first(id, "path_synced").await;
    scene.remove(id).await;
}

async fn a_bad_path_or_pattern_is_named(scene: &mut Scene) {
    let dir = directory();
    let good = path(dir.path());
    let ignoring = |patterns: &[&str]| PathSpec {
        ignore: patterns
            .iter()
            .map(|pattern| (*pattern).to_owned())
            .collect(),
        ..good.clone()
    };
    for (spec, field) in [
        (path(Path::new("relative")), "spec.path.path"),
        (path(Path::new("/a\0b")), "spec.path.path"),
        (PathSpec::default(), "spec.path.path"),
        (
            PathSpec {
                path_bytes: "/x".into(),
                ..good.clone()
            },
            "spec.path.path_bytes",
        ),
        (
            PathSpec {
                kinds: vec![99],
                ..good.clone()
            },
            "spec.path.kinds",
        ),
        (ignoring(&["ok", "[a"]), "spec.path.ignore[1]"),
        (ignoring(&["x"; 257]), "spec.path.ignore"),
        (
            PathSpec {
                window: Some(crate::common::seconds(61)),
                ..good.clone()
            },
            "spec.path.window",
        ),
        (
            PathSpec {
                poll: Some(crate::common::millis(1)),
                ..good.clone()
            },
            "spec.path.poll",
        ),
    ] {
        let request = scene.request(Spec::Path(spec.clone()));
        let refusal = scene.try_add(request).await;
        let bad = refused(refusal, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(bad.fields, [field], "{spec:?}");
    }
    assert_eq!(scene.open_watches().await, 0);
}

async fn a_removed_watch_tells_nothing(scene: &mut Scene) {
    let dir = directory();
    let id = synced(scene, path(dir.path())).await;
    let removed = scene.remove(id).await;
    fs::write(dir.path().join("late"), "").unwrap();
    let other = synced(scene, path(dir.path())).await;
    fs::write(dir.path().join("later"), "").unwrap();
    told(scene, other, PathChangeKind::Created, "later").await;
    let mut events = scene.recorder.recording.events();
    assert!(events.all(|event| event.watch_id != id || event.seq <= removed));
}

async fn a_change_watches_anew(scene: &mut Scene) {
    let dir = directory();
    fs::create_dir(dir.path().join("below")).unwrap();
    let id = synced(scene, path(dir.path())).await;
    let request = UpdateWatchRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        spec: Some(WatchSpec {
            spec: Some(Spec::Path(PathSpec {
                recursive: true,
                ..PathSpec::default()
            })),
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["spec.path.recursive".to_owned()],
        }),
        ..UpdateWatchRequest::default()
    };
    scene.daemon.watches().update_watch(request).await.unwrap();
    // What is below has become visible: the client is told to look.
    match scene.recorder.first(id, "path_rescan").await.kind {
        Some(Kind::PathRescan(rescan)) => {
            assert_eq!(rescan.reason(), RescanReason::Updated);
            assert!(rescan.path.is_empty() && rescan.path_bytes.is_empty());
        }
        other => panic!("{other:?}"),
    }
    scene.recorder.nth(id, "path_synced", 2).await;
    let events = scene.recorder.recording.events();
    let kinds: Vec<_> = events
        .filter(|event| event.watch_id == id)
        .filter_map(|event| event.kind.as_ref())
        .collect();
    assert!(
        matches!(
            kinds[..],
            [
                ..,
                Kind::Updated(_),
                Kind::PathRescan(_),
                Kind::PathSynced(_)
            ]
        ),
        "{kinds:?}"
    );
    match scene.get(id).await.status {
        Some(watch::Status::Path(status)) => assert_eq!(status.rescans, 1),
        other => panic!("{other:?}"),
    }
    fs::write(dir.path().join("below/file"), "").unwrap();
    told(scene, id, PathChangeKind::Created, "below/file").await;
}
