//! What users of other watchers ran into: one test each, named after what it prevents.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use crate::support::{Picture, Reader, Thread, disk, exchange, hub, is_change, recursive};
use evloopd::paths::{GoneReason, Hub, Kinds, Limits, Move, RescanReason, Spec, Told};
use tempfile::tempdir;

// 30
#[test]
fn inner_files_of_new_directories_are_not_missed() {
    let top = tempdir().unwrap();
    let hub = hub();
    let (mut reader, mut picture) = Picture::synced(&hub, top.path());
    // As git writes its objects: the directory, and at once files in it.
    for object in 0..2_000 {
        let dir = top
            .path()
            .join(format!("{:02x}/{:x}", object % 256, object / 256));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("object"), b"x").unwrap();
    }
    picture.settle(&mut reader);
    assert_eq!(picture.rescans, 0);
}

// 31
#[test]
fn reads_cause_no_events_unless_asked_for() {
    let top = tempdir().unwrap();
    let file = top.path().join("file");
    fs::write(&file, b"x").unwrap();
    let hub = hub();
    let (mut reader, _) = Reader::synced(&hub, recursive(top.path()));
    for _ in 0..130_000 {
        File::open(&file).unwrap();
    }
    assert_eq!(disk(top.path()).len(), 1);
    fs::write(top.path().join("end"), b"").unwrap();
    let told = reader.until_change("end", Kinds::CREATED);
    assert_eq!(told.len(), 1, "{told:?}");

    let asked = Spec {
        kinds: Kinds::OPENED | Kinds::CLOSED_UNWRITTEN,
        ..Spec::new(top.path())
    };
    let (mut asked, _) = Reader::synced(&hub, asked);
    File::open(&file).unwrap();
    asked.until_change("file", Kinds::OPENED);
    asked.until_change("file", Kinds::CLOSED_UNWRITTEN);
}

// 31
#[test]
fn an_overflow_is_told_to_every_subscription_and_synced_after() {
    let (one, other) = (tempdir().unwrap(), tempdir().unwrap());
    let hub = hub();
    let (mut first, _) = Reader::synced(&hub, recursive(one.path()));
    let (mut second, _) = Reader::synced(&hub, recursive(other.path()));
    let thread = Thread::of(&hub);
    thread.hold();
    // The hub's thread stands still: the kernel's queue fills.
    for file in 0..9_000 {
        fs::write(one.path().join(format!("f{file}")), b"x").unwrap();
    }
    fs::create_dir(one.path().join("new")).unwrap();
    thread.let_go();
    for reader in [&mut first, &mut second] {
        let overflow = |told: &Told| matches!(told, Told::Rescan { reason: RescanReason::QueueOverflow, path } if path.is_empty());
        reader.until(overflow);
        reader.until(|told| matches!(told, Told::Synced(_)));
    }
    assert_eq!(hub.status().overflows, 1);
    fs::write(one.path().join("new/file"), b"").unwrap();
    first.until_change("new/file", Kinds::CREATED);
}

// 32
#[test]
fn what_is_renamed_out_of_a_directory_that_went_round_outside_is_not_taken_for_another() {
    let (top, out) = (tempdir().unwrap(), tempdir().unwrap());
    fs::create_dir_all(top.path().join("a/b")).unwrap();
    fs::create_dir(top.path().join("b")).unwrap();
    let hub = hub();
    let (mut reader, mut picture) = Picture::synced(&hub, top.path());
    let thread = Thread::of(&hub);
    thread.hold();
    let kept = out.path().join("kept");
    fs::rename(top.path().join("a"), &kept).unwrap();
    fs::rename(&kept, top.path().join("c")).unwrap();
    fs::rename(top.path().join("c/b"), top.path().join("a")).unwrap();
    thread.let_go();
    picture.settle(&mut reader);
}

// 32
#[test]
fn a_directory_that_is_moved_into_one_that_has_just_left_it_does_not_hang_the_hub() {
    let top = tempdir().unwrap();
    fs::create_dir_all(top.path().join("a/b")).unwrap();
    let hub = hub();
    let (mut reader, mut picture) = Picture::synced(&hub, top.path());
    let thread = Thread::of(&hub);
    thread.hold();
    // The new directory is not watched yet: of the first rename only one half is told.
    fs::create_dir(top.path().join("new")).unwrap();
    fs::rename(top.path().join("a/b"), top.path().join("new/b")).unwrap();
    fs::rename(top.path().join("a"), top.path().join("new/b/a")).unwrap();
    thread.let_go();
    picture.settle(&mut reader);
}

/// The kernel tells one of two equal events that follow each other, whatever their cookies.
#[test]
fn an_exchange_whose_first_half_is_merged_with_that_of_another_is_told() {
    let (top, out) = (tempdir().unwrap(), tempdir().unwrap());
    fs::create_dir(top.path().join("a")).unwrap();
    fs::create_dir(top.path().join("c")).unwrap();
    fs::create_dir_all(out.path().join("kept/x")).unwrap();
    let hub = hub();
    let (mut reader, mut picture) = Picture::synced(&hub, top.path());
    let thread = Thread::of(&hub);
    thread.hold();
    exchange(&out.path().join("kept"), &top.path().join("a")).unwrap();
    exchange(&top.path().join("a"), &top.path().join("c")).unwrap();
    thread.let_go();
    picture.settle(&mut reader);
}

#[test]
fn an_exchange_of_what_has_just_come_from_outside_is_told() {
    let (top, out) = (tempdir().unwrap(), tempdir().unwrap());
    fs::create_dir(top.path().join("b")).unwrap();
    fs::create_dir(top.path().join("c")).unwrap();
    fs::create_dir(out.path().join("kept")).unwrap();
    let hub = hub();
    let (mut reader, mut picture) = Picture::synced(&hub, top.path());
    let thread = Thread::of(&hub);
    thread.hold();
    fs::rename(out.path().join("kept"), top.path().join("b/c")).unwrap();
    exchange(&top.path().join("b/c"), &top.path().join("c")).unwrap();
    thread.let_go();
    picture.settle(&mut reader);
    // It is watched.
    fs::create_dir_all(top.path().join("c/new/deep")).unwrap();
    picture.settle(&mut reader);
}

// 32
#[test]
fn what_leaves_a_directory_that_is_back_at_another_place_is_told_by_its_whole_path() {
    let (top, out) = (tempdir().unwrap(), tempdir().unwrap());
    fs::create_dir_all(top.path().join("a/b/c")).unwrap();
    // Both places of the directory are known as long as its second half may still come.
    let hub = Hub::new(Limits {
        move_expiry: Duration::from_secs(2),
        ..Limits::default()
    });
    let (mut reader, mut picture) = Picture::synced(&hub, top.path());
    let kept = out.path().join("kept");
    fs::rename(top.path().join("a/b"), &kept).unwrap();
    fs::rename(&kept, top.path().join("c")).unwrap();
    for told in reader.until_change("c/c", Kinds::CREATED) {
        picture.apply(&told);
    }
    fs::rename(top.path().join("c/c"), top.path().join("a")).unwrap();
    picture.settle(&mut reader);
}

// 32
#[test]
fn names_used_again_after_a_rename_are_told_right() {
    let top = tempdir().unwrap();
    fs::create_dir_all(top.path().join("a/deep")).unwrap();
    let hub = hub();
    let (mut reader, _) = Reader::synced(&hub, recursive(top.path()));
    for _ in 0..20 {
        fs::rename(top.path().join("a"), top.path().join("x")).unwrap();
        fs::create_dir_all(top.path().join("a/deep")).unwrap();
        fs::write(top.path().join("x/deep/old"), b"x").unwrap();
        fs::write(top.path().join("a/deep/new"), b"x").unwrap();
        let told = reader.until_change("a/deep/new", Kinds::CREATED);
        let moved = Told::Moved(Move {
            from: b"a".to_vec(),
            to: b"x".to_vec(),
            is_dir: true,
        });
        let at = told.iter().position(|told| *told == moved).expect("moved");
        let old = told
            .iter()
            .position(|told| is_change(told, "x/deep/old", Kinds::CREATED))
            .expect("x/deep/old");
        assert!(
            at < old
                && !told
                    .iter()
                    .any(|told| is_change(told, "a/deep/old", Kinds::all())),
            "{told:?}"
        );
        fs::remove_dir_all(top.path().join("x")).unwrap();
        reader.until_change("x", Kinds::DELETED);
    }
}

// 32
#[test]
fn a_tree_that_was_moved_out_is_silent() {
    let (top, out) = (tempdir().unwrap(), tempdir().unwrap());
    fs::create_dir_all(top.path().join("a/b/c")).unwrap();
    let hub = hub();
    let (mut reader, _) = Reader::synced(&hub, recursive(top.path()));
    let before = hub.status().watches;
    fs::rename(top.path().join("a"), out.path().join("a")).unwrap();
    reader.until_change("a", Kinds::MOVED_AWAY);
    fs::write(out.path().join("a/b/c/file"), b"x").unwrap();
    fs::write(top.path().join("end"), b"").unwrap();
    let told = reader.until_change("end", Kinds::CREATED);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(hub.status().watches, before - 3);
    // And back: it is scanned and told as found.
    fs::rename(out.path().join("a"), top.path().join("a")).unwrap();
    let told = reader.until_change("a/b/c/file", Kinds::CREATED);
    assert!(
        told.iter()
            .any(|told| is_change(told, "a", Kinds::MOVED_HERE)),
        "{told:?}"
    );
    assert!(
        told.iter()
            .any(|told| is_change(told, "a/b/c", Kinds::CREATED)),
        "{told:?}"
    );
}

// 32
#[test]
fn exchanged_names_are_watched_and_named() {
    let (top, out) = (tempdir().unwrap(), tempdir().unwrap());
    let at = |name: &str| top.path().join(name);
    fs::create_dir_all(at("A/fa")).unwrap();
    fs::create_dir_all(at("B/fb")).unwrap();
    fs::create_dir(out.path().join("kept")).unwrap();
    fs::write(at("x"), b"x").unwrap();
    fs::write(at("y"), b"y").unwrap();
    let hub = hub();
    let (mut reader, synced) = Reader::synced(&hub, recursive(top.path()));
    let pairs = [
        (at("A"), at("B"), vec!["A", "B"]),
        (at("x"), at("y"), vec!["x", "y"]),
        (at("A"), at("x"), vec!["A", "x"]),
        (at("x"), at("A"), vec!["A", "x"]),
        (out.path().join("kept"), at("A"), vec!["A"]),
    ];
    for (one, other, names) in pairs {
        exchange(&one, &other).unwrap();
        let told = reader.until(|told| matches!(told, Told::Synced(_)));
        let mut named: Vec<_> = told
            .iter()
            .filter_map(|told| match told {
                Told::Rescan {
                    reason: RescanReason::Exchanged,
                    path,
                } => Some(std::str::from_utf8(path).unwrap()),
                _ => None,
            })
            .collect();
        named.sort_unstable();
        assert_eq!(named, names, "{told:?}");
    }
    let synced_now = reader.subscription.status().synced.unwrap();
    assert_eq!(synced_now.directories, synced.directories - 1);
    for new in ["A/new1", "B/new2"] {
        fs::write(at(new), b"").unwrap();
        reader.until_change(new, Kinds::CREATED);
    }
}

// 32
#[test]
fn a_rename_there_and_back_is_no_exchange() {
    let top = tempdir().unwrap();
    let (a, b) = (top.path().join("a"), top.path().join("b"));
    fs::create_dir_all(a.join("c")).unwrap();
    let hub = hub();
    let (mut reader, _) = Reader::synced(&hub, recursive(top.path()));
    fs::rename(&a, &b).unwrap();
    fs::rename(&b, &a).unwrap();
    fs::write(a.join("c/end"), b"").unwrap();
    let told = reader.until_change("a/c/end", Kinds::CREATED);
    let moves = told.iter().filter(|told| matches!(told, Told::Moved(_)));
    assert_eq!(moves.count(), 2, "{told:?}");
    let exchanged = |told: &Told| {
        matches!(
            told,
            Told::Rescan {
                reason: RescanReason::Exchanged,
                ..
            }
        )
    };
    assert!(!told.iter().any(exchanged), "{told:?}");
}

fn appeared(reader: &mut Reader) -> Vec<Told> {
    reader.until(|told| matches!(told, Told::RootAppeared { .. }))
}

/// Waits for a change of the root and for its appearance, in either order.
fn both(reader: &mut Reader, kinds: Kinds) {
    let (mut changed, mut there) = (false, false);
    while !(changed && there) {
        let told = reader.next();
        changed |= is_change(&told, "", kinds);
        there |= matches!(told, Told::RootAppeared { .. });
    }
}

// 33
#[test]
fn the_second_save_of_an_editor_is_not_missed() {
    let top = tempdir().unwrap();
    let file = top.path().join("notes");
    fs::write(&file, b"0").unwrap();
    let hub = hub();
    let (mut reader, _) = Reader::synced(&hub, Spec::new(&file));
    for save in 1..=3 {
        // As vim does: the old file becomes a backup, a new one is written, the backup is removed.
        let backup = top.path().join("notes~");
        fs::rename(&file, &backup).unwrap();
        fs::write(&file, format!("{save}")).unwrap();
        fs::remove_file(&backup).unwrap();
        both(&mut reader, Kinds::WRITE_ENDED);
    }
    for _ in 0..2 {
        assert!(
            Command::new("sed")
                .arg("-i")
                .arg("s/3/4/")
                .arg(&file)
                .status()
                .unwrap()
                .success()
        );
        both(&mut reader, Kinds::MOVED_HERE);
    }
    fs::write(top.path().join("neighbour"), b"").unwrap();
    fs::write(&file, b"5").unwrap();
    let told = reader.until_change("", Kinds::WRITE_ENDED);
    assert!(
        told.iter()
            .all(|told| !matches!(told, Told::Changed(change) if !change.path.is_empty())),
        "{told:?}"
    );
}

// 33
#[test]
fn a_link_swapped_two_levels_up_is_not_missed() {
    let top = tempdir().unwrap();
    let swap = |version: u32| {
        let dir = top.path().join(format!("..{version}"));
        fs::create_dir(&dir).unwrap();
        fs::create_dir(dir.join("sub")).unwrap();
        fs::write(dir.join("config"), format!("{version}")).unwrap();
        symlink(format!("..{version}"), top.path().join("..data_tmp")).unwrap();
        fs::rename(top.path().join("..data_tmp"), top.path().join("..data")).unwrap();
    };
    swap(0);
    symlink("..data/config", top.path().join("config")).unwrap();
    symlink("..data/sub", top.path().join("sub")).unwrap();
    let hub = hub();
    let (mut file, _) = Reader::synced(&hub, Spec::new(top.path().join("config")));
    let (mut dir, _) = Reader::synced(&hub, recursive(&top.path().join("sub")));
    for version in 1..=2 {
        swap(version);
        for reader in [&mut file, &mut dir] {
            let told = appeared(reader);
            assert!(
                told.contains(&Told::RootGone {
                    reason: GoneReason::Replaced
                }),
                "{told:?}"
            );
            reader.until(|told| matches!(told, Told::Synced(_)));
        }
        fs::remove_dir_all(top.path().join(format!("..{}", version - 1))).unwrap();
        fs::write(top.path().join("config"), b"more").unwrap();
        file.until_change("", Kinds::WRITE_ENDED);
        fs::write(top.path().join("sub/x"), b"more").unwrap();
        dir.until_change("x", Kinds::WRITE_ENDED);
    }
}

// 33
#[test]
fn a_path_that_does_not_exist_yet_is_awaited() {
    let top = tempdir().unwrap();
    let root = top.path().join("one/two/three");
    let hub = hub();
    let (mut dir, synced) = Reader::synced(&hub, recursive(&root));
    let (mut file, _) = Reader::synced(&hub, Spec::new(root.join("file")));
    assert_eq!(synced.directories, 0);
    fs::create_dir_all(root.join("four")).unwrap();
    fs::write(root.join("four/inner"), b"x").unwrap();
    fs::write(root.join("file"), b"x").unwrap();
    let told = appeared(&mut dir);
    assert!(matches!(
        told.last(),
        Some(Told::RootAppeared { is_dir: true })
    ));
    dir.until_change("four/inner", Kinds::CREATED);
    let told = appeared(&mut file);
    assert!(matches!(
        told.last(),
        Some(Told::RootAppeared { is_dir: false })
    ));

    fs::remove_dir_all(top.path().join("one")).unwrap();
    dir.until(|told| {
        *told
            == Told::RootGone {
                reason: GoneReason::Missing,
            }
    });
    file.until(|told| {
        *told
            == Told::RootGone {
                reason: GoneReason::Missing,
            }
    });
    fs::create_dir_all(&root).unwrap();
    appeared(&mut dir);
    fs::write(root.join("again"), b"x").unwrap();
    dir.until_change("again", Kinds::CREATED);
}

// 34
#[test]
fn overlapping_watches_do_not_remove_each_other() {
    let top = tempdir().unwrap();
    let sub = top.path().join("sub");
    fs::create_dir(&sub).unwrap();
    fs::write(sub.join("file"), b"x").unwrap();
    let hub = hub();
    let (mut whole, _) = Reader::synced(&hub, recursive(top.path()));
    let before = hub.status().watches;
    let reads = Spec {
        kinds: Kinds::ACCESSED,
        ..Spec::new(&sub)
    };
    let (mut part, _) = Reader::synced(&hub, reads);
    assert_eq!(hub.status().watches, before, "an inode has one watch");
    fs::read(sub.join("file")).unwrap();
    part.until_change("file", Kinds::ACCESSED);
    drop(part);
    fs::write(sub.join("file"), b"xx").unwrap();
    let told = whole.until_change("sub/file", Kinds::WRITE_ENDED);
    assert!(
        !told
            .iter()
            .any(|told| is_change(told, "sub/file", Kinds::ACCESSED)),
        "{told:?}"
    );

    // The other way round: the part outlives the whole, and a later one starts anew.
    let (mut part, _) = Reader::synced(&hub, Spec::new(&sub));
    drop(whole);
    fs::write(sub.join("file"), b"x").unwrap();
    part.until_change("file", Kinds::WRITE_ENDED);
    let (mut whole, _) = Reader::synced(&hub, recursive(top.path()));
    fs::write(sub.join("other"), b"x").unwrap();
    whole.until_change("sub/other", Kinds::WRITE_ENDED);
    part.until_change("other", Kinds::WRITE_ENDED);
}

// 38
#[test]
fn a_half_written_file_is_not_told_as_written() {
    let top = tempdir().unwrap();
    let hub = hub();
    let spec = Spec {
        kinds: Kinds::WRITE_ENDED,
        ..Spec::new(top.path())
    };
    let (mut reader, _) = Reader::synced(&hub, spec);
    let mut half = File::create(top.path().join("half")).unwrap();
    half.write_all(b"one half").unwrap();
    fs::write(top.path().join("whole"), b"x").unwrap();
    assert!(is_change(&reader.next(), "whole", Kinds::WRITE_ENDED));
    half.write_all(b", the other").unwrap();
    drop(half);
    assert!(is_change(&reader.next(), "half", Kinds::WRITE_ENDED));
}
