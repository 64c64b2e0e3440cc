//! A connection to the daemon, with the options that apply to every call.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::failure::{Failure, USAGE};
use super::parse;
use crate::client;
use crate::proto::LoopRef;
use crate::proto::admin_service_client::AdminServiceClient;
use crate::proto::event_service_client::EventServiceClient;
use crate::proto::loop_service_client::LoopServiceClient;
use crate::proto::policy_service_client::PolicyServiceClient;
use crate::proto::process_service_client::ProcessServiceClient;
use crate::proto::transport_service_client::TransportServiceClient;
use crate::proto::watch_service_client::WatchServiceClient;

/// Options of every verb.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Options of every verb")]
pub(super) struct Global {
    /// The daemon's socket [default: $EVLOOPD_SOCKET, else the user's daemon, else the system's]
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(super) socket: Option<PathBuf>,
    /// The loop: its name, or `@7` for the id 7 [default: the loop of your context]
    #[arg(long = "loop", global = true, value_name = "LOOP", value_parser = parse::loop_ref)]
    loop_ref: Option<LoopRef>,
    /// The session: its context decides which loop is the default
    #[arg(long, global = true, value_name = "NAME", value_parser = parse::name)]
    session: Option<String>,
    /// Print one JSON object per line
    #[arg(long, global = true)]
    pub(super) json: bool,
}

impl Global {
    /// Sets the option `--socket`, `--loop` or `--session`.
    ///
    /// # Errors
    /// The value is wrong.
    pub(super) fn set(&mut self, option: &str, value: &str) -> Result<(), Failure> {
        match option {
            "--socket" => self.socket = Some(value.into()),
            "--loop" => self.loop_ref = Some(parse::loop_ref(value).map_err(Failure::plain)?),
            "--session" => self.session = Some(parse::name(value).map_err(Failure::plain)?),
            _ => {}
        }
        Ok(())
    }
}

/// Puts the value of `--session` into the metadata of every call.
#[derive(Debug, Clone)]
pub(super) struct WithSession(Option<MetadataValue<Ascii>>);

impl Interceptor for WithSession {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(name) = &self.0 {
            request
                .metadata_mut()
                .insert("evloopd-session", name.clone());
        }
        Ok(request)
    }
}

type Transport = InterceptedService<Channel, WithSession>;

/// The connection and the options with which a verb calls the daemon.
#[derive(Debug, Clone)]
pub(super) struct Session {
    transport: Transport,
    /// The loop that requests name; `None` means the loop of the caller's context.
    pub(super) loop_ref: Option<LoopRef>,
    pub(super) json: bool,
    pub(super) socket: PathBuf,
    /// The verb as it was typed, such as `loop close`.
    pub(super) verb: String,
}

impl Session {
    /// Connects to the daemon.
    ///
    /// # Errors
    /// The value of `--session` cannot be sent as metadata, or no daemon answers.
    pub(super) async fn open(global: Global, verb: String) -> Result<Self, Failure> {
        let name = global.session.map(MetadataValue::try_from).transpose();
        let name = name.map_err(|_| {
            Failure::new(
                "--session",
                "a name of visible ASCII characters is expected",
            )
            .code(USAGE)
        })?;
        let connection = client::connect(global.socket.as_deref()).await?;
        Ok(Self {
            transport: InterceptedService::new(connection.channel, WithSession(name)),
            loop_ref: global.loop_ref,
            json: global.json,
            socket: connection.socket,
            verb,
        })
    }

    pub(super) fn admin(&self) -> AdminServiceClient<Transport> {
        AdminServiceClient::new(self.transport.clone())
    }

    pub(super) fn events(&self) -> EventServiceClient<Transport> {
        EventServiceClient::new(self.transport.clone())
    }

    pub(super) fn loops(&self) -> LoopServiceClient<Transport> {
        LoopServiceClient::new(self.transport.clone())
    }

    pub(super) fn policies(&self) -> PolicyServiceClient<Transport> {
        PolicyServiceClient::new(self.transport.clone())
    }

    pub(super) fn processes(&self) -> ProcessServiceClient<Transport> {
        ProcessServiceClient::new(self.transport.clone())
    }

    pub(super) fn transports(&self) -> TransportServiceClient<Transport> {
        TransportServiceClient::new(self.transport.clone())
    }

    pub(super) fn watches(&self) -> WatchServiceClient<Transport> {
        WatchServiceClient::new(self.transport.clone())
    }
}

/// Returns the message that a call was answered with, or the daemon's error as a failure.
pub(super) fn answer<T>(result: Result<Response<T>, Status>) -> Result<T, Failure> {
    match result {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => Err(Failure::rpc(&status)),
    }
}
