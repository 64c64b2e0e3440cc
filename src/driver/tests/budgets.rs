//! Tests of a turn's budget: what a turn may report, and what waits for a later turn.

use super::*;

pub(super) fn sources_take_turns_under_a_budget(rig: &mut Rig) {
    let writers: Vec<OwnedFd> = (0..8)
        .map(|number| {
            let (reader, writer) = blocking_pipe();
            rustix::io::write(&writer, &[0; 32_000]).unwrap();
            let source = rig.attach(reader, Nonblocking::Pipe);
            rig.driver.start(id(number), source, RECV);
            writer
        })
        .collect();
    let tight = [
        Budget {
            completions: 1024,
            bytes: 1000,
        },
        Budget {
            completions: 1,
            bytes: 1000,
        },
    ];
    for budget in tight {
        for _ in 0..2 {
            let mut served = HashSet::new();
            for _ in 0..writers.len() {
                let completions = rig.turn(PATIENCE, budget);
                let [
                    Completion {
                        id,
                        done: Done::Data(bytes),
                        last: false,
                    },
                ] = &completions[..]
                else {
                    panic!("{completions:?}");
                };
                assert_eq!(bytes.len(), 1000);
                served.insert(id.watch.slot);
            }
            assert_eq!(served.len(), writers.len(), "each once");
        }
    }
}

pub(super) fn sends_leave_room_for_receiving(rig: &mut Rig) {
    let mut sinks = Vec::new();
    let sources = [(); 4].map(|()| {
        let (ours, peer) = UnixStream::pair().unwrap();
        sinks.push(peer);
        rig.attach(ours, Nonblocking::Socket)
    });
    let send = |rig: &mut Rig, number: u32| {
        let source = sources[usize::try_from(number).unwrap()];
        let bytes = Bytes::from_static(b"y");
        rig.driver.start(id(number), source, send(bytes));
    };
    let (reader, writer) = blocking_pipe();
    rustix::io::write(&writer, b"x").unwrap();
    let reader = rig.attach(reader, Nonblocking::Pipe);
    rig.driver.start(id(9), reader, RECV);
    for number in 0..4 {
        send(rig, number);
    }
    // In every turn, the sends whose completions are reported can start again.
    let budget = Budget {
        completions: 4,
        bytes: 1,
    };
    let mut said = Vec::new();
    for _ in 0..3 {
        for completion in rig.turn(PATIENCE, budget) {
            said.push(words(&completion));
            if matches!(completion.done, Done::Sent(1)) {
                send(rig, completion.id.watch.slot);
            }
        }
    }
    assert!(said.contains(&"9 data x".to_owned()), "{said:?}");
    assert!((7..=12).contains(&said.len()), "{said:?}");
}

pub(super) fn a_budget_of_nothing_waits_and_loses_nothing(rig: &mut Rig) {
    let (reader, writer) = blocking_pipe();
    let source = rig.attach(reader, Nonblocking::Pipe);
    rig.driver.start(id(1), source, RECV);
    let (ours, _peer) = UnixStream::pair().unwrap();
    let other = rig.attach(ours, Nonblocking::Socket);
    rig.driver.start(id(2), other, WRITE);
    rustix::io::write(&writer, b"x").unwrap();
    for (completions, bytes) in [(0, 0), (0, 9), (9, 0)] {
        let start = Instant::now();
        let said = rig.turn(WHILE, Budget { completions, bytes });
        assert!(said.is_empty(), "{said:?}");
        assert!(start.elapsed() >= WHILE, "it did not wait");
    }
    let mut said = [
        rig.next(),
        rig.turn(Duration::ZERO, AMPLE).iter().map(words).collect(),
    ]
    .concat();
    said.sort();
    assert_eq!(said, ["1 data x", "2 writable."]);

    // The end of a cancelled operation needs no budget.
    let nothing = Budget {
        completions: 0,
        bytes: 0,
    };
    rig.driver.cancel(id(1), source);
    let said: Vec<_> = rig.turn(PATIENCE, nothing).iter().map(words).collect();
    assert_eq!(said, ["1 cancelled."]);
}

pub(super) fn a_turn_says_whether_it_got_to_everything(rig: &mut Rig) {
    let nothing = Budget {
        completions: 0,
        bytes: 0,
    };
    let few = Budget {
        completions: 2,
        ..AMPLE
    };
    let mut peers = Vec::new();
    for number in 0..5 {
        let (ours, peer) = UnixStream::pair().unwrap();
        let source = rig.attach(ours, Nonblocking::ReadinessOnly);
        rig.driver.start(id(number), source, WRITE);
        peers.push(peer);
    }
    assert!(rig.turn(Duration::ZERO, nothing).is_empty());
    assert!(!rig.driver.has_polled_all(), "it could not tell");
    let mut told = 0;
    while told < 5 {
        let said = rig.turn(Duration::ZERO, few).len();
        assert!(said > 0 || !rig.driver.has_polled_all(), "{told} of 5");
        told += said;
    }
    assert!(rig.turn(Duration::ZERO, few).is_empty());
    assert!(rig.driver.has_polled_all());
}
