//! ProcessService.

use std::collections::VecDeque;
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::server::process_service_server::ProcessService;
use super::stream::{Acks, EventStream, Parts};
use super::watches::added;
use super::{Api, Asker, asker, convert, mutate, object, spec, subscribe};
use crate::config::WatchKind;
use crate::error::{Error, Result};
use crate::event::Cursor;
use crate::event_loop::{Added, Handle, WatchName};
use crate::journal::{Filter, Start};
use crate::proto::*;
use crate::watch::SignalTarget;

/// Bytes of events in one batch of Run.
const BATCH_BYTES: usize = 256 * 1024;

impl Api {
    /// Makes the process, or finds the one to join.
    async fn make_or_join(&self, asker: &Asker, on: &Handle, request: RunRequest) -> Result<Added> {
        let Some(process) = request.spec else {
            if request.name.is_empty() {
                return Err(Error::invalid(
                    "spec",
                    "must be set, or name: what to run or join",
                ));
            }
            let watch = on.get(WatchName::Name(request.name)).await?;
            if watch.watch_kind != WatchKind::Process.name() {
                return Err(Error::wrong_state(
                    "the watch of that name is not a process",
                ));
            }
            return Ok(Added {
                watch,
                existed: true,
            });
        };
        self.registry.check_draining()?;
        let add = AddWatchRequest {
            spec: Some(WatchSpec {
                spec: Some(watch_spec::Spec::Process(process)),
            }),
            name: request.name,
            labels: request.labels,
            user_data: request.user_data,
            if_exists: IfExists::Return.into(),
            request_id: request.request_id,
            ..AddWatchRequest::default()
        };
        let (registration, order) = spec::registration(self, &asker.peer, on, add)?;
        on.add(registration, order).await
    }
}

#[tonic::async_trait]
impl ProcessService for Api {
    type RunStream = EventStream<RunHeader>;

    async fn run(&self, request: Request<RunRequest>) -> Result<Response<Self::RunStream>, Status> {
        let asker = asker(&request)?;
        let mut request = request.into_inner();
        let permit = self.streams.take()?;
        let on = self.on(&asker, request.r#loop.take(), request.spec.is_some())?;
        let heartbeat = subscribe::heartbeat(request.heartbeat.take())?;
        convert::skips_gap(request.on_gap)?;
        let after = request.after.take();
        let after = after.map(|c| convert::after("after", &c, request.on_gap));
        let after = after.transpose()?;
        // Before anything is started: a cursor that is refused starts nothing.
        let resumed = after.map(|start| on.journal().reader(start, Filter::default()));
        let resumed = resumed.transpose()?;
        // Where its reader begins does not matter to what is made or joined.
        request.on_gap = 0;
        let handle = on.clone();
        let work = |api: Self, asker: Asker, request: RunRequest| async move {
            let (who, object) = (asker.clone(), object(&handle, &request.name));
            mutate(&asker, "Run", object, async move {
                api.make_or_join(&who, &handle, request).await.map(added)
            })
            .await
        };
        let AddWatchResponse { watch, existed, .. } =
            self.once(asker, "Run", request, work).await?;
        let mut watch = watch.ok_or(Error::Internal("a process without its watch"))?;
        // The answer to a repeat is as old as the first: it may be done by now.
        if let Ok(now) = on.get(WatchName::Id(watch.watch_id)).await {
            watch = now;
        }
        let journal = on.journal();
        let added = watch.added.as_ref().map_or(0, |cursor| cursor.seq);
        let from_birth = Start::After {
            cursor: Cursor {
                epoch: None,
                seq: added.saturating_sub(1),
            },
            skip: true,
        };
        let filter = Filter {
            watches: [watch.watch_id].into(),
            until_closed: true,
            ..Filter::default()
        };
        let reader = match resumed {
            Some(reader) => reader.filtered(filter),
            None => journal.reader(from_birth, filter)?,
        };
        let closed = watch.closed_cursor.as_ref().map(|cursor| cursor.seq);
        let header = RunHeader {
            instance: self.identity.instance.clone(),
            loop_id: on.id(),
            loop_name: on.full_name().to_owned(),
            epoch: journal.epoch().to_string(),
            watch_id: watch.watch_id,
            existed,
            added: watch.added,
        };
        Ok(Response::new(EventStream::new(Parts {
            header,
            done: closed.is_some_and(|closed| closed <= reader.after()),
            reader,
            registry: std::sync::Arc::clone(&self.registry),
            batch_bytes: BATCH_BYTES,
            heartbeat,
            linger: Duration::ZERO,
            snapshot: VecDeque::new(),
            acks: Acks::None,
            until_closed: true,
            permit,
        })))
    }

    async fn send_signal(
        &self,
        request: Request<SendSignalRequest>,
    ) -> Result<Response<SendSignalResponse>, Status> {
        let asker = asker(&request)?;
        let work = |api: Self, asker: Asker, request: SendSignalRequest| async move {
            let on = api.on(&asker, request.r#loop, false)?;
            let name = convert::watch_name(request.watch)?;
            let number = convert::signal("signal", &request.signal)?;
            let target = match crate::proto::SignalTarget::try_from(request.target) {
                Ok(
                    crate::proto::SignalTarget::Unspecified | crate::proto::SignalTarget::Process,
                ) => SignalTarget::Process,
                Ok(crate::proto::SignalTarget::Group) => SignalTarget::Group,
                Err(_) => return Err(Error::invalid("target", "must be PROCESS or GROUP")),
            };
            let object = object(&on, format!("{name:?} {}", request.signal));
            mutate(&asker, "SendSignal", object, async move {
                on.signal(name, number, target).await
            })
            .await?;
            Ok(SendSignalResponse {})
        };
        let answer = self
            .once(asker, "SendSignal", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }
}
