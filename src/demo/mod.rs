//! The demo: runs a real daemon on a private socket and real client processes, and checks that no
//! event is lost.
//!
//! | file | content |
//! |---|---|
//! | `crash` | act 1: clients are killed while their children run |
//! | `tour` | act 2: every kind of watch on every backend |
//! | `clients` | the entry point of all client processes, and the clients of act 1 |
//! | `script` | the client of act 2 |
//! | `process` | starts and ends the daemon and the clients |
//! | `numbers` | the child of act 1, and the check that its output is complete |
//! | `screen` | the output on the terminal |
//!
//! Clients write the daemon's answers to their stdout as they arrive. This process shows
//! them, and checks them with [`crate::history`] at the end.

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

/// How long the demo may take: twenty times its usual duration.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the demo waits, after another failure, for the end of the daemon as its cause.
const LAG: Duration = Duration::from_millis(200);

/// The exit code after SIGINT, SIGTERM or SIGHUP: that which shells use for SIGINT.
const INTERRUPTED: u8 = 130;

/// Runs the demo. Fails if any step does not have its expected result.
///
/// Must be called on a thread that does not block SIGINT, SIGTERM and SIGHUP, which end the demo in
/// order.
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

/// Runs one of the demo's clients, which `args` name. Only [`run`] starts it, with the program's
/// hidden subcommand `demo-client`.
#[must_use]
pub fn client(args: &[String]) -> ExitCode {
    block_on(clients::play(args)).unwrap_or_else(|failure| {
        let failure = text::escaped(&failure, TEXT_MAX);
        anstream::eprintln!("demo-client {}: {failure}", args.join(" "));
        ExitCode::FAILURE
    })
}

/// The reason why the demo has failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The system refused something.
    #[error("{step}: {source}")]
    System {
        step: &'static str,
        source: io::Error,
    },
    /// The daemon refused something.
    #[error("{step}: {}", status.message())]
    Refused {
        step: &'static str,
        status: Box<Status>,
    },
    /// The recorded events break a promise of evloopd.
    #[error("{of}: the history breaks a promise: {violation}")]
    Broken {
        of: &'static str,
        violation: Violation,
    },
    /// Something that the demo expects did not happen.
    #[error("{0}")]
    Missing(String),
    /// The daemon ended before the demo did.
    #[error("the daemon ended; the end of its log:\n{0}")]
    DaemonEnded(String),
    /// A signal ended the demo.
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

/// Converts an error of the system to a [`Failure`] that names the step.
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

/// Converts an answer of the daemon to its message, or to a [`Failure`] that names the step.
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

/// The daemon, a connection to it and the screen, for both acts.
struct Stage<'a> {
    daemon: &'a Daemon,
    /// This process's own connection, for questions about loops and watches.
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

    /// Returns all backends, whether they are available on this host or not.
    async fn backends(&self) -> Result<Vec<Backend>, Failure> {
        let answer = PolicyServiceClient::new(self.channel.clone())
            .list_backends(ListBackendsRequest {})
            .await;
        Ok(answer.answer("ListBackends")?.backends)
    }

    /// Returns the name of a loop's backend.
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

/// The sums of the checker's summaries of all recordings.
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
