//! Both sides of a comparison as one: a socket that is read, and the stream of what was received.

use std::time::{Duration, Instant};

use evloopd::proto::socket_address::Address;
use evloopd::proto::subscribe_request::Start;
use evloopd::proto::{
    EventKind, Filter, ListenerSpec, SocketAddress, StartAt, SubscribeRequest, TcpListen,
    TlsOptions, event, listener_spec, watch, watch_spec,
};
use http::uri::PathAndQuery;
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

use crate::Outcome;
use crate::daemon::{Daemon, Subscription, add_watch};
use crate::grpc::Server;
use crate::programs::{Received, YARDSTICK};
use crate::report::{Report, Target};

/// The first backend of each class, which have targets.
pub(crate) const BACKENDS: [&str; 2] = ["epoll", "io_uring"];

/// The time after which a round has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a client has received, in numbers.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Got {
    /// Connections that were accepted, if the case asks for that.
    pub(crate) accepted: usize,
    /// Bytes of connections and of datagrams.
    pub(crate) bytes: usize,
    /// Connections that have ended.
    pub(crate) ended: usize,
    pub(crate) datagrams: usize,
}

/// One side.
pub(crate) struct Source {
    process: Process,
    stream: Stream,
    pub(crate) port: u16,
}

enum Process {
    Daemon(Daemon),
    Program(Server),
}

enum Stream {
    Events(Subscription),
    Program(Streaming<Received>),
}

impl Source {
    /// Returns the daemon's side: a watch, and a consumer of these events, of which none is lost.
    pub(crate) async fn watched(
        daemon: Daemon,
        spec: watch_spec::Spec,
        kinds: &[EventKind],
    ) -> Outcome<Self> {
        let channel = daemon.connect().await?;
        let watch = add_watch(channel.clone(), None, spec).await?;
        let request = SubscribeRequest {
            start: Some(Start::StartAt(StartAt::Now.into())),
            consumer: "bench".into(),
            auto_ack: true,
            filter: Some(Filter {
                kinds: kinds.iter().map(|kind| (*kind).into()).collect(),
                ..Filter::default()
            }),
            max_batch_bytes: 256 * 1024,
            ..SubscribeRequest::default()
        };
        let bound = match watch.status {
            Some(watch::Status::Listener(listener)) => listener.addresses.into_iter().next(),
            Some(watch::Status::Datagram(datagram)) => datagram.local,
            _ => None,
        };
        Ok(Self {
            process: Process::Daemon(daemon),
            stream: Stream::Events(Subscription::begin(channel, request).await?),
            port: port_of(bound).ok_or("the watch has no port")?,
        })
    }

    /// Returns the side of a program, by the method that starts it.
    pub(crate) async fn program(method: &'static str, directory: TempDir) -> Outcome<Self> {
        let server = Server::start(YARDSTICK, directory)?;
        let mut grpc = tonic::client::Grpc::new(server.connect().await?);
        grpc.ready().await?;
        let codec = ProstCodec::<(), Received>::default();
        let path = PathAndQuery::from_static(method);
        let answer = grpc.server_streaming(Request::new(()), path, codec).await?;
        let mut stream = answer.into_inner();
        let first = stream.message().await?.ok_or("the program has ended")?;
        Ok(Self {
            process: Process::Program(server),
            stream: Stream::Program(stream),
            port: first.port.try_into()?,
        })
    }

    /// Returns the CPU time that the other process has used.
    pub(crate) fn cpu(&self) -> Outcome<Duration> {
        match &self.process {
            Process::Daemon(daemon) => daemon.cpu(),
            Process::Program(server) => server.cpu(),
        }
    }

    /// Opens another connection to the daemon.
    pub(crate) async fn connect(&self) -> Outcome<Channel> {
        match &self.process {
            Process::Daemon(daemon) => daemon.connect().await,
            Process::Program(server) => server.connect().await,
        }
    }

    /// Returns the number of datagrams that the next message brings.
    pub(crate) async fn datagrams(&mut self) -> Outcome<usize> {
        match tokio::time::timeout(PATIENCE, self.next()).await {
            Ok(got) => Ok(got?.datagrams),
            Err(_) => Err("datagrams are lost".into()),
        }
    }

    /// Returns what the next message brings.
    async fn next(&mut self) -> Outcome<Got> {
        let mut got = Got::default();
        match &mut self.stream {
            Stream::Events(events) => {
                for event in events.next().await?.events {
                    match event.kind {
                        Some(event::Kind::Accepted(_)) => got.accepted += 1,
                        Some(event::Kind::Data(data)) => got.bytes += data.data.len(),
                        Some(event::Kind::Closed(_)) => got.ended += 1,
                        Some(event::Kind::Datagram(datagram)) => {
                            got.datagrams += 1;
                            got.bytes += datagram.data.len();
                        }
                        other => return Err(format!("not subscribed to: {other:?}").into()),
                    }
                }
            }
            Stream::Program(stream) => {
                let received = stream.message().await?.ok_or("the program has ended")?;
                got.accepted += usize::from(received.accepted);
                got.bytes += received.data.len();
                got.ended += usize::from(received.ended);
                got.datagrams += received.datagrams.len();
                let lengths = received.datagrams.iter().map(|d| d.data.len());
                got.bytes += lengths.sum::<usize>();
            }
        }
        Ok(got)
    }

    /// Receives until all of that has come.
    pub(crate) async fn until(&mut self, all: Got) -> Outcome<()> {
        let mut left = all;
        while left != Got::default() {
            let got = match tokio::time::timeout(PATIENCE, self.next()).await {
                Ok(got) => got?,
                Err(_) => return Err(format!("does not come: {left:?}").into()),
            };
            for (left, got) in [
                (&mut left.accepted, got.accepted),
                (&mut left.bytes, got.bytes),
                (&mut left.ended, got.ended),
                (&mut left.datagrams, got.datagrams),
            ] {
                *left = left.checked_sub(got).ok_or("more has come than was sent")?;
            }
        }
        Ok(())
    }
}

fn port_of(address: Option<SocketAddress>) -> Option<u16> {
    match address?.address? {
        Address::Inet(inet) => inet.port.try_into().ok(),
        Address::Unix(_) => None,
    }
}

/// A listener on a free port of this host, with room for all connections of a round.
pub(crate) fn listener() -> ListenerSpec {
    ListenerSpec {
        target: Some(listener_spec::Target::Tcp(TcpListen {
            hosts: vec!["127.0.0.1".into()],
            ..TcpListen::default()
        })),
        backlog: 1024,
        ..ListenerSpec::default()
    }
}

/// The same with TLS, by the certificate `[tls.host]`.
pub(crate) fn listener_with_tls() -> ListenerSpec {
    ListenerSpec {
        tls: Some(TlsOptions {
            config: "host".into(),
            ..TlsOptions::default()
        }),
        ..listener()
    }
}

/// What one round took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    /// Units in a second.
    pub(crate) rate: f64,
    /// Microseconds of CPU time of the process that reads, for one unit.
    pub(crate) cpu: f64,
}

/// A round that is being measured.
pub(crate) struct Clock {
    begun: Instant,
    cpu: Duration,
}

impl Clock {
    pub(crate) fn start(source: &Source) -> Outcome<Self> {
        Ok(Self {
            cpu: source.cpu()?,
            begun: Instant::now(),
        })
    }

    /// Returns what so many units took.
    pub(crate) fn stop(self, source: &Source, units: f64) -> Outcome<Taken> {
        let rate = units / self.begun.elapsed().as_secs_f64();
        let cpu = (source.cpu()? - self.cpu).as_secs_f64() * 1e6 / units;
        Ok(Taken { rate, cpu })
    }
}

/// Adds the rates and the CPU times. `taken` has the rounds of each backend's daemon, and last those
/// of the yardstick; `targets` is the least ratio of each backend.
pub(crate) fn add(
    report: &mut Report,
    [rate, cpu]: [&'static str; 2],
    [unit, cpu_unit]: [&'static str; 2],
    targets: [f64; 2],
    mut taken: Vec<Vec<Taken>>,
) {
    let rates = |rounds: &[Taken]| rounds.iter().map(|taken| taken.rate).collect();
    let cpus = |rounds: &[Taken]| rounds.iter().map(|taken| taken.cpu).collect();
    let theirs = taken.pop().unwrap_or_default();
    for ((backend, target), ours) in BACKENDS.into_iter().zip(targets).zip(taken) {
        let (both, target) = ((rates(&ours), rates(&theirs)), Target::AtLeast(target));
        report.ratio((rate, backend), unit, Some(target), both);
        let both = (cpus(&ours), cpus(&theirs));
        report.ratio((cpu, backend), cpu_unit, None, both);
    }
}
