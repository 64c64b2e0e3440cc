//! Connecting where the first attempt gets no answer: full backlogs, silent addresses, and a port
//! that would connect to itself.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{ConnectionSpec, connection_spec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType};

use crate::CONFIG;
use crate::common::{Daemon, Scene, connection, directory, millis, tcp, unix_path};

on_each_backend!(a_full_backlog_is_waited_for);

fn socket(family: AddressFamily) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(family, SocketType::STREAM, flags, None).unwrap()
}

async fn connect(scene: &mut Scene, spec: ConnectionSpec) -> u64 {
    scene.add(Spec::Connection(spec)).await
}

async fn a_full_backlog_is_waited_for(scene: &mut Scene) {
    let path = scene.daemon.dir.path().join("full.sock");
    let address = SocketAddrUnix::new(&path).unwrap();
    let listener = socket(AddressFamily::UNIX);
    rustix::net::bind(&listener, &address).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let mut filling = Vec::new();
    loop {
        let one = socket(AddressFamily::UNIX);
        match rustix::net::connect(&one, &address) {
            Ok(()) => filling.push(one),
            Err(errno) => break assert_eq!(errno, Errno::AGAIN),
        }
    }
    let to = || connection(connection_spec::Target::Unix(unix_path(&path)));
    let hasty = ConnectionSpec {
        connect_timeout: Some(millis(200)),
        ..to()
    };
    let hasty = connect(scene, hasty).await;
    let error = scene.closed(hasty).await.error.unwrap();
    assert_eq!(
        (error.name.as_str(), error.step.as_str()),
        ("ETIMEDOUT", "connect")
    );

    let patient = connect(scene, to()).await;
    scene.settle().await;
    assert_eq!(scene.recorder.kinds(patient), ["added"]);
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(false).unwrap();
    for _ in 0..filling.len() {
        listener.accept().unwrap();
    }
    scene.recorder.first(patient, "connected").await;
}

/// Starts a daemon in namespaces of its own, prepared by a line of shell. `None` where that is not
/// permitted, which is printed.
pub(crate) async fn apart(unshare: &str, ready: &str, config: &str) -> Option<Daemon> {
    let trial = Command::new("unshare")
        .args([unshare, "sh", "-c", ready])
        .status();
    if !trial.is_ok_and(|status| status.success()) {
        eprintln!(
            "NOT TESTED: `unshare {unshare}` and `{ready}` need root and util-linux, iproute2"
        );
        return None;
    }
    let line = format!("{ready} && exec \"$@\"");
    let launcher = ["unshare", unshare, "sh", "-c", &line, "sh"];
    let config = format!("{CONFIG}{config}");
    Some(Daemon::start_by(&launcher, &config).await)
}

fn bound(address: SocketAddr) -> OwnedFd {
    let socket = socket(AddressFamily::INET);
    rustix::net::bind(&socket, &address).unwrap();
    socket
}

/// A name whose addresses are all silent but the last: they have listeners with a full backlog.
struct Holes {
    port: u16,
    /// The listeners and the connections that fill their backlogs. While these are open, the
    /// addresses are silent.
    sockets: Vec<OwnedFd>,
}

impl Holes {
    fn dig(count: u8, hosts: &Path) -> Self {
        let mut hole = Self {
            port: 0,
            sockets: Vec::new(),
        };
        let mut lines = String::new();
        for n in 1..=count + 1 {
            let listener = bound(SocketAddr::from(([127, 0, 9, n], hole.port)));
            let address = rustix::net::getsockname(&listener).unwrap();
            hole.port = SocketAddr::try_from(address.clone()).unwrap().port();
            rustix::net::listen(&listener, if n > count { 128 } else { 0 }).unwrap();
            if n <= count {
                hole.fill(&address);
            }
            hole.sockets.push(listener);
            lines += &format!("127.0.9.{n} many\n");
        }
        std::fs::write(hosts, lines).unwrap();
        hole
    }

    fn fill(&mut self, address: &SocketAddrAny) {
        for _ in 0..4 {
            let one = socket(AddressFamily::INET);
            let _ = rustix::net::connect(&one, address);
            self.sockets.push(one);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn silent_addresses_do_not_block_one_that_answers() {
    let dir = directory();
    let hosts = dir.path().join("hosts");
    let holes = Holes::dig(3, &hosts);
    let own_hosts = format!("mount --bind {} /etc/hosts", hosts.display());
    // One policy allows only one source: the oldest attempt then gives way to the next.
    let config = "[policy.one]\nextends = \"default\"\nmax_sources = 1\n";
    for (policy, backend) in [
        ("", "epoll"),
        ("", "poll"),
        ("", "select"),
        ("proactor", "io_uring"),
        ("one", "epoll"),
    ] {
        let Some(daemon) = apart("--mount", &own_hosts, config).await else {
            return;
        };
        let mut scene = Scene::new(daemon, policy, backend).await;
        let id = connect(&mut scene, tcp("many", holes.port.into())).await;
        scene.recorder.first(id, "connected").await;
        scene.remove(id).await;

        // The sources of the failed attempts can be used again.
        let id = connect(&mut scene, tcp("127.0.9.4", holes.port.into())).await;
        scene.recorder.first(id, "connected").await;
        scene.remove(id).await;

        let hasty = ConnectionSpec {
            connect_timeout: Some(
                prost_types::Duration::try_from(Duration::from_millis(10)).unwrap(),
            ),
            ..tcp("127.0.9.1", holes.port.into())
        };
        let id = connect(&mut scene, hasty).await;
        assert_eq!(scene.closed(id).await.error.unwrap().name, "ETIMEDOUT");
        scene.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connection_to_its_own_port_is_refused() {
    let two_ports = "ip link set lo up && \
                     echo 40000 40001 > /proc/sys/net/ipv4/ip_local_port_range";
    for (policy, backend) in [
        ("", "epoll"),
        ("", "poll"),
        ("", "select"),
        ("proactor", "io_uring"),
    ] {
        let Some(daemon) = apart("--net", two_ports, "").await else {
            return;
        };
        let mut scene = Scene::new(daemon, policy, backend).await;
        for port in [40_000, 40_001, 40_000, 40_001] {
            let id = connect(&mut scene, tcp("127.0.0.1", port)).await;
            let error = scene.closed(id).await.error.unwrap();
            assert_eq!(
                (error.name.as_str(), error.step.as_str()),
                ("ECONNREFUSED", "connect")
            );
        }
        scene.finish().await;
    }
}
