//! Connecting where the first attempt gets no answer: full backlogs, silent addresses, and a port
//! that would connect to itself.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    Closed, ConnectionSpec, TcpListen, TcpTarget, connection_spec, listener_spec, socket_address,
};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType};

use crate::CONFIG;
use crate::common::{
    Daemon, PATIENCE, Scene, connection, directory, listener, millis, tcp, unix_path, within,
};

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

pub(crate) const BACKENDS: [(&str, &str); 4] = [
    ("", "epoll"),
    ("", "poll"),
    ("", "select"),
    ("proactor", "io_uring"),
];

/// A connection to the name `many`, whose attempts have that delay.
fn many(port: u16, delay: Duration, timeout: Duration) -> ConnectionSpec {
    let target = connection_spec::Target::Tcp(TcpTarget {
        host: "many".into(),
        port: port.into(),
        attempt_delay: Some(delay.try_into().unwrap()),
        ..TcpTarget::default()
    });
    ConnectionSpec {
        connect_timeout: Some(timeout.try_into().unwrap()),
        ..connection(target)
    }
}

/// Returns the addresses of the failed attempts, and their errors.
fn failures(closed: &Closed) -> Vec<(String, String)> {
    let attempts = closed.failed_attempts.iter();
    let pairs = attempts.map(|attempt| {
        let address = attempt.address.clone().unwrap().address;
        let Some(socket_address::Address::Inet(inet)) = address else {
            panic!("{address:?}");
        };
        let error = attempt.error.clone().unwrap();
        assert_eq!(error.step, "connect");
        (inet.ip, error.name)
    });
    pairs.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn attempts_begin_after_the_delay_that_was_asked_for() {
    let dir = directory();
    let hosts = dir.path().join("hosts");
    let holes = Holes::dig(3, &hosts);
    let own_hosts = format!("mount --bind {} /etc/hosts", hosts.display());
    for (policy, backend) in BACKENDS {
        let Some(daemon) = apart("--mount", &own_hosts, "").await else {
            return;
        };
        let mut scene = Scene::new(daemon, policy, backend).await;
        let began = std::time::Instant::now();
        let (delay, hour) = (Duration::from_millis(200), Duration::from_secs(3600));
        let id = connect(&mut scene, many(holes.port, delay, hour)).await;
        scene.recorder.first(id, "connected").await;
        assert!(began.elapsed() >= 3 * delay, "three addresses are silent");
        scene.remove(id).await;

        // One after the other: the first address is silent, so no other is tried, and all are told.
        let id = connect(&mut scene, many(holes.port, hour, delay)).await;
        let closed = scene.closed(id).await;
        let error = closed.error.clone().unwrap();
        assert_eq!(
            (error.name.as_str(), error.step.as_str()),
            ("ETIMEDOUT", "connect")
        );
        let all = (1..=4).map(|n| (format!("127.0.9.{n}"), "ETIMEDOUT".to_owned()));
        assert_eq!(failures(&closed), all.collect::<Vec<_>>());
        scene.finish().await;
    }
}

/// Returns how many connections to that address have no answer, as the kernel lists them.
fn unanswered(to: SocketAddr) -> usize {
    let SocketAddr::V4(to) = to else {
        panic!("{to}");
    };
    let address = format!("{:08X}:{:04X}", u32::from(*to.ip()).swap_bytes(), to.port());
    let is_one = |line: &str| {
        let mut words = line.split_whitespace().skip(2);
        words.next() == Some(&address) && words.next() == Some("02")
    };
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    table.lines().filter(|line| is_one(line)).count()
}

/// Two addresses that are silent, until both answer while the loop does not look.
async fn two_attempts_that_answer_at_once_leave_one_connection(policy: &str, backend: &str) {
    let dir = directory();
    let hosts = dir.path().join("hosts");
    let mut holes = Holes::dig(2, &hosts);
    std::fs::write(&hosts, "127.0.9.1 many\n127.0.9.2 many\n").unwrap();
    let own_hosts = format!("mount --bind {} /etc/hosts", hosts.display());
    let Some(daemon) = apart("--mount", &own_hosts, "").await else {
        return;
    };
    let addresses = [1, 2].map(|n| SocketAddr::from(([127, 0, 9, n], holes.port)));
    let before = addresses.map(unanswered);
    let mut scene = Scene::new(daemon, policy, backend).await;
    let (delay, hour) = (Duration::from_millis(10), Duration::from_secs(3600));
    let id = connect(&mut scene, many(holes.port, delay, hour)).await;
    within("both attempts are under way", async {
        while addresses.map(unanswered) != before.map(|count| count + 1) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    scene.stop().await;
    // With room for all, the kernel takes their next SYN, at most seconds from now.
    let is_listener = |fd: &OwnedFd| rustix::net::sockopt::socket_acceptconn(fd).unwrap();
    let (listeners, fillers): (Vec<_>, _) = holes.sockets.drain(..).partition(is_listener);
    drop::<Vec<OwnedFd>>(fillers);
    let accept = |listener: OwnedFd| {
        rustix::net::listen(&listener, 128).unwrap();
        let listener = TcpListener::from(listener);
        listener.set_nonblocking(false).unwrap();
        tokio::task::spawn_blocking(move || {
            loop {
                let mut peer = listener.accept().unwrap().0;
                // Those that filled the backlog are closed.
                peer.set_read_timeout(Some(Duration::from_millis(1)))
                    .unwrap();
                if peer
                    .read(&mut [0])
                    .is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
                {
                    peer.set_read_timeout(None).unwrap();
                    return peer;
                }
            }
        })
    };
    let mut listeners = listeners.into_iter();
    let [first, second] = [(); 2].map(|()| accept(listeners.next().unwrap()));
    let peers = [first.await.unwrap(), second.await.unwrap()];
    scene.run().await;
    let connected = scene.recorder.first(id, "connected").await;
    let Some(Kind::Connected(connected)) = connected.kind else {
        panic!("{connected:?}");
    };
    let Some(socket_address::Address::Inet(chosen)) = connected.peer.unwrap().address else {
        panic!("TCP has IP addresses");
    };
    let is_chosen = |peer: &TcpStream| peer.local_addr().unwrap().ip().to_string() == chosen.ip;
    let (mut chosen, mut other): (Vec<_>, Vec<_>) = peers.into_iter().partition(is_chosen);
    // The other one closes while the chosen one is open.
    other[0].set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(other[0].read(&mut [0]).unwrap(), 0);
    scene.write(id, b"to one").await;
    scene.write_eof(id).await;
    let mut read = Vec::new();
    chosen[0].read_to_end(&mut read).unwrap();
    assert_eq!(read, b"to one");
    drop(chosen);
    scene.closed(id).await;
    let connections = scene.recorder.kinds(id);
    assert_eq!(
        connections
            .iter()
            .filter(|kind| **kind == "connected")
            .count(),
        1
    );
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn two_attempts_that_answer_at_once_leave_one_connection_on_every_backend() {
    let [epoll, poll, select, io_uring] = BACKENDS;
    let on =
        |(policy, backend)| two_attempts_that_answer_at_once_leave_one_connection(policy, backend);
    tokio::join!(on(epoll), on(poll), on(select), on(io_uring));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_error_of_every_attempt_is_told() {
    let dir = directory();
    let hosts = dir.path().join("hosts");
    // Nobody listens at these addresses, but the port is taken.
    let first = bound(SocketAddr::from(([127, 0, 9, 1], 0)));
    let address = rustix::net::getsockname(&first).unwrap();
    let port = SocketAddr::try_from(address).unwrap().port();
    let _second = bound(SocketAddr::from(([127, 0, 9, 2], port)));
    std::fs::write(&hosts, "127.0.9.1 many\n127.0.9.2 many\n").unwrap();
    let own_hosts = format!("mount --bind {} /etc/hosts", hosts.display());
    for (policy, backend) in BACKENDS {
        let Some(daemon) = apart("--mount", &own_hosts, "").await else {
            return;
        };
        let mut scene = Scene::new(daemon, policy, backend).await;
        let hour = Duration::from_secs(3600);
        let id = connect(&mut scene, many(port, hour, hour)).await;
        let closed = scene.closed(id).await;
        let refused = |ip: &str| (ip.to_owned(), "ECONNREFUSED".to_owned());
        assert_eq!(
            failures(&closed),
            [refused("127.0.9.1"), refused("127.0.9.2")]
        );
        let error = closed.error.unwrap();
        assert!(error.message.contains("127.0.9.2"), "{}", error.message);
        scene.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_link_local_address_keeps_its_interface() {
    let link = "ip link set lo up && ip link add d0 type veth peer name d1 && \
                ip link set d0 up && ip link set d1 up && \
                ip addr add fe80::1/64 dev d0 nodad && ip addr add fe80::2/64 dev d1 nodad";
    for (policy, backend) in BACKENDS {
        let Some(daemon) = apart("--net", link, "").await else {
            return;
        };
        let mut scene = Scene::new(daemon, policy, backend).await;
        let spec = listener(listener_spec::Target::Tcp(TcpListen {
            hosts: vec!["fe80::1%d0".into()],
            ..TcpListen::default()
        }));
        let listener = scene.add(Spec::Listener(spec)).await;
        let port = crate::listeners::port(&scene, listener).await;
        let spec = connection(connection_spec::Target::Tcp(TcpTarget {
            host: "fe80::1%d0".into(),
            port: port.into(),
            local_ip: "fe80::1%d0".into(),
            ..TcpTarget::default()
        }));
        let id = connect(&mut scene, spec).await;
        match scene.recorder.first(id, "connected").await.kind {
            Some(Kind::Connected(connected)) => {
                for address in [connected.local, connected.peer] {
                    let address = address.unwrap().address;
                    let Some(socket_address::Address::Inet(inet)) = address else {
                        panic!("{address:?}");
                    };
                    assert_eq!(inet.ip, "fe80::1%d0");
                }
            }
            other => panic!("{other:?}"),
        }
        let nowhere = connect(&mut scene, tcp("fe80::1%nothing", 80)).await;
        let error = scene.closed(nowhere).await.error.unwrap();
        assert_eq!(
            (error.name.as_str(), error.step.as_str()),
            ("ENODEV", "resolve")
        );
        scene.remove(id).await;
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
