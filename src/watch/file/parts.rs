//! What a step of a follower told, as it is appended to the journal.

use std::os::fd::OwnedFd;

use crate::error::SystemError;
use crate::event::FileChanged;
use crate::follow::{self, GaveUp, Standing, Step, Told};
use crate::proto::{FileChangeKind, GiveUpReason};

/// A part of what a step told, which is appended as a whole: between two parts it is known how far it is
/// told.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) told: Vec<Told>,
    /// How far it is told after it.
    pub(super) standing: Standing,
    /// Files that are needed no more then.
    pub(super) released: Vec<OwnedFd>,
}

impl Part {
    pub(super) fn of(step: Step) -> impl Iterator<Item = Self> {
        let mut told = step.told;
        let total = told.len();
        let whole = (total, step.standing, step.released);
        let marks = step.marks.into_iter();
        let marks = marks.map(|(count, standing)| (count, standing, Vec::new()));
        let mut done = 0;
        marks
            .chain([whole])
            .map(move |(count, standing, released)| {
                let rest = told.split_off(count - done);
                done = count;
                Self {
                    told: std::mem::replace(&mut told, rest),
                    standing,
                    released,
                }
            })
    }

    /// Returns how many events it takes for which no room was set aside, if the last Data was of the file
    /// `reading`.
    pub(super) fn events(&self, mut reading: u64) -> u64 {
        let mut events = 0;
        for told in &self.told {
            match told {
                Told::Data { generation, .. } => {
                    events += u64::from(*generation != reading);
                    reading = *generation;
                }
                Told::Eof { .. } => {}
                Told::Changed { .. } | Told::Failed(_) => events += 1,
            }
        }
        events
    }
}

/// Returns the event of a change.
pub(super) fn changed(generation: u64, change: &follow::Change) -> FileChanged {
    use follow::Change;
    let of = |kind: FileChangeKind| FileChanged {
        change: kind.into(),
        generation,
        ..FileChanged::default()
    };
    match change {
        Change::Appeared => of(FileChangeKind::Appeared),
        Change::Rotated => of(FileChangeKind::Rotated),
        Change::Removed => of(FileChangeKind::Removed),
        Change::Truncated { at, lost_at_least } => FileChanged {
            offset: *at,
            length: *lost_at_least,
            ..of(FileChangeKind::Truncated)
        },
        Change::Hole { offset, length } => FileChanged {
            offset: *offset,
            length: *length,
            ..of(FileChangeKind::Hole)
        },
        Change::GaveUp {
            unread_at_least,
            reason,
        } => {
            let (give_up, errno) = match reason {
                GaveUp::TooMany => (GiveUpReason::TooMany, None),
                GaveUp::TooManyBytes => (GiveUpReason::TooManyBytes, None),
                GaveUp::WritersUnknown => (GiveUpReason::WritersUnknown, None),
                GaveUp::ReadFailed(errno) => (GiveUpReason::ReadFailed, Some(*errno)),
                GaveUp::NotFound => (GiveUpReason::NotFound, None),
            };
            FileChanged {
                length: *unread_at_least,
                give_up: give_up.into(),
                error: errno.map(|errno| (&SystemError::new(errno, "read", "")).into()),
                ..of(FileChangeKind::GaveUp)
            }
        }
    }
}
