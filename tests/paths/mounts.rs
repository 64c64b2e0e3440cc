//! Mounts over what is watched, in a mount namespace of their own.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{Reader, hub, recursive};
use evloopd::paths::{GoneReason, Kinds, RescanReason, Spec, Synced, Told};
use tempfile::tempdir;

/// Runs this test again in a mount namespace. False: this is that run.
fn again(test: &str) -> bool {
    if std::env::var_os("PATHS_INNER").is_some() {
        return false;
    }
    let output = Command::new("unshare")
        .arg("--mount")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("PATHS_INNER", "1")
        .output()
        .unwrap();
    if String::from_utf8_lossy(&output.stderr).contains("unshare:") {
        eprintln!("SKIPPED {test}: no mount namespace here: {output:?}");
    } else {
        assert!(output.status.success(), "{output:?}");
    }
    true
}

fn mount(kind: &[&str], at: &Path) {
    let mount = Command::new("mount").args(kind).arg(at).status();
    assert!(mount.unwrap().success());
}

/// Unmounts it although it is in use, of which inotify tells nothing.
fn unmount(at: &Path) {
    let unmount = Command::new("umount").arg("-l").arg(at).status();
    assert!(unmount.unwrap().success());
}

fn looked_at(reader: &mut Reader, wanted: &RescanReason, at: &str) -> Synced {
    reader.until(
        |told| matches!(told, Told::Rescan { reason, path } if reason == wanted && path == at.as_bytes()),
    );
    let told = reader.until(|told| matches!(told, Told::Synced(_)));
    match told.last() {
        Some(Told::Synced(synced)) => *synced,
        _ => unreachable!(),
    }
}

fn replaced(reader: &mut Reader, is_dir: bool) {
    let reason = GoneReason::Replaced;
    reader.until(|told| *told == Told::RootGone { reason });
    reader.until(|told| *told == Told::RootAppeared { is_dir });
}

const TMPFS: [&str; 3] = ["-t", "tmpfs", "none"];

#[test]
fn a_mount_over_a_watched_directory_is_looked_at() {
    if again("mounts::a_mount_over_a_watched_directory_is_looked_at") {
        return;
    }
    let top = tempdir().unwrap();
    let at = top.path().join("a b/c");
    fs::create_dir_all(at.join("hidden")).unwrap();
    let hub = hub();
    let (mut reader, _) = Reader::synced(&hub, recursive(top.path()));
    mount(&TMPFS, &at);
    let held = fs::File::create(at.join("held")).unwrap();
    looked_at(&mut reader, &RescanReason::Mounted, "a b/c");
    fs::create_dir(at.join("new")).unwrap();
    reader.until_change("a b/c/new", Kinds::CREATED);
    unmount(&at);
    looked_at(&mut reader, &RescanReason::Unmounted, "a b/c");
    drop(held);
    fs::create_dir(at.join("hidden/again")).unwrap();
    reader.until_change("a b/c/hidden/again", Kinds::CREATED);

    // Of what tells nothing, that is told; what is hidden by it is not watched.
    mount(&["-t", "proc", "none"], &at);
    let silent = RescanReason::Silent {
        file_system: "proc",
    };
    let synced = looked_at(&mut reader, &silent, "a b/c");
    assert_eq!((synced.directories, synced.unwatched), (2, 1));
    unmount(&at);
    looked_at(&mut reader, &RescanReason::WatchedAgain, "a b/c");
    fs::remove_dir(at.join("hidden/again")).unwrap();
    reader.until_change("a b/c/hidden/again", Kinds::DELETED);
}

#[test]
fn a_mount_over_the_root_or_above_it_replaces_the_root() {
    if again("mounts::a_mount_over_the_root_or_above_it_replaces_the_root") {
        return;
    }
    let top = tempdir().unwrap();
    let (root, file) = (top.path().join("root"), top.path().join("root/file"));
    fs::create_dir(&root).unwrap();
    fs::write(&file, b"x").unwrap();
    fs::write(top.path().join("other"), b"y").unwrap();
    let hub = hub();
    let (mut dir, _) = Reader::synced(&hub, recursive(&root));
    let (mut of_file, _) = Reader::synced(&hub, Spec::new(&file));
    mount(&TMPFS, &root);
    replaced(&mut dir, true);
    of_file.until(|told| matches!(told, Told::RootGone { .. }));
    fs::create_dir(root.join("new")).unwrap();
    dir.until_change("new", Kinds::CREATED);
    unmount(&root);
    replaced(&mut dir, true);
    of_file.until(|told| *told == Told::RootAppeared { is_dir: false });
    mount(
        &["--bind", top.path().join("other").to_str().unwrap()],
        &file,
    );
    replaced(&mut of_file, false);
    unmount(&file);
    replaced(&mut of_file, false);
    mount(&TMPFS, top.path());
    for reader in [&mut dir, &mut of_file] {
        reader.until(|told| matches!(told, Told::RootGone { .. }));
    }
    unmount(top.path());
    dir.until(|told| *told == Told::RootAppeared { is_dir: true });
}
