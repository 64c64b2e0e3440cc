//! One open file, and reading from it.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, pread, read, retry_on_intr};

use super::identity::Identity;
use super::name::{Inode, Opened, stat};
use super::position::{FilePosition, TAIL};
use super::rotated::Rotated;

/// How far the NULs after a hole are taken for a part of it, in bytes: the usual block size. A hole
/// ends at a block's boundary, but the gap that a writer left ends where the writer went on.
const BLOCK: usize = 4096;

/// One file that the name led to.
#[derive(Debug)]
pub(super) struct Generation {
    pub(super) number: u64,
    pub(super) file: OwnedFd,
    pub(super) inode: Inode,
    /// None: the name leads to it.
    pub(super) rotated: Option<Rotated>,
    /// The failure that was told and is not over.
    pub(super) failing: Option<Errno>,
    /// The disk space that only this descriptor holds, in bytes, at the last look.
    pub(super) deleted_bytes: u64,
    identity: Identity,
    /// The next byte to read.
    at: u64,
    /// The last bytes before `at`, at most `TAIL`; none that belong to a hole, as they may change.
    tail: Vec<u8>,
    /// The bytes from `at` on that were there at a look, if the tail is short.
    peeked: Vec<u8>,
    /// The size at the last look.
    seen: u64,
    /// NULs were read, so holes are looked for before each read.
    sparse: bool,
    /// Its size is not asked for: it is read once, until there is nothing more.
    sizeless: bool,
}

/// What reading gave.
#[derive(Debug)]
pub(super) enum Read {
    /// The next bytes.
    Data(Bytes),
    /// A hole of this length, in front of data.
    Hole(u64),
    /// The file was cut; so many bytes that were not read are known to be lost.
    Truncated { lost: u64 },
    /// There is no more data. A hole of this length is at the end, which is not skipped: a writer
    /// that has reserved space will write there.
    End { hole: u64 },
}

/// What the next bytes are.
enum Ahead {
    /// At least so many bytes of data.
    Data(usize),
    Hole(u64),
    HoleAtEnd(u64),
}

impl Generation {
    /// A file that is read from its start.
    pub(super) fn new(number: u64, opened: Opened) -> Self {
        Self {
            number,
            file: opened.file,
            inode: Inode::of(&opened.stat),
            rotated: None,
            failing: None,
            deleted_bytes: 0,
            identity: opened.identity,
            at: 0,
            tail: Vec::new(),
            peeked: Vec::new(),
            seen: opened.stat.stx_size,
            sparse: false,
            sizeless: false,
        }
    }

    /// The same; if it seems to be empty it is read all the same, as files of /proc tell no size.
    pub(super) fn read_once(self) -> Self {
        let sizeless = self.seen == 0;
        Self { sizeless, ..self }
    }

    /// A file of which a part is read already.
    pub(super) fn resume(known: FilePosition, opened: Opened) -> Self {
        Self {
            at: known.at,
            tail: known.tail,
            seen: known.seen,
            ..Self::new(known.generation, opened)
        }
    }

    /// A file that an earlier life of the process has left open.
    pub(super) fn again(known: FilePosition, file: OwnedFd, now: Instant) -> Result<Self, Errno> {
        let stat = stat(&file)?;
        let identity = known.identity.clone();
        let opened = Opened {
            file,
            stat,
            identity,
        };
        if known.sizeless {
            // What was read of it and not told is read again.
            seek(&opened.file, SeekFrom::Start(known.at))?;
        }
        let rotated = known.rotated.as_ref();
        Ok(Self {
            rotated: rotated.map(|rotated| Rotated::again(rotated, now)),
            failing: known.failing.map(Errno::from_raw_os_error),
            peeked: known.peeked.clone(),
            sparse: known.sparse,
            sizeless: known.sizeless,
            ..Self::resume(known, opened)
        })
    }

    /// Begins at this byte, which is not beyond the end.
    pub(super) fn begin_at(&mut self, at: u64) -> Result<(), Errno> {
        let from = at.saturating_sub(TAIL as u64);
        self.tail = self.pread(from, TAIL.min(usize::try_from(at).unwrap_or(TAIL)))?;
        self.at = at;
        self.sizeless = false;
        Ok(())
    }

    pub(super) fn position(&self) -> FilePosition {
        FilePosition {
            generation: self.number,
            identity: self.identity.clone(),
            at: self.at,
            tail: self.tail.clone(),
            seen: self.seen,
            peeked: self.peeked.clone(),
            sparse: self.sparse,
            sizeless: self.sizeless,
            failing: self.failing.map(Errno::raw_os_error),
            rotated: self.rotated.as_ref().map(Rotated::position),
        }
    }

    pub(super) fn is(&self, identity: &Identity) -> bool {
        self.identity.is_same_file(identity)
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// How many bytes were not read, at the last look.
    pub(super) fn unread(&self) -> u64 {
        self.seen.saturating_sub(self.at)
    }

    /// Whether all is read that was there when `rotated_wait` was over, so that later files need
    /// not wait for this one.
    pub(super) fn judge(&mut self, now: Instant, wait: Duration, end: bool) {
        if let Some(rotated) = &mut self.rotated {
            rotated.judge(now, wait, self.at, self.seen, end);
        }
    }

    /// Reads at most `most` bytes, which is not 0.
    ///
    /// Nothing that was read is handed out before the bytes in front of it were compared with what
    /// they were: a file that was cut and has grown beyond the place of reading, even during the
    /// read, is found by this.
    pub(super) fn read(&mut self, most: usize) -> Result<Read, Errno> {
        if self.sizeless {
            return self.read_sizeless(most);
        }
        let (before, size) = (self.seen, self.look()?);
        if size < self.at {
            return Ok(self.begin_again(before));
        }
        let most = usize::try_from(size - self.at).map_or(most, |left| left.min(most));
        let ahead = if self.sparse && most > 0 {
            self.ahead(size)?
        } else {
            Ahead::Data(most)
        };
        let data = match ahead {
            Ahead::Data(length) => self.pread(self.at, length.min(most))?,
            Ahead::Hole(_) | Ahead::HoleAtEnd(_) => Vec::new(),
        };
        if !self.is_unchanged(&data)? {
            return Ok(self.begin_again(before));
        }
        if size < before {
            return Ok(Read::Truncated {
                lost: before - size,
            });
        }
        match ahead {
            Ahead::Hole(length) => self.skip(length),
            Ahead::HoleAtEnd(hole) => Ok(Read::End { hole }),
            Ahead::Data(_) if data.is_empty() => Ok(Read::End { hole: 0 }),
            Ahead::Data(_) if !self.sparse && data.contains(&0) => {
                self.sparse = true;
                self.read(most)
            }
            Ahead::Data(_) => {
                self.at += data.len() as u64;
                self.peeked.clear();
                push_last(&mut self.tail, &data);
                Ok(Read::Data(data.into()))
            }
        }
    }

    /// Reads without regard to the size. What such a file had before is not compared: it may be
    /// another text each time, as that of /proc/uptime.
    fn read_sizeless(&mut self, most: usize) -> Result<Read, Errno> {
        let mut bytes = vec![0; most];
        // Some of these files can only be read in order: read(2), not pread(2).
        let length = retry_on_intr(|| read(&self.file, &mut bytes[..]))?;
        bytes.truncate(length);
        if bytes.is_empty() {
            return Ok(Read::End { hole: 0 });
        }
        self.at += bytes.len() as u64;
        push_last(&mut self.tail, &bytes);
        // It was empty and was written since, if it has a size now.
        self.sizeless = self.look().is_ok_and(|size| size == 0);
        Ok(Read::Data(bytes.into()))
    }

    /// Looks whether the file was cut, and reads nothing.
    pub(super) fn check(&mut self) -> Result<Option<Read>, Errno> {
        if self.sizeless {
            return Ok(None);
        }
        let (before, size) = (self.seen, self.look()?);
        if size < self.at {
            return Ok(Some(self.begin_again(before)));
        }
        let mut data = self.pread(self.at, TAIL - self.tail.len())?;
        if !self.is_unchanged(&data)? {
            return Ok(Some(self.begin_again(before)));
        }
        // NULs may belong to reserved space, which is written to later.
        data.truncate(
            data.iter()
                .position(|&byte| byte == 0)
                .unwrap_or(data.len()),
        );
        self.peeked = data;
        Ok((size < before).then(|| Read::Truncated {
            lost: before - size,
        }))
    }

    /// Looks at the size and the links. Returns the size.
    pub(super) fn look(&mut self) -> Result<u64, Errno> {
        let stat = stat(&self.file)?;
        self.seen = stat.stx_size;
        self.deleted_bytes = if stat.stx_nlink == 0 {
            stat.stx_blocks * 512
        } else {
            0
        };
        Ok(stat.stx_size)
    }

    /// The file, which had `before` bytes, was cut in front of the place of reading.
    fn begin_again(&mut self, before: u64) -> Read {
        let lost = before.saturating_sub(self.at);
        self.at = 0;
        // It may have been cut after the look, so the size that was seen then may be the old one.
        self.seen = 0;
        self.tail.clear();
        self.peeked.clear();
        self.sparse = false;
        Read::Truncated { lost }
    }

    /// Compares what is known of the file with what is there now: the bytes before the place of
    /// reading, and, if those are few, the first ones of `data`, which was just read behind it.
    fn is_unchanged(&self, data: &[u8]) -> Result<bool, Errno> {
        if data.iter().zip(&self.peeked).any(|(now, then)| now != then) {
            return Ok(false);
        }
        let tail = &self.tail;
        let data = &data[..data.len().min(TAIL - tail.len())];
        let now = self.pread(self.at - tail.len() as u64, tail.len() + data.len())?;
        Ok(now.strip_prefix(tail.as_slice()) == Some(data))
    }

    fn ahead(&self, size: u64) -> Result<Ahead, Errno> {
        match seek(&self.file, SeekFrom::Data(self.at)) {
            Ok(data) if data > self.at => Ok(Ahead::Hole(data - self.at)),
            Ok(_) => match seek(&self.file, SeekFrom::Hole(self.at)) {
                Ok(end) => Ok(Ahead::Data(
                    usize::try_from(end - self.at).unwrap_or(usize::MAX),
                )),
                // Cut since.
                Err(Errno::NXIO) => Ok(Ahead::HoleAtEnd(0)),
                Err(errno) => Err(errno),
            },
            Err(Errno::NXIO) => Ok(Ahead::HoleAtEnd(size - self.at)),
            // A file system that does not know its holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Ahead::Data(usize::MAX)),
            Err(errno) => Err(errno),
        }
    }

    fn skip(&mut self, hole: u64) -> Result<Read, Errno> {
        let block = self.pread(self.at + hole, BLOCK)?;
        let length = hole + block.iter().take_while(|&&byte| byte == 0).count() as u64;
        self.at += length;
        self.tail.clear();
        self.peeked.clear();
        Ok(Read::Hole(length))
    }

    fn pread(&self, at: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = Vec::with_capacity(length);
        if length > 0 {
            retry_on_intr(|| pread(&self.file, spare_capacity(&mut bytes), at))?;
            bytes.truncate(length);
        }
        Ok(bytes)
    }
}

/// Keeps the last `TAIL` bytes of `tail` and `data` in `tail`.
fn push_last(tail: &mut Vec<u8>, data: &[u8]) {
    let new = &data[data.len().saturating_sub(TAIL)..];
    let surplus = (tail.len() + new.len()).saturating_sub(TAIL);
    tail.drain(..surplus);
    tail.extend_from_slice(new);
}
