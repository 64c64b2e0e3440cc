//! Timers by calendar: their zone, their first time, their refusals, splay and slack.

use evloopd::proto::event::Kind;
use evloopd::proto::timer_spec::Schedule;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    AddWatchRequest, CloseReason, Event, TimerClock, TimerFired, TimerSpec, TimerStatus, watch,
};
use tonic::Code;

use crate::common::{Scene, refused, seconds};

on_each_backend!(
    a_calendar_timer_fires_each_second_once,
    the_next_time_is_told_with_its_zone,
    an_expression_that_ends_completes_its_timer,
    an_unknown_zone_is_an_error_and_never_utc,
    an_expression_that_never_comes_is_refused,
    a_splay_is_the_same_for_the_same_name,
    timers_with_slack_fire_together,
);

fn fired(event: &Event) -> TimerFired {
    match &event.kind {
        Some(Kind::TimerFired(fired)) => *fired,
        other => panic!("{other:?}"),
    }
}

fn cron(text: &str, zone: &str) -> TimerSpec {
    TimerSpec {
        schedule: Some(Schedule::Cron(text.to_owned())),
        time_zone: zone.to_owned(),
        ..TimerSpec::default()
    }
}

async fn status(scene: &Scene, id: u64) -> TimerStatus {
    match scene.get(id).await.status {
        Some(watch::Status::Timer(status)) => status,
        other => panic!("{other:?}"),
    }
}

async fn a_calendar_timer_fires_each_second_once(scene: &mut Scene) {
    let id = scene
        .add(Spec::Timer(cron("* * * * * *", "Asia/Tokyo")))
        .await;
    let mut last = 0;
    for nth in 1..=2 {
        let event = scene.recorder.nth(id, "timer_fired", nth).await;
        let fired = fired(&event);
        assert_eq!(fired.clock(), TimerClock::Realtime);
        assert_eq!(fired.scheduled_ns % 1_000_000_000, 0);
        assert_eq!(fired.scheduled_ns + fired.late_ns, event.realtime_ns);
        assert!(fired.scheduled_ns > last && !fired.caught_up);
        last = fired.scheduled_ns;
    }
    scene.remove(id).await;
}

async fn the_next_time_is_told_with_its_zone(scene: &mut Scene) {
    // The 29th of February comes at midnight of Tokyo, which has had no summer time since 1951.
    let id = scene
        .add(Spec::Timer(cron("0 0 29 2 *", "asia/tokyo")))
        .await;
    let status = status(scene, id).await;
    assert_eq!(status.time_zone, "Asia/Tokyo");
    let next = status.next.unwrap();
    assert_eq!((next.seconds + 9 * 3600) % 86_400, 0);
    assert_eq!(
        status.next_ns / 1_000_000_000,
        u64::try_from(next.seconds).unwrap()
    );
    // The zone of an expression comes before that of the field.
    let spec = TimerSpec {
        schedule: Some(Schedule::OnCalendar("*-2-29 00:00 Asia/Tokyo".to_owned())),
        time_zone: "America/New_York".to_owned(),
        ..TimerSpec::default()
    };
    let id = scene.add(Spec::Timer(spec)).await;
    assert_eq!(self::status(scene, id).await.next, Some(next));
}

async fn an_expression_that_ends_completes_its_timer(scene: &mut Scene) {
    let soon = jiff::Timestamp::now()
        .checked_add(jiff::Span::new().seconds(2))
        .unwrap();
    let text = soon.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
    let spec = TimerSpec {
        schedule: Some(Schedule::OnCalendar(text)),
        ..TimerSpec::default()
    };
    let id = scene.add(Spec::Timer(spec)).await;
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    assert_eq!(scene.recorder.kinds(id), ["added", "timer_fired", "closed"]);
    assert_eq!(status(scene, id).await.next, None);
}

/// Returns the field that the daemon names when it refuses a timer.
async fn refused_field(scene: &mut Scene, spec: TimerSpec) -> String {
    let request = scene.request(Spec::Timer(spec));
    let refusal = scene.try_add(request).await;
    let mut bad = refused(refusal, Code::InvalidArgument, "INVALID_FIELD");
    bad.fields.remove(0)
}

async fn an_unknown_zone_is_an_error_and_never_utc(scene: &mut Scene) {
    for zone in [
        "Europe/Atlantis",
        "CET-1CEST",
        "../../etc/passwd",
        "Etc/Unknown",
    ] {
        let field = refused_field(scene, cron("0 2 * * *", zone)).await;
        assert_eq!(field, "spec.timer.time_zone", "{zone}");
    }
    let spec = TimerSpec {
        schedule: Some(Schedule::Every(seconds(5))),
        time_zone: "Europe/Berlin".to_owned(),
        ..TimerSpec::default()
    };
    assert_eq!(refused_field(scene, spec).await, "spec.timer.time_zone");
}

async fn an_expression_that_never_comes_is_refused(scene: &mut Scene) {
    for text in [
        "0 0 30 2 *",
        "0 0 31 4,6 *",
        "",
        "* * *",
        "61 * * * *",
        "@reboot",
    ] {
        let field = refused_field(scene, cron(text, "UTC")).await;
        assert_eq!(field, "spec.timer.cron", "{text}");
    }
    for text in ["2020-01-01", "*-2-30", "Foo 09:00", "09:00 Europe/Atlantis"] {
        let spec = TimerSpec {
            schedule: Some(Schedule::OnCalendar(text.to_owned())),
            ..TimerSpec::default()
        };
        assert_eq!(
            refused_field(scene, spec).await,
            "spec.timer.on_calendar",
            "{text}"
        );
    }
    assert_eq!(scene.open_watches().await, 0);
}

async fn a_splay_is_the_same_for_the_same_name(scene: &mut Scene) {
    let spec = TimerSpec {
        splay: Some(seconds(3600)),
        ..cron("0 12 * * *", "UTC")
    };
    assert_eq!(refused_field(scene, spec.clone()).await, "spec.timer.splay");
    let mut delays = Vec::new();
    for name in ["backup", "backup", "report"] {
        let request = AddWatchRequest {
            name: name.to_owned(),
            ..scene.request(Spec::Timer(spec.clone()))
        };
        let id = scene
            .try_add(request)
            .await
            .unwrap()
            .watch
            .unwrap()
            .watch_id;
        let next = status(scene, id).await.next.unwrap();
        let delay = (next.seconds - 43_200).rem_euclid(86_400);
        assert!((0..3600).contains(&delay), "{delay}");
        delays.push((delay, next.nanos));
        scene.remove(id).await;
    }
    assert_eq!(delays[0], delays[1]);
    assert_ne!(delays[0], delays[2]);
}

async fn timers_with_slack_fire_together(scene: &mut Scene) {
    let mut ids = Vec::new();
    for millis in 0..20 {
        let spec = TimerSpec {
            schedule: Some(Schedule::After(crate::common::millis(millis * 4))),
            slack: Some(crate::common::millis(900)),
            ..TimerSpec::default()
        };
        ids.push(scene.add(Spec::Timer(spec)).await);
    }
    let mut turns = std::collections::BTreeSet::new();
    for id in ids {
        let event = scene.recorder.first(id, "timer_fired").await;
        assert!(fired(&event).late_ns < 1_500_000_000, "{event:?}");
        turns.insert(event.monotonic_ns);
    }
    // They agree on one time, or on two if that lies between them.
    assert!(turns.len() <= 2, "{turns:?}");
}
