//! Paths and files, and the room of the journal.

use std::fs;
use std::time::Duration;

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;

use crate::common::{Scene, directory, within};
use crate::files::{append, file};
use crate::paths::{path, synced};

on_each_backend_with_a_small_journal!(
    a_full_journal_ends_in_a_rescan_and_not_in_silence,
    a_full_journal_stops_the_reading_of_a_file_and_loses_nothing,
    a_file_that_grows_while_the_journal_is_full_is_read_once_there_is_room,
);

async fn until_paused(scene: &Scene, id: u64) {
    within("the watch is paused", async {
        while scene.get(id).await.source_pause.is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn a_full_journal_ends_in_a_rescan_and_not_in_silence(scene: &mut Scene) {
    let dir = directory();
    let mut slow = scene.slow_reader().await;
    let id = synced(scene, path(dir.path())).await;
    for n in 0..20_000 {
        fs::write(dir.path().join(n.to_string()), "").unwrap();
    }
    // Its room was set aside: it comes although nobody has acknowledged anything.
    match slow.first(id, "path_rescan").await.kind {
        Some(Kind::PathRescan(rescan)) => {
            assert_eq!(rescan.reason(), RescanReason::JournalFull);
            assert_eq!(rescan.path, "");
        }
        other => panic!("{other:?}"),
    }
    scene.acknowledge(&slow).await;
    fs::write(dir.path().join("last"), "").unwrap();
    let last = |event: &Event| match &event.kind {
        Some(Kind::PathChanged(changed)) => changed.path == "last",
        _ => false,
    };
    while !slow.recording.events().any(last) {
        assert!(slow.step().await, "the stream ended");
        scene.acknowledge(&slow).await;
    }
    // From the PathSynced after the last PathRescan on, all is told.
    let mut synced = false;
    for event in slow.recording.events().take_while(|event| !last(event)) {
        match event.kind {
            Some(Kind::PathRescan(_)) => synced = false,
            Some(Kind::PathSynced(_)) => synced = true,
            _ => {}
        }
    }
    assert!(synced);
    scene.remove(id).await;
    let request = DeleteConsumerRequest {
        r#loop: Some(scene.target.clone()),
        name: "slow".into(),
        ..DeleteConsumerRequest::default()
    };
    scene
        .daemon
        .events()
        .delete_consumer(request)
        .await
        .unwrap();
}

async fn a_full_journal_stops_the_reading_of_a_file_and_loses_nothing(scene: &mut Scene) {
    let dir = directory();
    let at = dir.path().join("log");
    let mut slow = scene.slow_reader().await;
    let id = scene.add(Spec::File(file(&at, true))).await;
    let content: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
    append(&at, &content);
    until_paused(scene, id).await;
    while slow.bytes(id, Stream::Input).len() < content.len() {
        assert!(slow.step().await, "the stream ended");
        scene.acknowledge(&slow).await;
    }
    assert_eq!(slow.bytes(id, Stream::Input), content);
}

/// A file is looked at when it changes, also while there is no room to read it.
async fn a_file_that_grows_while_the_journal_is_full_is_read_once_there_is_room(scene: &mut Scene) {
    let dir = directory();
    let at = dir.path().join("log");
    let mut slow = scene.slow_reader().await;
    let spec = FileSpec {
        // Else the file would be read, but late.
        check_every: Some(Duration::from_secs(600).try_into().unwrap()),
        ..file(&at, true)
    };
    let id = scene.add(Spec::File(spec)).await;
    append(&at, vec![1; 1_000_000]);
    until_paused(scene, id).await;
    append(&at, vec![2; 1_000_000]);
    within("the file was looked at", async {
        loop {
            match scene.get(id).await.status {
                Some(watch::Status::File(file)) if file.offset + file.unread_bytes == 2_000_000 => {
                    break;
                }
                _ => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    within("the file is read", async {
        while slow.bytes(id, Stream::Input).len() < 2_000_000 {
            assert!(slow.step().await, "the stream ended");
            scene.acknowledge(&slow).await;
        }
    })
    .await;
    let read = slow.bytes(id, Stream::Input);
    assert!(read[..1_000_000].iter().all(|&byte| byte == 1));
    assert!(read[1_000_000..].iter().all(|&byte| byte == 2));
    scene.remove(id).await;
}
