//! Completions as a shell requests them, and manual pages.

use std::path::{Path, PathBuf};
use std::time::Instant;

use tokio::process::Command;

use crate::common::{Daemon, within};
use crate::program::ctl;

fn programs() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_evloopctl"))
        .parent()
        .unwrap()
        .to_owned()
}

/// What bash would offer for a line of these words. Bash splits at `:`, `=` and `@`: a word that begins with `~` here follows
/// the one before it without a blank.
async fn offered(socket: &Path, words: &[&str]) -> Vec<String> {
    offered_in(Path::new("/"), socket, words).await
}

/// As [`offered`], in that directory.
async fn offered_in(directory: &Path, socket: &Path, words: &[&str]) -> Vec<String> {
    let script = "
        source <(evloopctl completions bash) || exit
        COMP_WORDS=(evloopctl \"$@\") COMP_CWORD=$# COMP_TYPE=9
        printf -v COMP_LINE ' %s' evloopctl \"$@\"
        COMP_LINE=${COMP_LINE// \\~} COMP_WORDS=(\"${COMP_WORDS[@]#\\~}\")
        COMP_WORDBREAKS=' :=@'
        _evloopctl evloopctl \"${!#}\" ''
        printf '%s\\n' \"${COMPREPLY[@]}\"";
    let path = format!(
        "{}:{}",
        programs().display(),
        std::env::var("PATH").unwrap()
    );
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", script, "bash"])
        .args(words)
        .current_dir(directory)
        .env("PATH", path)
        .env("EVLOOPD_SOCKET", socket);
    let output = within("bash", bash.output()).await.unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let words = text
        .lines()
        .filter(|word| !word.starts_with('-') && !word.is_empty());
    words.map(str::to_owned).collect()
}

async fn scene() -> Daemon {
    let daemon = Daemon::start("").await;
    let on = async |words: &[&str]| ctl(&daemon.socket, words).await.good();
    on(&["run", "--name", "over", "--", "true"]).await;
    on(&["run", "-d", "--name", "build", "--", "sleep", "1000"]).await;
    on(&["run", "-d", "--name", "team:web", "--", "sleep", "1000"]).await;
    on(&["watch", "timer", "--every", "1h", "--name", "tick"]).await;
    on(&["consumer", "create", "audit"]).await;
    on(&["loop", "new", "ci"]).await;
    on(&[
        "--loop", "ci", "run", "-d", "--name", "other", "--", "sleep", "1000",
    ])
    .await;
    daemon
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn names_of_the_daemon_are_completed() {
    let daemon = scene().await;
    for (words, expected) in [
        (&["attach", ""][..], &["build", "team:web", "over"][..]),
        (&["logs", ""], &["over", "build", "team:web"]),
        (&["kill", ""], &["build", "team:web"]),
        (&["wait", "bui"], &["build"]),
        (&["rm", "t"], &["team:web", "tick"]),
        (&["show", "ti"], &["tick"]),
        (&["run", "--name", "b"], &["build"]),
        (&["--loop", "ci", "attach", ""], &["other"]),
        (&["--loop", ""], &["default", "ci"]),
        (&["loop", "stop", "c"], &["ci"]),
        (&["consumer", "show", ""], &["audit"]),
        (&["events", "--consumer", "a"], &["audit"]),
        (&["events", "--kind", "exi"], &["exited"]),
        (
            &["policy", "set", "windows-s"],
            &["windows-selector-compat"],
        ),
        (&["loop", "new", "--backend", "ep"], &["epoll"]),
        (&["kill", "-s", "SIGHU"], &["SIGHUP"]),
        (&["completions", "fi"], &["fish"]),
        // Bash puts what is offered in place of what follows the colon.
        (&["attach", "team", "~:"], &["web"]),
        (&["attach", "team", "~:", "~w"], &["web"]),
        (&["logs", "@"], &["1", "2", "3"]),
        (&["show", "@", "~4"], &["4"]),
        (&["rm", "--id", ""], &["1", "2", "3", "4"]),
        (
            &["ps", "-f", "status", "~="],
            &["running", "stopped", "ended", "failed"],
        ),
        (&["ps", "-f", "name", "~=", "~b"], &["build"]),
        (&["write", "build", "x=", "@"], &[]),
        // Verbs, and not their aliases.
        (&["lo"], &["logs", "loop"]),
        (&["p"], &["ps", "policy", "post"]),
        (&["ls", "-f", "exi"], &["exited="]),
        (&["attach", "nothing"], &[]),
    ] {
        assert_eq!(offered(&daemon.socket, words).await, expected, "{words:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_offered_is_quoted_for_the_shell_and_no_pattern() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["q;touch X;", "p*", "pq", "new\nline"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    let nowhere = Path::new("/nonexistent/evloopd.sock");
    for (typed, expected) in [
        ("q", &["q\\;touch\\ X\\;"][..]),
        ("p", &["p\\*", "pq"]),
        ("n", &["$'new\\nline'"]),
    ] {
        let offered = offered_in(dir.path(), nowhere, &["--socket", typed]).await;
        assert_eq!(offered, expected, "{typed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_a_daemon_nothing_is_offered_or_printed() {
    let began = Instant::now();
    let offered = offered(Path::new("/nonexistent/evloopd.sock"), &["attach", ""]).await;
    assert!(offered.is_empty(), "{offered:?}");
    assert!(began.elapsed().as_secs() < 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn other_shells_show_what_each_name_is() {
    let daemon = scene().await;
    let mut fish = Command::new(env!("CARGO_BIN_EXE_evloopctl"));
    fish.args(["--", "evloopctl", "logs", "b"])
        .env("COMPLETE", "fish")
        .env("EVLOOPD_SOCKET", &daemon.socket);
    let output = within("fish's candidates", fish.output()).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "build\trunning\n");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = ctl(&daemon.socket, &["completions", shell]).await.good();
        assert!(
            script.contains("evloopctl") && script.contains("COMPLETE"),
            "{script}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn manual_pages_are_written_for_every_verb() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let nowhere = Path::new("/nonexistent/evloopd.sock");
    ctl(nowhere, &["man", "--dir", path]).await.good();
    for page in [
        "man1/evloopctl.1",
        "man1/evloopctl-run.1",
        "man1/evloopctl-loop-new.1",
        "man8/evloopd.8",
    ] {
        let text = std::fs::read_to_string(dir.path().join(page)).unwrap();
        assert!(
            text.contains(".SH EXAMPLES") && text.contains(".SH NAME"),
            "{page}: {text}"
        );
    }
    let printed = ctl(nowhere, &["man"]).await.good();
    assert!(printed.contains("EVLOOPCTL 1"), "{printed}");
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let wrong = ctl(nowhere, &["man", "--dir", file.to_str().unwrap()]).await;
    wrong.failed(1, &["man: ", "file/man1"]);
}
