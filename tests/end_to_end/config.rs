//! `--check-config` reports everything that a start would refuse.

use crate::common::{command, directory, log, within};

/// Returns the exit code and the standard error of a check.
async fn check_config(config: &str) -> (Option<i32>, String) {
    let dir = directory();
    let mut check = command(dir.path(), config, &[]);
    let status = within("the check", check.arg("--check-config").status())
        .await
        .unwrap();
    assert!(
        !dir.path().join("evloopd.sock").exists(),
        "a check makes no socket"
    );
    (status.code(), log(dir.path()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn check_config_names_file_line_and_key() {
    assert_eq!(check_config("version = 1\n").await.0, Some(0));
    for (config, words) in [
        ("version = 2\n", vec!["evloopd.toml", "version"]),
        ("", vec!["evloopd.toml", "version"]),
        (
            "version = 1\n[server]\nmodus = \"0600\"\n",
            vec!["evloopd.toml:3", "modus", "mode"],
        ),
        (
            "version = 1\n[limits]\nmailbox = 1\n",
            vec!["evloopd.toml:3", "mailbox", "16"],
        ),
        (
            "version = 1\n[limits]\nmemory = \"lots\"\n",
            vec!["evloopd.toml:3", "memory"],
        ),
        (
            "version = 1\n[policy.a]\nextends = \"b\"\n",
            vec!["policy.a", "b"],
        ),
        (
            "version = 1\ndefault_policy = \"x\"\n",
            vec!["default_policy", "x"],
        ),
        (
            "version = 1\n[signals]\nallow = [\"SIGTERM\"]\n",
            vec!["allow", "SIGTERM"],
        ),
        ("version = = 1\n", vec!["evloopd.toml:1"]),
    ] {
        let (code, said) = check_config(config).await;
        assert_eq!(code, Some(2), "{config:?}: {said}");
        for word in words {
            assert!(
                said.contains(word),
                "`{word}` is not in {said:?} for {config:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn policies_that_extend_each_other_are_refused() {
    let circle = "version = 1\n[policy.a]\nextends = \"b\"\n[policy.b]\nextends = \"a\"\n";
    let (code, said) = check_config(circle).await;
    assert_eq!(code, Some(2), "{said}");
}

/// Returns what `evloopd` reports, in a check and on start alike, about a configuration that names
/// its own sockets. `DIR` in it stands for the directory of the file.
pub(crate) async fn refused(config: &str, prepare: impl Fn(&std::path::Path)) -> String {
    let mut said = Vec::new();
    for check in [true, false] {
        let dir = directory();
        prepare(dir.path());
        let config = config.replace("DIR", dir.path().to_str().unwrap());
        let file = dir.path().join("evloopd.toml");
        std::fs::write(&file, config).unwrap();
        let mut run = tokio::process::Command::new(env!("CARGO_BIN_EXE_evloopd"));
        run.args(["--no-keeper", "--config"]).arg(&file);
        run.env_remove("LISTEN_FDS");
        if check {
            run.arg("--check-config");
        }
        let output = run.kill_on_drop(true).output();
        let output = within("its end", output).await.unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        said.push(text.replace(dir.path().to_str().unwrap(), "DIR"));
    }
    assert_eq!(said[0], said[1], "a check and a start differ");
    said.remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn everything_that_a_start_would_refuse_is_reported_together() {
    let config = "version = 1
[server]
socket = \"DIR/file/evloopd.sock\"
handover_socket = \"DIR/precious\"
kepalive = \"5s\"
[children]
limits = { nofile = \"unlimited\" }
[log]
filter = \"inof\"
[[loop]]
name = \"a\"
policy = \"defualt\"
";
    let said = refused(config, |dir| {
        std::fs::write(dir.join("file"), "").unwrap();
        std::fs::write(dir.join("precious"), "").unwrap();
    })
    .await;
    let lines = [
        ["DIR/evloopd.toml:3: server.socket: ", "Not a directory"],
        [
            "DIR/evloopd.toml:4: server.handover_socket: ",
            "not a socket",
        ],
        [
            "DIR/evloopd.toml:5: server.kepalive: ",
            "did you mean `keepalive`",
        ],
        [
            "DIR/evloopd.toml:7: children.limits.nofile: ",
            "beyond what uid",
        ],
        ["DIR/evloopd.toml:9: log.filter: ", "did you mean `info`"],
        [
            "DIR/evloopd.toml:12: loop[0].policy: ",
            "did you mean `default`",
        ],
    ];
    assert_eq!(said.lines().count(), lines.len(), "{said}");
    for (line, [start, word]) in said.lines().zip(lines) {
        assert!(line.starts_with(start), "{line} is not {start}");
        assert!(line.contains(word), "{word} is not in {line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_path_that_leaves_no_room_for_the_handover_socket_is_refused() {
    let socket = format!("/tmp/{}", "s".repeat(94));
    let said = refused(
        &format!("version = 1\n[server]\nsocket = \"{socket}\"\n"),
        |_| {},
    )
    .await;
    let start = "DIR/evloopd.toml:3: server.socket: server.handover_socket is derived from it";
    assert!(said.starts_with(start), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}
