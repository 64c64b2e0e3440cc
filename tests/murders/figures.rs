//! What the loads have done, in numbers.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;

/// Counts by name, and the times that recoveries took.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    counts: Mutex<BTreeMap<&'static str, u64>>,
    recoveries: Mutex<Vec<Duration>>,
}

impl Figures {
    pub(crate) fn count(&self, what: &'static str, more: u64) {
        *self.counts.lock().entry(what).or_default() += more;
    }

    pub(crate) fn of(&self, what: &'static str) -> u64 {
        self.counts.lock().get(what).copied().unwrap_or(0)
    }

    /// From a death to the first answer of the next life that gave one.
    pub(crate) fn recovered(&self, after: Duration) {
        self.recoveries.lock().push(after);
    }
}

/// The figures of several campaigns.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    counts: BTreeMap<&'static str, u64>,
    recoveries: Vec<Duration>,
}

impl Totals {
    pub(crate) fn add(&mut self, figures: &Figures) {
        for (what, count) in figures.counts.lock().iter() {
            *self.counts.entry(what).or_default() += count;
        }
        self.recoveries.extend(figures.recoveries.lock().iter());
        self.recoveries.sort();
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (what, count) in &self.counts {
            writeln!(f, "  {what:<44}{count:>14}")?;
        }
        let median = self.recoveries.get(self.recoveries.len() / 2);
        if let (Some(median), Some(most)) = (median, self.recoveries.last()) {
            writeln!(
                f,
                "  from death to answer: median {median:.1?}, most {most:.1?}"
            )?;
        }
        Ok(())
    }
}
