//! Terminals of processes, seen from a real terminal of a user.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};

use nix::sys::signal::Signal;
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};
use tokio::process::Child;

use crate::common::{Daemon, within};
use crate::program::ctl;
use crate::terminal::{at, shows, terminal};

/// A user at a terminal of 33 rows and 99 columns.
struct User {
    ours: OwnedFd,
    theirs: OwnedFd,
    before: Termios,
}

impl User {
    /// Returns the user, or `None` if setsid(1), which gives a program its terminal, is missing.
    fn new() -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap();
        if !std::env::split_paths(&path).any(|dir| dir.join("setsid").exists()) {
            eprintln!("NOT TESTED: there is no setsid here");
            return None;
        }
        let (ours, theirs) = terminal();
        let size = Winsize {
            ws_row: 33,
            ws_col: 99,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&ours, size).unwrap();
        let before = tcgetattr(&theirs).unwrap();
        Some(Self {
            ours,
            theirs,
            before,
        })
    }

    fn runs(&self, daemon: &Daemon, words: &[&str]) -> Child {
        let evloopctl = env!("CARGO_BIN_EXE_evloopctl");
        let setsid = ["setsid", "--ctty", "--wait", evloopctl];
        at(&self.theirs, daemon, &[&setsid[..], words].concat())
    }

    fn types(&self, keys: &[u8]) {
        let mut terminal = File::from(self.ours.as_fd().try_clone_to_owned().unwrap());
        terminal.write_all(keys).unwrap();
    }

    async fn sees(&self, wanted: &str) -> String {
        shows(&self.ours, wanted).await
    }

    /// Checks that the terminal's modes are what they were.
    fn has_its_terminal_back(&self) {
        let now = tcgetattr(&self.theirs).unwrap();
        let modes = |of: &Termios| {
            let Termios {
                input_modes,
                output_modes,
                control_modes,
                local_modes,
                ..
            } = of;
            format!("{input_modes:?} {output_modes:?} {control_modes:?} {local_modes:?}")
        };
        assert_eq!(modes(&now), modes(&self.before));
    }
}

async fn code(mut client: Child) -> Option<i32> {
    within("the client's end", client.wait())
        .await
        .unwrap()
        .code()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_run_without_a_name_at_a_terminal_has_one() {
    let Some(user) = User::new() else { return };
    let daemon = Daemon::start("").await;
    let line = "stty size; echo begun; read x; echo got $x; exit 3";
    let client = user.runs(&daemon, &["run", "--", "sh", "-c", line]);
    let seen = user.sees("begun").await;
    assert!(seen.contains("33 99\r\n"), "{seen}");
    user.types(b"some words\r");
    user.sees("got some words").await;
    assert_eq!(code(client).await, Some(3));
    user.has_its_terminal_back();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_a_name_keeps_is_what_the_program_wrote() {
    let Some(user) = User::new() else { return };
    let daemon = Daemon::start("").await;
    let words = ["run", "--name", "plain", "--", "printf", "a\\n"];
    assert_eq!(code(user.runs(&daemon, &words)).await, Some(0));
    let logs = ctl(&daemon.socket, &["logs", "plain"]).await;
    assert_eq!(logs.stdout, "a\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_detach_keys_leave_and_attach_comes_back_to_the_screen() {
    let Some(user) = User::new() else { return };
    let daemon = Daemon::start("").await;
    let line = "printf '\\033[2J\\033[5;7Hhere it is'; read x; echo got $x";
    let words = ["run", "-t", "--name", "kept", "--", "sh", "-c", line];
    let client = user.runs(&daemon, &words);
    user.sees("here it is").await;
    user.types(b"\x10\x11");
    assert_eq!(code(client).await, Some(0));
    user.sees("it runs on").await;
    user.has_its_terminal_back();

    let other = User::new().unwrap();
    let client = other.runs(&daemon, &["attach", "kept"]);
    other.sees("here it is").await;
    // A key that is only the first of them arrives.
    other.types(b"\x10");
    other.types(b"x\r");
    other.sees("got").await;
    assert_eq!(code(client).await, Some(0));
    other.has_its_terminal_back();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_that_a_program_turned_on_is_left_behind() {
    let Some(user) = User::new() else { return };
    let daemon = Daemon::start("").await;
    let line = "printf '\\033[?1049h\\033[?1000h\\033[?2004h\\033[?25lon'; exec sleep 1000";
    let client = user.runs(
        &daemon,
        &["run", "-t", "--name", "loud", "--", "sh", "-c", line],
    );
    user.sees("on").await;
    ctl(&daemon.socket, &["kill", "-s", "KILL", "loud"]).await;
    assert_eq!(code(client).await, Some(137));
    user.has_its_terminal_back();
    user.types(b"\x04");
    let seen = user.sees("?1049l").await;
    for undone in ["?1000l", "?2004l", "?25h"] {
        assert!(seen.contains(undone), "{undone}: {seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_daemon_that_does_not_answer_keeps_nobody_at_a_terminal() {
    let Some(user) = User::new() else { return };
    let daemon = Daemon::start("").await;
    let client = user.runs(
        &daemon,
        &["run", "--", "sh", "-c", "echo begun; exec sleep 1000"],
    );
    user.sees("begun").await;
    daemon.signal(Signal::SIGSTOP);
    user.types(b"some keys\x10\x11");
    assert_eq!(code(client).await, Some(0));
    user.has_its_terminal_back();
    daemon.signal(Signal::SIGCONT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn ctrl_z_stops_evloopctl_where_a_shell_can_continue_it() {
    let Some(user) = User::new() else { return };
    let daemon = Daemon::start("").await;
    let shell = ["setsid", "--ctty", "--wait", "sh", "-i"];
    let mut shell = at(&user.theirs, &daemon, &shell);
    let evloopctl = env!("CARGO_BIN_EXE_evloopctl");
    let line = format!("{evloopctl} run -- sh -c 'echo be''gun; exec sleep 1000'\r");
    user.types(line.as_bytes());
    user.sees("begun").await;
    user.types(b"\x1a");
    user.sees("topped").await;
    user.types(b"fg\r");
    user.sees("begun").await;
    user.types(b"\x10\x11");
    user.sees("it runs on").await;
    user.types(b"exit\r");
    within("the shell's end", shell.wait()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn logs_ask_a_terminal_nothing() {
    let Some(user) = User::new() else { return };
    let daemon = Daemon::start("").await;
    let output = "\x1b[c\x1b]52;c;eA==\x07\x1b]2;title\x07text\n";
    let run = ["run", "--name", "asks", "--", "printf", output];
    ctl(&daemon.socket, &run).await;
    for options in [&[][..], &["-t"]] {
        let client = user.runs(&daemon, &[&["logs"], options, &["asks"]].concat());
        let seen = user.sees("text").await;
        assert!(!seen.contains('\x1b'), "{seen:?}");
        assert_eq!(code(client).await, Some(0));
    }
    let client = user.runs(&daemon, &["logs", "--raw", "asks"]);
    let seen = user.sees("text").await;
    assert!(seen.contains("\x1b[c") && seen.contains("52;c"), "{seen:?}");
    assert_eq!(code(client).await, Some(0));
    assert_eq!(ctl(&daemon.socket, &["logs", "asks"]).await.stdout, output);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_terminal_has_the_size_of_the_view_that_was_typed_into_last() {
    let (Some(first), Some(second)) = (User::new(), User::new()) else {
        return;
    };
    let size = Winsize {
        ws_row: 20,
        ws_col: 70,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&second.ours, size).unwrap();
    let daemon = Daemon::start("").await;
    let line = "echo begun; while read x; do stty size; done";
    let words = ["run", "-t", "--name", "shared", "--", "sh", "-c", line];
    let one = first.runs(&daemon, &words);
    first.sees("begun").await;
    first.types(b"a\r");
    first.sees("33 99").await;
    let two = second.runs(&daemon, &["attach", "shared"]);
    second.sees("33 99").await;
    second.types(b"b\r");
    second.sees("20 70").await;
    first.types(b"c\r");
    first.sees("33 99").await;
    second.types(b"\x10\x11");
    assert_eq!(code(two).await, Some(0));
    first.types(b"\x04");
    assert_eq!(code(one).await, Some(0));
}

/// The program's terminal edits lines, of which the kernel keeps 4,095 bytes and drops the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_the_terminal_cannot_hold_of_a_paste_is_not_typed_and_counted() {
    let Some(user) = User::new() else { return };
    let daemon = Daemon::start("").await;
    let line = "stty -echo; echo begun; read x; echo got ${#x}";
    let client = user.runs(&daemon, &["run", "--", "sh", "-c", line]);
    user.sees("begun").await;
    user.types(&[b'x'; 6000]);
    user.sees("\x07").await;
    user.types(b"short\r");
    let seen = user.sees("bytes were not typed").await;
    // The terminal of the person hands a paste over in pieces of any size.
    let (before, _) = seen.rsplit_once(" bytes were not typed").unwrap();
    let refused = before.rsplit(' ').next().unwrap().replace(',', "");
    let typed = 6000 - refused.parse::<usize>().unwrap();
    assert!(typed <= 4095, "{seen}");
    assert!(seen.contains(&format!("got {}", typed + 5)), "{seen}");
    assert_eq!(code(client).await, Some(0));
}
