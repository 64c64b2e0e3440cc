//! Names whose servers are silent: whatever needs no name goes on.

use std::collections::HashSet;
use std::net::{TcpListener, UdpSocket};

use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    CloseReason, ConnectionSpec, DatagramSpec, ListenerSpec, TcpListen, listener_spec,
};

use crate::common::{Scene, datagrams_at, directory, exec, inet, listener, millis, tcp, within};
use crate::connecting::apart;

/// The threads of the configuration, of which one principal may use half.
const CONFIG: &str = "[limits]\nresolver_threads = 4\n[children]\nspawn_threads = 1\n";
const SHARE: usize = 2;
/// The port of name servers. The address is one that no real server has.
const SERVER: &str = "127.0.53.53:53";

/// Returns the name that a query asks for, in lower case and without dots.
fn name_of(query: &[u8]) -> String {
    let mut labels = String::new();
    let mut rest = &query[12..];
    while rest[0] > 0 {
        let (label, after) = rest[1..].split_at(rest[0].into());
        labels += &String::from_utf8_lossy(label).to_lowercase();
        rest = after;
    }
    labels
}

/// Returns the names of all queries that have arrived.
fn asked_for(server: &UdpSocket) -> HashSet<String> {
    let mut names = HashSet::new();
    let mut query = [0; 512];
    while let Ok((len, _)) = server.recv_from(&mut query) {
        names.insert(name_of(&query[..len]));
    }
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn silent_name_servers_hold_up_nothing_else() {
    let Ok(server) = UdpSocket::bind(SERVER) else {
        eprintln!("NOT TESTED: a socket on {SERVER} needs root");
        return;
    };
    server.set_nonblocking(true).unwrap();
    let dir = directory();
    let conf = dir.path().join("resolv.conf");
    std::fs::write(
        &conf,
        "nameserver 127.0.53.53\noptions timeout:30 attempts:5\n",
    )
    .unwrap();
    let own_conf = format!("mount --bind {} /etc/resolv.conf", conf.display());
    for (policy, backend) in [
        ("", "epoll"),
        ("", "poll"),
        ("", "select"),
        ("proactor", "io_uring"),
    ] {
        let Some(daemon) = apart("--mount", &own_conf, CONFIG).await else {
            return;
        };
        let mut scene = Scene::new(daemon, policy, backend).await;
        asked_for(&server);
        let mut hanging = Vec::new();
        for n in 0..100 {
            let spec = tcp(&format!("host{n}.silent.test"), 80);
            hanging.push(scene.add(Spec::Connection(spec)).await);
        }
        // Those of listeners and datagram sockets wait among the others; their registrations are the
        // only ones that do.
        let mut registrations = Vec::new();
        for spec in [
            Spec::Listener(named_listener()),
            Spec::Datagram(datagrams_at(inet("local.silent.test", 0))),
            Spec::Datagram(DatagramSpec {
                peer: Some(inet("peer.silent.test", 53)),
                ..DatagramSpec::default()
            }),
        ] {
            let mut watches = scene.daemon.watches();
            let request = scene.request(spec);
            let adding = async move { watches.add_watch(request).await };
            registrations.push(tokio::spawn(adding));
        }
        scene.settle().await;

        let mut request = scene.request(Spec::Process(exec(&["true"])));
        request.name = "child".into();
        within("a child while names are resolved", scene.try_add(request))
            .await
            .unwrap();
        let own = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = own.local_addr().unwrap().port().into();
        let numeric = scene.add(Spec::Connection(tcp("127.0.0.1", port))).await;
        scene.recorder.first(numeric, "connected").await;
        scene.remove(numeric).await;

        // A name that waits for a thread ends in time too.
        let hasty = ConnectionSpec {
            connect_timeout: Some(millis(50)),
            ..tcp("hasty.silent.test", 80)
        };
        let hasty = scene.add(Spec::Connection(hasty)).await;
        let closed = scene.closed(hasty).await;
        assert_eq!(closed.reason(), CloseReason::Error);
        assert_eq!(closed.error.unwrap().step, "resolve");

        let asked = asked_for(&server);
        assert!((1..=SHARE).contains(&asked.len()), "{asked:?}");
        for registration in registrations {
            assert!(!registration.is_finished(), "a silent server answered");
            registration.abort();
        }
        for id in hanging {
            scene.remove(id).await;
        }
    }
}

fn named_listener() -> ListenerSpec {
    listener(listener_spec::Target::Tcp(TcpListen {
        hosts: vec!["listener.silent.test".into()],
        ..TcpListen::default()
    }))
}
