//! Read and write pipes: FIFOs opened by path, and pipe ends that are handed over.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    CloseReason, ReadPipeSpec, Stream, WritePipeSpec, read_pipe_spec, write_pipe_spec,
};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use tonic::Code;

use crate::common::{Scene, read_pipe, refused, write_pipe};

on_each_backend!(
    a_read_pipe_gives_data_then_eof,
    a_read_pipe_goes_on_while_other_writers_exist,
    a_fifo_is_read_by_path,
    a_write_pipe_takes_bytes_and_ends,
    a_fifo_is_written_by_path,
    a_reader_that_goes_breaks_the_write_pipe,
    a_socket_is_a_pipe_too,
    an_adopted_blocking_pipe_keeps_its_flags,
    a_path_that_is_no_fifo_is_refused,
);

pub(crate) fn fifo(scene: &Scene) -> PathBuf {
    let path = scene.daemon.dir.path().join("fifo");
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    path
}

async fn a_read_pipe_gives_data_then_eof(scene: &mut Scene) {
    let (reading, mut writing) = std::io::pipe().unwrap();
    let slot = scene.daemon.handover().await.give(&reading);
    let id = scene.add(read_pipe(slot)).await;
    drop(reading);
    writing.write_all(b"hello").unwrap();
    scene.recorder.first(id, "data").await;
    writing.write_all(b" world").unwrap();
    drop(writing);
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    assert_eq!(scene.recorder.bytes(id, Stream::Input), b"hello world");
    assert_eq!(
        scene.recorder.kinds(id),
        ["added", "data", "data", "eof", "closed"]
    );
    match scene.recorder.first(id, "eof").await.kind {
        Some(Kind::Eof(eof)) => assert_eq!(eof.offset, 11),
        other => panic!("{other:?}"),
    }
}

async fn a_read_pipe_goes_on_while_other_writers_exist(scene: &mut Scene) {
    const EACH: usize = 100_000;
    let (reading, writing) = std::io::pipe().unwrap();
    let slot = scene.daemon.handover().await.give(&reading);
    let id = scene.add(read_pipe(slot)).await;
    let threads: Vec<_> = (0..3_u8)
        .map(|byte| {
            let mut writing = writing.try_clone().unwrap();
            std::thread::spawn(move || writing.write_all(&vec![byte; EACH]).unwrap())
        })
        .collect();
    drop(writing);
    scene.closed(id).await;
    for thread in threads {
        thread.join().unwrap();
    }
    let all = scene.recorder.bytes(id, Stream::Input);
    for byte in 0..3_u8 {
        assert_eq!(all.iter().filter(|b| **b == byte).count(), EACH);
    }
}

async fn a_fifo_is_read_by_path(scene: &mut Scene) {
    let path = fifo(scene);
    let id = scene
        .add(Spec::ReadPipe(ReadPipeSpec {
            source: Some(read_pipe_spec::Source::FifoPath(
                path.to_str().unwrap().into(),
            )),
            start_paused: false,
        }))
        .await;
    let mut writing = OpenOptions::new().write(true).open(&path).unwrap();
    writing.write_all(b"by path").unwrap();
    scene.recorder.first(id, "data").await;
    assert_eq!(scene.recorder.bytes(id, Stream::Input), b"by path");
    scene.remove(id).await;
}

async fn a_write_pipe_takes_bytes_and_ends(scene: &mut Scene) {
    let (mut reading, writing) = std::io::pipe().unwrap();
    let slot = scene.daemon.handover().await.give(&writing);
    let id = scene.add(write_pipe(slot)).await;
    drop(writing);
    assert_eq!(scene.write(id, b"hello ").await, 6);
    assert_eq!(scene.write(id, b"world").await, 11);
    scene.write_eof(id).await;
    let read = tokio::task::spawn_blocking(move || {
        let mut all = String::new();
        reading.read_to_string(&mut all).unwrap();
        all
    });
    assert_eq!(read.await.unwrap(), "hello world");
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
}

async fn a_fifo_is_written_by_path(scene: &mut Scene) {
    let path = fifo(scene);
    let spec = Spec::WritePipe(WritePipeSpec {
        target: Some(write_pipe_spec::Target::FifoPath(
            path.to_str().unwrap().into(),
        )),
        ..WritePipeSpec::default()
    });
    let request = scene.request(spec.clone());
    let nobody = refused(
        scene.try_add(request).await,
        Code::FailedPrecondition,
        "SYSTEM",
    );
    assert_eq!(nobody.word("errno_name"), "ENXIO");

    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap();
    let mut reading = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(&path)
        .unwrap();
    let id = scene.add(spec).await;
    scene.write(id, b"x").await;
    scene.write_eof(id).await;
    scene.closed(id).await;
    let mut all = Vec::new();
    reading.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"x");
}

async fn a_reader_that_goes_breaks_the_write_pipe(scene: &mut Scene) {
    let (reading, writing) = std::io::pipe().unwrap();
    let slot = scene.daemon.handover().await.give(&writing);
    let id = scene.add(write_pipe(slot)).await;
    drop((reading, writing));
    let closed = scene.closed(id).await;
    assert_eq!(closed.reason(), CloseReason::Error);
    assert_eq!(closed.error.unwrap().name, "EPIPE");
}

async fn a_socket_is_a_pipe_too(scene: &mut Scene) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let slots = scene.daemon.handover().await;
    let (reads, writes) = (slots.give(&theirs), slots.give(&theirs));
    drop(theirs);
    let reads = scene.add(read_pipe(reads)).await;
    let writes = scene.add(write_pipe(writes)).await;
    ours.write_all(b"in").unwrap();
    scene.recorder.first(reads, "data").await;
    scene.write(writes, b"out").await;
    let read = tokio::task::spawn_blocking(move || {
        let mut read = [0; 3];
        ours.read_exact(&mut read).unwrap();
        read
    });
    assert_eq!(&read.await.unwrap(), b"out");
    scene.closed(reads).await;
}

async fn an_adopted_blocking_pipe_keeps_its_flags(scene: &mut Scene) {
    let (reading, mut writing) = std::io::pipe().unwrap();
    let before = rustix::fs::fcntl_getfl(&reading).unwrap();
    assert!(!before.contains(OFlags::NONBLOCK));
    let slot = scene.daemon.handover().await.give(&reading);
    let id = scene.add(read_pipe(slot)).await;
    writing.write_all(b"x").unwrap();
    scene.recorder.first(id, "data").await;
    assert_eq!(rustix::fs::fcntl_getfl(&reading).unwrap(), before);
    scene.remove(id).await;
    assert_eq!(rustix::fs::fcntl_getfl(&reading).unwrap(), before);
}

async fn a_path_that_is_no_fifo_is_refused(scene: &mut Scene) {
    let path = |path: &str| {
        Spec::ReadPipe(ReadPipeSpec {
            source: Some(read_pipe_spec::Source::FifoPath(path.into())),
            start_paused: false,
        })
    };
    let dir = scene.daemon.dir.path().to_owned();
    let socket = scene.daemon.socket.clone();
    for (file, what) in [
        (dir.join("evloopd.toml"), "a regular file"),
        (dir, "a directory"),
        (PathBuf::from("/dev/null"), "a character device"),
        (socket, "a socket"),
    ] {
        let file = file.to_str().unwrap();
        let writing = Spec::WritePipe(WritePipeSpec {
            target: Some(write_pipe_spec::Target::FifoPath(file.into())),
            ..WritePipeSpec::default()
        });
        for (spec, kind) in [(path(file), "read_pipe"), (writing, "write_pipe")] {
            let request = scene.request(spec);
            let error = scene.try_add(request).await.unwrap_err();
            assert!(error.message().contains(what), "{}", error.message());
            let bad = refused(Err::<(), _>(error), Code::InvalidArgument, "INVALID_FIELD");
            assert_eq!(bad.fields, [format!("spec.{kind}.fifo_path")]);
        }
    }
    let request = scene.request(path("relative"));
    let bad = refused(
        scene.try_add(request).await,
        Code::InvalidArgument,
        "INVALID_FIELD",
    );
    assert_eq!(bad.fields, ["spec.read_pipe.fifo_path"]);
    let request = scene.request(path("/nonexistent/fifo"));
    let missing = refused(scene.try_add(request).await, Code::NotFound, "SYSTEM");
    assert_eq!(missing.word("errno_name"), "ENOENT");
    assert_eq!(scene.open_watches().await, 0);
}
