//! `connect` and `listen`: what their options do, and what is shown of a connection.

use std::net::{TcpListener, TcpStream};

use serde_json::Value;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn close_says_what_a_watch_left_and_abort_drops_it() {
    let daemon = Daemon::start("[limits]\nclose_linger = \"10ms\"\n").await;
    let on = async |args: &[&str]| ctl(&daemon.socket, args).await;
    let listen = ["listen", "127.0.0.1:0", "--name", "web", "--max-conns", "1"];
    on(&listen).await.good();
    let sheet = on(&["show", "web"]).await.good();
    let address = shown(&sheet, "what").to_owned();
    let _clients: Vec<TcpStream> = (0..3)
        .map(|_| TcpStream::connect(&address).unwrap())
        .collect();
    let accepted = async {
        let one = |sheet: String| shown(&sheet, "accepted").starts_with('1');
        while !one(on(&["show", "web"]).await.good()) {}
    };
    within("the first connection", accepted).await;
    let closed = on(&["close", "web"]).await.good();
    assert_eq!(closed, "web closed: removed, 2 connections not accepted\n");
    on(&["show", "web"]).await.failed(1, &["web"]);

    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    on(&["connect", &address, "--name", "idle"]).await.good();
    assert_eq!(
        on(&["close", "idle"]).await.good(),
        "idle closed: removed\n"
    );
    // These peers never read, so that bytes are left. The whole write fits the daemon's buffer.
    let mut peers = vec![server.accept().unwrap()];
    let much = "x".repeat(100_000);
    for (name, args, code, words) in [
        ("slow", &["close", "slow"][..], 1, "slow closed: removed, "),
        (
            "gone",
            &["close", "--abort", "gone"],
            0,
            "gone closed: aborted, ",
        ),
        (
            "json",
            &["--json", "close", "json"],
            1,
            "\"reason\":\"removed\"",
        ),
    ] {
        on(&["connect", &address, "--name", name]).await.good();
        peers.push(server.accept().unwrap());
        let waits = async {
            let status = ["--json", "watch", "get", name];
            let unsent = |watch: &Value| watch["transport"]["buffered_bytes"].as_u64();
            while unsent(&on(&status).await.values()[0]) == Some(0) {
                on(&["write", name, &much]).await.good();
            }
        };
        within("a full socket", waits).await;
        let closed = on(args).await;
        let text = closed.stdout.clone();
        assert!(text.contains(words) && text.contains("unsent"), "{text}");
        match code {
            0 => drop(closed.good()),
            code => closed.failed(code, &[name, "bytes were not sent"]),
        }
    }
    on(&["watch", "timer", "--every", "1h", "--name", "tick"])
        .await
        .good();
    on(&["close", "tick"])
        .await
        .failed(1, &["it is a timer", "rm tick"]);
    on(&["close", "nobody"]).await.failed(1, &["nobody"]);
    on(&["close"]).await.failed(2, &["missing"]);
}
