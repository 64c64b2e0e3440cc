//! Policies: what asyncio 3.5.3 documents about them, and what evloopd adds for a whole host.

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod contexts;
#[allow(unsafe_code)]
mod denied;
mod documented;
mod lifetimes;
mod platforms;
mod rules;

use evloopd::proto::*;
use tonic::{Request, Status};

use common::Daemon;

const CONFIG: &str = r#"
[policy.strict]
extends = "default"
on_missing = "error"
[policy.by-session]
extends = "default"
context = "session"
[policy.by-process]
extends = "default"
context = "process"
[policy.later]
description = "Loops that wait for RunLoop"
extends = "strict"
start = "created"
backends = ["poll", "select"]
child_watcher = "thread"
finished_ttl = "7s"
journal_events = 1000
"#;

/// The entry of the client process that some tests start: see [`common::another`].
#[test]
fn another_process() {
    common::another::act();
}

async fn start() -> Daemon {
    Daemon::start(CONFIG).await
}

async fn get(daemon: &Daemon) -> Result<Loop, Status> {
    let answer = daemon
        .policies()
        .get_event_loop(GetEventLoopRequest {})
        .await?;
    Ok(answer.into_inner().r#loop.expect("never nothing"))
}

/// Returns a request made in that session.
fn in_session<T>(session: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = tonic::metadata::MetadataValue::from_static(session);
    request.metadata_mut().insert("evloopd-session", value);
    request
}

async fn get_in(daemon: &Daemon, session: &'static str) -> Result<Loop, Status> {
    let request = in_session(session, GetEventLoopRequest {});
    let answer = daemon.policies().get_event_loop(request).await?;
    Ok(answer.into_inner().r#loop.expect("never nothing"))
}

async fn set(daemon: &Daemon, name: Option<&str>) -> Result<(), Status> {
    let request = SetEventLoopRequest {
        loop_name: name.map(Into::into),
        ..SetEventLoopRequest::default()
    };
    daemon.policies().set_event_loop(request).await.map(drop)
}

async fn new(daemon: &Daemon, name: &str, policy: &str) -> Result<Loop, Status> {
    let request = NewEventLoopRequest {
        name: name.into(),
        policy: policy.into(),
        ..NewEventLoopRequest::default()
    };
    let answer = daemon
        .policies()
        .new_event_loop(request)
        .await?
        .into_inner();
    assert!(answer.created);
    Ok(answer.r#loop.expect("the loop"))
}

async fn get_policy(daemon: &Daemon) -> (String, PolicyScope) {
    let answer = daemon
        .policies()
        .get_event_loop_policy(GetEventLoopPolicyRequest {})
        .await;
    let answer = answer.unwrap().into_inner();
    let scope = answer.scope();
    (answer.policy.expect("there is always a policy").name, scope)
}

async fn set_policy(
    daemon: &Daemon,
    name: Option<&str>,
    scope: PolicyScope,
) -> Result<String, Status> {
    let request = SetEventLoopPolicyRequest {
        policy_name: name.map(Into::into),
        scope: scope.into(),
        ..SetEventLoopPolicyRequest::default()
    };
    let answer = daemon.policies().set_event_loop_policy(request).await?;
    Ok(answer
        .into_inner()
        .policy
        .expect("the policy in force")
        .name)
}
