//! Events, cursors and epochs: the vocabulary that all other modules share.
//!
//! An event is the protobuf message itself. It is encoded once, when it is appended, as an element
//! of `Batch.events`. So a batch is a small header and slices of encoded events.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::BufMut;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

mod data;
pub mod largest;
mod scan;

pub use data::{DataEvent, DatagramEvent, DatagramHead, EventHead};
pub use scan::Scanned;

pub use crate::proto::event::Kind;
pub use crate::proto::{
    AcceptPaused, Accepted, Added, CloseReason, Closed, Connected, Data, Datagram, DatagramError,
    DatagramsDropped, Ended, Eof, Event, Exited, FailedAttempt, FileChanged, Gap, GapReason,
    GroupChanged, HandshakesFailed, LifetimeEnded, LoopState, LoopStateChanged, PathChanged,
    PathRescan, PathRoot, PathSynced, PolicyChanged, PolicyScope, Posted, Ready, Recovered,
    Removed, Resized, Signal, Started, Stream, StreamEnd, StreamEndReason, TimerFired, TlsSession,
    TlsStarted, UpdateCause, Updated, WritePaused, WriteResumed,
};

/// The labels of a watch. They are few and small, and the watch shares them with its events.
pub type Labels = Arc<BTreeMap<String, String>>;

/// Most bytes of payload in one event.
pub const PAYLOAD_MAX: usize = 256 * 1024;

/// Field number of `Batch.events`.
const BATCH_EVENTS: u32 = 3;

/// The name of a history: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(u128);

impl Epoch {
    /// Returns a new epoch.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(u128::from_le_bytes(bytes)))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Epoch {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.len() == 32
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        u128::from_str_radix(text, 16)
            .ok()
            .filter(|_| digits)
            .map(Self)
            .ok_or("an epoch is 32 lower-case hexadecimal digits")
    }
}

/// A position in a journal: right after the event `seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The history it belongs to; `None` in a request means the current one.
    pub epoch: Option<Epoch>,
    /// 0 means the position before the first event.
    pub seq: u64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.epoch {
            Some(epoch) => write!(f, "{epoch}:{}", self.seq),
            None => write!(f, ":{}", self.seq),
        }
    }
}

impl FromStr for Cursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (epoch, seq) = text.rsplit_once(':').unwrap_or(("", text));
        let epoch = match epoch {
            "" => None,
            epoch => Some(epoch.parse()?),
        };
        let seq = seq.parse().map_err(|_| "a cursor is EPOCH:SEQ")?;
        Ok(Self { epoch, seq })
    }
}

impl From<Cursor> for crate::proto::Cursor {
    fn from(cursor: Cursor) -> Self {
        Self {
            epoch: cursor.epoch.map(|e| e.to_string()).unwrap_or_default(),
            seq: cursor.seq,
        }
    }
}

/// An event that is to be encoded as an element of `Batch.events`.
pub trait Encode {
    /// Returns the size of its encoding, bytes.
    fn size(&self) -> usize;
    /// Appends its encoding.
    fn put(self, buf: &mut impl BufMut);
}

/// Any event.
#[derive(Debug, Clone, Copy)]
pub struct WholeEvent<'a> {
    event: &'a Event,
    len: usize,
}

impl<'a> WholeEvent<'a> {
    /// Measures the event.
    #[must_use]
    pub fn new(event: &'a Event) -> Self {
        let len = event.encoded_len();
        Self { event, len }
    }
}

impl Encode for WholeEvent<'_> {
    fn size(&self) -> usize {
        // The key takes one byte.
        1 + encoded_len_varint(self.len as u64) + self.len
    }

    fn put(self, buf: &mut impl BufMut) {
        encode_key(BATCH_EVENTS, WireType::LengthDelimited, buf);
        encode_varint(self.len as u64, buf);
        self.event.encode_raw(buf);
    }
}

/// Appends the part of a `Batch` that is not its events.
pub fn encode_batch_header(
    after: u64,
    through: u64,
    gaps: &[Gap],
    caught_up: bool,
    buf: &mut impl BufMut,
) {
    prost::encoding::uint64::encode(1, &after, buf);
    prost::encoding::uint64::encode(2, &through, buf);
    prost::encoding::message::encode_repeated(4, gaps, buf);
    if caught_up {
        prost::encoding::bool::encode(5, &caught_up, buf);
    }
}

/// Returns the size of what [`encode_batch_header`] appends.
#[must_use]
pub fn batch_header_len(after: u64, through: u64, gaps: &[Gap], caught_up: bool) -> usize {
    let caught_up = if caught_up { 2 } else { 0 };
    prost::encoding::uint64::encoded_len(1, &after)
        + prost::encoding::uint64::encoded_len(2, &through)
        + prost::encoding::message::encoded_len_repeated(4, gaps)
        + caught_up
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Batch;

    fn event(seq: u64) -> Event {
        Event {
            seq,
            monotonic_ns: 7,
            kind: Some(Kind::Started(Started { pid: 3 })),
            ..Event::default()
        }
    }

    #[test]
    fn a_batch_is_its_header_and_encoded_events_in_any_order() {
        let gaps = [Gap {
            from_seq: 1,
            through_seq: 3,
            reason: GapReason::Trimmed.into(),
        }];
        let mut buf = bytes::BytesMut::new();
        for event in [event(4), event(5)] {
            let before = buf.len();
            let encoded = WholeEvent::new(&event);
            encoded.put(&mut buf);
            assert_eq!(encoded.size(), buf.len() - before);
        }
        let size = buf.len();
        encode_batch_header(0, 5, &gaps, true, &mut buf);
        assert_eq!(buf.len(), size + batch_header_len(0, 5, &gaps, true));
        let batch = Batch::decode(buf.freeze()).unwrap();
        assert_eq!(batch.events, [event(4), event(5)]);
        assert_eq!(batch.gaps, gaps);
        assert_eq!((batch.after, batch.through, batch.caught_up), (0, 5, true));
    }

    #[test]
    fn cursors_read_as_they_are_written() {
        let cursor = Cursor {
            epoch: Some(Epoch::random().unwrap()),
            seq: 42,
        };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        assert_eq!(
            "17".parse(),
            Ok(Cursor {
                epoch: None,
                seq: 17
            })
        );
        assert!("xyz:1".parse::<Cursor>().is_err());
        assert!(
            "+0000000000000000000000000000000:1"
                .parse::<Cursor>()
                .is_err()
        );
    }
}
