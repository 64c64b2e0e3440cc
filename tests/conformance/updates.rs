//! Changes of watches in place.

use std::collections::BTreeMap;

use evloopd::proto::event::Kind;
use evloopd::proto::timer_spec::Schedule;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    AddWatchRequest, CloseReason, Filter, IfExists, ListenerSpec, OnGap, PollRequest, ProcessSpec,
    TcpListen, TimerSpec, UpdateCause, UpdateWatchRequest, UpdateWatchResponse, Updated, WatchSpec,
    listener_spec, watch,
};
use prost_types::FieldMask;
use tokio::net::TcpStream;
use tonic::{Code, Status};

use crate::common::{Scene, by_id, millis, never, refused, seconds, shell, signals};
use crate::listeners::port;

on_each_backend!(
    a_changed_schedule_counts_from_its_change_and_does_not_fire_for_it,
    a_change_of_another_field_leaves_the_schedule_as_it_is,
    no_slack_and_a_slack_of_zero_are_the_same,
    a_paused_timer_keeps_the_time_that_was_left,
    a_timer_that_fired_or_is_removed_cannot_be_changed,
    what_cannot_be_changed_is_named_and_nothing_is_changed,
    labels_hold_from_the_updated_event_on,
    a_signal_watch_changes_its_signals,
    a_listener_takes_more_and_fewer_connections,
    the_timeout_of_a_process_can_be_lifted_and_set,
    updates_at_once_are_all_done,
);

pub(crate) async fn update(
    scene: &Scene,
    id: u64,
    spec: Option<Spec>,
    paths: &[&str],
) -> Result<UpdateWatchResponse, Status> {
    let request = UpdateWatchRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        spec: spec.map(|spec| WatchSpec { spec: Some(spec) }),
        update_mask: Some(FieldMask {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        }),
        request_id: format!("{id}-{}", uuid()),
        ..UpdateWatchRequest::default()
    };
    send(scene, request).await
}

/// Returns a number that no other call gets.
fn uuid() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

async fn send(scene: &Scene, request: UpdateWatchRequest) -> Result<UpdateWatchResponse, Status> {
    let answer = scene.daemon.watches().update_watch(request).await?;
    Ok(answer.into_inner())
}

fn timer(schedule: Schedule) -> Spec {
    Spec::Timer(TimerSpec {
        schedule: Some(schedule),
        ..TimerSpec::default()
    })
}

async fn next_ns(scene: &Scene, id: u64) -> u64 {
    match scene.get(id).await.status {
        Some(watch::Status::Timer(status)) => status.next_ns,
        other => panic!("{other:?}"),
    }
}

async fn updated(scene: &mut Scene, id: u64, nth: usize) -> Updated {
    match scene.recorder.nth(id, "updated", nth).await.kind {
        Some(Kind::Updated(updated)) => updated,
        other => panic!("{other:?}"),
    }
}

async fn a_changed_schedule_counts_from_its_change_and_does_not_fire_for_it(scene: &mut Scene) {
    let id = scene.add(never()).await;
    let spec = timer(Schedule::Every(seconds(3600)));
    let answer = update(scene, id, Some(spec), &["spec.timer.every"])
        .await
        .unwrap();
    let told = updated(scene, id, 1).await;
    assert_eq!(told.cause(), UpdateCause::Request);
    assert_eq!(told.fields, ["spec.timer.every"]);
    assert_eq!(told.next_ns, next_ns(scene, id).await);
    assert!(told.request_id.starts_with(&format!("{id}-")));
    let watch = answer.watch.unwrap();
    let Some(Spec::Timer(shown)) = watch.spec.and_then(|spec| spec.spec) else {
        panic!("a timer")
    };
    assert_eq!(shown.schedule, Some(Schedule::Every(seconds(3600))));
    // It becomes one that fires once, and does so.
    let spec = timer(Schedule::After(millis(5)));
    update(scene, id, Some(spec), &["spec.timer.after"])
        .await
        .unwrap();
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    let kinds = ["added", "updated", "updated", "timer_fired", "closed"];
    assert_eq!(scene.recorder.kinds(id), kinds);
}

async fn a_change_of_another_field_leaves_the_schedule_as_it_is(scene: &mut Scene) {
    let id = scene.add(timer(Schedule::Every(seconds(1000)))).await;
    let before = next_ns(scene, id).await;
    let spec = Spec::Timer(TimerSpec {
        slack: Some(seconds(2)),
        ..TimerSpec::default()
    });
    let answer = update(scene, id, Some(spec.clone()), &["spec.timer.slack"])
        .await
        .unwrap();
    assert!(answer.updated.is_some());
    assert_eq!(next_ns(scene, id).await, before);
    // The same again changes nothing, and has no event.
    let answer = update(scene, id, Some(spec), &["spec.timer.slack"])
        .await
        .unwrap();
    assert_eq!(answer.updated, None);
    scene.settle().await;
    assert_eq!(scene.recorder.kinds(id), ["added", "updated"]);
}

async fn no_slack_and_a_slack_of_zero_are_the_same(scene: &mut Scene) {
    let spec = |slack| TimerSpec {
        schedule: Some(Schedule::Every(seconds(3600))),
        slack,
        splay: slack,
        ..TimerSpec::default()
    };
    for (first, then) in [(None, Some(millis(0))), (Some(millis(0)), None)] {
        let request = AddWatchRequest {
            name: format!("timer-{}", uuid()),
            ..scene.request(Spec::Timer(spec(first)))
        };
        let added = scene.try_add(request.clone()).await.unwrap();
        let id = added.watch.unwrap().watch_id;
        let change = TimerSpec {
            schedule: None,
            ..spec(then)
        };
        let paths = ["spec.timer.slack", "spec.timer.splay"];
        let answer = update(scene, id, Some(Spec::Timer(change)), &paths).await;
        assert_eq!(answer.unwrap().updated, None);
        // And so a watch with one is the same as a watch with the other.
        let again = AddWatchRequest {
            spec: Some(WatchSpec {
                spec: Some(Spec::Timer(spec(then))),
            }),
            if_exists: IfExists::Return.into(),
            ..request
        };
        assert!(scene.try_add(again).await.unwrap().existed);
    }
}

async fn a_paused_timer_keeps_the_time_that_was_left(scene: &mut Scene) {
    let paused = |paused| {
        Some(Spec::Timer(TimerSpec {
            paused,
            ..TimerSpec::default()
        }))
    };
    let path = ["spec.timer.paused"];
    let id = scene.add(timer(Schedule::After(millis(700)))).await;
    update(scene, id, paused(true), &path).await.unwrap();
    assert_eq!(next_ns(scene, id).await, 0);
    // Another timer of the same length, which began later, fires first.
    let other = scene.add(timer(Schedule::After(millis(700)))).await;
    scene.closed(other).await;
    assert_eq!(scene.recorder.kinds(id), ["added", "updated"]);
    update(scene, id, paused(false), &path).await.unwrap();
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    // A time that passed meanwhile fires at once.
    let soon = std::time::SystemTime::now() + std::time::Duration::from_millis(20);
    let spec = TimerSpec {
        schedule: Some(Schedule::AtRealtime(soon.into())),
        paused: true,
        ..TimerSpec::default()
    };
    let id = scene.add(Spec::Timer(spec)).await;
    let other = scene.add(timer(Schedule::After(millis(40)))).await;
    scene.closed(other).await;
    update(scene, id, paused(false), &path).await.unwrap();
    scene.closed(id).await;
    // Ticks of a calendar do not count as missed.
    let spec = TimerSpec {
        schedule: Some(Schedule::Cron("* * * * * *".to_owned())),
        ..TimerSpec::default()
    };
    let id = scene.add(Spec::Timer(spec)).await;
    update(scene, id, paused(true), &path).await.unwrap();
    let other = scene.add(timer(Schedule::After(millis(2_100)))).await;
    scene.closed(other).await;
    let resumed = std::time::SystemTime::now();
    let seq = update(scene, id, paused(false), &path)
        .await
        .unwrap()
        .updated
        .unwrap()
        .seq;
    let what = "the first tick after the pause";
    let event = scene.recorder.find(what, |event| {
        event.seq > seq && matches!(event.kind, Some(Kind::TimerFired(_)))
    });
    match event.await.kind {
        Some(Kind::TimerFired(fired)) => {
            let first = fired.scheduled_ns - fired.missed * 1_000_000_000;
            let first = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(first);
            assert!(first >= resumed, "{fired:?}");
        }
        other => panic!("{other:?}"),
    }
    scene.remove(id).await;
}

async fn a_timer_that_fired_or_is_removed_cannot_be_changed(scene: &mut Scene) {
    let id = scene.add(timer(Schedule::After(millis(0)))).await;
    scene.closed(id).await;
    let spec = timer(Schedule::After(millis(0)));
    let late = update(scene, id, Some(spec.clone()), &["spec.timer.after"]).await;
    assert_eq!(late.unwrap_err().code(), Code::FailedPrecondition);
    scene.remove(id).await;
    let gone = update(scene, id, Some(spec), &["spec.timer.after"]).await;
    assert_eq!(gone.unwrap_err().code(), Code::NotFound);
}

async fn what_cannot_be_changed_is_named_and_nothing_is_changed(scene: &mut Scene) {
    let id = scene.add(timer(Schedule::Every(seconds(1000)))).await;
    let every = |s| Some(timer(Schedule::Every(seconds(s))));
    let too_short = Some(timer(Schedule::Every(millis(0))));
    let of_signals = Some(signals(&["SIGUSR1"]));
    let cases: [(Option<Spec>, &[&str], &str); 9] = [
        (None, &[], "update_mask"),
        (every(5), &["every"], "update_mask"),
        (every(5), &["spec.timer.nothing"], "update_mask"),
        (every(5), &["spec.signal.signals"], "update_mask"),
        (of_signals, &["spec.timer.every"], "spec"),
        (too_short, &["spec.timer.every"], "spec.timer.every"),
        (every(5), &["spec.timer.slack"], "spec.timer.every"),
        (every(5), &["labels"], "spec"),
        // No schedule would be left.
        (None, &["spec.timer.every"], "spec.timer"),
    ];
    for (spec, paths, field) in cases {
        let refusal = update(scene, id, spec, paths).await;
        let bad = refused(refusal, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(bad.fields, [field], "{paths:?}");
    }
    let process = scene.spawn(shell("exec sleep 1000")).await;
    let spec = Spec::Process(ProcessSpec {
        cwd: "/tmp".to_owned(),
        ..ProcessSpec::default()
    });
    let refusal = update(scene, process, Some(spec), &["spec.process.cwd"]).await;
    refused(refusal, Code::InvalidArgument, "INVALID_FIELD");
    scene.settle().await;
    assert_eq!(scene.recorder.kinds(id), ["added"]);
    scene.remove(process).await;
}

async fn labels_hold_from_the_updated_event_on(scene: &mut Scene) {
    let labels = |value: &str| BTreeMap::from([("state".to_owned(), value.to_owned())]);
    let id = scene.add(timer(Schedule::Every(millis(5)))).await;
    scene.recorder.first(id, "timer_fired").await;
    let request = UpdateWatchRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        labels: labels("hot"),
        finished_ttl: Some(seconds(7)),
        update_mask: Some(FieldMask {
            paths: vec!["labels".to_owned(), "finished_ttl".to_owned()],
        }),
        ..UpdateWatchRequest::default()
    };
    let answer = send(scene, request).await.unwrap();
    assert_eq!(answer.watch.unwrap().labels, labels("hot"));
    let seq = answer.updated.unwrap().seq;
    let filter = Filter {
        labels: labels("hot"),
        ..Filter::default()
    };
    scene
        .recorder
        .find("a tick after it", |event| {
            event.seq > seq && matches!(event.kind, Some(Kind::TimerFired(_)))
        })
        .await;
    let request = PollRequest {
        r#loop: Some(scene.target.clone()),
        filter: Some(filter),
        after: Some(evloopd::proto::Cursor::default()),
        on_gap: OnGap::Skip.into(),
        ..PollRequest::default()
    };
    let answer = scene.daemon.events().poll(request).await.unwrap();
    let seen = answer.into_inner().batch.unwrap().events;
    assert_eq!(seen.first().map(|event| event.seq), Some(seq));
    assert!(seen.len() > 1, "{seen:?}");
    scene.remove(id).await;
}

async fn a_signal_watch_changes_its_signals(scene: &mut Scene) {
    use nix::sys::signal::Signal;
    let id = scene.add(signals(&["SIGRTMIN+1"])).await;
    let spec = Some(signals(&["SIGUSR1"]));
    update(scene, id, spec, &["spec.signal.signals"])
        .await
        .unwrap();
    scene.daemon.signal(Signal::SIGUSR1);
    scene.recorder.first(id, "signal").await;
    let spec = Some(signals(&["SIGKILL"]));
    update(scene, id, spec, &["spec.signal.signals"])
        .await
        .unwrap_err();
}

async fn a_listener_takes_more_and_fewer_connections(scene: &mut Scene) {
    let most = |max_connections| ListenerSpec {
        max_connections,
        ..ListenerSpec::default()
    };
    let spec = ListenerSpec {
        target: Some(listener_spec::Target::Tcp(TcpListen {
            hosts: vec!["127.0.0.1".to_owned(), "127.0.0.2".to_owned()],
            ..TcpListen::default()
        })),
        ..most(1)
    };
    let id = scene.add(Spec::Listener(spec)).await;
    let port = port(scene, id).await;
    let mut clients = Vec::new();
    for host in ["127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.2"] {
        clients.push(TcpStream::connect((host, port)).await.unwrap());
    }
    scene.recorder.first(id, "accepted").await;
    let path = ["spec.listener.max_connections"];
    update(scene, id, Some(Spec::Listener(most(3))), &path)
        .await
        .unwrap();
    scene.recorder.nth(id, "accepted", 3).await;
    update(scene, id, Some(Spec::Listener(most(2))), &path)
        .await
        .unwrap();
    scene.settle().await;
    let accepted = scene
        .recorder
        .kinds(id)
        .iter()
        .filter(|kind| **kind == "accepted")
        .count();
    assert_eq!(accepted, 3);
    // Without a limit all come.
    update(scene, id, Some(Spec::Listener(most(0))), &path)
        .await
        .unwrap();
    scene.recorder.nth(id, "accepted", 4).await;
}

async fn the_timeout_of_a_process_can_be_lifted_and_set(scene: &mut Scene) {
    let with = |timeout| {
        Some(Spec::Process(ProcessSpec {
            timeout,
            ..ProcessSpec::default()
        }))
    };
    let path = ["spec.process.timeout"];
    let spec = ProcessSpec {
        timeout: Some(seconds(1000)),
        ..shell("exec sleep 1000")
    };
    let id = scene.spawn(spec).await;
    update(scene, id, with(None), &path).await.unwrap();
    update(scene, id, with(Some(millis(1))), &path)
        .await
        .unwrap();
    match scene.recorder.first(id, "exited").await.kind {
        Some(Kind::Exited(exited)) => assert!(exited.timed_out),
        other => panic!("{other:?}"),
    }
    scene.closed(id).await;
    update(scene, id, with(None), &path).await.unwrap_err();
}

async fn updates_at_once_are_all_done(scene: &mut Scene) {
    const CALLERS: u64 = 16;
    let id = scene.add(never()).await;
    let by_one = async |caller: u64| {
        for n in 1..=20 {
            let spec = Spec::Timer(TimerSpec {
                schedule: Some(Schedule::After(millis(1_000_000 + 100 * caller + n))),
                ..TimerSpec::default()
            });
            let done = update(scene, id, Some(spec), &["spec.timer.after"]).await;
            assert!(done.is_ok(), "{done:?}");
        }
    };
    futures_util::future::join_all((0..CALLERS).map(by_one)).await;
}
