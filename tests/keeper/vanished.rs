//! Files of the sockets that are removed while the daemon lives.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use nix::sys::signal::Signal;

use crate::common::{Handover, directory};
use crate::{murder, start, start_in, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn files_that_are_removed_are_bound_again() {
    let mut daemon = start("").await;
    let info = daemon.info().await;
    let handover = Path::new(&info.handover_socket).to_owned();
    let mode = daemon.socket.metadata().unwrap().permissions().mode();
    for path in [&daemon.socket, &handover] {
        std::fs::remove_file(path).unwrap();
    }
    // The file is there a moment before anybody listens.
    let socket = daemon.socket.clone();
    let is_served = || UnixStream::connect(&socket).is_ok();
    until("both files", || is_served() && handover.exists()).await;
    let now = daemon.socket.metadata().unwrap().permissions().mode();
    assert_eq!(now, mode);
    // Those who were connected still are, and others can connect.
    assert_eq!(daemon.info().await.instance, info.instance);
    daemon.another_channel().await;
    let (_ours, theirs) = UnixStream::pair().unwrap();
    Handover::connect(&handover).give(&theirs);
    assert_eq!(daemon.log().matches("it is bound again").count(), 2);
    assert!(daemon.status().await.socket_troubles.is_empty());
    // The next life has the new sockets, and looks after them.
    murder(&daemon, 1).await;
    daemon.another_channel().await;
    Handover::connect(&handover).give(&theirs);
    std::fs::remove_file(&daemon.socket).unwrap();
    until("the file", is_served).await;
    daemon.another_channel().await;
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.ended().await, Some(0));
    assert!(!daemon.socket.exists() && !handover.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_directory_that_another_has_made_is_refused_until_it_is_gone() {
    let dir = directory();
    let run = dir.path().join("run");
    let path = run.join("handover.sock");
    let config = format!("[server]\nhandover_socket = \"{}\"", path.display());
    let daemon = start_in(Arc::clone(&dir), &config).await;
    std::fs::remove_dir_all(&run).unwrap();
    until("its directory is made anew", || path.exists()).await;
    assert_eq!(run.metadata().unwrap().mode() & 0o777, 0o700);

    std::fs::remove_dir_all(&run).unwrap();
    // In one step, so that the daemon does not come first.
    let staged = dir.path().join("staged");
    let expected = if rustix::process::geteuid().is_root() {
        std::fs::create_dir(&staged).unwrap();
        std::os::unix::fs::chown(&staged, Some(65534), None).unwrap();
        "belongs to uid 65534"
    } else {
        // Only root can make it another user's.
        std::fs::write(&staged, "").unwrap();
        "ENOTDIR"
    };
    let staged_now = || match std::fs::rename(&staged, &run) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => false,
        renamed => renamed.is_ok(),
    };
    if !staged_now() {
        std::fs::remove_dir_all(&run).unwrap();
        assert!(staged_now());
    }
    daemon
        .until("it is told", |status| {
            let mut troubles = status.socket_troubles.iter();
            troubles.any(|one| one.contains(expected) && one.contains("handover.sock"))
        })
        .await;
    assert!(!path.exists());
    assert_eq!(daemon.log().matches(expected).count(), 1);
    let text = std::process::Command::new(env!("CARGO_BIN_EXE_evloopctl"))
        .arg("status")
        .env("EVLOOPD_SOCKET", &daemon.socket)
        .output();
    let text = String::from_utf8(text.unwrap().stdout).unwrap();
    assert!(text.lines().next().unwrap().contains(expected), "{text}");

    match run.is_dir() {
        true => std::fs::remove_dir(&run).unwrap(),
        false => std::fs::remove_file(&run).unwrap(),
    }
    until("the file", || path.exists()).await;
    daemon
        .until("no trouble", |status| status.socket_troubles.is_empty())
        .await;
}
