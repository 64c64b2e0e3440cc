//! The demo: a real daemon on a private socket, real clients as processes, and a verdict.
//!
//! | file | what |
//! |---|---|
//! | `crash` | act 1: clients are killed, and what becomes of their children |
//! | `tour` | act 2: every kind of watch on every backend |
//! | `clients` | what the client processes do in act 1, and the way in for all of them |
//! | `script` | what they do in act 2 |
//! | `process` | the daemon, the clients, and that none is left behind |
//! | `numbers` | the child's output, and how to tell whether it is complete |
//! | `screen` | what the audience sees |
//!
//! Clients pass on the daemon's answers as they come, on their stdout. This process shows
//! them, and has them judged by [`crate::history`] in the end.

use std::collections::BTreeSet;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Channel;

use crate::error::TEXT_MAX;
use crate::history::{Summary, Violation};
use crate::proto::admin_service_client::AdminServiceClient;
use crate::proto::loop_service_client::LoopServiceClient;
use crate::proto::policy_service_client::PolicyServiceClient;
use crate::proto::{
    Backend, GetLoopRequest, GetServerInfoRequest, ListBackendsRequest, LoopRef, loop_ref,
};

use crate::text;

mod clients;
mod crash;
mod numbers;
mod process;
mod screen;
mod script;
mod tour;

use process::{Client, Daemon};
use screen::{GOOD, Screen};

/// When to give up: twenty times what it takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the end of the daemon may lag behind the failures that it causes.
const LAG: Duration = Duration::from_millis(200);

/// Exit code after a signal that asked for the end: as shells have it for SIGINT.
const INTERRUPTED: u8 = 130;

/// Shows the demo. Fails if anything that it promises is missing.
///
/// To be called on a thread that does not block SIGINT, SIGTERM and SIGHUP: they end it in order.
#[must_use]
pub fn run() -> ExitCode {
    match block_on(present()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            anstream::eprintln!("demo: {}", text::escaped(&failure, TEXT_MAX));
            match failure {
                Failure::Interrupted => ExitCode::from(INTERRUPTED),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// Is one of the demo's clients: `args` say which. Only [`run`] calls it, by way of the
/// program's hidden `demo-client`.
#[must_use]
pub fn client(args: &[String]) -> ExitCode {
    block_on(clients::play(args)).unwrap_or_else(|failure| {
        let failure = text::escaped(&failure, TEXT_MAX);
        anstream::eprintln!("demo-client {}: {failure}", args.join(" "));
        ExitCode::FAILURE
    })
}

/// Why the demo cannot go on.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The system refused something.
    #[error("{step}: {source}")]
    System {
        step: &'static str,
        source: io::Error,
    },
    /// The daemon did.
    #[error("{step}: {}", status.message())]
    Refused {
        step: &'static str,
        status: Box<Status>,
    },
    /// What was recorded is not what evloopd promises.
    #[error("{of}: the history breaks a promise: {violation}")]
    Broken {
        of: &'static str,
        violation: Violation,
    },
    /// Something that should be there is not.
    #[error("{0}")]
    Missing(String),
    /// The daemon did not outlive the demo.
    #[error("the daemon ended; the end of its log:\n{0}")]
    DaemonEnded(String),
    /// A signal asked for the end.
    #[error("interrupted")]
    Interrupted,
}

impl Failure {
    fn refused(step: &'static str, status: Status) -> Self {
        let status = Box::new(status);
        Self::Refused { step, status }
    }
}

/// Fails unless `holds`.
fn require(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), Failure> {
    if holds {
        Ok(())
    } else {
        Err(Failure::Missing(otherwise()))
    }
}

/// Says what was being done when it failed.
trait During<T> {
    fn during(self, step: &'static str) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, step: &'static str) -> Result<T, Failure> {
        self.map_err(|error| Failure::System {
            step,
            source: error.into(),
        })
    }
}

/// The same for answers of the daemon: what they carry, or its refusal.
trait Answer<T> {
    fn answer(self, step: &'static str) -> Result<T, Failure>;
}

impl<T> Answer<T> for Result<tonic::Response<T>, Status> {
    fn answer(self, step: &'static str) -> Result<T, Failure> {
        let refused = |status| Failure::refused(step, status);
        self.map(tonic::Response::into_inner).map_err(refused)
    }
}

fn block_on<T>(play: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .during("start")?;
    runtime.block_on(play)
}

async fn present() -> Result<(), Failure> {
    let mut ends = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ]
    .map(signal)
    .into_iter()
    .collect::<io::Result<Vec<_>>>()
    .during("signal")?;
    let [interrupt, terminate, hangup] = ends.as_mut_slice() else {
        return Err(Failure::Interrupted);
    };
    tokio::select! {
        shown = timeout(PATIENCE, show()) => shown.unwrap_or_else(|_| {
            Err(Failure::Missing(format!("not finished after {PATIENCE:?}")))
        }),
        _ = interrupt.recv() => Err(Failure::Interrupted),
        _ = terminate.recv() => Err(Failure::Interrupted),
        _ = hangup.recv() => Err(Failure::Interrupted),
    }
}

async fn show() -> Result<(), Failure> {
    let daemon = Daemon::start().await?;
    let total = tokio::select! {
        total = acts(&daemon) => total,
        failure = daemon.failure() => Err(failure),
    };
    match total {
        Ok(total) => {
            daemon.stop().await?;
            total.verdict()
        }
        Err(consequence) => {
            let cause = timeout(LAG, daemon.failure()).await;
            Err(cause.unwrap_or(consequence))
        }
    }
}

async fn acts(daemon: &Daemon) -> Result<Total, Failure> {
    let stage = Stage::set(daemon).await?;
    let mut total = Total::default();
    crash::play(&stage, &mut total).await?;
    tour::play(&stage, &mut total).await?;
    Ok(total)
}

/// What both acts play on.
struct Stage<'a> {
    daemon: &'a Daemon,
    /// This process's own connection, to ask how things are.
    channel: Channel,
    screen: Screen,
}

impl<'a> Stage<'a> {
    async fn set(daemon: &'a Daemon) -> Result<Self, Failure> {
        let screen = Screen::new();
        let connected = crate::client::connect(Some(daemon.socket())).await;
        let channel = connected
            .map_err(|error| Failure::Missing(error.to_string()))?
            .channel;
        let info = AdminServiceClient::new(channel.clone())
            .get_server_info(GetServerInfoRequest {})
            .await
            .answer("GetServerInfo")?;
        screen.opening(&info)?;
        Ok(Self {
            daemon,
            channel,
            screen,
        })
    }

    /// Starts a client process.
    fn client(&self, role: &str, args: &[&str]) -> Result<Client, Failure> {
        Client::start(role, self.daemon.socket(), args)
    }

    /// What loops can wait with, here and elsewhere.
    async fn backends(&self) -> Result<Vec<Backend>, Failure> {
        let answer = PolicyServiceClient::new(self.channel.clone())
            .list_backends(ListBackendsRequest {})
            .await;
        Ok(answer.answer("ListBackends")?.backends)
    }

    /// What the loop waits with.
    async fn backend_of(&self, loop_id: u64) -> Result<String, Failure> {
        let request = GetLoopRequest {
            r#loop: Some(LoopRef {
                r#ref: Some(loop_ref::Ref::LoopId(loop_id)),
            }),
        };
        let answer = LoopServiceClient::new(self.channel.clone())
            .get_loop(request)
            .await
            .answer("GetLoop")?;
        Ok(answer.r#loop.unwrap_or_default().backend)
    }
}

/// What the checker found in all recordings together.
#[derive(Debug, Default)]
struct Total {
    events: u64,
    watches: u64,
    open_watches: u64,
    lost: u64,
    backends: BTreeSet<String>,
}

impl Total {
    fn add(&mut self, summary: &Summary, backend: String) {
        self.events += summary.events;
        self.watches += summary.watches;
        self.open_watches += summary.open_watches;
        self.lost += summary.lost;
        self.backends.insert(backend);
    }

    fn verdict(&self) -> Result<(), Failure> {
        let (events, watches, lost) = (self.events, self.watches, self.lost);
        let backends = self.backends.len();
        let line = format!(
            "demo: {events} events from {watches} watches on {backends} backends, {lost} lost"
        );
        screen::line(&format!("{GOOD}{line}{GOOD:#}"))?;
        require(lost == 0, || format!("{lost} events were lost"))?;
        require(self.open_watches == 0, || {
            format!("{} watches never closed", self.open_watches)
        })
    }
}
