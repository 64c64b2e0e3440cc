//! Posts of clients, and signals to the daemon.

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{Event, PostRequest, SignalSpec};
use nix::libc;
use nix::sys::signal::Signal;
use tonic::Code;

use crate::common::{Scene, post, refused, signals};

on_each_backend!(
    posts_come_in_their_order_and_next_to_each_other,
    a_post_that_is_too_large_is_refused_whole,
    a_signal_comes_with_its_sender,
    a_queued_signal_comes_with_its_value,
    every_watch_of_a_signal_gets_it,
    only_allowed_signals_can_be_watched,
);

async fn posts_come_in_their_order_and_next_to_each_other(scene: &mut Scene) {
    let mut last = 0;
    for round in 0..20_u8 {
        let posts = (0..30).map(|n| post(&format!("{round}.{n}"), &[round, n]));
        let cursor = scene.post(posts.collect()).await;
        assert!(cursor >= last + 30);
        last = cursor;
    }
    scene.recorder.reach(last).await;
    let events = scene.recorder.recording.events();
    let posted: Vec<(u64, Vec<u8>)> = events
        .filter_map(|event| match &event.kind {
            Some(Kind::Posted(posted)) => Some((event.seq, posted.payload.to_vec())),
            _ => None,
        })
        .collect();
    let expected = (0..20).flat_map(|round| (0..30).map(move |n| vec![round, n]));
    assert!(
        posted
            .iter()
            .map(|(_, payload)| payload.clone())
            .eq(expected)
    );
    for one_call in posted.chunks(30) {
        assert_eq!(one_call[29].0 - one_call[0].0, 29);
    }
}

async fn a_post_that_is_too_large_is_refused_whole(scene: &mut Scene) {
    let seq = scene.settle().await;
    let limit = 256 * 1024;
    for (posts, field) in [
        (
            vec![post("", &[]), post("", &vec![0; limit + 1])],
            "posts[1].payload",
        ),
        (vec![post(&"t".repeat(129), &[])], "posts[0].topic"),
        (vec![post("", &[]); 1025], "posts"),
        (vec![], "posts"),
    ] {
        let request = PostRequest {
            r#loop: Some(scene.target.clone()),
            posts,
            ..PostRequest::default()
        };
        let refusal = scene.daemon.events().post(request).await;
        let bad = refused(refusal, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(bad.fields, [field]);
    }
    scene.post(vec![post("", &vec![0; limit])]).await;
    assert_eq!(scene.settle().await, seq + 2);
}

fn signal(event: Event) -> evloopd::proto::Signal {
    match event.kind {
        Some(Kind::Signal(signal)) => signal,
        other => panic!("{other:?}"),
    }
}

async fn a_signal_comes_with_its_sender(scene: &mut Scene) {
    let id = scene.add(signals(&["SIGUSR1"])).await;
    scene.daemon.signal(Signal::SIGUSR1);
    let signal = signal(scene.recorder.first(id, "signal").await);
    assert_eq!((signal.number, signal.count), (libc::SIGUSR1, 1));
    assert_eq!(
        signal.sender_pid,
        i32::try_from(std::process::id()).unwrap()
    );
    assert_eq!(signal.sender_uid, rustix::process::getuid().as_raw());
}

/// Sends a signal with a value, as sigqueue(3) does.
#[allow(unsafe_code)]
fn queue(pid: nix::unistd::Pid, number: i32, value: usize) {
    let value = libc::sigval {
        sival_ptr: std::ptr::without_provenance_mut(value),
    };
    // SAFETY: sigqueue(3) takes plain values.
    assert_eq!(unsafe { libc::sigqueue(pid.as_raw(), number, value) }, 0);
}

async fn a_queued_signal_comes_with_its_value(scene: &mut Scene) {
    let id = scene.add(signals(&["SIGRTMIN+1"])).await;
    let number = libc::SIGRTMIN() + 1;
    for value in 1..=9 {
        queue(scene.daemon.pid(), number, value);
    }
    let what = "the last signal's value";
    scene
        .recorder
        .find(what, |event| {
            matches!(&event.kind, Some(Kind::Signal(s)) if event.watch_id == id && s.value == 9)
        })
        .await;
    let events = scene.recorder.recording.events();
    let values = events.filter_map(|event| match &event.kind {
        Some(Kind::Signal(signal)) => Some((signal.value, signal.count, signal.merged)),
        _ => None,
    });
    // Each has its own event, in the order in which they were sent.
    assert!(values.eq((1..=9).map(|value| (value, 1, false))));
}

async fn every_watch_of_a_signal_gets_it(scene: &mut Scene) {
    let one = scene.add(signals(&["SIGUSR1"])).await;
    let both = scene.add(signals(&["SIGUSR1", "SIGRTMIN+1"])).await;
    scene.daemon.signal(Signal::SIGUSR1);
    scene.recorder.first(one, "signal").await;
    scene.recorder.first(both, "signal").await;
    scene.remove(one).await;
    scene.daemon.signal(Signal::SIGUSR1);
    scene.recorder.nth(both, "signal", 2).await;
}

async fn only_allowed_signals_can_be_watched(scene: &mut Scene) {
    for name in ["SIGUSR2", "SIGTERM", "SIGCHLD", "SIGKILL", "SIGRTMIN+2"] {
        let request = scene.request(signals(&[name]));
        let error = scene.try_add(request).await.unwrap_err();
        let codes = [Code::PermissionDenied, Code::InvalidArgument];
        assert!(codes.contains(&error.code()), "{name}: {error:?}");
    }
    for names in [
        vec![],
        vec!["SIGNOTHING".to_owned()],
        vec!["SIGRTMIN+99".to_owned()],
    ] {
        let request = scene.request(Spec::Signal(SignalSpec { signals: names }));
        let bad = refused(
            scene.try_add(request).await,
            Code::InvalidArgument,
            "INVALID_FIELD",
        );
        assert!(bad.fields[0].starts_with("spec.signal.signals"), "{bad:?}");
    }
    assert_eq!(scene.open_watches().await, 0);
}
