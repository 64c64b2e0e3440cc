//! The parts that all end-to-end tests share: the real daemon on a private socket, recorders that
//! check what they receive, and a client of the handover socket.

#![allow(dead_code, unused_imports)] // each test program uses only some of this

use std::future::Future;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use evloopd::proto::admin_service_client::AdminServiceClient;
use evloopd::proto::event_service_client::EventServiceClient;
use evloopd::proto::loop_service_client::LoopServiceClient;
use evloopd::proto::policy_service_client::PolicyServiceClient;
use evloopd::proto::process_service_client::ProcessServiceClient;
use evloopd::proto::transport_service_client::TransportServiceClient;
use evloopd::proto::watch_service_client::WatchServiceClient;
use evloopd::proto::{
    GetServerInfoRequest, GetServerInfoResponse, GetStatusRequest, GetStatusResponse,
};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::net::{UnixDatagram, UnixStream};
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;

pub(crate) mod another;
pub(crate) mod handover;
pub(crate) mod lives;
pub(crate) mod recorder;
pub(crate) mod scene;
pub(crate) mod specs;
pub(crate) mod tls;

pub(crate) use handover::Handover;
pub(crate) use recorder::Recorder;
pub(crate) use scene::Scene;
pub(crate) use specs::*;

/// A limit far longer than any wait here takes; only a failing test waits that long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The time that a daemon has to end after SIGTERM before it is killed.
const ENDING: Duration = Duration::from_secs(20);

/// A daemon with its own sockets and configuration, in a directory of its own.
pub(crate) struct Daemon {
    child: Child,
    channel: Channel,
    pub(crate) dir: Arc<TempDir>,
    pub(crate) socket: PathBuf,
}

impl Daemon {
    /// Starts a daemon; `config` is appended to `version = 1`.
    pub(crate) async fn start(config: &str) -> Self {
        Self::start_in(directory(), config, &[]).await
    }

    /// Starts a daemon through another program, such as `["prlimit", "--nofile=64"]`.
    pub(crate) async fn start_by(launcher: &[&str], config: &str) -> Self {
        Self::start_in(directory(), config, launcher).await
    }

    /// Starts a daemon in a directory that may contain files of an earlier daemon.
    pub(crate) async fn start_in(dir: Arc<TempDir>, config: &str, launcher: &[&str]) -> Self {
        let config = format!("version = 1\n{config}");
        let command = command(dir.path(), &config, launcher);
        Self::start_as(dir, command).await
    }

    /// Starts a daemon with a command that [`command`] has made for that directory.
    pub(crate) async fn start_as(dir: Arc<TempDir>, mut command: Command) -> Self {
        let socket = dir.path().join("evloopd.sock");
        let notify = dir.path().join("notify.sock");
        let _ = std::fs::remove_file(&notify);
        let ready = UnixDatagram::bind(&notify).unwrap();
        command.env("NOTIFY_SOCKET", &notify);
        let mut child = command.spawn().unwrap();
        tokio::select! {
            () = told_ready(&ready) => {}
            status = child.wait() => panic!("the daemon ended: {status:?}\n{}", log(dir.path())),
            () = tokio::time::sleep(PATIENCE) => panic!("never ready:\n{}", log(dir.path())),
        }
        let channel = connect(&socket).await;
        Self {
            child,
            channel,
            dir,
            socket,
        }
    }

    /// Returns the connection that all clients of this daemon share.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Opens another connection.
    pub(crate) async fn another_channel(&self) -> Channel {
        connect(&self.socket).await
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().expect("it runs").try_into().unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits until the daemon ends and returns its exit code; `None` if a signal killed it.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        within("the daemon's end", self.child.wait())
            .await
            .unwrap()
            .code()
    }

    /// Returns what the daemon has written to standard error.
    pub(crate) fn log(&self) -> String {
        log(self.dir.path())
    }

    pub(crate) async fn info(&self) -> GetServerInfoResponse {
        let answer = self.admin().get_server_info(GetServerInfoRequest {}).await;
        answer.unwrap().into_inner()
    }

    pub(crate) async fn status(&self) -> GetStatusResponse {
        let answer = self.admin().get_status(GetStatusRequest {}).await;
        answer.unwrap().into_inner()
    }

    /// Returns the number of descriptors that the daemon has open.
    pub(crate) async fn open_fds(&self) -> u64 {
        let status = self.status().await;
        status
            .open_fds
            .expect("open_fds is set where /proc can be read")
    }

    /// Waits until `wanted` holds for the daemon's status.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&GetStatusResponse) -> bool) {
        within(what, async {
            while !wanted(&self.status().await) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    pub(crate) async fn handover(&self) -> Handover {
        Handover::connect(Path::new(&self.info().await.handover_socket))
    }

    pub(crate) fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    pub(crate) fn events(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel.clone())
    }

    pub(crate) fn loops(&self) -> LoopServiceClient<Channel> {
        LoopServiceClient::new(self.channel.clone())
    }

    pub(crate) fn policies(&self) -> PolicyServiceClient<Channel> {
        PolicyServiceClient::new(self.channel.clone())
    }

    pub(crate) fn processes(&self) -> ProcessServiceClient<Channel> {
        ProcessServiceClient::new(self.channel.clone())
    }

    pub(crate) fn transports(&self) -> TransportServiceClient<Channel> {
        TransportServiceClient::new(self.channel.clone())
    }

    pub(crate) fn watches(&self) -> WatchServiceClient<Channel> {
        WatchServiceClient::new(self.channel.clone())
    }
}

impl Drop for Daemon {
    /// Sends SIGTERM, so that the daemon ends in order and its children end too.
    fn drop(&mut self) {
        if let Some(id) = self.child.id() {
            let pid = rustix::process::Pid::from_raw(id.try_into().unwrap()).unwrap();
            let flags = rustix::process::PidfdFlags::empty();
            if let Ok(pidfd) = rustix::process::pidfd_open(pid, flags) {
                self.signal(Signal::SIGTERM);
                let flags = rustix::event::PollFlags::IN;
                let mut ended = [rustix::event::PollFd::new(&pidfd, flags)];
                let timeout = rustix::time::Timespec::try_from(ENDING).unwrap();
                let _ = rustix::event::poll(&mut ended, Some(&timeout));
            }
            let _ = self.child.start_kill();
        }
        if std::thread::panicking() {
            eprintln!("--- the daemon's log ---\n{}---", self.log());
        }
    }
}

/// Makes a directory for daemons. It is removed with the last reference.
pub(crate) fn directory() -> Arc<TempDir> {
    Arc::new(TempDir::new().unwrap())
}

/// Returns the daemon's command line in `dir` with this configuration. Its log goes to a file
/// there.
///
/// It has no keeper: the process is the daemon itself, so that a test can signal it and look at it.
pub(crate) fn command(dir: &Path, config: &str, launcher: &[&str]) -> Command {
    let mut command = command_with_keeper(dir, config, launcher);
    command.arg("--no-keeper");
    command
}

/// As [`command`], but the process is the keeper of the daemon.
pub(crate) fn command_with_keeper(dir: &Path, config: &str, launcher: &[&str]) -> Command {
    let file = dir.join("evloopd.toml");
    std::fs::write(&file, config).unwrap();
    let log = std::fs::File::create(dir.join("log")).unwrap();
    let words: Vec<&str> = [launcher, &[env!("CARGO_BIN_EXE_evloopd")]].concat();
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .arg("--config")
        .arg(file)
        .arg("--socket")
        .arg(dir.join("evloopd.sock"))
        .env_remove("LISTEN_FDS")
        .env_remove("NOTIFY_SOCKET")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(log)
        .kill_on_drop(true);
    command
}

/// Returns what the daemon of that directory has written to standard error.
pub(crate) fn log(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("log")).unwrap_or_default()
}

async fn told_ready(socket: &UnixDatagram) {
    let mut message = [0; 4096];
    loop {
        let len = socket.recv(&mut message).await.unwrap();
        if message[..len]
            .split(|b| *b == b'\n')
            .any(|line| line == b"READY=1")
        {
            return;
        }
    }
}

pub(crate) async fn connect(path: &Path) -> Channel {
    connect_with(path, Endpoint::from_static("http://localhost")).await
}

pub(crate) async fn connect_with(path: &Path, endpoint: Endpoint) -> Channel {
    endpoint
        .connect_with_connector(connector(path))
        .await
        .unwrap()
}

/// Returns a connection that begins with the first call: the daemon may be dead now.
pub(crate) fn connect_later(path: &Path) -> Channel {
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector(path))
}

fn connector(
    path: &Path,
) -> impl tower::Service<http::Uri, Response = TokioIo<UnixStream>, Error = std::io::Error, Future: Send>
+ Send
+ use<> {
    let path = path.to_owned();
    tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    })
}

/// Returns the processor time that a process has used, in steps of a clock tick (10 ms).
pub(crate) fn processor_time(pid: Pid) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The second field, the program's name in brackets, may have spaces.
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let [user, system] = [fields[11], fields[12]].map(|ticks| ticks.parse::<u64>().unwrap());
    Duration::from_millis((user + system) * 1000 / rustix::param::clock_ticks_per_second())
}

/// Shuts a socket down at once. Closing it is not enough: a program that another test is just
/// starting holds a copy of the descriptor until it calls exec.
pub(crate) fn hang_up(socket: impl AsFd) {
    rustix::net::shutdown(socket, rustix::net::Shutdown::Both).unwrap();
}

/// Waits until no copy of a datagram socket at this path is open any more, see [`hang_up`].
pub(crate) async fn nobody_has(path: &Path) {
    let gone = async {
        let probe = UnixDatagram::unbound().unwrap();
        while probe.connect(path).is_ok() {
            tokio::task::yield_now().await;
        }
    };
    within("the socket's end", gone).await;
}

/// Waits for a future, and panics with a description if that takes longer than [`PATIENCE`].
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("timed out after {PATIENCE:?}, waiting for {what}"),
    }
}

/// The machine-readable part of an error.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    /// The reason in google.rpc.ErrorInfo.
    pub(crate) reason: String,
    metadata: std::collections::HashMap<String, String>,
    /// The fields named in google.rpc.BadRequest.
    pub(crate) fields: Vec<String>,
}

impl Refusal {
    /// Returns a value of the metadata; empty if the key is absent.
    pub(crate) fn word(&self, key: &str) -> &str {
        self.metadata.get(key).map_or("", String::as_str)
    }
}

/// Reads the details of an error.
pub(crate) fn refusal(status: &Status) -> Refusal {
    let details = status.get_error_details();
    let info = details.error_info();
    let fields = details.bad_request();
    if let Some(info) = info {
        assert_eq!(info.domain, "evloopd", "{status:?}");
    }
    Refusal {
        code: status.code(),
        reason: info.map_or_else(String::new, |info| info.reason.clone()),
        metadata: info.map(|info| info.metadata.clone()).unwrap_or_default(),
        fields: fields.map_or_else(Vec::new, |bad| {
            bad.field_violations
                .iter()
                .map(|v| v.field.clone())
                .collect()
        }),
    }
}

/// Asserts that a call was refused with this code and reason, and returns the other details.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(
    result: Result<T, Status>,
    code: Code,
    reason: &str,
) -> Refusal {
    let status = result.expect_err("it should have been refused");
    let refusal = refusal(&status);
    assert_eq!(
        (refusal.code, refusal.reason.as_str()),
        (code, reason),
        "{status:?}"
    );
    refusal
}
