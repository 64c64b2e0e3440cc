//! Files that had the name between two looks, so that nobody saw it lead to them.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Follower;
use super::beside::{self, Candidate, Found};
use super::error::Error;
use super::identity::{Born, Identity, born};
use super::name::{self, Inode, Opened};
use super::told::{GaveUp, Told};

/// How many files are kept in mind that were born since the last look.
const KNOWN_MAX: usize = 4096;

/// How much earlier than by the clock a file may be born: a file system reads the clock once a tick
/// of the kernel, which is 1 to 10 ms.
const TICK: Duration = Duration::from_millis(10);

/// Since when the name may have led to files that nobody saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Since {
    /// Such files are born at this time or later.
    time: Born,
    /// Files born at that time or later that are no such files.
    known: Vec<Identity>,
}

impl Since {
    /// Begins to watch a name. Files that are there already never count.
    pub(super) fn begin(path: &Path) -> Self {
        let mut since = Self {
            time: now(),
            known: Vec::new(),
        };
        let there = beside::find(path, |candidate| candidate.born >= since.time);
        for candidate in there.files {
            since.know(Identity::unopened(candidate.inode, candidate.born));
        }
        since
    }

    /// The name was seen to lead to a known file at this time. Never goes back, as files would be
    /// found again that are read already.
    pub(super) fn advance(&mut self, time: Born) {
        if time > self.time {
            self.time = time;
            self.known.retain(|known| known.is_born_since(time));
        }
    }

    /// This file is known.
    pub(super) fn know(&mut self, identity: Identity) {
        if identity.is_born_since(self.time) {
            if self.known.len() >= KNOWN_MAX {
                self.known.remove(0);
            }
            self.known.push(identity);
        }
    }
}

/// The time at which a file that is created from now on is born at the earliest.
pub(super) fn now() -> Born {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .saturating_sub(TICK);
    (
        i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        now.subsec_nanos(),
    )
}

impl Follower {
    /// No file was missed up to this time.
    pub(super) fn seen_at(&mut self, time: Born) {
        if let Some(since) = &mut self.since {
            since.advance(time);
        }
    }

    /// Takes this file, to which the name leads, and those that had it before and that nobody saw.
    pub(super) fn take_named(
        &mut self,
        named: Opened,
        now: Instant,
        told: &mut Vec<Told>,
    ) -> Result<(), Error> {
        let before = self.find_missed(Some(&named));
        let inode = Inode::of(&named.stat);
        let leads = name::find(&self.spec.path);
        if leads?.is_some_and(|stat| Inode::of(&stat) == inode) {
            self.take_missed(before, now, told);
            self.adopt(named, told);
            return Ok(());
        }
        // The name has gone on meanwhile, so some may have had it after this one. The next step sees
        // where it leads.
        let all = self.find_missed_before_now();
        if all.files.iter().any(|file| file.is(&named.identity)) {
            self.take_missed(all, now, told);
        } else {
            self.take_missed(before, now, told);
            self.adopt(named, told);
        }
        Ok(())
    }

    /// Takes the files that had the name before it led to nothing, and that nobody saw.
    pub(super) fn take_unnamed(&mut self, now: Instant, told: &mut Vec<Told>) {
        let found = self.find_missed_before_now();
        self.take_missed(found, now, told);
    }

    /// Files that are renamed during a look at the directory may be missing there, although later
    /// ones are not. A second look has all up to the last one of the first.
    fn find_missed_before_now(&self) -> Found {
        let mut found = self.find_missed(None);
        if let Some(last) = found.files.pop() {
            found = self.find_missed(None);
            found.files.retain(|file| file.order(&last).is_le());
        }
        found
    }

    /// Finds the files that had the name before it led to `named`, or to nothing.
    fn find_missed(&self, named: Option<&Opened>) -> Found {
        let Some(since) = &self.since else {
            return Found::default();
        };
        let mut until = None;
        if let Some(named) = named {
            let number = self.number_of(&named.identity);
            let born = born(&named.stat);
            if born.is_none() || number.is_some() && number == self.named {
                return Found::default();
            }
            // A file that came back, or from elsewhere, says nothing about the others.
            until = born.filter(|&born| number.is_none() && born >= since.time);
        }
        beside::find(&self.spec.path, |file| {
            file.born >= since.time
                && until.is_none_or(|until| file.born <= until)
                && !since.known.iter().any(|known| file.is(known))
                && !named.is_some_and(|named| file.is(&named.identity))
                && !self.generations.iter().any(|open| file.is(open.identity()))
                && !self.closed.iter().any(|known| file.is(&known.identity))
        })
    }

    fn take_missed(&mut self, found: Found, now: Instant, told: &mut Vec<Told>) {
        if found.is_partial {
            self.newest += 1;
            self.tell_gave_up(self.newest, 0, GaveUp::NotFound, told);
            self.mark(told);
        }
        for candidate in found.files {
            self.take_one_missed(&candidate, told);
            self.lose_name(now);
            self.mark(told);
            // At once, so that not too many are open.
            self.keep_within_bounds(told);
        }
    }

    fn take_one_missed(&mut self, candidate: &Candidate, told: &mut Vec<Told>) {
        let opened = name::open_regular(&candidate.path);
        let reason = match opened {
            Ok(Some(opened)) if candidate.is(&opened.identity) => {
                return self.adopt(opened, told);
            }
            Err(Error::Io { errno, .. }) => GaveUp::ReadFailed(errno),
            // Renamed or deleted since.
            Ok(_) | Err(_) => GaveUp::NotFound,
        };
        self.newest += 1;
        if let Some(since) = &mut self.since {
            since.know(Identity::unopened(candidate.inode, candidate.born));
        }
        self.tell_named(self.newest, told);
        self.tell_gave_up(self.newest, candidate.size, reason, told);
    }

    /// The generation that this file is, if it is among the last ones.
    fn number_of(&self, identity: &Identity) -> Option<u64> {
        let open = self.generations.iter().find(|open| open.is(identity));
        let mut closed = self.closed.iter();
        open.map(|open| open.number).or_else(|| {
            let closed = closed.find(|closed| closed.identity.is_same_file(identity));
            closed.map(|closed| closed.generation)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_files_are_kept_in_mind_than_allowed() {
        let mut since = Since {
            time: (1, 0),
            known: Vec::new(),
        };
        for inode in 0..=KNOWN_MAX as u64 {
            since.know(Identity::unopened(inode, (2, 0)));
        }
        assert_eq!(since.known.len(), KNOWN_MAX);
        assert!(since.known[0].is_born_as(1, (2, 0)));
        // A clock that was set back makes nothing unknown.
        since.advance((0, 0));
        assert_eq!((since.time, since.known.len()), ((1, 0), KNOWN_MAX));
        since.advance((3, 0));
        assert!(since.known.is_empty());
    }
}
