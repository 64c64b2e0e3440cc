//! Loops that end with the client process for which they were made.

use evloopd::proto::*;
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use tonic::Code;

use crate::common::another::{Act, Another};
use crate::common::{Daemon, Recorder, loop_named, refused};
use crate::{new, start};

/// Makes a loop, or accepts an existing one with the same settings. Returns whether it made it.
async fn bound(daemon: &Daemon, name: &str, lifetime: Lifetime) -> Result<bool, tonic::Status> {
    let request = NewEventLoopRequest {
        name: name.into(),
        if_exists: IfExists::Return.into(),
        lifetime: lifetime.into(),
        ..NewEventLoopRequest::default()
    };
    let answer = daemon.policies().new_event_loop(request).await?;
    let answer = answer.into_inner();
    let expected = match lifetime {
        Lifetime::Process => Lifetime::Process,
        _ => Lifetime::Daemon,
    };
    assert_eq!(answer.r#loop.unwrap().lifetime(), expected);
    Ok(answer.created)
}

async fn loops(daemon: &Daemon) -> Vec<String> {
    let request = ListLoopsRequest::default();
    let listed = daemon.loops().list_loops(request).await.unwrap();
    let loops = listed.into_inner().loops.into_iter();
    loops.map(|found| found.name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn loops_of_a_process_end_with_it_and_so_do_their_children() {
    let daemon = start().await;
    new(&daemon, "stays", "").await.unwrap();
    let fds = daemon.open_fds().await;
    let mut other = Another::start(&daemon, Act::NewLoops(["one", "two"]));
    assert_eq!(other.told(), "asking");
    let pid = Pid::from_raw(other.told().parse().unwrap()).unwrap();
    let mut one = Recorder::of(&daemon, &loop_named("one")).await;
    let mut two = Recorder::of(&daemon, &loop_named("two")).await;
    drop(other);
    for recorder in [&mut one, &mut two] {
        assert_eq!(recorder.end().await.reason(), GoodbyeReason::LoopClosed);
    }
    assert_eq!(
        test_kill_process(pid),
        Err(Errno::SRCH),
        "the child is gone"
    );
    assert_eq!(loops(&daemon).await, ["stays"]);
    drop((one, two));
    daemon
        .until("the loops of the process to be gone", |status| {
            status.open_fds == Some(fds)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_process_that_ends_during_its_call_leaves_no_loop() {
    let daemon = start().await;
    let fds = daemon.open_fds().await;
    let mut others: Vec<Another> = ["a", "b", "c", "d"]
        .map(|name| Another::start(&daemon, Act::NewLoops([name, "last"])))
        .into();
    for mut other in others.drain(..) {
        assert_eq!(other.told(), "asking");
    }
    let gone = |status: &GetStatusResponse| status.loops == 0 && status.open_fds == Some(fds);
    daemon
        .until("the loops of the processes to be gone", gone)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_existing_loop_is_returned_if_it_has_the_same_lifetime() {
    let daemon = start().await;
    let mut other = Another::start(&daemon, Act::NewLoops(["theirs", "too"]));
    assert_eq!(
        (other.told(), other.told().is_empty()),
        ("asking".into(), false)
    );
    let differs = |answer| refused(answer, Code::AlreadyExists, "NAME_TAKEN");
    for lifetime in [Lifetime::Unspecified, Lifetime::Daemon, Lifetime::Process] {
        let refusal = differs(bound(&daemon, "theirs", lifetime).await);
        assert_eq!(refusal.word("field"), "lifetime", "{lifetime:?}");
    }
    assert!(bound(&daemon, "ours", Lifetime::Process).await.unwrap());
    assert!(!bound(&daemon, "ours", Lifetime::Process).await.unwrap());
    differs(bound(&daemon, "ours", Lifetime::Unspecified).await);
    assert!(
        bound(&daemon, "lasting", Lifetime::Unspecified)
            .await
            .unwrap()
    );
    assert!(!bound(&daemon, "lasting", Lifetime::Daemon).await.unwrap());
    differs(bound(&daemon, "lasting", Lifetime::Process).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn loops_that_were_closed_are_not_remembered_for_their_process() {
    let daemon = start().await;
    let fds = daemon.open_fds().await;
    for _ in 0..3 {
        assert!(bound(&daemon, "again", Lifetime::Process).await.unwrap());
        let request = CloseLoopRequest {
            r#loop: Some(loop_named("again")),
            stop: true,
            ..CloseLoopRequest::default()
        };
        daemon.loops().close_loop(request).await.unwrap();
    }
    // The daemon does not watch the process any more either: its pidfd is closed.
    let gone = |status: &GetStatusResponse| status.loops == 0 && status.open_fds == Some(fds);
    daemon
        .until("the loops and the pidfd to be gone", gone)
        .await;
    assert!(bound(&daemon, "again", Lifetime::Process).await.unwrap());
}
