//! The PolicyService.

use tonic::{Request, Response, Status};

use super::server::policy_service_server::PolicyService;
use super::{Api, Requester, convert, mutate, requester};
use crate::config::{Policy, Refusable};
use crate::driver::{Backend, backend, capability};
use crate::error::Error;
use crate::event::PolicyScope;
use crate::policy::NewLoop;
use crate::proto::{self, *};

#[tonic::async_trait]
impl PolicyService for Api {
    async fn get_event_loop(
        &self,
        request: Request<GetEventLoopRequest>,
    ) -> Result<Response<GetEventLoopResponse>, Status> {
        let requester = requester(&request)?;
        let (handle, created) = self.registry.get_event_loop(&requester.caller)?;
        Ok(Response::new(GetEventLoopResponse {
            r#loop: Some(handle.view()),
            created,
        }))
    }

    async fn set_event_loop(
        &self,
        request: Request<SetEventLoopRequest>,
    ) -> Result<Response<SetEventLoopResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: SetEventLoopRequest| async move {
            let name = request.loop_name;
            let (api, caller) = (api.clone(), requester.caller.clone());
            let object = name.clone().unwrap_or_default();
            mutate(&requester, "SetEventLoop", object, async move {
                api.registry.set_event_loop(&caller, name.as_deref())
            })
            .await?;
            Ok(SetEventLoopResponse {})
        };
        let answer = self
            .once(requester, "SetEventLoop", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn new_event_loop(
        &self,
        request: Request<NewEventLoopRequest>,
    ) -> Result<Response<NewEventLoopResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: NewEventLoopRequest| async move {
            let new = NewLoop {
                or_existing: convert::if_exists(request.if_exists)?,
                name: request.name,
                policy: request.policy,
                backend: request.backend,
                history: convert::history(request.history)?,
                lifetime: convert::lifetime(
                    request.lifetime,
                    request.lease,
                    request.at_lifetime_end,
                    &requester.peer,
                    None,
                )?,
            };
            let (api, caller) = (api.clone(), requester.caller.clone());
            let object = new.name.clone();
            let (handle, created) = mutate(&requester, "NewEventLoop", object, async move {
                api.registry.new_event_loop(&caller, &new)
            })
            .await?;
            Ok(NewEventLoopResponse {
                r#loop: Some(handle.view()),
                created,
            })
        };
        let answer = self
            .once(requester, "NewEventLoop", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn get_event_loop_policy(
        &self,
        request: Request<GetEventLoopPolicyRequest>,
    ) -> Result<Response<GetEventLoopPolicyResponse>, Status> {
        let requester = requester(&request)?;
        let (policy, scope) = self.registry.policy_of(&requester.caller.principal);
        Ok(Response::new(GetEventLoopPolicyResponse {
            policy: Some(describe(&policy)),
            scope: scope.into(),
        }))
    }

    async fn set_event_loop_policy(
        &self,
        request: Request<SetEventLoopPolicyRequest>,
    ) -> Result<Response<SetEventLoopPolicyResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: SetEventLoopPolicyRequest| async move {
            let SetEventLoopPolicyRequest {
                policy_name, scope, ..
            } = request;
            let scope = match PolicyScope::try_from(scope) {
                Ok(PolicyScope::Unspecified | PolicyScope::Principal) => PolicyScope::Principal,
                Ok(PolicyScope::Daemon) => PolicyScope::Daemon,
                Err(_) => return Err(Error::invalid("scope", "must be PRINCIPAL or DAEMON")),
            };
            let (api, caller) = (api.clone(), requester.caller.clone());
            let object = policy_name.clone().unwrap_or_default();
            let policy = mutate(&requester, "SetEventLoopPolicy", object, async move {
                let name = policy_name.as_deref();
                api.registry.set_policy(&caller, name, scope).await
            })
            .await?;
            Ok(SetEventLoopPolicyResponse {
                policy: Some(describe(&policy)),
            })
        };
        let answer = self
            .once(requester, "SetEventLoopPolicy", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn list_event_loop_policies(
        &self,
        request: Request<ListEventLoopPoliciesRequest>,
    ) -> Result<Response<ListEventLoopPoliciesResponse>, Status> {
        requester(&request)?;
        let policies = self.registry.policies().map(|policy| describe(policy));
        Ok(Response::new(ListEventLoopPoliciesResponse {
            policies: policies.collect(),
        }))
    }

    async fn list_backends(
        &self,
        request: Request<ListBackendsRequest>,
    ) -> Result<Response<ListBackendsResponse>, Status> {
        requester(&request)?;
        let backends = Backend::ALL
            .iter()
            .map(|backend| describe_backend(*backend));
        let documented = capability::documented().into_iter();
        Ok(Response::new(ListBackendsResponse {
            backends: backends.collect(),
            documented_loops: documented.map(describe_documented).collect(),
        }))
    }
}

fn describe_backend(backend: Backend) -> proto::Backend {
    let unavailable = backend::availability(backend).err();
    proto::Backend {
        name: backend.name().to_owned(),
        loop_class: backend.class().name().to_owned(),
        available: unavailable.is_none(),
        unavailable_reason: unavailable.unwrap_or_default(),
        capabilities: describe_capabilities(capability::capabilities(backend)),
    }
}

fn describe_documented(documented: capability::DocumentedLoop) -> DocumentedLoop {
    DocumentedLoop {
        platform: documented.platform.to_owned(),
        name: documented.name.to_owned(),
        source: documented.source.to_owned(),
        capabilities: describe_capabilities(documented.capabilities),
    }
}

fn describe_capabilities(can: Vec<capability::Capability>) -> Vec<Capability> {
    let describe = |c: capability::Capability| Capability {
        name: c.name.to_owned(),
        supported: c.supported,
        limit: c.limit,
        reason: c.reason.to_owned(),
        survives: c.survives.map_or(0, |level| Survives::from(level).into()),
    };
    can.into_iter().map(describe).collect()
}

fn describe(policy: &Policy) -> proto::Policy {
    let refuses = policy.refuses.iter().map(|(of, reason)| Capability {
        name: of.name().to_owned(),
        supported: false,
        limit: 0,
        reason: reason.clone(),
        ..Capability::default()
    });
    proto::Policy {
        name: policy.name.clone(),
        description: policy.description.clone(),
        extends: policy.extends.clone().unwrap_or_default(),
        loop_class: policy.class.clone(),
        backends: policy.backends.clone(),
        context: policy.context.name().to_owned(),
        on_missing: policy.on_missing.name().to_owned(),
        start: policy.start.name().to_owned(),
        child_watcher: policy.child_watcher.name().to_owned(),
        watch_kinds: policy
            .accepted_kinds()
            .map(|kind| kind.name().to_owned())
            .collect(),
        sockets_only: policy.sockets_only,
        max_sources: policy.max_sources.unwrap_or(0),
        max_watches: policy.max_watches,
        journal_events: policy.journal_events,
        journal_bytes: policy.journal_bytes,
        history: policy.history.name().to_owned(),
        survives: policy.survives.name().to_owned(),
        when_full: policy.when_full.name().to_owned(),
        journal_watch_bytes: policy.journal_watch_bytes.unwrap_or(0),
        journal_watch_keep: policy.journal_watch_keep,
        attached_bytes: policy.attached_bytes,
        attached_patience: Some(crate::clock::duration(policy.attached_patience)),
        consumer_ttl: Some(crate::clock::duration(policy.consumer_ttl)),
        finished_ttl: Some(crate::clock::duration(policy.finished_ttl)),
        closed_ttl: Some(crate::clock::duration(policy.closed_ttl)),
        unix_sockets: policy.refusal(Refusable::UnixSocket).is_none(),
        loop_name: policy.loop_name.clone(),
        refuses: refuses.collect(),
        timer_tick: Some(crate::clock::duration(policy.timer_tick)),
    }
}
