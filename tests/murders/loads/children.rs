//! Children: their output, input and exits, and that each is started once.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;

use crate::common::{lives, shell};
use crate::field::{Hand, Inbox};

/// Checks numbers, a line each, that come in pieces.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    pub(super) next: u64,
    /// The rest of what comes next.
    expected: Vec<u8>,
    pub(super) bytes: u64,
}

impl Numbers {
    pub(super) fn take(&mut self, offset: u64, data: &[u8]) {
        assert_eq!(offset, self.bytes);
        while self.expected.len() < data.len() {
            self.expected.extend(format!("{}\n", self.next).bytes());
            self.next += 1;
        }
        let (expected, data_text) = (&self.expected[..data.len()], || {
            String::from_utf8_lossy(data).into_owned()
        });
        assert!(
            expected == data,
            "at {offset}: {:?}, not {:?}",
            data_text(),
            String::from_utf8_lossy(expected)
        );
        self.expected.drain(..data.len());
        self.bytes += data.len() as u64;
    }

    /// All numbers so far, and nothing of the next one.
    pub(super) fn is_at(&self, number: u64) -> bool {
        self.next == number && self.expected.is_empty()
    }
}

/// How a child has ended.
#[derive(Debug)]
pub(super) struct End {
    pub(super) pid: i32,
    pub(super) exit: i32,
}

/// Follows a child to its end, and removes its watch. Each event comes once.
pub(super) async fn follow(
    hand: &Hand,
    inbox: &mut Inbox,
    id: u64,
    mut data: impl FnMut(&Data),
) -> End {
    let (mut pid, mut exit) = (None, None);
    let (mut offsets, mut ends) = ([0; 4], 0);
    loop {
        let event = inbox.next("the end of a child").await;
        assert_eq!(event.watch_id, id);
        match event.kind.unwrap() {
            Kind::Added(_) => {}
            Kind::Started(started) => assert!(pid.replace(started.pid).is_none()),
            Kind::Data(piece) => {
                let offset: &mut u64 = &mut offsets[usize::try_from(piece.stream).unwrap()];
                assert_eq!(piece.offset, *offset);
                *offset += piece.data.len() as u64;
                hand.count("bytes read", piece.data.len() as u64);
                data(&piece);
            }
            Kind::StreamEnd(end) => {
                assert_eq!(end.reason(), StreamEndReason::Eof, "{end:?}");
                assert_eq!(end.offset, offsets[usize::try_from(end.stream).unwrap()]);
                ends += 1;
            }
            Kind::Exited(exited) => {
                let Some(exited::Status::Code(code)) = exited.status else {
                    panic!("{exited:?} on {}", hand.field.backend);
                };
                assert!(exited.usage.is_some(), "{exited:?}");
                assert!(exit.replace(code).is_none());
            }
            Kind::Closed(closed) => {
                assert_eq!(closed.reason(), CloseReason::Completed, "{closed:?}");
                break;
            }
            Kind::WritePaused(_) | Kind::WriteResumed(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(ends == 1 || ends == 2, "{ends}");
    hand.remove(inbox, id).await;
    hand.count("children", 1);
    End {
        pid: pid.expect("it has started"),
        exit: exit.expect("it has exited"),
    }
}

/// A child that was asked for.
struct Ordered {
    id: u64,
    /// It writes its pid to this file as the first thing.
    pids: PathBuf,
    /// How often nothing told whether it was started.
    unknown: usize,
}

async fn start(hand: &Hand, inbox: &Inbox, line: &str, stdin: Stdio) -> Ordered {
    let pids = hand.field.site.dir.join(format!("pids-{}", inbox.key));
    let spec = ProcessSpec {
        stdin: stdin.into(),
        ..shell(&format!("echo $$ >> {}; {line}", pids.display()))
    };
    let mut request = hand.request(inbox.key, Spec::Process(spec));
    let (answer, unknown) = hand.try_add(&mut request).await.unwrap();
    Ordered {
        id: answer.watch.unwrap().watch_id,
        pids,
        unknown,
    }
}

impl Ordered {
    /// It was started once. Before it there may be one that was started when the daemon died, and that
    /// the next life has ended: its start was not recorded, and the answer to it was that nothing is
    /// known.
    fn is_only(&self, hand: &Hand, pid: i32) {
        let text = std::fs::read_to_string(&self.pids).unwrap();
        let all: Vec<i32> = text.lines().map(|line| line.parse().unwrap()).collect();
        let (told, ended) = all.split_last().unwrap();
        assert_eq!(*told, pid, "{all:?}");
        assert!(ended.len() <= self.unknown, "{all:?}, {}", self.unknown);
        hand.count("children ended with their life", ended.len() as u64);
        for pid in ended {
            let is_there = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            let is_there = is_there.is_ok_and(|line| line.contains(self.pids.to_str().unwrap()));
            assert!(!is_there, "{pid} of {all:?} lives");
        }
        std::fs::remove_file(&self.pids).unwrap();
    }
}

fn code(key: u64) -> i32 {
    i32::try_from(key % 200).unwrap()
}

/// Children that write numbers as fast as they can, on both streams.
pub(super) async fn fast(hand: Hand) {
    const ALL: u64 = 200_000;
    const ERRORS: u64 = 20_000;
    while !hand.is_over() {
        let mut inbox = hand.inbox();
        let line = format!(
            "seq 0 {} & seq 0 {} >&2; wait; exit {}",
            ALL - 1,
            ERRORS - 1,
            code(inbox.key)
        );
        let ordered = start(&hand, &inbox, &line, Stdio::Null).await;
        let (mut out, mut errors) = (Numbers::default(), Numbers::default());
        let end = follow(&hand, &mut inbox, ordered.id, |data| match data.stream() {
            Stream::Stderr => errors.take(data.offset, &data.data),
            _ => out.take(data.offset, &data.data),
        })
        .await;
        assert!(out.is_at(ALL) && errors.is_at(ERRORS), "{out:?} {errors:?}");
        assert_eq!(end.exit, code(inbox.key));
        ordered.is_only(&hand, end.pid);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A child that writes slowly, and lives as long as the load.
pub(super) async fn slow(hand: Hand) {
    let mut inbox = hand.inbox();
    let stop = hand.field.site.dir.join(format!("stop-{}", inbox.key));
    let line = format!(
        "i=0; while [ ! -e {} ]; do echo $i; i=$((i+1)); sleep 0.03; done; echo $i; exit {}",
        stop.display(),
        code(inbox.key)
    );
    let ordered = start(&hand, &inbox, &line, Stdio::Null).await;
    let stopper = {
        let hand = hand.clone();
        tokio::spawn(async move {
            while !hand.is_over() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            std::fs::write(stop, "").unwrap();
        })
    };
    let mut out = Numbers::default();
    let end = follow(&hand, &mut inbox, ordered.id, |data| {
        out.take(data.offset, &data.data);
    })
    .await;
    stopper.await.unwrap();
    assert!(out.is_at(out.next) && out.next > 0, "{out:?}");
    assert_eq!(end.exit, code(inbox.key));
    ordered.is_only(&hand, end.pid);
}

/// Children that end at once.
pub(super) async fn brief(hand: Hand) {
    while !hand.is_over() {
        let mut inbox = hand.inbox();
        let line = format!("exit {}", code(inbox.key));
        let ordered = start(&hand, &inbox, &line, Stdio::Null).await;
        let end = follow(&hand, &mut inbox, ordered.id, |data| panic!("{data:?}")).await;
        assert_eq!(end.exit, code(inbox.key), "on {}", hand.field.backend);
        ordered.is_only(&hand, end.pid);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Children that give back what they get.
pub(super) async fn echo(hand: Hand) {
    const ALL: usize = 400_000;
    while !hand.is_over() {
        let mut inbox = hand.inbox();
        let line = format!("cat; exit {}", code(inbox.key));
        let ordered = start(&hand, &inbox, &line, Stdio::Pipe).await;
        let input = Bytes::from(lives::pattern(inbox.key % 256, ALL));
        let writing = async {
            let mut offset = 0;
            for piece in lives::pieces(&input) {
                let piece = input.slice_ref(piece);
                let len = piece.len() as u64;
                hand.write_all(ordered.id, piece, offset).await.unwrap();
                offset += len;
            }
            hand.write_eof(ordered.id).await;
        };
        let mut at = 0;
        let reading = follow(&hand, &mut inbox, ordered.id, |data| {
            let end = at + data.data.len();
            assert!(
                data.data == input[at..end],
                "at {at} on {}",
                hand.field.backend
            );
            at = end;
        });
        let ((), end) = tokio::join!(writing, reading);
        assert_eq!((at, end.exit), (ALL, code(inbox.key)));
        ordered.is_only(&hand, end.pid);
    }
}
