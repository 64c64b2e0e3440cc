//! Options of TCP sockets, and where connections come from.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    ConnectionSpec, ListenerSpec, TcpKeepAlive, TcpOptions, TcpTarget, connection_spec,
    listener_spec, socket_address,
};
use rustix::net::sockopt;
use tonic::Code;

use crate::common::{
    Scene, adopted, connection, hang_up, listener, millis, refused, seconds, tcp, tcp_listener,
    unix_path,
};
use crate::listeners::{accepted, listen, port, take};

on_each_backend!(
    options_are_on_the_socket_of_a_connection,
    accepted_connections_have_the_options_of_their_listener,
    options_of_an_adopted_socket_are_as_asked,
    a_connection_comes_from_its_local_address_and_port,
    a_local_address_of_the_other_family_fails_by_name,
    options_out_of_range_are_refused,
);

fn all() -> TcpOptions {
    TcpOptions {
        nodelay: Some(false),
        keep_alive: Some(TcpKeepAlive {
            idle: Some(seconds(17)),
            interval: Some(seconds(5)),
            count: 3,
        }),
        user_timeout: Some(millis(4321)),
    }
}

fn assert_all(socket: &TcpStream) {
    assert!(!sockopt::tcp_nodelay(socket).unwrap());
    assert!(sockopt::socket_keepalive(socket).unwrap());
    let second = Duration::from_secs(1);
    assert_eq!(sockopt::tcp_keepidle(socket).unwrap(), 17 * second);
    assert_eq!(sockopt::tcp_keepintvl(socket).unwrap(), 5 * second);
    assert_eq!(sockopt::tcp_keepcnt(socket).unwrap(), 3);
    assert_eq!(sockopt::tcp_user_timeout(socket).unwrap(), 4321);
}

fn assert_defaults(socket: &TcpStream) {
    assert!(sockopt::tcp_nodelay(socket).unwrap());
    assert!(!sockopt::socket_keepalive(socket).unwrap());
    assert_eq!(sockopt::tcp_user_timeout(socket).unwrap(), 0);
}

async fn options_are_on_the_socket_of_a_connection(scene: &mut Scene) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = tcp("127.0.0.1", server.local_addr().unwrap().port().into());
    let given = ConnectionSpec {
        tcp_options: Some(all()),
        ..to.clone()
    };
    for (spec, check) in [(given, assert_all as fn(&TcpStream)), (to, assert_defaults)] {
        let id = scene.add(Spec::Connection(spec)).await;
        scene.recorder.first(id, "connected").await;
        let (_peer, _) = server.accept().unwrap();
        check(&take(scene, id).await);
    }
}

async fn accepted_connections_have_the_options_of_their_listener(scene: &mut Scene) {
    let given = ListenerSpec {
        tcp_options: Some(all()),
        ..tcp_listener()
    };
    for (spec, check) in [
        (given, assert_all as fn(&TcpStream)),
        (tcp_listener(), assert_defaults),
    ] {
        let id = listen(scene, spec).await;
        let port = port(scene, id).await;
        let _ours = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let connection = accepted(scene, id, 1).await;
        scene.recorder.first(connection, "connected").await;
        check(&take(scene, connection).await);
    }
}

async fn options_of_an_adopted_socket_are_as_asked(scene: &mut Scene) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    for options in [None, Some(all())] {
        let ours = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let (peer, _) = server.accept().unwrap();
        let slot = scene.daemon.handover().await.give(&ours);
        let spec = ConnectionSpec {
            tcp_options: options,
            ..adopted(slot)
        };
        let id = scene.add(Spec::Connection(spec)).await;
        if options.is_some() {
            assert_all(&ours);
        } else {
            assert!(!sockopt::tcp_nodelay(&ours).unwrap(), "left as it was");
        }
        drop((ours, peer));
        scene.closed(id).await;
    }
    let (ours, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let slot = scene.daemon.handover().await.give(&ours);
    let request = scene.request(Spec::Connection(ConnectionSpec {
        tcp_options: Some(all()),
        ..adopted(slot)
    }));
    let error = scene.try_add(request).await.unwrap_err();
    let refusal = crate::common::refusal(&error);
    assert_eq!(refusal.word("step"), "setsockopt");
}

/// Returns a port of 127.0.0.x that nothing uses.
fn free_port(ip: Ipv4Addr) -> u16 {
    let socket = TcpListener::bind((ip, 0)).unwrap();
    hang_up(&socket);
    socket.local_addr().unwrap().port()
}

async fn a_connection_comes_from_its_local_address_and_port(scene: &mut Scene) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = server.local_addr().unwrap().port();
    let from = Ipv4Addr::new(127, 0, 8, 1);
    let free = free_port(from);
    // The second connection finds the first one's port in TIME_WAIT, or still in use by the peer.
    for (ip, local_port) in [("127.0.8.1", free), ("127.0.8.1", free), ("127.0.8.1", 0)] {
        let spec = connection(connection_spec::Target::Tcp(TcpTarget {
            host: "127.0.0.1".into(),
            port: to.into(),
            local_ip: ip.into(),
            local_port: local_port.into(),
            ..TcpTarget::default()
        }));
        let id = scene.add(Spec::Connection(spec)).await;
        let (peer, seen) = server.accept().unwrap();
        assert_eq!(seen.ip(), from);
        assert!(local_port == 0 || seen.port() == local_port);
        match scene.recorder.first(id, "connected").await.kind {
            Some(Kind::Connected(connected)) => {
                let local = connected.local.unwrap().address;
                let Some(socket_address::Address::Inet(local)) = local else {
                    panic!("{local:?}");
                };
                assert_eq!((local.ip.as_str(), local.port), (ip, seen.port().into()));
            }
            other => panic!("{other:?}"),
        }
        // The daemon ends first, so that its side is the one in TIME_WAIT.
        scene.remove(id).await;
        drop(peer);
    }
}

async fn a_local_address_of_the_other_family_fails_by_name(scene: &mut Scene) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = connection(connection_spec::Target::Tcp(TcpTarget {
        host: "127.0.0.1".into(),
        port: server.local_addr().unwrap().port().into(),
        local_ip: "::1".into(),
        ..TcpTarget::default()
    }));
    let id = scene.add(Spec::Connection(spec)).await;
    let error = scene.closed(id).await.error.unwrap();
    assert_eq!(
        (error.step.as_str(), error.name.as_str()),
        ("bind", "EAFNOSUPPORT")
    );
}

async fn options_out_of_range_are_refused(scene: &mut Scene) {
    let target = |change: fn(&mut TcpTarget)| {
        let mut target = TcpTarget {
            host: "localhost".into(),
            port: 80,
            ..TcpTarget::default()
        };
        change(&mut target);
        Spec::Connection(connection(connection_spec::Target::Tcp(target)))
    };
    let options = |change: fn(&mut TcpOptions)| {
        let mut options = all();
        change(&mut options);
        Spec::Connection(ConnectionSpec {
            tcp_options: Some(options),
            ..tcp("localhost", 80)
        })
    };
    fn keep_alive(options: &mut TcpOptions) -> &mut TcpKeepAlive {
        options.keep_alive.as_mut().unwrap()
    }
    let path = std::path::Path::new("/tmp/nobody.sock");
    for (spec, field) in [
        (
            target(|t| t.local_ip = "localhost".into()),
            "spec.connection.tcp.local_ip",
        ),
        (
            target(|t| t.local_port = 65_536),
            "spec.connection.tcp.local_port",
        ),
        (
            target(|t| t.attempt_delay = Some(millis(9))),
            "spec.connection.tcp.attempt_delay",
        ),
        (
            target(|t| t.interleave = Some(17)),
            "spec.connection.tcp.interleave",
        ),
        (
            options(|o| o.user_timeout = Some(millis(0))),
            "spec.connection.tcp_options.user_timeout",
        ),
        (
            options(|o| keep_alive(o).idle = Some(millis(1500))),
            "spec.connection.tcp_options.keep_alive.idle",
        ),
        (
            options(|o| keep_alive(o).interval = Some(seconds(9 * 3600 + 1))),
            "spec.connection.tcp_options.keep_alive.interval",
        ),
        (
            options(|o| keep_alive(o).count = 128),
            "spec.connection.tcp_options.keep_alive.count",
        ),
        (
            Spec::Connection(ConnectionSpec {
                tcp_options: Some(all()),
                ..connection(connection_spec::Target::Unix(unix_path(path)))
            }),
            "spec.connection.tcp_options",
        ),
        (
            Spec::Listener(ListenerSpec {
                tcp_options: Some(all()),
                ..listener(listener_spec::Target::Unix(unix_path(path)))
            }),
            "spec.listener.tcp_options",
        ),
    ] {
        let request = scene.request(spec);
        let bad = refused(
            scene.try_add(request).await,
            Code::InvalidArgument,
            "INVALID_FIELD",
        );
        assert_eq!(bad.fields, [field]);
    }
    assert_eq!(scene.open_watches().await, 0);
    // The limits themselves are allowed.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let id = scene
        .add(Spec::Connection(connection(connection_spec::Target::Tcp(
            TcpTarget {
                host: SocketAddr::from(([127, 0, 0, 1], port)).ip().to_string(),
                port: port.into(),
                attempt_delay: Some(seconds(3600)),
                interleave: Some(16),
                ..TcpTarget::default()
            },
        ))))
        .await;
    scene.recorder.first(id, "connected").await;
    let most = ConnectionSpec {
        tcp_options: Some(TcpOptions {
            nodelay: Some(true),
            keep_alive: Some(TcpKeepAlive {
                idle: Some(seconds(9 * 3600)),
                interval: Some(seconds(9 * 3600)),
                count: 127,
            }),
            user_timeout: Some(seconds(24 * 3600)),
        }),
        ..tcp("127.0.0.1", port.into())
    };
    let most = scene.add(Spec::Connection(most)).await;
    scene.recorder.first(most, "connected").await;
    for id in [id, most] {
        scene.remove(id).await;
    }
}
