//! Arguments, directories and variables may be any bytes. Those that are UTF-8 are the same whether
//! they are given as text or as bytes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

use bytes::Bytes;
use evloopd::proto::process_spec::Command;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use tonic::Code;

use crate::common::{Daemon, Scene, exec, refused, shell};

async fn scene() -> Scene {
    Scene::new(Daemon::start("").await, "", "").await
}

fn exec_bytes(argv: &[&[u8]]) -> ProcessSpec {
    let argv_bytes = argv.iter().map(|word| Bytes::copy_from_slice(word));
    ProcessSpec {
        command: Some(Command::Exec(ExecCommand {
            argv_bytes: argv_bytes.collect(),
            ..ExecCommand::default()
        })),
        ..ProcessSpec::default()
    }
}

fn variable(name: &[u8], value: &[u8]) -> EnvVar {
    EnvVar {
        name: Bytes::copy_from_slice(name),
        value: Bytes::copy_from_slice(value),
    }
}

async fn output(scene: &mut Scene, spec: ProcessSpec) -> Vec<u8> {
    let id = scene.spawn(spec).await;
    scene.closed(id).await;
    scene.recorder.bytes(id, Stream::Stdout)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn bytes_that_are_not_utf_8_reach_the_program_unchanged() {
    let mut scene = scene().await;
    let odd = exec_bytes(&[b"printf", b"%s", b"\xff\xfea\xc3"]);
    assert_eq!(output(&mut scene, odd).await, b"\xff\xfea\xc3");
    let line = exec_bytes(&[b"/bin/sh", b"-c", b"echo \xff"]);
    assert_eq!(output(&mut scene, line).await, b"\xff\n");

    // A working directory, and a program that is looked up in it.
    let dir = scene.daemon.dir.path().join(OsStr::from_bytes(b"d\xff"));
    std::fs::create_dir(&dir).unwrap();
    let program = dir.join(OsStr::from_bytes(b"p\xfe"));
    std::fs::write(&program, "#!/bin/sh\npwd\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = [b"/bin:/usr/bin:", dir.as_os_str().as_bytes()].concat();
    let spec = ProcessSpec {
        cwd_bytes: Bytes::copy_from_slice(dir.as_os_str().as_bytes()),
        inherited_env: Some(InheritedEnv {
            variables_bytes: vec![variable(b"PATH", &path)],
            ..InheritedEnv::default()
        }),
        ..exec_bytes(&[b"p\xfe"])
    };
    let expected = [dir.as_os_str().as_bytes(), b"\n"].concat();
    assert_eq!(output(&mut scene, spec).await, expected);

    let spec = ProcessSpec {
        inherited_env: Some(InheritedEnv {
            variables_bytes: vec![variable(b"B", b"\xfd"), variable(b"C", b"")],
            ..InheritedEnv::default()
        }),
        env_bytes: vec![variable(b"N\xfc", b"=\xfb"), variable(b"C", b"c")],
        ..exec(&["/usr/bin/env"])
    };
    assert_eq!(
        output(&mut scene, spec).await,
        b"B=\xfd\nC=c\nN\xfc==\xfb\n"
    );
    scene.finish().await;
}

/// Starts the process by name, or joins one that exists already.
async fn join(scene: &mut Scene, spec: ProcessSpec) -> (bool, ProcessSpec) {
    let request = AddWatchRequest {
        name: "one".into(),
        if_exists: IfExists::Return.into(),
        ..scene.request(Spec::Process(spec))
    };
    let answer = scene.daemon.watches().add_watch(request).await.unwrap();
    let answer = answer.into_inner();
    match answer.watch.unwrap().spec.unwrap().spec {
        Some(Spec::Process(shown)) => (answer.existed, shown),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn bytes_that_are_utf_8_are_shown_and_compared_as_text() {
    let mut scene = scene().await;
    let nofile = |soft, hard| ResourceLimit {
        resource: "nofile".into(),
        soft,
        hard,
    };
    let core = ResourceLimit {
        resource: "core".into(),
        soft: Some(0),
        hard: Some(0),
    };
    let text = ProcessSpec {
        env: [("A".into(), "b".into())].into(),
        cwd: "/usr".into(),
        limits: vec![core.clone(), nofile(Some(64), Some(64))],
        ..exec(&["sleep", "3600"])
    };
    let bytes = ProcessSpec {
        env_bytes: vec![variable(b"A", b"b")],
        cwd_bytes: Bytes::from_static(b"/usr"),
        limits: vec![nofile(Some(64), None), core],
        inherited_attributes: Some(InheritedAttributes {
            umask: Some(0o77),
            ..InheritedAttributes::default()
        }),
        ..exec_bytes(&[b"sleep", b"3600"])
    };
    assert_eq!(join(&mut scene, bytes.clone()).await, (false, text.clone()));
    assert_eq!(join(&mut scene, text.clone()).await, (true, text.clone()));
    assert_eq!(join(&mut scene, bytes).await, (true, text.clone()));
    for (spec, field) in [
        (
            ProcessSpec {
                env: [].into(),
                env_bytes: vec![variable(b"A", b"\xff")],
                ..text.clone()
            },
            "spec.process.env",
        ),
        (
            ProcessSpec {
                umask: Some(0o22),
                ..text.clone()
            },
            "spec.process.umask",
        ),
        (
            ProcessSpec {
                limits: vec![],
                ..text
            },
            "spec.process.limits",
        ),
    ] {
        let request = AddWatchRequest {
            name: "one".into(),
            if_exists: IfExists::Return.into(),
            ..scene.request(Spec::Process(spec))
        };
        let differs = scene.daemon.watches().add_watch(request).await;
        let differs = refused(differs, Code::AlreadyExists, "NAME_TAKEN");
        assert_eq!(differs.word("field"), field);
    }
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn bytes_that_are_not_utf_8_are_shown_and_compared_as_bytes() {
    let mut scene = scene().await;
    let spec = |variables| ProcessSpec {
        env_bytes: variables,
        cwd: "/".into(),
        ..exec_bytes(&[b"sleep", b"3600", b"\xff"])
    };
    let [first, second] = [variable(b"A", b"1"), variable(b"B", b"\xff")];
    let sorted = spec(vec![first.clone(), second.clone()]);
    let given = spec(vec![second, first]);
    assert_eq!(
        join(&mut scene, given.clone()).await,
        (false, sorted.clone())
    );
    assert_eq!(join(&mut scene, given).await, (true, sorted));
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn invalid_bytes_are_refused_by_field() {
    let mut scene = scene().await;
    let with = |change: &dyn Fn(&mut ProcessSpec)| {
        let mut spec = exec(&["true"]);
        change(&mut spec);
        spec
    };
    let limited = |resource: &str, soft, hard| {
        with(&|spec| {
            let limit = ResourceLimit {
                resource: resource.into(),
                soft,
                hard,
            };
            spec.limits.push(limit);
        })
    };
    let [a, b] = [variable(b"A", b"1"), variable(b"A", b"2")];
    let of_inherited = |inherited: InheritedAttributes| ProcessSpec {
        inherited_attributes: Some(inherited),
        ..shell("true")
    };
    let argv = ExecCommand {
        argv: vec!["true".into()],
        argv_bytes: vec![Bytes::from_static(b"true")],
    };
    for (spec, field) in [
        (
            with(&|s| s.command = Some(Command::Exec(argv.clone()))),
            "exec.argv_bytes",
        ),
        (exec_bytes(&[b"true", b"a\0b"]), "exec.argv_bytes"),
        (exec_bytes(&[b""]), "exec.argv"),
        (
            with(&|s| (s.cwd, s.cwd_bytes) = ("/".into(), Bytes::from_static(b"/"))),
            "cwd_bytes",
        ),
        (
            with(&|s| s.cwd_bytes = Bytes::from_static(b"\xff")),
            "cwd_bytes",
        ),
        (
            with(&|s| s.cwd_bytes = Bytes::from_static(b"/\0")),
            "cwd_bytes",
        ),
        (
            with(&|s| {
                s.env.insert("B".into(), "b".into());
                s.env_bytes.push(a.clone());
            }),
            "env_bytes",
        ),
        (
            with(&|s| s.env_bytes = vec![a.clone(), b.clone()]),
            "env_bytes",
        ),
        (
            with(&|s| s.env_bytes = vec![variable(b"", b"1")]),
            "env_bytes",
        ),
        (
            with(&|s| s.env_bytes = vec![variable(b"A=", b"1")]),
            "env_bytes",
        ),
        (
            with(&|s| s.env_bytes = vec![variable(b"A", b"\0")]),
            "env_bytes",
        ),
        (
            with(&|s| {
                s.inherited_env = Some(InheritedEnv {
                    variables: [("A".into(), "1".into())].into(),
                    variables_bytes: vec![a.clone()],
                });
            }),
            "inherited_env.variables_bytes",
        ),
        (with(&|s| s.umask = Some(0o1000)), "umask"),
        (with(&|s| s.nice = Some(20)), "nice"),
        (with(&|s| s.nice = Some(-21)), "nice"),
        (with(&|s| s.oom_score_adj = Some(1001)), "oom_score_adj"),
        (limited("NOFILE", Some(1), None), "limits"),
        (limited("nofile", None, None), "limits"),
        (limited("nofile", Some(2), Some(1)), "limits"),
        (
            with(&|s| s.limits = vec![limited("cpu", Some(1), None).limits.remove(0); 2]),
            "limits",
        ),
        (
            of_inherited(InheritedAttributes {
                umask: Some(0o1000),
                ..InheritedAttributes::default()
            }),
            "inherited_attributes.umask",
        ),
        (
            of_inherited(InheritedAttributes {
                limits: limited("x", Some(1), None).limits,
                ..InheritedAttributes::default()
            }),
            "inherited_attributes.limits",
        ),
        (
            of_inherited(InheritedAttributes {
                nice: Some(20),
                ..InheritedAttributes::default()
            }),
            "inherited_attributes.nice",
        ),
    ] {
        let request = scene.request(Spec::Process(spec));
        let error = scene.try_add(request).await;
        let bad = refused(error, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(bad.fields, [format!("spec.process.{field}")], "{bad:?}");
    }
    scene.finish().await;
}
