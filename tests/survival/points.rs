//! Deaths between every two steps that matter. Builds without debug assertions have no such points.
#![cfg(debug_assertions)]

mod client;
mod keeper;
mod scenario;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use evloopd::faults::POINTS;
use evloopd::proto::ended_life::How;

use crate::BACKENDS;

/// A death: the point, at which time it is reached, how the process ends there, and in which life.
#[derive(Debug, Clone, Copy)]
struct Death {
    point: &'static str,
    count: u64,
    how: &'static str,
    life: u64,
}

impl Death {
    /// Returns what ends the daemon so.
    fn word(self) -> String {
        let Self {
            point,
            count,
            how,
            life,
        } = self;
        format!("{point}:{count}:{how}:{life}")
    }

    /// Returns what the keeper sees of it.
    fn seen(self) -> How {
        How::Signal(match self.how {
            "kill" => 9,
            "segv" => 11,
            _ => 6,
        })
    }
}

/// The backends whose loops reach a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    All,
    Readiness,
    Completion,
    /// The loops have no part in it: one is enough.
    One,
}

/// The points that the first life reaches, with the times at which it ends there: one for each backend,
/// over and over.
const FIRST_LIFE: &[(On, &[u64], &[&str])] = &[
    (
        On::Readiness,
        &[1, 5, 12],
        &["ReadIntended", "BytesRead", "ReadNoted"],
    ),
    (
        On::Readiness,
        &[1, 3, 6],
        &[
            "SendIntended",
            "Relayed",
            "RelayNoted",
            "Spliced",
            "SpliceNoted",
        ],
    ),
    (
        On::Readiness,
        &[1, 2, 4],
        &["SendInDoubt", "SocketTook", "SocketNoted"],
    ),
    (On::Readiness, &[1, 3, 9], &["CountedSent"]),
    (On::Completion, &[1], &["RingExpected"]),
    (On::Completion, &[20], &["RingEntered", "CompletionsTaken"]),
    (
        On::Completion,
        &[2],
        &["ArrivalCopied", "ArrivalWritten", "ArrivalNoted"],
    ),
    (On::Completion, &[5], &["ArrivalSeen"]),
    (
        On::All,
        &[10, 20, 1, 30],
        &[
            "EventHalfWritten",
            "EventsAppended",
            "ChangesWritten",
            "RunCommitted",
            "TurnNumbered",
            "TurnCommitted",
            "EventsReadable",
            "RecordsFreed",
            "CellHalfWritten",
        ],
    ),
    (On::All, &[30, 45], &["ReceiptsForgotten"]),
    (On::All, &[1, 2], &["BeforeClose"]),
    (On::All, &[12, 2, 5, 20], &["BeforeReplies", "Replied"]),
    (
        On::All,
        &[1, 2],
        &[
            "StartIntended",
            "BeforeFork",
            "ChildBeforeSwap",
            "ChildAbandoned",
            "ChildAfterSwap",
            "ChildExecuted",
            "StartAppended",
            "StartRecorded",
        ],
    ),
    (
        On::All,
        &[1, 2],
        &["ExitLooked", "ExitAppended", "BeforeReap", "Reaped"],
    ),
    (
        On::All,
        &[1],
        &[
            "Accepted",
            "AcceptRecorded",
            "AcceptReported",
            "WatchForgotten",
            "PacketMoved",
            "TypedWritten",
            "Typed",
        ],
    ),
    (On::All, &[1, 2, 3], &["WatchWritten"]),
    (
        On::All,
        &[1, 2],
        &["DatagramsInDoubt", "DatagramsReceived", "DatagramsNoted"],
    ),
    (On::All, &[1, 4, 9, 20], &["RecordWritten", "RecordDoubled"]),
    (
        On::All,
        &[1, 3, 6, 8],
        &["RequestKept", "RequestDone", "AnswerKept", "Answered"],
    ),
    (
        On::One,
        &[1],
        &[
            "ConsumerHalfKept",
            "ConsumerKept",
            "LoopStarted",
            "LoopNumbered",
            "LoopKept",
        ],
    ),
    (On::One, &[1], &["BeforeAck", "AckKept"]),
];

/// The points that a life reaches that takes over.
const SECOND_LIFE: &[&str] = &[
    "OthersClosed",
    "StartsAbandoned",
    "LoopFound",
    "TransfersFound",
    "WatchesTakenUp",
    "TurnNumbered",
    "TurnCommitted",
    "LoopTakenUp",
    "AllTakenUp",
    "Settled",
];

/// The points of the keeper.
const KEEPER: &[&str] = &[
    "KeeperLooked",
    "KeeperWritten",
    "KeeperRecorded",
    "KeeperReaped",
];

fn backends(on: On) -> &'static [(&'static str, &'static str)] {
    match on {
        On::All => &BACKENDS,
        On::Readiness => &BACKENDS[..3],
        On::Completion => &BACKENDS[3..],
        On::One => &BACKENDS[..1],
    }
}

/// Runs the scenario with each of these deaths, several at once.
fn run_all(deaths: &[(Death, (&'static str, &'static str))]) {
    /// Most of the time a scenario waits for the next life.
    const AT_ONCE: usize = 6;
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((death, backend)) = deaths.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let run = || block_on(scenario::run(*death, *backend));
                    // One that fails says which it was.
                    if std::panic::catch_unwind(run).is_err() {
                        failed.lock().unwrap().push((death, backend));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{failed:#?}");
}

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(test);
}

#[test]
fn nothing_is_lost_or_doubled_by_a_death_between_two_steps() {
    let mut deaths = Vec::new();
    for (on, counts, points) in FIRST_LIFE {
        for point in *points {
            for (backend, count) in backends(*on).iter().zip(counts.iter().cycle()) {
                let death = Death {
                    point,
                    count: *count,
                    how: "kill",
                    life: 1,
                };
                deaths.push((death, *backend));
            }
        }
    }
    run_all(&deaths);
}

#[test]
fn nothing_is_lost_or_doubled_by_a_fault_amid_an_append() {
    let mut deaths = Vec::new();
    for (how, count) in [("segv", 8), ("abort", 15), ("panic", 20)] {
        for point in ["EventHalfWritten", "RunCommitted"] {
            let death = Death {
                point,
                count,
                how,
                life: 1,
            };
            deaths.extend(BACKENDS.map(|backend| (death, backend)));
        }
    }
    run_all(&deaths);
}

#[test]
fn nothing_is_lost_or_doubled_by_the_death_of_a_life_that_takes_over() {
    let mut deaths = Vec::new();
    for point in SECOND_LIFE {
        let death = Death {
            point,
            count: 1,
            how: "kill",
            life: 2,
        };
        deaths.extend(BACKENDS.map(|backend| (death, backend)));
    }
    run_all(&deaths);
}

#[test]
fn every_point_is_reached_by_a_test() {
    let first = FIRST_LIFE.iter().flat_map(|(.., points)| points.iter());
    let reached: BTreeSet<_> = first.chain(SECOND_LIFE).chain(KEEPER).collect();
    let all: BTreeSet<_> = POINTS.iter().collect();
    assert_eq!(reached, all);
}
