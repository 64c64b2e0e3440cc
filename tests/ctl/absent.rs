//! evloopctl without a daemon: what it reports about the socket, and what it advises.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

use tokio::process::Command;

use crate::common::{Daemon, directory, hang_up, within};
use crate::program::{Ended, ctl, ctl_from};

/// Runs evloopctl without the capabilities by which root bypasses the modes of files.
async fn without_privilege(socket: &Path) -> Ended {
    let root = rustix::process::geteuid().is_root();
    let launcher = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"].map(OsStr::new);
    let launcher = if root { &launcher[..] } else { &[] };
    ctl_from(socket, launcher, &["ps".as_ref()]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_named_socket_without_a_daemon_says_how_to_start_one_there() {
    let dir = directory();
    let path = dir.path().join("a daemon's.sock");
    let quoted = path.display().to_string().replace('\'', "'\\''");
    let start = format!("; start one with `evloopd --socket '{quoted}'`\n");
    let missing = ctl(&path, &["ps"]).await;
    missing.failed(1, &["ps: no daemon runs: there is no socket at /", &start]);

    let listener = UnixListener::bind(&path).unwrap();
    hang_up(&listener);
    let left = ctl(&path, &["ps"]).await;
    left.failed(1, &["ps: no daemon runs: nobody listens at /", &start]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_path_that_is_no_socket_of_a_daemon_is_reported() {
    let daemon = Daemon::start("").await;
    let dir = daemon.dir.path();
    let file = dir.join("evloopd.toml");
    let advice = "; name the daemon's socket with --socket PATH\n";
    let said = ctl(&file, &["ps"]).await;
    said.failed(1, &["ps: /", "evloopd.toml is not a socket", advice]);
    let handover = dir.join("evloopd.sock.handover");
    let said = ctl(&handover, &["ps"]).await;
    said.failed(1, &["handover is a socket of another kind", advice]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_socket_that_may_not_be_opened_is_reported_as_such() {
    let daemon = Daemon::start("").await;
    let dir = daemon.dir.path();
    let close =
        |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    close(&daemon.socket, 0);
    let said = without_privilege(&daemon.socket).await;
    let advice = "; act as that user, or name another socket";
    let words = [
        "evloopd.sock exists, but you may not open it: it belongs to user ",
        advice,
    ];
    said.failed(1, &words);
    said.failed(1, &["(mode 0000)"]);
    assert!(!said.stderr.contains("no daemon"), "{said:?}");

    close(&daemon.socket, 0o600);
    close(dir, 0o600);
    let said = without_privilege(&daemon.socket).await;
    close(dir, 0o700);
    let closed = format!("you may not enter {}: it belongs to user ", dir.display());
    said.failed(
        1,
        &[
            "evloopd.sock cannot be reached, ",
            &closed,
            "(mode 0600)",
            advice,
        ],
    );
}

/// Returns what evloopctl reports to an ordinary user with this home and an empty runtime
/// directory.
async fn unnamed(home: &Path) -> String {
    let program = home.join("evloopctl");
    let mut command = Command::new(&program);
    if rustix::process::geteuid().is_root() {
        command = Command::new("setpriv");
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        command.args(nobody).arg(&program);
    }
    command
        .env_clear()
        .env("HOME", home)
        .env("XDG_RUNTIME_DIR", home.join("run"))
        .arg("ps")
        .kill_on_drop(true);
    let output = within("the end of evloopctl", command.output())
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_advice_is_to_start_the_user_unit_where_one_is_installed() {
    let dir = directory();
    let home = dir.path();
    // Any user can reach it.
    fs::set_permissions(home, Permissions::from_mode(0o755)).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_evloopctl"), home.join("evloopctl")).unwrap();
    let said = unnamed(home).await;
    let socket = home.join("run/evloopd/evloopd.sock");
    let missing = format!("there is no socket at {}; ", socket.display());
    assert!(said.contains(&missing), "{said}");
    let installed = ["/etc", "/run", "/usr/local/lib", "/usr/lib"]
        .map(|place| Path::new(place).join("systemd/user/evloopd.socket"));
    if !installed.iter().any(|unit| unit.exists()) {
        assert!(said.ends_with("; start one with `evloopd &`\n"), "{said}");
    }

    let units = home.join(".config/systemd/user");
    fs::create_dir_all(&units).unwrap();
    fs::write(units.join("evloopd.socket"), "").unwrap();
    let said = unnamed(home).await;
    let start = "; start one with `systemctl --user start evloopd.socket`\n";
    assert!(said.ends_with(start), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}
