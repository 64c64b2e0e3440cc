//! The services, one file each. The only room that knows tonic's server: requests become
//! checked values, errors become statuses, everything else happens below.
//!
//! Mutations run detached from the call that asked: a client that goes away half-way leaves
//! them whole.

use std::fmt::Display;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use tonic::Request;
use tonic_health::server::HealthReporter;

use crate::access::{Peer, audit};
use crate::error::{Error, Result};
use crate::event_loop::Handle;
use crate::handover::Slots;
use crate::policy::{Caller, Registry, SESSION_NAME_MAX, is_loop_name};
use crate::proto;
use crate::watch::Count;

mod admin;
mod attach;
mod calls;
mod connection;
mod consumers;
mod convert;
mod events;
mod loops;
mod places;
mod policies;
mod processes;
mod purse;
mod repeat;
mod snapshot;
mod spec;
pub mod status;
mod strand;
mod stream;
mod subscribe;
mod transports;
mod watches;
pub mod wire;

pub use connection::{Service, serve};
pub use purse::Treasury;
pub use repeat::Repeats;

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

/// Metadata that names the caller's session.
pub const SESSION_HEADER: &str = "evloopd-session";
/// Largest request, bytes: a batch of registrations with their environments.
const REQUEST_MAX: usize = 16 << 20;

/// Names of the services, for health; the empty one is the whole server.
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

/// What the daemon says of itself.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Random, new at every start.
    pub instance: String,
    /// Of the host's boot.
    pub boot_id: String,
    /// Realtime nanoseconds.
    pub started: u64,
    /// The service's socket.
    pub socket: PathBuf,
    /// The one for file descriptors.
    pub handover_socket: PathBuf,
}

/// What all services share.
#[derive(Debug)]
pub struct Shared {
    /// Loops and policies.
    pub registry: Arc<Registry>,
    /// File descriptors handed over.
    pub slots: Arc<Slots>,
    /// Subscribe, Attach and Run streams, and how many there may be.
    pub streams: Arc<Count>,
    /// Answers to mutations, for those that are repeated.
    pub repeats: Arc<Repeats>,
    /// Who this is.
    pub identity: Identity,
}

/// All services.
#[derive(Debug, Clone)]
pub struct Api(Arc<Shared>);

impl std::ops::Deref for Api {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Api {
    /// The services over what they share.
    #[must_use]
    pub fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }

    /// All of evloopd's services, with standard health and reflection (v1 and v1alpha); and who tells the health.
    ///
    /// # Errors
    /// A descriptor set that reflection cannot read.
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
            // Older tools know this one alone.
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

    /// The loop a request names; `create`: the context's may be made.
    fn on(&self, asker: &Asker, named: Option<proto::LoopRef>, create: bool) -> Result<Handle> {
        self.registry
            .find(&asker.caller, &convert::loop_name(named), create)
    }
}

/// Who calls.
#[derive(Debug, Clone)]
struct Asker {
    peer: Arc<Peer>,
    caller: Caller,
    /// What the connection's calls hold.
    purse: Arc<purse::Purse>,
}

/// Who calls, if they are served at all.
fn asker<T>(request: &Request<T>) -> Result<Asker> {
    let peer = request.extensions().get::<connection::Admitted>();
    let peer = match peer {
        Some(Ok(peer)) => Arc::clone(peer),
        Some(Err(error)) => return Err(error.clone()),
        None => return Err(Error::Internal("a call without a connection")),
    };
    let session = match request.metadata().get(SESSION_HEADER) {
        None => None,
        Some(name) => {
            let name = name.to_str().ok();
            let good = name.filter(|n| n.len() <= SESSION_NAME_MAX && is_loop_name(n));
            let allowed = "must be [a-z0-9][a-z0-9._-]{0,39}";
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
    let purse = request.extensions().get::<Arc<purse::Purse>>();
    let purse = purse.map(Arc::clone);
    let purse = purse.ok_or(Error::Internal("a call without a connection"))?;
    Ok(Asker {
        peer,
        caller,
        purse,
    })
}

/// Does a mutation to its end, whatever becomes of the call, and writes it to the audit log.
async fn mutate<T: Send + 'static>(
    asker: &Asker,
    action: &'static str,
    object: impl Display + Send + 'static,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let peer = Arc::clone(&asker.peer);
    let task = tokio::spawn(async move {
        let result = work.await;
        audit(&peer, action, object, &result);
        result
    });
    let lost = |_| Error::Internal("the work was lost");
    task.await.map_err(lost)?
}

/// For the audit log: what a request is about, by the loop it names.
fn object(on: &Handle, what: impl Display) -> String {
    format!("{}/{what}", on.full_name())
}
