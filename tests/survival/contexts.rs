//! What is set for contexts, and policies that were set.

use evloopd::proto::*;

use crate::common::{Daemon, command_with_keeper, directory};
use crate::{CONFIG, murder};

async fn start() -> Daemon {
    let config =
        format!("{CONFIG}[policy.by-process]\nextends = \"default\"\ncontext = \"process\"\n");
    let dir = directory();
    let command = command_with_keeper(dir.path(), &config, &[]);
    Daemon::start_as(std::sync::Arc::clone(&dir), command).await
}

async fn loop_of(daemon: &Daemon) -> Result<Loop, tonic::Status> {
    let mut policies = daemon.policies();
    let answer = policies.get_event_loop(GetEventLoopRequest {}).await?;
    Ok(answer.into_inner().r#loop.unwrap())
}

async fn set_policy(daemon: &Daemon, name: &str) {
    let request = SetEventLoopPolicyRequest {
        policy_name: Some(name.to_owned()),
        ..SetEventLoopPolicyRequest::default()
    };
    daemon
        .policies()
        .set_event_loop_policy(request)
        .await
        .unwrap();
}

async fn policy(daemon: &Daemon) -> GetEventLoopPolicyResponse {
    let request = GetEventLoopPolicyRequest {};
    let answer = daemon.policies().get_event_loop_policy(request).await;
    answer.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn contexts_have_their_loops_and_principals_their_policies_in_the_next_life() {
    let daemon = start().await;
    let own = loop_of(&daemon).await.unwrap();
    // More than once: what is taken up is kept again.
    for _ in 0..2 {
        murder(&daemon).await;
        assert_eq!(loop_of(&daemon).await.unwrap().loop_id, own.loop_id);
    }
    set_policy(&daemon, "by-process").await;
    let mine = loop_of(&daemon).await.unwrap();
    assert_ne!(mine.loop_id, own.loop_id);
    for _ in 0..2 {
        murder(&daemon).await;
        let now = policy(&daemon).await;
        assert_eq!(now.policy.as_ref().unwrap().name, "by-process");
        assert_eq!(now.scope(), PolicyScope::Principal);
        assert_eq!(loop_of(&daemon).await.unwrap().loop_id, mine.loop_id);
    }
    let unset = SetEventLoopRequest::default();
    daemon.policies().set_event_loop(unset).await.unwrap();
    murder(&daemon).await;
    loop_of(&daemon).await.unwrap_err();
    set_policy(&daemon, "default").await;
    assert_eq!(loop_of(&daemon).await.unwrap().loop_id, own.loop_id);
}
