//! The history checker: takes what readers of a loop's journal received, and verifies what evloopd
//! promises about order and delivery.
//!
//! It uses the wire messages but no other part of the daemon, so that it can judge the daemon.
//! [`Checker`] takes one batch at a time and remembers open watches only; [`check`] and its
//! companions take whole [`Recording`]s. A [`RecordedSubscription`] also has the messages around the
//! batches, and [`mod@file`] stores such subscriptions in files.

use std::collections::{BTreeMap, HashMap};

use crate::proto::event::Kind;
use crate::proto::{Batch, Event, Gap};

mod checker;
mod coverage;
pub mod file;
mod grammar;
mod subscription;
mod violation;
mod watch;

#[cfg(test)]
mod tests;

pub use checker::Checker;
pub use subscription::{RecordedSubscription, view_of};
pub use violation::{Rule, Violation};

use violation::require;

/// What a reader's filter lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum View {
    /// Everything: there is no filter.
    #[default]
    All,
    /// All events of some watches (as `Run` does, or a filter by watch or label).
    Watches,
    /// Some events of a watch but not others (a filter by kind).
    Kinds,
}

/// What one subscription received.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    /// The epoch of the loop's journal.
    pub epoch: String,
    /// The first batch's `after`, as the stream's header says.
    pub start: u64,
    /// What the filter lets through.
    pub view: View,
    /// Whether no watch in it is older than the recording: the recording starts at 0, or with the
    /// one watch it is about.
    pub from_birth: bool,
    /// The batches, in their order.
    pub batches: Vec<Batch>,
}

impl Recording {
    /// Makes a recording of an unfiltered subscription, without batches yet.
    pub fn new(epoch: impl Into<String>, start: u64) -> Self {
        Self {
            epoch: epoch.into(),
            start,
            from_birth: start == 0,
            ..Self::default()
        }
    }

    /// Returns the events, in their order.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.batches.iter().flat_map(|batch| &batch.events)
    }

    /// Returns the gaps, in their order.
    pub fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.batches.iter().flat_map(|batch| &batch.gaps)
    }

    /// Returns the last sequence number that the recording accounts for.
    #[must_use]
    pub fn through(&self) -> u64 {
        self.batches
            .last()
            .map_or(self.start, |batch| batch.through)
    }

    /// Returns whether an event with this sequence number would be in the recording.
    fn covers(&self, seq: u64) -> bool {
        let lost = |gap: &Gap| (gap.from_seq..=gap.through_seq).contains(&seq);
        seq > self.start && seq <= self.through() && !self.gaps().any(lost)
    }
}

/// What a history without violations contains.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// The number of events.
    pub events: u64,
    /// The number of gaps.
    pub gaps: u64,
    /// The number of events lost in gaps.
    pub lost: u64,
    /// The number of watches that had an event.
    pub watches: u64,
    /// Of those watches, the ones without a `Closed`.
    pub open_watches: u64,
    /// The number of events of each kind, by the name in the `.proto` file.
    pub kinds: BTreeMap<&'static str, u64>,
    /// The last sequence number accounted for.
    pub through: u64,
}

/// Verifies one subscription.
///
/// # Errors
/// The first violation.
pub fn check(recording: &Recording) -> Result<Summary, Violation> {
    let mut checker = Checker::new(recording.start, recording.view, recording.from_birth);
    for batch in &recording.batches {
        checker.push(batch)?;
    }
    Ok(checker.finish())
}

/// Verifies the subscriptions of one client, in their order, each resumed after a cursor of one
/// before it. Verifies each by itself, then that all together have every event, and that an event
/// delivered again is the same as before.
///
/// # Errors
/// The first violation.
pub fn check_resumed(subscriptions: &[Recording]) -> Result<Summary, Violation> {
    let Some(first) = subscriptions.first() else {
        return Ok(Summary::default());
    };
    let mut union = Checker::new(first.start, first.view, first.from_birth);
    let mut seen: HashMap<u64, &Event> = HashMap::new();
    for (number, subscription) in (1..).zip(subscriptions) {
        check(subscription).map_err(|violation| match subscriptions.len() {
            1 => violation,
            _ => violation.of(format_args!("subscription {number}")),
        })?;
        same_epoch(first, subscription)?;
        let known = union.through();
        require(subscription.start <= known, Rule::ResumeHole, || {
            format!(
                "subscription {number} resumes after {}, but those before it end at {known}",
                subscription.start
            )
        })?;
        for batch in &subscription.batches {
            for event in &batch.events {
                match seen.insert(event.seq, event) {
                    Some(before) => same_content(before, event)?,
                    None => require(
                        event.seq > known || event.seq <= first.start,
                        Rule::LostAndFound,
                        || {
                            let seq = event.seq;
                            format!(
                                "subscription {number} has event {seq}, which a gap before it covers"
                            )
                        },
                    )?,
                }
            }
            if batch.through > union.through() {
                union.push(&rest_of(batch, union.through()))?;
            }
        }
    }
    Ok(union.finish())
}

/// Returns the part of a batch after `through`.
fn rest_of(batch: &Batch, through: u64) -> Batch {
    let gap = |gap: &Gap| Gap {
        from_seq: gap.from_seq.max(through + 1),
        ..*gap
    };
    Batch {
        after: batch.after.max(through),
        through: batch.through,
        events: batch
            .events
            .iter()
            .filter(|event| event.seq > through)
            .cloned()
            .collect(),
        gaps: batch
            .gaps
            .iter()
            .filter(|gap| gap.through_seq > through)
            .map(gap)
            .collect(),
        caught_up: batch.caught_up,
    }
}

/// Verifies that two readers of one loop received the same content for the same sequence number.
///
/// # Errors
/// The first violation.
pub fn check_same(a: &Recording, b: &Recording) -> Result<(), Violation> {
    same_epoch(a, b)?;
    let first: HashMap<u64, &Event> = a.events().map(|event| (event.seq, event)).collect();
    for event in b.events() {
        if let Some(other) = first.get(&event.seq) {
            same_content(other, event)?;
        }
    }
    Ok(())
}

fn same_epoch(a: &Recording, b: &Recording) -> Result<(), Violation> {
    require(a.epoch == b.epoch, Rule::Epoch, || {
        format!(
            "one recording has the epoch {}, the other {}",
            a.epoch, b.epoch
        )
    })
}

fn same_content(a: &Event, b: &Event) -> Result<(), Violation> {
    require(a == b, Rule::Content, || {
        let (a_text, b_text) = (format!("{a:?}"), format!("{b:?}"));
        let pairs = a_text.char_indices().zip(b_text.chars());
        let differ = pairs.into_iter().find(|((_, a), b)| a != b);
        // The texts can be equal only for a kind of event newer than this program. Then their ends
        // are shown.
        let at = differ.map_or(a_text.len().min(b_text.len()), |((at, _), _)| at);
        let (a_text, b_text) = (around(&a_text, at), around(&b_text, at));
        format!(
            "event {} has the content `{a_text}` in one place and `{b_text}` in another",
            a.seq
        )
    })
}

/// Returns the part of a text around a byte: enough to recognise it.
fn around(text: &str, at: usize) -> String {
    const BEFORE: usize = 40;
    const ALL: usize = 100;
    let skipped = text.get(..at).unwrap_or(text).chars().count();
    let from = skipped.saturating_sub(BEFORE);
    let cut = |c: &str| if c.is_empty() { "" } else { "…" };
    let part: String = text.chars().skip(from).take(ALL).collect();
    let rest: String = text.chars().skip(from + ALL).take(1).collect();
    let head = if from > 0 { "…" } else { "" };
    format!("{head}{part}{}", cut(&rest))
}

/// Verifies the fence of a registration: the watch's `Added` is at the cursor in the reply, and no
/// event of the watch comes before it.
///
/// # Errors
/// The violation.
pub fn check_fence(added: u64, watch_id: u64, recording: &Recording) -> Result<(), Violation> {
    for event in recording.events().filter(|e| e.watch_id == watch_id) {
        let is_added = matches!(event.kind, Some(Kind::Added(_)));
        require(
            event.seq > added || (event.seq == added && is_added),
            Rule::AddedFence,
            || {
                format!(
                    "the reply says that event {added} adds watch {watch_id}, which has event {}",
                    event.seq
                )
            },
        )?;
    }
    present_at(added, watch_id, recording, Rule::AddedFence)
}

/// Verifies the fence of a removal: the watch's `Removed` is at the cursor in the reply, and no
/// event of the watch comes after it.
///
/// # Errors
/// The violation.
pub fn check_removal_fence(
    removed: u64,
    watch_id: u64,
    recording: &Recording,
) -> Result<(), Violation> {
    for event in recording.events().filter(|e| e.watch_id == watch_id) {
        let is_removed = matches!(event.kind, Some(Kind::Removed(_)));
        require(
            event.seq < removed || (event.seq == removed && is_removed),
            Rule::RemovedFence,
            || {
                format!(
                    "the reply says that event {removed} removes watch {watch_id}, which has event {}",
                    event.seq
                )
            },
        )?;
    }
    present_at(removed, watch_id, recording, Rule::RemovedFence)
}

/// Checks that the watch has an event at `seq`, if the recording could contain it.
fn present_at(seq: u64, watch_id: u64, recording: &Recording, rule: Rule) -> Result<(), Violation> {
    let here = |event: &Event| event.seq == seq && event.watch_id == watch_id;
    let excused = recording.view != View::All || !recording.covers(seq);
    require(excused || recording.events().any(here), rule, || {
        format!("the cursor of the reply is {seq}, but watch {watch_id} has no event there")
    })
}
