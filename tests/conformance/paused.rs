//! Connections that are not read when their peer hangs up: the loop does not spin, and the end is told
//! when reading is resumed.

use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    CloseReason, ConnectionSpec, PauseReadingRequest, ResumeReadingRequest, Stream,
};

use crate::common::{Scene, adopted, by_id, processor_time};

on_each_backend!(
    a_peer_that_closes_is_told_when_reading_resumes,
    a_peer_that_half_closes_is_told_when_reading_resumes,
    a_peer_that_resets_is_told_when_reading_resumes,
    a_unix_peer_that_closes_is_told_when_reading_resumes,
);

/// How long the processor time of the daemon is watched, and how much of it may be used.
const WINDOW: Duration = Duration::from_millis(400);
const MOST: Duration = Duration::from_millis(150);

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (ours, listener.accept().unwrap().0)
}

/// Adopts `theirs`. Half of the cases start paused, the others are paused while they are read.
async fn paused(scene: &mut Scene, theirs: impl std::os::fd::AsFd, start: bool) -> u64 {
    let slot = scene.daemon.handover().await.give(&theirs);
    drop(theirs);
    let spec = ConnectionSpec {
        start_paused: start,
        ..adopted(slot)
    };
    let id = scene.add(Spec::Connection(spec)).await;
    scene.recorder.first(id, "connected").await;
    let request = PauseReadingRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        ..PauseReadingRequest::default()
    };
    let mut transports = scene.daemon.transports();
    transports.pause_reading(request).await.unwrap();
    scene.settle().await;
    id
}

/// Checks that nothing was told and nothing spins, then resumes reading.
async fn idle_until_resumed(scene: &mut Scene, id: u64) {
    scene.settle().await;
    let before = processor_time(scene.daemon.pid());
    tokio::time::sleep(WINDOW).await;
    let spent = processor_time(scene.daemon.pid()) - before;
    assert!(spent < MOST, "the loop spins: {spent:?} of {WINDOW:?}");
    scene.settle().await;
    assert_eq!(scene.recorder.kinds(id), ["added", "connected"]);
    let request = ResumeReadingRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        ..ResumeReadingRequest::default()
    };
    let mut transports = scene.daemon.transports();
    transports.resume_reading(request).await.unwrap();
}

async fn all_is_told(scene: &mut Scene, id: u64, bytes: &[u8]) {
    idle_until_resumed(scene, id).await;
    let closed = scene.closed(id).await;
    assert_eq!(closed.reason(), CloseReason::Completed);
    assert_eq!(scene.recorder.bytes(id, Stream::Input), bytes);
    assert_eq!(
        scene.recorder.kinds(id),
        ["added", "connected", "data", "eof", "closed"]
    );
}

async fn a_peer_that_closes_is_told_when_reading_resumes(scene: &mut Scene) {
    let (mut ours, theirs) = pair();
    let id = paused(scene, theirs, true).await;
    ours.write_all(b"last words").unwrap();
    drop(ours);
    all_is_told(scene, id, b"last words").await;
}

async fn a_peer_that_half_closes_is_told_when_reading_resumes(scene: &mut Scene) {
    let (mut ours, theirs) = pair();
    let id = paused(scene, theirs, false).await;
    ours.write_all(b"half").unwrap();
    ours.shutdown(Shutdown::Write).unwrap();
    all_is_told(scene, id, b"half").await;
}

async fn a_peer_that_resets_is_told_when_reading_resumes(scene: &mut Scene) {
    let (mut ours, theirs) = pair();
    let id = paused(scene, theirs, false).await;
    ours.write_all(b"lost or not").unwrap();
    rustix::net::sockopt::set_socket_linger(&ours, Some(Duration::ZERO)).unwrap();
    drop(ours);
    idle_until_resumed(scene, id).await;
    let closed = scene.closed(id).await;
    assert_eq!(closed.reason(), CloseReason::Error);
    let error = closed.error.unwrap();
    assert_eq!(
        (error.name.as_str(), error.step.as_str()),
        ("ECONNRESET", "read")
    );
}

async fn a_unix_peer_that_closes_is_told_when_reading_resumes(scene: &mut Scene) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let id = paused(scene, theirs, false).await;
    ours.write_all(b"unix").unwrap();
    drop(ours);
    all_is_told(scene, id, b"unix").await;
}
