//! Following the name: which file it leads to, and what becomes of those it led to before.

use std::mem;
use std::os::fd::OwnedFd;
use std::time::Instant;

use super::Follower;
use super::error::{Doing, Error};
use super::generation::Generation;
use super::missed::{self, Since};
use super::name::{self, Inode, Opened};
use super::position::{FilePosition, Position};
use super::rotated::Rotated;
use super::spec::{Begin, invalid};
use super::told::{Change, GaveUp, Told};

impl Follower {
    /// Opens the first file, if it is there.
    pub(super) fn begin(&mut self, now: Instant) -> Result<(), Error> {
        let mut told = Vec::new();
        let since = self.spec.follow.then(|| Since::begin(&self.spec.path));
        self.follow_name(now, &mut told)?;
        self.early = told;
        self.since = since;
        for first in &self.generations {
            if let Some(since) = &mut self.since {
                since.know(first.identity().clone());
            }
        }
        let Some(first) = self.generations.back_mut() else {
            return Ok(());
        };
        let size = first.unread();
        let at = match self.spec.from {
            Begin::Start => return Ok(()),
            Begin::End => size,
            Begin::Offset(at) => at,
        };
        if at > size {
            return Err(invalid(
                "from",
                format!("must not be beyond the end of the file, {size}"),
            ));
        }
        let path = &self.spec.path;
        first.begin_at(at).map_err(|errno| Error::Io {
            doing: Doing::Read,
            path: path.clone(),
            errno,
        })?;
        self.offset = at;
        Ok(())
    }

    /// Goes on where an earlier follower stood.
    pub(super) fn resume(&mut self, position: Position, now: Instant) -> Result<(), Error> {
        self.newest = position.generation;
        self.offset = position.offset;
        self.named = position.named;
        (self.given_up, self.given_up_bytes) = (position.given_up, position.given_up_bytes);
        self.closed = position.closed.into();
        self.closed.extend(position.files.iter().cloned());
        let mut told = Vec::new();
        if self.spec.follow {
            self.since = position.since;
            self.look_up(now, &mut told);
            self.find_renamed(position.files, now, &mut told);
        } else {
            self.follow_name(now, &mut told)?;
        }
        self.early = told;
        Ok(())
    }

    /// Goes on with the files that an earlier life of the process has left open.
    pub(super) fn go_on(
        &mut self,
        position: Position,
        files: Vec<OwnedFd>,
        now: Instant,
    ) -> Result<(), Error> {
        self.newest = position.generation;
        self.offset = position.offset;
        self.named = position.named;
        self.since = position.since;
        (self.given_up, self.given_up_bytes) = (position.given_up, position.given_up_bytes);
        self.closed = position.closed.into();
        for (known, file) in position.files.into_iter().zip(files) {
            let again = Generation::again(known, file, now).map_err(|errno| Error::Io {
                doing: Doing::Read,
                path: self.spec.path.clone(),
                errno,
            });
            self.generations.push_back(again?);
        }
        let last = self.generations.back();
        if let Some(last) = last.filter(|last| last.rotated.is_none()) {
            let number = last.number;
            self.leads = true;
            let mut told = Vec::new();
            self.tell_named(number, &mut told);
            self.early = told;
        }
        // Files may have had the name that leads to nothing.
        self.path_event = true;
        Ok(())
    }

    /// Finds the files that lost the name, in the order of reading; the name's own one is open
    /// already.
    fn find_renamed(&mut self, files: Vec<FilePosition>, now: Instant, told: &mut Vec<Told>) {
        let mut index = 0;
        for known in files {
            if self.generations.iter().any(|open| open.is(&known.identity)) {
                continue;
            }
            if let Some(opened) = name::find_renamed(&self.spec.path, &known.identity) {
                self.closed
                    .retain(|closed| closed.generation != known.generation);
                let mut generation = Generation::resume(known, opened);
                generation.rotated = Some(Rotated::new(now));
                self.generations.insert(index, generation);
                index += 1;
            } else {
                let unread = known.seen.saturating_sub(known.at);
                self.tell_gave_up(known.generation, unread, GaveUp::NotFound, told);
            }
        }
    }

    /// Follows the name, and tells a failure once.
    pub(super) fn look_up(&mut self, now: Instant, told: &mut Vec<Told>) {
        let failing = self.follow_name(now, told).err();
        if let Some(error) = &failing
            && self.failing != failing
        {
            told.push(Told::Failed(error.clone()));
        }
        self.failing = failing;
    }

    fn follow_name(&mut self, now: Instant, told: &mut Vec<Told>) -> Result<(), Error> {
        let path = &self.spec.path;
        let path_event = mem::take(&mut self.path_event);
        let looked = missed::now();
        match name::find(path) {
            Ok(Some(stat)) => {
                let last = self.generations.back();
                if self.leads && last.is_some_and(|last| last.inode == Inode::of(&stat)) {
                    self.seen_at(looked);
                    return Ok(());
                }
                let opened = name::open_regular(path);
                self.lose_name(now);
                // None: gone since. The next step sees what it leads to then.
                if let Some(opened) = opened? {
                    if self.spec.follow && opened.tells_no_size() {
                        let path = self.spec.path.clone();
                        return Err(Error::NoSize { path });
                    }
                    self.take_named(opened, now, told)?;
                    self.seen_at(looked);
                }
                Ok(())
            }
            Ok(None) => {
                self.lose_name(now);
                if path_event || self.named.is_some() {
                    self.take_unnamed(now, told);
                    self.seen_at(looked);
                }
                if let Some(generation) = self.named.take() {
                    told.push(Told::Changed {
                        generation,
                        change: Change::Removed,
                    });
                }
                Ok(())
            }
            Err(error) => {
                if matches!(error, Error::NotRegular { .. }) {
                    self.lose_name(now);
                }
                Err(error)
            }
        }
    }

    /// The name does not lead to the last file any more.
    pub(super) fn lose_name(&mut self, now: Instant) {
        if self.leads {
            self.leads = false;
            if let Some(last) = self.generations.back_mut() {
                last.rotated = Some(Rotated::new(now));
            }
        }
    }

    /// The name leads to this file.
    pub(super) fn adopt(&mut self, opened: Opened, told: &mut Vec<Told>) {
        let inode = Inode::of(&opened.stat);
        let open = self.generations.iter().position(|open| open.inode == inode);
        let closed = self
            .closed
            .iter()
            .position(|known| known.identity.is_same_file(&opened.identity));
        let back = open.and_then(|index| self.generations.remove(index));
        let generation = if let Some(mut back) = back {
            back.rotated = None;
            back
        } else if let Some(known) = closed.and_then(|index| self.closed.remove(index)) {
            Generation::resume(known, opened)
        } else {
            self.newest += 1;
            if let Some(since) = &mut self.since {
                since.know(opened.identity.clone());
            }
            match self.spec.follow {
                true => Generation::new(self.newest, opened),
                false => Generation::new(self.newest, opened).read_once(),
            }
        };
        let number = generation.number;
        self.generations.push_back(generation);
        self.leads = true;
        self.tell_named(number, told);
    }

    pub(super) fn tell_named(&mut self, number: u64, told: &mut Vec<Told>) {
        if self.named != Some(number) {
            let change = if self.named.is_some() {
                Change::Rotated
            } else {
                Change::Appeared
            };
            told.push(Told::Changed {
                generation: number,
                change,
            });
            self.named = Some(number);
        }
    }
}
