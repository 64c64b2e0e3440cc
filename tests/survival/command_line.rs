//! evloopctl through the deaths of the daemon.

use std::process::Stdio;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use crate::common::{Daemon, within};
use crate::{murder, start};

const DEATHS: usize = 5;

fn ctl(daemon: &Daemon, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evloopctl"));
    command
        .args(words)
        .env("EVLOOPD_SOCKET", &daemon.socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_and_logs_go_on_and_say_so() {
    let daemon = start().await;
    // It ends once it has read all of its input.
    let line = "for i in $(seq 3000); do echo $i; done; cat; exit 7";
    let mut run = ctl(&daemon, &["run", "--name", "job", "--", "sh", "-c", line]);
    let mut run = run.spawn().unwrap();
    let mut input = run.stdin.take().unwrap();
    input.write_all(b"first\n").await.unwrap();
    let known = async {
        while !ctl(&daemon, &["show", "job"])
            .output()
            .await
            .unwrap()
            .status
            .success()
        {}
    };
    within("the process", known).await;
    let mut logs = ctl(&daemon, &["logs", "-f", "job"]).spawn().unwrap();
    // It has found the process: the first call is not made again.
    let mut first = [0; 2];
    let begun = logs.stdout.as_mut().unwrap().read_exact(&mut first);
    within("the log", begun).await.unwrap();
    assert_eq!(&first, b"1\n");
    for death in 0..DEATHS {
        murder(&daemon).await;
        input
            .write_all(format!("{death}\n").as_bytes())
            .await
            .unwrap();
    }
    drop(input);
    let wanted: String = (1..=3000).map(|number| format!("{number}\n")).collect();
    let wanted = wanted + "first\n0\n1\n2\n3\n4\n";
    let outputs = async { tokio::join!(run.wait_with_output(), logs.wait_with_output()) };
    let (run, logs) = within("both", outputs).await;
    let (run, logs) = (run.unwrap(), logs.unwrap());
    let said = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(7), "{said}");
    assert_eq!(String::from_utf8_lossy(&run.stdout), wanted, "{said}");
    assert_eq!(String::from_utf8_lossy(&logs.stdout), wanted[2..]);
    let goes_on = "evloopctl: the daemon was restarted; this goes on\n";
    assert!(
        (1..=DEATHS).contains(&said.matches(goes_on).count()),
        "{said}"
    );
    assert_eq!(said.replace(goes_on, ""), "");
}
