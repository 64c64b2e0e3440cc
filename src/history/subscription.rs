//! The messages of one subscription, and checks of those that are not batches.

use super::violation::require;
use super::{Recording, Rule, View, Violation};
use crate::proto::subscribe_response::Message;
use crate::proto::{Cursor, Filter, Goodbye, Snapshot, SubscribeHeader};

/// The messages of one subscription from its header on, in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedSubscription {
    /// What the subscription's filter lets through.
    pub view: View,
    /// The first message.
    pub header: SubscribeHeader,
    /// The messages after the header. Empty if the stream broke at once.
    pub messages: Vec<Message>,
}

impl RecordedSubscription {
    /// Makes a subscription of which only the header has arrived.
    #[must_use]
    pub const fn new(view: View, header: SubscribeHeader) -> Self {
        Self {
            view,
            header,
            messages: Vec::new(),
        }
    }

    /// Verifies the places and cursors of the snapshot and the goodbye, and returns the batches.
    /// [`check`](super::check) and its companions verify those.
    ///
    /// # Errors
    /// The first violation.
    pub fn recording(&self) -> Result<Recording, Violation> {
        let mut frame = Frame::new(&self.header);
        let mut recording = Recording::new(self.header.epoch.clone(), self.header.after);
        recording.view = self.view;
        for message in &self.messages {
            frame.push(message)?;
            if let Message::Batch(batch) = message {
                recording.batches.push(batch.clone());
            }
        }
        Ok(recording)
    }
}

/// Returns what a filter lets through.
#[must_use]
pub fn view_of(filter: Option<&Filter>) -> View {
    match filter {
        Some(filter) if !filter.kinds.is_empty() => View::Kinds,
        Some(filter) if !filter.watch_ids.is_empty() || !filter.labels.is_empty() => View::Watches,
        _ => View::All,
    }
}

/// How much of a snapshot has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parts {
    /// The header announces no snapshot.
    Never,
    Awaited,
    Begun,
    Whole,
}

/// Verifies the order of a subscription's messages as they arrive.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    header: &'a SubscribeHeader,
    parts: Parts,
    /// The last `watch_id` in the snapshot so far.
    last_watch: u64,
    through: u64,
    over: bool,
}

impl<'a> Frame<'a> {
    const fn new(header: &'a SubscribeHeader) -> Self {
        Self {
            parts: if header.snapshot {
                Parts::Awaited
            } else {
                Parts::Never
            },
            last_watch: 0,
            through: header.after,
            over: false,
            header,
        }
    }

    fn push(&mut self, message: &Message) -> Result<(), Violation> {
        let through = self.through;
        require(!self.over, Rule::GoodbyeLast, || {
            format!("a message follows the goodbye at {through}")
        })?;
        match message {
            Message::Header(_) => require(false, Rule::HeaderOnce, || {
                format!("a second header follows {through}")
            }),
            Message::Snapshot(part) => self.snapshot(part),
            Message::Batch(batch) => {
                let whole = matches!(self.parts, Parts::Never | Parts::Whole);
                require(whole, Rule::SnapshotPlace, || {
                    format!(
                        "the batch after {} comes before the last part of the snapshot",
                        batch.after
                    )
                })?;
                self.parts = Parts::Never;
                self.through = batch.through;
                Ok(())
            }
            Message::Goodbye(goodbye) => self.goodbye(goodbye),
        }
    }

    fn snapshot(&mut self, part: &Snapshot) -> Result<(), Violation> {
        let after = self.header.after;
        let awaited = matches!(self.parts, Parts::Awaited | Parts::Begun);
        require(awaited, Rule::SnapshotPlace, || match self.parts {
            Parts::Whole => {
                format!("another part of the snapshot at {after} follows the one marked as last")
            }
            _ => format!(
                "a snapshot follows {}, but the header does not announce one",
                self.through
            ),
        })?;
        let here = self.is_at(part.cursor.as_ref(), after);
        require(here, Rule::SnapshotCursor, || {
            format!(
                "the snapshot has the cursor {}, but the stream begins after {after}",
                cursor_text(part.cursor.as_ref())
            )
        })?;
        let first = self.parts == Parts::Awaited;
        require(part.r#loop.is_some() == first, Rule::SnapshotLoop, || {
            let place = if first { "first" } else { "next" };
            let is = if first { "lacks" } else { "has" };
            format!("the {place} part of the snapshot at {after} {is} the loop")
        })?;
        for watch in &part.watches {
            let (id, last) = (watch.watch_id, self.last_watch);
            require(id > last, Rule::SnapshotOrder, || {
                format!("the snapshot at {after} lists watch {id} after watch {last}")
            })?;
            self.last_watch = id;
        }
        self.parts = if part.last {
            Parts::Whole
        } else {
            Parts::Begun
        };
        Ok(())
    }

    fn goodbye(&mut self, goodbye: &Goodbye) -> Result<(), Violation> {
        let through = self.through;
        let here = self.is_at(goodbye.cursor.as_ref(), through);
        require(here, Rule::GoodbyeCursor, || {
            format!(
                "the goodbye has the cursor {}, but the stream went through {through}",
                cursor_text(goodbye.cursor.as_ref())
            )
        })?;
        self.over = true;
        Ok(())
    }

    fn is_at(&self, cursor: Option<&Cursor>, seq: u64) -> bool {
        cursor.is_some_and(|cursor| cursor.epoch == self.header.epoch && cursor.seq == seq)
    }
}

fn cursor_text(cursor: Option<&Cursor>) -> String {
    cursor.map_or_else(
        || "no cursor".to_owned(),
        |cursor| format!("{}:{}", cursor.epoch, cursor.seq),
    )
}
