//! What cannot be seen from outside.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Instant;

use rustix::io::Errno;
use tempfile::TempDir;

use super::name::open_regular;
use super::{Change, Doing, Error, Follower, GaveUp, Next, Spec, Told};

fn file(text: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    fs::write(&path, text).unwrap();
    (directory, path)
}

#[test]
fn a_file_system_that_knows_no_handles_is_left_with_number_and_birth() {
    let (_directory, path) = file("1");
    let first = open_regular(&path).unwrap().unwrap().identity;
    fs::remove_file(&path).unwrap();
    fs::write(&path, "1").unwrap();
    let second = open_regular(&path).unwrap().unwrap().identity;
    assert!(!first.is_same_file(&second));
    assert!(
        !first
            .without_handle()
            .is_same_file(&second.without_handle())
    );
    assert!(first.is_same_file(&first.without_handle()));
}

/// Follows a file whose descriptor cannot be read, which stands for a medium that fails.
fn failing(path: &PathBuf, now: Instant) -> (Follower, Told) {
    let mut follower = Follower::open(Spec::new(path, true), now).unwrap();
    let unreadable = File::options().write(true).open(path).unwrap();
    follower.generations[0].file = unreadable.into();
    let error = Error::Io {
        doing: Doing::Read,
        path: path.clone(),
        errno: Errno::BADF,
    };
    (follower, Told::Failed(error))
}

#[test]
fn a_read_that_fails_is_told_once_and_tried_again() {
    let (_directory, path) = file("data");
    let now = Instant::now();
    let (mut follower, failed) = failing(&path, now);
    let step = follower.step(now, 100);
    assert_eq!(step.told[1..], [failed]);
    assert_eq!(
        step.next,
        Next::Wake {
            after: follower.spec.check_every
        }
    );
    assert!(follower.step(now, 100).told.is_empty());
    follower.generations[0].file = File::open(&path).unwrap().into();
    let data = Told::Data {
        generation: 1,
        offset: 0,
        bytes: "data".into(),
    };
    assert_eq!(follower.step(now, 100).told, [data]);
}

#[test]
fn an_old_file_that_cannot_be_read_does_not_hold_up_the_new_one_for_ever() {
    let (_directory, path) = file("data");
    let now = Instant::now();
    let (mut follower, failed) = failing(&path, now);
    assert_eq!(follower.step(now, 100).told[1..], [failed]);
    fs::rename(&path, path.with_extension("1")).unwrap();
    fs::write(&path, "new").unwrap();
    let rotated = Told::Changed {
        generation: 2,
        change: Change::Rotated,
    };
    assert_eq!(follower.step(now, 100).told, [rotated]);
    let change = Change::GaveUp {
        unread_at_least: 4,
        reason: GaveUp::ReadFailed(Errno::BADF),
    };
    let data = Told::Data {
        generation: 2,
        offset: 0,
        bytes: "new".into(),
    };
    let later = now + follower.spec.rotated_wait;
    assert_eq!(
        follower.step(later, 100).told,
        [
            Told::Changed {
                generation: 1,
                change
            },
            data
        ]
    );
}

#[test]
fn a_writer_that_comes_while_writers_are_looked_for_does_not_end_the_process() {
    let (_directory, path) = file("");
    let file = File::open(&path).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for _ in 0..20_000 {
                File::options().append(true).open(&path).unwrap();
            }
        });
        while !writer.is_finished() {
            crate::sys::file::writers(&file);
        }
    });
}
