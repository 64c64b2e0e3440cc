//! Item 40: rotated while slow or paused.

use std::fs;
use std::time::Duration;

use super::{Next, Rig, Spec, show, write};

#[test]
fn five_rotations_in_a_pause_lose_nothing() {
    let mut rig = Rig::new(Some("file 1 "));
    assert_eq!(rig.paused(), ["1 appeared"]);
    for number in 2..=6 {
        rig.rename_to(&format!("log.{number}"));
        fs::write(&rig.path, format!("file {number} ")).unwrap();
        assert_eq!(rig.paused(), [format!("{number} rotated")]);
    }
    assert_eq!(rig.status().open, 6);
    assert_eq!(rig.status().unread_bytes, 42);
    assert_eq!(
        rig.shown(),
        [
            "1@0 file 1 ",
            "2@7 file 2 ",
            "3@14 file 3 ",
            "4@21 file 4 ",
            "5@28 file 5 ",
            "6@35 file 6 "
        ]
    );
    assert_eq!(rig.status().open, 1);
}

#[test]
fn rotations_in_a_pause_and_a_restart_lose_nothing() {
    let mut rig = Rig::new(Some("file 1 "));
    for number in 2..=4 {
        rig.paused();
        rig.rename_to(&format!("log.{number}"));
        fs::write(&rig.path, format!("file {number} ")).unwrap();
    }
    rig.paused();
    rig.restart(|_| ());
    assert_eq!(
        rig.shown(),
        ["1@0 file 1 ", "2@7 file 2 ", "3@14 file 3 ", "4@21 file 4 "]
    );
}

#[test]
fn what_a_slow_reader_cannot_keep_is_told_and_counted() {
    let keep = |spec: &mut Spec| spec.keep_generations = 2;
    let mut rig = Rig::with(Some("file 1 "), keep);
    rig.paused();
    for number in 2..=4 {
        rig.rename_to(&format!("log.{number}"));
        fs::write(&rig.path, format!("file {number} ")).unwrap();
        let told = rig.paused();
        assert_eq!(told[0], format!("{number} rotated"));
        let given_up: &[&str] = if number == 4 {
            &["1 gave up 7 TooMany"]
        } else {
            &[]
        };
        assert_eq!(told[1..], *given_up);
    }
    assert_eq!((rig.status().given_up, rig.status().given_up_bytes), (1, 7));
    assert_eq!(rig.shown(), ["2@0 file 2 ", "3@7 file 3 ", "4@14 file 4 "]);
}

#[test]
fn the_disk_space_of_deleted_files_is_shown_and_bounded() {
    let keep = |spec: &mut Spec| spec.keep_bytes = 64 << 10;
    let kibibytes_48 = "0123456789abcdef".repeat(3 << 10);
    let mut rig = Rig::with(Some(&kibibytes_48), keep);
    rig.paused();
    fs::remove_file(&rig.path).unwrap();
    assert_eq!(rig.paused(), ["1 removed"]);
    assert_eq!(rig.status().deleted_bytes, 48 << 10);
    fs::write(&rig.path, &kibibytes_48).unwrap();
    assert_eq!(rig.paused(), ["2 appeared"]);
    fs::remove_file(&rig.path).unwrap();
    assert_eq!(rig.paused(), ["2 removed", "1 gave up 49152 TooManyBytes"]);
    assert_eq!(rig.status().deleted_bytes, 48 << 10);
    assert_eq!(rig.shown(), [format!("2@0 {kibibytes_48}")]);
    assert_eq!(rig.status().deleted_bytes, 0);
}

#[test]
fn a_pause_does_not_spin_and_reads_nothing() {
    let mut rig = Rig::new(Some("unread"));
    let step = rig.step(0);
    assert_eq!(show(&step.told), ["1 appeared"]);
    assert_eq!(
        step.next,
        Next::Wake {
            after: rig.spec.check_every
        }
    );
    rig.rename_to("log.1");
    assert_eq!(
        rig.step(0).next,
        Next::Wake {
            after: rig.spec.check_every
        }
    );
}

#[test]
fn an_idle_file_does_not_spin() {
    let mut rig = Rig::new(Some("read "));
    rig.told();
    let every = rig.spec.check_every;
    assert_eq!(rig.step(1).next, Next::Wake { after: every });
    // Neither does one whose writer keeps it open for ever: each look is later than the last.
    let log = rig.writer();
    rig.rename_to("log.1");
    let mut waits = Vec::new();
    for _ in 0..12 {
        match rig.step(1).next {
            Next::Wake { after } => {
                waits.push(after);
                rig.pass(after);
            }
            next => panic!("{next:?}"),
        }
    }
    assert!(waits.is_sorted());
    assert_eq!((waits[0], waits[11]), (Duration::from_millis(10), every));
    write(&log, "late");
    rig.pass(every);
    assert_eq!(rig.shown(), ["1@5 late"]);
}

#[test]
fn a_step_gives_no_more_than_its_budget() {
    let mut rig = Rig::new(Some("0123456789"));
    assert_eq!(show(&rig.step(3).told), ["1 appeared", "1@0 012"]);
    assert_eq!(show(&rig.step(3).told), ["1@3 345"]);
    assert_eq!(show(&rig.step(100).told), ["1@6 6789"]);
}
