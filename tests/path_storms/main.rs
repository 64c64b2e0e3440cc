//! Storms of changes: what is told leads to what is on disk.

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

#[path = "../paths/model.rs"]
mod model;
#[path = "../paths/support.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use evloopd::paths::{Hub, InboxLimits, Spec};
use support::{Dice, Picture, Reader, exchange, hub, recursive};
use tempfile::{TempDir, tempdir};

const DIRECTORIES: usize = 2_000;

fn tree() -> (TempDir, Vec<PathBuf>) {
    let top = tempdir().unwrap();
    let directories: Vec<_> = (0..DIRECTORIES)
        .map(|dir| top.path().join(format!("{}/{}/{dir}", dir % 20, dir % 400)))
        .collect();
    for (at, dir) in directories.iter().enumerate() {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("file"), format!("{at}")).unwrap();
    }
    (top, directories)
}

/// What a `git checkout` between distant commits does, and some more. Failures are part of it: what an
/// earlier step has removed.
fn storm(directories: &[PathBuf], out: &Path, seed: u64, steps: usize) {
    let mut dice = Dice(seed);
    let any = |dice: &mut Dice| &directories[dice.roll(directories.len())];
    for step in 0..steps {
        let dir = any(&mut dice);
        match dice.roll(14) {
            0..=2 => drop(fs::write(dir.join(format!("f{}", dice.roll(4))), b"x")),
            3..=4 => drop(fs::remove_file(dir.join(format!("f{}", dice.roll(4))))),
            5 => {
                let temporary = dir.join("file.lock");
                drop(
                    fs::write(&temporary, b"x")
                        .and_then(|()| fs::rename(&temporary, dir.join("file"))),
                );
            }
            6 => drop(fs::remove_dir_all(dir)),
            7 => drop(
                fs::create_dir_all(dir.join("new/deep"))
                    .and_then(|()| fs::write(dir.join("new/deep/x"), b"x")),
            ),
            8 => drop(fs::rename(
                dir,
                any(&mut dice).join(format!("moved{}", dice.roll(2))),
            )),
            9 => drop(fs::rename(dir.join("f0"), any(&mut dice).join("f1"))),
            10 => {
                let outside = out.join(format!("{seed}-{step}"));
                drop(fs::rename(dir, &outside));
                if dice.roll(2) == 0 {
                    drop(fs::write(outside.join("while-out"), b"x"));
                    drop(fs::rename(&outside, any(&mut dice)));
                }
            }
            11 => drop(exchange(dir, any(&mut dice))),
            12 => drop(exchange(&dir.join("file"), &any(&mut dice).join("f1"))),
            _ => {
                // A whole level is swapped, and its name is used again.
                let parent = dir.parent().unwrap();
                let aside = parent.with_extension("aside");
                if fs::rename(parent, &aside).is_ok() {
                    drop(fs::create_dir_all(dir).and_then(|()| fs::write(dir.join("f2"), b"x")));
                    drop(fs::rename(&aside, any(&mut dice).join("aside")));
                }
            }
        }
    }
}

fn rides_out(hub: &Hub, edit: impl FnOnce(&mut Spec), steps: usize) -> Picture {
    let (top, directories) = tree();
    let out = tempfile::tempdir_in(top.path().parent().unwrap()).unwrap();
    let mut spec = recursive(top.path());
    edit(&mut spec);
    let mut reader = Reader::new(hub, spec);
    let mut picture = Picture::new(top.path());
    thread::scope(|scope| {
        let storms: Vec<_> = (1..=2)
            .map(|seed| {
                let (directories, out) = (&directories, out.path());
                scope.spawn(move || storm(directories, out, seed * 7_919, steps))
            })
            .collect();
        while storms.iter().any(|storm| !storm.is_finished()) {
            let soon = Instant::now() + Duration::from_millis(1);
            while let Some(told) = reader.next_before(soon) {
                picture.apply(&told);
            }
        }
    });
    picture.settle(&mut reader);
    eprintln!(
        "known {}, rescans {}, synced {}",
        picture.known.len(),
        picture.rescans,
        picture.synced
    );
    picture
}

#[test]
fn a_storm_leads_to_what_is_on_disk() {
    for _ in 0..3 {
        rides_out(&hub(), |_| (), 4_000);
    }
}

#[test]
fn a_storm_with_a_window_leads_to_what_is_on_disk() {
    rides_out(
        &hub(),
        |spec| spec.window = Duration::from_millis(20),
        4_000,
    );
}

#[test]
fn a_storm_with_the_smallest_inbox_leads_to_what_is_on_disk() {
    let smallest = InboxLimits {
        entries: 1,
        bytes: 1,
    };
    let picture = rides_out(&hub(), |spec| spec.inbox = smallest, 1_000);
    assert!(picture.rescans > 0);
    let small = InboxLimits {
        entries: 64,
        bytes: 1 << 20,
    };
    rides_out(&hub(), |spec| spec.inbox = small, 1_000);
}

/// Whoever holds it starts inotify instances with a queue of the size that it wants.
static QUEUE_SIZE: Mutex<()> = Mutex::new(());

/// Sets `fs.inotify.max_queued_events` until it is dropped; an instance keeps the value of its start.
struct Queue(String);

const QUEUE: &str = "/proc/sys/fs/inotify/max_queued_events";

impl Drop for Queue {
    fn drop(&mut self) {
        fs::write(QUEUE, &self.0).unwrap();
    }
}

#[test]
fn a_storm_with_the_smallest_kernel_queue_leads_to_what_is_on_disk() {
    for size in ["1", "16"] {
        let alone = QUEUE_SIZE.lock().unwrap();
        let queue = Queue(fs::read_to_string(QUEUE).unwrap());
        if let Err(error) = fs::write(QUEUE, size) {
            eprintln!("SKIPPED: {QUEUE} cannot be written: {error}");
            return;
        }
        let hub = hub();
        let first = Reader::try_new(&hub, Spec::new("/"));
        drop((queue, alone));
        first.expect("watch");
        let picture = rides_out(&hub, |_| (), 1_000);
        assert!(hub.status().overflows > 0 && picture.rescans > 0);
    }
}

#[test]
fn nothing_is_missed_during_a_scan_of_20000_directories() {
    let top = tempdir().unwrap();
    for dir in 0..20_000 {
        fs::create_dir_all(top.path().join(format!("{}/{dir}", dir % 100))).unwrap();
    }
    let hub = hub();
    let alone = QUEUE_SIZE.lock().unwrap();
    let mut reader = Reader::new(&hub, recursive(top.path()));
    drop(alone);
    let mut picture = Picture::new(top.path());
    let mut dice = Dice(7);
    // Writes as long as the scan takes, and some after.
    let mut left = 500;
    while left > 0 {
        let dir = dice.roll(20_000);
        let dir = top.path().join(format!("{}/{dir}", dir % 100));
        match dice.roll(3) {
            0 => drop(fs::create_dir_all(dir.join("new/deep"))),
            1 => drop(fs::remove_dir_all(&dir)),
            _ => drop(fs::write(dir.join("file"), b"x")),
        }
        // A reader that is too slow is told to look itself.
        while let Some(told) = reader.next_before(Instant::now()) {
            picture.apply(&told);
        }
        if reader.subscription.status().synced.is_some() {
            left -= 1;
        }
    }
    picture.settle(&mut reader);
    // A directory that is removed and made again meanwhile may have to be looked at.
    assert_eq!((hub.status().overflows, picture.whole), (0, 0));
}
