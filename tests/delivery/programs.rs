//! Random programs against a real daemon: watches, posts, readers that stall and come back,
//! consumers that acknowledge, are taken over and deleted, on journals that are nearly always full.
//! In some of them the daemon is killed again and again, and its keeper starts the next life.

mod crash;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use evloopd::history::{Recording, check, check_resumed, check_same};
use evloopd::proto::*;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tokio::runtime::Runtime;
use tonic::Code;

use crate::common::{
    Daemon, Recorder, by_id, exec, loop_named, millis, never, post, refusal, timer,
};

const CASES: u32 = 200;
/// The cases in which the daemon may be killed.
const CASES_WITH_CRASHES: u32 = 40;
const READERS: usize = 3;
const CONSUMERS: [&str; 2] = ["a", "b"];

/// Policies with every budget at its minimum and with larger ones, for both values of `when_full`.
const CONFIG: &str = r#"
[policy.least]
extends = "default"
journal_events = 16
journal_bytes = "64KiB"
journal_watch_bytes = "4KiB"
[policy.least-drops]
extends = "least"
when_full = "drop_oldest"
[policy.small]
extends = "default"
journal_events = 200
journal_bytes = "128KiB"
[policy.least-proactor]
extends = "least"
class = "proactor"
backends = ["io_uring"]
[policy.small-proactor]
extends = "small"
class = "proactor"
backends = ["io_uring"]
[policy.small-drops]
extends = "small"
when_full = "drop_oldest"
"#;

#[derive(Debug, Clone)]
enum Step {
    Post {
        count: usize,
        size: usize,
    },
    Tick,
    Never,
    Child(u32),
    Remove(usize),
    /// Reads a few messages; a reader without this step stalls.
    Read {
        who: usize,
        messages: usize,
    },
    Observe(usize),
    Hold {
        who: usize,
        consumer: usize,
        auto: bool,
    },
    Ack(usize),
    Delete(usize),
    StopAndRun,
    /// Kills the daemon, if it has a keeper.
    Crash,
    /// As `Crash`, some microseconds after a Post was sent.
    CrashAmid {
        count: usize,
        size: usize,
        micros: u64,
    },
}

/// Steps among which this many of a hundred or so kill the daemon.
fn step(crashes: u32) -> impl Strategy<Value = Step> {
    let who = 0..READERS;
    let crash = prop_oneof![
        Just(Step::Crash),
        (1..6usize, 0..3000usize, 0..2000u64).prop_map(|(count, size, micros)| {
            Step::CrashAmid {
                count,
                size,
                micros,
            }
        }),
    ];
    let other = prop_oneof![
        6 => (1..6usize, 0..3000usize).prop_map(|(count, size)| Step::Post { count, size }),
        1 => Just(Step::Tick),
        2 => Just(Step::Never),
        2 => (1..4000u32).prop_map(Step::Child),
        3 => (0..20usize).prop_map(Step::Remove),
        5 => (who.clone(), 1..4usize).prop_map(|(who, messages)| Step::Read { who, messages }),
        1 => who.clone().prop_map(Step::Observe),
        2 => (who, 0..2usize, any::<bool>())
            .prop_map(|(who, consumer, auto)| Step::Hold { who, consumer, auto }),
        3 => (0..2usize).prop_map(Step::Ack),
        1 => (0..2usize).prop_map(Step::Delete),
        1 => Just(Step::StopAndRun),
    ];
    prop_oneof![crashes => crash, 100 - crashes => other]
}

fn program(crashes: u32) -> impl Strategy<Value = (&'static str, Vec<Step>)> {
    const POLICIES: [&str; 6] = [
        "least",
        "least-drops",
        "least-proactor",
        "small",
        "small-drops",
        "small-proactor",
    ];
    let steps = prop::collection::vec(step(crashes), 1..40);
    (prop::sample::select(&POLICIES[..]), steps)
}

struct Reader {
    recorder: Recorder,
    /// The consumer that it reads as, and whether it uses `auto_ack`.
    consumer: Option<(usize, bool)>,
    /// What it has received from earlier lives of the daemon.
    before: Vec<Recording>,
}

impl Reader {
    fn is_of(&self, consumer: usize) -> bool {
        self.consumer.is_some_and(|(of, _)| of == consumer)
    }
}

/// The state of a program that runs, and what has been recorded of it.
struct Run<'a> {
    daemon: &'a Daemon,
    target: LoopRef,
    pauses: bool,
    watches: Vec<u64>,
    /// The posted payloads, by sequence number.
    posted: BTreeMap<u64, Vec<u8>>,
    /// What was posted when the daemon was killed, if nobody can know whether it counts; with the
    /// sequence number of the first, once an event of it was seen.
    unsure: Vec<(Vec<Vec<u8>>, Option<u64>)>,
    readers: Vec<Option<Reader>>,
    /// The recordings of each consumer since it was made, one for each holder.
    lives: [Vec<Recording>; 2],
    /// Whether a holder of each consumer used `auto_ack`: a batch that was in flight when that
    /// holder ended is not sent to the next.
    auto: [bool; 2],
    all: Vec<Recording>,
    marks: u8,
}

fn may_refuse(status: &tonic::Status) -> bool {
    let reason = refusal(status).reason;
    let full = status.code() == Code::ResourceExhausted && reason == "JOURNAL_FULL";
    full || reason == "WATCH_NOT_FOUND" || reason == "CONSUMER_NOT_FOUND"
}

impl Run<'_> {
    fn retire(&mut self, who: usize) {
        let Some(reader) = self.readers[who].take() else {
            return;
        };
        let mut recordings = reader.before;
        recordings.push(reader.recorder.recording);
        match reader.consumer {
            Some((consumer, _)) => self.lives[consumer].extend(recordings.iter().cloned()),
            None => drop(check_resumed(&recordings).unwrap()),
        }
        self.all.extend(recordings);
    }

    async fn subscribe(&mut self, who: usize, consumer: Option<(usize, bool)>) {
        self.retire(who);
        let start = subscribe_request::Start::StartAt(StartAt::Oldest.into());
        self.subscribe_from(who, consumer, start, Vec::new()).await;
    }

    async fn subscribe_from(
        &mut self,
        who: usize,
        consumer: Option<(usize, bool)>,
        start: subscribe_request::Start,
        before: Vec<Recording>,
    ) {
        if let Some((consumer, auto)) = consumer {
            self.auto[consumer] |= auto;
        }
        let request = SubscribeRequest {
            r#loop: Some(self.target.clone()),
            start: consumer.is_none().then_some(start),
            on_gap: match consumer {
                None => OnGap::Skip.into(),
                Some(_) => OnGap::Unspecified.into(),
            },
            consumer: consumer.map_or("", |(c, _)| CONSUMERS[c]).to_owned(),
            auto_ack: consumer.is_some_and(|(_, auto)| auto),
            max_batch_bytes: 1024,
            max_in_flight_bytes: 4096,
            ..SubscribeRequest::default()
        };
        let recorder = Recorder::subscribe(self.daemon, request).await.unwrap();
        self.readers[who] = Some(Reader {
            recorder,
            consumer,
            before,
        });
    }

    async fn add(&mut self, spec: watch_spec::Spec) {
        let request = AddWatchRequest {
            r#loop: Some(self.target.clone()),
            spec: Some(WatchSpec { spec: Some(spec) }),
            ..AddWatchRequest::default()
        };
        match self.daemon.watches().add_watch(request).await {
            Ok(added) => self
                .watches
                .push(added.into_inner().watch.unwrap().watch_id),
            Err(status) => assert!(may_refuse(&status), "{status:?}"),
        }
    }

    async fn post(&mut self, count: usize, size: usize) {
        let request = self.posts(count, size);
        let payloads = payloads(&request);
        match self.daemon.events().post(request).await {
            Ok(answer) => self.was_posted(payloads, &answer.into_inner()),
            Err(status) => assert!(may_refuse(&status), "{status:?}"),
        }
    }

    fn posts(&mut self, count: usize, size: usize) -> PostRequest {
        let posts = (0..count).map(|_| {
            self.marks = self.marks.wrapping_add(1);
            post("", &vec![self.marks; size])
        });
        PostRequest {
            posts: posts.collect(),
            r#loop: Some(self.target.clone()),
            ..PostRequest::default()
        }
    }

    fn was_posted(&mut self, payloads: Vec<Vec<u8>>, answer: &PostResponse) {
        let last = answer.cursor.as_ref().unwrap().seq;
        let first = last + 1 - payloads.len() as u64;
        self.posted.extend((first..).zip(payloads));
    }

    /// Returns whether an event of that number and payload may be there.
    fn may_be_posted(&mut self, seq: u64, payload: &[u8]) -> bool {
        if let Some(known) = self.posted.get(&seq) {
            return known == payload;
        }
        self.unsure.iter_mut().any(|(payloads, first)| {
            let mut numbered = (0..).zip(&*payloads);
            let found = match *first {
                Some(first) => numbered.find(|(at, of)| first + at == seq && of == &payload),
                None => numbered.find(|(_, of)| of == &payload),
            };
            found.is_some_and(|(at, _)| seq.checked_sub(at) == Some(*first.get_or_insert(seq - at)))
        })
    }

    async fn ack(&self, consumer: usize) {
        let holder = self.readers.iter().flatten();
        let mut through = holder
            .filter(|reader| reader.is_of(consumer))
            .map(|reader| reader.recorder.recording.through());
        let Some(seq) = through.next() else { return };
        let request = AckRequest {
            r#loop: Some(self.target.clone()),
            consumer: CONSUMERS[consumer].into(),
            cursor: Some(Cursor {
                epoch: String::new(),
                seq,
            }),
            ..AckRequest::default()
        };
        self.daemon.events().ack(request).await.unwrap();
    }

    /// Reads the messages that have arrived, and waits only 2 ms for one that has not.
    async fn read(&mut self, who: usize, messages: usize) {
        let mut ended = false;
        if let Some(Reader { recorder, .. }) = &mut self.readers[who] {
            for _ in 0..messages {
                let step = recorder.step();
                match tokio::time::timeout(std::time::Duration::from_millis(2), step).await {
                    Ok(true) => {}
                    Ok(false) => ended = true,
                    Err(_) => break,
                }
            }
            ended |= recorder.goodbye.is_some();
        }
        if ended {
            self.retire(who);
        }
    }

    async fn delete(&mut self, consumer: usize) {
        let request = DeleteConsumerRequest {
            r#loop: Some(self.target.clone()),
            name: CONSUMERS[consumer].into(),
            ..DeleteConsumerRequest::default()
        };
        if let Err(status) = self.daemon.events().delete_consumer(request).await {
            assert!(may_refuse(&status), "{status:?}");
        }
        for who in 0..READERS {
            let holder = self.readers[who].as_ref();
            if holder.is_some_and(|holder| holder.is_of(consumer)) {
                self.retire(who);
            }
        }
        self.finish_lives(consumer);
    }

    /// Checks the recordings of a consumer from its making to its end. Together they have every
    /// event, unless the journal drops the oldest.
    fn finish_lives(&mut self, consumer: usize) {
        let mut lives = std::mem::take(&mut self.lives[consumer]);
        lives.sort_by_key(|life| life.start);
        for life in &lives {
            let summary = check(life).unwrap();
            assert!(!self.pauses || summary.lost == 0, "{life:?}");
        }
        // A journal that drops the oldest may have lost for a slow holder what another one
        // received.
        if !std::mem::take(&mut self.auto[consumer]) && self.pauses {
            check_resumed(&lives).unwrap();
        }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Post { count, size } => self.post(count, size).await,
            Step::Tick => {
                let every = timer_spec::Schedule::Every(millis(1));
                self.add(timer(every)).await;
            }
            Step::Never => self.add(never()).await,
            Step::Child(last) => {
                let spec = exec(&["/usr/bin/seq", &last.to_string()]);
                self.add(watch_spec::Spec::Process(spec)).await;
            }
            Step::Remove(_) if self.watches.is_empty() => {}
            Step::Remove(index) => {
                let id = self.watches.swap_remove(index % self.watches.len());
                let request = RemoveWatchRequest {
                    r#loop: Some(self.target.clone()),
                    watch: by_id(id),
                    ..RemoveWatchRequest::default()
                };
                let mut watches = self.daemon.watches();
                let removed = watches.remove_watch(request);
                let removed = crate::common::within("a removal", removed).await;
                if let Err(status) = removed {
                    assert!(may_refuse(&status), "{status:?}");
                }
            }
            Step::Read { who, messages } => self.read(who, messages).await,
            Step::Observe(who) => self.subscribe(who, None).await,
            Step::Hold {
                who,
                consumer,
                auto,
            } => self.subscribe(who, Some((consumer, auto))).await,
            Step::Ack(consumer) => self.ack(consumer).await,
            Step::Delete(consumer) => self.delete(consumer).await,
            Step::Crash => self.crash(None).await,
            Step::CrashAmid {
                count,
                size,
                micros,
            } => self.crash(Some((count, size, micros))).await,
            Step::StopAndRun => {
                let mut loops = self.daemon.loops();
                let stop = StopLoopRequest {
                    r#loop: Some(self.target.clone()),
                    ..StopLoopRequest::default()
                };
                crate::common::within("a stop", loops.stop_loop(stop))
                    .await
                    .unwrap();
                let run = RunLoopRequest {
                    r#loop: Some(self.target.clone()),
                    ..RunLoopRequest::default()
                };
                if let Err(status) = loops.run_loop(run).await {
                    assert!(may_refuse(&status), "{status:?}");
                }
            }
        }
    }

    /// Ends everything and checks what was received.
    async fn finish(mut self) {
        for consumer in 0..CONSUMERS.len() {
            self.delete(consumer).await;
        }
        for who in 0..READERS {
            self.retire(who);
        }
        let mut last = Recorder::of(self.daemon, &self.target).await;
        last.reach(self.newest().await).await;
        for recording in &self.all {
            check_same(&last.recording, recording).unwrap();
        }
        self.all.push(last.recording);
        let stop = StopLoopRequest {
            r#loop: Some(self.target.clone()),
            ..StopLoopRequest::default()
        };
        let mut loops = self.daemon.loops();
        crate::common::within("the stop", loops.stop_loop(stop))
            .await
            .unwrap();
        let close = CloseLoopRequest {
            r#loop: Some(self.target.clone()),
            ..CloseLoopRequest::default()
        };
        crate::common::within("the close", loops.close_loop(close))
            .await
            .unwrap();
        for pair in self.all.windows(2) {
            check_same(&pair[0], &pair[1]).unwrap();
        }
        for recording in std::mem::take(&mut self.all) {
            for event in recording.events() {
                if let Some(event::Kind::Posted(posted)) = &event.kind {
                    assert!(self.may_be_posted(event.seq, &posted.payload), "{event:?}");
                }
            }
        }
    }

    async fn newest(&self) -> u64 {
        let request = GetLoopRequest {
            r#loop: Some(self.target.clone()),
        };
        let answer = self.daemon.loops().get_loop(request).await.unwrap();
        let found = answer.into_inner().r#loop.unwrap();
        found.journal.unwrap().newest_seq
    }
}

fn payloads(request: &PostRequest) -> Vec<Vec<u8>> {
    request.posts.iter().map(|p| p.payload.to_vec()).collect()
}

async fn run(daemon: &Daemon, number: u32, policy: &str, steps: Vec<Step>) {
    let name = format!("program-{number}");
    let request = NewEventLoopRequest {
        name: name.clone(),
        policy: policy.into(),
        ..NewEventLoopRequest::default()
    };
    daemon.policies().new_event_loop(request).await.unwrap();
    let mut run = Run {
        daemon,
        target: loop_named(&name),
        pauses: !policy.ends_with("drops"),
        watches: Vec::new(),
        posted: BTreeMap::new(),
        unsure: Vec::new(),
        readers: (0..READERS).map(|_| None).collect(),
        lives: [Vec::new(), Vec::new()],
        auto: [false; 2],
        all: Vec::new(),
        marks: 0,
    };
    for step in steps {
        run.step(step).await;
    }
    run.finish().await;
}

/// Runs that many programs, in which about that many of a hundred steps kill the daemon.
fn run_all(daemon: Daemon, runtime: &Runtime, cases: u32, crashes: u32) {
    let mut runner = TestRunner::new(ProptestConfig {
        cases,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let cases = AtomicU32::new(0);
    let outcome = runner.run(&program(crashes), |(policy, steps)| {
        let number = cases.fetch_add(1, Ordering::Relaxed);
        runtime.block_on(run(&daemon, number, policy, steps));
        Ok(())
    });
    let log = daemon.log();
    runtime.block_on(async move { drop(daemon) });
    if let Err(failure) = outcome {
        panic!("{failure}\n--- the daemon's log ---\n{log}---");
    }
}

#[test]
fn no_program_loses_an_event_without_a_gap() {
    let runtime = Runtime::new().unwrap();
    let daemon = runtime.block_on(Daemon::start(CONFIG));
    run_all(daemon, &runtime, CASES, 0);
}

#[test]
fn no_program_loses_what_was_told_through_the_deaths_of_the_daemon() {
    let runtime = Runtime::new().unwrap();
    let daemon = runtime.block_on(crash::start());
    run_all(daemon, &runtime, CASES_WITH_CRASHES, 8);
}
