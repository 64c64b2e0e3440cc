//! The WatchService.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use prost::Message as _;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

use super::quota::{Charge, MemoryQuota};
use super::server::watch_service_server::WatchService;
use super::{Api, Requester, convert, mutate, object, requester, spec, status};
use crate::error::{Error, Result};
use crate::event_loop::{Added, Handle, Update, UpdateOutcome, WatchFilter, WatchName};
use crate::kinds::WatchKind;
use crate::memory::Use;
use crate::proto::*;
use crate::watch::Order;

/// Most watches that one Rearm or Poll arms.
const REARM_MAX: usize = 65_536;
/// How often an update is tried if other calls that change its specification come in between.
const UPDATES_TRIED: u32 = 10;
/// Most registrations of one call.
const BATCH_MAX: usize = 1024;

/// Returns one watch, and the memory that it takes until the client has it.
pub(super) async fn look(
    on: &Handle,
    quota: &Arc<MemoryQuota>,
    name: WatchName,
) -> Result<(Watch, Charge)> {
    let mut held = quota.empty_charge(Use::Requests);
    let counted = move |watch: Watch| {
        held.grow(watch.encoded_len() as u64)?;
        Ok((watch, held))
    };
    on.get(name, counted).await
}

/// Adds what running processes have used so far, off the loop's thread.
async fn with_usage(mut watches: Vec<Watch>) -> Result<Vec<Watch>> {
    fn running(watch: &mut Watch) -> Option<&mut ProcessStatus> {
        match &mut watch.status {
            Some(watch::Status::Process(process)) if !process.cgroup.is_empty() => Some(process),
            _ => None,
        }
    }
    if watches.iter_mut().all(|watch| running(watch).is_none()) {
        return Ok(watches);
    }
    let work = move || {
        for process in watches.iter_mut().filter_map(running) {
            let usage = crate::cgroup::usage(std::path::Path::new(&process.cgroup));
            process.cgroup_usage = usage.map(Into::into);
        }
        watches
    };
    let lost = |_| Error::Internal("the thread that reads what processes use gave no result");
    tokio::task::spawn_blocking(work).await.map_err(lost)
}

impl Api {
    /// Adds one watch and waits until that is done.
    async fn add(
        &self,
        requester: &Requester,
        on: &Handle,
        request: AddWatchRequest,
    ) -> Result<AddWatchResponse> {
        self.registry.check_draining()?;
        let (registration, order) = spec::registration(self, &requester.peer, on, request)?;
        self.register(on, registration, order).await.map(added)
    }

    /// Waits for the slots that the requests name and that may be under way: up to
    /// [`SLOT_WAIT`](crate::handover::SLOT_WAIT) for all of them together, and no longer than the
    /// call.
    async fn await_slots(&self, requester: &Requester, requests: &[AddWatchRequest]) {
        let specs = requests.iter().filter_map(|request| request.spec.as_ref());
        let slots = specs.flat_map(spec::slots);
        self.slots.arrived(&requester.peer, slots).await;
    }

    /// Changes a watch, and waits until that is done.
    async fn update(
        &self,
        requester: &Requester,
        on: &Handle,
        name: &WatchName,
        asked: spec::update::Asked,
    ) -> Result<UpdateWatchResponse> {
        let id = look(on, &requester.quota, name.clone()).await?.0.watch_id;
        let _turn = on.turn_to_update(id).await;
        for _ in 0..UPDATES_TRIED {
            let (watch, _held) = look(on, &requester.quota, WatchName::Id(id)).await?;
            let planned = spec::update::plan(self, &requester.peer, on, &asked, &watch)?;
            let mut update = Update {
                spec: None,
                change: None,
                labels: asked.labels.clone(),
                finished_ttl: asked.finished_ttl,
                fields: Vec::new(),
                request_id: asked.request_id.clone(),
            };
            if let Some(planned) = planned {
                let services = Arc::clone(self.registry.services());
                let (tell, told) = tokio::sync::oneshot::channel();
                let prepare = move || (planned.prepare)(&services);
                let starters = &self.registry.services().starters;
                starters.run(prepare, move |done| drop(tell.send(done)));
                let lost = |_| Error::Internal("the preparation of a change gave no result");
                update.change = Some(told.await.map_err(lost)??);
                (update.spec, update.fields) = (Some(planned.specs), planned.fields);
            }
            match on.update(WatchName::Id(id), update).await? {
                UpdateOutcome::Done(watch, updated) => {
                    return Ok(UpdateWatchResponse {
                        watch: Some(*watch),
                        updated: updated.map(Into::into),
                    });
                }
                UpdateOutcome::Outdated => {}
            }
        }
        Err(Error::wrong_state(
            "other calls keep changing the watch: try again",
        ))
    }

    /// Begins to add a watch of a batch. Watches that need no preparation are added in order;
    /// preparations run in parallel.
    async fn begin_add(
        &self,
        requester: &Requester,
        on: &Handle,
        request: AddWatchRequest,
    ) -> Begun {
        let checked = self
            .registry
            .check_draining()
            .and_then(|()| spec::registration(self, &requester.peer, on, request));
        match checked {
            Err(error) => Begun::Done(Box::new(Err(error))),
            Ok((registration, order @ Order::Now(_))) => {
                match on.begin_add(registration, order).await {
                    Err(error) => Begun::Done(Box::new(Err(error))),
                    Ok(rest) => Begun::Asked(Box::pin(async move { rest.await.map(added) })),
                }
            }
            Ok((registration, order)) => {
                let (api, on) = (self.clone(), on.clone());
                let task = async move { api.register(&on, registration, order).await.map(added) };
                Begun::Under(tokio::spawn(task))
            }
        }
    }
}

/// Most registrations of one batch in the mailbox of their loop at a time; also at most a quarter
/// of the mailbox.
const BATCH_ASKED: usize = 64;

type Asked = Pin<Box<dyn Future<Output = Result<AddWatchResponse>> + Send>>;

/// The state of one registration of a batch.
enum Begun {
    Done(Box<Result<AddWatchResponse>>),
    Asked(Asked),
    Under(JoinHandle<Result<AddWatchResponse>>),
}

impl Begun {
    /// Waits for the loop's answer.
    async fn finish_asked(&mut self) {
        if let Self::Asked(task) = self {
            *self = Self::Done(Box::new(task.await));
        }
    }

    async fn finish(self) -> Result<AddWatchResponse> {
        match self {
            Self::Done(result) => *result,
            Self::Asked(task) => task.await,
            Self::Under(task) => {
                let lost = |_| Error::Internal("the task of the call ended without a result");
                task.await.map_err(lost)?
            }
        }
    }
}

pub(super) fn added(added: Added) -> AddWatchResponse {
    AddWatchResponse {
        added: added.watch.added.clone(),
        watch: Some(added.watch),
        existed: added.existed,
    }
}

#[tonic::async_trait]
impl WatchService for Api {
    async fn add_watch(
        &self,
        request: Request<AddWatchRequest>,
    ) -> Result<Response<AddWatchResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, mut request: AddWatchRequest| async move {
            let on = api.on(&requester, request.r#loop.take(), true)?;
            api.await_slots(&requester, std::slice::from_ref(&request))
                .await;
            let (api, who, object) = (api.clone(), requester.clone(), object(&on, &request.name));
            let added = mutate(&requester, "AddWatch", object, async move {
                api.add(&who, &on, request).await
            })
            .await?;
            Ok(added)
        };
        let answer = self
            .once(requester, "AddWatch", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn batch_add_watches(
        &self,
        request: Request<BatchAddWatchesRequest>,
    ) -> Result<Response<BatchAddWatchesResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: BatchAddWatchesRequest| async move {
            if request.requests.len() > BATCH_MAX {
                return Err(Error::invalid("requests", "must be at most 1024 requests"));
            }
            if let Some(index) = request.requests.iter().position(|r| r.r#loop.is_some()) {
                let allowed = "must not be set: the field loop of the batch names the loop";
                return Err(Error::invalid(format!("requests[{index}].loop"), allowed));
            }
            let on = api.on(&requester, request.r#loop, true)?;
            api.await_slots(&requester, &request.requests).await;
            let (api, who) = (api.clone(), requester.clone());
            let object = object(&on, format!("{} watches", request.requests.len()));
            let results = mutate(&requester, "BatchAddWatches", object, async move {
                let mut started: Vec<Begun> = Vec::with_capacity(request.requests.len());
                let mut asked: VecDeque<usize> = VecDeque::new();
                let most = BATCH_ASKED.min(api.registry.config().limits.mailbox / 4);
                for request in request.requests {
                    if asked.len() >= most.max(1)
                        && let Some(oldest) = asked.pop_front()
                        && let Some(begun) = started.get_mut(oldest)
                    {
                        begun.finish_asked().await;
                    }
                    let begun = api.begin_add(&who, &on, request).await;
                    if matches!(begun, Begun::Asked(_)) {
                        asked.push_back(started.len());
                    }
                    started.push(begun);
                }
                let mut results = Vec::with_capacity(started.len());
                for begun in started {
                    results.push(begun.finish().await);
                }
                Ok(results)
            })
            .await?;
            Ok(BatchAddWatchesResponse {
                results: results.into_iter().map(batch_result).collect(),
            })
        };
        let answer = self
            .once(requester, "BatchAddWatches", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn get_watch(
        &self,
        request: Request<GetWatchRequest>,
    ) -> Result<Response<GetWatchResponse>, Status> {
        let requester = requester(&request)?;
        let request = request.into_inner();
        let on = self.on(&requester, request.r#loop, false)?;
        let watch = convert::watch_name(request.watch)?;
        let (watch, _held) = look(&on, &requester.quota, watch).await?;
        let watch = with_usage(vec![watch]).await?.pop();
        Ok(Response::new(GetWatchResponse { watch }))
    }

    async fn list_watches(
        &self,
        request: Request<ListWatchesRequest>,
    ) -> Result<Response<ListWatchesResponse>, Status> {
        let requester = requester(&request)?;
        let request = request.into_inner();
        let on = self.on(&requester, request.r#loop, false)?;
        let (size, after) = convert::page(request.page_size, &request.page_token)?;
        if let Some(unknown) = request
            .watch_kinds
            .iter()
            .find_map(|kind| kind.parse::<WatchKind>().err())
        {
            return Err(Error::invalid("watch_kinds", unknown.to_string()).into());
        }
        let filter = WatchFilter {
            labels: request.labels,
            kinds: request.watch_kinds.into_iter().collect(),
            open_only: request.open_only,
        };
        let mut held = requester.quota.empty_charge(Use::Requests);
        let counted = move |step: &[Watch]| {
            let bytes: usize = step.iter().map(prost::Message::encoded_len).sum();
            held.grow(bytes as u64)
        };
        let (page, _counted) = on.list(after, size, filter, counted).await?;
        Ok(Response::new(ListWatchesResponse {
            watches: with_usage(page.items).await?,
            next_page_token: page.next.map(|id| id.to_string()).unwrap_or_default(),
        }))
    }

    async fn remove_watch(
        &self,
        request: Request<RemoveWatchRequest>,
    ) -> Result<Response<RemoveWatchResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: RemoveWatchRequest| async move {
            let on = api.on(&requester, request.r#loop, false)?;
            let name = convert::watch_name(request.watch)?;
            let request_id = convert::short_text("request_id", request.request_id)?;
            let object = object(&on, name.to_string());
            let removed = mutate(&requester, "RemoveWatch", object, async move {
                on.remove(name, request_id).await
            })
            .await?;
            Ok(RemoveWatchResponse {
                removed: Some(removed.into()),
            })
        };
        let answer = self
            .once(requester, "RemoveWatch", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn update_watch(
        &self,
        request: Request<UpdateWatchRequest>,
    ) -> Result<Response<UpdateWatchResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, mut request: UpdateWatchRequest| async move {
            let on = api.on(&requester, request.r#loop.take(), false)?;
            let name = convert::watch_name(request.watch.take())?;
            let asked = spec::update::asked(request)?;
            let (api, who, object) = (
                api.clone(),
                requester.clone(),
                object(&on, name.to_string()),
            );
            mutate(&requester, "UpdateWatch", object, async move {
                api.update(&who, &on, &name, asked).await
            })
            .await
        };
        let answer = self
            .once(requester, "UpdateWatch", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn rearm(
        &self,
        request: Request<RearmRequest>,
    ) -> Result<Response<RearmResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: RearmRequest| async move {
            let on = api.on(&requester, request.r#loop, false)?;
            check_items("items", &request.items)?;
            Ok(on.rearm(request.items).await?.answer)
        };
        let answer = self
            .once(requester, "Rearm", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn take_fd(
        &self,
        request: Request<TakeFdRequest>,
    ) -> Result<Response<TakeFdResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: TakeFdRequest| async move {
            let on = api.on(&requester, request.r#loop, false)?;
            let name = convert::watch_name(request.watch)?;
            let (api, principal) = (api.clone(), requester.peer.principal.clone());
            let object = object(&on, name.to_string());
            let response = mutate(&requester, "TakeFd", object, async move {
                // Reserved first: if there is no free slot, the watch must stay as it is.
                let place = api.slots.reserve(&principal)?;
                let taken = on.take_fd(name).await?;
                let slot = place.fill(taken.fd);
                Ok(TakeFdResponse {
                    slot: slot.to_vec().into(),
                    closed: Some(taken.closed.into()),
                    received_bytes: taken.received,
                })
            })
            .await?;
            Ok(response)
        };
        let answer = self
            .once(requester, "TakeFd", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }
}

pub(super) fn check_items(field: &'static str, items: &[RearmItem]) -> Result<()> {
    if items.len() > REARM_MAX {
        return Err(Error::invalid(field, "must be at most 65536 items"));
    }
    let seen = |item: &RearmItem| item.disarm && item.seq != 0;
    if let Some(index) = items.iter().position(seen) {
        let field = format!("{field}[{index}].seq");
        return Err(Error::invalid(field, "must be 0 if disarm is set"));
    }
    Ok(())
}

fn batch_result(result: Result<AddWatchResponse>) -> BatchAddWatchesResult {
    use batch_add_watches_result::Result as Outcome;

    let outcome = match result {
        Ok(added) => Outcome::Added(added),
        Err(error) => Outcome::Error(status::batch_error(&error)),
    };
    BatchAddWatchesResult {
        result: Some(outcome),
    }
}
