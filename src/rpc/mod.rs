//! The gRPC services, one file each. Only this module uses tonic's server: it turns requests into
//! checked values and errors into statuses, and leaves everything else to other modules.
//!
//! Mutations run detached from their call: if the client goes away, the mutation is still
//! carried out as a whole.

use std::fmt::Display;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use tonic::Request;
use tonic_health::server::HealthReporter;

use crate::access::{Peer, audit};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::event_loop::Handle;
use crate::faults;
use crate::handover::Slots;
use crate::keeper::Life;
use crate::policy::{Caller, LoopName, Registry, SESSION_NAME_MAX, is_loop_name};
use crate::proto;
use crate::terminals::Terminals;
use crate::watch::Count;

mod admin;
mod attach;
mod calls;
mod connection;
mod connection_limits;
mod consumers;
mod convert;
mod events;
mod loops;
mod policies;
mod processes;
mod quota;
mod repeat;
mod screens;
mod serial_executor;
mod snapshot;
mod spec;
pub mod status;
mod stream;
mod subscribe;
mod terminal;
mod transports;
mod watches;
pub mod wire;

pub use connection::{Service, serve};
pub use quota::MemoryQuotas;
pub use repeat::Repeats;
pub use spec::Reviver;

/// The server side of the services, generated.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic
)]
pub mod server {
    include!(concat!(env!("OUT_DIR"), "/server/evloopd.v1.rs"));
}

/// The metadata key with the name of the caller's session.
pub const SESSION_HEADER: &str = "evloopd-session";
/// The largest request, bytes: room for a batch of registrations with their environments.
const REQUEST_MAX: usize = 16 << 20;

/// The names of the services for health checks; the empty name stands for the whole server.
pub const SERVICES: [&str; 8] = [
    "",
    server::policy_service_server::SERVICE_NAME,
    server::loop_service_server::SERVICE_NAME,
    server::watch_service_server::SERVICE_NAME,
    server::process_service_server::SERVICE_NAME,
    server::transport_service_server::SERVICE_NAME,
    server::event_service_server::SERVICE_NAME,
    server::admin_service_server::SERVICE_NAME,
];

/// The facts about the daemon that it tells its clients.
#[derive(Debug, Clone)]
pub struct Identity {
    /// A random id, new at every start of the daemon. All lives of one keeper have the same.
    pub instance: String,
    /// The id of the host's boot.
    pub boot_id: String,
    /// When the daemon started, realtime nanoseconds.
    pub started: u64,
    /// The path of the service's socket.
    pub socket: PathBuf,
    /// The path of the socket for file descriptors.
    pub handover_socket: PathBuf,
    /// The daemon's present life, if it has a keeper.
    pub life: Option<Life>,
    /// Tells what the configuration files have by now.
    pub files: ConfigFiles,
    /// Why nothing outlives the keeper, if so.
    pub state_trouble: Option<String>,
    /// What is wrong with the files of the sockets.
    pub socket_troubles: Arc<Mutex<Vec<String>>>,
    /// The limits of the configuration that this host does not let the daemon reach.
    pub limit_troubles: Vec<String>,
}

impl Identity {
    /// Returns the number of the daemon's present life; 0 without a keeper.
    fn life_number(&self) -> u64 {
        self.life.as_ref().map_or(0, Life::number)
    }
}

/// Reads what the configuration files have by now: it is not applied.
#[derive(Clone, Default)]
pub struct ConfigFiles(Option<Arc<Read>>);

type Read = dyn Fn() -> std::result::Result<Config, Vec<String>> + Send + Sync;

impl ConfigFiles {
    /// Returns files that this function reads.
    pub fn new(
        read: impl Fn() -> std::result::Result<Config, Vec<String>> + Send + Sync + 'static,
    ) -> Self {
        Self(Some(Arc::new(read)))
    }

    /// Returns the keys whose values in the files differ from those in force, or what is wrong with
    /// the files. Reads them.
    ///
    /// # Errors
    /// One line per error.
    pub fn differences(&self, in_force: &Config) -> std::result::Result<Vec<String>, Vec<String>> {
        match &self.0 {
            Some(read) => Ok(read()?.differences(in_force)),
            None => Ok(Vec::new()),
        }
    }
}

impl std::fmt::Debug for ConfigFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ConfigFiles").finish_non_exhaustive()
    }
}

/// The state that all services share.
#[derive(Debug)]
pub struct Shared {
    /// The loops and policies.
    pub registry: Arc<Registry>,
    /// The file descriptors that clients have handed over.
    pub slots: Arc<Slots>,
    /// The number of Subscribe, Attach and Run streams, and its limit.
    pub streams: Arc<Count>,
    /// The screens of processes with terminals.
    pub terminals: Arc<Terminals>,
    /// The answers to mutations, kept for calls that repeat them.
    pub repeats: Arc<Repeats>,
    /// The facts about the daemon.
    pub identity: Identity,
}

/// The implementation of all services.
#[derive(Debug, Clone)]
pub struct Api(Arc<Shared>);

impl std::ops::Deref for Api {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Api {
    /// Makes the services over their shared state.
    #[must_use]
    pub fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }

    /// Returns the routes of all services, with the standard health and reflection services (v1 and
    /// v1alpha), and the reporter that sets the health.
    ///
    /// # Errors
    /// The reflection service cannot read the descriptor set.
    pub fn routes(
        &self,
    ) -> std::result::Result<
        (tonic::service::Routes, HealthReporter),
        tonic_reflection::server::Error,
    > {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let (reporter, health) = tonic_health::server::health_reporter();
        let api = || self.clone();
        let mut routes = tonic::service::RoutesBuilder::default();
        routes
            .add_service(health)
            .add_service(reflection().build_v1()?)
            // Older tools know only this version.
            .add_service(reflection().build_v1alpha()?)
            .add_service(server::policy_service_server::PolicyServiceServer::new(
                api(),
            ))
            .add_service(server::loop_service_server::LoopServiceServer::new(api()))
            .add_service(
                server::watch_service_server::WatchServiceServer::new(api())
                    .max_decoding_message_size(REQUEST_MAX),
            )
            .add_service(
                server::process_service_server::ProcessServiceServer::new(api())
                    .max_decoding_message_size(REQUEST_MAX),
            )
            .add_service(
                server::transport_service_server::TransportServiceServer::new(api())
                    .max_decoding_message_size(REQUEST_MAX),
            )
            .add_service(
                server::event_service_server::EventServiceServer::new(api())
                    .max_decoding_message_size(REQUEST_MAX),
            )
            .add_service(server::admin_service_server::AdminServiceServer::new(api()));
        Ok((routes.routes(), reporter))
    }

    /// Finds the loop that a request names. With `create`, the loop of the caller's context is made
    /// if there is none.
    fn on(
        &self,
        requester: &Requester,
        named: Option<proto::LoopRef>,
        create: bool,
    ) -> Result<Handle> {
        let named = convert::loop_name(named);
        if let LoopName::Name(name) = &named {
            faults::word(name);
        }
        self.registry.find(&requester.caller, &named, create)
    }
}

/// The caller of a request.
#[derive(Debug, Clone)]
struct Requester {
    peer: Arc<Peer>,
    caller: Caller,
    /// Counts the memory that the connection's calls hold.
    quota: Arc<quota::MemoryQuota>,
}

/// Returns the caller of a request, or the error if the peer is not served.
fn requester<T>(request: &Request<T>) -> Result<Requester> {
    let peer = request.extensions().get::<connection::Admitted>();
    let peer = match peer {
        Some(Ok(peer)) => Arc::clone(peer),
        Some(Err(error)) => return Err(error.clone()),
        None => return Err(Error::Internal("a call does not belong to a connection")),
    };
    let session = match request.metadata().get(SESSION_HEADER) {
        None => None,
        Some(name) => {
            let name = name.to_str().ok();
            let good = name.filter(|n| n.len() <= SESSION_NAME_MAX && is_loop_name(n));
            let allowed = "must match [a-z0-9][a-z0-9._-]{0,39}";
            let name = good.ok_or_else(|| Error::invalid(SESSION_HEADER, allowed))?;
            Some(name.to_owned())
        }
    };
    let caller = Caller {
        principal: peer.principal.clone(),
        administrator: peer.administrator,
        session,
        process: peer.process.clone(),
    };
    let quota = request.extensions().get::<Arc<quota::MemoryQuota>>();
    let quota = quota.map(Arc::clone);
    let quota = quota.ok_or(Error::Internal("a call does not belong to a connection"))?;
    Ok(Requester {
        peer,
        caller,
        quota,
    })
}

/// Carries out a mutation to its end, even if the call is cancelled, and writes it to the audit
/// log.
async fn mutate<T: Send + 'static>(
    requester: &Requester,
    action: &'static str,
    object: impl Display + Send + 'static,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let peer = Arc::clone(&requester.peer);
    let task = tokio::spawn(async move {
        let result = work.await;
        audit(&peer, action, object, &result);
        result
    });
    let lost = |_| Error::Internal("the task of the call ended without a result");
    task.await.map_err(lost)?
}

/// Returns the name of a request's object for the audit log: the loop and `what`.
fn object(on: &Handle, what: impl Display) -> String {
    format!("{}/{what}", on.full_name())
}
