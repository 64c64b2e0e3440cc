//! Timers: they never fire early, keep a fixed rate, and count the ticks that were missed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use evloopd::proto::event::Kind;
use evloopd::proto::timer_spec::Schedule;
use evloopd::proto::{
    AddWatchRequest, CloseReason, Event, Lifetime, RunLoopRequest, StopLoopRequest, TimerClock,
    TimerFired, TimerSpec, WatchSpec, watch, watch_spec::Spec,
};
use tonic::Code;

use crate::common::{Scene, after, lasting, millis, never, refused, timer};

on_each_backend!(
    a_timer_fires_once_and_is_completed,
    a_delay_of_zero_fires_at_once,
    a_time_of_the_monotonic_clock,
    a_time_of_the_wall_clock,
    ticks_keep_their_rate,
    missed_ticks_are_counted,
    due_timers_fire_by_deadline_and_then_by_creation,
    a_stopped_loop_fires_nothing,
    a_closed_timer_has_no_next_time,
    a_schedule_out_of_range_is_refused,
);

fn fired(event: &Event) -> TimerFired {
    match &event.kind {
        Some(Kind::TimerFired(fired)) => *fired,
        other => panic!("{other:?}"),
    }
}

fn ns_of(clock: rustix::time::ClockId) -> u64 {
    let now = rustix::time::clock_gettime(clock);
    u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec).unwrap()
}

fn monotonic_ns() -> u64 {
    ns_of(rustix::time::ClockId::Monotonic)
}

async fn a_timer_fires_once_and_is_completed(scene: &mut Scene) {
    let before = ns_of(rustix::time::ClockId::Boottime);
    let delay = Duration::from_millis(30);
    let id = scene.add(after(delay)).await;
    let fired = fired(&scene.recorder.first(id, "timer_fired").await);
    assert!(fired.scheduled_ns >= before + u64::try_from(delay.as_nanos()).unwrap());
    assert_eq!(fired.clock(), TimerClock::Boottime);
    assert_eq!((fired.tick, fired.missed), (1, 0));
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    match scene.get(id).await.status {
        Some(watch::Status::Timer(status)) => assert_eq!((status.next_ns, status.fired), (0, 1)),
        other => panic!("{other:?}"),
    }
}

async fn a_delay_of_zero_fires_at_once(scene: &mut Scene) {
    let past = prost_types::Duration {
        seconds: -5,
        nanos: 0,
    };
    for schedule in [
        Schedule::After(millis(0)),
        Schedule::After(past),
        Schedule::AtMonotonicNs(1),
        Schedule::AtRealtime(prost_types::Timestamp::default()),
    ] {
        let id = scene.add(timer(schedule)).await;
        assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
        assert_eq!(scene.recorder.kinds(id), ["added", "timer_fired", "closed"]);
    }
}

async fn a_time_of_the_monotonic_clock(scene: &mut Scene) {
    let at = monotonic_ns() + 20_000_000;
    let id = scene.add(timer(Schedule::AtMonotonicNs(at))).await;
    let event = scene.recorder.first(id, "timer_fired").await;
    assert_eq!(fired(&event).scheduled_ns, at);
    assert_eq!(at + fired(&event).late_ns, event.monotonic_ns);
}

async fn a_time_of_the_wall_clock(scene: &mut Scene) {
    let at = SystemTime::now() + Duration::from_millis(20);
    let id = scene.add(timer(Schedule::AtRealtime(at.into()))).await;
    let event = scene.recorder.first(id, "timer_fired").await;
    let at = at.duration_since(UNIX_EPOCH).unwrap().as_nanos();
    assert_eq!(u128::from(fired(&event).scheduled_ns), at);
    assert!(event.realtime_ns >= fired(&event).scheduled_ns);
}

async fn ticks_keep_their_rate(scene: &mut Scene) {
    let interval = Duration::from_millis(5);
    let id = scene.add(timer(Schedule::Every(lasting(interval)))).await;
    let first = fired(&scene.recorder.first(id, "timer_fired").await);
    let tenth = fired(&scene.recorder.nth(id, "timer_fired", 10).await);
    let elapsed = tenth.scheduled_ns - first.scheduled_ns;
    assert_eq!(elapsed, (tenth.tick - first.tick) * 5_000_000);
    scene.remove(id).await;
}

async fn missed_ticks_are_counted(scene: &mut Scene) {
    let id = scene.add(timer(Schedule::Every(millis(1)))).await;
    let first = fired(&scene.recorder.first(id, "timer_fired").await);
    stop(scene).await;
    let passed = 20;
    tokio::time::sleep(Duration::from_millis(passed + 1)).await;
    run(scene).await;
    let what = "a tick with missed ones";
    let event = scene.recorder.find(
        what,
        |e| matches!(&e.kind, Some(Kind::TimerFired(f)) if e.watch_id == id && f.missed >= passed),
    );
    assert!(fired(&event.await).tick > first.tick + passed);
    scene.remove(id).await;
}

async fn due_timers_fire_by_deadline_and_then_by_creation(scene: &mut Scene) {
    stop(scene).await;
    let at = monotonic_ns();
    let late = scene.add(timer(Schedule::AtMonotonicNs(at))).await;
    let tie = scene.add(timer(Schedule::AtMonotonicNs(at))).await;
    let early = scene.add(timer(Schedule::AtMonotonicNs(at - 1000))).await;
    run(scene).await;
    let mut order = Vec::new();
    for id in [late, tie, early] {
        order.push((scene.recorder.first(id, "timer_fired").await.seq, id));
    }
    order.sort_unstable();
    let ids: Vec<u64> = order.into_iter().map(|(_, id)| id).collect();
    assert_eq!(ids, [early, late, tie]);
}

async fn a_stopped_loop_fires_nothing(scene: &mut Scene) {
    stop(scene).await;
    let id = scene.add(after(Duration::ZERO)).await;
    scene.settle().await;
    assert_eq!(scene.recorder.kinds(id), ["added"]);
    run(scene).await;
    scene.closed(id).await;
}

async fn a_closed_timer_has_no_next_time(scene: &mut Scene) {
    let every = || Schedule::Every(millis(3_600_000));
    let cron = || Schedule::Cron("0 0 * * *".to_owned());
    for (schedule, paused) in [
        (every(), false),
        (every(), true),
        (cron(), false),
        (Schedule::After(millis(3_600_000)), false),
    ] {
        let is_cron = matches!(schedule, Schedule::Cron(_));
        let request = AddWatchRequest {
            lifetime: Lifetime::Lease.into(),
            lease: Some(millis(100)),
            ..scene.request(Spec::Timer(TimerSpec {
                schedule: Some(schedule),
                paused,
                ..TimerSpec::default()
            }))
        };
        let id = scene
            .try_add(request)
            .await
            .unwrap()
            .watch
            .unwrap()
            .watch_id;
        assert_eq!(scene.closed(id).await.reason(), CloseReason::LeaseExpired);
        match scene.get(id).await.status {
            Some(watch::Status::Timer(status)) => {
                assert_eq!((status.next_ns, status.next, status.fired), (0, None, 0));
                assert_eq!(
                    (status.paused, status.time_zone.is_empty()),
                    (paused, !is_cron)
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn stop(scene: &Scene) {
    let request = StopLoopRequest {
        r#loop: Some(scene.target.clone()),
        ..StopLoopRequest::default()
    };
    scene.daemon.loops().stop_loop(request).await.unwrap();
}

async fn run(scene: &Scene) {
    let request = RunLoopRequest {
        r#loop: Some(scene.target.clone()),
        ..RunLoopRequest::default()
    };
    scene.daemon.loops().run_loop(request).await.unwrap();
}

async fn a_schedule_out_of_range_is_refused(scene: &mut Scene) {
    let century = Duration::from_secs(101 * 366 * 86_400);
    // A negative duration means now, but this is none.
    let malformed = prost_types::Duration {
        seconds: i64::MIN,
        nanos: 0,
    };
    let at = |seconds| Schedule::AtRealtime(prost_types::Timestamp { seconds, nanos: 0 });
    for (schedule, field) in [
        (Some(Schedule::After(malformed)), "spec.timer.after"),
        (Some(Schedule::Every(malformed)), "spec.timer.every"),
        (Some(at(i64::MIN)), "spec.timer.at_realtime"),
        (Some(at(i64::MAX)), "spec.timer.at_realtime"),
        (
            Some(Schedule::Every(lasting(Duration::from_micros(999)))),
            "spec.timer.every",
        ),
        (Some(Schedule::Every(millis(0))), "spec.timer.every"),
        (Some(Schedule::After(lasting(century))), "spec.timer.after"),
        (None, "spec.timer"),
    ] {
        let request = scene.request(Spec::Timer(TimerSpec {
            schedule,
            ..TimerSpec::default()
        }));
        let refusal = scene.try_add(request).await;
        let bad = refused(refusal, Code::InvalidArgument, "INVALID_FIELD");
        assert!(bad.fields[0].starts_with(field), "{bad:?}");
    }
    for field in [
        "spec.timer.slack",
        "spec.timer.splay",
        "finished_ttl",
        "lease",
    ] {
        let mut request = scene.request(never());
        let Some(WatchSpec {
            spec: Some(Spec::Timer(timer)),
        }) = &mut request.spec
        else {
            panic!("never() is a timer");
        };
        let place = match field {
            "spec.timer.slack" => &mut timer.slack,
            "spec.timer.splay" => &mut timer.splay,
            "finished_ttl" => &mut request.finished_ttl,
            _ => {
                request.lifetime = Lifetime::Lease.into();
                &mut request.lease
            }
        };
        *place = Some(malformed);
        request.name = "named".into();
        let refusal = scene.try_add(request).await;
        let bad = refused(refusal, Code::InvalidArgument, "INVALID_FIELD");
        assert!(bad.fields[0].starts_with(field), "{bad:?}");
    }
    let id = scene.add(never()).await;
    scene.settle().await;
    assert_eq!(scene.recorder.kinds(id), ["added"]);
}
