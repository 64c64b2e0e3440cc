//! Descriptors that `watch` hands over to the daemon.

use std::ffi::OsStr;

use crate::common::Daemon;
use crate::program::{Ended, ctl_from};

/// Runs it by way of bash, which closes what the tests have open and carries out `redirection`.
async fn from_bash(daemon: &Daemon, redirection: &str, args: &[&str]) -> Ended {
    let script = format!(
        "for fd in /proc/self/fd/*; do fd=${{fd##*/}}; ((fd > 2)) && eval \"exec $fd<&-\"; done
        {redirection}
        exec \"$@\""
    );
    let launcher = ["bash", "-c", &script, "bash"].map(OsStr::new);
    let args: Vec<_> = args.iter().map(OsStr::new).collect();
    ctl_from(&daemon.socket, &launcher, &args).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn only_descriptors_that_were_passed_on_are_taken() {
    let daemon = Daemon::start("").await;
    // Among these are evloopctl's own: its epoll, its connection to the daemon.
    for number in 3..12 {
        let words = ["watch", "fd", &number.to_string(), "--read"];
        let refused = from_bash(&daemon, "", &words).await;
        let advice = format!("; open it for this command, as in `{number}< FILE`");
        refused.failed(1, &["evloopctl has not inherited this descriptor", &advice]);
    }
    let connect = from_bash(&daemon, "", &["watch", "connect", "fd:5"]).await;
    connect.failed(1, &["evloopctl has not inherited this descriptor"]);
    let fifo = daemon.dir.path().join("fifo");
    let open = format!("mkfifo {0}; exec 7<> {0}", fifo.display());
    from_bash(&daemon, &open, &["watch", "fd", "7", "--read"])
        .await
        .good();
}
