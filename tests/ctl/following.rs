//! `--follow`: which watches end with the command, and what it says when a watch ends before that.

use std::fs;

use evloopd::proto::{Lifetime, ListWatchesRequest, Watch};
use nix::sys::signal::Signal;

use crate::common::{Daemon, directory, within};
use crate::program::{Following, ctl};

async fn open_watches(daemon: &Daemon) -> Vec<Watch> {
    let request = ListWatchesRequest {
        open_only: true,
        ..ListWatchesRequest::default()
    };
    // The first watch makes the loop.
    let listed = daemon.watches().list_watches(request).await;
    listed.map_or_else(|_| Vec::new(), |listed| listed.into_inner().watches)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_watch_without_a_name_ends_with_the_command_that_follows_it() {
    let daemon = Daemon::start("").await;
    let dir = directory();
    let at = dir.path().to_str().unwrap();
    let log = format!("{at}/log");
    fs::write(&log, "line\n").unwrap();
    let fifo = format!("{at}/fifo");
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).unwrap();
    let pid = std::process::id().to_string();
    let dated = format!("unix:{at}/datagrams");
    let verbs: &[&[&str]] = &[
        &["watch", "path", at],
        &["watch", "file", &log],
        &["watch", "signal", "USR1"],
        &["watch", "timer", "--every", "1h"],
        &["watch", "read-pipe", &fifo],
        &["watch", "pid", &pid],
        &["watch", "udp", &dated],
        &["listen", "127.0.0.1:0"],
        &["watch", "process", "--", "sleep", "1000"],
    ];
    for verb in verbs {
        let (options, program) = match verb.iter().position(|word| *word == "--") {
            Some(at) => verb.split_at(at),
            None => (*verb, &[][..]),
        };
        let follow = async |more: &[&str]| {
            let words = [options, &["-f"], more, program].concat();
            let following = Following::start(&daemon.socket, &words);
            within("the watch", async {
                while open_watches(&daemon).await.is_empty() {}
            })
            .await;
            following.signal(Signal::SIGINT);
            following.ended().await;
        };
        follow(&[]).await;
        within("the end of the watch", async {
            while !open_watches(&daemon).await.is_empty() {}
        })
        .await;
        // It stays if that is asked for.
        for more in [&["--name", "it"][..], &["--lifetime", "daemon"]] {
            follow(more).await;
            let left = open_watches(&daemon).await;
            assert_eq!(left.len(), 1, "{verb:?} {more:?}");
            assert_eq!(left[0].lifetime(), Lifetime::Daemon, "{verb:?} {more:?}");
            let id = format!("@{}", left[0].watch_id);
            ctl(&daemon.socket, &["watch", "rm", &id]).await.good();
        }
    }
    let help = ctl(&daemon.socket, &["watch", "path", "--help"])
        .await
        .good();
    let words: Vec<_> = help.split_whitespace().collect();
    let default = "[default: daemon; with --follow and without --name: process]";
    assert!(words.join(" ").contains(default), "{help}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_watch_that_ends_early_says_why_and_fails() {
    let daemon = Daemon::start("").await;
    let dir = directory();
    let log = format!("{}/log", dir.path().display());
    fs::write(&log, "").unwrap();
    for verb in [
        &["watch", "file", "--follow", &log][..],
        &["watch", "signal", "-f", "USR1"],
        &["watch", "timer", "--after", "1h", "-f"],
    ] {
        let leased = [verb, &["--lease", "100ms"]].concat();
        let ended = ctl(&daemon.socket, &leased).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains(": @"), "{ended:?}");
        assert!(ended.stderr.contains("its lease ran out"), "{ended:?}");
    }
    let removed = async |verb: &[&str]| {
        let following = Following::start(&daemon.socket, verb);
        within("the watch", async {
            while ctl(&daemon.socket, &["watch", "rm", "it"]).await.code != Some(0) {}
        })
        .await;
        following.ended().await
    };
    // A watch that has no other end is removed when it is no longer wanted.
    let ended = removed(&["watch", "file", "--follow", &log, "--name", "it"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("it: it was removed"), "{ended:?}");
    let ended = removed(&["every", "1h", "--name", "it"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    // But who waits for its time must not take the removal for it.
    let ended = removed(&["after", "1h", "--name", "it"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("it: it was removed"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn refusals_name_the_option_and_what_is_really_allowed() {
    let daemon = Daemon::start("").await;
    let log = ["watch", "file", "--follow", "/nonexistent/log"];
    for (verb, more, code, told) in [
        (&log[..], &["--keep-files", "2000"][..], 2, "--keep-files"),
        (&log, &["--keep-files", "0"], 2, "--keep-files"),
        (&log, &["--lease", "10ms"], 1, "must be 100ms to 30 days"),
        (
            &["watch", "timer", "--after", "200y"],
            &[],
            1,
            "must be 0s to 100 years",
        ),
        (
            &["run", "--timeout", "1us", "--", "true"],
            &[],
            125,
            "must be 1ms to 10 years",
        ),
    ] {
        let ended = ctl(&daemon.socket, &[verb, more].concat()).await;
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(ended.stderr.contains(told), "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn four_fields_of_cron_are_told_from_a_time_of_systemd() {
    let daemon = Daemon::start("").await;
    for text in ["* * * *", "*/5 * * *", "30 2 * *"] {
        let ended = ctl(&daemon.socket, &["cron", text]).await;
        ended.failed(2, &["cron has five fields, or six with the second first"]);
    }
    // What looks like no cron gets no such advice.
    let ended = ctl(&daemon.socket, &["cron", "Mon *-*-* 10:00 often"]).await;
    assert_eq!(ended.code, Some(2));
    assert!(!ended.stderr.contains("five fields"), "{ended:?}");
}
