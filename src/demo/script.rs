//! The steps of the client of act 2. Each step waits for the events that it causes.

use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use tonic::Streaming;
use tonic::transport::Channel;

use super::process::pass_on;
use super::{Answer as _, During as _, Failure};
use crate::proto::admin_service_client::AdminServiceClient;
use crate::proto::event::Kind;
use crate::proto::event_service_client::EventServiceClient;
use crate::proto::loop_service_client::LoopServiceClient;
use crate::proto::policy_service_client::PolicyServiceClient;
use crate::proto::transport_service_client::TransportServiceClient;
use crate::proto::watch_service_client::WatchServiceClient;
use crate::proto::*;
use crate::{client, handover};

/// The delay of the timer: long enough that a viewer notices it.
const TIMER: Duration = Duration::from_millis(200);

/// Runs all steps on a loop with this backend.
pub(super) async fn play(socket: &Path, backend: &str, policy: &str) -> Result<ExitCode, Failure> {
    let mut script = Script::begin(socket, backend, policy).await?;
    script.timer().await?;
    script.pipe().await?;
    script.socket().await?;
    script.echo().await?;
    script.signal().await?;
    script.post().await?;
    script.end().await?;
    Ok(ExitCode::SUCCESS)
}

struct Script {
    channel: Channel,
    handover: handover::Client,
    daemon: i32,
    on: LoopRef,
    answers: Streaming<SubscribeResponse>,
    events: Vec<Event>,
}

impl Script {
    async fn begin(socket: &Path, backend: &str, policy: &str) -> Result<Self, Failure> {
        let connected = client::connect(Some(socket)).await;
        let channel = connected
            .map_err(|error| Failure::Missing(error.to_string()))?
            .channel;
        let info = AdminServiceClient::new(channel.clone())
            .get_server_info(GetServerInfoRequest {})
            .await
            .answer("GetServerInfo")?;
        let handover =
            handover::Client::connect(Path::new(&info.handover_socket)).during("connect")?;
        let name = format!("tour-{backend}");
        let request = NewEventLoopRequest {
            name: name.clone(),
            backend: backend.to_owned(),
            policy: policy.to_owned(),
            ..NewEventLoopRequest::default()
        };
        PolicyServiceClient::new(channel.clone())
            .new_event_loop(request)
            .await
            .answer("NewEventLoop")?;
        let on = LoopRef {
            r#ref: Some(loop_ref::Ref::Name(name)),
        };
        let request = SubscribeRequest {
            r#loop: Some(on.clone()),
            start: Some(subscribe_request::Start::StartAt(StartAt::Oldest.into())),
            ..SubscribeRequest::default()
        };
        let answers = EventServiceClient::new(channel.clone())
            .subscribe(request)
            .await
            .answer("Subscribe")?;
        Ok(Self {
            channel,
            handover,
            daemon: info.pid,
            on,
            answers,
            events: Vec::new(),
        })
    }

    async fn timer(&mut self) -> Result<(), Failure> {
        let after = prost_types::Duration::try_from(TIMER).unwrap_or_default();
        let spec = watch_spec::Spec::Timer(TimerSpec {
            schedule: Some(timer_spec::Schedule::After(after)),
            ..TimerSpec::default()
        });
        let timer = self.add("timer", spec).await?;
        self.see(timer.watch_id, 0, |kind| {
            matches!(kind, Kind::TimerFired(_))
        })
        .await?;
        self.closed(timer.watch_id).await?;
        self.remove(timer.watch_id).await
    }

    async fn pipe(&mut self) -> Result<(), Failure> {
        let (ours, theirs) = rustix::pipe::pipe().during("pipe")?;
        let slot = self.give(ours.as_fd())?;
        let spec = watch_spec::Spec::ReadPipe(ReadPipeSpec {
            source: Some(read_pipe_spec::Source::Slot(slot)),
            start_paused: false,
        });
        let pipe = self.add("pipe", spec).await?;
        rustix::io::write(&theirs, b"through a pipe").during("write")?;
        self.data(pipe.watch_id).await?;
        drop(theirs);
        self.closed(pipe.watch_id).await?;
        self.remove(pipe.watch_id).await
    }

    /// Watches the readiness of a socket that the client keeps. Readiness is one-shot, so the watch
    /// is armed again after the first event.
    async fn socket(&mut self) -> Result<(), Failure> {
        let (ours, mut theirs) = UnixStream::pair().during("socketpair")?;
        let spec = watch_spec::Spec::Fd(FdSpec {
            slot: self.give(ours.as_fd())?,
            readable: true,
            writable: false,
        });
        let watch_id = self.add("socket", spec).await?.watch_id;
        let ready = |kind: &Kind| matches!(kind, Kind::Ready(ready) if ready.readable);
        theirs.write_all(b"hello").during("write")?;
        let first = self.see(watch_id, 0, ready).await?.seq;
        rustix::io::read(&ours, &mut [0; 16]).during("read")?;
        let item = RearmItem {
            watch_id,
            seq: first,
            ..RearmItem::default()
        };
        let request = RearmRequest {
            r#loop: Some(self.on.clone()),
            items: vec![item],
            ..RearmRequest::default()
        };
        self.watches().rearm(request).await.answer("Rearm")?;
        theirs.write_all(b"again").during("write")?;
        self.see(watch_id, first, ready).await?;
        self.remove(watch_id).await
    }

    /// Makes a TCP connection of which the daemon has both ends, and sends the bytes that arrive at
    /// one end back.
    async fn echo(&mut self) -> Result<(), Failure> {
        let spec = watch_spec::Spec::Listener(ListenerSpec {
            target: Some(listener_spec::Target::Tcp(TcpListen {
                hosts: vec!["127.0.0.1".to_owned()],
                ..TcpListen::default()
            })),
            ..ListenerSpec::default()
        });
        let listener = self.add("listener", spec).await?;
        let spec = watch_spec::Spec::Connection(ConnectionSpec {
            target: Some(connection_spec::Target::Tcp(TcpTarget {
                host: "127.0.0.1".to_owned(),
                port: port(&listener)?,
                ..TcpTarget::default()
            })),
            ..ConnectionSpec::default()
        });
        let connection = self.add("connection", spec).await?.watch_id;
        self.see(connection, 0, |kind| matches!(kind, Kind::Connected(_)))
            .await?;
        let accepted = |kind: &Kind| matches!(kind, Kind::Accepted(_));
        let accepted = match self.see(listener.watch_id, 0, accepted).await?.kind {
            Some(Kind::Accepted(accepted)) => accepted.watch_id,
            _ => 0,
        };

        self.write(connection, "echo me".into()).await?;
        let heard = self.data(accepted).await?;
        self.write(accepted, heard).await?;
        self.data(connection).await?;
        let request = WriteEofRequest {
            r#loop: Some(self.on.clone()),
            watch: Some(by_id(connection)),
            ..WriteEofRequest::default()
        };
        self.transport()
            .write_eof(request)
            .await
            .answer("WriteEof")?;
        for end in [accepted, connection] {
            self.closed(end).await?;
        }
        for watch in [accepted, connection, listener.watch_id] {
            self.remove(watch).await?;
        }
        Ok(())
    }

    async fn signal(&mut self) -> Result<(), Failure> {
        let spec = watch_spec::Spec::Signal(SignalSpec {
            signals: vec!["SIGUSR1".to_owned()],
        });
        let signal = self.add("signal", spec).await?;
        let daemon = Pid::from_raw(self.daemon)
            .ok_or(rustix::io::Errno::SRCH)
            .during("kill")?;
        kill_process(daemon, Signal::USR1).during("kill")?;
        self.see(signal.watch_id, 0, |kind| matches!(kind, Kind::Signal(_)))
            .await?;
        self.remove(signal.watch_id).await
    }

    async fn post(&mut self) -> Result<(), Failure> {
        let post = Post {
            topic: "call_soon".to_owned(),
            payload: "that is all".into(),
            ..Post::default()
        };
        let request = PostRequest {
            r#loop: Some(self.on.clone()),
            posts: vec![post],
            ..PostRequest::default()
        };
        EventServiceClient::new(self.channel.clone())
            .post(request)
            .await
            .answer("Post")?;
        self.see(0, 0, |kind| matches!(kind, Kind::Posted(_)))
            .await?;
        Ok(())
    }

    /// Closes the loop, which ends the stream.
    async fn end(&mut self) -> Result<(), Failure> {
        let r#loop = Some(self.on.clone());
        let mut loops = LoopServiceClient::new(self.channel.clone());
        let request = StopLoopRequest {
            r#loop: r#loop.clone(),
            ..StopLoopRequest::default()
        };
        loops.stop_loop(request).await.answer("StopLoop")?;
        loops
            .close_loop(CloseLoopRequest {
                r#loop,
                ..CloseLoopRequest::default()
            })
            .await
            .answer("CloseLoop")?;
        while self.receive().await? {}
        Ok(())
    }

    fn watches(&self) -> WatchServiceClient<Channel> {
        WatchServiceClient::new(self.channel.clone())
    }

    fn transport(&self) -> TransportServiceClient<Channel> {
        TransportServiceClient::new(self.channel.clone())
    }

    /// Hands a descriptor over; the daemon gets a duplicate.
    fn give(&self, fd: BorrowedFd<'_>) -> Result<Bytes, Failure> {
        let slots = self.handover.give(&[fd]).during("hand over")?;
        Ok(slots.concat().into())
    }

    async fn add(&mut self, name: &str, spec: watch_spec::Spec) -> Result<Watch, Failure> {
        let request = AddWatchRequest {
            r#loop: Some(self.on.clone()),
            spec: Some(WatchSpec { spec: Some(spec) }),
            name: name.to_owned(),
            ..AddWatchRequest::default()
        };
        let answer = self.watches().add_watch(request).await.answer("AddWatch")?;
        Ok(answer.watch.unwrap_or_default())
    }

    async fn remove(&mut self, watch: u64) -> Result<(), Failure> {
        let request = RemoveWatchRequest {
            r#loop: Some(self.on.clone()),
            watch: Some(by_id(watch)),
            ..RemoveWatchRequest::default()
        };
        self.watches()
            .remove_watch(request)
            .await
            .answer("RemoveWatch")?;
        self.see(watch, 0, |kind| matches!(kind, Kind::Removed(_)))
            .await?;
        Ok(())
    }

    async fn write(&mut self, watch: u64, data: Bytes) -> Result<(), Failure> {
        let request = WriteRequest {
            r#loop: Some(self.on.clone()),
            watch: Some(by_id(watch)),
            data,
            offset: Some(0),
            ..WriteRequest::default()
        };
        self.transport().write(request).await.answer("Write")?;
        Ok(())
    }

    async fn data(&mut self, watch: u64) -> Result<Bytes, Failure> {
        let event = self
            .see(watch, 0, |kind| matches!(kind, Kind::Data(_)))
            .await?;
        match event.kind {
            Some(Kind::Data(data)) => Ok(data.data),
            _ => Ok(Bytes::new()),
        }
    }

    async fn closed(&mut self, watch: u64) -> Result<(), Failure> {
        self.see(watch, 0, |kind| matches!(kind, Kind::Closed(_)))
            .await?;
        Ok(())
    }

    /// Returns the first event of the watch after the sequence number `after` for which `such` is
    /// true. Waits for it if it has not arrived yet.
    async fn see(
        &mut self,
        watch: u64,
        after: u64,
        such: impl Fn(&Kind) -> bool,
    ) -> Result<Event, Failure> {
        let mut looked_at = 0;
        loop {
            let found = self.events[looked_at..].iter().find(|event| {
                let kind = event.kind.as_ref();
                event.watch_id == watch && event.seq > after && kind.is_some_and(&such)
            });
            if let Some(event) = found {
                return Ok(event.clone());
            }
            looked_at = self.events.len();
            if !self.receive().await? {
                return Err(Failure::Missing("the stream ended early".to_owned()));
            }
        }
    }

    /// Takes one message and passes it on; returns false when the stream has ended.
    async fn receive(&mut self) -> Result<bool, Failure> {
        let next = self.answers.message().await;
        let Some(answer) = next.map_err(|s| Failure::refused("Subscribe", s))? else {
            return Ok(false);
        };
        pass_on(&answer)?;
        if let Some(subscribe_response::Message::Batch(batch)) = answer.message {
            self.events.extend(batch.events);
        }
        Ok(true)
    }
}

fn by_id(watch: u64) -> WatchRef {
    WatchRef {
        r#ref: Some(watch_ref::Ref::WatchId(watch)),
    }
}

fn port(listener: &Watch) -> Result<u32, Failure> {
    let address = match &listener.status {
        Some(watch::Status::Listener(status)) => status.addresses.first(),
        _ => None,
    };
    match address.and_then(|address| address.address.as_ref()) {
        Some(socket_address::Address::Inet(inet)) => Ok(inet.port),
        _ => Err(Failure::Missing("the listener has no port".to_owned())),
    }
}
