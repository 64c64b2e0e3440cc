//! Reads a regular file once, or follows a name like `tail -F`, without losing anything in silence.
//!
//! A [`Follower`] is plain, synchronous code for a thread that may block. The caller runs
//! [`Follower::step`] when a path event of the name came, when [`Next`] says so, and never twice at
//! the same time. Each step looks where the name leads, opens what is new and reads a bounded number
//! of bytes. An idle file costs three system calls a step.
//!
//! # Which file
//! Each file that the name led to is a *generation*. While it is open, device and inode number tell
//! it from others, as nobody else gets them. For a later life of the process, or a file that comes
//! back, it is known by its [`Identity`]. If the name leads to a file that was followed before and
//! is among the last `keep_generations`, it goes on where it was read to.
//!
//! # Files that nobody saw
//! Two renames between two steps hide the file in between. So the caller steps at each path event of
//! the name, with a budget of 0 if it does not want to read; and a step that finds that the name leads
//! to another file, or to nothing any more, looks for such files in the directory of the name (at the
//! end of its symbolic links): regular files whose names begin with the name, but do not end like
//! those of compressed files, and that were born since the name was last seen to lead to a known file
//! (or since a name was opened that led to nothing) and not after the file that has the name now.
//! Each becomes a generation of its own, in the order of their birth; those that were born in one tick
//! of the kernel, 1 to 10 ms, in the order of their last writes, then of their names. Files that come
//! and go while the name leads to nothing are looked for after a path event
//! ([`Follower::path_event`]); without one they are told when the name leads to a file again.
//!
//! Not found, and lost without a word, are files that were by then deleted, compressed, or renamed to
//! another directory or to a name that begins otherwise; that were created long before under a name of
//! their own; or that were born while the clock of the host, or of the server of a network file
//! system, was behind what it was at the last look. Where the file system tells no time of birth,
//! nothing is looked for. If the directory cannot be read, or has more than 4,096 entries, so that
//! files may be missing, that is told as one `GaveUp` with a generation number of its own. A copy, or
//! another file of such a name, that is made between the last look and the rotation cannot be told
//! from a rotated one.
//!
//! # Order
//! 1. A generation is read to its end before the next one begins.
//! 2. A file that lost its name is closed when it is read to its end and nobody has it open for
//!    writing any more. Until then the next one waits, but not longer than `rotated_wait` after the
//!    name was lost: then it begins as soon as all is told that the old file had at that moment.
//! 3. What comes into the old file later is told too, as `Data` of the old generation between those
//!    of the new one. A step gives at most half of what it may read to such late bytes.
//! 4. If the kernel does not tell whether a writer is left, the old file is closed when nothing came
//!    for `rotated_wait`; that is told as `GaveUp`.
//!
//! Every byte is told once: also if the reader pauses, as names are followed meanwhile, and after a
//! restart with a [`Position`].
//!
//! # Files that are cut
//! Before bytes are told, the last 64 in front of them are compared with what the file has there
//! now. So a file that was cut and has grown beyond the place of reading is noticed, unless those 64
//! bytes are the same. After a cut the file is read from its start; what was cut off before it was
//! read is lost, and told as far as it is known. A hole is skipped and told, but not at the end of
//! the file: there it is space that a writer has reserved.

mod beside;
mod error;
mod generation;
mod identity;
mod missed;
mod name;
mod naming;
mod position;
mod reading;
mod rotated;
mod spec;
mod told;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::mem;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Instant;

use rustix::io::Errno;

pub use self::error::{Doing, Error, NotRegular};
pub use self::identity::Identity;
pub use self::position::{Position, Standing};
pub use self::spec::{Begin, Spec};
pub use self::told::{Change, GaveUp, Next, Status, Step, Told};

use self::generation::Generation;
use self::missed::Since;
use self::position::FilePosition;

/// What the caller has to watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest<'a> {
    /// A step is due when anything happens to this name or to the file that it leads to: creation,
    /// renaming, deletion, writing, a change of its mode, and the same for each symbolic link and
    /// directory on its way. Files that lost the name need no watch: steps look at them by time.
    /// The watch must be there before the first step.
    pub path: &'a Path,
}

/// Reads or follows one file.
#[derive(Debug)]
pub struct Follower {
    spec: Spec,
    /// The open files, in the order of reading. If the name leads to one, it is the last.
    generations: VecDeque<Generation>,
    /// How far the last files were read that are closed now, the newest last.
    closed: VecDeque<FilePosition>,
    /// Whether the name leads to the last of `generations`.
    leads: bool,
    /// The generation that has the name, as it was told last.
    named: Option<u64>,
    newest: u64,
    /// Since when files may have been missed. None: nothing is looked for.
    since: Option<Since>,
    offset: u64,
    given_up: u64,
    given_up_bytes: u64,
    /// The failure to look up the name that was told and is not over.
    failing: Option<Error>,
    /// Told by the next step.
    early: Vec<Told>,
    /// There was a path event since the last step.
    path_event: bool,
    done: bool,
    /// Of the step that is being done: [`Step::marks`] and [`Step::released`].
    marks: Vec<(usize, Standing)>,
    released: Vec<OwnedFd>,
}

impl Follower {
    /// Opens the file. With `follow` it need not exist.
    ///
    /// # Errors
    /// A field that is not allowed, something else than a regular file, and what open(2) and
    /// statx(2) refuse; ENOENT only without `follow`. With `follow` and `resume` the name may be in
    /// any state: the first step tells it.
    pub fn open(mut spec: Spec, now: Instant) -> Result<Self, Error> {
        spec.check()?;
        let resume = spec.resume.take();
        let mut follower = Self::new(spec);
        match resume {
            None => follower.begin(now)?,
            Some(position) => follower.resume(position, now)?,
        }
        if !follower.spec.follow && follower.generations.is_empty() {
            let path = follower.spec.path;
            return Err(Error::Io {
                doing: Doing::Open,
                path,
                errno: Errno::NOENT,
            });
        }
        Ok(follower)
    }

    /// Goes on in a later life of the process with the files that the one before had open, in the order
    /// of its [`Standing`], whose position `spec.resume` is. Where one of them is missing, all are
    /// looked for by their names.
    ///
    /// # Errors
    /// As for [`Follower::open`].
    pub fn again(mut spec: Spec, files: Vec<OwnedFd>, now: Instant) -> Result<Self, Error> {
        match spec
            .resume
            .take_if(|position| position.files.len() == files.len())
        {
            Some(position) if position.is_one() => {
                spec.check()?;
                let mut follower = Self::new(spec);
                follower.go_on(position, files, now)?;
                Ok(follower)
            }
            Some(position) => Self::open(
                Spec {
                    resume: Some(position),
                    ..spec
                },
                now,
            ),
            None => Self::open(spec, now),
        }
    }

    fn new(spec: Spec) -> Self {
        Self {
            spec,
            generations: VecDeque::new(),
            closed: VecDeque::new(),
            leads: false,
            named: None,
            newest: 0,
            since: None,
            offset: 0,
            given_up: 0,
            given_up_bytes: 0,
            failing: None,
            early: Vec::new(),
            path_event: false,
            done: false,
            marks: Vec::new(),
            released: Vec::new(),
        }
    }

    /// Tells the next step that there was a path event of the name: if the name leads to nothing, files
    /// may have had it meanwhile.
    pub fn path_event(&mut self) {
        self.path_event = true;
    }

    /// Looks where the name leads and reads at most `budget` bytes. With a budget of 0 it reads
    /// nothing, but still follows the name, opens new files and notices that one was cut.
    pub fn step(&mut self, now: Instant, budget: usize) -> Step {
        let mut told = mem::take(&mut self.early);
        self.marks.clear();
        if self.done {
            return self.stepped(told, Next::Done);
        }
        self.mark(&told);
        if self.spec.follow {
            self.look_up(now, &mut told);
            self.mark(&told);
        }
        let more = self.read(now, budget, &mut told);
        self.keep_within_bounds(&mut told);
        if !self.spec.follow && self.generations.is_empty() {
            told.push(Told::Eof {
                offset: self.offset,
            });
            self.done = true;
        }
        let next = if self.done {
            Next::Done
        } else if more {
            Next::More
        } else {
            Next::Wake {
                after: self.wake_after(now, budget),
            }
        };
        self.stepped(told, next)
    }

    fn stepped(&mut self, told: Vec<Told>, next: Next) -> Step {
        Step {
            told,
            next,
            marks: mem::take(&mut self.marks),
            standing: self.standing(),
            released: mem::take(&mut self.released),
        }
    }

    /// Notes how far it is told after what this step has told so far.
    fn mark(&mut self, told: &[Told]) {
        let marked = self.marks.last().map_or(0, |(count, _)| *count);
        if told.len() > marked {
            let standing = self.standing();
            self.marks.push((told.len(), standing));
        }
    }

    /// How far is told what no step has still to tell, with the files that are open.
    pub fn standing(&self) -> Standing {
        let mut position = self.position();
        if !self.early.is_empty() {
            // The name of the first file.
            position.named = None;
        }
        let files = self.generations.iter();
        let files = files.filter_map(|open| crate::state::descriptor(open.file.as_fd()));
        Standing {
            position,
            files: files.collect(),
        }
    }

    /// Ends it, and returns its open files.
    #[must_use]
    pub fn into_files(self) -> Vec<OwnedFd> {
        let open = self.generations.into_iter().map(|open| open.file);
        open.chain(self.released).collect()
    }

    /// How far was told, for a `Follower` in a later life of the process.
    pub fn position(&self) -> Position {
        Position {
            generation: self.newest,
            offset: self.offset,
            named: self.named,
            files: self.generations.iter().map(Generation::position).collect(),
            since: self.since.clone(),
            closed: self.closed.iter().cloned().collect(),
            given_up: self.given_up,
            given_up_bytes: self.given_up_bytes,
        }
    }

    /// What the caller has to watch.
    pub fn interest(&self) -> Interest<'_> {
        Interest {
            path: &self.spec.path,
        }
    }

    /// Figures, as of the last step.
    pub fn status(&self) -> Status {
        Status {
            generation: self.newest,
            offset: self.offset,
            open: self.generations.len(),
            rotated: self.rotated(),
            unread_bytes: self.generations.iter().map(Generation::unread).sum(),
            deleted_bytes: self.deleted_bytes(),
            given_up: self.given_up,
            given_up_bytes: self.given_up_bytes,
        }
    }
}
