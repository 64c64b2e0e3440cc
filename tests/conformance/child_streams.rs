//! Children whose streams are files or descriptors that were handed over.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    CloseReason, FileMode, FileStdio, PassedDescriptor, ProcessSpec, Stdio, Stream, exited::Status,
};
use rustix::pipe::pipe;
use tonic::Code;

use crate::common::{Refusal, Scene, exec, refusal, refused, shell, within};

on_each_child_watcher!(
    output_is_appended_to_a_file,
    a_file_is_written_anew,
    a_file_that_must_be_new_is_not_overwritten,
    stdin_is_read_from_a_file,
    stderr_goes_where_stdout_goes,
    a_pipe_that_was_handed_over_is_stdout,
    descriptors_are_passed_under_chosen_numbers,
);

on_each_backend!(
    files_that_cannot_be_opened_are_named,
    a_fifo_holds_no_starter_up,
    a_slot_is_used_up_only_by_a_child_that_starts,
    bad_descriptors_are_refused,
);

fn path(scene: &Scene, name: &str) -> PathBuf {
    scene.daemon.dir.path().join(name)
}

fn to_file(path: &Path, mode: FileMode, spec: ProcessSpec) -> ProcessSpec {
    ProcessSpec {
        stdout: Stdio::File.into(),
        stdout_file: Some(FileStdio {
            path: path.to_str().unwrap().into(),
            mode: mode.into(),
            ..FileStdio::default()
        }),
        ..spec
    }
}

/// Runs a process to its end, which is a good one.
async fn runs(scene: &mut Scene, spec: ProcessSpec) -> u64 {
    let id = scene.spawn(spec).await;
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    assert_eq!(scene.exited(id).await.status, Some(Status::Code(0)));
    id
}

async fn fails(scene: &mut Scene, spec: ProcessSpec) -> Refusal {
    let request = scene.request(Spec::Process(spec));
    let added = within("the answer", scene.try_add(request)).await;
    refusal(&added.unwrap_err())
}

async fn output_is_appended_to_a_file(scene: &mut Scene) {
    let file = path(scene, "appended");
    for mode in [FileMode::Append, FileMode::Unspecified] {
        let mut spec = to_file(&file, mode, shell("echo out; echo err >&2"));
        spec.umask = Some(0o027);
        let id = runs(scene, spec).await;
        // Only stderr is read by the daemon.
        assert_eq!(scene.recorder.bytes(id, Stream::Stdout), b"");
        assert_eq!(scene.recorder.bytes(id, Stream::Stderr), b"err\n");
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"out\nout\n");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
}

async fn a_file_is_written_anew(scene: &mut Scene) {
    let file = path(scene, "out");
    std::fs::write(&file, "much longer than what comes").unwrap();
    let spec = to_file(&file, FileMode::Truncate, exec(&["echo", "new"]));
    runs(scene, spec).await;
    assert_eq!(std::fs::read(&file).unwrap(), b"new\n");
}

async fn a_file_that_must_be_new_is_not_overwritten(scene: &mut Scene) {
    let file = path(scene, "new");
    let mut spec = to_file(&file, FileMode::Create, exec(&["echo", "new"]));
    spec.umask = Some(0);
    if let Some(file) = &mut spec.stdout_file {
        file.permissions = Some(0o604);
    }
    runs(scene, spec.clone()).await;
    let there = fails(scene, spec).await;
    let told = (there.code, there.word("errno_name"), there.word("step"));
    assert_eq!(told, (Code::AlreadyExists, "EEXIST", "open"));
    assert_eq!(std::fs::read(&file).unwrap(), b"new\n");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o604);
}

async fn stdin_is_read_from_a_file(scene: &mut Scene) {
    let file = path(scene, "in");
    std::fs::write(&file, "content").unwrap();
    let spec = ProcessSpec {
        stdin: Stdio::File.into(),
        stdin_file: Some(FileStdio {
            path_bytes: file.to_str().unwrap().as_bytes().to_vec().into(),
            ..FileStdio::default()
        }),
        ..exec(&["cat"])
    };
    let id = runs(scene, spec).await;
    assert_eq!(scene.recorder.bytes(id, Stream::Stdout), b"content");
    let Some(Spec::Process(shown)) = scene.get(id).await.spec.unwrap().spec else {
        panic!("a process");
    };
    assert_eq!(shown.stdin_file.unwrap().path, file.to_str().unwrap());
}

async fn stderr_goes_where_stdout_goes(scene: &mut Scene) {
    let both = |spec| ProcessSpec {
        stderr: Stdio::Stdout.into(),
        ..spec
    };
    let line = "echo a; echo b >&2; echo c";
    let id = runs(scene, both(shell(line))).await;
    assert_eq!(scene.recorder.bytes(id, Stream::Stdout), b"a\nb\nc\n");
    let kinds = scene.recorder.kinds(id);
    let ends = kinds.iter().filter(|kind| **kind == "stream_end");
    assert_eq!(ends.count(), 1);
    // One open file, so that neither overwrites the other.
    let file = path(scene, "both");
    let spec = to_file(&file, FileMode::Truncate, both(shell(line)));
    runs(scene, spec).await;
    assert_eq!(std::fs::read(&file).unwrap(), b"a\nb\nc\n");
}

async fn a_pipe_that_was_handed_over_is_stdout(scene: &mut Scene) {
    let (reader, writer) = pipe().unwrap();
    let slot = scene.daemon.handover().await.give(&writer);
    drop(writer);
    let spec = ProcessSpec {
        stdout: Stdio::Slot.into(),
        stdout_slot: slot,
        ..exec(&["echo", "through"])
    };
    runs(scene, spec).await;
    let mut all = String::new();
    // It ends, because neither the daemon nor a child has it any more.
    std::fs::File::from(reader)
        .read_to_string(&mut all)
        .unwrap();
    assert_eq!(all, "through\n");
}

async fn descriptors_are_passed_under_chosen_numbers(scene: &mut Scene) {
    // The numbers of the daemon's own descriptors are among them, so that one could overwrite another.
    let numbers: Vec<u32> = (3..40).chain([300, 1023]).collect();
    let pipes: Vec<_> = numbers.iter().map(|_| pipe().unwrap()).collect();
    let writers: Vec<_> = pipes.iter().map(|(_, writer)| writer.as_fd()).collect();
    let handover = scene.daemon.handover().await;
    let slots = handover.give_all(&writers);
    // The lowest number gets the descriptor that the daemon has under its highest.
    let passed = numbers.iter().rev().zip(slots);
    let passed = passed.map(|(number, slot)| PassedDescriptor {
        number: *number,
        slot,
    });
    let line = "ls /proc/self/fd | sort -n | tr '\\n' ' '; \
                for n in $(ls /proc/$$/fd); do test $n -gt 2 && test -e /proc/$$/fd/$n \
                && echo $n > /proc/$$/fd/$n; done; true";
    let spec = ProcessSpec {
        passed: passed.collect(),
        ..exec(&["bash", "-c", line])
    };
    let id = runs(scene, spec).await;
    let all = scene.recorder.bytes(id, Stream::Stdout);
    let all = String::from_utf8(all).unwrap();
    let mut there: Vec<u32> = all.split_whitespace().map(|n| n.parse().unwrap()).collect();
    // That of the directory.
    there.retain(|number| numbers.contains(number) || *number < 3);
    assert_eq!(there, [&[0, 1, 2], &numbers[..]].concat());
    for (number, (reader, writer)) in numbers.iter().rev().zip(pipes) {
        drop(writer);
        let mut told = String::new();
        std::fs::File::from(reader)
            .read_to_string(&mut told)
            .unwrap();
        // bash keeps 255 for itself, and opens others above 9 for a while.
        assert_eq!(told.trim(), number.to_string());
    }
}

async fn files_that_cannot_be_opened_are_named(scene: &mut Scene) {
    let missing = ProcessSpec {
        stdin: Stdio::File.into(),
        stdin_file: Some(FileStdio {
            path: "/nonexistent/file".into(),
            ..FileStdio::default()
        }),
        ..exec(&["cat"])
    };
    let there = fails(scene, missing).await;
    let told = (there.code, there.word("errno_name"), there.word("step"));
    assert_eq!(told, (Code::NotFound, "ENOENT", "open"));
    let directory = to_file(Path::new("/tmp"), FileMode::Append, exec(&["true"]));
    let there = fails(scene, directory).await;
    let told = (there.word("errno_name"), there.word("step"));
    assert_eq!(told, ("EISDIR", "open"));
}

async fn a_fifo_holds_no_starter_up(scene: &mut Scene) {
    let fifo = crate::pty_output::fifo(scene, "fifo");
    // With a writer that never comes, more often than there are threads that start children.
    for _ in 0..20 {
        let spec = ProcessSpec {
            stdin: Stdio::File.into(),
            stdin_file: Some(FileStdio {
                path: fifo.to_str().unwrap().into(),
                ..FileStdio::default()
            }),
            ..exec(&["cat"])
        };
        let there = fails(scene, spec).await;
        assert_eq!(there.word("errno_name"), "ENXIO");
        let spec = to_file(&fifo, FileMode::Append, exec(&["true"]));
        let there = fails(scene, spec).await;
        assert_eq!(there.word("errno_name"), "ENXIO");
    }
    runs(scene, exec(&["true"])).await;
}

async fn a_slot_is_used_up_only_by_a_child_that_starts(scene: &mut Scene) {
    let (reader, writer) = pipe().unwrap();
    let slot = scene.daemon.handover().await.give(&reader);
    let spec = |program: &str| ProcessSpec {
        stdin: Stdio::Slot.into(),
        stdin_slot: slot.clone(),
        ..exec(&[program])
    };
    let there = fails(scene, spec("/nonexistent/program")).await;
    assert_eq!(there.word("errno_name"), "ENOENT");
    std::fs::File::from(writer).write_all(b"word").unwrap();
    let id = runs(scene, spec("cat")).await;
    assert_eq!(scene.recorder.bytes(id, Stream::Stdout), b"word");
    let again = fails(scene, spec("cat")).await;
    assert_eq!(again.reason, "SLOT_NOT_FOUND");
}

async fn bad_descriptors_are_refused(scene: &mut Scene) {
    let file = |path: &str, mode: FileMode, permissions| {
        Some(FileStdio {
            path: path.into(),
            mode: mode.into(),
            permissions,
            ..FileStdio::default()
        })
    };
    let passed = |numbers: &[u32]| {
        let passed = numbers.iter().map(|number| PassedDescriptor {
            number: *number,
            slot: vec![0; 16].into(),
        });
        passed.collect::<Vec<_>>()
    };
    let base = exec(&["true"]);
    let out = || ProcessSpec {
        stdout: Stdio::File.into(),
        ..base.clone()
    };
    let mut cases = vec![
        ("spec.process.stdout_file", out()),
        (
            "spec.process.stdout_file",
            ProcessSpec {
                stdout: Stdio::Pipe.into(),
                stdout_file: file("/tmp/x", FileMode::Append, None),
                ..base.clone()
            },
        ),
        (
            "spec.process.stdin_slot",
            ProcessSpec {
                stdin_slot: vec![0; 16].into(),
                ..base.clone()
            },
        ),
        (
            "spec.process.stdin_slot",
            ProcessSpec {
                stdin: Stdio::Slot.into(),
                ..base.clone()
            },
        ),
        (
            "spec.process.stdout",
            ProcessSpec {
                stdout: Stdio::Stdout.into(),
                ..base.clone()
            },
        ),
        (
            "spec.process.stderr",
            ProcessSpec {
                stderr: 99,
                ..base.clone()
            },
        ),
        (
            "spec.process.stdin_file",
            ProcessSpec {
                stdin: Stdio::File.into(),
                stdin_file: file("/tmp/x", FileMode::Append, None),
                ..base.clone()
            },
        ),
    ];
    for bad in [
        file("x", FileMode::Append, None),
        file("/tmp/\0", FileMode::Append, None),
        file("/tmp/x", FileMode::Read, None),
        file("/tmp/x", FileMode::Append, Some(0o1000)),
    ] {
        cases.push((
            "spec.process.stdout_file",
            ProcessSpec {
                stdout_file: bad,
                ..out()
            },
        ));
    }
    for numbers in [&[2][..], &[1024]] {
        cases.push((
            "spec.process.passed.number",
            ProcessSpec {
                passed: passed(numbers),
                ..base.clone()
            },
        ));
    }
    for numbers in [&[5, 5][..], &[3; 65]] {
        cases.push((
            "spec.process.passed",
            ProcessSpec {
                passed: passed(numbers),
                ..base.clone()
            },
        ));
    }
    for (field, spec) in cases {
        let request = scene.request(Spec::Process(spec));
        let bad = scene.try_add(request).await;
        let bad = refused(bad, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(bad.fields, [field]);
    }
    let request = scene.request(Spec::Process(ProcessSpec {
        passed: passed(&[3]),
        ..base
    }));
    refused(
        scene.try_add(request).await,
        Code::NotFound,
        "SLOT_NOT_FOUND",
    );
}
