//! Descriptors that were handed over and that nobody has taken yet.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use bytes::Bytes;

use crate::common::{Scene, reader, within};
use crate::{murder, resume, start, the_loop};

/// The status of a reply to a request for a slot that is not there.
const NO_SUCH_SLOT: u8 = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn slots_that_nobody_took_are_there_in_the_next_lives() {
    let mut scene = Scene::new(start().await, "", "").await;
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let (watched, their_watched) = UnixStream::pair().unwrap();
    let (mut gone, their_gone) = UnixStream::pair().unwrap();
    let magic = b"evloopd1".as_slice();
    let own = Bytes::from_static(b"a slot of my own");
    let handover = scene.daemon.handover().await;
    let issued = handover.give(&theirs);
    let taken = handover.give(&their_gone);
    drop(handover.take(&taken));
    handover.give_as(std::slice::from_ref(&own), &[their_watched.as_fd()]);
    assert_eq!(handover.status(), 0);
    drop((theirs, their_watched, their_gone));
    // The daemon has kept nothing of what was taken.
    assert_eq!(gone.read(&mut [0]).unwrap(), 0);
    for slots in [2, 2] {
        murder(&scene.daemon).await;
        assert_eq!(scene.daemon.status().await.slots, slots);
        let handover = scene.daemon.handover().await;
        let refused = handover.ask(&[magic, &taken].concat(), &[]).0;
        assert_eq!(refused[0], NO_SUCH_SLOT);
    }
    let told = the_loop(&scene).await.journal.unwrap();
    let mut recorder = resume(&scene, &told.epoch, told.newest_seq).await;
    let id = scene.add(reader(own.clone())).await;
    (&watched).write_all(b"x").unwrap();
    recorder.first(id, "ready").await;
    let handover = scene.daemon.handover().await;
    let mut back = UnixStream::from(handover.take(&issued));
    back.write_all(b"the same").unwrap();
    drop(back);
    let mut read = String::new();
    // This ends only if no life has kept a copy of the descriptor.
    ours.read_to_string(&mut read).unwrap();
    assert_eq!(read, "the same");

    murder(&scene.daemon).await;
    assert_eq!(scene.daemon.status().await.slots, 0);
    let handover = scene.daemon.handover().await;
    for slot in [&own, &issued] {
        let refused = handover.ask(&[magic, slot].concat(), &[]).0;
        assert_eq!(refused[0], NO_SUCH_SLOT);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_take_fd_gave_back_is_there_in_the_next_life() {
    let mut scene = Scene::new(start().await, "", "").await;
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let id = scene
        .add(reader(scene.daemon.handover().await.give(&theirs)))
        .await;
    drop(theirs);
    let request = evloopd::proto::TakeFdRequest {
        r#loop: Some(scene.target.clone()),
        watch: crate::common::by_id(id),
        ..evloopd::proto::TakeFdRequest::default()
    };
    let slot = scene.daemon.watches().take_fd(request).await.unwrap();
    murder(&scene.daemon).await;
    let back = scene.daemon.handover().await.take(&slot.into_inner().slot);
    UnixStream::from(back).write_all(b"back").unwrap();
    let mut read = String::new();
    within("its end", async { ours.read_to_string(&mut read).unwrap() }).await;
    assert_eq!(read, "back");
}
