//! Sections 18.5.2.1 and 18.5.2.4 to 18.5.2.6 of the documentation of asyncio in Python 3.5.3: each
//! sentence is a test named after it. Where asyncio says thread, evloopd says context.

use std::time::Duration;

use evloopd::proto::*;
use tonic::Code;

use crate::common::{Daemon, Recorder, after, loop_named, refused};
use crate::{get, get_policy, new, set, set_policy, start};

use PolicyScope::{Daemon as DaemonScope, Principal, Unspecified};

/// Adds a timer to the loop that a call resolves to, and returns the epoch of that loop.
async fn works(daemon: &Daemon, on: Option<LoopRef>) -> String {
    let request = AddWatchRequest {
        r#loop: on,
        spec: Some(WatchSpec {
            spec: Some(after(Duration::ZERO)),
        }),
        ..AddWatchRequest::default()
    };
    let answer = daemon.watches().add_watch(request).await.unwrap();
    answer.into_inner().added.unwrap().epoch
}

fn epoch(of: &Loop) -> &str {
    &of.journal.as_ref().expect("a loop has a journal").epoch
}

// 18.5.2.1. Event loop functions

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_following_functions_are_convenient_shortcuts_to_the_methods_of_the_global_policy() {
    let daemon = start().await;
    // A call that names no loop uses the loop that the policy returns.
    let meant = works(&daemon, None).await;
    assert_eq!(epoch(&get(&daemon).await.unwrap()), meant);
    let policy = get_policy(&daemon).await.0;
    assert_eq!(get(&daemon).await.unwrap().policy, policy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn this_provides_access_to_the_default_policy_unless_an_alternative_policy_was_set() {
    let daemon = start().await;
    assert_eq!(new(&daemon, "", "").await.unwrap().policy, "default");
    set_policy(&daemon, Some("later"), Unspecified)
        .await
        .unwrap();
    let made = new(&daemon, "", "").await.unwrap();
    assert_eq!(
        (made.policy.as_str(), made.backend.as_str()),
        ("later", "poll")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn get_event_loop_is_equivalent_to_calling_it_on_the_current_policy() {
    let daemon = start().await;
    set_policy(&daemon, Some("strict"), Unspecified)
        .await
        .unwrap();
    refused(get(&daemon).await, Code::NotFound, "NO_LOOP_IN_CONTEXT");
    set_policy(&daemon, None, Unspecified).await.unwrap();
    assert_eq!(get(&daemon).await.unwrap().policy, "default");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn set_event_loop_is_equivalent_to_calling_it_on_the_current_policy() {
    let daemon = start().await;
    set_policy(&daemon, Some("by-session"), Unspecified)
        .await
        .unwrap();
    new(&daemon, "mine", "").await.unwrap();
    let without_session = set(&daemon, Some("mine")).await;
    refused(without_session, Code::InvalidArgument, "INVALID_FIELD");
    set_policy(&daemon, None, Unspecified).await.unwrap();
    set(&daemon, Some("mine")).await.unwrap();
    assert_eq!(get(&daemon).await.unwrap().name, "mine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn new_event_loop_is_equivalent_to_calling_it_on_the_current_policy() {
    let daemon = start().await;
    let running = new(&daemon, "", "").await.unwrap();
    assert_eq!(running.state(), LoopState::Running);
    set_policy(&daemon, Some("later"), Unspecified)
        .await
        .unwrap();
    let created = new(&daemon, "", "").await.unwrap();
    assert_eq!(created.state(), LoopState::Created);
}

// 18.5.2.4. Event loop policies and the default policy

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_single_global_policy_object_manages_the_loops_based_on_the_calling_context() {
    let daemon = start().await;
    let own = get(&daemon).await.unwrap();
    let first = crate::get_in(&daemon, "first").await.unwrap();
    let second = crate::get_in(&daemon, "second").await.unwrap();
    let mut ids = vec![own.loop_id, first.loop_id, second.loop_id];
    ids.dedup();
    assert_eq!(ids.len(), 3);
    assert!(
        [&own, &first, &second]
            .iter()
            .all(|l| l.policy == "default")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn for_most_users_policies_never_have_to_be_dealt_with_explicitly() {
    let daemon = Daemon::start("").await;
    works(&daemon, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_default_policy_manages_an_event_loop_per_context_that_interacts() {
    let daemon = start().await;
    let list = || async {
        let answer = daemon.loops().list_loops(ListLoopsRequest::default()).await;
        answer.unwrap().into_inner().loops.len()
    };
    assert_eq!(list().await, 0, "there is no loop before the first call");
    let first = get(&daemon).await.unwrap();
    assert_eq!(get(&daemon).await.unwrap().loop_id, first.loop_id);
    assert_eq!(list().await, 1);
    crate::get_in(&daemon, "other").await.unwrap();
    assert_eq!(list().await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn get_and_set_provide_convenient_access_to_loops_managed_by_the_default_policy() {
    let daemon = start().await;
    let made = get(&daemon).await.unwrap();
    let other = new(&daemon, "other", "").await.unwrap();
    set(&daemon, Some(&other.full_name)).await.unwrap();
    assert_eq!(get(&daemon).await.unwrap().loop_id, other.loop_id);
    set(&daemon, Some(&made.name)).await.unwrap();
    assert_eq!(get(&daemon).await.unwrap().loop_id, made.loop_id);
}

// 18.5.2.5. Event loop policy interface

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_event_loop_policy_must_implement_the_following_interface() {
    let daemon = start().await;
    let request = ListEventLoopPoliciesRequest {};
    let list = daemon
        .policies()
        .list_event_loop_policies(request)
        .await
        .unwrap();
    let policies = list.into_inner().policies;
    let names: Vec<&str> = policies.iter().map(|policy| policy.name.as_str()).collect();
    assert!(
        names.is_sorted() && names.contains(&"windows-selector-compat"),
        "{names:?}"
    );
    for name in names {
        set_policy(&daemon, Some(name), Unspecified).await.unwrap();
        let made = new(&daemon, &format!("by-{name}"), "").await.unwrap();
        let request = crate::in_session(
            "everywhere",
            SetEventLoopRequest {
                loop_name: Some(made.name.clone()),
                ..SetEventLoopRequest::default()
            },
        );
        daemon.policies().set_event_loop(request).await.unwrap();
        let got = crate::get_in(&daemon, "everywhere").await.unwrap();
        assert_eq!(got.loop_id, made.loop_id, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn get_event_loop_gets_the_event_loop_for_the_current_context() {
    let daemon = start().await;
    new(&daemon, "one", "").await.unwrap();
    new(&daemon, "two", "").await.unwrap();
    set(&daemon, Some("one")).await.unwrap();
    let request = crate::in_session(
        "s",
        SetEventLoopRequest {
            loop_name: Some("two".into()),
            ..SetEventLoopRequest::default()
        },
    );
    daemon.policies().set_event_loop(request).await.unwrap();
    assert_eq!(get(&daemon).await.unwrap().name, "one");
    assert_eq!(crate::get_in(&daemon, "s").await.unwrap().name, "two");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn it_returns_an_event_loop_object_implementing_the_interface() {
    let daemon = start().await;
    let got = get(&daemon).await.unwrap();
    assert_eq!(got.state(), LoopState::Running);
    assert_eq!(
        works(&daemon, Some(loop_named(&got.full_name))).await,
        epoch(&got)
    );
    let mut recorder = Recorder::of(&daemon, &loop_named(&got.name)).await;
    recorder.first(1, "closed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn it_raises_in_case_no_loop_has_been_set_and_the_policy_does_not_specify_to_create_one() {
    let daemon = start().await;
    set_policy(&daemon, Some("strict"), Unspecified)
        .await
        .unwrap();
    refused(get(&daemon).await, Code::NotFound, "NO_LOOP_IN_CONTEXT");
    new(&daemon, "mine", "").await.unwrap();
    refused(get(&daemon).await, Code::NotFound, "NO_LOOP_IN_CONTEXT");
    set(&daemon, Some("mine")).await.unwrap();
    assert_eq!(get(&daemon).await.unwrap().name, "mine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn it_must_never_return_none() {
    let daemon = start().await;
    get(&daemon).await.unwrap();
    set(&daemon, None).await.unwrap();
    // The caller has unset its loop: the answer is an error, and no other loop is made.
    refused(get(&daemon).await, Code::NotFound, "NO_LOOP_IN_CONTEXT");
    let gone = new(&daemon, "gone", "later").await.unwrap();
    set(&daemon, Some("gone")).await.unwrap();
    let close = CloseLoopRequest {
        r#loop: Some(loop_named(&gone.name)),
        ..CloseLoopRequest::default()
    };
    daemon.loops().close_loop(close).await.unwrap();
    match get(&daemon).await {
        Ok(got) => assert_ne!(got.state(), LoopState::Closed),
        Err(status) => drop(refused::<()>(
            Err(status),
            Code::NotFound,
            "NO_LOOP_IN_CONTEXT",
        )),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn set_event_loop_sets_the_event_loop_for_the_current_context_to_loop() {
    let daemon = start().await;
    refused(
        set(&daemon, Some("nobody")).await,
        Code::NotFound,
        "LOOP_NOT_FOUND",
    );
    let made = new(&daemon, "mine", "later").await.unwrap();
    set(&daemon, Some("mine")).await.unwrap();
    assert_eq!(get(&daemon).await.unwrap().loop_id, made.loop_id);
    set(&daemon, Some("mine")).await.unwrap();
    let close = CloseLoopRequest {
        r#loop: Some(loop_named("mine")),
        ..CloseLoopRequest::default()
    };
    daemon.loops().close_loop(close).await.unwrap();
    let closed = set(&daemon, Some(&made.full_name)).await.unwrap_err();
    assert!(
        [Code::FailedPrecondition, Code::NotFound].contains(&closed.code()),
        "{closed:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn new_event_loop_creates_and_returns_a_new_loop_according_to_this_policys_rules() {
    let daemon = start().await;
    let made = new(&daemon, "", "later").await.unwrap();
    assert_eq!(made.name, format!("loop-{}", made.loop_id));
    assert_eq!(
        (made.state(), made.backend.as_str()),
        (LoopState::Created, "poll")
    );
    assert_eq!(
        (made.loop_class.as_str(), made.child_watcher.as_str()),
        ("selector", "thread")
    );
    assert_eq!(made.journal.unwrap().max_events, 1000);
    let other = new(&daemon, "", "later").await.unwrap();
    assert_ne!(other.loop_id, made.loop_id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn to_set_this_loop_for_the_current_context_set_event_loop_must_be_called_explicitly() {
    let daemon = start().await;
    let made = new(&daemon, "mine", "").await.unwrap();
    assert_ne!(get(&daemon).await.unwrap().loop_id, made.loop_id);
    set(&daemon, Some("mine")).await.unwrap();
    assert_eq!(get(&daemon).await.unwrap().loop_id, made.loop_id);
}

// 18.5.2.6. Access to the global loop policy

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn get_event_loop_policy_gets_the_current_event_loop_policy() {
    let daemon = start().await;
    assert_eq!(get_policy(&daemon).await, ("default".into(), DaemonScope));
    set_policy(&daemon, Some("strict"), Unspecified)
        .await
        .unwrap();
    assert_eq!(get_policy(&daemon).await, ("strict".into(), Principal));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn set_event_loop_policy_sets_the_current_event_loop_policy() {
    let daemon = start().await;
    let now = set_policy(&daemon, Some("later"), Principal).await.unwrap();
    assert_eq!(now, "later");
    let unknown = set_policy(&daemon, Some("nobody"), Principal).await;
    refused(unknown, Code::NotFound, "POLICY_NOT_FOUND");
    assert_eq!(get_policy(&daemon).await.0, "later");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn if_policy_is_none_the_default_policy_is_restored() {
    let daemon = start().await;
    set_policy(&daemon, Some("strict"), Principal)
        .await
        .unwrap();
    assert_eq!(
        set_policy(&daemon, None, Principal).await.unwrap(),
        "default"
    );
    assert_eq!(get_policy(&daemon).await, ("default".into(), DaemonScope));
    set_policy(&daemon, Some("later"), DaemonScope)
        .await
        .unwrap();
    assert_eq!(get_policy(&daemon).await, ("later".into(), DaemonScope));
    assert_eq!(
        set_policy(&daemon, None, DaemonScope).await.unwrap(),
        "default"
    );
}
