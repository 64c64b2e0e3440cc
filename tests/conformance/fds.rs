//! Readers and writers on descriptors that a client hands over: one-shot, with re-arm.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{CloseReason, FdSpec, Lifetime, Ready, RearmItem, TakeFdRequest};
use tonic::Code;

use crate::common::{Scene, by_id, hang_up, reader, refused, writer};

on_each_backend!(
    a_reader_is_one_shot_and_rearming_a_ready_fd_reports_again,
    a_stale_rearm_does_nothing,
    directions_arm_and_fire_separately,
    a_hangup_is_silent_while_disarmed,
    the_end_of_the_peer_is_reported_in_the_direction_that_fired,
    a_reader_survives_the_clients_own_close,
    a_closed_fd_number_that_is_reused_is_another_watch,
    files_that_cannot_be_watched_are_refused,
    the_fd_can_be_taken_back,
    a_slot_is_claimed_once,
);

pub(crate) async fn pair(scene: &Scene) -> (UnixStream, UnixStream, bytes::Bytes) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let slot = scene.daemon.handover().await.give(&theirs);
    (ours, theirs, slot)
}

fn ready(event: evloopd::proto::Event) -> (u64, Ready) {
    match event.kind {
        Some(Kind::Ready(ready)) => (event.seq, ready),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn reading(watch_id: u64, seq: u64) -> RearmItem {
    RearmItem {
        watch_id,
        seq,
        readable: true,
        ..RearmItem::default()
    }
}

async fn a_reader_is_one_shot_and_rearming_a_ready_fd_reports_again(scene: &mut Scene) {
    let (mut ours, mut theirs, slot) = pair(scene).await;
    let id = scene.add(reader(slot)).await;
    scene.settle().await;
    assert_eq!(scene.recorder.kinds(id), ["added"]);

    ours.write_all(b"x").unwrap();
    let (first, what) = ready(scene.recorder.first(id, "ready").await);
    assert_eq!((what.readable, what.writable), (true, false));
    ours.write_all(b"y").unwrap();
    scene.settle().await;
    assert_eq!(scene.recorder.kinds(id), ["added", "ready"]);

    assert!(scene.rearm(reading(id, first)).await);
    let (second, _) = ready(scene.recorder.nth(id, "ready", 2).await);
    theirs.read_exact(&mut [0; 2]).unwrap();
    assert!(scene.rearm(reading(id, second)).await);
    scene.settle().await;
    assert_eq!(scene.recorder.kinds(id), ["added", "ready", "ready"]);
    ours.write_all(b"z").unwrap();
    scene.recorder.nth(id, "ready", 3).await;
}

async fn a_stale_rearm_does_nothing(scene: &mut Scene) {
    let (mut ours, _theirs, slot) = pair(scene).await;
    let id = scene.add(reader(slot)).await;
    ours.write_all(b"x").unwrap();
    let (first, _) = ready(scene.recorder.first(id, "ready").await);
    assert!(scene.rearm(reading(id, first)).await);
    let (second, _) = ready(scene.recorder.nth(id, "ready", 2).await);

    assert!(
        !scene.rearm(reading(id, first)).await,
        "a later Ready exists"
    );
    scene.settle().await;
    assert_eq!(scene.recorder.kinds(id).len(), 3);
    assert!(scene.rearm(reading(id, second)).await);
    scene.recorder.nth(id, "ready", 3).await;
    assert!(
        !scene.rearm(reading(id + 1, 0)).await,
        "there is no such watch"
    );
}

async fn directions_arm_and_fire_separately(scene: &mut Scene) {
    let (mut ours, _theirs, slot) = pair(scene).await;
    let id = scene.add(writer(slot)).await;
    let (_, what) = ready(scene.recorder.first(id, "ready").await);
    assert!(what.writable);
    ours.write_all(b"x").unwrap();
    scene.settle().await;
    assert_eq!(scene.recorder.kinds(id), ["added", "ready"]);

    assert!(scene.rearm(reading(id, 0)).await);
    let (_, what) = ready(scene.recorder.nth(id, "ready", 2).await);
    assert!(what.readable);
    let both = RearmItem {
        writable: true,
        ..reading(id, 0)
    };
    assert!(scene.rearm(both).await);
    scene.settle().await;
    let after: Vec<Ready> = scene
        .recorder
        .recording
        .events()
        .filter(|event| event.watch_id == id)
        .filter_map(|event| match &event.kind {
            Some(Kind::Ready(ready)) => Some(*ready),
            _ => None,
        })
        .skip(2)
        .collect();
    assert!(after.iter().any(|r| r.readable) && after.iter().any(|r| r.writable));
}

async fn a_hangup_is_silent_while_disarmed(scene: &mut Scene) {
    let (ours, theirs, slot) = pair(scene).await;
    let disarmed = Spec::Fd(FdSpec {
        slot,
        ..FdSpec::default()
    });
    let id = scene.add(disarmed).await;
    drop(ours);
    let turns = turns(scene).await;
    scene.settle().await;
    scene.settle().await;
    assert_eq!(scene.recorder.kinds(id), ["added"]);
    assert!(self::turns(scene).await < turns + 20, "it spins");

    assert!(scene.rearm(reading(id, 0)).await);
    let (_, what) = ready(scene.recorder.first(id, "ready").await);
    assert!(what.readable && what.hangup, "{what:?}");
    drop(theirs);
}

async fn the_end_of_the_peer_is_reported_in_the_direction_that_fired(scene: &mut Scene) {
    let handover = scene.daemon.handover().await;
    let read = Ready {
        readable: true,
        read_fired: true,
        ..Ready::default()
    };
    let write = Ready {
        write_fired: true,
        ..Ready::default()
    };
    let hung_up = |ready| Ready {
        hangup: true,
        ..ready
    };

    let (reader_end, writer_end) = std::io::pipe().unwrap();
    let (slot, other) = (handover.give(&reader_end), handover.give(&reader_end));
    let to_read = scene.add(reader(slot)).await;
    // A reading end is never writable: only a hang-up can fire this watch.
    let to_write = scene.add(writer(other)).await;
    scene.settle().await;
    assert_eq!(scene.recorder.kinds(to_read), ["added"]);
    assert_eq!(scene.recorder.kinds(to_write), ["added"]);
    drop(writer_end);
    let (_, what) = ready(scene.recorder.first(to_read, "ready").await);
    assert_eq!(what, hung_up(read), "a pipe at its end");
    let (_, what) = ready(scene.recorder.first(to_write, "ready").await);
    assert_eq!(what, hung_up(write), "a pipe's reading end");

    let (reader_end, mut writer_end) = std::io::pipe().unwrap();
    writer_end.write_all(&[0; 65_536]).unwrap();
    let id = scene.add(writer(handover.give(&writer_end))).await;
    scene.settle().await;
    assert_eq!(scene.recorder.kinds(id), ["added"], "the pipe is full");
    drop(reader_end);
    let (_, what) = ready(scene.recorder.first(id, "ready").await);
    let failed = Ready {
        writable: true,
        error: true,
        ..write
    };
    assert_eq!(what, failed, "a pipe that nobody reads");

    let (ours, _theirs, slot) = pair(scene).await;
    let id = scene.add(reader(slot)).await;
    ours.shutdown(std::net::Shutdown::Write).unwrap();
    let (seq, what) = ready(scene.recorder.first(id, "ready").await);
    let half_closed = Ready {
        half_closed: true,
        ..read
    };
    assert_eq!(what, half_closed, "a peer that sends no more");
    hang_up(&ours);
    drop(ours);
    assert!(scene.rearm(reading(id, seq)).await);
    let (_, what) = ready(scene.recorder.nth(id, "ready", 2).await);
    assert_eq!(what, hung_up(half_closed), "a peer that is gone");
}

async fn turns(scene: &Scene) -> u64 {
    let request = evloopd::proto::GetLoopRequest {
        r#loop: Some(scene.target.clone()),
    };
    let answer = scene.daemon.loops().get_loop(request).await.unwrap();
    answer.into_inner().r#loop.unwrap().turns
}

async fn a_reader_survives_the_clients_own_close(scene: &mut Scene) {
    let (mut ours, theirs, slot) = pair(scene).await;
    let id = scene.add(reader(slot)).await;
    drop(theirs);
    ours.write_all(b"x").unwrap();
    let (_, what) = ready(scene.recorder.first(id, "ready").await);
    assert!(what.readable && !what.hangup);
}

async fn a_closed_fd_number_that_is_reused_is_another_watch(scene: &mut Scene) {
    let (mut ours, theirs, slot) = pair(scene).await;
    let first = scene.add(reader(slot)).await;
    scene.remove(first).await;
    drop(theirs);
    let (mut other, _theirs, slot) = pair(scene).await;
    let second = scene.add(reader(slot)).await;
    assert_ne!(first, second);
    let _ = ours.write(b"x");
    other.write_all(b"x").unwrap();
    scene.recorder.first(second, "ready").await;
    scene.settle().await;
    assert_eq!(scene.recorder.kinds(first), ["added", "closed", "removed"]);
}

async fn files_that_cannot_be_watched_are_refused(scene: &mut Scene) {
    const CANNOT_BE_WATCHED: u8 = 3;
    let handover = scene.daemon.handover().await;
    for path in ["/etc/hostname", "/", "/dev/null"] {
        let file = std::fs::File::open(path).unwrap();
        assert_eq!(handover.refused(&file), CANNOT_BE_WATCHED, "{path}");
    }
    let (a, b) = UnixStream::pair().unwrap();
    let file = std::fs::File::open("/etc/hostname").unwrap();
    let (reply, _) = handover.ask(b"evloopd1", &[a.as_fd(), file.as_fd(), b.as_fd()]);
    assert_eq!(
        reply[0], CANNOT_BE_WATCHED,
        "one refused descriptor refuses all of them"
    );
    assert_eq!(scene.open_watches().await, 0);
    drop((a, file));
    let mut end = [0];
    let mut b = b;
    assert_eq!(
        b.read(&mut end).unwrap(),
        0,
        "refused descriptors are closed"
    );
}

async fn the_fd_can_be_taken_back(scene: &mut Scene) {
    let (mut ours, theirs, slot) = pair(scene).await;
    let id = scene.add(reader(slot)).await;
    drop(theirs);
    let request = TakeFdRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        ..TakeFdRequest::default()
    };
    let taken = scene.daemon.watches().take_fd(request).await.unwrap();
    let taken = taken.into_inner();
    let event = scene.recorder.first(id, "closed").await;
    assert_eq!(Some(event.seq), taken.closed.map(|cursor| cursor.seq));
    assert_eq!(scene.closed(id).await.reason(), CloseReason::FdTaken);

    let handover = scene.daemon.handover().await;
    let mut back = UnixStream::from(handover.take(&taken.slot));
    ours.write_all(b"hello").unwrap();
    let mut read = [0; 5];
    back.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"hello");
    let (reply, _) = handover.ask(&[b"evloopd1", &taken.slot[..]].concat(), &[]);
    assert_eq!(reply[0], 4, "a slot is taken once");
}

async fn a_slot_is_claimed_once(scene: &mut Scene) {
    let (_ours, _theirs, slot) = pair(scene).await;
    let mut request = scene.request(reader(slot.clone()));
    request.lifetime = Lifetime::Daemon.into();
    scene.try_add(request.clone()).await.unwrap();
    let again = scene.try_add(request.clone()).await;
    refused(again, Code::NotFound, "SLOT_NOT_FOUND");
    request.spec = scene.request(reader(vec![7; 16].into())).spec;
    refused(
        scene.try_add(request.clone()).await,
        Code::NotFound,
        "SLOT_NOT_FOUND",
    );
    request.spec = scene.request(reader(vec![7; 3].into())).spec;
    let short = scene.try_add(request).await;
    let bad = refused(short, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(bad.fields, ["spec.fd.slot"]);
}
