//! Item 42: files that are cut.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use super::{Next, Rig, show, write};

#[test]
fn a_file_that_was_cut_is_read_from_its_start() {
    let mut rig = Rig::new(Some("0123456789"));
    let log = rig.writer();
    rig.told();
    write(&log, "unread");
    rig.paused();
    log.set_len(0).unwrap();
    assert_eq!(rig.shown(), ["1 truncated@10-6"]);
    write(&log, "new");
    assert_eq!(rig.shown(), ["1@10 new"]);
}

#[test]
fn a_file_that_was_cut_and_has_grown_beyond_the_offset_is_not_read_from_the_middle() {
    for new in [
        "9876543210",
        "9876543210 and more",
        &"another line\n".repeat(100),
    ] {
        let mut rig = Rig::new(Some("0123456789"));
        let log = rig.writer();
        rig.told();
        log.set_len(0).unwrap();
        write(&log, new);
        assert_eq!(
            rig.shown(),
            ["1 truncated@10-0".to_owned(), format!("1@10 {new}")]
        );
    }
}

#[test]
fn a_cut_is_noticed_during_a_pause_and_across_a_restart() {
    let mut rig = Rig::new(Some("0123456789"));
    let log = rig.writer();
    rig.told();
    log.set_len(0).unwrap();
    write(&log, "paused, and longer than before");
    assert_eq!(rig.paused(), ["1 truncated@10-0"]);
    assert_eq!(rig.shown(), ["1@10 paused, and longer than before"]);
    rig.restart(|path| {
        log.set_len(0).unwrap();
        write(&log, "down, and even longer than it was before");
        assert_eq!(fs::metadata(path).unwrap().len(), 40);
    });
    assert_eq!(
        rig.shown(),
        [
            "1 truncated@40-0",
            "1@40 down, and even longer than it was before"
        ]
    );
}

#[test]
fn two_cuts_in_a_pause_are_both_told_with_what_they_lost() {
    let mut rig = Rig::new(Some("read"));
    let log = rig.writer();
    rig.told();
    for lost in ["unread 1", "unread number 2"] {
        write(&log, lost);
        rig.paused();
        log.set_len(0).unwrap();
        assert_eq!(rig.paused(), [format!("1 truncated@4-{}", lost.len())]);
    }
    write(&log, "end");
    assert_eq!(rig.shown(), ["1@4 end"]);
}

#[test]
fn a_cut_behind_the_offset_repeats_nothing() {
    let mut rig = Rig::new(Some("0123456789"));
    assert_eq!(show(&rig.step(4).told), ["1 appeared", "1@0 0123"]);
    rig.writer().set_len(6).unwrap();
    assert_eq!(rig.shown(), ["1 truncated@4-4", "1@4 45"]);
}

#[test]
fn nuls_that_a_writer_without_append_leaves_after_a_cut_are_skipped_and_told() {
    let first = "0123456789abcdef".repeat(1000);
    let mut rig = Rig::new(Some(""));
    // Without O_APPEND: it goes on at its own offset.
    let log = OpenOptions::new().write(true).open(&rig.path).unwrap();
    write(&log, &first);
    rig.told();
    log.set_len(0).unwrap();
    write(&log, "after the cut ");
    assert_eq!(
        rig.shown(),
        [
            "1 truncated@16000-0",
            "1 hole@16000+16000",
            "1@32000 after the cut "
        ]
    );
    write(&log, "and on");
    assert_eq!(rig.shown(), ["1@32014 and on"]);
}

#[test]
fn space_that_a_writer_has_reserved_is_not_skipped() {
    let mut rig = Rig::new(Some("first "));
    let log = OpenOptions::new().write(true).open(&rig.path).unwrap();
    log.set_len(1 << 20).unwrap();
    // The NULs up to the end of the block are data.
    let told = rig.told();
    assert_eq!(show(&told)[0], "1 appeared");
    let read = 4096;
    let step = rig.step(4096);
    assert!(step.told.is_empty());
    assert_eq!(
        step.next,
        Next::Wake {
            after: rig.spec.check_every
        }
    );
    log.write_all_at(b"second", read).unwrap();
    let told = show(&rig.step(6).told);
    assert_eq!(told, ["1@4096 second"]);
}

#[test]
fn nuls_that_were_written_are_data() {
    let mut rig = Rig::new(Some("a\0\0b"));
    assert_eq!(rig.shown(), ["1 appeared", "1@0 a\0\0b"]);
    write(&rig.writer(), "\0\0c");
    assert_eq!(rig.shown(), ["1@4 \0\0c"]);
}

#[test]
fn a_cut_of_a_file_of_which_nothing_is_read_yet_is_noticed() {
    let mut rig = Rig::new(Some("0123456789"));
    assert_eq!(rig.paused(), ["1 appeared"]);
    let log = rig.writer();
    log.set_len(0).unwrap();
    write(&log, "longer than before");
    assert_eq!(rig.shown(), ["1 truncated@0-10", "1@0 longer than before"]);
}

#[test]
fn reserved_space_that_is_written_to_during_a_pause_is_not_taken_for_a_cut() {
    let mut rig = Rig::new(Some("read "));
    let log = OpenOptions::new().write(true).open(&rig.path).unwrap();
    assert_eq!(show(&rig.step(5).told), ["1 appeared", "1@0 read "]);
    log.set_len(64).unwrap();
    assert!(rig.paused().is_empty());
    log.write_all_at(b"written", 5).unwrap();
    assert!(rig.paused().is_empty());
    assert_eq!(show(&rig.step(7).told), ["1@5 written"]);
}
