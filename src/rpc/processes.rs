//! The ProcessService.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::quota::MemoryQuota;
use super::server::process_service_server::ProcessService;
use super::stream::{Acks, EventStream, Parts};
use super::terminal::{MESSAGES, View};
use super::watches::added;
use super::watches::look;
use super::wire::AttachTerminalResponse;
use super::{Api, Requester, convert, mutate, object, requester, spec, subscribe};
use crate::error::{Error, Result};
use crate::event::Cursor;
use crate::event_loop::{Added, Handle, Registration, WatchName};
use crate::journal::{Filter, Reader, Start};
use crate::kinds::WatchKind;
use crate::proto::{self, *};
use crate::terminals::{Place, SizeOf, Terminals};
use crate::watch::{Order, Reached, SignalTarget};

/// Most bytes of events in one batch of Run.
const BATCH_BYTES: usize = 256 * 1024;
/// Longest time between the first signal and SIGKILL.
const GRACE_MAX: Duration = Duration::from_secs(3600);

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
        if let Some(spec) = &add.spec {
            self.slots.arrived(&requester.peer, spec::slots(spec)).await;
        }
        let (mut registration, order) = spec::registration(self, &requester.peer, on, add)?;
        registration.attached = true;
        self.register(on, registration, order).await
    }

    /// Adds a watch. If it is a new process with a terminal, its screen is kept.
    ///
    /// # Errors
    /// Those of [`Handle::add`]; there is no memory for the screen, or the system refuses threads.
    pub(super) async fn register(
        &self,
        on: &Handle,
        registration: Registration,
        order: Order,
    ) -> Result<Added> {
        let place = place_of(&self.terminals, registration.spec.as_deref())?;
        let added = on.add(registration, order).await?;
        if let (Some(place), Some(reader)) = (place, &added.reader) {
            let reader = reader.sibling();
            self.terminals.keep(on, added.watch.watch_id, place, reader);
        }
        Ok(added)
    }
}

/// Returns a place for the screen of a process; `None` if it has no terminal.
///
/// # Errors
/// As [`Terminals::place`].
pub(super) fn place_of(terminals: &Terminals, spec: Option<&WatchSpec>) -> Result<Option<Place>> {
    let Some(watch_spec::Spec::Process(process)) = spec.and_then(|spec| spec.spec.as_ref()) else {
        return Ok(None);
    };
    let place = process.terminal.as_ref().map(|terminal| {
        let size_of = match terminal.size_of() {
            TerminalSizeOf::Smallest => SizeOf::Smallest,
            TerminalSizeOf::Unspecified | TerminalSizeOf::Latest => SizeOf::Latest,
        };
        terminals.place(terminal.size.unwrap_or_default(), size_of)
    });
    place.transpose()
}

/// Returns a start right before the first event of a watch.
fn from_birth(watch: &Watch) -> Start {
    let added = watch.added.as_ref().map_or(0, |cursor| cursor.seq);
    Start::After {
        cursor: Cursor {
            epoch: None,
            seq: added.saturating_sub(1),
        },
        skip: true,
    }
}

/// Makes a reader of all events of a process, attached to it: the process waits for the reader.
pub(super) fn join(on: &Handle, watch: &Watch, after: Option<Start>) -> Result<Reader> {
    let start = after.unwrap_or_else(|| from_birth(watch));
    let reader = on
        .journal()
        .reader(start, Filter::life_of(watch.watch_id))?;
    Ok(reader.attached(watch.watch_id))
}

#[tonic::async_trait]
impl ProcessService for Api {
    type RunStream = EventStream<RunHeader>;
    type AttachTerminalStream = ReceiverStream<Result<AttachTerminalResponse, Status>>;

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
            life: self.identity.life_number(),
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

    async fn attach_terminal(
        &self,
        request: Request<Streaming<AttachTerminalRequest>>,
    ) -> Result<Response<Self::AttachTerminalStream>, Status> {
        let requester = requester(&request)?;
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|first| first.message);
        let Some(attach_terminal_request::Message::Open(open)) = first else {
            return Err(Error::invalid("open", "must be set in the first message").into());
        };
        let permit = self.streams.take()?;
        let on = self.on(&requester, open.r#loop, false)?;
        let heartbeat = subscribe::heartbeat(open.heartbeat)?;
        let size = open.size.map(|size| spec::terminal_size("open.size", size));
        let size = size.transpose()?;
        let name = convert::watch_name(open.watch)?;
        let (watch, _held) = look(&on, &requester.quota, name).await?;
        let terminal = self.terminals.get(on.id(), watch.watch_id);
        let none = || Error::wrong_state("the watch is not a process with a terminal");
        let view = terminal.ok_or_else(none)?.view(size, open.read_only).await;
        // A screen, if one comes first, moves it forward.
        let filter = Filter::life_of(watch.watch_id);
        let reader = on.journal().reader(from_birth(&watch), filter)?;
        let header = RunHeader {
            instance: self.identity.instance.clone(),
            life: self.identity.life_number(),
            loop_id: on.id(),
            loop_name: on.full_name().to_owned(),
            epoch: on.journal().epoch().to_string(),
            watch_id: watch.watch_id,
            existed: true,
            added: watch.added,
        };
        let view = View {
            watch_id: watch.watch_id,
            read_only: open.read_only,
            open: view,
            from_start: open.from_start,
            events: EventStream::new(Parts {
                header,
                done: false,
                reader,
                registry: Arc::clone(&self.registry),
                batch_bytes: BATCH_BYTES,
                heartbeat,
                linger: Duration::ZERO,
                snapshot: None,
                quota: Arc::clone(&requester.quota),
                acks: Acks::None,
                until_closed: true,
                permit,
            }),
            requests,
        };
        let (answers, answer) = mpsc::channel(MESSAGES);
        tokio::spawn(view.serve(answers));
        Ok(Response::new(ReceiverStream::new(answer)))
    }

    async fn resize_pty(
        &self,
        request: Request<ResizePtyRequest>,
    ) -> Result<Response<ResizePtyResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: ResizePtyRequest| async move {
            let on = api.on(&requester, request.r#loop, false)?;
            let name = convert::watch_name(request.watch)?;
            let size = spec::terminal_size("size", request.size.unwrap_or_default())?;
            let object = object(&on, &name);
            let quota = Arc::clone(&requester.quota);
            mutate(&requester, "ResizePty", object, async move {
                let (watch, _held) = look(&on, &quota, name.clone()).await?;
                match api.terminals.get(on.id(), watch.watch_id) {
                    Some(terminal) => terminal.resize(size).await,
                    // It says why not.
                    None => on.resize_pty(name, size).await,
                }
            })
            .await?;
            Ok(ResizePtyResponse {})
        };
        let answer = self
            .once(requester, "ResizePty", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
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
            let object = object(&on, format!("{name} {}", request.signal));
            let target = match proto::SignalTarget::try_from(request.target) {
                Ok(proto::SignalTarget::Unspecified | proto::SignalTarget::Process) => {
                    Some(SignalTarget::Process)
                }
                Ok(proto::SignalTarget::Group) => Some(SignalTarget::Group),
                Ok(proto::SignalTarget::Foreground) => Some(SignalTarget::Foreground),
                Ok(proto::SignalTarget::Tree) => None,
                Err(_) => {
                    let allowed = "must be PROCESS, GROUP, TREE or FOREGROUND";
                    return Err(Error::invalid("target", allowed));
                }
            };
            mutate(&requester, "SendSignal", object, async move {
                let Some(target) = target else {
                    let Reached { processes, refused } =
                        on.tree(name).await?.signal(number).await?;
                    return Ok(SendSignalResponse { processes, refused });
                };
                on.signal(name, number, target).await?;
                Ok(SendSignalResponse::default())
            })
            .await
        };
        let answer = self
            .once(requester, "SendSignal", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn stop_process(
        &self,
        request: Request<StopProcessRequest>,
    ) -> Result<Response<StopProcessResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: StopProcessRequest| async move {
            let on = api.on(&requester, request.r#loop, false)?;
            let name = convert::watch_name(request.watch)?;
            let grace = convert::optional_duration("grace", request.grace, GRACE_MAX)?;
            let signal = match request.signal.as_str() {
                "" => None,
                signal => Some(convert::signal("signal", signal)?),
            };
            let object = object(&on, &name);
            let quota = Arc::clone(&requester.quota);
            mutate(&requester, "StopProcess", object, async move {
                stop(&on, &quota, name, signal, grace).await
            })
            .await
        };
        let answer = self
            .once(requester, "StopProcess", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }
}

/// Ends a child with its descendants.
async fn stop(
    on: &Handle,
    quota: &Arc<MemoryQuota>,
    name: WatchName,
    signal: Option<i32>,
    grace: Option<Duration>,
) -> Result<StopProcessResponse> {
    let mut response = StopProcessResponse::default();
    match on.tree(name.clone()).await {
        Ok(tree) => {
            let stopped = tree.stop(signal, grace).await?;
            response.ended = stopped.ended;
            response.killed = stopped.killed;
            response.survivor_pids = stopped.survivors;
            response.may_have_escaped = stopped.escaped;
            response.escaped_pids = stopped.escaped_pids;
            // This appends the Exited, if the loop runs and has not done so yet. An error means that
            // the watch is closed, so that it has done.
            let _ = on.tree(name.clone()).await;
        }
        // Its status says how it ended.
        Err(Error::WatchClosed { .. }) => {}
        Err(error) => return Err(error),
    }
    match look(on, quota, name).await {
        Ok((watch, _held)) => match watch.status {
            Some(watch::Status::Process(process)) => response.exited = process.exited,
            _ => {
                let what = "this kind of watch does not have a process that the daemon has started";
                return Err(Error::wrong_state(what));
            }
        },
        // It was removed when it closed.
        Err(Error::WatchNotFound { .. } | Error::LoopClosed { .. }) if response.ended > 0 => {}
        Err(error) => return Err(error),
    }
    Ok(response)
}
