//! What goes on in the next life of a daemon that was killed.

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]
// Not every test binary uses all helpers.
#![allow(dead_code)]

mod both;
mod cgroups;
mod children;
mod command_line;
#[path = "../common/mod.rs"]
mod common;
mod contexts;
mod kinds;
mod memory;
mod panics;
mod points;
mod same;
mod set_aside;
mod slots;
mod streams;
mod terminals;

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use evloopd::proto::event::Kind;
use evloopd::proto::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, openpt};

use common::{
    Daemon, Recorder, Scene, command_with_keeper, directory, post, read_pipe, reader, shell, within,
};

const BACKENDS: [(&str, &str); 4] = [
    ("", "epoll"),
    ("", "poll"),
    ("", "select"),
    ("proactor", "io_uring"),
];

const CONFIG: &str = "version = 1\n[server]\nrestarts = 1000\nrestart_delay = \"20ms\"\n";

async fn start() -> Daemon {
    let dir = directory();
    let command = command_with_keeper(dir.path(), CONFIG, &[]);
    Daemon::start_as(Arc::clone(&dir), command).await
}

/// Kills the daemon, and waits until its next life serves.
async fn murder(daemon: &Daemon) {
    let life = daemon.status().await.keeper.unwrap().life;
    let info = daemon.info().await;
    kill(Pid::from_raw(info.pid), Signal::SIGKILL).unwrap();
    next_life(daemon, life).await;
}

/// Kills the daemon at some instant soon, whatever it does then, and calls `work` again and again until it
/// is killed. Waits until the next life serves.
async fn murder_amid(daemon: &Daemon, round: u64, mut work: impl AsyncFnMut()) {
    let life = daemon.status().await.keeper.unwrap().life;
    let pid = Pid::from_raw(daemon.info().await.pid);
    let killer = std::thread::spawn(move || {
        // Another instant each time.
        std::thread::sleep(Duration::from_micros(500 + round * 7919 % 20_000));
        kill(pid, Signal::SIGKILL).unwrap();
    });
    while !killer.is_finished() {
        work().await;
    }
    killer.join().unwrap();
    next_life(daemon, life).await;
}

/// Waits until a life after this one serves.
async fn next_life(daemon: &Daemon, life: u64) {
    within("the next life", async {
        loop {
            // The channel connects again by itself.
            let status = daemon.admin().get_status(GetStatusRequest {}).await;
            let now = status.ok().and_then(|status| status.into_inner().keeper);
            if now.is_some_and(|now| now.life > life) {
                return;
            }
        }
    })
    .await;
}

async fn the_loop(scene: &Scene) -> Loop {
    let request = GetLoopRequest {
        r#loop: Some(scene.target.clone()),
    };
    let answer = scene.daemon.loops().get_loop(request).await.unwrap();
    answer.into_inner().r#loop.unwrap()
}

/// Goes on after the last event that was seen.
async fn resume(scene: &Scene, epoch: &str, seq: u64) -> Recorder {
    let request = SubscribeRequest {
        r#loop: Some(scene.target.clone()),
        start: Some(subscribe_request::Start::After(Cursor {
            epoch: epoch.to_owned(),
            seq,
        })),
        ..SubscribeRequest::default()
    };
    Recorder::subscribe(&scene.daemon, request).await.unwrap()
}

fn timer(schedule: timer_spec::Schedule) -> watch_spec::Spec {
    watch_spec::Spec::Timer(TimerSpec {
        schedule: Some(schedule),
        ..TimerSpec::default()
    })
}

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn loops_consumers_and_timers_are_the_same_in_the_next_life() {
    let mut scene = Scene::new(start().await, "", "epoll").await;
    let last = scene
        .post(vec![post("before", b"1"), post("before", b"2")])
        .await;
    let hour = scene
        .add(timer(timer_spec::Schedule::After(seconds(3600))))
        .await;
    let soon = timer_spec::Schedule::Every(prost_types::Duration {
        seconds: 0,
        nanos: 50_000_000,
    });
    let ticks = scene.add(timer(soon)).await;
    scene.recorder.first(ticks, "timer_fired").await;
    let ack = AckRequest {
        r#loop: Some(scene.target.clone()),
        consumer: "reader".into(),
        cursor: Some(Cursor {
            epoch: String::new(),
            seq: last,
        }),
        ..AckRequest::default()
    };
    scene.daemon.events().ack(ack).await.unwrap();
    let before = scene.get(hour).await;
    let told = the_loop(&scene).await;
    murder(&scene.daemon).await;
    let after = scene.get(hour).await;
    assert_eq!(before, after);
    let now = the_loop(&scene).await;
    assert_eq!((told.loop_id, told.created), (now.loop_id, now.created));
    let epochs = [&told, &now].map(|of| of.journal.as_ref().unwrap().epoch.clone());
    assert_eq!(epochs[0], epochs[1]);
    let request = GetConsumerRequest {
        r#loop: Some(scene.target.clone()),
        name: "reader".into(),
    };
    let consumer = scene.daemon.events().get_consumer(request).await.unwrap();
    let consumer = consumer.into_inner().consumer.unwrap();
    assert_eq!(consumer.acked.unwrap().seq, last);
    let newest = told.journal.unwrap().newest_seq;
    let mut recorder = resume(&scene, &epochs[0], newest).await;
    let Some(Kind::Recovered(recovered)) = recorder.first(0, "recovered").await.kind else {
        panic!("it is told");
    };
    assert_eq!(recovered.why(), RecoveryReason::Crash);
    assert_eq!(recovered.detail, "was killed by signal 9");
    let first = recorder.first(ticks, "timer_fired").await;
    let second = recorder.after(first.seq, ticks, "timer_fired").await;
    let [
        Some(Kind::TimerFired(first)),
        Some(Kind::TimerFired(second)),
    ] = [first.kind, second.kind]
    else {
        panic!("ticks");
    };
    assert_eq!(first.tick + 1 + second.missed, second.tick);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn readers_of_handed_over_descriptors_go_on_as_they_were_armed() {
    for backend in ["epoll", "poll", "select"] {
        let mut scene = Scene::new(start().await, "", backend).await;
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (fired, their_fired) = UnixStream::pair().unwrap();
        let handover = scene.daemon.handover().await;
        let armed = scene.add(reader(handover.give(&theirs))).await;
        let silent = scene.add(reader(handover.give(&their_fired))).await;
        drop((theirs, handover));
        (&fired).write_all(b"x").unwrap();
        let told = scene.recorder.first(silent, "ready").await;
        let told_loop = the_loop(&scene).await;
        murder(&scene.daemon).await;
        let epoch = told_loop.journal.unwrap().epoch;
        let mut recorder = resume(&scene, &epoch, told.seq).await;
        (&ours).write_all(b"y").unwrap();
        recorder.first(armed, "ready").await;
        // It fired before, and is still ready, but was not armed again.
        assert!(recorder.kinds(silent).is_empty());
        let item = RearmItem {
            watch_id: silent,
            seq: told.seq,
            ..RearmItem::default()
        };
        assert!(scene.rearm(item).await);
        recorder.first(silent, "ready").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn all_watches_of_one_client_go_on_where_descriptors_are_few() {
    const WATCHES: usize = 150;
    let dir = directory();
    // Not enough for two descriptors of each watch.
    let launcher = ["prlimit", "--nofile=300:300"];
    let command = command_with_keeper(dir.path(), CONFIG, &launcher);
    let daemon = Daemon::start_as(Arc::clone(&dir), command).await;
    let mut scene = Scene::new(daemon, "", "epoll").await;
    let pairs: Vec<_> = (0..WATCHES).map(|_| UnixStream::pair().unwrap()).collect();
    let handover = scene.daemon.handover().await;
    let mut last = 0;
    for (_, theirs) in &pairs {
        last = scene.add(reader(handover.give(theirs))).await;
    }
    drop(handover);
    let told = the_loop(&scene).await.journal.unwrap();
    murder(&scene.daemon).await;
    let mut recorder = resume(&scene, &told.epoch, told.newest_seq).await;
    (&pairs[WATCHES - 1].0).write_all(b"x").unwrap();
    recorder.first(last, "ready").await;
    assert_eq!(scene.open_watches().await, WATCHES as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_cannot_be_kept_closes_as_lost() {
    let mut scene = Scene::new(start().await, "", "").await;
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    let flags = OFlags::RDWR | OFlags::NONBLOCK;
    rustix::fs::fcntl_setfl(&terminal, flags).unwrap();
    let slot = scene.daemon.handover().await.give(&terminal);
    let id = scene.add(read_pipe(slot)).await;
    let told = the_loop(&scene).await.journal.unwrap();
    murder(&scene.daemon).await;
    let mut recorder = resume(&scene, &told.epoch, told.newest_seq).await;
    let Some(Kind::Closed(closed)) = recorder.first(id, "closed").await.kind else {
        panic!("its end");
    };
    assert_eq!(closed.reason(), CloseReason::Lost);
    assert!(!closed.error.unwrap().message.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_child_goes_on_with_its_pipes_and_its_exit_is_exact() {
    for (policy, backend) in BACKENDS {
        let mut scene = Scene::new(start().await, policy, backend).await;
        let line = "echo first; read x; echo got $x; read y; echo end >&2; exit 7";
        let spec = ProcessSpec {
            stdin: Stdio::Pipe.into(),
            ..shell(line)
        };
        let id = scene.spawn(spec).await;
        scene.output(id, "first\n").await;
        let before = scene.process(id).await;
        for (round, word) in ["one", "two"].into_iter().enumerate() {
            let told = the_loop(&scene).await.journal.unwrap();
            murder(&scene.daemon).await;
            let now = scene.process(id).await;
            assert_eq!((before.pid, now.exited.is_some()), (now.pid, false));
            let mut recorder = resume(&scene, &told.epoch, told.newest_seq).await;
            assert!(scene.write(id, format!("{word}\n").as_bytes()).await > 0);
            if round == 0 {
                let Some(Kind::Data(data)) = recorder.first(id, "data").await.kind else {
                    panic!("output");
                };
                assert_eq!((data.offset, &data.data[..]), (6, &b"got one\n"[..]));
                continue;
            }
            let Some(Kind::Exited(exited)) = recorder.first(id, "exited").await.kind else {
                panic!("its exit");
            };
            assert_eq!(exited.status, Some(exited::Status::Code(7)));
            assert!(exited.usage.unwrap().max_rss_kib > 0);
            recorder.first(id, "closed").await;
            assert_eq!(recorder.bytes(id, Stream::Stderr), b"end\n");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_child_that_ends_while_no_daemon_lives_is_known_to_have_ended() {
    let mut scene = Scene::new(start().await, "", "").await;
    let spec = ProcessSpec {
        stdin: Stdio::Pipe.into(),
        ..shell("echo ready; read x; exit 9")
    };
    let id = scene.spawn(spec).await;
    scene.output(id, "ready\n").await;
    let told = the_loop(&scene).await.journal.unwrap();
    let child = Pid::from_raw(scene.process(id).await.pid);
    let daemon = Pid::from_raw(scene.daemon.info().await.pid);
    // The keeper can neither reap nor start anything meanwhile.
    scene.daemon.signal(Signal::SIGSTOP);
    kill(daemon, Signal::SIGKILL).unwrap();
    kill(child, Signal::SIGUSR1).unwrap();
    scene.daemon.signal(Signal::SIGCONT);
    next_life(&scene.daemon, 1).await;
    let mut recorder = resume(&scene, &told.epoch, told.newest_seq).await;
    let Some(Kind::Exited(exited)) = recorder.first(id, "exited").await.kind else {
        panic!("its exit");
    };
    let number = Signal::SIGUSR1 as i32;
    assert_eq!(exited.status, Some(exited::Status::Signal(number)));
}

/// A reader that goes on with its cursor through all lives.
struct Persistent {
    epoch: String,
    seen: u64,
    bytes: Vec<u8>,
    ended: bool,
}

impl Persistent {
    /// Reads until `enough` bytes of the child's stdout are there, or it has closed.
    async fn read(&mut self, scene: &Scene, id: u64, enough: usize) {
        let request = SubscribeRequest {
            r#loop: Some(scene.target.clone()),
            start: Some(subscribe_request::Start::After(Cursor {
                epoch: self.epoch.clone(),
                seq: self.seen,
            })),
            ..SubscribeRequest::default()
        };
        let stream = scene.daemon.events().subscribe(request).await.unwrap();
        let mut stream = stream.into_inner();
        while self.bytes.len() < enough && !self.ended {
            let message = within("events", stream.message()).await.unwrap().unwrap();
            let Some(subscribe_response::Message::Batch(batch)) = message.message else {
                continue;
            };
            assert!(batch.gaps.is_empty(), "{:?}", batch.gaps);
            for event in batch.events {
                assert_eq!(event.seq, self.seen + 1);
                self.seen = event.seq;
                match event.kind {
                    Some(Kind::Data(data)) if event.watch_id == id => {
                        assert_eq!(data.offset, self.bytes.len() as u64, "at {}", event.seq);
                        self.bytes.extend_from_slice(&data.data);
                    }
                    Some(Kind::Closed(_)) if event.watch_id == id => self.ended = true,
                    _ => {}
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_of_a_child_is_told_once_through_many_deaths() {
    for (policy, backend) in BACKENDS {
        let mut scene = Scene::new(start().await, policy, backend).await;
        // It writes all the time, line by line.
        let line = "i=0; while [ $i -lt 400000 ]; do echo $i; i=$((i+1)); done";
        let id = scene.spawn(shell(line)).await;
        let mut reader = Persistent {
            epoch: the_loop(&scene).await.journal.unwrap().epoch,
            seen: 0,
            bytes: Vec::new(),
            ended: false,
        };
        while !reader.ended {
            let enough = reader.bytes.len() + 20_000;
            reader.read(&scene, id, enough).await;
            if !reader.ended {
                murder(&scene.daemon).await;
            }
        }
        let lives = scene.daemon.status().await.keeper.unwrap().life;
        assert!(lives > 3, "{lives}");
        let wanted: String = (0..400_000).map(|number| format!("{number}\n")).collect();
        assert_eq!(reader.bytes.len(), wanted.len());
        assert!(reader.bytes == wanted.as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_that_was_taken_reaches_the_child_once_through_many_deaths() {
    const ALL: u64 = 3_000_000;
    for (policy, backend) in BACKENDS {
        let mut scene = Scene::new(start().await, policy, backend).await;
        let spec = ProcessSpec {
            stdin: Stdio::Pipe.into(),
            ..shell("cat")
        };
        let id = scene.spawn(spec).await;
        let input: Vec<u8> = (0..ALL / 8).flat_map(u64::to_be_bytes).collect();
        let mut reader = Persistent {
            epoch: the_loop(&scene).await.journal.unwrap().epoch,
            seen: 0,
            bytes: Vec::new(),
            ended: false,
        };
        let (mut taken, mut round) = (0, 0_u64);
        while !reader.ended {
            // The offset is known, so that a call without an answer is repeated.
            let end = ALL.min(taken + 150_000);
            while taken < end {
                let at = usize::try_from(taken).unwrap();
                let most = 1 + usize::try_from(taken).unwrap() * 7 % 40_000;
                let data = input[at..].iter().take(most).copied().collect::<Vec<_>>();
                taken = scene.write_at(id, &data, Some(taken)).await.unwrap().taken;
            }
            if taken == ALL {
                scene.write_eof(id).await;
            }
            round += 1;
            if round % 3 == 0 {
                murder(&scene.daemon).await;
            }
            let enough = reader.bytes.len() + 100_000;
            let enough = enough.min(usize::try_from(taken).unwrap());
            reader.read(&scene, id, enough).await;
            if taken == ALL {
                reader.read(&scene, id, usize::MAX).await;
            } else if round % 3 != 0 {
                murder(&scene.daemon).await;
            }
        }
        assert_eq!(reader.bytes.len(), input.len());
        assert!(reader.bytes == input);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_repeated_request_gets_the_answer_of_an_earlier_life() {
    let mut scene = Scene::new(start().await, "", "").await;
    let hour = timer(timer_spec::Schedule::After(seconds(3600)));
    let request = AddWatchRequest {
        request_id: "once".into(),
        ..scene.request(hour)
    };
    let first = scene.daemon.watches().add_watch(request.clone()).await;
    let first = first.unwrap().into_inner();
    murder(&scene.daemon).await;
    let again = scene.daemon.watches().add_watch(request.clone()).await;
    assert_eq!(again.unwrap().into_inner(), first);
    assert_eq!(scene.open_watches().await, 1);
    let other = AddWatchRequest {
        user_data: 7,
        ..request
    };
    let refused = scene.daemon.watches().add_watch(other).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    scene.remove(first.watch.unwrap().watch_id).await;
}
