//! `run` at a terminal: a terminal that hangs up, and a shell loop that is interrupted.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::process::Stdio;

use nix::sys::signal::Signal;
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tokio::process::{Child, Command};

use crate::common::{Daemon, within};
use crate::program::{Following, ctl, heed_signals};

/// Opens a terminal and returns the test's end and the program's.
pub(crate) fn terminal() -> (OwnedFd, OwnedFd) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let theirs = rustix::fs::open(&name, flags, Mode::empty()).unwrap();
    (ours, theirs)
}

/// Starts a program with this terminal as its three streams.
pub(crate) fn at(terminal: &OwnedFd, daemon: &Daemon, words: &[&str]) -> Child {
    heed_signals();
    let stream = || Stdio::from(terminal.try_clone().unwrap());
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .env("EVLOOPD_SOCKET", &daemon.socket)
        .env("PS1", "$ ");
    command
        .stdin(stream())
        .stdout(stream())
        .stderr(stream())
        .kill_on_drop(true);
    command.spawn().unwrap()
}

/// Reads a terminal until `wanted` is shown, and returns everything that was shown.
pub(crate) async fn shows(terminal: &OwnedFd, wanted: &str) -> String {
    let terminal = File::from(terminal.try_clone().unwrap());
    let wanted = wanted.to_owned();
    let reading = tokio::task::spawn_blocking(move || {
        let (mut seen, mut buffer) = (String::new(), [0; 4096]);
        while !seen.contains(&wanted) {
            let read = rustix::io::read(&terminal, &mut buffer).unwrap();
            seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        seen
    });
    within("the terminal", reading).await.unwrap()
}

async fn state(daemon: &Daemon) -> serde_json::Value {
    ctl(&daemon.socket, &["--json", "ps"])
        .await
        .values()
        .pop()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_unnamed_program_ends_with_its_terminal() {
    let daemon = Daemon::start("").await;
    let run = [env!("CARGO_BIN_EXE_evloopctl"), "run", "--"];
    // evloopctl notices the hang-up at its input in one case, and at its output in the other.
    for line in [
        "echo here; exec sleep 1000",
        "echo here; exec </dev/null yes",
    ] {
        let (ours, theirs) = terminal();
        let mut client = at(&theirs, &daemon, &[&run[..], &["sh", "-c", line]].concat());
        drop(theirs);
        shows(&ours, "here").await;
        drop(ours);
        within("the end of the program", client.wait())
            .await
            .unwrap();
        let process = state(&daemon).await;
        assert_eq!(process["process"]["exited"]["signal"], 1, "{process}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_hang_up_ends_unnamed_programs_and_those_with_on_hangup_end() {
    let daemon = Daemon::start("").await;
    let line = "echo here; exec sleep 1000";
    for (options, ends) in [
        (&[][..], true),
        (&["--on-hangup", "keep"], false),
        (&["--name", "kept"], false),
        (&["--name", "ended", "--on-hangup", "end"], true),
    ] {
        let args = [&["run"], options, &["--", "sh", "-c", line]].concat();
        let mut client = Following::start(&daemon.socket, &args);
        client.line().await;
        client.signal(Signal::SIGHUP);
        let ended = client.ended().await;
        assert_eq!(ended.signal, Some(1), "{ended:?}");
        assert_eq!(ended.stderr.contains("it runs on"), !ends, "{ended:?}");
        let process = state(&daemon).await;
        let exited = &process["process"]["exited"];
        assert_eq!(exited["signal"] == 1, ends, "{options:?}: {process}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nohup_is_respected() {
    let daemon = Daemon::start("").await;
    let mut client = Command::new("nohup");
    client
        .arg(env!("CARGO_BIN_EXE_evloopctl"))
        .args(["run", "--", "sh", "-c", "echo here; read line; exit 5"])
        .env("EVLOOPD_SOCKET", &daemon.socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let mut client = client.spawn().unwrap();
    let mut here = [0; 5];
    let stdout = client.stdout.as_mut().unwrap();
    within(
        "a line",
        tokio::io::AsyncReadExt::read_exact(stdout, &mut here),
    )
    .await
    .unwrap();
    let pid = nix::unistd::Pid::from_raw(client.id().unwrap().try_into().unwrap());
    nix::sys::signal::kill(pid, Signal::SIGHUP).unwrap();
    drop(client.stdin.take());
    let status = within("the end of the program", client.wait())
        .await
        .unwrap();
    assert_eq!(status.code(), Some(5), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_interrupt_ends_the_loop_of_a_shell() {
    // The shell gets a terminal of its own from setsid(1).
    for program in ["bash", "setsid"] {
        if !std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .any(|dir| dir.join(program).exists())
        {
            eprintln!("NOT TESTED: there is no {program} here");
            return;
        }
    }
    let daemon = Daemon::start("").await;
    let (ours, theirs) = terminal();
    let shell = [
        "setsid",
        "--ctty",
        "--wait",
        "bash",
        "--norc",
        "--noprofile",
        "-i",
    ];
    let mut shell = at(&theirs, &daemon, &shell);
    drop(theirs);
    let mut keys = File::from(ours.try_clone().unwrap());
    let ctl = env!("CARGO_BIN_EXE_evloopctl");
    let rounds = format!(
        "for i in 1 2; do {ctl} run -n -- sh -c \"echo round-$i; exec sleep 1000\"; done\n"
    );
    keys.write_all(rounds.as_bytes()).unwrap();
    shows(&ours, "round-1").await;
    keys.write_all(b"\x03").unwrap();
    shows(&ours, "$ ").await;
    keys.write_all(b"echo status-$?\nexit\n").unwrap();
    let seen = shows(&ours, "status-130").await;
    assert!(!seen.contains("round-2"), "{seen}");
    within("the shell's end", shell.wait()).await.unwrap();
}

/// Returns what a command shows at a terminal with that many columns.
async fn shown_at(columns: u16, daemon: &Daemon, words: &[&str]) -> String {
    let (ours, theirs) = terminal();
    let size = rustix::termios::Winsize {
        ws_row: 24,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&theirs, size).unwrap();
    let line = "\"$@\"; echo -n END";
    let words = [
        &["sh", "-c", line, "sh", env!("CARGO_BIN_EXE_evloopctl")],
        words,
    ]
    .concat();
    let _child = at(&theirs, daemon, &words);
    let shown = shows(&ours, "END").await;
    shown.trim_end_matches("END").replace('\r', "")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn tables_at_a_terminal_are_coloured_and_cut_to_its_width() {
    let daemon = Daemon::start("").await;
    let long = "x".repeat(150);
    let words = ["run", "--name", "long", "--", "echo", &long];
    ctl(&daemon.socket, &words).await.good();
    for words in [
        &["ps"][..],
        &["show", "long"],
        &["config"],
        &["loop", "list"],
        &["backends"],
    ] {
        let shown = shown_at(60, &daemon, words).await;
        assert!(shown.contains("\x1b["), "{words:?} is coloured: {shown:?}");
        let bare = anstream::adapter::strip_str(&shown).to_string();
        let widest = bare.lines().map(|line| line.chars().count()).max().unwrap();
        if words == ["backends"] {
            // This table has more columns than can be read at that width.
            assert!(widest < 200, "{bare}");
        } else {
            assert!(widest <= 60 && bare.contains('…'), "{words:?}: {bare}");
        }
        let piped = ctl(&daemon.socket, words).await.good();
        assert!(!piped.contains('…') && !piped.contains('\x1b'), "{piped}");
    }
    let shown = shown_at(60, &daemon, &["ps", "--no-trunc"]).await;
    assert!(shown.contains(&long), "{shown}");
    let (ours, theirs) = terminal();
    let line = format!(
        "NO_COLOR=1 {} ps; echo -n END",
        env!("CARGO_BIN_EXE_evloopctl")
    );
    let _child = at(&theirs, &daemon, &["sh", "-c", &line]);
    let shown = shows(&ours, "END").await;
    assert!(
        shown.contains("long") && !shown.contains('\x1b'),
        "{shown:?}"
    );
}
