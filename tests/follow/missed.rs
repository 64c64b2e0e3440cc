//! Files that had the name between two looks.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use super::{Rig, append, write};
use evloopd::follow::Told;

/// Writes and renames as fast as it can, as `for i in 1 2 3; do echo $i >> log; mv log log.$i; done`
/// does, and then writes once more.
fn rotate_three_times(rig: &Rig) {
    for number in 1..=3 {
        write(&rig.writer(), &format!("line {number} "));
        rig.rename_to(&format!("log.{number}"));
    }
    write(&rig.writer(), "last");
}

/// Until a file that is born now is told apart from one that was born before.
fn pass_a_tick(mut meanwhile: impl FnMut()) {
    let begin = SystemTime::now();
    while begin.elapsed().unwrap() < Duration::from_millis(40) {
        meanwhile();
    }
}

fn be_idle(rig: &mut Rig) {
    pass_a_tick(|| assert!(rig.shown().is_empty()));
}

#[test]
fn files_that_lost_the_name_before_it_was_ever_seen_are_told() {
    let mut rig = Rig::new(None);
    rotate_three_times(&rig);
    assert_eq!(
        rig.shown(),
        [
            "1 appeared",
            "2 rotated",
            "3 rotated",
            "4 rotated",
            "1@0 line 1 ",
            "2@7 line 2 ",
            "3@14 line 3 ",
            "4@21 last"
        ]
    );
    assert_eq!(rig.status().open, 1);
}

#[test]
fn files_that_lost_the_name_between_two_looks_are_told() {
    let mut rig = Rig::new(Some("old "));
    assert_eq!(rig.shown(), ["1 appeared", "1@0 old "]);
    rotate_three_times(&rig);
    assert_eq!(
        rig.shown(),
        [
            "2 rotated",
            "3 rotated",
            "4 rotated",
            "1@4 line 1 ",
            "2@11 line 2 ",
            "3@18 line 3 ",
            "4@25 last"
        ]
    );
}

#[test]
fn files_that_lost_the_name_in_a_pause_are_told() {
    for first in [None, Some("")] {
        let mut rig = Rig::new(first);
        rig.paused();
        rotate_three_times(&rig);
        let told = rig.paused();
        assert_eq!(
            told.last().unwrap(),
            &format!("{} rotated", told.len() + usize::from(first.is_some()))
        );
        assert_eq!(rig.status().unread_bytes, 25);
        let shown = rig.shown().join(",");
        let texts: Vec<_> = shown
            .split(',')
            .map(|text| &text[text.find(' ').unwrap() + 1..])
            .collect();
        assert_eq!(texts, ["line 1 ", "line 2 ", "line 3 ", "last"]);
    }
}

#[test]
fn files_that_lost_the_name_before_it_was_removed_are_told() {
    let mut rig = Rig::new(Some("1 "));
    rig.told();
    rig.rename_to("log.1");
    fs::write(&rig.path, "2 ").unwrap();
    rig.rename_to("log.2");
    assert_eq!(rig.shown(), ["2 rotated", "2 removed", "2@2 2 "]);
    assert!(rig.shown().is_empty());
    // Those that come and go while the name leads to nothing are told when it leads to a file again.
    fs::write(&rig.path, "3 ").unwrap();
    rig.rename_to("log.3");
    assert!(rig.shown().is_empty());
    fs::write(&rig.path, "4 ").unwrap();
    assert_eq!(rig.shown(), ["3 appeared", "4 rotated", "3@4 3 ", "4@6 4 "]);
}

#[test]
fn files_that_come_and_go_are_told_at_once_after_a_path_event() {
    let mut rig = Rig::new(None);
    assert!(rig.shown().is_empty());
    for number in 1..=2 {
        fs::write(&rig.path, format!("{number} ")).unwrap();
        rig.rename_to(&format!("log.{number}"));
    }
    // Without an event of the name, another file of its directory is not taken for one that had it.
    assert!(rig.shown().is_empty());
    rig.follower().path_event();
    assert_eq!(
        rig.shown(),
        ["1 appeared", "2 rotated", "2 removed", "1@0 1 ", "2@2 2 "]
    );
    // They are told once.
    rig.follower().path_event();
    assert!(rig.shown().is_empty());
    fs::write(&rig.path, "3 ").unwrap();
    rig.follower().path_event();
    assert_eq!(rig.shown(), ["3 appeared", "3@4 3 "]);
    assert_eq!((rig.status().open, rig.status().rotated), (1, 0));
    let writer = rig.writer();
    rig.rename_to("log.3");
    assert_eq!(rig.shown(), ["3 removed"]);
    assert_eq!((rig.status().open, rig.status().rotated), (1, 1));
    drop(writer);
}

#[test]
fn files_that_lost_the_name_while_nobody_followed_it_are_told() {
    let mut rig = Rig::new(Some("1 "));
    assert_eq!(rig.shown(), ["1 appeared", "1@0 1 "]);
    rig.restart(|_| ());
    assert!(rig.shown().is_empty());
    let directory = rig.directory.path().to_path_buf();
    rig.restart(|path| {
        append(path);
        write(&append(path), "1b ");
        fs::rename(path, directory.join("log.1")).unwrap();
        fs::write(path, "2 ").unwrap();
        fs::rename(path, directory.join("log.2")).unwrap();
        fs::write(path, "3 ").unwrap();
    });
    assert_eq!(
        rig.shown(),
        ["2 rotated", "3 rotated", "1@2 1b ", "2@5 2 ", "3@7 3 "]
    );
    rig.restart(|_| ());
    assert!(rig.shown().is_empty());
}

#[test]
fn older_files_and_files_of_other_names_are_not_taken() {
    for first in [None, Some("1 ")] {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("log.8"), "older").unwrap();
        pass_a_tick(|| ());
        fs::write(
            directory.path().join("log.9"),
            "older, but born in the same tick",
        )
        .unwrap();
        fs::create_dir(directory.path().join("log.d")).unwrap();
        let mut rig = Rig::within(directory, first, |_| ());
        rig.told();
        fs::write(rig.other("other.log"), "younger").unwrap();
        fs::write(rig.other("log.1.gz"), "compressed").unwrap();
        symlink("other.log", rig.other("log.link")).unwrap();
        if first.is_some() {
            rig.rename_to("log.1");
        }
        fs::write(&rig.path, "2 ").unwrap();
        pass_a_tick(|| ());
        fs::write(
            rig.other("log.lock"),
            "younger than the file that has the name",
        )
        .unwrap();
        let expected: &[&str] = match first {
            None => &["1 appeared", "1@0 2 "],
            Some(_) => &["2 rotated", "2@2 2 "],
        };
        assert_eq!(rig.shown(), expected);
    }
}

#[test]
fn a_copy_that_was_made_while_the_name_was_watched_is_not_told_again() {
    let mut rig = Rig::new(Some("1 "));
    rig.told();
    // As copytruncate does.
    fs::copy(&rig.path, rig.other("log.1")).unwrap();
    be_idle(&mut rig);
    rig.rename_to("log.2");
    fs::write(&rig.path, "2 ").unwrap();
    assert_eq!(rig.shown(), ["2 rotated", "2@2 2 "]);
}

#[test]
fn a_file_that_was_read_and_forgotten_is_not_taken() {
    let mut rig = Rig::with(Some("0 "), |spec| spec.keep_generations = 1);
    rig.told();
    // All within a few ticks of the kernel.
    for number in 1..=30 {
        rig.rename_to(&format!("log.{number}"));
        fs::write(&rig.path, "n ").unwrap();
        let told = rig.shown();
        let rotated = format!("{} rotated", number + 1);
        assert_eq!(told, [rotated, format!("{}@{} n ", number + 1, 2 * number)]);
        if number % 10 == 0 {
            rig.restart(|_| ());
        }
    }
}

#[test]
fn a_file_that_is_moved_into_place_is_told_once() {
    let elsewhere = tempfile::tempdir().unwrap();
    let ready = elsewhere.path().join("ready");
    fs::write(&ready, "ready ").unwrap();
    let mut rig = Rig::new(Some("1 "));
    rig.told();
    be_idle(&mut rig);
    rig.rename_to("log.1");
    fs::rename(&ready, &rig.path).unwrap();
    assert_eq!(rig.shown(), ["2 rotated", "2@2 ready "]);
    fs::write(&ready, "again ").unwrap();
    be_idle(&mut rig);
    rig.rename_to("log.2");
    fs::write(&rig.path, "3 ").unwrap();
    rig.rename_to("log.3");
    fs::rename(&ready, &rig.path).unwrap();
    assert_eq!(
        rig.shown(),
        ["3 rotated", "4 rotated", "3@8 3 ", "4@10 again "]
    );
}

#[test]
fn files_that_lost_the_name_are_found_behind_a_symbolic_link() {
    let elsewhere = tempfile::tempdir().unwrap();
    let real = elsewhere.path().join("0.log");
    let directory = tempfile::tempdir().unwrap();
    symlink(&real, directory.path().join("log")).unwrap();
    let mut rig = Rig::within(directory, Some("1 "), |_| ());
    rig.told();
    for number in 1..=2 {
        fs::rename(&real, elsewhere.path().join(format!("0.log.{number}"))).unwrap();
        write(&append(&real), &format!("{} ", number + 1));
    }
    assert_eq!(rig.shown(), ["2 rotated", "3 rotated", "2@2 2 ", "3@4 3 "]);
    fs::rename(&real, elsewhere.path().join("0.log.3")).unwrap();
    fs::write(&real, "4 ").unwrap();
    fs::rename(&real, elsewhere.path().join("0.log.4")).unwrap();
    assert_eq!(rig.shown(), ["4 rotated", "4 removed", "4@6 4 "]);
}

#[test]
fn missed_files_that_cannot_be_kept_are_told_and_counted() {
    let mut rig = Rig::with(None, |spec| spec.keep_generations = 2);
    rotate_three_times(&rig);
    assert_eq!(
        rig.shown(),
        [
            "1 appeared",
            "2 rotated",
            "3 rotated",
            "1 gave up 7 TooMany",
            "4 rotated",
            "2@0 line 2 ",
            "3@7 line 3 ",
            "4@14 last"
        ]
    );
    assert_eq!((rig.status().given_up, rig.status().given_up_bytes), (1, 7));
}

#[test]
fn a_directory_that_is_too_large_to_look_through_is_told() {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..4095 {
        fs::write(directory.path().join(format!("other.{number}")), "").unwrap();
    }
    let mut rig = Rig::within(directory, Some("1 "), |_| ());
    rig.told();
    // Just small enough: all of 4,096 entries.
    fs::remove_file(&rig.path).unwrap();
    fs::write(&rig.path, "2 ").unwrap();
    assert_eq!(rig.shown(), ["2 rotated", "2@2 2 "]);
    rig.rename_to("log.2");
    fs::write(&rig.path, "3 ").unwrap();
    assert_eq!(rig.shown(), ["3 gave up 0 NotFound", "4 rotated", "4@4 3 "]);
    assert_eq!(rig.status().given_up, 1);
    // Nothing is looked for, and told, if the name is what it was.
    be_idle(&mut rig);
}

#[test]
fn rotations_in_the_middle_of_a_look_lose_and_repeat_nothing() {
    const ROTATIONS: usize = 3500;
    // As many as may be kept open may be made between two looks.
    const AHEAD: usize = 1000;
    let mut rig = Rig::with(None, |spec| spec.keep_generations = AHEAD + 1);
    let path = rig.path.clone();
    // The last number.
    let told = AtomicUsize::new(0);
    let mut texts = Vec::new();
    std::thread::scope(|scope| {
        let rotating = scope.spawn(|| {
            for number in 0..ROTATIONS {
                write(&append(&path), &format!("{number} "));
                while number > told.load(Ordering::Relaxed) + AHEAD {
                    std::thread::yield_now();
                }
                fs::rename(&path, path.with_extension(number.to_string())).unwrap();
            }
            write(&append(&path), "last ");
        });
        let mut is_over = false;
        while !is_over {
            is_over = rotating.is_finished();
            for one in rig.told() {
                if let Told::Data { bytes, .. } = one {
                    texts.push(String::from_utf8_lossy(&bytes).into_owned());
                }
            }
            let last = texts.last().and_then(|text| text.trim().parse().ok());
            told.store(last.unwrap_or(0), Ordering::Relaxed);
        }
    });
    assert_eq!(rig.status().given_up, 0);
    let numbers = (0..ROTATIONS).map(|number| format!("{number} "));
    let expected: Vec<_> = numbers.chain(["last ".into()]).collect();
    let wrong = (0..texts.len().min(expected.len())).find(|&at| texts[at] != expected[at]);
    assert_eq!(wrong.map(|at| &texts[at.saturating_sub(2)..][..3]), None);
    assert_eq!(texts.len(), expected.len());
}
