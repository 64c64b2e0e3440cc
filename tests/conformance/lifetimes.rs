//! Lifetimes: leases that are kept alive or run out, and what happens at the end.

use std::time::Duration;

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    AddWatchRequest, AtEnd, CloseReason, KeepAliveRequest, Lifetime, LifetimeEnd, LoopState,
    NewEventLoopRequest, ProcessSpec, UpdateCause, exited,
};
use tokio::net::TcpStream;
use tonic::{Code, Status};

use crate::common::{
    Recorder, Scene, after, by_id, lasting, loop_named, millis, never, refused, seconds, shell,
    tcp_listener,
};
use crate::listeners::port;

on_each_backend!(
    a_watch_whose_lease_runs_out_closes_and_says_so,
    a_lease_that_is_renewed_goes_on,
    at_the_end_of_its_lease_a_child_is_killed_or_kept,
    a_watch_that_is_kept_says_so,
    a_lease_runs_out_on_a_stopped_loop_too,
    connections_end_with_the_lease_of_their_listener,
    a_lease_is_checked,
    a_loop_whose_lease_runs_out_closes_and_says_why,
    a_loop_that_is_kept_says_so,
);

pub(crate) fn leased(request: AddWatchRequest, lease: prost_types::Duration) -> AddWatchRequest {
    AddWatchRequest {
        lifetime: Lifetime::Lease.into(),
        lease: Some(lease),
        ..request
    }
}

async fn add(scene: &mut Scene, request: AddWatchRequest) -> u64 {
    scene
        .try_add(request)
        .await
        .unwrap()
        .watch
        .unwrap()
        .watch_id
}

async fn keep_alive(
    scene: &Scene,
    id: Option<u64>,
    lease: Option<prost_types::Duration>,
) -> Result<Option<prost_types::Duration>, Status> {
    let request = KeepAliveRequest {
        r#loop: Some(scene.target.clone()),
        watch: id.and_then(by_id),
        lease,
    };
    let answer = scene.daemon.loops().keep_alive(request).await?;
    Ok(answer.into_inner().lease)
}

async fn a_watch_whose_lease_runs_out_closes_and_says_so(scene: &mut Scene) {
    let request = leased(scene.request(never()), millis(100));
    let id = add(scene, request).await;
    let watch = scene.get(id).await;
    assert_eq!(watch.lifetime(), Lifetime::Lease);
    assert_eq!(watch.lease, Some(millis(100)));
    assert_eq!(watch.at_lifetime_end(), LifetimeEnd::Close);
    let added = scene.recorder.first(id, "added").await.monotonic_ns;
    assert_eq!(scene.closed(id).await.reason(), CloseReason::LeaseExpired);
    let closed = scene.recorder.first(id, "closed").await.monotonic_ns;
    assert!(closed - added >= 100_000_000);
    assert_eq!(scene.get(id).await.lease_left, None);
}

async fn a_lease_that_is_renewed_goes_on(scene: &mut Scene) {
    let request = leased(scene.request(never()), millis(300));
    let id = add(scene, request).await;
    // Twice as long as the lease.
    for _ in 0..6 {
        let pause = scene.add(after(Duration::from_millis(100))).await;
        scene.closed(pause).await;
        assert_eq!(
            keep_alive(scene, Some(id), None).await.unwrap(),
            Some(millis(300))
        );
    }
    assert_eq!(scene.recorder.kinds(id), ["added"]);
    let longer = keep_alive(scene, Some(id), Some(seconds(3600)))
        .await
        .unwrap();
    assert_eq!(longer, Some(seconds(3600)));
    let left = scene.get(id).await.lease_left.unwrap();
    assert!((3500..=3600).contains(&left.seconds), "{left:?}");
    keep_alive(scene, Some(id), Some(millis(100)))
        .await
        .unwrap();
    assert_eq!(scene.closed(id).await.reason(), CloseReason::LeaseExpired);
    let late = keep_alive(scene, Some(id), None).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition);
}

async fn at_the_end_of_its_lease_a_child_is_killed_or_kept(scene: &mut Scene) {
    let spec = ProcessSpec {
        at_end: AtEnd::Keep.into(),
        ..shell("exec sleep 1000")
    };
    for at_end in [LifetimeEnd::Close, LifetimeEnd::KillTree] {
        let request = AddWatchRequest {
            at_lifetime_end: at_end.into(),
            ..leased(scene.request(Spec::Process(spec.clone())), millis(100))
        };
        let id = add(scene, request).await;
        assert_eq!(scene.closed(id).await.reason(), CloseReason::LeaseExpired);
        let status = scene.process(id).await.exited.unwrap().status.unwrap();
        match at_end {
            LifetimeEnd::Close => assert!(matches!(status, exited::Status::Unknown(_))),
            _ => assert_eq!(status, exited::Status::Signal(nix::libc::SIGTERM)),
        }
        if at_end == LifetimeEnd::Close {
            // The child that was left running.
            let pid = nix::unistd::Pid::from_raw(scene.process(id).await.pid);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
    }
}

async fn a_watch_that_is_kept_says_so(scene: &mut Scene) {
    let request = AddWatchRequest {
        at_lifetime_end: LifetimeEnd::Keep.into(),
        ..leased(scene.request(never()), millis(100))
    };
    let id = add(scene, request).await;
    match scene.recorder.first(id, "updated").await.kind {
        Some(Kind::Updated(updated)) => {
            assert_eq!(updated.cause(), UpdateCause::LeaseExpired);
            assert_eq!(updated.fields, ["lifetime"]);
        }
        other => panic!("{other:?}"),
    }
    let watch = scene.get(id).await;
    assert_eq!((watch.lifetime(), watch.lease), (Lifetime::Daemon, None));
    keep_alive(scene, Some(id), None).await.unwrap_err();
    scene.remove(id).await;
    scene.settle().await;
    assert_eq!(
        scene.recorder.kinds(id),
        ["added", "updated", "closed", "removed"]
    );
}

async fn a_lease_runs_out_on_a_stopped_loop_too(scene: &mut Scene) {
    let request = leased(scene.request(never()), millis(100));
    let id = add(scene, request).await;
    scene.stop().await;
    assert_eq!(scene.closed(id).await.reason(), CloseReason::LeaseExpired);
    scene.run().await;
}

async fn connections_end_with_the_lease_of_their_listener(scene: &mut Scene) {
    let request = leased(scene.request(Spec::Listener(tcp_listener())), seconds(3600));
    let id = add(scene, request).await;
    let client = TcpStream::connect(("127.0.0.1", port(scene, id).await))
        .await
        .unwrap();
    let accepted = match scene.recorder.first(id, "accepted").await.kind {
        Some(Kind::Accepted(accepted)) => accepted.watch_id,
        other => panic!("{other:?}"),
    };
    keep_alive(scene, Some(id), Some(millis(100)))
        .await
        .unwrap();
    assert_eq!(scene.closed(id).await.reason(), CloseReason::LeaseExpired);
    assert_eq!(
        scene.closed(accepted).await.reason(),
        CloseReason::LeaseExpired
    );
    drop(client);
}

async fn a_lease_is_checked(scene: &mut Scene) {
    let lease = |length| leased(scene.request(never()), length);
    let without = AddWatchRequest {
        lease: None,
        ..lease(seconds(1))
    };
    let of_daemon = AddWatchRequest {
        lifetime: Lifetime::Daemon.into(),
        ..lease(seconds(1))
    };
    let daemons_end = AddWatchRequest {
        at_lifetime_end: LifetimeEnd::Keep.into(),
        ..scene.request(never())
    };
    let month = lasting(Duration::from_secs(31 * 86_400));
    for (request, field) in [
        (without, "lease"),
        (of_daemon, "lease"),
        (lease(millis(99)), "lease"),
        (lease(month), "lease"),
        (daemons_end, "at_lifetime_end"),
    ] {
        let refusal = scene.try_add(request).await;
        let bad = refused(refusal, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(bad.fields, [field]);
    }
    let id = scene.add(never()).await;
    let other = keep_alive(scene, Some(id), None).await.unwrap_err();
    assert_eq!(other.code(), Code::FailedPrecondition);
    let own = keep_alive(scene, None, None).await.unwrap_err();
    assert_eq!(own.code(), Code::FailedPrecondition);
}

/// Makes a loop with a lease, and returns a recorder of its events.
async fn leased_loop(scene: &Scene, name: &str, at_end: LifetimeEnd) -> Recorder {
    let request = NewEventLoopRequest {
        name: name.to_owned(),
        lifetime: Lifetime::Lease.into(),
        lease: Some(millis(300)),
        at_lifetime_end: at_end.into(),
        ..NewEventLoopRequest::default()
    };
    scene
        .daemon
        .policies()
        .new_event_loop(request)
        .await
        .unwrap();
    Recorder::of(&scene.daemon, &loop_named(name)).await
}

async fn a_loop_whose_lease_runs_out_closes_and_says_why(scene: &mut Scene) {
    let mut recorder = leased_loop(scene, "leased", LifetimeEnd::KillTree).await;
    let spec = ProcessSpec {
        at_end: AtEnd::Keep.into(),
        ..shell("exec sleep 1000")
    };
    let request = AddWatchRequest {
        r#loop: Some(loop_named("leased")),
        ..scene.request(Spec::Process(spec))
    };
    let answer = scene.daemon.watches().add_watch(request).await.unwrap();
    let id = answer.into_inner().watch.unwrap().watch_id;
    let mut loops = scene.daemon.loops();
    let renewed = loops.keep_alive(KeepAliveRequest {
        r#loop: Some(loop_named("leased")),
        ..KeepAliveRequest::default()
    });
    assert_eq!(renewed.await.unwrap().into_inner().lease, Some(millis(300)));
    let closed = |state: LoopState| {
        move |event: &evloopd::proto::Event| match &event.kind {
            Some(Kind::LoopStateChanged(changed)) => changed.state() == state,
            _ => false,
        }
    };
    match recorder
        .find("its end", closed(LoopState::Closed))
        .await
        .kind
    {
        Some(Kind::LoopStateChanged(changed)) => {
            assert_eq!(changed.reason(), CloseReason::LeaseExpired);
        }
        other => panic!("{other:?}"),
    }
    match recorder.first(id, "exited").await.kind {
        Some(Kind::Exited(exited)) => {
            assert_eq!(
                exited.status,
                Some(exited::Status::Signal(nix::libc::SIGTERM))
            );
        }
        other => panic!("{other:?}"),
    }
}

async fn a_loop_that_is_kept_says_so(scene: &mut Scene) {
    let mut recorder = leased_loop(scene, "kept", LifetimeEnd::Keep).await;
    let ended = recorder.find("the end of its lifetime", |event| {
        matches!(event.kind, Some(Kind::LifetimeEnded(_)))
    });
    match ended.await.kind {
        Some(Kind::LifetimeEnded(ended)) => {
            assert_eq!(ended.reason(), CloseReason::LeaseExpired);
        }
        other => panic!("{other:?}"),
    }
    let request = evloopd::proto::GetLoopRequest {
        r#loop: Some(loop_named("kept")),
    };
    let found = scene.daemon.loops().get_loop(request).await.unwrap();
    let found = found.into_inner().r#loop.unwrap();
    assert_eq!(
        (found.lifetime(), found.state()),
        (Lifetime::Daemon, LoopState::Running)
    );
}
