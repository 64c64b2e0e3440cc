//! Where events are encoded.

use bytes::{Bytes, BytesMut};

use crate::event::Encode;
use crate::faults::{self, Point};
use crate::state::Writer;

/// Encoded events that are not committed.
#[derive(Debug)]
pub(super) enum Buffer {
    /// In memory that ends with the daemon.
    Own(BytesMut),
    /// In memory that later lives find.
    Kept {
        writer: Writer,
        /// The bytes that are not committed.
        len: usize,
    },
}

impl Buffer {
    pub(super) const fn kept(writer: Writer) -> Self {
        Self::Kept { writer, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Own(bytes) => bytes.len(),
            Self::Kept { len, .. } => *len,
        }
    }

    /// Returns whether later lives find all that was committed, if they find any.
    pub(super) const fn is_whole(&self) -> bool {
        match self {
            Self::Own(_) => true,
            Self::Kept { writer, .. } => writer.is_whole(),
        }
    }

    /// Appends an event. If there is no room for it, takes memory of at least `block` bytes. Returns
    /// the size of its encoding.
    #[inline]
    pub(super) fn append(&mut self, event: impl Encode, block: impl FnOnce() -> usize) -> usize {
        let size = event.size();
        match self {
            Self::Own(bytes) => {
                if bytes.capacity() - bytes.len() < size {
                    bytes.reserve(block().max(size));
                }
                event.put(bytes);
            }
            Self::Kept { writer, len } => {
                let mut room = writer.room(size, block);
                faults::point(Point::EventHalfWritten);
                event.put(&mut room);
                *len += size;
            }
        }
        size
    }

    /// Commits the events, and passes them to `take` in pieces. An event lies in one piece.
    pub(super) fn commit(&mut self, mut take: impl FnMut(Bytes)) {
        match self {
            Self::Own(bytes) if bytes.is_empty() => {}
            Self::Own(bytes) => take(bytes.split().freeze()),
            Self::Kept { writer, len } => {
                writer.commit(take);
                *len = 0;
            }
        }
    }

    /// Returns the bytes at this place, counted from the first that is not committed; `None` if they do
    /// not lie in one piece.
    pub(super) fn get(&self, from: usize, to: usize) -> Option<&[u8]> {
        match self {
            Self::Own(bytes) => bytes.get(from..to),
            Self::Kept { writer, .. } => {
                let mut start = 0;
                for piece in writer.pending() {
                    if from < start + piece.len() {
                        return piece.get(from.checked_sub(start)?..to.checked_sub(start)?);
                    }
                    start += piece.len();
                }
                None
            }
        }
    }
}
