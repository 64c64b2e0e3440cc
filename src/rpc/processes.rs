//! ProcessService.

use tonic::{Request, Response, Status};

use super::server::process_service_server::ProcessService;
use super::stream::{EventStream, Parts};
use super::{Api, Asker, asker, convert, events, mutate, object, spec};
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
        let heartbeat = events::heartbeat(request.heartbeat.take())?;
        convert::on_gap(request.on_gap)?;
        let after = request.after.take();
        let after = after.map(|c| convert::after("after", &c, request.on_gap));
        let after = after.transpose()?;
        // Before anything is started: a cursor that is refused starts nothing.
        let resumed = after.map(|start| on.journal().reader(start, Filter::default()));
        let resumed = resumed.transpose()?;
        let (api, who, object) = (self.clone(), asker.clone(), object(&on, &request.name));
        let handle = on.clone();
        let Added { watch, existed } = mutate(&asker, "Run", object, async move {
            api.make_or_join(&who, &handle, request).await
        })
        .await?;
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
            until_closed: true,
            permit,
        })))
    }

    async fn send_signal(
        &self,
        request: Request<SendSignalRequest>,
    ) -> Result<Response<SendSignalResponse>, Status> {
        let asker = asker(&request)?;
        let request = request.into_inner();
        let on = self.on(&asker, request.r#loop, false)?;
        let name = convert::watch_name(request.watch)?;
        let number = convert::signal("signal", &request.signal)?;
        let target = match crate::proto::SignalTarget::try_from(request.target) {
            Ok(crate::proto::SignalTarget::Unspecified | crate::proto::SignalTarget::Process) => {
                SignalTarget::Process
            }
            Ok(crate::proto::SignalTarget::Group) => SignalTarget::Group,
            Err(_) => return Err(Error::invalid("target", "must be PROCESS or GROUP").into()),
        };
        let object = object(&on, format!("{name:?} {}", request.signal));
        mutate(&asker, "SendSignal", object, async move {
            on.signal(name, number, target).await
        })
        .await?;
        Ok(Response::new(SendSignalResponse {}))
    }
}
