//! Bytes that were received.

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

/// The largest number of bytes that is stored inline: with more, a `Received` would be larger.
const FEW: usize = 22;

/// Bytes that were received. A few bytes are stored inline: most events of busy sources are small,
/// and copying them costs less than sharing memory.
pub struct Received(Repr);

enum Repr {
    Few { len: u8, bytes: [u8; FEW] },
    Many(Bytes),
}

impl Received {
    /// Copies the first `len` bytes, if they are few.
    #[inline]
    #[allow(clippy::cast_possible_truncation)]
    pub(super) fn few(memory: &[u8], len: usize) -> Option<Self> {
        if len > FEW {
            return None;
        }
        let bytes = match memory.first_chunk() {
            // A copy of the whole array is faster than one of `len` bytes.
            Some(bytes) => *bytes,
            None => {
                let mut bytes = [0; FEW];
                bytes.get_mut(..len)?.copy_from_slice(memory.get(..len)?);
                bytes
            }
        };
        // `len` is at most `FEW`, so it fits.
        let len = len as u8;
        Some(Self(Repr::Few { len, bytes }))
    }

    /// Splits off the first `most` bytes. Returns them, and the rest if there is one.
    #[inline]
    pub(super) fn split(self, most: usize) -> (Self, Option<Self>) {
        if self.len() <= most {
            return (self, None);
        }
        let mut first = Bytes::from(self);
        let rest = first.split_off(most);
        (first.into(), Some(rest.into()))
    }
}

impl Default for Received {
    fn default() -> Self {
        Self(Repr::Few {
            len: 0,
            bytes: [0; FEW],
        })
    }
}

impl Deref for Received {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Few { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Repr::Many(bytes) => bytes,
        }
    }
}

impl From<Bytes> for Received {
    fn from(bytes: Bytes) -> Self {
        Self(Repr::Many(bytes))
    }
}

impl From<Received> for Bytes {
    fn from(received: Received) -> Self {
        match received.0 {
            Repr::Few { .. } => Self::copy_from_slice(&received),
            Repr::Many(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_take_no_more_room_than_many() {
        assert_eq!(size_of::<Received>(), size_of::<Bytes>());
        let memory = [7; 2 * FEW];
        assert!(Received::few(&memory, FEW + 1).is_none());
        for len in [0, 1, FEW] {
            let few = Received::few(&memory, len);
            assert_eq!(few.as_deref(), Some(&memory[..len]));
            let few = Received::few(&memory[..len], len);
            assert_eq!(few.as_deref(), Some(&memory[..len]));
        }
    }

    #[test]
    fn nothing_is_lost_where_it_is_split() {
        for received in [Received::few(b"abc", 3), Some(Bytes::from("abc").into())] {
            let (first, rest) = received.unwrap_or_default().split(2);
            assert_eq!((&*first, rest.as_deref()), (&b"ab"[..], Some(&b"c"[..])));
            let (all, none) = first.split(2);
            assert_eq!((&*all, none.is_none()), (&b"ab"[..], true));
        }
    }
}
