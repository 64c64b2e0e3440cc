//! Two sessions of TLS with a network between them that cuts the bytes into pieces and damages them.

use evloopd::tls::session::Framing;
use evloopd::tls::{Authority, Identity, Session, Setup, Side};
use proptest::prelude::*;
use rustls::pki_types::ServerName;

use crate::fuzz;

const CERT: &[u8] = include_bytes!("corpus/host.pem");
const KEY: &[u8] = include_bytes!("corpus/host.key");
/// The header of a record, and the largest length that it can announce.
const RECORD_MAX: usize = 5 + 65_535;

/// What happens to the bytes of one direction at some place.
#[derive(Debug, Clone)]
enum Damage {
    Flip(u8),
    Insert(Vec<u8>),
    Delete(usize),
    /// The same bytes twice.
    Repeat(usize),
    /// Nothing comes any more.
    Cut,
}

#[derive(Debug, Clone)]
struct Case {
    /// What each side writes, the client first.
    writes: [Vec<usize>; 2],
    /// The sizes of the pieces in which bytes arrive, over and over.
    pieces: Vec<usize>,
    /// Where the bytes of a side are damaged, and how.
    damage: Option<(usize, usize, Damage)>,
}

fn damage() -> impl Strategy<Value = Damage> {
    let records = prop_oneof![
        Just(b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        // An alert: close_notify, in the clear.
        Just(vec![21, 3, 3, 0, 2, 1, 0]),
        // A change of the cipher, as middle boxes see it.
        Just(vec![20, 3, 3, 0, 1, 1]),
        // Empty records.
        Just([23, 3, 3, 0, 0].repeat(20)),
        Just(vec![22, 3, 3, 255, 255]),
        prop::collection::vec(any::<u8>(), 1..40),
    ];
    prop_oneof![
        (1..=255u8).prop_map(Damage::Flip),
        records.prop_map(Damage::Insert),
        (1..200usize).prop_map(Damage::Delete),
        (1..200usize).prop_map(Damage::Repeat),
        Just(Damage::Cut),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let sizes = || prop::collection::vec(prop_oneof![0..200usize, 0..40_000usize], 0..4);
    let pieces = prop::collection::vec(prop_oneof![1..10usize, 1..20_000usize], 1..8);
    // Most of a handshake is in the first 2,000 bytes of a side.
    let place = prop_oneof![0..2_000usize, 0..50_000usize];
    let damage = prop::option::weighted(0.8, (0..2usize, place, damage()));
    (sizes(), sizes(), pieces, damage).prop_map(|(client, server, pieces, damage)| Case {
        writes: [client, server],
        pieces,
        damage,
    })
}

/// One direction of the network.
#[derive(Default)]
struct Wire {
    damage: Option<(usize, Damage)>,
    /// The bytes that were sent, counted before they are damaged.
    sent: usize,
    waiting: Vec<u8>,
    cut: bool,
}

impl Wire {
    fn send(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let mut byte = *byte;
            if let Some((_, damage)) = self.damage.take_if(|(at, _)| *at == self.sent) {
                match damage {
                    Damage::Flip(mask) => byte ^= mask,
                    Damage::Insert(more) => self.waiting.extend(more),
                    Damage::Delete(count) if count > 1 => {
                        self.damage = Some((self.sent + 1, Damage::Delete(count - 1)));
                        self.sent += 1;
                        continue;
                    }
                    Damage::Delete(_) => {
                        self.sent += 1;
                        continue;
                    }
                    Damage::Repeat(count) => {
                        let from = self.waiting.len().saturating_sub(count);
                        self.waiting.extend_from_within(from..);
                    }
                    Damage::Cut => self.cut = true,
                }
            }
            self.sent += 1;
            if !self.cut {
                self.waiting.push(byte);
            }
        }
    }
}

/// One side, and everything that it got.
struct Peer {
    session: Session,
    /// What it will still write.
    writes: Vec<usize>,
    written: Vec<u8>,
    received: Vec<u8>,
    wire: Vec<u8>,
    ended: bool,
    failed: bool,
}

impl Peer {
    fn new(setup: &Setup, mut writes: Vec<usize>) -> Self {
        writes.reverse();
        Self {
            session: setup.session().unwrap(),
            writes,
            written: Vec::new(),
            received: Vec::new(),
            wire: Vec::new(),
            ended: false,
            failed: false,
        }
    }

    /// Takes bytes as a connection does: first for the handshake, then as data.
    fn take(&mut self, bytes: &[u8]) {
        if self.failed {
            return;
        }
        self.wire.extend_from_slice(bytes);
        let received = &mut self.received;
        let mut add = |plain: &[u8]| received.extend_from_slice(plain);
        let fed = if self.session.is_handshaking() {
            let fed = self.session.feed_handshake(bytes);
            if fed.is_ok() && !self.session.is_handshaking() {
                self.session.drain(&mut add);
            }
            fed
        } else {
            self.session.feed(bytes, add)
        };
        self.failed = fed.is_err();
    }

    /// Writes what is due, and returns what is to be sent.
    fn put(&mut self) -> Vec<u8> {
        let mut output = Vec::new();
        self.session.take_output(&mut output);
        if !self.failed && !self.session.is_handshaking() {
            if let Some(size) = self.writes.pop() {
                let from = self.written.len();
                let bytes = (from..from + size).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]);
                let bytes: Vec<u8> = bytes.collect();
                self.session.write(&bytes);
                self.written.extend(bytes);
            } else if !self.ended {
                self.ended = true;
                self.session.end();
            }
            self.session.take_output(&mut output);
        }
        output
    }
}

/// Returns how many bytes of an unfinished record there are.
fn unfinished(mut wire: &[u8]) -> usize {
    while let Some(length) = wire.get(3..5) {
        let length = 5 + usize::from(u16::from_be_bytes([length[0], length[1]]));
        let Some(rest) = wire.get(length..) else {
            break;
        };
        wire = rest;
    }
    wire.len()
}

fn setups() -> [Setup; 2] {
    let name = ServerName::try_from("host.test").unwrap();
    let trust = Authority::given(CERT).unwrap();
    let identity = Identity::given(CERT, KEY).unwrap();
    let alpn = || vec![b"x".to_vec()];
    let client = Setup::new(
        Side::Client(name),
        Identity::Nobody,
        Some(trust),
        alpn(),
        false,
    );
    [
        client,
        Setup::new(Side::Server, identity, None, alpn(), false),
    ]
}

#[test]
fn what_arrives_is_what_was_written_or_an_error_however_bytes_are_cut_and_damaged() {
    let setups = setups();
    fuzz(400, &case(), |case| {
        let Case {
            writes,
            pieces,
            damage,
        } = case;
        let damaged = damage.is_some();
        let [client, server] = writes;
        let mut peers = [Peer::new(&setups[0], client), Peer::new(&setups[1], server)];
        let mut wires = [Wire::default(), Wire::default()];
        if let Some((side, place, damage)) = damage {
            wires[side].damage = Some((place, damage));
        }
        let mut pieces = pieces.into_iter().cycle();
        loop {
            let mut idle = true;
            for side in 0..2 {
                let output = peers[side].put();
                idle &= output.is_empty();
                wires[side].send(&output);
                let waiting = &mut wires[side].waiting;
                let piece = pieces.next().unwrap_or(1).min(waiting.len());
                idle &= piece == 0;
                let bytes: Vec<u8> = waiting.drain(..piece).collect();
                let other = &mut peers[1 - side];
                other.take(&bytes);
                prop_assert!(other.session.held() <= RECORD_MAX);
                if !other.failed && !other.session.has_ended() {
                    prop_assert_eq!(other.session.held(), unfinished(&other.wire));
                }
            }
            if idle
                && peers
                    .iter()
                    .all(|peer| peer.failed || peer.ended || peer.session.is_handshaking())
            {
                break;
            }
        }
        for side in 0..2 {
            let (peer, other) = (&peers[side], &peers[1 - side]);
            prop_assert!(
                other.written.starts_with(&peer.received),
                "other bytes arrived"
            );
            if peer.session.has_ended() && !peer.session.is_handshaking() && !peer.failed {
                prop_assert_eq!(
                    peer.received.len(),
                    other.written.len(),
                    "a cut was not seen"
                );
            }
            if !damaged {
                prop_assert!(!peer.failed);
                prop_assert!(peer.session.has_ended());
            }
        }
        Ok(())
    });
}

#[test]
fn garbage_in_place_of_a_handshake_is_an_error_or_waits_for_more() {
    let setups = setups();
    let garbage = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..3_000),
        // A record of a handshake, or of an alert, with garbage in it.
        (20..25u8, prop::collection::vec(any::<u8>(), 0..3_000)).prop_map(|(kind, body)| {
            let length = u16::try_from(body.len()).unwrap().to_be_bytes();
            [&[kind, 3, 3], &length[..], &body].concat()
        }),
    ];
    fuzz(2_000, &(garbage, any::<bool>()), |(garbage, server)| {
        let mut session = setups[usize::from(server)].session().unwrap();
        let fed = session.feed_handshake(&garbage);
        prop_assert!(session.is_handshaking());
        let mut output = Vec::new();
        session.take_output(&mut output);
        // The first flight, and an alert.
        prop_assert!(output.len() < 4_096, "it sends {} bytes", output.len());
        if let Err(error) = fed {
            let text = error.to_string();
            prop_assert!(
                text.len() < 1_024 && !text.contains(char::is_control),
                "{}",
                text
            );
        }
        Ok(())
    });
}

#[test]
fn the_framing_counts_the_bytes_of_the_record_that_is_not_whole() {
    let record = (any::<u8>(), prop_oneof![0..20u16, 0..2_000u16]);
    let wire = prop::collection::vec(record, 0..10).prop_map(|records| {
        let mut wire = Vec::new();
        for (byte, length) in records {
            wire.extend([byte, 3, 3]);
            wire.extend(length.to_be_bytes());
            wire.extend(std::iter::repeat_n(byte, length.into()));
        }
        wire
    });
    let wire = prop_oneof![wire, prop::collection::vec(any::<u8>(), 0..500)];
    let pieces = prop::collection::vec(prop_oneof![0..6usize, 0..1_000usize], 1..20);
    fuzz(3_000, &(wire, pieces), |(wire, pieces)| {
        let mut framing = Framing::default();
        let mut taken = 0;
        for piece in pieces {
            let next = (taken + piece).min(wire.len());
            framing.take(&wire[taken..next]);
            taken = next;
            prop_assert_eq!(framing.held(), unfinished(&wire[..taken]));
        }
        Ok(())
    });
}
