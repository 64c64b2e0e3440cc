//! The labels that the events of watches have, for later lives: an event's encoding does not have them.

use std::collections::{HashMap, HashSet, VecDeque};

use prost::Message as _;

use super::{Known, Log};
use crate::id_map::IdMap;
use crate::journal::LabelSet;
use crate::journal::labels::LabelSets;
use crate::journal::outbox::Entry;
use crate::journal::recovery::LABELS;
use crate::proto::EventKind;
use crate::proto::state::KeptLabels;
use crate::state;

const ADDED: u8 = EventKind::Added as u8;
const UPDATED: u8 = EventKind::Updated as u8;

/// Returns whether the events of a watch may have other labels from an event of this kind on.
pub(in crate::journal) const fn may_change(kind: u8) -> bool {
    matches!(kind, ADDED | UPDATED)
}

/// The events of a watch from `from` on have these labels, up to the next mark of the watch.
#[derive(Debug)]
struct Mark {
    from: u64,
    /// The mark uses the set.
    labels: LabelSet,
    kept: state::Entry,
}

/// The marks of all watches that some event in the log is of. A watch without marks has no labels.
#[derive(Debug, Default)]
pub(super) struct Marks {
    of: IdMap<Vec<Mark>>,
    /// Watches that were removed, with their last events, in the order of these.
    removed: VecDeque<(u64, u64)>,
}

/// What is to be freed: a set of labels that is not used any more, and the record.
type Over = Vec<(LabelSet, state::Entry)>;

impl Marks {
    /// Returns the labels of an event.
    fn of_event(&self, watch: u64, seq: u64) -> Option<LabelSet> {
        let marks = self.of.get(watch)?;
        let mark = marks.iter().rev().find(|mark| mark.from <= seq);
        Some(mark.map_or(LabelSet::NONE, |mark| mark.labels))
    }

    fn forget(&mut self, watch: u64) -> Over {
        let marks = self.of.remove(watch).unwrap_or_default();
        marks
            .into_iter()
            .map(|mark| (mark.labels, mark.kept))
            .collect()
    }
}

impl Log {
    /// Has later lives know the labels of the events that begin with `first`. Call it before they count.
    pub(in crate::journal) fn keep_labels(
        &mut self,
        first: u64,
        entries: &[Entry],
        labels: &mut LabelSets,
    ) {
        for (entry, seq) in entries.iter().zip(first..) {
            if !may_change(entry.kind) {
                continue;
            }
            let before = self.marks.of_event(entry.watch, seq);
            if before.unwrap_or(LabelSet::NONE) == entry.labels {
                continue;
            }
            let kept = KeptLabels {
                watch_id: entry.watch,
                labels: labels.get(entry.labels),
            };
            let Some(records) = &mut self.records else {
                return;
            };
            match records.put_now(LABELS, seq, &kept.encode_to_vec()) {
                Ok(kept) => {
                    labels.hold(entry.labels);
                    let marks = self.marks.of.get_or_insert_with(entry.watch, Vec::new);
                    marks.push(Mark {
                        from: seq,
                        labels: entry.labels,
                        kept,
                    });
                    self.forget_early_marks(entry.watch, labels);
                }
                Err(errno) => tracing::warn!(%errno, "the next life will not know some labels"),
            }
        }
    }

    /// Forgets the marks of a watch that no event has any more.
    fn forget_early_marks(&mut self, watch: u64, labels: &mut LabelSets) {
        let Some(marks) = self.marks.of.get_mut(watch) else {
            return;
        };
        let ends: Vec<_> = marks.iter().skip(1).map(|next| next.from).collect();
        let mut over = Over::new();
        for (at, end) in ends.into_iter().enumerate().rev() {
            let islands = self.islands.range(marks[at].from..end);
            if end <= self.first && !islands.into_iter().any(|(_, i)| i.entry.watch == watch) {
                let mark = marks.remove(at);
                over.push((mark.labels, mark.kept));
            }
        }
        self.free_marks(over, labels);
    }

    /// Notes that a watch was removed with that event.
    pub(super) fn note_removed(&mut self, watch: u64, seq: u64) {
        if self.marks.of.get(watch).is_some() {
            self.marks.removed.push_back((seq, watch));
        }
    }

    /// Forgets the marks of watches whose last event has left the ring.
    pub(super) fn forget_marks(&mut self, labels: &mut LabelSets) {
        while let Some((last, watch)) = self.marks.removed.front().copied()
            && last < self.first
        {
            self.marks.removed.pop_front();
            let over = self.marks.forget(watch);
            self.free_marks(over, labels);
        }
    }

    fn free_marks(&mut self, over: Over, labels: &mut LabelSets) {
        for (set, kept) in over {
            labels.release(set);
            if let Some(records) = &mut self.records {
                records.free_now(kept);
            }
        }
    }

    /// Takes up the marks of an earlier life; of events after `newest` there are none.
    pub(super) fn recover_marks(
        &mut self,
        found: Vec<state::Entry>,
        newest: u64,
        labels: &mut LabelSets,
    ) {
        let mut over = Over::new();
        for kept in found {
            match KeptLabels::decode(kept.bytes()) {
                Ok(mark) if kept.id() <= newest => {
                    let marks = self.marks.of.get_or_insert_with(mark.watch_id, Vec::new);
                    marks.push(Mark {
                        from: kept.id(),
                        labels: labels.intern(&mark.labels.into()),
                        kept,
                    });
                    marks.sort_by_key(|mark| mark.from);
                }
                _ => over.push((LabelSet::NONE, kept)),
            }
        }
        self.free_marks(over, labels);
    }

    /// Returns the labels of an event of an earlier life. `now` are those of its watch.
    pub(super) fn labels_of(&self, watch: u64, seq: u64, now: Option<LabelSet>) -> LabelSet {
        let marked = self.marks.of_event(watch, seq);
        marked.or(now).unwrap_or(LabelSet::NONE)
    }

    /// Forgets the marks of watches that are not there and of which no event is.
    pub(super) fn forget_other_marks(
        &mut self,
        watches: &HashMap<u64, Known>,
        labels: &mut LabelSets,
    ) {
        let removed: HashSet<_> = self.marks.removed.iter().map(|(_, watch)| *watch).collect();
        let mut after = 0;
        while let Some(watch) = self.marks.of.next_after(after) {
            after = watch;
            if !watches.contains_key(&watch) && !removed.contains(&watch) {
                let over = self.marks.forget(watch);
                self.free_marks(over, labels);
            }
        }
    }

    /// Returns how many marks there are.
    #[cfg(test)]
    pub(in crate::journal) fn marks(&self) -> usize {
        let mut all = 0;
        let mut after = 0;
        while let Some(watch) = self.marks.of.next_after(after) {
            after = watch;
            all += self.marks.of.get(watch).map_or(0, Vec::len);
        }
        all
    }
}
