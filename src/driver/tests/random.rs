//! Random programs of starts, cancellations and actions of the peers, under random budgets: every
//! operation ends once, and bytes arrive complete and in order.

use std::cell::RefCell;
use std::collections::HashMap;

use proptest::test_runner::{Config, TestRunner};

use super::*;

const PEERS: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    Ready(usize, bool),
    Recv(usize),
    Send(usize, usize),
    Cancel(usize, bool),
    PeerWrites(usize, usize),
    PeerReads(usize),
    PeerCloses(usize),
    Turn(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let peer = 0..PEERS;
    prop_oneof![
        2 => (peer.clone(), any::<bool>()).prop_map(|(peer, read)| Step::Ready(peer, read)),
        2 => peer.clone().prop_map(Step::Recv),
        3 => (peer.clone(), 1..200_000_usize).prop_map(|(peer, len)| Step::Send(peer, len)),
        2 => (peer.clone(), any::<bool>()).prop_map(|(peer, read)| Step::Cancel(peer, read)),
        3 => (peer.clone(), 1..40_000_usize).prop_map(|(peer, len)| Step::PeerWrites(peer, len)),
        2 => peer.clone().prop_map(Step::PeerReads),
        1 => peer.prop_map(Step::PeerCloses),
        6 => (1..5_usize, 1..50_000_usize).prop_map(|(completions, bytes)| {
            Step::Turn(completions, bytes)
        }),
    ]
}

/// Returns part of a stream whose bytes show their positions.
fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len)
        .map(|place| u8::try_from(place % 251).unwrap())
        .collect()
}

struct Peer {
    source: SourceId,
    /// `None` once it is closed.
    stream: Option<UnixStream>,
    live: [Option<OpId>; 2],
    /// Bytes written by the peer, received by the driver, sent by the driver, and received by the
    /// peer.
    written: usize,
    received: usize,
    sent: usize,
    read: usize,
}

struct Model<'a> {
    rig: &'a mut Rig,
    peers: Vec<Peer>,
    /// The peer and direction that each live operation belongs to.
    live: HashMap<OpId, (usize, usize)>,
    started: u32,
}

impl Model<'_> {
    fn start(&mut self, peer: usize, op: Op) {
        let direction = usize::from(op.direction() == Direction::Write);
        if self.peers[peer].live[direction].is_some() {
            return;
        }
        self.started += 1;
        let id = id(self.started);
        self.peers[peer].live[direction] = Some(id);
        self.live.insert(id, (peer, direction));
        self.rig.driver.start(id, self.peers[peer].source, op);
    }

    fn cancel(&mut self, peer: usize, direction: usize) {
        if let Some(id) = self.peers[peer].live[direction] {
            self.rig.driver.cancel(id, self.peers[peer].source);
        }
    }

    fn turn(&mut self, budget: Budget) {
        let bound = budget.bytes.max(self.rig.driver.exposed());
        let before = self.received();
        for Completion { id, done, last } in self.rig.turn(Duration::ZERO, budget) {
            let (number, direction) = self.live[&id];
            let peer = &mut self.peers[number];
            match done {
                Done::Data(bytes) => {
                    assert!(*bytes == *pattern(peer.received, bytes.len()));
                    peer.received += bytes.len();
                }
                Done::Sent(len) => peer.sent += len,
                Done::Failed(errno) => assert!(peer.stream.is_none(), "{errno}"),
                Done::Eof => assert!(peer.stream.is_none()),
                Done::Ready(_) | Done::Cancelled => assert!(last),
                Done::Accepted(..) | Done::Connected => panic!("never asked for"),
            }
            if last {
                self.live.remove(&id);
                peer.live[direction] = None;
            }
        }
        let handed_over = self.received() - before;
        assert!(handed_over + self.rig.driver.exposed() <= bound);
    }

    /// Returns the number of bytes received from all peers.
    fn received(&self) -> usize {
        self.peers.iter().map(|peer| peer.received).sum()
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Ready(peer, read) => self.start(peer, if read { READ } else { WRITE }),
            Step::Recv(peer) => self.start(peer, RECV),
            Step::Send(peer, len) => {
                let bytes = pattern(self.peers[peer].sent, len);
                self.start(peer, send(bytes.into()));
            }
            Step::Cancel(peer, read) => self.cancel(peer, usize::from(!read)),
            Step::PeerWrites(peer, len) => {
                let peer = &mut self.peers[peer];
                if let Some(stream) = &mut peer.stream {
                    let bytes = pattern(peer.written, len);
                    peer.written += stream.write(&bytes).unwrap_or(0);
                }
            }
            Step::PeerReads(peer) => self.peers[peer].drain(),
            Step::PeerCloses(peer) => self.peers[peer].stream = None,
            Step::Turn(completions, bytes) => self.turn(Budget { completions, bytes }),
        }
    }
}

impl Peer {
    fn drain(&mut self) {
        let mut buffer = vec![0; 100_000];
        while let Some(Ok(len)) = self.stream.as_mut().map(|stream| stream.read(&mut buffer)) {
            assert!(buffer[..len] == pattern(self.read, len));
            self.read += len;
        }
    }
}

fn scenario(rig: &mut Rig, steps: &[Step]) {
    let peers = [(); PEERS].map(|()| {
        let (ours, stream) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        Peer {
            source: rig.attach(ours, Nonblocking::Socket),
            stream: Some(stream),
            live: [None; 2],
            written: 0,
            received: 0,
            sent: 0,
            read: 0,
        }
    });
    let mut model = Model {
        rig,
        peers: peers.into(),
        live: HashMap::new(),
        started: 0,
    };
    for step in steps {
        model.apply(step);
    }
    for peer in 0..PEERS {
        model.cancel(peer, 0);
        model.cancel(peer, 1);
    }
    model.turn(AMPLE);
    assert!(model.live.is_empty(), "still live: {:?}", model.live);
    for peer in &mut model.peers {
        peer.drain();
        assert!(peer.stream.is_none() || peer.read == peer.sent);
        assert!(peer.received <= peer.written);
        model.rig.driver.detach(peer.source).unwrap();
    }
    model.turn(AMPLE);
}

pub(super) fn every_operation_ends_once(rig: &mut Rig) {
    let config = Config {
        failure_persistence: None,
        ..Config::with_cases(64)
    };
    let rig = RefCell::new(rig);
    TestRunner::new(config)
        .run(&prop::collection::vec(step(), 1..60), |steps| {
            scenario(&mut rig.borrow_mut(), &steps);
            Ok(())
        })
        .unwrap();
}
