//! logrotate's three ways while writers write as fast as they can.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::Duration;

use super::{Next, Rig, SPAWNING, append, write};
use evloopd::follow::{Change, Told};

/// A writer's number, the record's number, and filling: 32 bytes.
const RECORD: usize = 32;
const ROTATIONS: usize = 20;
/// How many records are told between two rotations at least.
const BETWEEN: usize = 3000;
/// How many records a writer may be ahead of what is told, so that the disk does not fill.
const AHEAD: usize = 500_000;
/// More steps than any test needs.
const STEPS_MAX: usize = 10_000_000;

fn record(writer: usize, number: usize) -> String {
    format!("{writer:02} {number:012} ...............\n")
}

/// How a writer deals with a rotation.
#[derive(Clone, Copy)]
enum Habit {
    /// It keeps its file.
    Stay,
    /// It opens the new file after so many more records into the old one.
    Reopen { after: usize },
}

/// How far all are.
#[derive(Default)]
struct Progress {
    rotations: AtomicUsize,
    /// The highest number of a record that was told.
    told: AtomicUsize,
}

/// What came of each writer's records, in the order told.
#[derive(Default)]
struct Outcome {
    numbers: HashMap<usize, Vec<usize>>,
    written: Vec<usize>,
    /// For each cut: how many bytes are missing, and how many were told as lost.
    cuts: Vec<(usize, u64)>,
    /// How often the name got a file.
    named: usize,
    /// No record was told since the last cut.
    just_cut: bool,
    generations: u64,
}

/// Writes until all rotations are made and a little more; returns how many records.
fn run_writer(path: &Path, writer: usize, habit: Habit, progress: &Progress) -> usize {
    let mut file = append(path);
    let mut seen = 0;
    let mut old = 0;
    let mut number = 0;
    let mut more = 1000;
    while more > 0 {
        let made = progress.rotations.load(Ordering::Acquire);
        if made < ROTATIONS && number > progress.told.load(Ordering::Relaxed) + AHEAD {
            thread::yield_now();
            continue;
        }
        if let (Habit::Reopen { after }, true) = (habit, made > seen) {
            if old >= after {
                file = append(path);
                (seen, old) = (made, 0);
            }
            old += 1;
        }
        if made == ROTATIONS {
            more -= 1;
        }
        write(&file, &record(writer, number));
        number += 1;
    }
    number
}

/// Lets the writers end, also when the test fails.
struct EndWriters<'a>(&'a Progress);

impl Drop for EndWriters<'_> {
    fn drop(&mut self) {
        self.0.rotations.store(ROTATIONS, Ordering::Release);
    }
}

/// Runs the writers, rotates, and follows until all is told. Time passes only while there is nothing
/// to read, as fast as the follower asks for it.
fn run(rig: &mut Rig, habits: &[Habit], rotate: impl Fn(usize, &Path) + Send) -> Outcome {
    let path = rig.path.clone();
    let progress = Progress::default();
    let (go, went) = mpsc::channel();
    let (done, finished) = mpsc::channel();
    let mut outcome = Outcome::default();
    let mut pending = HashMap::new();
    thread::scope(|scope| {
        let writers: Vec<_> = habits
            .iter()
            .enumerate()
            .map(|(writer, &habit)| {
                let (path, progress) = (&path, &progress);
                scope.spawn(move || run_writer(path, writer, habit, progress))
            })
            .collect();
        let (path, progress) = (&path, &progress);
        scope.spawn(move || {
            while let Ok(number) = went.recv() {
                rotate(number, path);
                progress.rotations.fetch_add(1, Ordering::Release);
                done.send(()).unwrap();
            }
        });
        let end = EndWriters(progress);
        let moves = habits
            .iter()
            .any(|habit| matches!(habit, Habit::Reopen { .. }));
        let mut made = 0;
        let mut told = 0;
        let mut steps = 0;
        let mut rotating = false;
        loop {
            let all_written = writers.iter().all(thread::ScopedJoinHandle::is_finished);
            let step = rig.step(48 << 10);
            told += take(step.told, &mut pending, &mut outcome);
            let newest = outcome
                .numbers
                .values()
                .filter_map(|numbers| numbers.last())
                .max();
            progress
                .told
                .store(newest.copied().unwrap_or(0), Ordering::Relaxed);
            steps += 1;
            assert!(steps < STEPS_MAX, "the old files are never closed");
            match step.next {
                Next::Wake { .. } if all_written && rig.status().open == 1 => break,
                Next::Wake { after } => rig.pass(after),
                _ => {}
            }
            // No two rotations between two steps, and none before the new file was seen.
            if rotating && finished.try_recv() != Err(TryRecvError::Empty) {
                rotating = false;
                told = 0;
            } else if !rotating
                && told >= BETWEEN
                && made < ROTATIONS
                && (!moves || outcome.named > made)
            {
                go.send(made).unwrap();
                (made, rotating) = (made + 1, true);
            }
        }
        drop((go, end));
        outcome.written = writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .collect();
    });
    assert!(pending.values().all(Vec::is_empty));
    outcome
}

/// Puts what was told together to records. Returns how many.
fn take(told: Vec<Told>, pending: &mut HashMap<u64, Vec<u8>>, outcome: &mut Outcome) -> usize {
    let mut count = 0;
    for one in told {
        match one {
            Told::Data {
                generation, bytes, ..
            } => {
                let pending = pending.entry(generation).or_default();
                pending.extend_from_slice(&bytes);
                let whole = pending.len() / RECORD * RECORD;
                for bytes in pending.drain(..whole).as_slice().chunks(RECORD) {
                    let text = std::str::from_utf8(bytes).unwrap();
                    let (writer, number) =
                        (text[..2].parse().unwrap(), text[3..15].parse().unwrap());
                    assert_eq!(text, record(writer, number));
                    let numbers = outcome.numbers.entry(writer).or_default();
                    let next = numbers.last().map_or(0, |last| last + 1);
                    if std::mem::take(&mut outcome.just_cut)
                        && let Some((missing, _)) = outcome.cuts.last_mut()
                    {
                        *missing = (number - next) * RECORD;
                    }
                    numbers.push(number);
                    count += 1;
                }
                outcome.generations = outcome.generations.max(generation);
            }
            Told::Changed {
                generation,
                change: Change::Truncated { lost_at_least, .. },
            } => {
                // The rest of a record of which only a part was read.
                let part = pending.entry(generation).or_default();
                outcome.cuts.push((0, lost_at_least + part.len() as u64));
                part.clear();
                outcome.just_cut = true;
            }
            Told::Changed {
                change: Change::Appeared | Change::Rotated,
                ..
            } => {
                outcome.named += 1;
            }
            Told::Changed {
                change: Change::Removed,
                ..
            } => {}
            other => panic!("{other:?}"),
        }
    }
    count
}

impl Outcome {
    /// Of one writer. Records may only be missing where a cut was told, and at least as many bytes as
    /// were told.
    fn assert_losses_are_told(&self) {
        let numbers = &self.numbers[&0];
        assert!(
            numbers.is_sorted_by(|a, b| a < b),
            "a record was told twice, or out of order"
        );
        let missing = self.written[0] - numbers.len();
        let told: usize = self.cuts.iter().map(|(missing, _)| missing).sum();
        assert_eq!(
            missing * RECORD,
            told,
            "records are missing where no cut was told"
        );
        for &(missing, lost_at_least) in &self.cuts {
            assert!(
                missing as u64 >= lost_at_least,
                "{missing} < {lost_at_least}"
            );
        }
        assert_eq!(self.cuts.len(), ROTATIONS);
        assert_eq!(self.generations, 1);
    }

    fn assert_every_record_once(&self, in_order: bool) {
        for (writer, &written) in self.written.iter().enumerate() {
            let mut numbers = self.numbers[&writer].clone();
            if !in_order {
                numbers.sort_unstable();
            }
            assert!(
                numbers.iter().copied().eq(0..written),
                "writer {writer}: {written} written"
            );
        }
    }
}

/// Waits for old files for so long as their writers have them, or for this time.
fn rig(rotated_wait: Option<Duration>) -> Rig {
    let rig = Rig::with(Some(""), |spec| {
        spec.rotated_wait = rotated_wait.unwrap_or(Duration::from_secs(24 * 60 * 60));
        spec.keep_generations = ROTATIONS + 1;
    });
    Rig {
        _no_spawning: None,
        ..rig
    }
}

fn move_and_create(number: usize, path: &Path) {
    fs::rename(path, path.with_extension(number.to_string())).unwrap();
    File::create(path).unwrap();
}

fn copy_and_truncate(number: usize, path: &Path) {
    fs::copy(path, path.with_extension(number.to_string())).unwrap();
    File::create(path).unwrap();
}

#[test]
fn move_and_create_at_full_speed_loses_and_repeats_nothing() {
    let outcome = run(
        &mut rig(None),
        &[Habit::Reopen { after: 0 }; 2],
        move_and_create,
    );
    outcome.assert_every_record_once(true);
    assert_eq!(outcome.generations, ROTATIONS as u64 + 1);
}

#[test]
fn a_writer_that_keeps_the_old_file_open_loses_and_repeats_nothing() {
    let habits = [Habit::Reopen { after: 0 }, Habit::Reopen { after: 2000 }];
    let outcome = run(&mut rig(None), &habits, move_and_create);
    outcome.assert_every_record_once(true);
    assert!(outcome.generations > 1);
}

#[test]
fn a_writer_that_keeps_the_old_file_open_too_long_loses_and_repeats_nothing() {
    let mut rig = rig(Some(Duration::ZERO));
    let habits = [
        Habit::Reopen { after: 0 },
        Habit::Reopen { after: 2000 },
        Habit::Stay,
    ];
    let outcome = run(&mut rig, &habits, move_and_create);
    outcome.assert_every_record_once(false);
    assert_eq!(outcome.generations, ROTATIONS as u64 + 1);
}

#[test]
fn what_copytruncate_cuts_off_at_full_speed_is_told_and_nothing_is_repeated() {
    let outcome = run(&mut rig(None), &[Habit::Stay], copy_and_truncate);
    outcome.assert_losses_are_told();
}

/// A rotation by logrotate itself, in one of its ways. None if it is not there.
fn logrotate(way: &'static str) -> Option<impl Fn(usize, &Path) + Send> {
    let spawning = SPAWNING.write();
    let version = Command::new("logrotate").arg("--version").output();
    drop(spawning);
    if version.is_err() {
        eprintln!("SKIPPED: there is no logrotate");
        return None;
    }
    Some(move |_, path: &Path| {
        let file = |name| path.with_file_name(name);
        let log = path.display();
        let rules = format!("{log} {{\n rotate {ROTATIONS}\n missingok\n size 1\n {way}\n}}\n");
        fs::write(file("rules"), rules).unwrap();
        let spawning = SPAWNING.write();
        let logrotate = Command::new("logrotate")
            .args(["--force", "--state"])
            .args([file("state"), file("rules")])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(spawning);
        let output = logrotate.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    })
}

#[test]
fn logrotate_with_create_at_full_speed_loses_and_repeats_nothing() {
    let Some(rotate) = logrotate("create") else {
        return;
    };
    let habits = [Habit::Reopen { after: 0 }, Habit::Reopen { after: 2000 }];
    let outcome = run(&mut rig(None), &habits, rotate);
    outcome.assert_every_record_once(true);
    assert!(outcome.generations > 1);
}

#[test]
fn logrotate_with_nocreate_at_full_speed_loses_and_repeats_nothing() {
    let Some(rotate) = logrotate("nocreate") else {
        return;
    };
    let outcome = run(&mut rig(None), &[Habit::Reopen { after: 100 }], rotate);
    outcome.assert_every_record_once(true);
    assert!(outcome.generations > 1);
}

#[test]
fn what_logrotate_with_copytruncate_cuts_off_at_full_speed_is_told() {
    let Some(rotate) = logrotate("copytruncate") else {
        return;
    };
    run(&mut rig(None), &[Habit::Stay], rotate).assert_losses_are_told();
}
