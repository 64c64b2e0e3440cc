//! `connect` and `listen`: what their options do, and what is shown of a connection.

use std::net::{TcpListener, TcpStream};

use crate::common::{Daemon, within};
use crate::program::{Following, ctl};

/// Returns the address that `show` gives after that label.
fn shown<'a>(sheet: &'a str, label: &str) -> &'a str {
    let line = sheet
        .lines()
        .find_map(|line| line.trim().strip_prefix(label));
    line.unwrap_or_else(|| panic!("no {label} in {sheet}"))
        .trim()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn connect_shows_both_addresses_and_the_failed_attempts() {
    let daemon = Daemon::start("").await;
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    let args = [
        "connect",
        &address,
        "--name",
        "out",
        "--source",
        "127.0.8.9",
    ];
    let options = [
        "--keepidle",
        "30s",
        "--user-timeout",
        "1m",
        "--high-water",
        "8KiB",
    ];
    ctl(&daemon.socket, &[&args[..], &options[..]].concat())
        .await
        .good();
    let (_peer, from) = server.accept().unwrap();
    let connected = async {
        loop {
            let sheet = ctl(&daemon.socket, &["show", "out"]).await.good();
            if sheet.contains(&from.to_string()) {
                break sheet;
            }
        }
    };
    let sheet = within("the connection", connected).await;
    assert_eq!(shown(&sheet, "local"), from.to_string());
    assert_eq!(shown(&sheet, "peer"), address);

    let args = ["--json", "watch", "get", "out"];
    let json = ctl(&daemon.socket, &args).await.good();
    for option in ["\"idle\"", "\"userTimeout\"", "\"highBytes\""] {
        let snake = option.replace("userTimeout", "user_timeout");
        let snake = snake.replace("highBytes", "high_bytes");
        assert!(
            json.contains(option) || json.contains(&snake),
            "{option}: {json}"
        );
    }

    // The port stays bound, so that no other program listens there.
    let bound = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    rustix::net::bind(&bound, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let nobody = rustix::net::getsockname(&bound).unwrap();
    let nobody = std::net::SocketAddr::try_from(nobody).unwrap().to_string();
    let mut follow = Following::start(&daemon.socket, &["connect", &nobody, "-f"]);
    loop {
        let line = follow.line().await;
        if line.contains("closed") {
            let attempt = format!("{nobody}: ECONNREFUSED");
            assert!(line.contains(&attempt), "{line}");
            break;
        }
    }
    follow.kill().await;

    let wrong = ctl(
        &daemon.socket,
        &["connect", "unix:/tmp/x", "--source-port", "1"],
    )
    .await;
    wrong.failed(2, &["--source-port", "HOST:PORT"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn listen_shows_how_many_connections_are_open() {
    let daemon = Daemon::start("").await;
    let args = ["listen", "127.0.0.1:0", "--name", "in", "--max-conns", "1"];
    ctl(&daemon.socket, &args).await.good();
    let sheet = ctl(&daemon.socket, &["show", "in"]).await.good();
    let address = shown(&sheet, "what").to_owned();
    assert_eq!(shown(&sheet, "open"), "0, at most 1");

    let _clients = [0, 1].map(|_| TcpStream::connect(&address).unwrap());
    let full = async {
        loop {
            let sheet = ctl(&daemon.socket, &["show", "in"]).await.good();
            if shown(&sheet, "open") == "1, at most 1" {
                break sheet;
            }
        }
    };
    let sheet = within("the first connection", full).await;
    assert_eq!(shown(&sheet, "accepted"), "1 connection");
}
