//! Random operations on a small tree: what is told leads to what is on disk.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{Picture, Reader, Thread, disk, exchange, hub, recursive};
use evloopd::paths::Spec;
use proptest::prelude::*;
use tempfile::tempdir;

#[derive(Debug, Clone)]
enum Step {
    Write(String),
    Remove(String),
    MakeDirs(String),
    Rename(String, String),
    Exchange(String, String),
    /// Exchanges what is kept outside, named first or last.
    ExchangeOut(String, bool),
    MoveOut(String),
    MoveIn(String),
    /// Reads what is told so far.
    Read,
    /// What follows waits in the kernel's queue.
    Hold,
    LetGo,
}

fn a_path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
        .prop_map(|names| names.join("/"))
}

fn a_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => a_path().prop_map(Step::Write),
        2 => a_path().prop_map(Step::Remove),
        3 => a_path().prop_map(Step::MakeDirs),
        4 => (a_path(), a_path()).prop_map(|(from, to)| Step::Rename(from, to)),
        3 => (a_path(), a_path()).prop_map(|(one, other)| Step::Exchange(one, other)),
        1 => (a_path(), any::<bool>()).prop_map(|(path, first)| Step::ExchangeOut(path, first)),
        1 => a_path().prop_map(Step::MoveOut),
        1 => a_path().prop_map(Step::MoveIn),
        1 => Just(Step::Read),
        1 => Just(Step::Hold),
        1 => Just(Step::LetGo),
    ]
}

/// Does a step as far as it can be done.
fn step(top: &Path, out: &Path, step: &Step) {
    let at = |path: &String| top.join(path);
    match step {
        Step::Write(path) => drop(fs::write(at(path), b"x")),
        Step::Remove(path) => {
            drop(fs::remove_dir_all(at(path)).or_else(|_| fs::remove_file(at(path))));
        }
        Step::MakeDirs(path) => drop(fs::create_dir_all(at(path))),
        Step::Rename(from, to) => drop(fs::rename(at(from), at(to))),
        Step::Exchange(one, other) => drop(exchange(&at(one), &at(other))),
        Step::ExchangeOut(path, true) => drop(exchange(&out.join("kept"), &at(path))),
        Step::ExchangeOut(path, false) => drop(exchange(&at(path), &out.join("kept"))),
        Step::MoveOut(path) => drop(fs::rename(at(path), out.join("kept"))),
        Step::MoveIn(path) => drop(fs::rename(out.join("kept"), at(path))),
        Step::Read | Step::Hold | Step::LetGo => {}
    }
}

fn follows(steps: &[Step], edit: impl FnOnce(&mut Spec)) {
    let (top, out) = (tempdir().unwrap(), tempdir().unwrap());
    fs::create_dir_all(top.path().join("a/b/c")).unwrap();
    let hub = hub();
    let mut spec = recursive(top.path());
    edit(&mut spec);
    let mut reader = Reader::new(&hub, spec);
    let mut picture = Picture::new(top.path());
    let thread = Thread::of(&hub);
    let mut held = false;
    for one in steps {
        step(top.path(), out.path(), one);
        match one {
            Step::Read => {
                while let Some(told) = reader.next_before(Instant::now()) {
                    picture.apply(&told);
                }
            }
            Step::Hold if !held => {
                thread.hold();
                held = true;
            }
            Step::LetGo if held => {
                thread.let_go();
                held = false;
            }
            _ => {}
        }
    }
    thread.let_go();
    picture.settle(&mut reader);
    assert_eq!(picture.known, disk(top.path()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_time: 120_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_changes_lead_to_what_is_on_disk(steps in prop::collection::vec(a_step(), 1..60)) {
        follows(&steps, |_| ());
    }

    #[test]
    fn any_changes_in_a_window_lead_to_what_is_on_disk(steps in prop::collection::vec(a_step(), 1..60)) {
        follows(&steps, |spec| spec.window = Duration::from_millis(3));
    }
}
