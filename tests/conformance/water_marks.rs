//! Water marks that move while a watch lives.

use std::io::Read;
use std::os::unix::net::{UnixDatagram, UnixStream};

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{DatagramSpec, ProcessSpec, Stdio, WaterMarks, watch};
use tonic::Code;

use crate::common::{Scene, adopted, never, refused, shell, tcp_listener, unix_socket, write_pipe};

on_each_backend!(
    marks_of_a_connection_move,
    marks_of_a_write_pipe_move,
    marks_of_a_stdin_move,
    marks_of_datagrams_move,
    a_spec_sets_the_marks_of_stdin_and_datagrams,
    marks_that_cannot_be_are_refused,
);

/// The unsent bytes of each case.
const UNSENT: u64 = 10_000;
const BYTES: [u8; 10_000] = [b'x'; 10_000];

fn marks(high: u64, low: u64) -> WaterMarks {
    WaterMarks {
        high_bytes: Some(high),
        low_bytes: Some(low),
    }
}

async fn status_marks(scene: &Scene, id: u64) -> Option<WaterMarks> {
    match scene.get(id).await.status {
        Some(watch::Status::Transport(status)) => status.water_marks,
        Some(watch::Status::Process(status)) => status.stdin_water_marks,
        Some(watch::Status::Datagram(status)) => status.water_marks,
        other => panic!("{other:?}"),
    }
}

/// Returns the events of flow control, with their unsent bytes.
fn flow(scene: &Scene, id: u64) -> Vec<(&'static str, u64)> {
    let events = scene.recorder.recording.events();
    events
        .filter(|event| event.watch_id == id)
        .filter_map(|event| match &event.kind {
            Some(Kind::WritePaused(paused)) => Some(("paused", paused.buffered_bytes)),
            Some(Kind::WriteResumed(resumed)) => Some(("resumed", resumed.buffered_bytes)),
            _ => None,
        })
        .collect()
}

/// Moves the marks of a watch that has [`UNSENT`] bytes to send, on a loop that is stopped.
async fn move_marks(scene: &mut Scene, id: u64) {
    let set = async |scene: &Scene, asked: WaterMarks| {
        let got = scene.set_water_marks(id, Some(asked)).await.unwrap();
        assert_eq!(status_marks(scene, id).await, Some(got));
        got
    };
    scene.settle().await;
    assert_eq!(flow(scene, id), [], "the marks are those of the daemon");
    assert_eq!(status_marks(scene, id).await, Some(marks(65_536, 16_384)));
    // Not paused, below and at the high mark.
    set(scene, marks(20_000, 20_000)).await;
    set(scene, marks(UNSENT, 0)).await;
    // Not paused, and now above.
    set(scene, marks(UNSENT - 1, 1000)).await;
    // Paused: above the high mark, between the marks, and below the high mark.
    set(scene, marks(0, 0)).await;
    set(scene, marks(20_000, UNSENT - 1)).await;
    // Paused, and now at the low mark.
    let quarter = WaterMarks {
        high_bytes: Some(4 * UNSENT),
        low_bytes: None,
    };
    assert_eq!(set(scene, quarter).await, marks(4 * UNSENT, UNSENT));
    // Paused and resumed at once is told once.
    set(scene, marks(0, 0)).await;
    scene.settle().await;
    let (paused, resumed) = (("paused", UNSENT), ("resumed", UNSENT));
    assert_eq!(flow(scene, id), [paused, resumed, paused]);
    assert_eq!(
        scene.set_water_marks(id, None).await.unwrap(),
        marks(65_536, 16_384)
    );
    scene.settle().await;
    assert_eq!(flow(scene, id), [paused, resumed, paused, resumed]);
    set(scene, marks(0, 0)).await;
}

/// Writes, moves the marks, and lets the loop send.
async fn move_marks_of_a_stream(scene: &mut Scene, id: u64) {
    scene.stop().await;
    scene.write(id, &BYTES).await;
    move_marks(scene, id).await;
    scene.run().await;
    scene.recorder.nth(id, "write_resumed", 3).await;
    let flow = flow(scene, id);
    assert_eq!((flow.len(), flow[5]), (6, ("resumed", 0)));
}

async fn marks_of_a_connection_move(scene: &mut Scene) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let slot = scene.daemon.handover().await.give(&theirs);
    let id = scene.add(Spec::Connection(adopted(slot))).await;
    scene.recorder.first(id, "connected").await;
    move_marks_of_a_stream(scene, id).await;
    let mut all = BYTES;
    ours.read_exact(&mut all).unwrap();
}

async fn marks_of_a_write_pipe_move(scene: &mut Scene) {
    let (mut reading, writing) = std::io::pipe().unwrap();
    let slot = scene.daemon.handover().await.give(&writing);
    let id = scene.add(write_pipe(slot)).await;
    move_marks_of_a_stream(scene, id).await;
    let mut all = BYTES;
    reading.read_exact(&mut all).unwrap();
}

fn cat() -> ProcessSpec {
    ProcessSpec {
        stdin: Stdio::Pipe.into(),
        ..shell("cat > /dev/null")
    }
}

async fn marks_of_a_stdin_move(scene: &mut Scene) {
    let id = scene.spawn(cat()).await;
    scene.recorder.first(id, "started").await;
    move_marks_of_a_stream(scene, id).await;
    scene.write_eof(id).await;
    scene.closed(id).await;
    assert_eq!(status_marks(scene, id).await, None);
}

async fn marks_of_datagrams_move(scene: &mut Scene) {
    let path = scene.daemon.dir.path().join("marks.sock");
    let ours = UnixDatagram::bind(&path).unwrap();
    let spec = DatagramSpec {
        peer: Some(unix_socket(&path)),
        ..DatagramSpec::default()
    };
    let id = scene.add(Spec::Datagram(spec)).await;
    scene.stop().await;
    // Each counts 64 bytes more than it has.
    for _ in 0..5 {
        scene.send_to(id, &[b'x'; 2000 - 64], None).await.unwrap();
    }
    move_marks(scene, id).await;
    scene.run().await;
    scene.recorder.nth(id, "write_resumed", 3).await;
    assert_eq!(flow(scene, id)[5], ("resumed", 0));
    drop(ours);
}

async fn a_spec_sets_the_marks_of_stdin_and_datagrams(scene: &mut Scene) {
    let child = ProcessSpec {
        stdin_water_marks: Some(marks(4, 0)),
        ..cat()
    };
    let child = scene.spawn(child).await;
    let path = scene.daemon.dir.path().join("spec.sock");
    let _ours = UnixDatagram::bind(&path).unwrap();
    let datagrams = DatagramSpec {
        peer: Some(unix_socket(&path)),
        water_marks: Some(marks(70, 0)),
        ..DatagramSpec::default()
    };
    let datagrams = scene.add(Spec::Datagram(datagrams)).await;
    scene.stop().await;
    scene.write(child, b"word").await;
    scene.write(child, b"s").await;
    scene.send_to(datagrams, b"", None).await.unwrap();
    scene.send_to(datagrams, b"", None).await.unwrap();
    scene.run().await;
    for (id, paused) in [(child, 5), (datagrams, 128)] {
        scene.recorder.first(id, "write_resumed").await;
        assert_eq!(flow(scene, id), [("paused", paused), ("resumed", 0)]);
    }
}

async fn marks_that_cannot_be_are_refused(scene: &mut Scene) {
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let slot = scene.daemon.handover().await.give(&theirs);
    let id = scene.add(Spec::Connection(adopted(slot))).await;
    for (asked, field) in [
        (marks((1 << 20) + 1, 0), "water_marks.high_bytes"),
        (marks(9, 10), "water_marks.low_bytes"),
    ] {
        let bad = scene.set_water_marks(id, Some(asked)).await;
        let bad = refused(bad, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(bad.fields, [field]);
    }
    assert_eq!(status_marks(scene, id).await, Some(marks(65_536, 16_384)));
    let timer = scene.add(never()).await;
    let listener = scene.add(Spec::Listener(tcp_listener())).await;
    let child = scene.spawn(shell("exec sleep 3600")).await;
    for id in [timer, listener, child] {
        let none = scene.set_water_marks(id, None).await;
        refused(none, Code::FailedPrecondition, "WRONG_STATE");
    }
    let spec = ProcessSpec {
        stdin_water_marks: Some(marks(4, 2)),
        ..shell("true")
    };
    let request = scene.request(Spec::Process(spec));
    let bad = refused(
        scene.try_add(request).await,
        Code::InvalidArgument,
        "INVALID_FIELD",
    );
    assert_eq!(bad.fields, ["spec.process.stdin_water_marks"]);
}
