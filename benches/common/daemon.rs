//! A daemon of the same build, and the calls of its clients.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use evloopd::handover::{Client, FDS_MAX, Slot};
use evloopd::proto::event_service_client::EventServiceClient;
use evloopd::proto::subscribe_request::Start;
use evloopd::proto::subscribe_response::Message;
use evloopd::proto::watch_service_client::WatchServiceClient;
use evloopd::proto::{
    AddWatchRequest, Batch, BatchAddWatchesRequest, EventKind, FdSpec, Filter, LoopRef,
    ReadPipeSpec, StartAt, SubscribeRequest, SubscribeResponse, Watch, WatchSpec,
    batch_add_watches_result, read_pipe_spec, watch_spec,
};
use tempfile::TempDir;
use tonic::Streaming;
use tonic::transport::Channel;

use super::{Outcome, grpc, spent};

/// The backends that are measured.
pub(crate) const BACKENDS: [&str; 4] = ["epoll", "io_uring", "poll", "select"];

/// The time after which a start has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most watches in one request.
const WATCHES_MAX: usize = 1024;

/// A running daemon; it is killed when dropped.
pub(crate) struct Daemon {
    /// The keeper, if it has one.
    process: Child,
    has_keeper: bool,
    directory: TempDir,
    /// The time from its exec until it reported that it serves.
    pub(crate) start: Duration,
}

impl Daemon {
    pub(crate) fn start() -> Outcome<Self> {
        Self::start_with("version = 1\n")
    }

    /// Starts a daemon whose loops use that backend.
    pub(crate) fn start_on(backend: &str) -> Outcome<Self> {
        Self::start_with(&format!("version = 1\n{}", Self::on(backend)))
    }

    /// Returns the section of the default policy that selects that backend. More keys may follow.
    pub(crate) fn on(backend: &str) -> String {
        let class = match backend {
            "io_uring" => "proactor",
            _ => "selector",
        };
        format!("[policy.default]\nclass = \"{class}\"\nbackends = [\"{backend}\"]\n")
    }

    /// Starts a daemon with that configuration.
    pub(crate) fn start_with(configuration: &str) -> Outcome<Self> {
        Self::start_as(configuration, false)
    }

    /// Starts a daemon with that configuration that has a keeper.
    pub(crate) fn start_kept(configuration: &str) -> Outcome<Self> {
        Self::start_as(configuration, true)
    }

    fn start_as(configuration: &str, has_keeper: bool) -> Outcome<Self> {
        let directory = tempfile::tempdir()?;
        let config = directory.path().join("evloopd.toml");
        std::fs::write(&config, configuration)?;
        let notify = UnixDatagram::bind(directory.path().join("notify"))?;
        notify.set_read_timeout(Some(PATIENCE))?;

        let begun = Instant::now();
        let process = Command::new(env!("CARGO_BIN_EXE_evloopd"))
            .args((!has_keeper).then_some("--no-keeper"))
            .arg("--config")
            .arg(config)
            .arg("--socket")
            .arg(directory.path().join("socket"))
            .env("NOTIFY_SOCKET", directory.path().join("notify"))
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(directory.path().join("log"))?)
            .spawn()?;
        let mut daemon = Self {
            process,
            has_keeper,
            directory,
            start: Duration::ZERO,
        };
        let mut message = [0; 4096];
        loop {
            let Ok(received) = notify.recv(&mut message) else {
                return Err(format!("the daemon does not start: {}", daemon.log()).into());
            };
            let mut lines = message[..received].split(|byte| *byte == b'\n');
            if lines.any(|line| line == b"READY=1") {
                daemon.start = begun.elapsed();
                return Ok(daemon);
            }
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Returns its working directory, which is removed with it.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the pid of its first process: the keeper, if it has one.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Opens another connection.
    pub(crate) async fn connect(&self) -> Outcome<Channel> {
        grpc::connect(self.socket()).await
    }

    /// Returns the resident memory in bytes: `VmRSS` of proc_pid_status(5).
    pub(crate) fn resident(&self) -> Outcome<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"))
            .ok_or("no VmRSS in the daemon's status")?;
        Ok(kib.trim().parse::<u64>()? * 1024)
    }

    /// Returns the CPU time that all its threads have used.
    pub(crate) fn cpu(&self) -> Outcome<Duration> {
        spent::by_process(self.process.id())
    }

    /// Returns the CPU seconds of the daemon and of the children that it has reaped.
    pub(crate) fn cpu_with_children(&self) -> Outcome<f64> {
        spent::with_children(&self.process.id().to_string())
    }

    /// Hands over file descriptors and returns a slot for each.
    fn hand_over(&self, fds: &[impl AsFd]) -> Outcome<Vec<Slot>> {
        let client = Client::connect(&self.directory.path().join("socket.handover"))?;
        let mut slots = Vec::with_capacity(fds.len());
        for chunk in fds.chunks(FDS_MAX) {
            let borrowed: Vec<BorrowedFd<'_>> = chunk.iter().map(AsFd::as_fd).collect();
            slots.extend(client.give(&borrowed)?);
        }
        Ok(slots)
    }

    /// Watches one descriptor `count` times.
    pub(crate) async fn watch_readable(
        &self,
        channel: Channel,
        fd: &OwnedFd,
        count: usize,
    ) -> Outcome<()> {
        let mut left = count;
        while left > 0 {
            let some = left.min(WATCHES_MAX);
            left -= some;
            let slots = self.hand_over(&vec![fd.as_fd(); some])?;
            let specs = slots.into_iter().map(|slot| {
                watch_spec::Spec::Fd(FdSpec {
                    slot: Bytes::copy_from_slice(&slot),
                    readable: true,
                    writable: false,
                })
            });
            add_watches(channel.clone(), specs).await?;
        }
        Ok(())
    }

    /// Watches the reading ends of pipes. The `user_data` of each watch is its index.
    pub(crate) async fn watch_pipes(&self, channel: Channel, readers: &[OwnedFd]) -> Outcome<()> {
        let slots = self.hand_over(readers)?;
        let specs = slots.into_iter().map(|slot| {
            watch_spec::Spec::ReadPipe(ReadPipeSpec {
                source: Some(read_pipe_spec::Source::Slot(Bytes::copy_from_slice(&slot))),
                start_paused: false,
            })
        });
        add_watches(channel, specs).await
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // If a call fails, the daemon has ended already.
        if self.has_keeper {
            // Killed, the keeper would leave the daemon behind.
            let pid = rustix::process::Pid::from_child(&self.process);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        } else {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}

/// Adds watches to the caller's loop. The `user_data` of each watch is its index.
pub(crate) async fn add_watches(
    channel: Channel,
    specs: impl IntoIterator<Item = watch_spec::Spec>,
) -> Outcome<()> {
    let requests = (0..).zip(specs).map(|(index, spec)| AddWatchRequest {
        spec: Some(WatchSpec { spec: Some(spec) }),
        user_data: index,
        ..AddWatchRequest::default()
    });
    let requests: Vec<AddWatchRequest> = requests.collect();
    let mut watches = WatchServiceClient::new(channel);
    for chunk in requests.chunks(WATCHES_MAX) {
        let request = BatchAddWatchesRequest {
            r#loop: None,
            requests: chunk.to_vec(),
            ..BatchAddWatchesRequest::default()
        };
        let answer = watches.batch_add_watches(request).await?.into_inner();
        for result in answer.results {
            if let Some(batch_add_watches_result::Result::Error(error)) = result.result {
                return Err(error.message.into());
            }
        }
    }
    Ok(())
}

/// Adds a watch to a loop, the caller's own if that is `None`.
pub(crate) async fn add_watch(
    channel: Channel,
    r#loop: Option<LoopRef>,
    spec: watch_spec::Spec,
) -> Outcome<Watch> {
    let request = AddWatchRequest {
        r#loop,
        spec: Some(WatchSpec { spec: Some(spec) }),
        ..AddWatchRequest::default()
    };
    let added = WatchServiceClient::new(channel).add_watch(request).await?;
    Ok(added.into_inner().watch.ok_or("no watch in the answer")?)
}

/// A stream of events.
pub(crate) struct Subscription(Streaming<SubscribeResponse>);

impl Subscription {
    /// Subscribes to the events of one kind on the caller's loop from now on.
    pub(crate) async fn open(channel: Channel, kind: EventKind) -> Outcome<Self> {
        let request = SubscribeRequest {
            start: Some(Start::StartAt(StartAt::Now.into())),
            filter: Some(Filter {
                kinds: vec![kind.into()],
                ..Filter::default()
            }),
            ..SubscribeRequest::default()
        };
        Self::begin(channel, request).await
    }

    /// Subscribes as the request says.
    pub(crate) async fn begin(channel: Channel, request: SubscribeRequest) -> Outcome<Self> {
        let mut events = EventServiceClient::new(channel);
        let mut stream = events.subscribe(request).await?.into_inner();
        match stream.message().await?.and_then(|m| m.message) {
            Some(Message::Header(_)) => Ok(Self(stream)),
            other => Err(format!("not a header: {other:?}").into()),
        }
    }

    /// Returns the next batch that has events.
    pub(crate) async fn next(&mut self) -> Outcome<Batch> {
        loop {
            match self.0.message().await?.and_then(|m| m.message) {
                Some(Message::Batch(batch)) if !batch.gaps.is_empty() => {
                    return Err(format!("events are lost: {:?}", batch.gaps).into());
                }
                Some(Message::Batch(batch)) if batch.events.is_empty() => {}
                Some(Message::Batch(batch)) => return Ok(batch),
                other => return Err(format!("not a batch: {other:?}").into()),
            }
        }
    }
}
