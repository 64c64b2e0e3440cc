//! The ProcessService.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tonic::{Request, Response, Status};

use super::server::process_service_server::ProcessService;
use super::stream::{Acks, EventStream, Parts};
use super::watches::added;
use super::watches::look;
use super::{Api, Requester, convert, mutate, object, requester, spec, subscribe};
use crate::error::{Error, Result};
use crate::event::Cursor;
use crate::event_loop::{Added, Handle, WatchName};
use crate::journal::{Filter, Reader, Start};
use crate::kinds::WatchKind;
use crate::proto::*;
use crate::watch::SignalTarget;

/// Most bytes of events in one batch of Run.
const BATCH_BYTES: usize = 256 * 1024;

impl Api {
    /// Starts the process, or finds the one to join.
    async fn make_or_join(
        &self,
        requester: &Requester,
        on: &Handle,
        request: RunRequest,
    ) -> Result<Added> {
        let Some(process) = request.spec else {
            if request.name.is_empty() {
                return Err(Error::invalid(
                    "spec",
                    "must be set, to run a process, unless name is set, to join one",
                ));
            }
            let name = WatchName::Name(request.name);
            let (watch, _held) = look(on, &requester.quota, name).await?;
            if watch.watch_kind != WatchKind::Process.name() {
                return Err(Error::wrong_state(
                    "the watch of that name is not a process",
                ));
            }
            return Ok(Added {
                watch,
                existed: true,
                reader: None,
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
            finished_ttl: request.finished_ttl,
            ..AddWatchRequest::default()
        };
        let (mut registration, order) = spec::registration(self, &requester.peer, on, add)?;
        registration.attached = true;
        on.add(registration, order).await
    }
}

/// Makes a reader of all events of a process, attached to it: the process waits for the reader.
fn join(on: &Handle, watch: &Watch, after: Option<Start>) -> Result<Reader> {
    let added = watch.added.as_ref().map_or(0, |cursor| cursor.seq);
    let from_birth = Start::After {
        cursor: Cursor {
            epoch: None,
            seq: added.saturating_sub(1),
        },
        skip: true,
    };
    let start = after.unwrap_or(from_birth);
    let reader = on
        .journal()
        .reader(start, Filter::life_of(watch.watch_id))?;
    Ok(reader.attached(watch.watch_id))
}

#[tonic::async_trait]
impl ProcessService for Api {
    type RunStream = EventStream<RunHeader>;

    async fn run(&self, request: Request<RunRequest>) -> Result<Response<Self::RunStream>, Status> {
        let requester = requester(&request)?;
        let quota = Arc::clone(&requester.quota);
        let mut request = request.into_inner();
        let permit = self.streams.take()?;
        let on = self.on(&requester, request.r#loop.take(), request.spec.is_some())?;
        let heartbeat = subscribe::heartbeat(request.heartbeat.take())?;
        convert::skips_gap(request.on_gap)?;
        let after = request.after.take();
        let after = after.map(|c| convert::after("after", &c, request.on_gap));
        let after = after.transpose()?;
        if let Some(Start::After {
            cursor,
            skip: false,
        }) = after
        {
            // Checked before anything is started: a cursor of another history or from the future is
            // an error. A cursor that is too old can only belong to a process that exists already.
            on.journal().check_cursor(cursor)?;
        }
        // A repeated request may begin its stream elsewhere than the first one, so the comparison of
        // the two must not include this field.
        request.on_gap = 0;
        let handle = on.clone();
        // The reader of the process, if this call has started it.
        let made = Arc::new(Mutex::new(None));
        let maker = Arc::clone(&made);
        let work = |api: Self, requester: Requester, request: RunRequest| async move {
            let (who, object) = (requester.clone(), object(&handle, &request.name));
            mutate(&requester, "Run", object, async move {
                let mut joined = api.make_or_join(&who, &handle, request).await?;
                *maker.lock() = joined.reader.take();
                Ok(added(joined))
            })
            .await
        };
        let AddWatchResponse { watch, existed, .. } =
            self.once(requester, "Run", request, work).await?;
        let mut watch = watch.ok_or(Error::Internal("a process has no watch"))?;
        let added = watch.added.as_ref().map_or(0, |cursor| cursor.seq);
        let reader = made.lock().take();
        let reader = match reader {
            Some(reader) => reader,
            None => join(&on, &watch, after)?,
        };
        // A client that resumes after `Added` may be past the end of the process. A
        // repeated request gets the answer of the first one, whose state of the watch may be old, so
        // the loop is asked for the present state.
        let mut gone = false;
        if reader.after() >= added {
            match look(&on, &quota, WatchName::Id(watch.watch_id)).await {
                Ok((now, _held)) => watch = now,
                // The watch was removed: no more events of it will come.
                Err(Error::WatchNotFound { .. } | Error::LoopClosed { .. }) => {
                    gone = reader.after() >= on.journal().status().newest;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let closed = watch.closed_cursor.as_ref().map(|cursor| cursor.seq);
        let header = RunHeader {
            instance: self.identity.instance.clone(),
            loop_id: on.id(),
            loop_name: on.full_name().to_owned(),
            epoch: on.journal().epoch().to_string(),
            watch_id: watch.watch_id,
            existed,
            added: watch.added,
        };
        Ok(Response::new(EventStream::new(Parts {
            header,
            done: gone || closed.is_some_and(|closed| closed <= reader.after()),
            reader,
            registry: Arc::clone(&self.registry),
            batch_bytes: BATCH_BYTES,
            heartbeat,
            linger: Duration::ZERO,
            snapshot: None,
            quota,
            acks: Acks::None,
            until_closed: true,
            permit,
        })))
    }

    async fn send_signal(
        &self,
        request: Request<SendSignalRequest>,
    ) -> Result<Response<SendSignalResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: SendSignalRequest| async move {
            let on = api.on(&requester, request.r#loop, false)?;
            let name = convert::watch_name(request.watch)?;
            let number = convert::signal("signal", &request.signal)?;
            let target = match crate::proto::SignalTarget::try_from(request.target) {
                Ok(
                    crate::proto::SignalTarget::Unspecified | crate::proto::SignalTarget::Process,
                ) => SignalTarget::Process,
                Ok(crate::proto::SignalTarget::Group) => SignalTarget::Group,
                Err(_) => return Err(Error::invalid("target", "must be PROCESS or GROUP")),
            };
            let object = object(&on, format!("{name} {}", request.signal));
            mutate(&requester, "SendSignal", object, async move {
                on.signal(name, number, target).await
            })
            .await?;
            Ok(SendSignalResponse {})
        };
        let answer = self
            .once(requester, "SendSignal", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }
}
