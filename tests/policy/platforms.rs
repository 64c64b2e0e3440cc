//! The policies that are named after asyncio's loops on other platforms have the limits that section
//! 18.5.2.3 of its documentation has, and no others.

use std::os::fd::OwnedFd;
use std::time::Duration;

use evloopd::kinds::WatchKind;
use evloopd::proto::event::Kind;
use evloopd::proto::timer_spec::Schedule;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use prost::Message as _;
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tonic::Code;

use crate::common::{
    Daemon, Scene, after, connection, exec, in_terminal, millis, read_pipe, reader, refused, timer,
    write_pipe, writer,
};

/// The policies, each with the documented loop that it is named after.
const POLICIES: [(&str, &str, &str); 3] = [
    ("windows-selector-compat", "windows", "SelectorEventLoop"),
    ("windows-proactor-compat", "windows", "ProactorEventLoop"),
    ("macos-kqueue-compat", "macos", "SelectorEventLoop"),
];

/// The resolution of the clock on Windows.
const TICK: u64 = 15_600_000;

async fn documented(daemon: &Daemon, platform: &str, name: &str) -> Vec<Capability> {
    let answer = daemon
        .policies()
        .list_backends(ListBackendsRequest {})
        .await;
    let mut loops = answer.unwrap().into_inner().documented_loops.into_iter();
    let found = loops.find(|l| l.platform == platform && l.name == name);
    found.expect("it is documented").capabilities
}

/// Returns an empty specification of every kind that this version has.
fn empty_specs() -> Vec<(WatchKind, Spec)> {
    let specs = descriptors().get_message_by_name("evloopd.v1.WatchSpec");
    let fields = specs.expect("the message of specifications");
    let empty = WatchKind::ALL.map(|kind| {
        let field = fields.get_field_by_name(kind.name()).expect("its field");
        // The key of a field of wire type 2, and the length 0.
        let mut bytes = Vec::new();
        prost::encoding::encode_varint(u64::from(field.number() << 3 | 2), &mut bytes);
        bytes.push(0);
        let spec = WatchSpec::decode(&bytes[..]).unwrap().spec;
        (kind, spec.expect("the kind's message"))
    });
    empty.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_loop_refuses_the_documented_kinds_and_takes_all_that_are_not_mentioned() {
    for (policy, platform, name) in POLICIES {
        let mut scene = Scene::new(Daemon::start("").await, policy, "").await;
        let documented = documented(&scene.daemon, platform, name).await;
        for (kind, spec) in empty_specs() {
            let missing = documented
                .iter()
                .find(|c| c.name == kind.name() && !c.supported);
            let request = scene.request(spec);
            let answer = scene.try_add(request).await;
            match (missing, answer) {
                (Some(missing), answer) => {
                    let refusal = refused(answer, Code::Unimplemented, "NOT_SUPPORTED");
                    assert_eq!(refusal.word("capability"), kind.name());
                    assert_eq!(refusal.word("reason"), missing.reason, "{kind} of {policy}");
                    assert_eq!(refusal.word("backend"), format!("policy `{policy}`"));
                }
                // The kind is accepted; that nothing is said of what to watch is another matter.
                (None, Err(status)) => {
                    assert_eq!(status.code(), Code::InvalidArgument, "{kind} of {policy}");
                }
                (None, Ok(_)) => {}
            }
        }
        scene.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_policies_list_what_they_refuse_and_how_their_timers_tick() {
    let daemon = Daemon::start("").await;
    let request = ListEventLoopPoliciesRequest {};
    let list = daemon.policies().list_event_loop_policies(request).await;
    let policies = list.unwrap().into_inner().policies;
    for (name, platform, documented_loop) in POLICIES {
        let policy = policies.iter().find(|policy| policy.name == name).unwrap();
        let documented = documented(&daemon, platform, documented_loop).await;
        for refusal in &policy.refuses {
            let missing = documented.iter().find(|c| c.name == refusal.name).unwrap();
            assert_eq!(refusal, missing, "of {name}");
            assert!(!policy.watch_kinds.contains(&refusal.name), "{refusal:?}");
        }
        let clock = documented.iter().find(|c| c.name == "clock_resolution_ns");
        let tick = Duration::try_from(policy.timer_tick.unwrap()).unwrap();
        let expected = clock.map_or(0, |clock| clock.limit);
        assert_eq!(tick, Duration::from_nanos(expected), "{name}");
    }
}

/// Adds timers of all clocks, and checks that each fires at a step of its clock.
async fn timers_fire_at_steps(scene: &mut Scene) {
    let clock = |id| {
        let now = rustix::time::clock_gettime(id);
        u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec).unwrap()
    };
    let mut asked = Vec::new();
    for number in 0..5 {
        // Steps of all sizes below the tick.
        let delay = 2_000_000 + number * 3_100_000;
        let at = clock(rustix::time::ClockId::Monotonic) + delay;
        let wall = clock(rustix::time::ClockId::Realtime) + delay;
        let wall_time = prost_types::Timestamp {
            seconds: i64::try_from(wall / 1_000_000_000).unwrap(),
            nanos: i32::try_from(wall % 1_000_000_000).unwrap(),
        };
        let specs = [
            (after(Duration::from_nanos(delay)), None),
            (timer(Schedule::AtMonotonicNs(at)), Some(at)),
            (timer(Schedule::AtRealtime(wall_time)), Some(wall)),
        ];
        for (spec, scheduled) in specs {
            asked.push((scene.add(spec).await, scheduled));
        }
    }
    for (id, scheduled) in asked {
        let event = scene.recorder.first(id, "timer_fired").await;
        let Some(Kind::TimerFired(fired)) = event.kind else {
            panic!("{event:?}");
        };
        assert_eq!(fired.scheduled_ns, scheduled.unwrap_or(fired.scheduled_ns));
        let tick = fired.scheduled_ns.next_multiple_of(TICK);
        assert!(fired.scheduled_ns + fired.late_ns >= tick, "{fired:?}");
    }
}

/// A repeating timer that is faster than the clock's steps fires at most once at each of them.
async fn fast_timers_fire_once_a_step(scene: &mut Scene) {
    let id = scene.add(timer(Schedule::Every(millis(1)))).await;
    let mut last = 0;
    for count in 1..5 {
        let event = scene.recorder.nth(id, "timer_fired", count).await;
        let Some(Kind::TimerFired(fired)) = event.kind else {
            panic!("{event:?}");
        };
        let step = (fired.scheduled_ns + fired.late_ns) / TICK;
        assert!(step > last, "{fired:?}");
        last = step;
    }
    scene.remove(id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn timers_of_a_policy_with_a_tick_fire_at_the_first_one_at_or_after_their_time() {
    let config = "[policy.ticking]\nextends = \"default\"\ntimer_tick = \"15ms 600us\"\n";
    for (policy, backend) in [
        ("ticking", "epoll"),
        ("ticking", "poll"),
        ("windows-selector-compat", "select"),
        ("windows-proactor-compat", "io_uring"),
    ] {
        let mut scene = Scene::new(Daemon::start(config).await, policy, backend).await;
        timers_fire_at_steps(&mut scene).await;
        fast_timers_fire_once_a_step(&mut scene).await;
        scene.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_no_timer_of_a_client_does_not_wait_for_a_tick() {
    // Were the timeout one, it would fire at the same step as the timer, and after it.
    let config = "[policy.slow]\nextends = \"default\"\ntimer_tick = \"1s\"\n";
    let mut scene = Scene::new(Daemon::start(config).await, "slow", "").await;
    // From here on there are at least 100 ms to the next step, more than this test needs.
    let start = scene.add(after(Duration::ZERO)).await;
    scene.recorder.first(start, "timer_fired").await;
    let late = scene.add(after(Duration::ZERO)).await;
    let limited = ProcessSpec {
        timeout: Some(millis(1)),
        ..exec(&["sleep", "1000"])
    };
    let child = scene.spawn(limited).await;
    let exited = scene.recorder.first(child, "exited").await;
    let fired = scene.recorder.first(late, "timer_fired").await;
    assert!(exited.seq < fired.seq);
    scene.finish().await;
}

/// Returns both sides of a new pseudoterminal.
fn pseudoterminal() -> (OwnedFd, OwnedFd) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let path = ptsname(&master, Vec::new()).unwrap();
    let terminal = rustix::fs::open(path, OFlags::RDWR | OFlags::NOCTTY, Mode::empty());
    (master, terminal.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn macos_kqueue_loops_watch_no_character_devices() {
    let mut scene = Scene::new(Daemon::start("").await, "macos-kqueue-compat", "").await;
    let handover = scene.daemon.handover().await;
    let (master, terminal) = pseudoterminal();
    let random = std::fs::File::open("/dev/random").unwrap();
    for spec in [
        reader(handover.give(&master)),
        writer(handover.give(&terminal)),
        reader(handover.give(&random)),
        read_pipe(handover.give(&master)),
        read_pipe(handover.give(&random)),
        write_pipe(handover.give(&terminal)),
        Spec::Connection(connection(connection_spec::Target::Slot(
            handover.give(&terminal),
        ))),
        Spec::Process(in_terminal(exec(&["true"]))),
    ] {
        let request = scene.request(spec);
        let answer = scene.try_add(request).await;
        let refusal = refused(answer, Code::Unimplemented, "NOT_SUPPORTED");
        assert_eq!(refusal.word("capability"), "character_device");
        assert!(refusal.word("reason").contains("10.6"), "{refusal:?}");
    }
    // Pipes, and processes whose loop has no terminal to watch, are not mentioned.
    let (reading, writing) = std::io::pipe().unwrap();
    scene.add(read_pipe(handover.give(&reading))).await;
    scene.add(write_pipe(handover.give(&writing))).await;
    let given = ProcessSpec {
        stdin: Stdio::Slot.into(),
        stdin_slot: handover.give(&terminal),
        ..exec(&["true"])
    };
    let child = scene.spawn(given).await;
    scene.closed(child).await;
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn where_asyncio_supports_character_devices_another_policy_does() {
    let daemon = Daemon::start("").await;
    for backend in ["poll", "select"] {
        let request = NewEventLoopRequest {
            policy: "macos-kqueue-compat".into(),
            backend: backend.into(),
            ..NewEventLoopRequest::default()
        };
        let answer = daemon.policies().new_event_loop(request).await;
        let status = answer.expect_err("only epoll stands for kqueue");
        assert!(
            [Code::InvalidArgument, Code::Unimplemented].contains(&status.code()),
            "{status:?}"
        );
        let mut scene = Scene::new(Daemon::start("").await, "", backend).await;
        let (master, _terminal) = pseudoterminal();
        let handover = scene.daemon.handover().await;
        scene.add(reader(handover.give(&master))).await;
        scene.finish().await;
    }
}
