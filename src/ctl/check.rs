//! `check`: compares recorded events with what evloopd promises.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::failure::{Failure, Outcome, USAGE, complain};
use super::output;
use crate::history::file::RecordingFile;
use crate::history::{Recording, Summary, Violation, check_resumed, check_same};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl events -f --record a.rec    # Ctrl-C stops it
  evloopctl check a.rec
  evloopctl check a.rec b.rec           # events in both files must be equal
  evloopctl check --resumed a.rec b.rec # b.rec goes on where a.rec ended

The exit code is 0 if every promise of order and delivery is kept; 1 if a promise is broken, and \
stderr says which one is broken first; 2 if a file cannot be read. A message that is cut off at \
the end of a file is reported, but breaks no promise. Each file is read into memory as a whole.";

/// Options of `check`.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// The files are from one reader that was started again: each file goes on where the one before
    /// it ends, and no event is missing between them
    #[arg(long)]
    resumed: bool,
    /// A file that `evloopctl events --record` wrote
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// The recordings of one loop from one run of the daemon. Only these can be compared with each other.
#[derive(Debug, Default)]
struct History {
    /// The file of the recordings; with `--resumed`, all files that hold a recording of this loop.
    files: Vec<String>,
    instance: String,
    loop_id: u64,
    loop_name: String,
    /// One recording for each time that the reader was started.
    lives: Vec<Recording>,
    /// The number of bytes that are ignored at the ends of the files, because a message is cut off there.
    cut_off: u64,
}

impl History {
    fn name(&self) -> String {
        self.files.join(", ")
    }

    fn is_same_loop(&self, other: &Self) -> bool {
        (&self.instance, self.loop_id) == (&other.instance, other.loop_id)
    }

    fn epoch(&self) -> &str {
        self.lives.first().map_or("", |life| life.epoch.as_str())
    }

    /// Returns all batches as one recording. It can be compared with another, but its order cannot be checked.
    fn flat(&self) -> Recording {
        let mut flat = Recording::new(self.epoch(), 0);
        flat.batches = self.lives.iter().flat_map(|l| l.batches.clone()).collect();
        flat
    }
}

/// The content of one file.
#[derive(Debug)]
struct Read {
    name: String,
    tape: RecordingFile,
}

pub(super) fn run(args: &Check, json: bool) -> Outcome {
    let mut read = Vec::new();
    for path in &args.files {
        read.push(open(path)?);
    }
    let histories = match judged(read, args.resumed) {
        Ok(histories) => histories,
        Err((name, violation)) => {
            if json {
                output::json_lines([&violated(&name, &violation)])?;
            }
            return Err(Failure::new(name, violation));
        }
    };
    for (history, summary) in &histories {
        show(json, history, summary)?;
        if history.cut_off > 0 {
            let (name, bytes) = (history.name(), history.cut_off);
            complain(format_args!(
                "{name}: the last message is cut off, its {bytes} bytes are left out: \
                 the recorder was stopped while it wrote"
            ));
        }
    }
    Ok(0)
}

fn open(path: &Path) -> Result<Read, Failure> {
    let name = path.display().to_string();
    match RecordingFile::read(path) {
        Ok(tape) => Ok(Read { name, tape }),
        Err(error) => Err(Failure::new(name, error).code(USAGE)),
    }
}

/// The files that a violation is in, and the violation.
type Found = (String, Violation);

/// Checks the files. Returns one history for each loop of each run of the daemon.
///
/// # Errors
/// The first promise that is broken.
fn judged(files: Vec<Read>, resumed: bool) -> Result<Vec<(History, Summary)>, Found> {
    let mut judged: Vec<(History, Summary)> = Vec::new();
    for history in histories(files, resumed)? {
        let summary = check_resumed(&history.lives);
        let summary = summary.map_err(|violation| (history.name(), violation))?;
        let others = judged.iter().map(|(other, _)| other);
        for other in others.filter(|other| other.is_same_loop(&history)) {
            let same = check_same(&other.flat(), &history.flat());
            let both = || format!("{} and {}", other.name(), history.name());
            same.map_err(|violation| (both(), violation))?;
        }
        judged.push((history, summary));
    }
    Ok(judged)
}

/// Groups the recordings by loop: those within one file, or with `resumed` those of all files.
fn histories(files: Vec<Read>, resumed: bool) -> Result<Vec<History>, Found> {
    let mut histories: Vec<History> = Vec::new();
    for Read { name, tape } in files {
        let own = if resumed { 0 } else { histories.len() };
        let (several, mut last) = (tape.subscriptions.len() > 1, None);
        for (number, life) in (1..).zip(&tape.subscriptions) {
            let recording = life.recording().map_err(|violation| {
                let place = if several {
                    format!("{name}: life {number}")
                } else {
                    name.clone()
                };
                (place, violation)
            })?;
            let new = History {
                instance: life.header.instance.clone(),
                loop_id: life.header.loop_id,
                loop_name: life.header.loop_name.clone(),
                ..History::default()
            };
            let known = histories
                .iter()
                .skip(own)
                .position(|h| h.is_same_loop(&new));
            let at = known.map_or(histories.len(), |at| own + at);
            if known.is_none() {
                histories.push(new);
            }
            if let Some(history) = histories.get_mut(at) {
                if !history.files.contains(&name) {
                    history.files.push(name.clone());
                }
                history.lives.push(recording);
            }
            last = Some(at);
        }
        match last.and_then(|at| histories.get_mut(at)) {
            Some(history) => history.cut_off += tape.cut_off,
            // The recorder was stopped before the daemon's first answer.
            None => histories.push(History {
                files: vec![name],
                cut_off: tape.cut_off,
                ..History::default()
            }),
        }
    }
    Ok(histories)
}

fn show(as_json: bool, history: &History, summary: &Summary) -> Result<(), Failure> {
    let value = json!({
        "file": history.name(),
        "verdict": "kept",
        "loop": history.loop_name,
        "epoch": history.epoch(),
        "lives": history.lives.len(),
        "after": history.lives.iter().map(|life| life.start).min().unwrap_or(0),
        "through": summary.through,
        "events": summary.events,
        "watches": summary.watches,
        "open_watches": summary.open_watches,
        "gaps": summary.gaps,
        "lost": summary.lost,
        "cut_off_bytes": history.cut_off,
        "kinds": summary.kinds,
    });
    output::object(as_json, &value)
}

fn violated(name: &str, violation: &Violation) -> Value {
    json!({
        "file": name,
        "verdict": "broken",
        "rule": violation.rule.name(),
        "message": violation.message,
    })
}
