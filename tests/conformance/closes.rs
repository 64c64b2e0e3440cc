//! Orderly closes: bytes that Write took arrive in full, and only Abort resets a connection.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::common::{Scene, adopted, by_id, tcp, within, write_pipe};

on_each_backend!(
    a_removed_connection_sends_what_was_taken,
    a_peer_that_writes_all_the_time_gets_everything,
    a_closed_loop_sends_what_was_taken,
    a_unix_peer_reads_the_end_of_the_stream_without_error,
    a_stopped_loop_resets_no_connection,
    a_removed_write_pipe_sends_what_was_taken,
    an_abort_also_resets_a_connection_that_is_closing,
    a_taken_connection_is_left_unchanged,
);

const SIZE: usize = 900_000;

/// Makes a connection that does not read, and a peer that has sent bytes which stay unread.
async fn unread(scene: &mut Scene) -> (TcpStream, u64) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let spec = ConnectionSpec {
        start_paused: true,
        ..tcp("127.0.0.1", port.into())
    };
    // Added directly: the scene checks its watches at the end, and in one case this loop is gone
    // then.
    let request = scene.request(Spec::Connection(spec));
    let added = scene.daemon.watches().add_watch(request).await.unwrap();
    let id = added.into_inner().watch.unwrap().watch_id;
    let (mut peer, _) = listener.accept().unwrap();
    scene.recorder.first(id, "connected").await;
    peer.write_all(&[b'i'; 10_000]).unwrap();
    (peer, id)
}

/// Removes the watch in a task of its own, because the removal waits for the peer.
fn remove(scene: &Scene, id: u64) -> JoinHandle<RemoveWatchResponse> {
    let mut watches = scene.daemon.watches();
    let request = RemoveWatchRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        ..RemoveWatchRequest::default()
    };
    tokio::spawn(async move { watches.remove_watch(request).await.unwrap().into_inner() })
}

/// Waits until the watch is closing.
async fn closing(scene: &Scene, id: u64) {
    within("the watch to be closing", async {
        while scene.get(id).await.state() != WatchState::Closing {}
    })
    .await;
}

/// Reads until the end of the stream, and returns the number of bytes.
fn read_all(mut peer: impl Read + Send + 'static) -> JoinHandle<std::io::Result<usize>> {
    spawn_blocking(move || {
        let mut all = Vec::new();
        peer.read_to_end(&mut all)
    })
}

async fn removed(scene: &mut Scene, id: u64) {
    let closed = scene.closed(id).await;
    assert_eq!(
        (closed.reason(), closed.unsent_bytes),
        (CloseReason::Removed, 0)
    );
    scene.recorder.first(id, "removed").await;
}

async fn a_removed_connection_sends_what_was_taken(scene: &mut Scene) {
    let (peer, id) = unread(scene).await;
    scene.write(id, &vec![b'o'; SIZE]).await;
    let answer = remove(scene, id);
    assert_eq!(read_all(peer).await.unwrap().unwrap(), SIZE);
    answer.await.unwrap();
    removed(scene, id).await;
}

async fn a_peer_that_writes_all_the_time_gets_everything(scene: &mut Scene) {
    let (mut peer, id) = unread(scene).await;
    scene.write(id, &vec![b'o'; SIZE]).await;
    let answer = remove(scene, id);
    // The peer reads only while it can write.
    let echo = spawn_blocking(move || {
        let (mut read, mut piece) = (0, [0; 10_000]);
        loop {
            match peer.read(&mut piece)? {
                0 => return std::io::Result::Ok(read),
                n => {
                    read += n;
                    peer.write_all(&piece[..n])?;
                }
            }
        }
    });
    assert_eq!(echo.await.unwrap().unwrap(), SIZE);
    answer.await.unwrap();
    removed(scene, id).await;
}

async fn a_closed_loop_sends_what_was_taken(scene: &mut Scene) {
    let (peer, id) = unread(scene).await;
    scene.write(id, &vec![b'o'; SIZE]).await;
    let target = Some(scene.target.clone());
    let stop = StopLoopRequest {
        r#loop: target.clone(),
        ..StopLoopRequest::default()
    };
    scene.daemon.loops().stop_loop(stop).await.unwrap();
    let close = CloseLoopRequest {
        r#loop: target,
        ..CloseLoopRequest::default()
    };
    let mut loops = scene.daemon.loops();
    let answer = tokio::spawn(async move { loops.close_loop(close).await.unwrap() });
    assert_eq!(read_all(peer).await.unwrap().unwrap(), SIZE);
    answer.await.unwrap();
    let closed = scene.closed(id).await;
    assert_eq!(
        (closed.reason(), closed.unsent_bytes),
        (CloseReason::LoopClosed, 0)
    );
    let request = NewEventLoopRequest {
        name: "scene".into(),
        ..NewEventLoopRequest::default()
    };
    // The end of the case posts to the loop, and so needs one.
    scene
        .daemon
        .policies()
        .new_event_loop(request)
        .await
        .unwrap();
    scene.recorder = crate::common::Recorder::of(&scene.daemon, &scene.target).await;
}

async fn a_unix_peer_reads_the_end_of_the_stream_without_error(scene: &mut Scene) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let slot = scene.daemon.handover().await.give(&theirs);
    drop(theirs);
    let spec = ConnectionSpec {
        start_paused: true,
        ..adopted(slot)
    };
    let id = scene.add(Spec::Connection(spec)).await;
    ours.write_all(b"unread").unwrap();
    scene.write(id, &vec![b'o'; SIZE]).await;
    let answer = remove(scene, id);
    assert_eq!(read_all(ours).await.unwrap().unwrap(), SIZE);
    answer.await.unwrap();
    removed(scene, id).await;
}

async fn a_stopped_loop_resets_no_connection(scene: &mut Scene) {
    let (peer, id) = unread(scene).await;
    scene.write(id, b"bye").await;
    scene.settle().await;
    let target = Some(scene.target.clone());
    let stop = StopLoopRequest {
        r#loop: target.clone(),
        ..StopLoopRequest::default()
    };
    scene.daemon.loops().stop_loop(stop).await.unwrap();
    remove(scene, id).await.unwrap();
    assert_eq!(read_all(peer).await.unwrap().unwrap(), 3);
}

async fn a_removed_write_pipe_sends_what_was_taken(scene: &mut Scene) {
    let (reading, writing) = std::io::pipe().unwrap();
    let slot = scene.daemon.handover().await.give(&writing);
    drop(writing);
    let id = scene.add(write_pipe(slot)).await;
    scene.write(id, &vec![b'o'; SIZE]).await;
    let answer = remove(scene, id);
    closing(scene, id).await;
    assert_eq!(read_all(reading).await.unwrap().unwrap(), SIZE);
    answer.await.unwrap();
    removed(scene, id).await;
}

async fn an_abort_also_resets_a_connection_that_is_closing(scene: &mut Scene) {
    for begun in [false, true] {
        let (peer, id) = unread(scene).await;
        scene.write(id, &vec![b'o'; SIZE]).await;
        if begun {
            remove(scene, id);
            closing(scene, id).await;
        }
        let request = AbortRequest {
            r#loop: Some(scene.target.clone()),
            watch: by_id(id),
            ..AbortRequest::default()
        };
        scene.daemon.transports().abort(request).await.unwrap();
        scene.closed(id).await;
        let reset = read_all(peer).await.unwrap().unwrap_err();
        assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
    }
}

async fn a_taken_connection_is_left_unchanged(scene: &mut Scene) {
    let (mut peer, theirs) = UnixStream::pair().unwrap();
    let slot = scene.daemon.handover().await.give(&theirs);
    drop(theirs);
    let id = scene.add(Spec::Connection(adopted(slot))).await;
    // The connection is being read.
    peer.write_all(b"read").unwrap();
    scene.recorder.first(id, "data").await;
    let request = TakeFdRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        ..TakeFdRequest::default()
    };
    let taken = scene.daemon.watches().take_fd(request).await.unwrap();
    let taken = scene.daemon.handover().await.take(&taken.into_inner().slot);
    UnixStream::from(taken).write_all(b"on").unwrap();
    let mut on = [0; 2];
    peer.read_exact(&mut on).unwrap();
}
