//! Datagrams that the kernel drops while nobody reads: each is counted at once and told once.

use std::net::UdpSocket;

use evloopd::proto::event::Kind;
use evloopd::proto::*;

use crate::common::{Recorder, Scene, within};
use crate::datagrams::{bound, socket};

on_each_backend!(
    what_a_paused_socket_drops_is_told_before_it_is_resumed,
    what_a_socket_has_dropped_is_told_before_its_end,
    what_a_socket_of_a_stopped_loop_has_dropped_is_told_at_its_end,
);

on_each_backend_with_a_small_journal!(
    what_is_dropped_while_the_journal_is_full_is_counted_and_told_later
);

const SENT: u64 = 300;

fn paused() -> DatagramSpec {
    DatagramSpec {
        start_paused: true,
        receive_buffer: 4096,
        ..DatagramSpec::default()
    }
}

fn send(ours: &UdpSocket, port: u16) {
    for _ in 0..SENT {
        ours.send_to(&[0; 1000], ("127.0.0.1", port)).unwrap();
    }
}

/// Returns what was told so far: the sum of all counts, after checking that the totals agree.
pub(crate) fn told(recorder: &Recorder, id: u64) -> u64 {
    let mut sum = 0;
    let of_it = |event: &&Event| event.watch_id == id;
    for event in recorder.recording.events().filter(of_it) {
        if let Some(Kind::DatagramsDropped(dropped)) = &event.kind {
            assert!(dropped.count > 0);
            sum += dropped.count;
            assert_eq!(dropped.total, sum);
        }
    }
    sum
}

async fn what_a_paused_socket_drops_is_told_before_it_is_resumed(scene: &mut Scene) {
    let (id, port) = bound(scene, paused()).await;
    let (ours, _) = socket();
    send(&ours, port);
    let dropped = scene.datagram(id).await.dropped;
    assert!((1..SENT).contains(&dropped), "{dropped}");
    for nth in 1.. {
        // Some may be told before all are sent.
        scene.recorder.nth(id, "datagrams_dropped", nth).await;
        if told(&scene.recorder, id) == dropped {
            break;
        }
    }
    assert_eq!(scene.datagram(id).await.untold_drops, 0);
    assert!(!scene.recorder.kinds(id).contains(&"datagram"));

    scene.pause_reading(id, false).await;
    let arrived = usize::try_from(SENT - dropped).unwrap();
    scene.datagram_at(id, arrived - 1).await;
    scene.remove(id).await;
    scene.closed(id).await;
    assert_eq!(told(&scene.recorder, id), dropped);
}

async fn what_a_socket_has_dropped_is_told_before_its_end(scene: &mut Scene) {
    let (id, port) = bound(scene, paused()).await;
    let (ours, _) = socket();
    send(&ours, port);
    let dropped = scene.datagram(id).await.dropped;
    scene.remove(id).await;
    scene.closed(id).await;
    assert!(dropped > 0);
    assert_eq!(told(&scene.recorder, id), dropped);
}

async fn what_a_socket_of_a_stopped_loop_has_dropped_is_told_at_its_end(scene: &mut Scene) {
    let spec = DatagramSpec {
        start_paused: false,
        ..paused()
    };
    let (id, port) = bound(scene, spec).await;
    let (ours, _) = socket();
    scene.stop().await;
    send(&ours, port);
    let status = scene.datagram(id).await;
    assert!(status.untold_drops > 0);
    assert_eq!(status.untold_drops, status.dropped);
    scene.remove(id).await;
    scene.closed(id).await;
    assert_eq!(told(&scene.recorder, id), status.dropped);
    let kinds = scene.recorder.kinds(id);
    let end = kinds.iter().position(|kind| *kind == "closed").unwrap();
    assert_eq!(kinds[end - 1], "datagrams_dropped");
    scene.run().await;
}

async fn what_is_dropped_while_the_journal_is_full_is_counted_and_told_later(scene: &mut Scene) {
    let mut slow = scene.slow_reader().await;
    let spec = DatagramSpec {
        start_paused: false,
        ..paused()
    };
    let (id, port) = bound(scene, spec).await;
    let (ours, _) = socket();
    let mut sent = 0;
    while scene.get(id).await.source_pause.is_none() {
        send(&ours, port);
        sent += SENT;
    }
    let before = scene.datagram(id).await;
    send(&ours, port);
    sent += SENT;
    let status = scene.datagram(id).await;
    assert!(status.dropped > before.dropped);
    assert!(status.untold_drops > 0, "{status:?}");
    // Whatever has come or was dropped is told in the end.
    let all_told = async {
        let mut arrived = 0;
        while arrived + told(&slow, id) < sent {
            assert!(slow.step().await, "the stream ended");
            scene.acknowledge(&slow).await;
            let kinds = slow.kinds(id);
            arrived = kinds.iter().filter(|kind| **kind == "datagram").count() as u64;
        }
        arrived
    };
    let arrived = within("all that was sent", all_told).await;
    assert_eq!(arrived + told(&slow, id), sent);
}
