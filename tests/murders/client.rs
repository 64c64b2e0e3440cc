//! Clients that go on when the daemon dies: they repeat what has no answer.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use parking_lot::Mutex;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;

use crate::common::{Daemon, connect_later};
use crate::figures::Figures;
use crate::stuck;

/// The daemon under load, as all its clients know it.
#[derive(Debug)]
pub(crate) struct Site {
    /// A directory for the files of the loads.
    pub(crate) dir: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) handover_socket: PathBuf,
    pub(crate) keeper: Pid,
    /// When each life was killed.
    pub(crate) deaths: Mutex<Vec<Instant>>,
    /// Answers to those who only ask whether it lives.
    pub(crate) answers: AtomicU64,
    /// The newest life that has answered.
    pub(crate) answered: AtomicU64,
    pub(crate) figures: Figures,
    pub(crate) keys: AtomicU64,
    /// The loads that have not ended, by their name and loop.
    pub(crate) running: Mutex<BTreeSet<(&'static str, &'static str)>>,
    /// Since when the loads only finish what they have begun.
    over: OnceLock<Instant>,
    /// Nobody asks any more.
    closed: AtomicBool,
    /// A call hangs: nothing is killed any more.
    frozen: AtomicBool,
}

impl Site {
    pub(crate) async fn of(daemon: &Daemon) -> Self {
        Self {
            dir: daemon.dir.path().to_owned(),
            socket: daemon.socket.clone(),
            handover_socket: daemon.info().await.handover_socket.into(),
            keeper: daemon.pid(),
            deaths: Mutex::default(),
            answers: AtomicU64::new(0),
            answered: AtomicU64::new(1),
            figures: Figures::default(),
            keys: AtomicU64::new(1),
            running: Mutex::default(),
            over: OnceLock::new(),
            closed: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.get().is_some()
    }

    pub(crate) fn is_over_since(&self) -> Option<Duration> {
        self.over.get().map(Instant::elapsed)
    }

    pub(crate) fn end(&self) {
        self.over.get_or_init(Instant::now);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Relaxed)
    }

    pub(crate) fn deaths_so_far(&self) -> usize {
        self.deaths.lock().len()
    }

    /// Returns a number that no other object of the daemon has.
    pub(crate) fn key(&self) -> u64 {
        self.keys.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn client(self: &Arc<Self>) -> Client {
        Client {
            channel: connect_later(&self.socket),
            site: Arc::clone(self),
        }
    }

    /// Waits for an answer. It is stuck if others get answers meanwhile.
    pub(crate) async fn patient<T>(&self, what: &str, answer: impl Future<Output = T>) -> T {
        let before = self.answers.load(Ordering::Relaxed);
        let mut answer = pin!(answer);
        loop {
            if let Ok(answer) = tokio::time::timeout(stuck::LIMIT, &mut answer).await {
                return answer;
            }
            if self.answers.load(Ordering::Relaxed) >= before + 3 {
                self.stuck(what).await;
            }
        }
    }

    /// Tells all that can be known about a call that gets no answer, and panics.
    pub(crate) async fn stuck(&self, what: &str) -> ! {
        let first = !self.frozen.swap(true, Ordering::Relaxed);
        if first {
            stuck::tell(self, what).await;
        }
        panic!(
            "{what}: no answer for {:?}, after {} deaths",
            stuck::LIMIT,
            self.deaths_so_far()
        );
    }
}

/// One connection of a client.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) channel: Channel,
    pub(crate) site: Arc<Site>,
}

impl Client {
    /// Calls until there is an answer.
    ///
    /// # Errors
    /// The daemon's refusal.
    pub(crate) async fn call<T, F>(
        &self,
        what: &str,
        mut ask: impl FnMut(Channel) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        loop {
            match self.site.patient(what, ask(self.channel.clone())).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if is_broken(&status) => {
                    self.site.figures.count("calls without an answer", 1);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(status) => return Err(status),
            }
        }
    }
}

/// Whether the connection has ended. A refusal of the daemon has a reason.
pub(crate) fn is_broken(status: &Status) -> bool {
    let code = matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled
    );
    code && reason(status).is_empty()
}

/// Returns the daemon's reason for a refusal; empty if it is none.
pub(crate) fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info();
    info.map_or_else(String::new, |info| info.reason.clone())
}

/// Whether nothing tells if a request was carried out that was under way when the daemon was killed.
pub(crate) fn is_unknown(status: &Status) -> bool {
    reason(status) == "OUTCOME_UNKNOWN"
}
