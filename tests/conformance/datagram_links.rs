//! Memberships of multicast groups when their interface goes away and comes back: told, and joined
//! again.

use std::process::Command;

use evloopd::proto::event::Kind;
use evloopd::proto::*;

use crate::common::{Daemon, Scene, by_id, datagrams_at, inet};
use crate::connecting::{BACKENDS, apart};
use crate::datagram_groups::{send_from, to_groups};
use crate::datagrams::{add, port};

/// Groups on the interface `g0`, the first two by its name, the last where the kernel's route leads.
const NAMED: &str = "239.7.7.1";
const SIX: &str = "ff12::7";
const ROUTED: &str = "239.7.7.2";

/// Makes `g0` an interface with a route for groups.
fn up(index: u32) -> String {
    format!(
        "ip link add g0 index {index} type veth peer name g1 index {} && \
         ip addr add 10.9.0.1/24 dev g0 && ip addr add fe80::9/64 dev g0 nodad && \
         ip link set g0 up && ip link set g1 up && ip route add 239.0.0.0/8 dev g0",
        index + 100
    )
}

/// Runs a line of shell in the network of the daemon.
fn run(daemon: &Daemon, line: &str) {
    let network = format!("--net=/proc/{}/ns/net", daemon.pid());
    let ran = Command::new("nsenter")
        .args([&network, "sh", "-c", line])
        .status();
    assert!(ran.unwrap().success(), "{line}");
}

fn group(ip: &str, interface: &str) -> MulticastGroup {
    MulticastGroup {
        ip: ip.into(),
        interface: interface.into(),
    }
}

/// Returns the change of that number, from 1, of a watch with one group.
async fn change(scene: &mut Scene, id: u64, nth: usize) -> GroupChanged {
    match scene.recorder.nth(id, "group_changed", nth).await.kind {
        Some(Kind::GroupChanged(change)) => change,
        other => panic!("{other:?}"),
    }
}

fn told(ip: &str, interface: &str, in_effect: bool, interface_index: u32) -> GroupChanged {
    GroupChanged {
        ip: ip.into(),
        interface: interface.into(),
        in_effect,
        interface_index,
    }
}

async fn status(scene: &Scene, id: u64) -> Vec<(bool, u32)> {
    let groups = scene.datagram(id).await.groups;
    let status = |group: &GroupStatus| (group.in_effect, group.interface_index);
    groups.iter().map(status).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn memberships_outlast_their_interface() {
    let ready = format!("ip link set lo up && {}", up(70));
    for (policy, backend) in BACKENDS {
        let Some(daemon) = apart("--net", &ready, "").await else {
            return;
        };
        let mut scene = Scene::new(daemon, policy, backend).await;
        let member = |ip: &str, interface: &str| DatagramSpec {
            groups: vec![group(ip, interface)],
            ..datagrams_at(inet(if ip.contains(':') { "::" } else { "0.0.0.0" }, 0))
        };
        let named = add(&mut scene, member(NAMED, "g0")).await;
        let six = add(&mut scene, datagrams_at(inet("::", 0))).await;
        let request = JoinGroupRequest {
            r#loop: Some(scene.target.clone()),
            watch: by_id(six),
            group: Some(group(SIX, "g0")),
            ..JoinGroupRequest::default()
        };
        scene.daemon.transports().join_group(request).await.unwrap();
        let routed = add(&mut scene, member(ROUTED, "")).await;
        let all = [(named, NAMED, "g0"), (six, SIX, "g0"), (routed, ROUTED, "")];
        let senders = [
            add(
                &mut scene,
                DatagramSpec {
                    local: Some(inet("0.0.0.0", 0)),
                    ..to_groups()
                },
            )
            .await,
            add(
                &mut scene,
                DatagramSpec {
                    local: Some(inet("::", 0)),
                    ..to_groups()
                },
            )
            .await,
        ];

        // It comes back with another index, then with the same one, then while nobody looks.
        for (turn, (before, after)) in [(70, 71), (71, 71), (71, 72)].into_iter().enumerate() {
            for (id, ip, _) in all {
                let to = inet(ip, port(&scene, id).await);
                let sender = senders[usize::from(ip == SIX)];
                send_from(&scene, sender, to, before).await.unwrap();
                let got = scene.datagram_at(id, turn).await;
                assert_eq!((got.local_ip.as_str(), got.interface_index), (ip, before));
                assert_eq!(status(&scene, id).await, [(true, before)]);
            }
            let stopped = turn == 2;
            if stopped {
                scene.stop().await;
            }
            run(&scene.daemon, "ip link del g0");
            for (id, ip, interface) in all.into_iter().filter(|_| !stopped) {
                let end = change(&mut scene, id, 2 * turn + 1).await;
                assert_eq!(end, told(ip, interface, false, before));
                assert_eq!(status(&scene, id).await, [(false, before)]);
            }
            run(&scene.daemon, &up(after));
            if stopped {
                scene.run().await;
            }
            if backend != "epoll" {
                // The route came after the interface; else it is found within a second.
                run(&scene.daemon, "ip link set g0 mtu 1400");
            }
            for (id, ip, interface) in all {
                let end = change(&mut scene, id, 2 * turn + 1).await;
                assert_eq!(end, told(ip, interface, false, before));
                let begin = change(&mut scene, id, 2 * turn + 2).await;
                assert_eq!(begin, told(ip, interface, true, after));
            }
        }
        for (id, ip, interface) in all {
            let to = inet(ip, port(&scene, id).await);
            let sender = senders[usize::from(ip == SIX)];
            send_from(&scene, sender, to, 72).await.unwrap();
            scene.datagram_at(id, 3).await;
            let request = LeaveGroupRequest {
                r#loop: Some(scene.target.clone()),
                watch: by_id(id),
                group: Some(group(ip, interface)),
                ..LeaveGroupRequest::default()
            };
            scene
                .daemon
                .transports()
                .leave_group(request)
                .await
                .unwrap();
            assert_eq!(status(&scene, id).await, []);
        }
        scene.finish().await;
    }
}

/// A group that is left while its interface is away is not joined again.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_group_that_is_left_meanwhile_stays_left() {
    let ready = format!("ip link set lo up && {}", up(70));
    let Some(daemon) = apart("--net", &ready, "").await else {
        return;
    };
    let mut scene = Scene::new(daemon, "", "epoll").await;
    let spec = DatagramSpec {
        groups: vec![group(NAMED, "g0"), group("239.7.7.3", "g0")],
        ..datagrams_at(inet("0.0.0.0", 0))
    };
    let id = add(&mut scene, spec).await;
    run(&scene.daemon, "ip link del g0");
    change(&mut scene, id, 2).await;
    let request = LeaveGroupRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        group: Some(group(NAMED, "g0")),
        ..LeaveGroupRequest::default()
    };
    scene
        .daemon
        .transports()
        .leave_group(request)
        .await
        .unwrap();
    run(&scene.daemon, &up(71));
    let back = change(&mut scene, id, 3).await;
    assert_eq!(back, told("239.7.7.3", "g0", true, 71));
    assert_eq!(status(&scene, id).await, [(true, 71)]);
    scene.finish().await;
}
