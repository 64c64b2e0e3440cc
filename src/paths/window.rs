//! Holding changes back so that equal ones become one.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::told::Change;

/// The changes of one window. It ends a fixed time after its first change, so that none waits longer.
///
/// An equal change takes the place of the earlier one at the end: what is told last of a path is what
/// happened to it last.
#[derive(Debug, Default)]
pub(super) struct Window {
    length: Duration,
    due: Option<Instant>,
    held: Vec<Option<Change>>,
    places: HashMap<Change, usize>,
}

impl Window {
    pub(super) fn new(length: Duration) -> Self {
        Self {
            length,
            ..Self::default()
        }
    }

    /// Whether changes are held at all.
    pub(super) fn is_open(&self) -> bool {
        !self.length.is_zero()
    }

    /// When what is held is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// How many changes are held, those that were merged counted at most once more.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Holds `change`, whose count is 1.
    pub(super) fn hold(&mut self, mut change: Change, now: Instant) {
        self.due.get_or_insert(now + self.length);
        let place = self.places.entry(change.clone()).or_insert(usize::MAX);
        if let Some(earlier) = self.held.get_mut(*place).and_then(Option::take) {
            change.count += earlier.count;
        }
        *place = self.held.len();
        self.held.push(Some(change));
    }

    /// Ends the window.
    pub(super) fn flush(&mut self) -> impl Iterator<Item = Change> + use<> {
        self.due = None;
        self.places.clear();
        std::mem::take(&mut self.held).into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::Kinds;

    fn change(kinds: Kinds) -> Change {
        Change {
            path: b"x".to_vec(),
            kinds,
            is_dir: false,
            count: 1,
        }
    }

    #[test]
    fn what_happened_last_is_told_last() {
        let mut window = Window::new(Duration::from_secs(1));
        let now = Instant::now();
        for kinds in [Kinds::CREATED, Kinds::DELETED, Kinds::CREATED] {
            window.hold(change(kinds), now);
        }
        assert_eq!(window.due(), Some(now + Duration::from_secs(1)));
        let told: Vec<_> = window
            .flush()
            .map(|change| (change.kinds, change.count))
            .collect();
        assert_eq!(told, [(Kinds::DELETED, 1), (Kinds::CREATED, 2)]);
        assert_eq!((window.due(), window.len()), (None, 0));
    }
}
