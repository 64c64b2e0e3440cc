//! Item 41, what the writer still puts into the old file, and the order of the generations.

use std::fs;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::{Next, Rig, Spec, show, write};

#[test]
fn what_the_writer_still_puts_into_the_old_file_is_not_dropped() {
    let mut rig = Rig::new(Some("old 1 "));
    let old = rig.writer();
    rig.told();
    rig.rename_to("log.1");
    let new = rig.writer();
    write(&new, "new 1 ");
    // The new file waits for the old one.
    assert_eq!(rig.shown(), ["2 rotated"]);
    write(&old, "old 2 ");
    rig.pass(rig.spec.check_every);
    assert_eq!(rig.shown(), ["1@6 old 2 "]);
    write(&old, "old 3 ");
    write(&new, "new 2 ");
    drop(old);
    rig.pass(rig.spec.check_every);
    assert_eq!(rig.shown(), ["1@12 old 3 ", "2@18 new 1 new 2 "]);
    assert_eq!(rig.status().open, 1);
}

#[test]
fn what_a_writer_puts_into_the_old_file_right_before_it_closes_it_is_not_dropped() {
    for _ in 0..2000 {
        let mut rig = Rig::new(Some("old "));
        let old = rig.writer();
        rig.told();
        rig.rename_to("log.1");
        let mut told = Vec::new();
        std::thread::scope(|scope| {
            let last_words = scope.spawn(move || write(&old, "last words"));
            while !last_words.is_finished() || rig.status().open > 0 {
                told.extend(rig.told());
                rig.pass(rig.spec.check_every);
            }
        });
        assert_eq!(show(&told), ["1 removed", "1@4 last words"]);
    }
}

#[test]
fn an_idle_writer_of_the_old_file_does_not_hold_up_the_new_one_for_ever() {
    let mut rig = Rig::new(Some("old 1 "));
    let old = rig.writer();
    rig.told();
    rig.rename_to("log.1");
    let new = rig.writer();
    write(&new, "new 1 ");
    assert_eq!(rig.shown(), ["2 rotated"]);
    rig.pass(rig.spec.rotated_wait);
    assert_eq!(rig.shown(), ["2@6 new 1 "]);
    // Late bytes are still told, once.
    write(&old, "old 2 ");
    write(&new, "new 2 ");
    rig.pass(rig.spec.check_every);
    assert_eq!(rig.shown(), ["1@12 old 2 ", "2@18 new 2 "]);
    assert_eq!(rig.status().open, 2);
    drop(old);
    rig.pass(rig.spec.check_every);
    assert!(rig.shown().is_empty());
    assert_eq!(rig.status().open, 1);
}

#[test]
fn a_busy_writer_of_the_old_file_does_not_hold_up_the_new_one_for_ever() {
    let mut rig = Rig::new(Some(""));
    let old = rig.writer();
    rig.told();
    rig.rename_to("log.1");
    write(&rig.writer(), "nnnnnnnnnn");
    rig.paused();
    rig.pass(rig.spec.rotated_wait);
    let mut told = Vec::new();
    for _ in 0..6 {
        // More than a step can read, each time.
        write(&old, "oooo");
        let step = rig.step(4);
        assert_eq!(step.next, Next::More);
        told.extend(step.told);
    }
    let told = show(&told);
    // First the four bytes that were there when the time was over, then half of each step.
    assert_eq!(told[0], "1@0 oooooo");
    let [new, old]: [Vec<_>; 2] = [1, 2].map(|from| told.iter().skip(from).step_by(2).collect());
    assert_eq!(new, ["2@6 nn", "2@10 nn", "2@14 nn", "2@18 nn", "2@22 nn"]);
    assert_eq!(old, ["1@8 oo", "1@12 oo", "1@16 oo", "1@20 oo"]);
}

#[test]
fn a_name_that_is_removed_leaves_the_file_to_be_read() {
    let mut rig = Rig::new(Some("1 "));
    let log = rig.writer();
    assert_eq!(rig.shown(), ["1 appeared", "1@0 1 "]);
    write(&log, "2 ");
    fs::remove_file(&rig.path).unwrap();
    assert_eq!(rig.shown(), ["1 removed", "1@2 2 "]);
    write(&log, "3 ");
    drop(log);
    rig.pass(rig.spec.check_every);
    assert_eq!(rig.shown(), ["1@4 3 "]);
    assert_eq!(rig.status().open, 0);
    fs::write(&rig.path, "4 ").unwrap();
    assert_eq!(rig.shown(), ["2 appeared", "2@6 4 "]);
}

#[test]
fn a_file_whose_writers_are_unknown_is_closed_after_a_time_and_that_is_told() {
    // Of this thread only.
    let mut sets = capabilities(None).unwrap();
    let mut rig = Rig::new(Some("old 1 "));
    if rustix::fs::chown(&rig.path, Some(rustix::fs::Uid::from_raw(1)), None).is_err() {
        eprintln!("SKIPPED: needs CAP_CHOWN, for a file of another user");
        return;
    }
    sets.effective.remove(CapabilitySet::LEASE);
    set_capabilities(None, sets).unwrap();
    let old = rig.writer();
    rig.told();
    rig.rename_to("log.1");
    write(&rig.writer(), "new ");
    assert_eq!(rig.shown(), ["2 rotated"]);
    rig.pass(rig.spec.rotated_wait / 2);
    write(&old, "old 2 ");
    assert_eq!(rig.shown(), ["1@6 old 2 "]);
    rig.pass(rig.spec.rotated_wait);
    assert_eq!(rig.shown(), ["1 gave up 0 WritersUnknown", "2@12 new "]);
}

#[test]
fn a_reader_of_the_old_file_is_not_taken_for_a_writer() {
    let mut rig = Rig::with(Some("old "), |spec: &mut Spec| spec.rotated_wait *= 10);
    rig.rename_to("log.1");
    let _reader = fs::File::open(rig.other("log.1")).unwrap();
    fs::write(&rig.path, "new ").unwrap();
    assert_eq!(
        rig.shown(),
        ["1 appeared", "2 rotated", "1@0 old ", "2@4 new "]
    );
}
