//! What the daemon refuses, and what fails later, in the words of the command line.

use std::net::TcpListener;

use crate::common::{Daemon, tls};
use crate::program::ctl;

/// Returns an address at which nobody listens as long as the socket lives.
fn nobody() -> (rustix::fd::OwnedFd, String) {
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};

    let bound = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&bound, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = std::net::SocketAddr::try_from(getsockname(&bound).unwrap()).unwrap();
    (bound, address.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connection_that_fails_fails_its_command() {
    let daemon = Daemon::start("").await;
    let on = async |words: &[&str]| ctl(&daemon.socket, words).await;
    let (_bound, nobody) = nobody();
    let refused = format!("connect {nobody}: Connection refused (ECONNREFUSED)");
    on(&["connect", &nobody, "-f"])
        .await
        .failed(1, &["evloopctl: connect: ", &refused]);
    on(&["--json", "watch", "connect", &nobody, "-f"])
        .await
        .failed(1, &[&refused]);
    // The address to connect from is what is wrong here, and is named.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    on(&["connect", &address, "-f", "--source", "192.0.2.1"])
        .await
        .failed(1, &["bind 192.0.2.1: Cannot assign requested address"]);
    let from = ["--source", "192.0.2.1", "--source-port", "7"];
    on(&[&["connect", &address, "-f"][..], &from].concat())
        .await
        .failed(1, &["bind 192.0.2.1:7: Cannot assign"]);
    on(&["connect", &address, "-f", "--source", "::1"])
        .await
        .failed(1, &["bind ::1: ", "EAFNOSUPPORT"]);
    on(&["connect", &address, "-f", "--source", "fe80::1%nope"])
        .await
        .failed(1, &["bind fe80::1%nope: ", "ENODEV"]);
    // A list tells the names of errors, and a sheet all of them.
    let list = on(&["watch", "list"]).await.good();
    for line in list.lines() {
        let state = line.find("WHAT").unwrap_or_default();
        assert!(state < 45, "{list}");
    }
    assert!(list.contains("  ECONNREFUSED, "), "{list}");
    let first = on(&["watch", "get", "@1"]).await.good();
    assert!(first.contains(&refused), "{first}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_refusal_names_the_option_that_was_given() {
    let daemon = Daemon::start("").await;
    let key = tls::file("web.key");
    let [key, certificate] = [key.clone(), key.with_extension("pem")];
    let [key, certificate] = [&key, &certificate].map(|path| path.to_str().unwrap());
    let connect = ["connect", "127.0.0.1:9"];
    let udp = ["udp", "127.0.0.1:0"];
    for (words, option) in [
        ([&connect[..], &["--tls=nope"]].concat(), "--tls: "),
        (
            [&connect[..], &["--tls", "--servername", "a b"]].concat(),
            "--servername: must be the DNS name",
        ),
        (
            [&connect[..], &["--tls", "--cacert", key]].concat(),
            "--cacert: ",
        ),
        (
            [
                &connect[..],
                &["--tls", "--cert", certificate, "--key", key],
            ]
            .concat(),
            "--key: ",
        ),
        (
            [&connect[..], &["--tls", "--alpn", ""]].concat(),
            "--alpn: ",
        ),
        ([&connect[..], &["--source", "x"]].concat(), "--source: "),
        ([&connect[..], &["--timeout", "0s"]].concat(), "--timeout: "),
        (
            [&connect[..], &["--keepidle", "0s"]].concat(),
            "--keepidle: ",
        ),
        (
            [&connect[..], &["--keepcnt", "999"]].concat(),
            "--keepcnt: ",
        ),
        (
            [&connect[..], &["--interleave", "99"]].concat(),
            "--interleave: ",
        ),
        (
            [&connect[..], &["--high-water", "1", "--low-water", "5"]].concat(),
            "--low-water: ",
        ),
        (
            vec!["connect", "unix:/x", "--nodelay", "true"],
            "the options of TCP: ",
        ),
        ([&udp[..], &["--ttl", "900"]].concat(), "--ttl: "),
        (
            [&udp[..], &["--receive-buffer", "1"]].concat(),
            "--receive-buffer: ",
        ),
        (
            vec!["watch", "process", "--oom-score-adj", "9999", "true"],
            "--oom-score-adj",
        ),
    ] {
        let ended = ctl(&daemon.socket, &words).await;
        assert!([Some(1), Some(2)].contains(&ended.code), "{ended:?}");
        assert!(ended.stderr.contains(option), "{option}: {ended:?}");
        let fields = ["server-name", "ca-pem", "key-pem", "config:", "spec."];
        for field in fields {
            assert!(!ended.stderr.contains(field), "{ended:?}");
        }
    }
    let nameless = [&connect[..], &["--tls", "--servername", ""]].concat();
    ctl(&daemon.socket, &nameless)
        .await
        .failed(2, &["--servername", "a host is expected"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_write_that_cannot_be_is_told_as_such() {
    let daemon = Daemon::start("").await;
    let on = async |words: &[&str]| ctl(&daemon.socket, words).await;
    on(&["udp", "127.0.0.1:0", "--name", "u"]).await.good();
    on(&["listen", "127.0.0.1:0", "--name", "l"]).await.good();
    on(&["run", "-d", "--name", "p", "--", "sleep", "1000"])
        .await
        .good();
    on(&["write", "u", "x", "--to", "host:7"])
        .await
        .failed(1, &["--to: must be an IP address, not a name"]);
    let wrong = on(&["write", "u", "x", "--to", "nonsense"]).await;
    wrong.failed(2, &["HOST:PORT, unix:PATH or unix:@NAME is expected"]);
    on(&["write", "u", "x", "--to", "fd:3"])
        .await
        .failed(2, &["a descriptor is no address to send to"]);
    on(&[
        "write",
        "u",
        "x",
        "--to",
        "127.0.0.1:9",
        "--interface",
        "nope",
    ])
    .await
    .failed(2, &["there is no interface of this name"]);
    on(&["write", "l", "x", "--source", "127.0.0.1"])
        .await
        .failed(2, &["only a `watch udp` takes --source"]);
    let listener = on(&["write", "l", "x"]).await;
    let told = "write: l: it is a listener, which takes no bytes; write to one of its connections";
    listener.failed(1, &[told]);
    on(&["write", "p", "x"])
        .await
        .failed(1, &["p: ", "run with -i"]);
}
