//! Full journals: sources pause and nothing is lost, or the oldest events are dropped with a gap.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use evloopd::history::check;
use evloopd::proto::*;
use rustix::pipe::{PipeFlags, pipe_with};
use tonic::Code;

use crate::common::{
    Daemon, Recorder, Scene, by_id, millis, never, post, read_pipe, reader, refused, shell,
    tcp_listener, timer,
};

/// A journal of 256 KiB is full after a few reads.
const CONFIG: &str = r#"
[policy.small]
extends = "default"
journal_bytes = "256KiB"
journal_watch_bytes = "256KiB"
[policy.small-proactor]
extends = "small"
class = "proactor"
backends = ["io_uring"]
[policy.least]
extends = "small"
journal_bytes = "64KiB"
journal_watch_bytes = "64KiB"
[policy.shares]
extends = "default"
journal_bytes = "1MiB"
journal_watch_bytes = "128KiB"
[policy.drops]
extends = "small"
when_full = "drop_oldest"
"#;

async fn scene(policy: &str) -> Scene {
    Scene::new(Daemon::start(CONFIG).await, policy, "").await
}

/// Subscribes as a consumer, from the oldest event on.
pub(crate) async fn consumer(scene: &Scene, name: &str, in_flight: u32) -> Recorder {
    let request = SubscribeRequest {
        r#loop: Some(scene.target.clone()),
        start: Some(subscribe_request::Start::StartAt(StartAt::Oldest.into())),
        consumer: name.into(),
        max_in_flight_bytes: in_flight,
        ..SubscribeRequest::default()
    };
    Recorder::subscribe(&scene.daemon, request).await.unwrap()
}

pub(crate) async fn ack(scene: &Scene, name: &str, seq: u64) -> Result<u64, tonic::Status> {
    let request = AckRequest {
        r#loop: Some(scene.target.clone()),
        consumer: name.into(),
        cursor: Some(Cursor {
            epoch: String::new(),
            seq,
        }),
        ..AckRequest::default()
    };
    let answer = scene.daemon.events().ack(request).await?;
    Ok(answer
        .into_inner()
        .acked
        .expect("the acknowledged cursor")
        .seq)
}

pub(crate) async fn status(scene: &Scene) -> JournalStatus {
    let request = GetLoopRequest {
        r#loop: Some(scene.target.clone()),
    };
    let answer = scene.daemon.loops().get_loop(request).await.unwrap();
    answer.into_inner().r#loop.unwrap().journal.unwrap()
}

/// Waits until that watch is paused and returns how.
pub(crate) async fn paused(scene: &Scene, watch: u64) -> SourcePause {
    let look = async {
        loop {
            if let Some(pause) = scene.get(watch).await.source_pause {
                return pause;
            }
            tokio::task::yield_now().await;
        }
    };
    crate::common::within("a pause", look).await
}

async fn try_post(scene: &Scene, bytes: usize) -> Result<PostResponse, tonic::Status> {
    let request = PostRequest {
        r#loop: Some(scene.target.clone()),
        posts: vec![post("", &vec![0; bytes])],
        ..PostRequest::default()
    };
    let answer = scene.daemon.events().post(request).await?;
    Ok(answer.into_inner())
}

/// Whether the process is blocked in a write to a pipe, according to /proc.
fn blocks_in_a_write(pid: i32) -> bool {
    let wchan = std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    let syscall = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    wchan.contains("pipe") || syscall.starts_with("1 ")
}

/// Acknowledges batch by batch until the process is closed.
pub(crate) async fn drain(scene: &Scene, name: &str, reader: &mut Recorder, watch: u64) {
    let done = |r: &Recorder| r.kinds(watch).contains(&"closed");
    while !done(reader) {
        assert!(reader.step().await, "the stream ended");
        ack(scene, name, reader.recording.through()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_full_journal_stops_reading_and_the_child_blocks_until_there_is_room() {
    blocks_and_goes_on("small").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_full_journal_stops_the_proactor_too() {
    blocks_and_goes_on("small-proactor").await;
}

async fn blocks_and_goes_on(policy: &str) {
    let mut scene = scene(policy).await;
    let mut held = consumer(&scene, "slow", 64 << 20).await;
    let id = scene.spawn(shell("exec seq 200000")).await;
    let pause = paused(&scene, id).await;
    assert_eq!(pause.reason(), SourcePauseReason::JournalFull);
    let full = status(&scene).await;
    assert!(
        full.bytes <= full.max_bytes && full.dropped == 0,
        "{full:?}"
    );
    assert!(full.pinned_bytes > full.max_bytes / 4, "{full:?}");
    assert_eq!(full.paused_sources[0].watch_id, id);
    // The child is blocked by the kernel.
    let pid = match scene.recorder.first(id, "started").await.kind {
        Some(event::Kind::Started(started)) => started.pid,
        other => panic!("{other:?}"),
    };
    let blocked = async {
        while !blocks_in_a_write(pid) {
            tokio::task::yield_now().await;
        }
    };
    crate::common::within("the child to block", blocked).await;
    // Adding and removing a watch still have room.
    let before = status(&scene).await.newest_seq;
    let other = scene.add(never()).await;
    scene.remove(other).await;
    assert!(status(&scene).await.newest_seq > before);
    drain(&scene, "slow", &mut held, id).await;
    let text = held.bytes(id, Stream::Stdout);
    assert_eq!(text, numbers(200_000));
    assert_eq!(check(&held.recording).unwrap().lost, 0);
    assert!(scene.get(id).await.source_pause.is_none());
    assert!(status(&scene).await.paused_sources.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_timer_that_is_held_back_says_so() {
    let mut scene = scene("small").await;
    let mut held = consumer(&scene, "slow", 64 << 20).await;
    let noisy = scene.spawn(shell("exec seq 200000")).await;
    paused(&scene, noisy).await;
    // It is due only while the journal is full already.
    let every = timer(timer_spec::Schedule::Every(millis(20)));
    let late = scene.add(every).await;
    let idle = scene
        .add(timer(timer_spec::Schedule::Every(millis(3_600_000))))
        .await;
    let pause = paused(&scene, late).await;
    assert_eq!(pause.reason(), SourcePauseReason::JournalFull);
    // A timer that is not due is not held back.
    assert!(scene.get(idle).await.source_pause.is_none());
    drain(&scene, "slow", &mut held, noisy).await;
    scene.recorder.first(late, "timer_fired").await;
    assert!(scene.get(late).await.source_pause.is_none());
}

/// Returns what `seq` prints up to `last`.
pub(crate) fn numbers(last: u32) -> Vec<u8> {
    let mut text = Vec::new();
    for n in 1..=last {
        text.extend_from_slice(format!("{n}\n").as_bytes());
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn one_noisy_child_pauses_alone() {
    let mut scene = scene("shares").await;
    let mut held = consumer(&scene, "slow", 64 << 20).await;
    let noisy = scene.spawn(shell("exec seq 200000")).await;
    let pause = paused(&scene, noisy).await;
    assert_eq!(pause.reason(), SourcePauseReason::WatchShare);
    // Other processes are not affected.
    let quiet = scene.spawn(shell("echo quiet; exit 3")).await;
    scene.closed(quiet).await;
    assert_eq!(scene.recorder.bytes(quiet, Stream::Stdout), b"quiet\n");
    assert!(scene.get(noisy).await.source_pause.is_some());
    drain(&scene, "slow", &mut held, noisy).await;
    assert_eq!(held.bytes(noisy, Stream::Stdout), numbers(200_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_full_journal_refuses_watches_and_posts_but_not_removals_and_stops() {
    let mut scene = scene("small").await;
    let _held = consumer(&scene, "stuck", 64 << 20).await;
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let slot = scene.daemon.handover().await.give(&ours);
    drop(ours);
    let pipe = scene.add(read_pipe(slot)).await;
    let listener = scene.add(watch_spec::Spec::Listener(tcp_listener())).await;
    let id = scene.spawn(shell("exec yes")).await;
    paused(&scene, id).await;
    // Posts fill the journal to its last free event: then watches and posts are refused.
    let full = loop {
        let request = PostRequest {
            r#loop: Some(scene.target.clone()),
            posts: vec![post("", &[0; 512])],
            ..PostRequest::default()
        };
        if let Err(status) = scene.daemon.events().post(request).await {
            break status;
        }
    };
    refused::<()>(Err(full), Code::ResourceExhausted, "JOURNAL_FULL");
    let full = loop {
        let request = scene.request(never());
        if let Err(status) = scene.try_add(request).await {
            break status;
        }
    };
    refused::<()>(Err(full), Code::ResourceExhausted, "JOURNAL_FULL");
    // A pipe that is written to now is not read. It keeps the bytes.
    rustix::io::write(&theirs, b"later").unwrap();
    assert!(paused(&scene, listener).await.since.is_some());
    assert!(paused(&scene, pipe).await.since.is_some());
    // Removals and stops are served.
    scene.remove(id).await;
    scene.remove(listener).await;
    let stop = StopLoopRequest {
        r#loop: Some(scene.target.clone()),
        ..StopLoopRequest::default()
    };
    scene.daemon.loops().stop_loop(stop).await.unwrap();
    let close = CloseLoopRequest {
        r#loop: Some(scene.target.clone()),
        ..CloseLoopRequest::default()
    };
    scene.daemon.loops().close_loop(close).await.unwrap();
    let journal = scene.recorder.end().await;
    assert_eq!(journal.reason(), GoodbyeReason::LoopClosed);
    assert_eq!(check(&scene.recorder.recording).unwrap().lost, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn readiness_ticks_and_signals_wait_for_room_and_none_is_lost() {
    let config = format!("{CONFIG}[signals]\nallow = [\"SIGUSR1\"]\n");
    // The journal is small, so that the client's HTTP/2 buffers few frames of streams it does not
    // read.
    let mut scene = Scene::new(Daemon::start(&config).await, "least", "").await;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let slot = scene.daemon.handover().await.give(&ours);
    let fd = scene.add(reader(slot)).await;
    let signals = scene.add(crate::common::signals(&["SIGUSR1"])).await;
    let ticks = scene
        .add(timer(timer_spec::Schedule::Every(millis(5))))
        .await;
    std::io::Write::write_all(&mut &theirs, b"x").unwrap();
    scene.recorder.first(fd, "ready").await;
    let mut held = consumer(&scene, "slow", 64 << 20).await;
    // The consumer does not acknowledge: ticks fill the rest of the journal, and then none has
    // room.
    while try_post(&scene, 4096).await.is_ok() {}
    let missing = async {
        let overdue = |timer: &TimerStatus| {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            let now = now.tv_sec * 1_000_000_000 + now.tv_nsec;
            timer.next_ns + 100_000_000 < u64::try_from(now).unwrap()
        };
        loop {
            let journal = status(&scene).await;
            let is_full = journal.pinned_bytes + journal.reserved_bytes + 2048 > journal.max_bytes;
            match scene.get(ticks).await.status {
                Some(watch::Status::Timer(timer)) if is_full && overdue(&timer) => return,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    crate::common::within("a tick without room", missing).await;
    let ready = scene.recorder.nth(fd, "ready", 1).await.seq;
    scene.daemon.signal(nix::sys::signal::Signal::SIGUSR1);
    scene.daemon.signal(nix::sys::signal::Signal::SIGUSR1);
    let armed = scene
        .rearm(RearmItem {
            watch_id: fd,
            seq: ready,
            ..RearmItem::default()
        })
        .await;
    assert!(armed, "the reader is armed as soon as there is room");
    let count = |held: &Recorder, watch: u64, kind: &str| {
        let kinds = held.kinds(watch);
        kinds.into_iter().filter(|k| *k == kind).count()
    };
    // A later tick counts the ticks that had no room.
    let missed = |held: &Recorder| {
        held.recording.events().any(
            |event| matches!(&event.kind, Some(event::Kind::TimerFired(fired)) if fired.missed > 0),
        )
    };
    while count(&held, signals, "signal") == 0 || count(&held, fd, "ready") < 2 || !missed(&held) {
        assert!(held.step().await);
        ack(&scene, "slow", held.recording.through()).await.unwrap();
    }
    scene.remove(ticks).await;
    assert_eq!(check(&held.recording).unwrap().lost, 0);
}

/// A watch that finds no room only because of events appended in the same turn does not keep
/// waiting after that turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn readiness_without_room_in_one_turn_is_reported_after_it() {
    let mut scene = scene("least").await;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let slot = scene.daemon.handover().await.give(&ours);
    let fd = scene.add(reader(slot)).await;
    std::io::Write::write_all(&mut &theirs, b"x").unwrap();
    let request = PostRequest {
        r#loop: Some(scene.target.clone()),
        posts: vec![post("", &[0; 30_300]); 2],
        ..PostRequest::default()
    };
    for _ in 0..200 {
        // The descriptor stays readable: an armed reader fires at once.
        let fired = async {
            loop {
                match scene.get(fd).await.status {
                    Some(watch::Status::Fd(status)) if !status.readable_armed => return,
                    _ => tokio::task::yield_now().await,
                }
            }
        };
        crate::common::within("readiness", fired).await;
        let item = RearmItem {
            watch_id: fd,
            readable: true,
            ..RearmItem::default()
        };
        let (mut before, mut after) = (scene.daemon.events(), scene.daemon.events());
        let (_, armed, _) = tokio::join!(
            before.post(request.clone()),
            scene.rearm(item),
            after.post(request.clone())
        );
        assert!(armed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn drop_oldest_reports_exactly_the_missing_events() {
    let mut scene = scene("drops").await;
    let late = consumer(&scene, "late", 4096).await;
    let id = scene.spawn(shell("exec seq 200000")).await;
    scene.closed(id).await;
    let last = scene.settle().await;
    assert!(status(&scene).await.dropped > 0);
    drop(late);
    let mut late = consumer_after(&scene, "late").await;
    late.reach(last).await;
    let summary = check(&late.recording).unwrap();
    assert!(summary.lost > 0);
    // The gaps are exactly the events that did not arrive.
    let got: std::collections::BTreeSet<u64> = late.recording.events().map(|e| e.seq).collect();
    let mut missing = Vec::new();
    for gap in late.recording.gaps() {
        missing.extend(gap.from_seq..=gap.through_seq);
    }
    let all = late.recording.start + 1..=late.recording.through();
    let expected: Vec<u64> = all.filter(|seq| !got.contains(seq)).collect();
    assert_eq!(missing, expected);
    assert_eq!(missing.len() as u64, summary.lost);
    evloopd::history::check_same(&late.recording, &scene.recorder.recording).unwrap();
}

/// Subscribes as the consumer, after its acknowledged cursor, with `auto_ack`.
async fn consumer_after(scene: &Scene, name: &str) -> Recorder {
    let request = SubscribeRequest {
        r#loop: Some(scene.target.clone()),
        consumer: name.into(),
        auto_ack: true,
        ..SubscribeRequest::default()
    };
    Recorder::subscribe(&scene.daemon, request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_forgotten_consumer_is_deleted_after_its_ttl_and_its_paused_sources_go_on() {
    let mut scene = scene("small").await;
    let request = CreateConsumerRequest {
        r#loop: Some(scene.target.clone()),
        name: "forgotten".into(),
        ttl: Some(crate::common::seconds(1)),
        ..CreateConsumerRequest::default()
    };
    scene
        .daemon
        .events()
        .create_consumer(request)
        .await
        .unwrap();
    let id = scene.spawn(shell("exec seq 200000")).await;
    paused(&scene, id).await;
    // The loop has nothing else to do: it wakes by itself when the consumer expires.
    scene.closed(id).await;
    let request = GetConsumerRequest {
        r#loop: Some(scene.target.clone()),
        name: "forgotten".into(),
    };
    let gone = scene.daemon.events().get_consumer(request).await.map(drop);
    refused(gone, Code::NotFound, "CONSUMER_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_pipe_with_a_paused_source_is_given_back_whole() {
    let mut scene = scene("small").await;
    let _held = consumer(&scene, "stuck", 64 << 20).await;
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let slot = scene.daemon.handover().await.give(&ours);
    drop(ours);
    let pipe = scene.add(read_pipe(slot)).await;
    let writer = std::thread::spawn(move || {
        let mut file = File::from(theirs);
        let text = numbers(200_000);
        std::io::Write::write_all(&mut file, &text).unwrap();
    });
    paused(&scene, pipe).await;
    let request = TakeFdRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(pipe),
        ..TakeFdRequest::default()
    };
    let taken = scene.daemon.watches().take_fd(request).await.unwrap();
    let taken = taken.into_inner();
    let fd: OwnedFd = scene.daemon.handover().await.take(&taken.slot);
    // It blocks, as the one that was handed over did: there is more to come than is there.
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut File::from(fd), &mut rest).unwrap();
    writer.join().unwrap();
    let request = PollRequest {
        r#loop: Some(scene.target.clone()),
        after: Some(Cursor::default()),
        filter: Some(Filter {
            watch_ids: vec![pipe],
            kinds: vec![EventKind::Data.into()],
            ..Filter::default()
        }),
        timeout: Some(crate::common::lasting(Duration::from_secs(1))),
        max_events: 65_536,
        ..PollRequest::default()
    };
    let polled = scene
        .daemon
        .events()
        .poll(request)
        .await
        .unwrap()
        .into_inner();
    let mut text = Vec::new();
    for event in polled.batch.unwrap().events {
        if let Some(event::Kind::Data(data)) = event.kind {
            text.extend_from_slice(&data.data);
        }
    }
    assert_eq!(text.len() as u64, taken.received_bytes);
    text.extend_from_slice(&rest);
    assert_eq!(text, numbers(200_000));
}
