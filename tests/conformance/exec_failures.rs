//! A program that cannot be started: the error has the errno and the step, and nothing is left.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use evloopd::proto::ProcessSpec;
use evloopd::proto::watch_spec::Spec;
use tonic::Code;

use crate::common::{Refusal, Scene, exec, refusal, refused, shell};

on_each_child_watcher!(
    a_program_that_does_not_exist,
    a_program_that_may_not_be_executed,
    a_directory_is_no_program,
    a_file_that_is_no_program,
    a_script_without_its_interpreter,
    arguments_that_are_too_long,
    a_working_directory_that_is_no_directory,
    invalid_specifications,
);

/// Returns the refusal, after a check that the attempt has left nothing.
async fn fails(scene: &mut Scene, spec: ProcessSpec) -> Refusal {
    let seq = scene.settle().await;
    let request = scene.request(Spec::Process(spec));
    let error = scene.try_add(request).await.unwrap_err();
    assert_eq!(scene.open_watches().await, 0);
    assert_eq!(scene.settle().await, seq + 1, "the attempt left an event");
    refusal(&error)
}

#[track_caller]
fn is(refusal: &Refusal, code: Code, errno: &str, step: &str) {
    let told = (
        refusal.code,
        refusal.word("errno_name"),
        refusal.word("step"),
    );
    assert_eq!(told, (code, errno, step));
    assert_eq!(refusal.reason, "SYSTEM");
}

fn file(scene: &Scene, content: &[u8], mode: u32) -> PathBuf {
    let path = scene.daemon.dir.path().join("program");
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path
}

async fn a_program_that_does_not_exist(scene: &mut Scene) {
    let refusal = fails(scene, exec(&["/nonexistent/program"])).await;
    is(&refusal, Code::NotFound, "ENOENT", "exec");
    let refusal = fails(scene, exec(&["no-such-program-anywhere"])).await;
    assert_eq!(
        (refusal.code, refusal.word("errno_name")),
        (Code::NotFound, "ENOENT")
    );
}

async fn a_program_that_may_not_be_executed(scene: &mut Scene) {
    let path = file(scene, b"#!/bin/sh\n", 0o644);
    let refusal = fails(scene, exec(&[path.to_str().unwrap()])).await;
    is(&refusal, Code::PermissionDenied, "EACCES", "exec");
}

async fn a_directory_is_no_program(scene: &mut Scene) {
    let refusal = fails(scene, exec(&["/usr/bin/"])).await;
    is(&refusal, Code::PermissionDenied, "EACCES", "exec");
}

async fn a_file_that_is_no_program(scene: &mut Scene) {
    let path = file(scene, b"\x00\x01neither a script nor ELF", 0o755);
    let refusal = fails(scene, exec(&[path.to_str().unwrap()])).await;
    is(&refusal, Code::FailedPrecondition, "ENOEXEC", "exec");
}

async fn a_script_without_its_interpreter(scene: &mut Scene) {
    let path = file(scene, b"#!/nonexistent/interpreter\n", 0o755);
    let refusal = fails(scene, exec(&[path.to_str().unwrap()])).await;
    is(&refusal, Code::NotFound, "ENOENT", "exec");
}

async fn arguments_that_are_too_long(scene: &mut Scene) {
    // An argument may have 32 pages at most (MAX_ARG_STRLEN in execve(2)).
    let long = "x".repeat(32 * 4096);
    let refusal = fails(scene, exec(&["/bin/true", &long])).await;
    assert_eq!(refusal.word("errno_name"), "E2BIG");
    assert_eq!(refusal.word("step"), "exec");
}

async fn a_working_directory_that_is_no_directory(scene: &mut Scene) {
    let in_dir = |cwd: &str| ProcessSpec {
        cwd: cwd.into(),
        ..exec(&["true"])
    };
    let refusal = fails(scene, in_dir("/nonexistent")).await;
    is(&refusal, Code::NotFound, "ENOENT", "chdir");
    let refusal = fails(scene, in_dir("/etc/hostname")).await;
    is(&refusal, Code::FailedPrecondition, "ENOTDIR", "chdir");
}

async fn invalid_specifications(scene: &mut Scene) {
    let nul = "a\0b";
    let with = |change: fn(&mut ProcessSpec)| {
        let mut spec = shell("true");
        change(&mut spec);
        spec
    };
    for (spec, field) in [
        (ProcessSpec::default(), "spec.process"),
        (exec(&[]), "spec.process.exec.argv"),
        (exec(&["true", nul]), "spec.process.exec.argv"),
        (shell(nul), "spec.process.shell"),
        (with(|s| s.cwd = "relative".into()), "spec.process.cwd"),
        (
            with(|s| drop(s.env.insert("A=B".into(), String::new()))),
            "spec.process.env",
        ),
        (
            with(|s| drop(s.env.insert(String::new(), "x".into()))),
            "spec.process.env",
        ),
        (with(|s| s.stdout = 99), "spec.process.stdout"),
        (with(|s| s.at_end = 99), "spec.process.at_end"),
        (
            with(|s| s.pipe_grace = Some(crate::common::seconds(3601))),
            "spec.process.pipe_grace",
        ),
    ] {
        let request = scene.request(Spec::Process(spec));
        let bad = refused(
            scene.try_add(request).await,
            Code::InvalidArgument,
            "INVALID_FIELD",
        );
        assert!(bad.fields[0].starts_with(field), "{bad:?} for {field}");
    }
}
