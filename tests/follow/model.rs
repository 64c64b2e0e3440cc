//! Random writes, rotations, removals, cuts, pauses and restarts, against a model.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{ALL, Next, Rig, write};
use evloopd::follow::{Change, GaveUp, Told};

#[derive(Debug, Clone)]
enum Action {
    /// To the file that has the name.
    Write(usize),
    /// To a file that lost it, whose writer is still there.
    WriteLate(usize, usize),
    CloseLate(usize),
    /// Renames the file and creates another.
    Rotate {
        writer_stays: bool,
    },
    /// Two rotations before anybody looks: so much is in the file that nobody sees the name lead to.
    RotateTwice {
        length: usize,
        writer_stays: bool,
    },
    Remove {
        writer_stays: bool,
    },
    Create,
    /// Cuts the file, and writes so much before anybody looks.
    Cut(usize),
    Step(usize),
    Pass(Duration),
    Restart,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (1..300_usize).prop_map(Action::Write),
        2 => (0..4_usize, 1..100_usize).prop_map(|(file, length)| Action::WriteLate(file, length)),
        1 => (0..4_usize).prop_map(Action::CloseLate),
        3 => any::<bool>().prop_map(|writer_stays| Action::Rotate { writer_stays }),
        2 => (0..300_usize, any::<bool>())
            .prop_map(|(length, writer_stays)| Action::RotateTwice { length, writer_stays }),
        1 => any::<bool>().prop_map(|writer_stays| Action::Remove { writer_stays }),
        2 => Just(Action::Create),
        2 => prop_oneof![Just(0), 1..400_usize].prop_map(Action::Cut),
        6 => (1..400_usize).prop_map(Action::Step),
        3 => (1..3000_u64).prop_map(|time| Action::Pass(Duration::from_millis(time))),
        1 => Just(Action::Restart),
    ]
}

/// One file as it should be told.
#[derive(Default)]
struct Modelled {
    writer: Option<File>,
    expected: String,
    told: String,
    /// Cut off before it was told: as it was, and as it was told.
    lost: (usize, u64),
    rotated: Option<Instant>,
    removed: bool,
    /// Given up at a restart.
    given_up: bool,
}

struct Model {
    rig: Rig,
    /// Generation 1 and so on.
    files: Vec<Modelled>,
    /// Whether the last file has the name.
    named: bool,
    offset: u64,
    /// So that no two pieces of text are the same.
    count: usize,
}

impl Model {
    fn text(&mut self, length: usize) -> String {
        let mut text = String::new();
        while text.len() < length {
            self.count += 1;
            text.push_str(&format!("{} ", self.count));
        }
        text
    }

    fn write(&mut self, file: usize, length: usize) {
        let text = self.text(length);
        let file = &mut self.files[file];
        if let Some(writer) = &file.writer {
            write(writer, &text);
            if !file.given_up {
                file.expected.push_str(&text);
            }
        }
    }

    fn late(&self, nth: usize) -> Option<usize> {
        let late = |file: &Modelled| file.writer.is_some() && file.rotated.is_some();
        let late: Vec<_> = (0..self.files.len())
            .filter(|&file| late(&self.files[file]))
            .collect();
        (!late.is_empty()).then(|| late[nth % late.len()])
    }

    fn create(&mut self) {
        self.create_unseen();
        self.step(0);
    }

    fn create_unseen(&mut self) {
        let writer = Some(self.rig.writer());
        self.files.push(Modelled {
            writer,
            ..Modelled::default()
        });
        self.named = true;
    }

    fn rename(&mut self, writer_stays: bool) {
        self.rig.rename_to(&format!("log.{}", self.files.len()));
        self.lose_name(writer_stays);
    }

    fn lose_name(&mut self, writer_stays: bool) {
        self.named = false;
        let last = self.files.last_mut().unwrap();
        last.rotated = Some(self.rig.now);
        if !writer_stays {
            last.writer = None;
        }
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Write(length) if self.named => self.write(self.files.len() - 1, length),
            Action::WriteLate(nth, length) => {
                if let Some(file) = self.late(nth) {
                    self.write(file, length);
                }
            }
            Action::CloseLate(nth) => {
                if let Some(file) = self.late(nth) {
                    self.files[file].writer = None;
                }
            }
            Action::Rotate { writer_stays } if self.named => {
                self.rename(writer_stays);
                self.create();
            }
            Action::RotateTwice {
                length,
                writer_stays,
            } if self.named => {
                self.rename(writer_stays);
                self.create_unseen();
                self.write(self.files.len() - 1, length);
                self.rename(writer_stays);
                self.create();
            }
            Action::Remove { writer_stays } if self.named => {
                fs::remove_file(&self.rig.path).unwrap();
                self.lose_name(writer_stays);
                self.files.last_mut().unwrap().removed = true;
                self.step(0);
            }
            Action::Create if !self.named => self.create(),
            Action::Cut(length) if self.named => {
                // So that all that is lost is known.
                self.step(0);
                let last = self.files.last_mut().unwrap();
                last.lost.0 += last.expected.len() - last.told.len();
                last.expected = last.told.clone();
                last.writer.as_ref().unwrap().set_len(0).unwrap();
                self.write(self.files.len() - 1, length);
                self.step(0);
            }
            Action::Step(budget) => {
                self.step(budget);
            }
            Action::Pass(time) => self.rig.pass(time),
            Action::Restart => {
                self.rig.restart(|_| ());
                for file in self.files.iter_mut().filter(|file| file.removed) {
                    file.given_up = true;
                    file.expected = file.told.clone();
                }
                self.step(0);
            }
            _ => {}
        }
    }

    fn step(&mut self, budget: usize) -> Next {
        let step = self.rig.step(budget);
        let mut read = 0;
        for told in step.told {
            match told {
                Told::Data {
                    generation,
                    offset,
                    bytes,
                } => {
                    assert_eq!(offset, self.offset);
                    self.offset += bytes.len() as u64;
                    read += bytes.len();
                    let index = usize::try_from(generation).unwrap() - 1;
                    self.files[index]
                        .told
                        .push_str(std::str::from_utf8(&bytes).unwrap());
                    for earlier in &self.files[..index] {
                        let read = earlier.told.len() == earlier.expected.len();
                        let over = earlier.rotated.unwrap() + self.rig.spec.rotated_wait;
                        assert!(read || self.rig.now >= over, "{generation} came too early");
                    }
                }
                Told::Changed { generation, change } => {
                    let index = usize::try_from(generation).unwrap() - 1;
                    match change {
                        Change::Truncated { lost_at_least, .. } => {
                            self.files[index].lost.1 += lost_at_least;
                        }
                        Change::GaveUp { reason, .. } => {
                            assert_eq!(reason, GaveUp::NotFound);
                            assert!(self.files[index].given_up);
                        }
                        Change::Hole { .. } => panic!("nobody made a hole"),
                        Change::Appeared | Change::Rotated => {
                            assert!(index < self.files.len());
                        }
                        Change::Removed => {}
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(read <= budget);
        step.next
    }

    /// All writers end, and all is read.
    fn finish(mut self) {
        for file in &mut self.files {
            file.writer = None;
        }
        // Each old file is looked at again within `check_every`.
        for _ in 0..20 {
            match self.step(ALL) {
                Next::Wake { after } => self.rig.pass(after),
                next => assert_eq!(next, Next::More),
            }
        }
        for file in &self.files {
            assert_eq!(file.told, file.expected);
            assert_eq!(file.lost.0 as u64, file.lost.1);
        }
        assert_eq!(self.rig.status().open, usize::from(self.named));
        assert_eq!(self.rig.status().unread_bytes, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_is_told_once_whatever_happens(
        actions in proptest::collection::vec(action(), 1..80),
    ) {
        let rig = Rig::with(None, |spec| {
            spec.keep_generations = 100;
            spec.rotated_wait = Duration::from_secs(5);
            spec.read_size = 150;
        });
        let mut model = Model { rig, files: Vec::new(), named: false, offset: 0, count: 0 };
        for action in &actions {
            model.act(action);
        }
        model.finish();
    }
}
