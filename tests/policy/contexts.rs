//! Contexts: the principal, a session, a process; and the scopes of a policy switch.

use evloopd::proto::event::Kind;
use evloopd::proto::*;
use tonic::Code;

use crate::common::another::{Act, Another};
use crate::common::{Recorder, loop_named, refused};
use crate::{get, get_in, get_policy, in_session, new, set, set_policy, start};

use PolicyScope::{Daemon as DaemonScope, Principal};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_principal_has_one_loop_in_all_its_processes() {
    let daemon = start().await;
    let own = get(&daemon).await.unwrap();
    let mut other = Another::start(&daemon, Act::GetEventLoop);
    assert_eq!(other.told(), own.full_name);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_process_has_its_own_loop_which_ends_with_it() {
    let daemon = start().await;
    set_policy(&daemon, Some("by-process"), Principal)
        .await
        .unwrap();
    let own = get(&daemon).await.unwrap();
    assert_eq!(get(&daemon).await.unwrap().loop_id, own.loop_id);
    let mut other = Another::start(&daemon, Act::GetEventLoop);
    let theirs = other.told();
    assert_ne!(theirs, own.full_name);

    let mut recorder = Recorder::of(&daemon, &loop_named(&theirs)).await;
    drop(other);
    assert_eq!(recorder.end().await.reason(), GoodbyeReason::LoopClosed);
    assert_eq!(get(&daemon).await.unwrap().loop_id, own.loop_id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_session_is_shared_by_all_clients_that_name_it() {
    let daemon = start().await;
    set_policy(&daemon, Some("by-session"), Principal)
        .await
        .unwrap();
    let needs_one = refused(get(&daemon).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(needs_one.fields, ["evloopd-session"]);
    let one = get_in(&daemon, "one").await.unwrap();
    assert_eq!(get_in(&daemon, "one").await.unwrap().loop_id, one.loop_id);
    assert_ne!(get_in(&daemon, "two").await.unwrap().loop_id, one.loop_id);
    for bad in [
        "UPPER",
        "",
        "-x",
        "a b",
        "x2345678901234567890123456789012345678901",
    ] {
        let refusal = get_in(&daemon, bad).await;
        refused(refusal, Code::InvalidArgument, "INVALID_FIELD");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_session_takes_precedence_over_the_policys_context() {
    let daemon = start().await;
    set_policy(&daemon, Some("by-process"), Principal)
        .await
        .unwrap();
    let own = get(&daemon).await.unwrap();
    let session = get_in(&daemon, "s").await.unwrap();
    assert_ne!(session.loop_id, own.loop_id);
    let unset = in_session(
        "s",
        SetEventLoopRequest {
            loop_name: None,
            ..SetEventLoopRequest::default()
        },
    );
    daemon.policies().set_event_loop(unset).await.unwrap();
    refused(
        get_in(&daemon, "s").await,
        Code::NotFound,
        "NO_LOOP_IN_CONTEXT",
    );
    assert_eq!(
        get(&daemon).await.unwrap().loop_id,
        own.loop_id,
        "other contexts keep their loops"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn only_get_event_loop_and_calls_without_a_loop_may_create() {
    let daemon = start().await;
    let absent = GetLoopRequest { r#loop: None };
    let refusal = daemon.loops().get_loop(absent.clone()).await;
    assert_eq!(refusal.unwrap_err().code(), Code::NotFound);
    let answer = daemon
        .policies()
        .get_event_loop(GetEventLoopRequest {})
        .await
        .unwrap();
    assert!(answer.into_inner().created);
    daemon.loops().get_loop(absent).await.unwrap();
    let answer = daemon
        .policies()
        .get_event_loop(GetEventLoopRequest {})
        .await
        .unwrap();
    assert!(!answer.into_inner().created);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_policy_switch_is_an_event_and_changes_no_existing_loop() {
    let daemon = start().await;
    let before = new(&daemon, "mine", "").await.unwrap();
    let mut recorder = Recorder::of(&daemon, &loop_named("mine")).await;
    set_policy(&daemon, Some("later"), Principal).await.unwrap();
    let changed = |old: &'static str, new: &'static str, scope: PolicyScope| {
        move |event: &Event| match &event.kind {
            Some(Kind::PolicyChanged(change)) => {
                assert_eq!(event.watch_id, 0);
                change.old_policy == old && change.new_policy == new && change.scope() == scope
            }
            _ => false,
        }
    };
    recorder
        .find("the switch", changed("default", "later", Principal))
        .await;
    set_policy(&daemon, None, Principal).await.unwrap();
    recorder
        .find("the way back", changed("later", "default", Principal))
        .await;
    set_policy(&daemon, Some("strict"), DaemonScope)
        .await
        .unwrap();
    recorder
        .find("the daemon's", changed("default", "strict", DaemonScope))
        .await;

    let request = GetLoopRequest {
        r#loop: Some(loop_named("mine")),
    };
    let after = daemon
        .loops()
        .get_loop(request)
        .await
        .unwrap()
        .into_inner()
        .r#loop
        .unwrap();
    let same = |l: &Loop| (l.policy.clone(), l.backend.clone(), l.state(), l.loop_id);
    assert_eq!(same(&after), same(&before));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_callers_own_policy_takes_precedence_over_the_daemons() {
    let daemon = start().await;
    set_policy(&daemon, Some("strict"), DaemonScope)
        .await
        .unwrap();
    assert_eq!(get_policy(&daemon).await, ("strict".into(), DaemonScope));
    set_policy(&daemon, Some("later"), Principal).await.unwrap();
    set_policy(&daemon, None, DaemonScope).await.unwrap();
    assert_eq!(get_policy(&daemon).await, ("later".into(), Principal));
    set_policy(&daemon, None, Principal).await.unwrap();
    assert_eq!(get_policy(&daemon).await, ("default".into(), DaemonScope));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_loop_that_is_set_stays_set_after_a_policy_switch() {
    let daemon = start().await;
    new(&daemon, "mine", "").await.unwrap();
    set(&daemon, Some("mine")).await.unwrap();
    set_policy(&daemon, Some("strict"), Principal)
        .await
        .unwrap();
    assert_eq!(get(&daemon).await.unwrap().name, "mine");
}
