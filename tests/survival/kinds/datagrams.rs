//! Datagram sockets.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use evloopd::proto::event::Kind;
use evloopd::proto::socket_address::Address;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Scene, by_id, directory, within};
use crate::{BACKENDS, murder, next_life, resume, start, the_loop};

fn inet(port: u16) -> SocketAddress {
    SocketAddress {
        address: Some(Address::Inet(InetAddress {
            ip: "127.0.0.1".into(),
            port: port.into(),
        })),
    }
}

fn unix(path: &std::path::Path) -> SocketAddress {
    SocketAddress {
        address: Some(Address::Unix(UnixAddress {
            name: Some(unix_address::Name::Path(path.to_str().unwrap().into())),
        })),
    }
}

fn bound(local: SocketAddress) -> DatagramSpec {
    DatagramSpec {
        local: Some(local),
        ..DatagramSpec::default()
    }
}

async fn status(scene: &Scene, id: u64) -> DatagramStatus {
    match scene.get(id).await.status {
        Some(watch::Status::Datagram(status)) => status,
        other => panic!("{other:?}"),
    }
}

async fn port(scene: &Scene, id: u64) -> u16 {
    match status(scene, id).await.local.unwrap().address {
        Some(Address::Inet(inet)) => inet.port.try_into().unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn send(scene: &Scene, id: u64, to: SocketAddress, data: &[u8]) -> u64 {
    let request = SendToRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        data: data.to_vec().into(),
        peer: Some(to),
        ..SendToRequest::default()
    };
    let sent = scene.daemon.transports().send_to(request).await.unwrap();
    sent.into_inner().buffered_bytes
}

fn datagram(event: &Event) -> Option<&[u8]> {
    match &event.kind {
        Some(Kind::Datagram(datagram)) => Some(&datagram.data),
        _ => None,
    }
}

fn dropped(event: &Event) -> Option<&DatagramsDropped> {
    match &event.kind {
        Some(Kind::DatagramsDropped(dropped)) => Some(dropped),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_socket_its_groups_and_what_waits_in_it_are_there_in_the_next_life() {
    for (policy, backend) in BACKENDS {
        let mut scene = Scene::new(start().await, policy, backend).await;
        let group = MulticastGroup {
            ip: "239.255.43.21".into(),
            interface: "lo".into(),
        };
        let spec = DatagramSpec {
            max_size: 1000,
            groups: vec![group.clone()],
            ..bound(inet(0))
        };
        let id = scene.add(Spec::Datagram(spec)).await;
        let to = ("127.0.0.1", port(&scene, id).await);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let own = inet(client.local_addr().unwrap().port());
        client.send_to(b"before", to).unwrap();
        scene.recorder.first(id, "datagram").await;
        assert_eq!(send(&scene, id, own.clone(), b"answer").await, 0);
        let before = status(&scene, id).await;
        assert_eq!((before.received, before.sent), (1, 1));
        let told = the_loop(&scene).await.journal.unwrap();
        let life = scene.daemon.status().await.keeper.unwrap().life;
        let daemon = Pid::from_raw(scene.daemon.info().await.pid);
        scene.daemon.signal(Signal::SIGSTOP);
        kill(daemon, Signal::SIGKILL).unwrap();
        client.send_to(b"meanwhile", to).unwrap();
        scene.daemon.signal(Signal::SIGCONT);
        next_life(&scene.daemon, life).await;
        let mut recorder = resume(&scene, &told.epoch, told.newest_seq).await;
        let event = recorder.first(id, "datagram").await;
        assert_eq!(datagram(&event), Some(&b"meanwhile"[..]));
        assert_eq!(send(&scene, id, own, b"again").await, 0);
        let mut data = [0; 64];
        for wanted in [&b"answer"[..], b"again"] {
            let length = client.recv(&mut data).unwrap();
            assert_eq!(&data[..length], wanted);
        }
        murder(&scene.daemon).await;
        let now = status(&scene, id).await;
        let wanted = DatagramStatus {
            received: 2,
            sent: 2,
            ..before
        };
        assert_eq!(now, wanted);
        assert_eq!(now.groups.len(), 1);
        assert!(now.groups[0].in_effect);
        // Nothing was under way.
        let newest = the_loop(&scene).await.journal.unwrap().newest_seq;
        let mut recorder = resume(&scene, &told.epoch, 0).await;
        recorder.reach(newest).await;
        let kinds = recorder.kinds(id);
        assert!(!kinds.contains(&"datagrams_dropped"), "{kinds:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_datagram_is_told_at_most_once_and_gaps_come_with_the_event() {
    const DEATHS: usize = 10;
    for (policy, backend) in BACKENDS {
        let mut scene = Scene::new(start().await, policy, backend).await;
        let spec = DatagramSpec {
            receive_buffer: 8 << 20,
            ..bound(inet(0))
        };
        let id = scene.add(Spec::Datagram(spec)).await;
        let epoch = the_loop(&scene).await.journal.unwrap().epoch;
        let to = ("127.0.0.1", port(&scene, id).await);
        let over = Arc::new(AtomicBool::new(false));
        let sender = {
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                let client = UdpSocket::bind("127.0.0.1:0").unwrap();
                let mut number = 0_u64;
                while !over.load(Ordering::Acquire) {
                    client.send_to(&number.to_be_bytes(), to).unwrap();
                    number += 1;
                    // The buffer has room for what comes while no daemon lives.
                    std::thread::sleep(Duration::from_micros(50));
                }
                client.send_to(b"last", to).unwrap();
                number
            })
        };
        for _ in 0..DEATHS {
            murder(&scene.daemon).await;
        }
        over.store(true, Ordering::Release);
        let sent = sender.join().unwrap();
        let mut recorder = resume(&scene, &epoch, 0).await;
        let last = |event: &Event| datagram(event) == Some(b"last");
        recorder.find("the last one", last).await;
        // What the kernel has dropped is told after what was read.
        let drops = status(&scene, id).await.dropped;
        let newest = the_loop(&scene).await.journal.unwrap().newest_seq;
        recorder.reach(newest).await;
        let (mut told, mut missing, mut in_doubt) = (BTreeSet::new(), 0, 0);
        let mut next = 0;
        for event in recorder.recording.events().filter(|e| e.watch_id == id) {
            if let Some(dropped) = dropped(event) {
                in_doubt += dropped.in_doubt;
                assert_eq!(dropped.unsent, 0);
            }
            let Some(data) = datagram(event).filter(|data| data.len() == 8) else {
                continue;
            };
            let number = u64::from_be_bytes(data.try_into().unwrap());
            assert!(told.insert(number), "{number} came twice");
            assert!(number >= next, "{number} came late");
            missing += number - next;
            next = number + 1;
        }
        missing += sent - next;
        assert!(
            missing <= in_doubt + drops,
            "{missing} of {in_doubt} and {drops}"
        );
        assert!(sent > 100, "{sent}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_waits_to_be_sent_is_told_as_lost_and_a_socket_file_is_removed_in_the_end() {
    for (policy, backend) in BACKENDS {
        let dir = directory();
        let (own, other) = (dir.path().join("own"), dir.path().join("other"));
        let mut scene = Scene::new(start().await, policy, backend).await;
        let receiver = UnixDatagram::bind(&other).unwrap();
        let id = scene.add(Spec::Datagram(bound(unix(&own)))).await;
        let mut number = 0_u64;
        let mut waiting = 0;
        // Until the receiver's queue is full, and then some.
        while waiting < 5 {
            let buffered = send(&scene, id, unix(&other), &number.to_be_bytes()).await;
            waiting += u64::from(buffered > 0);
            number += 1;
        }
        let told = the_loop(&scene).await.journal.unwrap();
        murder(&scene.daemon).await;
        let mut recorder = resume(&scene, &told.epoch, told.newest_seq).await;
        let event = recorder.first(id, "datagrams_dropped").await;
        let dropped = dropped(&event).unwrap();
        assert_eq!(
            (dropped.unsent, dropped.count, dropped.in_doubt),
            (waiting, 0, 0)
        );
        murder(&scene.daemon).await;
        assert_eq!(status(&scene, id).await.buffered_bytes, 0);
        // None was sent twice, nor is sent now.
        let mut data = [0; 8];
        for wanted in 0..number - waiting {
            assert_eq!(receiver.recv(&mut data).unwrap(), 8);
            assert_eq!(u64::from_be_bytes(data), wanted);
        }
        assert_eq!(send(&scene, id, unix(&other), b"last").await, 0);
        assert_eq!(receiver.recv(&mut data).unwrap(), 4);
        // The peer knows the socket by its file.
        receiver.send_to(b"to you", &own).unwrap();
        let mut recorder = resume(&scene, &told.epoch, 0).await;
        let event = recorder.first(id, "datagram").await;
        assert_eq!(datagram(&event), Some(&b"to you"[..]));
        assert!(own.exists());
        let request = RemoveWatchRequest {
            r#loop: Some(scene.target.clone()),
            watch: by_id(id),
            ..RemoveWatchRequest::default()
        };
        scene.daemon.watches().remove_watch(request).await.unwrap();
        within("its removal", async {
            while own.exists() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn groups_that_were_joined_or_left_are_known_as_soon_as_that_is_answered() {
    let mut scene = Scene::new(start().await, "", "").await;
    let id = scene.add(Spec::Datagram(bound(inet(0)))).await;
    // Nobody wakes the watch while its loop is stopped.
    scene.stop().await;
    let groups = ["239.255.43.22", "239.255.43.23"];
    for group in groups {
        scene.join(id, group).await.unwrap();
    }
    let shown = async |scene: &Scene| {
        let groups = scene.datagram(id).await.groups.into_iter();
        let groups = groups.filter_map(|group| Some(group.group?.ip));
        groups.collect::<Vec<_>>()
    };
    assert_eq!(shown(&scene).await, groups);
    murder(&scene.daemon).await;
    assert_eq!(shown(&scene).await, groups);
    scene.leave(id, groups[0]).await.unwrap();
    murder(&scene.daemon).await;
    assert_eq!(shown(&scene).await, groups[1..]);
}
