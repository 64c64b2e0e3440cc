//! Outgoing streams: flow control, and writes that resume at an offset.

use std::io::Read;
use std::os::unix::net::UnixStream;

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    ConnectionSpec, Event, WaterMarks, WriteEofRequest, WritePipeSpec, write_pipe_spec,
};
use tonic::Code;

use crate::common::{Scene, adopted, after, by_id, refused, tcp, write_pipe};

on_each_backend!(
    bytes_already_taken_are_ignored_and_a_hole_is_refused,
    writing_pauses_above_the_high_mark_and_resumes_at_a_quarter,
    a_full_buffer_takes_what_fits,
    water_marks_are_those_that_were_asked_for,
    water_marks_out_of_range_are_refused,
    nothing_is_taken_after_the_end,
    writes_without_an_outgoing_stream_are_refused,
);

const KIB: u64 = 1024;

async fn socket(scene: &mut Scene) -> (UnixStream, u64) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let slot = scene.daemon.handover().await.give(&theirs);
    let id = scene.add(Spec::Connection(adopted(slot))).await;
    scene.recorder.first(id, "connected").await;
    (ours, id)
}

fn buffered(event: &Event) -> u64 {
    match &event.kind {
        Some(Kind::WritePaused(paused)) => paused.buffered_bytes,
        Some(Kind::WriteResumed(resumed)) => resumed.buffered_bytes,
        other => panic!("{other:?}"),
    }
}

async fn bytes_already_taken_are_ignored_and_a_hole_is_refused(scene: &mut Scene) {
    let (mut ours, id) = socket(scene).await;
    for (data, offset, taken) in [
        ("hello", Some(0), 5),
        ("hello", Some(0), 5),
        ("lo wor", Some(3), 9),
        ("", Some(2), 9),
        ("ld", None, 11),
        ("hello world", Some(0), 11),
    ] {
        let answer = scene.write_at(id, data.as_bytes(), offset).await.unwrap();
        assert_eq!(answer.taken, taken);
    }
    let hole = scene.write_at(id, b"!", Some(12)).await;
    let hole = refused(hole, Code::OutOfRange, "WRITE_HOLE");
    assert_eq!(hole.word("taken"), "11");
    scene.write_eof(id).await;
    let mut all = String::new();
    ours.read_to_string(&mut all).unwrap();
    assert_eq!(all, "hello world");
    drop(ours);
    scene.closed(id).await;
}

async fn writing_pauses_above_the_high_mark_and_resumes_at_a_quarter(scene: &mut Scene) {
    let (mut ours, id) = socket(scene).await;
    let piece = vec![b'x'; 64 * 1024];
    let mut taken = 0;
    while !scene.recorder.kinds(id).contains(&"write_paused") {
        taken = scene.write(id, &piece).await;
        scene.settle().await;
    }
    let paused = scene.recorder.first(id, "write_paused").await;
    assert!(buffered(&paused) > 64 * KIB);
    let reading = tokio::task::spawn_blocking(move || {
        let mut all = vec![0; usize::try_from(taken).unwrap()];
        ours.read_exact(&mut all).unwrap();
        (ours, all)
    });
    let resumed = scene.recorder.first(id, "write_resumed").await;
    assert!(buffered(&resumed) <= 16 * KIB);
    let (ours, all) = reading.await.unwrap();
    assert!(all.iter().all(|byte| *byte == b'x'));
    drop(ours);
    scene.closed(id).await;
}

async fn a_full_buffer_takes_what_fits(scene: &mut Scene) {
    let (mut ours, id) = socket(scene).await;
    let piece = vec![b'x'; 1 << 20];
    let mut sent = 0;
    let (taken, buffered) = loop {
        sent += 1 << 20;
        let answer = scene.write_at(id, &piece, None).await.unwrap();
        if answer.taken < sent {
            break (answer.taken, answer.buffered_bytes);
        }
    };
    assert_eq!(buffered, 1 << 20, "the limit of the buffer");
    let too_big = vec![b'x'; (1 << 20) + 1];
    let bad = scene.write_at(id, &too_big, None).await;
    let bad = refused(bad, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(bad.fields, ["data"]);
    let reading = tokio::task::spawn_blocking(move || {
        let mut all = vec![0; usize::try_from(taken).unwrap()];
        ours.read_exact(&mut all).unwrap();
        ours
    });
    scene.recorder.first(id, "write_resumed").await;
    drop(reading.await.unwrap());
    scene.closed(id).await;
}

async fn nothing_is_taken_after_the_end(scene: &mut Scene) {
    let (ours, id) = socket(scene).await;
    scene.write(id, b"all").await;
    scene.write_eof(id).await;
    let late = scene.write_at(id, b"more", None).await;
    refused(late, Code::FailedPrecondition, "WRONG_STATE");
    let repeat = scene.write_at(id, b"all", Some(0)).await.unwrap();
    assert_eq!(repeat.taken, 3);
    drop(ours);
    scene.closed(id).await;
    let late = scene.write_at(id, b"more", None).await;
    refused(late, Code::FailedPrecondition, "WATCH_CLOSED");
}

async fn writes_without_an_outgoing_stream_are_refused(scene: &mut Scene) {
    let id = scene.add(after(std::time::Duration::from_secs(3600))).await;
    let to_timer = scene.write_at(id, b"x", None).await;
    refused(to_timer, Code::FailedPrecondition, "WRONG_STATE");
    let request = WriteEofRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        ..WriteEofRequest::default()
    };
    let to_timer = scene.daemon.transports().write_eof(request).await;
    refused(to_timer, Code::FailedPrecondition, "WRONG_STATE");
    let nobody = scene.write_at(id + 1, b"x", None).await;
    refused(nobody, Code::NotFound, "WATCH_NOT_FOUND");

    let (reading, _writing) = std::io::pipe().unwrap();
    let slot = scene.daemon.handover().await.give(&reading);
    let request = scene.request(write_pipe(slot));
    assert!(
        scene.try_add(request).await.is_err(),
        "a read pipe has no outgoing stream"
    );
}

/// Returns the amounts of WritePaused and WriteResumed in their order.
fn flow(scene: &Scene, id: u64) -> Vec<(&'static str, u64)> {
    let events = scene.recorder.recording.events();
    let of_watch = events.filter(|event| event.watch_id == id);
    of_watch
        .filter_map(|event| match &event.kind {
            Some(Kind::WritePaused(paused)) => Some(("paused", paused.buffered_bytes)),
            Some(Kind::WriteResumed(resumed)) => Some(("resumed", resumed.buffered_bytes)),
            _ => None,
        })
        .collect()
}

async fn water_marks_are_those_that_were_asked_for(scene: &mut Scene) {
    const HIGH: u64 = 8 * KIB;
    const LOW: u64 = 8 * KIB - 1;
    let marks = |high, low| WaterMarks {
        high_bytes: high,
        low_bytes: low,
    };
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let slot = scene.daemon.handover().await.give(&theirs);
    let spec = ConnectionSpec {
        water_marks: Some(marks(Some(HIGH), Some(LOW))),
        ..adopted(slot)
    };
    let id = scene.add(Spec::Connection(spec)).await;
    scene.recorder.first(id, "connected").await;
    // Small pieces: the kernel takes all or nothing of one, and then some stay.
    let piece = vec![b'x'; 1000];
    let mut taken = 0;
    while !scene.recorder.kinds(id).contains(&"write_paused") {
        taken = scene.write(id, &piece).await;
        scene.settle().await;
    }
    let reading = tokio::task::spawn_blocking(move || {
        let mut all = vec![0; usize::try_from(taken).unwrap()];
        ours.read_exact(&mut all).unwrap();
        ours
    });
    scene.recorder.first(id, "write_resumed").await;
    drop(reading.await.unwrap());
    scene.closed(id).await;
    match flow(scene, id)[..] {
        [("paused", paused), ("resumed", resumed)] => {
            assert!(paused > HIGH && paused <= HIGH + 1000, "{paused}");
            // Far above a quarter of the high mark.
            assert!(resumed <= LOW && resumed > LOW / 2, "{resumed}");
        }
        ref other => panic!("{other:?}"),
    }

    // With 0, each Write is told when it waits and when it is sent, on every kind of transport.
    let (mut reading, writing) = std::io::pipe().unwrap();
    let slot = scene.daemon.handover().await.give(&writing);
    drop(writing);
    let spec = Spec::WritePipe(WritePipeSpec {
        target: Some(write_pipe_spec::Target::Slot(slot)),
        water_marks: Some(marks(Some(0), None)),
    });
    let id = scene.add(spec).await;
    for nth in 1..=3 {
        scene.write(id, b"abc").await;
        scene.recorder.nth(id, "write_resumed", nth).await;
    }
    assert_eq!(flow(scene, id), [("paused", 3), ("resumed", 0)].repeat(3));
    scene.write_eof(id).await;
    let mut all = String::new();
    reading.read_to_string(&mut all).unwrap();
    assert_eq!(all, "abcabcabc");
    scene.closed(id).await;
}

async fn water_marks_out_of_range_are_refused(scene: &mut Scene) {
    let with = |high_bytes, low_bytes| {
        Spec::Connection(ConnectionSpec {
            water_marks: Some(WaterMarks {
                high_bytes,
                low_bytes,
            }),
            ..tcp("127.0.0.1", 80)
        })
    };
    for (spec, field) in [
        (with(Some((1 << 20) + 1), None), "high_bytes"),
        (with(None, Some((1 << 20) + 1)), "low_bytes"),
        (with(Some(10), Some(11)), "low_bytes"),
        (with(Some(u64::MAX), None), "high_bytes"),
    ] {
        let request = scene.request(spec);
        let bad = refused(
            scene.try_add(request).await,
            Code::InvalidArgument,
            "INVALID_FIELD",
        );
        assert_eq!(bad.fields, [format!("spec.connection.water_marks.{field}")]);
    }
}
