//! Item 39: which file a file is.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tempfile::TempDir;

use super::{Rig, write};

/// The file systems that are there: the one of temporary files, and memory.
fn directories() -> Vec<TempDir> {
    let memory = Path::new("/dev/shm");
    let memory = memory
        .is_dir()
        .then(|| tempfile::tempdir_in(memory).unwrap());
    [Some(tempfile::tempdir().unwrap()), memory]
        .into_iter()
        .flatten()
        .collect()
}

#[test]
fn a_new_file_with_a_reused_inode_number_is_not_read_from_a_stale_offset_after_a_restart() {
    for directory in directories() {
        let mut rig = Rig::within(directory, Some("the old one\n"), |_| ());
        assert_eq!(rig.shown(), ["1 appeared", "1@0 the old one\n"]);
        let mut reused = false;
        rig.restart(|path| {
            let old = fs::metadata(path).unwrap().ino();
            fs::remove_file(path).unwrap();
            // Longer, and with the same beginning.
            fs::write(path, "the old one\nnew\n").unwrap();
            reused = fs::metadata(path).unwrap().ino() == old;
        });
        println!("inode number reused on {}: {reused}", rig.path.display());
        assert_eq!(
            rig.shown(),
            [
                "2 rotated",
                "1 gave up 0 NotFound",
                "2@12 the old one\nnew\n"
            ]
        );
    }
}

#[test]
fn a_new_file_with_a_reused_inode_number_is_not_mixed_up_while_following() {
    for directory in directories() {
        let mut rig = Rig::within(directory, Some("0123"), |_| ());
        assert_eq!(rig.shown(), ["1 appeared", "1@0 0123"]);
        for round in 2..20 {
            fs::remove_file(&rig.path).unwrap();
            assert_eq!(rig.shown(), [format!("{} removed", round - 1)]);
            fs::write(&rig.path, "0123").unwrap();
            let offset = 4 * (round - 1);
            assert_eq!(
                rig.shown(),
                [
                    format!("{round} appeared"),
                    format!("{round}@{offset} 0123")
                ]
            );
            assert_eq!(rig.status().open, 1);
        }
    }
}

#[test]
fn a_restart_neither_repeats_nor_skips_a_byte() {
    for directory in directories() {
        let mut rig = Rig::within(directory, Some("one "), |_| ());
        assert_eq!(rig.shown(), ["1 appeared", "1@0 one "]);
        let log = rig.writer();
        rig.restart(|_| write(&log, "two "));
        assert_eq!(rig.shown(), ["1@4 two "]);
        rig.restart(|_| ());
        assert!(rig.shown().is_empty());
    }
}

#[test]
fn a_file_that_was_rotated_during_a_restart_is_found_under_its_new_name() {
    let mut rig = Rig::new(Some("read, "));
    assert_eq!(rig.shown(), ["1 appeared", "1@0 read, "]);
    let log = rig.writer();
    write(&log, "unread ");
    drop(log);
    rig.restart(|path| {
        fs::rename(path, path.with_extension("1")).unwrap();
        fs::write(path, "new").unwrap();
    });
    assert_eq!(rig.shown(), ["2 rotated", "1@6 unread ", "2@13 new"]);
}

#[test]
fn a_file_that_is_gone_after_a_restart_is_counted_as_given_up() {
    let mut rig = Rig::new(Some("0123456789"));
    assert_eq!(super::show(&rig.step(4).told), ["1 appeared", "1@0 0123"]);
    rig.restart(|path| fs::remove_file(path).unwrap());
    assert_eq!(rig.shown(), ["1 removed", "1 gave up 6 NotFound"]);
    assert_eq!((rig.status().given_up, rig.status().given_up_bytes), (1, 6));
}

#[test]
fn a_file_that_comes_back_to_its_name_is_not_told_again() {
    let mut rig = Rig::new(Some("a1 "));
    assert_eq!(rig.shown(), ["1 appeared", "1@0 a1 "]);
    // No writer is left, so the file is closed.
    rig.rename_to("away");
    assert_eq!(rig.shown(), ["1 removed"]);
    assert_eq!(rig.status().open, 0);
    fs::rename(rig.other("away"), &rig.path).unwrap();
    write(&rig.writer(), "a2 ");
    assert_eq!(rig.shown(), ["1 appeared", "1@3 a2 "]);
    // And while a writer keeps it open.
    let log = rig.writer();
    rig.rename_to("away");
    fs::write(&rig.path, "b ").unwrap();
    assert_eq!(rig.shown(), ["2 rotated"]);
    fs::rename(rig.other("away"), &rig.path).unwrap();
    write(&log, "a3 ");
    assert_eq!(rig.shown(), ["1 rotated", "2@6 b ", "1@8 a3 "]);
}
