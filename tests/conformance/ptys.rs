//! Children with a terminal, with every child watcher.

use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    ProcessSpec, SignalTarget, Stdio, Stream, TerminalOptions, TerminalSize, exited::Status,
};
use tonic::Code;

use crate::common::{Scene, exec, in_terminal, refused, shell};

on_each_child_watcher!(
    the_size_is_there_before_the_program,
    all_streams_are_one_terminal_that_the_child_controls,
    a_program_that_ends_at_once_loses_no_output,
    a_new_size_is_told_to_the_program_and_to_clients,
    the_foreground_gets_signals,
    a_removed_child_is_hung_up,
    a_shell_that_ignores_sigterm_ends_when_it_is_removed,
    no_child_has_the_terminal_of_another,
    a_terminal_is_not_compared,
    what_is_no_terminal_is_refused,
);

fn size(rows: u32, columns: u32) -> TerminalSize {
    TerminalSize { rows, columns }
}

/// Runs a process to its end and returns what its terminal has shown.
async fn shown(scene: &mut Scene, spec: ProcessSpec) -> String {
    let id = scene.spawn(in_terminal(spec)).await;
    scene.closed(id).await;
    String::from_utf8(scene.recorder.bytes(id, Stream::Stdout)).unwrap()
}

async fn the_size_is_there_before_the_program(scene: &mut Scene) {
    for _ in 0..10 {
        assert_eq!(shown(scene, exec(&["stty", "size"])).await, "24 80\r\n");
        let mut spec = exec(&["stty", "size"]);
        spec.terminal = Some(TerminalOptions {
            size: Some(size(50, 132)),
            ..TerminalOptions::default()
        });
        assert_eq!(shown(scene, spec).await, "50 132\r\n");
    }
}

async fn all_streams_are_one_terminal_that_the_child_controls(scene: &mut Scene) {
    let line = "test -t 0 -a -t 1 -a -t 2 && echo out && echo err >&2 && echo tty >/dev/tty";
    let id = scene.spawn(in_terminal(shell(line))).await;
    scene.closed(id).await;
    let seen = scene.recorder.bytes(id, Stream::Stdout);
    assert_eq!(String::from_utf8(seen).unwrap(), "out\r\nerr\r\ntty\r\n");
    let kinds = scene.recorder.kinds(id);
    let ends = kinds.iter().filter(|kind| **kind == "stream_end").count();
    assert_eq!(ends, 1, "{kinds:?}");
    assert_eq!(scene.exited(id).await.status, Some(Status::Code(0)));
    // Erasing a character of two bytes erases both.
    let modes = shown(scene, exec(&["stty", "-a"])).await;
    assert!(modes.contains(" iutf8"), "{modes}");
}

async fn a_program_that_ends_at_once_loses_no_output(scene: &mut Scene) {
    for number in 0..50 {
        let word = format!("word-{number}");
        let seen = shown(scene, exec(&["echo", &word])).await;
        assert_eq!(seen, format!("{word}\r\n"));
    }
    let seen = shown(scene, exec(&["seq", "100000"])).await;
    let expected: String = (1..=100_000).map(|n| format!("{n}\r\n")).collect();
    assert!(
        seen == expected,
        "{} of {} bytes",
        seen.len(),
        expected.len()
    );
}

async fn a_new_size_is_told_to_the_program_and_to_clients(scene: &mut Scene) {
    let line = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done";
    let id = scene.spawn(in_terminal(shell(line))).await;
    scene.output(id, "ready").await;
    // The same size is no change.
    scene.resize(id, 24, 80).await.unwrap();
    scene.resize(id, 30, 90).await.unwrap();
    scene.output(id, "30 90").await;
    scene.closed(id).await;
    let kinds = scene.recorder.kinds(id);
    let told = kinds.iter().filter(|kind| **kind == "resized").count();
    assert_eq!(told, 1, "{kinds:?}");
    for (rows, columns) in [(0, 80), (24, 1001)] {
        let bad = scene.resize(id, rows, columns).await;
        let bad = refused(bad, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(bad.fields, ["size"], "{rows} {columns}");
    }
    let piped = scene.spawn(exec(&["sleep", "1000"])).await;
    let none = scene.resize(piped, 24, 80).await;
    refused(none, Code::FailedPrecondition, "WRONG_STATE");
    scene.remove(piped).await;
}

async fn the_foreground_gets_signals(scene: &mut Scene) {
    let line = "set -m; sh -c 'trap \"echo job; exit 3\" USR1; echo ready; while :; do read x; done'; echo status $?";
    let id = scene.spawn(in_terminal(shell(line))).await;
    scene.output(id, "ready").await;
    let status = scene.process(id).await;
    let foreground = status.terminal.unwrap().foreground_group;
    assert!(foreground > 0 && foreground != status.pid, "{status:?}");
    scene
        .send_signal(id, "SIGUSR1", SignalTarget::Foreground)
        .await;
    scene.output(id, "job\r\nstatus 3").await;
    assert_eq!(scene.exited(id).await.status, Some(Status::Code(0)));
}

async fn a_removed_child_is_hung_up(scene: &mut Scene) {
    let id = scene.spawn(in_terminal(exec(&["sleep", "1000"]))).await;
    scene.started(id).await;
    scene.remove(id).await;
    let kinds = [
        "added",
        "started",
        "exited",
        "stream_end",
        "closed",
        "removed",
    ];
    scene.recorder.first(id, "removed").await;
    assert_eq!(scene.recorder.kinds(id), kinds);
}

async fn a_shell_that_ignores_sigterm_ends_when_it_is_removed(scene: &mut Scene) {
    let mut spec = in_terminal(shell("trap '' TERM; echo ready; while :; do read x; done"));
    spec.kill_grace = Some(crate::common::seconds(3000));
    let id = scene.spawn(spec).await;
    scene.output(id, "ready").await;
    scene.remove(id).await;
    assert_eq!(scene.exited(id).await.status, Some(Status::Signal(1)));
}

async fn no_child_has_the_terminal_of_another(scene: &mut Scene) {
    let first = scene.spawn(in_terminal(exec(&["sleep", "1000"]))).await;
    scene.started(first).await;
    let seen = shown(scene, exec(&["ls", "/proc/self/fd"])).await;
    // The fourth is the directory itself.
    let numbers: Vec<&str> = seen.split_whitespace().collect();
    assert_eq!(numbers, ["0", "1", "2", "3"]);
    scene.remove(first).await;
}

async fn a_terminal_is_not_compared(scene: &mut Scene) {
    let plain = exec(&["sleep", "1000"]);
    let mut large = in_terminal(plain.clone());
    large.terminal = Some(TerminalOptions {
        size: Some(size(50, 132)),
        ..TerminalOptions::default()
    });
    for (name, first, then) in [
        (
            "terminal",
            in_terminal(plain.clone()),
            [plain.clone(), large.clone()],
        ),
        ("plain", plain.clone(), [in_terminal(plain.clone()), large]),
    ] {
        let template = scene.request(Spec::Process(plain.clone()));
        let named = |spec: ProcessSpec| {
            let mut request = template.clone();
            request.spec = Some(evloopd::proto::WatchSpec {
                spec: Some(Spec::Process(spec)),
            });
            request.name = name.into();
            request.set_if_exists(evloopd::proto::IfExists::Return);
            request
        };
        let id = scene
            .try_add(named(first))
            .await
            .unwrap()
            .watch
            .unwrap()
            .watch_id;
        for spec in then {
            let added = scene.try_add(named(spec)).await.unwrap();
            assert!(added.existed);
            assert_eq!(added.watch.unwrap().watch_id, id);
        }
        let mut other = in_terminal(plain.clone());
        other.umask = Some(0);
        let differs = scene.try_add(named(other)).await;
        let differs = refused(differs, Code::AlreadyExists, "NAME_TAKEN");
        assert_eq!(differs.word("field"), "spec.process.umask");
    }
}

async fn what_is_no_terminal_is_refused(scene: &mut Scene) {
    let plain = exec(&["true"]);
    let mut only_stdin = plain.clone();
    only_stdin.set_stdin(Stdio::Pty);
    let mut without = plain.clone();
    without.terminal = Some(TerminalOptions::default());
    let mut flat = in_terminal(plain);
    flat.terminal = Some(TerminalOptions {
        size: Some(size(0, 80)),
        ..TerminalOptions::default()
    });
    for (spec, field) in [
        (only_stdin, "spec.process.stdout"),
        (without, "spec.process.terminal"),
        (flat, "spec.process.terminal.size"),
    ] {
        let request = scene.request(Spec::Process(spec));
        let bad = scene.try_add(request).await;
        let bad = refused(bad, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(bad.fields, [field]);
    }
}
