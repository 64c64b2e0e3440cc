//! The files of `[tls.NAME]`: what is refused, and what happens when they change.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{ListenerSpec, TlsOptions, socket_address, watch};

use super::config::refused;
use crate::common::tls::{self, Client};
use crate::common::{Daemon, PATIENCE, Scene, tcp_listener};

fn copy(dir: &Path, from: &str, to: &str) {
    for end in ["pem", "key"] {
        let from = tls::file(&format!("{from}.{end}"));
        std::fs::copy(from, dir.join(format!("{to}.{end}"))).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn files_that_cannot_be_used_are_refused_in_words() {
    let prepare = |dir: &Path| {
        for name in ["open", "pair", "damaged", "encrypted"] {
            copy(dir, "web", name);
        }
        let open = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(dir.join("open.key"), open).unwrap();
        std::fs::copy(tls::file("other.key"), dir.join("pair.key")).unwrap();
        std::fs::write(dir.join("damaged.pem"), "no certificate").unwrap();
        let encrypted =
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        std::fs::write(dir.join("encrypted.key"), encrypted).unwrap();
    };
    let mut config = "version = 1\n[server]\nsocket = \"DIR/evloopd.sock\"\n".to_owned();
    for name in ["absent", "damaged", "encrypted", "open", "pair"] {
        let section =
            format!("[tls.{name}]\ncert = \"DIR/{name}.pem\"\nkey = \"DIR/{name}.key\"\n");
        config.push_str(&section);
    }
    let said = refused(&config, prepare).await;
    let lines = [
        [
            "DIR/evloopd.toml:6: tls.absent.key: ",
            "`DIR/absent.key` cannot be read",
        ],
        [
            "DIR/evloopd.toml:8: tls.damaged.cert: ",
            "no `BEGIN CERTIFICATE`",
        ],
        [
            "DIR/evloopd.toml:12: tls.encrypted.key: ",
            "is encrypted with a passphrase",
        ],
        ["DIR/evloopd.toml:15: tls.open.key: ", "has mode 0644"],
        [
            "DIR/evloopd.toml:18: tls.pair.key: ",
            "not the key of the first certificate",
        ],
    ];
    assert_eq!(said.lines().count(), lines.len(), "{said}");
    for (line, [start, word]) in said.lines().zip(lines) {
        assert!(line.starts_with(start), "{line} is not {start}");
        assert!(line.contains(word), "{word} is not in {line}");
    }
}

/// Connects and returns whether the certificate that is shown is `name`'s.
fn shows(port: u16, name: &str) -> (bool, Option<Client>) {
    let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let host = if name == "other" {
        "other.test"
    } else {
        "localhost"
    };
    match tls::shake(socket, tls::client(None), host) {
        Ok(peer) => {
            let shown = peer.conn.peer_certificates().unwrap()[0] == tls::certificate(name);
            (shown, Some(peer))
        }
        Err(_) => (false, None),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_changed_pair_is_taken_once_it_matches_and_streams_go_on() {
    use std::io::{Read, Write};

    let dir = Arc::new(tempfile::tempdir().unwrap());
    copy(dir.path(), "web", "site");
    let path = dir.path().display();
    let config = format!("[tls.site]\ncert = \"{path}/site.pem\"\nkey = \"{path}/site.key\"\n");
    let mut scene = Scene::new(Daemon::start(&config).await, "", "").await;
    let listener = ListenerSpec {
        tls: Some(TlsOptions {
            config: "site".into(),
            ..TlsOptions::default()
        }),
        ..tcp_listener()
    };
    let id = scene.add(Spec::Listener(listener)).await;
    let Some(watch::Status::Listener(status)) = scene.get(id).await.status else {
        panic!("a listener has a listener's status");
    };
    let port = match &status.addresses[0].address {
        Some(socket_address::Address::Inet(inet)) => u16::try_from(inet.port).unwrap(),
        other => panic!("{other:?}"),
    };
    let (web, old) = shows(port, "web");
    assert!(web);
    let mut old = old.unwrap();
    scene.recorder.first(id, "accepted").await;

    // The certificate comes first: it does not match the key, and the old pair stays.
    std::fs::copy(tls::file("other.pem"), dir.path().join("site.pem")).unwrap();
    let refused = |log: &str| log.contains("is not the key of the first certificate");
    until(|| refused(&scene.daemon.log()));
    assert!(shows(port, "web").0, "the old pair is in use");
    std::fs::copy(tls::file("other.key"), dir.path().join("site.key")).unwrap();
    until(|| scene.daemon.log().contains("changed TLS files are in use"));
    assert!(shows(port, "other").0);
    let log = scene.daemon.log();
    let warnings = log.lines().filter(|line| refused(line)).count();
    assert_eq!(warnings, 1, "{log}");

    // A replacement by rename, as most tools do it.
    copy(dir.path(), "web", "new");
    for end in ["key", "pem"] {
        let from = dir.path().join(format!("new.{end}"));
        std::fs::rename(from, dir.path().join(format!("site.{end}"))).unwrap();
    }
    until(|| shows(port, "web").0);

    // The connection that was there before goes on.
    let first = scene.recorder.first(id, "accepted").await;
    let Some(evloopd::proto::event::Kind::Accepted(accepted)) = first.kind else {
        panic!("{first:?}");
    };
    scene.write(accepted.watch_id, b"still").await;
    let mut still = [0; 5];
    old.read_exact(&mut still).unwrap();
    old.write_all(b"here").unwrap();
    old.flush().unwrap();
    scene.recorder.first(accepted.watch_id, "data").await;
    scene.finish().await;
}

/// Waits until `wanted` holds.
fn until(wanted: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !wanted() {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(10));
    }
}
