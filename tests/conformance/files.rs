//! Files: read to their end, or followed by their name.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    AddWatchRequest, CloseReason, FileChangeKind, FileChanged, FileSpec, FileStart, Lifetime,
    Stream, watch,
};
use tonic::Code;

use crate::common::{Scene, directory, millis, refused};

on_each_backend!(
    a_file_is_read_to_its_end,
    a_followed_file_grows,
    a_rotated_file_is_read_to_its_end_before_the_next_one,
    a_file_that_is_cut_says_what_is_lost,
    names_are_followed_while_reading_is_paused,
    a_name_that_leads_to_nothing_is_waited_for,
    a_file_that_lost_its_name_is_read_soon,
    a_closed_file_has_nothing_open,
    files_that_come_and_go_while_the_name_leads_to_nothing_are_told,
    what_tells_no_size_is_read_to_its_end_and_not_followed,
    what_is_no_regular_file_is_refused,
);

pub(crate) fn file(at: &Path, follow: bool) -> FileSpec {
    FileSpec {
        path: at.to_str().unwrap().to_owned(),
        follow,
        check_every: Some(millis(100)),
        rotated_wait: Some(millis(200)),
        ..FileSpec::default()
    }
}

pub(crate) fn append(at: &Path, bytes: impl AsRef<[u8]>) {
    let file = OpenOptions::new().append(true).create(true).open(at);
    file.unwrap().write_all(bytes.as_ref()).unwrap();
}

/// Waits until that many bytes of the watch are told, and returns them.
async fn bytes(scene: &mut Scene, id: u64, total: u64) -> Vec<u8> {
    let what = format!("{total} bytes");
    scene
        .recorder
        .find(&what, |event| match &event.kind {
            Some(Kind::Data(data)) if event.watch_id == id => {
                data.offset + data.data.len() as u64 >= total
            }
            _ => false,
        })
        .await;
    scene.recorder.bytes(id, Stream::Input)
}

async fn changed(scene: &mut Scene, id: u64, kind: FileChangeKind) -> FileChanged {
    let what = format!("{kind:?}");
    let event = scene.recorder.find(&what, |event| match &event.kind {
        Some(Kind::FileChanged(changed)) => event.watch_id == id && changed.change() == kind,
        _ => false,
    });
    match event.await.kind {
        Some(Kind::FileChanged(changed)) => changed,
        other => panic!("{other:?}"),
    }
}

async fn a_file_is_read_to_its_end(scene: &mut Scene) {
    let dir = directory();
    let at = dir.path().join("file");
    let content: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(&at, &content).unwrap();
    let id = scene.add(Spec::File(file(&at, false))).await;
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    assert_eq!(bytes(scene, id, content.len() as u64).await, content);
    let spec = FileSpec {
        offset: Some(3_999_990),
        ..file(&at, false)
    };
    let id = scene.add(Spec::File(spec)).await;
    scene.closed(id).await;
    assert_eq!(
        scene.recorder.bytes(id, Stream::Input),
        &content[3_999_990..]
    );
    for spec in [
        FileSpec {
            offset: Some(4_000_000),
            ..file(&at, false)
        },
        FileSpec {
            start: FileStart::End.into(),
            ..file(&at, false)
        },
    ] {
        let id = scene.add(Spec::File(spec)).await;
        scene.closed(id).await;
        assert_eq!(scene.recorder.bytes(id, Stream::Input), b"");
        assert_eq!(end(scene, id), Some(4_000_000));
    }
}

/// The offset of the Eof.
fn end(scene: &Scene, id: u64) -> Option<u64> {
    let mut ends = scene.recorder.recording.events();
    ends.find_map(|event| match &event.kind {
        Some(Kind::Eof(eof)) if event.watch_id == id => Some(eof.offset),
        _ => None,
    })
}

async fn a_followed_file_grows(scene: &mut Scene) {
    let dir = directory();
    let at = dir.path().join("log");
    append(&at, "before");
    let spec = FileSpec {
        start: FileStart::End.into(),
        ..file(&at, true)
    };
    let id = scene.add(Spec::File(spec)).await;
    let mut total = 0;
    for line in ["one\n", "two\n", "three\n"] {
        append(&at, line);
        total += line.len() as u64;
        // Offsets begin where reading began.
        bytes(scene, id, 6 + total).await;
    }
    assert_eq!(
        scene.recorder.bytes(id, Stream::Input),
        b"one\ntwo\nthree\n"
    );
    match scene.get(id).await.status {
        Some(watch::Status::File(status)) => {
            assert!(status.notified && status.generation == 1 && status.offset == 6 + total);
        }
        other => panic!("{other:?}"),
    }
}

async fn a_rotated_file_is_read_to_its_end_before_the_next_one(scene: &mut Scene) {
    let dir = directory();
    let (at, old) = (dir.path().join("log"), dir.path().join("log.1"));
    append(&at, "first ");
    let id = scene.add(Spec::File(file(&at, true))).await;
    bytes(scene, id, 6).await;
    let mut writer = OpenOptions::new().append(true).open(&at).unwrap();
    fs::rename(&at, &old).unwrap();
    append(&at, "new ");
    // The look may have fallen between the two, or not.
    let second = |event: &evloopd::proto::Event| match &event.kind {
        Some(Kind::FileChanged(changed)) => event.watch_id == id && changed.generation == 2,
        _ => false,
    };
    scene.recorder.find("the second file", second).await;
    writer.write_all(b"late ").unwrap();
    drop(writer);
    let all = bytes(scene, id, 15).await;
    let text = String::from_utf8(all).unwrap();
    assert_eq!(text.len(), 15, "{text}");
    for part in ["first ", "new ", "late "] {
        assert_eq!(text.matches(part).count(), 1, "{text}");
    }
}

async fn a_file_that_is_cut_says_what_is_lost(scene: &mut Scene) {
    let dir = directory();
    let at = dir.path().join("log");
    append(&at, "0123456789");
    let id = scene.add(Spec::File(file(&at, true))).await;
    bytes(scene, id, 10).await;
    fs::write(&at, "").unwrap();
    append(&at, "after");
    let cut = changed(scene, id, FileChangeKind::Truncated).await;
    assert_eq!((cut.generation, cut.offset), (1, 10));
    bytes(scene, id, 15).await;
    assert_eq!(scene.recorder.bytes(id, Stream::Input), b"0123456789after");
}

async fn names_are_followed_while_reading_is_paused(scene: &mut Scene) {
    let dir = directory();
    let at = dir.path().join("log");
    append(&at, "0");
    let spec = FileSpec {
        start_paused: true,
        ..file(&at, true)
    };
    let id = scene.add(Spec::File(spec)).await;
    for round in 1..=5_u64 {
        fs::rename(&at, dir.path().join(format!("log.{round}"))).unwrap();
        append(&at, round.to_string());
        let nth = |event: &evloopd::proto::Event| match &event.kind {
            Some(Kind::FileChanged(changed)) => changed.generation == round + 1,
            _ => false,
        };
        scene.recorder.find("the next file", nth).await;
        // What is rotated is deleted, as logrotate does in the end.
        fs::remove_file(dir.path().join(format!("log.{round}"))).unwrap();
    }
    assert_eq!(scene.recorder.bytes(id, Stream::Input), b"");
    scene.pause_reading(id, false).await;
    bytes(scene, id, 6).await;
    assert_eq!(scene.recorder.bytes(id, Stream::Input), b"012345");
}

async fn a_name_that_leads_to_nothing_is_waited_for(scene: &mut Scene) {
    let dir = directory();
    let at = dir.path().join("sub/log");
    let request = scene.request(Spec::File(file(&at, false)));
    let missing = scene.try_add(request).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound, "{missing:?}");
    let id = scene.add(Spec::File(file(&at, true))).await;
    fs::create_dir(dir.path().join("sub")).unwrap();
    append(&at, "here");
    bytes(scene, id, 4).await;
    changed(scene, id, FileChangeKind::Appeared).await;
    fs::remove_file(&at).unwrap();
    changed(scene, id, FileChangeKind::Removed).await;
}

async fn a_file_that_lost_its_name_is_read_soon(scene: &mut Scene) {
    let dir = directory();
    let at = dir.path().join("log");
    append(&at, "first ");
    let mut writer = OpenOptions::new().append(true).open(&at).unwrap();
    let spec = FileSpec {
        check_every: None,
        ..file(&at, true)
    };
    let id = scene.add(Spec::File(spec)).await;
    bytes(scene, id, 6).await;
    fs::rename(&at, dir.path().join("log.1")).unwrap();
    changed(scene, id, FileChangeKind::Removed).await;
    let begin = Instant::now();
    writer.write_all(b"late").unwrap();
    assert_eq!(bytes(scene, id, 10).await, b"first late");
    // By default it is looked at every second, but every 10 s while no file that lost its name is open.
    assert!(begin.elapsed() < Duration::from_secs(5));
}

async fn a_closed_file_has_nothing_open(scene: &mut Scene) {
    let dir = directory();
    let at = dir.path().join("log");
    append(&at, "never told");
    let request = AddWatchRequest {
        lifetime: Lifetime::Lease.into(),
        lease: Some(millis(100)),
        ..scene.request(Spec::File(FileSpec {
            start_paused: true,
            ..file(&at, true)
        }))
    };
    let added = scene.try_add(request).await.unwrap().watch.unwrap();
    fs::remove_file(&at).unwrap();
    changed(scene, added.watch_id, FileChangeKind::Removed).await;
    assert_eq!(
        scene.closed(added.watch_id).await.reason(),
        CloseReason::LeaseExpired
    );
    match scene.get(added.watch_id).await.status {
        Some(watch::Status::File(status)) => {
            assert_eq!((status.open_files, status.generation), (0, 1));
            assert_eq!((status.unread_bytes, status.deleted_bytes), (0, 0));
        }
        other => panic!("{other:?}"),
    }
}

async fn files_that_come_and_go_while_the_name_leads_to_nothing_are_told(scene: &mut Scene) {
    let dir = directory();
    let at = dir.path().join("log");
    append(&at, "one ");
    let id = scene.add(Spec::File(file(&at, true))).await;
    bytes(scene, id, 4).await;
    fs::rename(&at, dir.path().join("log.1")).unwrap();
    changed(scene, id, FileChangeKind::Removed).await;
    append(&at, "two ");
    fs::rename(&at, dir.path().join("log.2")).unwrap();
    assert_eq!(bytes(scene, id, 8).await, b"one two ");
}

async fn what_tells_no_size_is_read_to_its_end_and_not_followed(scene: &mut Scene) {
    let at = Path::new("/proc/version");
    let content = fs::read(at).unwrap();
    assert_eq!(fs::metadata(at).unwrap().len(), 0);
    let id = scene.add(Spec::File(file(at, false))).await;
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    assert_eq!(scene.recorder.bytes(id, Stream::Input), content);
    let request = scene.request(Spec::File(file(at, true)));
    let refusal = scene.try_add(request).await;
    let bad = refused(refusal, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(bad.fields, ["spec.file.follow"]);
}

async fn what_is_no_regular_file_is_refused(scene: &mut Scene) {
    let dir = directory();
    let fifo = dir.path().join("fifo");
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).unwrap();
    for (at, field) in [
        (dir.path(), "spec.file.path"),
        (&fifo, "spec.file.path"),
        (Path::new("/dev/null"), "spec.file.path"),
        (Path::new("log"), "spec.file.path"),
    ] {
        for follow in [false, true] {
            let request = scene.request(Spec::File(file(at, follow)));
            let refusal = scene.try_add(request).await;
            let bad = refused(refusal, Code::InvalidArgument, "INVALID_FIELD");
            assert_eq!(bad.fields, [field], "{at:?}");
        }
    }
    let at = dir.path().join("file");
    fs::write(&at, "12").unwrap();
    let good = file(&at, true);
    for (spec, field) in [
        (
            FileSpec {
                offset: Some(3),
                ..good.clone()
            },
            "spec.file.offset",
        ),
        (
            FileSpec {
                start: 9,
                ..good.clone()
            },
            "spec.file.start",
        ),
        (
            FileSpec {
                keep_generations: 1025,
                ..good.clone()
            },
            "spec.file.keep_generations",
        ),
        (
            FileSpec {
                check_every: Some(millis(9)),
                ..good.clone()
            },
            "spec.file.check_every",
        ),
    ] {
        let request = scene.request(Spec::File(spec));
        let refusal = scene.try_add(request).await;
        let bad = refused(refusal, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(bad.fields, [field]);
    }
}
