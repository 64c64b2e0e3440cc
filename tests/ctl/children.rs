//! The attributes that `evloopctl run` sends with a program: its directory, its environment, and
//! what the child inherits from the caller.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::common::Daemon;
use crate::program::{Ended, ctl, ctl_from};

/// Runs a shell script, in which `"$0"` is `evloopctl`.
async fn script(daemon: &Daemon, script: &str) -> Ended {
    let script = ["sh", "-c", script].map(OsStr::new);
    ctl_from(&daemon.socket, &script, &[]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_child_has_the_umask_and_the_limits_of_the_caller() {
    let daemon = Daemon::start("").await;
    let told = "umask; ulimit -Sn; ulimit -Hn; ulimit -c";
    let line = format!(
        "umask 0027; ulimit -n 80; ulimit -Sn 70; ulimit -c 0; \"$0\" run -- sh -c '{told}'"
    );
    assert_eq!(script(&daemon, &line).await.good(), "0027\n70\n80\n0\n");
    // Inherited attributes are not compared: a caller with another umask joins.
    script(
        &daemon,
        "umask 0027; \"$0\" run -d --name one -- sleep 3600",
    )
    .await
    .good();
    let joined = script(
        &daemon,
        "umask 0022; \"$0\" run -d --name one -- sleep 3600",
    )
    .await;
    assert!(joined.stderr.contains("was started before"), "{joined:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn options_of_run_override_the_attributes_of_the_caller() {
    let daemon = Daemon::start("").await;
    let told = "umask; ulimit -Sn; ulimit -Hn; ulimit -c; nice; cat /proc/self/oom_score_adj";
    let mut line = vec![
        "run",
        "--umask",
        "007",
        "--limit",
        "nofile=50:60",
        "--limit",
        "core=0",
    ];
    line.extend([
        "--nice",
        "19",
        "--oom-score-adj",
        "1000",
        "--",
        "sh",
        "-c",
        told,
    ]);
    let ended = ctl(&daemon.socket, &line).await;
    assert_eq!(ended.good(), "0007\n50\n60\n0\n19\n1000\n");
    for (option, value, word) in [
        ("--umask", "1000", "0777"),
        ("--limit", "nofil=1", "nofile"),
        ("--limit", "nofile=2:1", "SOFT"),
        ("--nice", "-21", "-20..=19"),
        ("--oom-score-adj", "1001", "-1000..=1000"),
    ] {
        let ended = ctl(&daemon.socket, &["run", option, value, "true"]).await;
        ended.failed(125, &[option.trim_start_matches('-'), word]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn words_variables_and_directories_need_not_be_utf_8() {
    let daemon = Daemon::start("").await;
    let dir = daemon.dir.path().join(OsStr::from_bytes(b"d\xff"));
    std::fs::create_dir(&dir).unwrap();
    let told = "{ printf %s \"$1$OWN$SET\"; basename \"$(pwd)\"; } | od -An -tx1";
    let mut line = [
        "run", "--env", "", "--cwd", "", "--name=x", "--", "sh", "-c", told, "sh", "",
    ]
    .map(OsStr::new);
    line[2] = OsStr::from_bytes(b"SET=\xfd");
    line[4] = dir.as_os_str();
    line[11] = OsStr::from_bytes(b"\xff");
    let own = [OsStr::new("env"), OsStr::from_bytes(b"OWN=\xfe")];
    let ended = ctl_from(&daemon.socket, &own, &line).await;
    assert_eq!(ended.good().trim(), "ff fe fd 64 ff 0a");
    let listed = ctl(&daemon.socket, &["ps", "--json"]).await.values();
    let spec = &listed[0]["spec"]["process"];
    let last = spec["exec"]["argv_bytes"]
        .as_array()
        .unwrap()
        .last()
        .unwrap();
    assert_eq!(last["base64"], "/w==");
    assert_eq!(spec["env_bytes"][0]["name"]["text"], "SET");
    // A mistake is reported in one line as well.
    let wrong = ["--nonsense", ""].map(OsStr::new);
    let wrong = [wrong[0], OsStr::from_bytes(b"\xff")];
    let ended = ctl_from(&daemon.socket, &[], &wrong).await;
    ended.failed(2, &["--nonsense"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_directory_that_is_gone_matters_only_if_no_other_is_named() {
    let daemon = Daemon::start("").await;
    let gone = daemon.dir.path().join("gone");
    let from_there = |command: &str| {
        let gone = gone.display();
        format!("mkdir {gone}; cd {gone}; rmdir {gone}; {command}")
    };
    let named = script(&daemon, &from_there("\"$0\" run --cwd /usr -- pwd")).await;
    assert_eq!(named.good(), "/usr\n");
    for command in ["\"$0\" run -- pwd", "\"$0\" run --cwd sub -- pwd"] {
        let ended = script(&daemon, &from_there(command)).await;
        ended.failed(125, &["working directory", "removed", "--cwd"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn streams_can_be_files() {
    let daemon = Daemon::start("").await;
    let dir = daemon.dir.path().join("files");
    std::fs::create_dir(&dir).unwrap();
    let at = |line: &str| format!("cd {}; {line}", dir.display());
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    std::fs::write(dir.join("in"), "from a file\n").unwrap();
    let both = "sh -c 'cat; echo out; echo err >&2'";
    let line = format!("\"$0\" run --stdin in --stdout out --stderr err -- {both} < /dev/zero");
    assert_eq!(script(&daemon, &at(&line)).await.good(), "");
    assert_eq!(
        (read("out").as_str(), read("err").as_str()),
        ("from a file\nout\n", "err\n")
    );
    for _ in 0..2 {
        let line = format!("\"$0\" run -n --append --stdout all --stderr-to-stdout -- {both}");
        script(&daemon, &at(&line)).await.good();
    }
    assert_eq!(read("all"), "out\nerr\nout\nerr\n");
    let line = format!("\"$0\" run -n --stdout all -- {both} 2>/dev/null");
    script(&daemon, &at(&line)).await.good();
    assert_eq!(read("all"), "out\n");
    let line = "\"$0\" run -d --stdin in --name shown --stdout new --stderr-to-stdout -- sleep 60; \"$0\" show shown";
    let shown = script(&daemon, &at(line)).await;
    let shown = shown.good();
    for word in ["files/in", "files/new", "as stdout"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    for (options, words) in [
        ("--append", &["--append", "--stdout"][..]),
        ("--stdout ''", &["--stdout"]),
        ("--stdin missing", &["ENOENT", "missing"]),
    ] {
        let line = at(&format!("\"$0\" run {options} -- true"));
        script(&daemon, &line).await.failed(125, words);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn variables_can_come_from_files() {
    let daemon = Daemon::start("").await;
    let file = daemon.dir.path().join("variables");
    std::fs::write(&file, "# comment\nONE=from file\nTWO=2\n").unwrap();
    let file = file.to_str().unwrap();
    let line = [
        "run",
        "--env-file",
        file,
        "-e",
        "TWO=two",
        "--",
        "sh",
        "-c",
        "echo $ONE, $TWO",
    ];
    assert_eq!(ctl(&daemon.socket, &line).await.good(), "from file, two\n");
    let line = ["run", "--env-file", "/nonexistent", "true"];
    ctl(&daemon.socket, &line)
        .await
        .failed(125, &["--env-file"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_program_runs_as_the_user_that_is_named() {
    let daemon = Daemon::start("").await;
    let line = [
        "run", "--user", "54321", "--group", "12345", "--group", "4", "--", "id",
    ];
    let ended = ctl(&daemon.socket, &line).await;
    if rustix::process::geteuid().is_root() {
        let told = ended.good();
        for word in ["uid=54321", "gid=12345", "4("] {
            assert!(told.contains(word), "{told}");
        }
    } else {
        ended.failed(125, &["CAP_SETUID"]);
    }
    let line = ["run", "--group", "4", "true"];
    ctl(&daemon.socket, &line).await.failed(125, &["--user"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_terminal_shows_in_ps_and_show() {
    let daemon = Daemon::start("").await;
    let without = ctl(&daemon.socket, &["ps"]).await;
    assert!(!without.good().contains("TTY"));
    let request = evloopd::proto::RunRequest {
        name: "typed".into(),
        spec: Some(evloopd::proto::ProcessSpec {
            terminal: Some(evloopd::proto::TerminalOptions {
                size: Some(evloopd::proto::TerminalSize {
                    rows: 30,
                    columns: 99,
                }),
                ..Default::default()
            }),
            ..crate::common::in_terminal(crate::common::shell("stty raw; echo up; sleep 3600"))
        }),
        ..Default::default()
    };
    let mut stream = daemon.processes().run(request).await.unwrap().into_inner();
    let up = |message: evloopd::proto::RunResponse| format!("{message:?}").contains("up");
    while !up(stream.message().await.unwrap().unwrap()) {}
    let listed = ctl(&daemon.socket, &["ps"]).await;
    let listed = listed.good();
    assert!(
        listed.contains("TTY") && listed.contains("99x30"),
        "{listed}"
    );
    let shown = ctl(&daemon.socket, &["show", "typed"]).await;
    let shown = shown.good();
    assert!(shown.contains("99x30, raw, process group"), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_program_has_the_environment_and_the_scheduling_that_were_asked_for() {
    let daemon = Daemon::start("").await;
    let line = ["run", "--clear-env", "-e", "ONE=1", "--", "env"];
    assert_eq!(ctl(&daemon.socket, &line).await.good(), "ONE=1\n");
    let line = [
        "run",
        "--scheduling",
        "idle",
        "--parent-death-signal",
        "kill",
        "--name",
        "idle",
        "--",
        "sh",
        "-c",
        "cut -d' ' -f41 /proc/self/stat",
    ];
    // SCHED_IDLE of sched(7).
    assert_eq!(ctl(&daemon.socket, &line).await.good(), "5\n");
    let shown = ctl(&daemon.socket, &["show", "idle"]).await;
    for words in ["scheduling        idle", "at death          SIGKILL"] {
        assert!(shown.stdout.contains(words), "{}", shown.stdout);
    }
    for (wrong, word) in [
        ("soon", "batch"),
        ("fifo:x", "batch"),
        ("idle:1", "priority"),
    ] {
        let line = ["run", "--scheduling", wrong, "true"];
        ctl(&daemon.socket, &line).await.failed(125, &[word]);
    }
}
