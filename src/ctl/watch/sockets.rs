//! The verbs that add connections and listeners. Their options have the names that socat and ncat use.

use clap::Args;

use super::super::failure::Failure;
use super::super::parse::{self, Address};
use super::super::session::Session;
use super::add::{Made, Registration, hand_over};
use super::tls::Tls;
use crate::proto::{
    ConnectionSpec, ListenerSpec, TcpKeepAlive, TcpListen, TcpOptions, TcpTarget, TlsOptions,
    UnixAddress, WaterMarks, connection_spec, listener_spec, watch_spec,
};

pub(in crate::ctl) const CONNECT_EXAMPLES: &str = "Examples:
  evloopctl connect localhost:80 -f
  evloopctl connect unix:/run/app.sock --name app
  evloopctl connect '[fe80::1%eth0]:80' --keepidle 30s --user-timeout 1m
  evloopctl connect example.org:443 --tls --alpn h2,http/1.1";

pub(in crate::ctl) const LISTEN_EXAMPLES: &str = "Examples:
  evloopctl listen 127.0.0.1:7000 -f
  evloopctl listen :7000 --max-conns 100       # every address of the host
  evloopctl listen :7443 --tls=web             # as [tls.web] is configured";

#[derive(Debug, Args)]
pub(in crate::ctl) struct Connect {
    /// HOST:PORT, unix:PATH, unix:@NAME (abstract) or fd:N (inherited)
    #[arg(value_parser = parse::address)]
    address: Address,
    /// Connect from this address
    #[arg(long, value_name = "ADDRESS")]
    source: Option<String>,
    /// Connect from this port
    #[arg(long, value_name = "PORT")]
    source_port: Option<u16>,
    /// Keep the connection after the peer has ended its direction
    #[arg(long)]
    keep_half_open: bool,
    /// Read nothing until reading is resumed
    #[arg(long)]
    start_paused: bool,
    /// How long connecting may take [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    timeout: Option<prost_types::Duration>,
    /// When to try a name's next address beside the others [default: 250ms]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    attempt_delay: Option<prost_types::Duration>,
    /// How many addresses of one family to try before the families alternate; 0: do not alternate [default: 1]
    #[arg(long, value_name = "NUMBER")]
    interleave: Option<u32>,
    #[command(flatten)]
    marks: Marks,
    #[command(flatten)]
    tcp: Tcp,
    #[command(flatten)]
    tls: Tls,
    /// The name that the server's certificate must be valid for [default: HOST]
    #[arg(
        long,
        value_name = "NAME",
        value_parser = parse::host,
        requires = "tls",
        help_heading = "Options of TLS"
    )]
    servername: Option<String>,
    #[command(flatten)]
    registration: Registration,
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct Listen {
    /// HOST:PORT, :PORT, unix:PATH, unix:@NAME (abstract) or fd:N (inherited)
    #[arg(value_parser = parse::address)]
    address: Address,
    /// The most connections that the kernel keeps until they are accepted [default: 128]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    backlog: u32,
    /// Share the port with other listeners that set this option too (SO_REUSEPORT)
    #[arg(long)]
    reuse_port: bool,
    /// Keep a connection after the peer has ended its direction
    #[arg(long)]
    keep_half_open: bool,
    /// Read nothing from a connection until reading is resumed
    #[arg(long)]
    start_paused: bool,
    /// The most connections that may be open at once; more wait in the kernel [default: no limit]
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 0,
        hide_default_value = true
    )]
    max_conns: u32,
    /// Accept IPv4 connections on IPv6 sockets too
    #[arg(long)]
    dual_stack: bool,
    #[command(flatten)]
    marks: Marks,
    #[command(flatten)]
    tcp: Tcp,
    #[command(flatten)]
    tls: Tls,
    #[command(flatten)]
    registration: Registration,
}

/// When too many bytes are unsent.
#[derive(Debug, Args)]
pub(super) struct Marks {
    /// Report that writing pauses above this many unsent bytes [default: 64KiB]
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    high_water: Option<u64>,
    /// Report that writing resumes at this many unsent bytes [default: a quarter of --high-water]
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    low_water: Option<u64>,
}

impl Marks {
    pub(super) fn water_marks(&self) -> Option<WaterMarks> {
        let marks = WaterMarks {
            high_bytes: self.high_water,
            low_bytes: self.low_water,
        };
        (marks != WaterMarks::default()).then_some(marks)
    }
}

/// Options of TCP sockets.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of TCP")]
struct Tcp {
    /// Whether small writes are sent at once [default: true]
    #[arg(long, value_name = "BOOL")]
    nodelay: Option<bool>,
    /// Ask a silent peer whether it is still there
    #[arg(long)]
    keepalive: bool,
    /// How long a peer is silent before it is asked; implies --keepalive
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    keepidle: Option<prost_types::Duration>,
    /// How often a silent peer is asked; implies --keepalive
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    keepintvl: Option<prost_types::Duration>,
    /// How many questions without an answer end the connection; implies --keepalive
    #[arg(long, value_name = "NUMBER")]
    keepcnt: Option<u32>,
    /// How long sent bytes may stay unacknowledged before the connection ends
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    user_timeout: Option<prost_types::Duration>,
}

impl Tcp {
    /// Returns the options; `None` if none was given.
    fn options(&self) -> Option<TcpOptions> {
        let keep_alive = TcpKeepAlive {
            idle: self.keepidle,
            interval: self.keepintvl,
            count: self.keepcnt.unwrap_or_default(),
        };
        let asks =
            self.keepalive || self.keepcnt.is_some() || keep_alive != TcpKeepAlive::default();
        let options = TcpOptions {
            nodelay: self.nodelay,
            keep_alive: asks.then_some(keep_alive),
            user_timeout: self.user_timeout,
        };
        (options != TcpOptions::default()).then_some(options)
    }
}

pub(super) async fn connect(session: &Session, args: Connect) -> Made {
    let only_tcp = args.source.is_some()
        || args.source_port.is_some()
        || args.attempt_delay.is_some()
        || args.interleave.is_some();
    let target = match args.address {
        Address::Tcp { host, port } => connection_spec::Target::Tcp(TcpTarget {
            host,
            port: port.into(),
            local_ip: args.source.unwrap_or_default(),
            local_port: args.source_port.unwrap_or_default().into(),
            attempt_delay: args.attempt_delay,
            interleave: args.interleave,
        }),
        _ if only_tcp => {
            let options = "--source, --source-port, --attempt-delay and --interleave";
            let why = format!("{options} are for HOST:PORT");
            return Err(Failure::new("connect", why).code(2));
        }
        Address::Unix(name) => connection_spec::Target::Unix(UnixAddress { name: Some(name) }),
        Address::Fd(fd) => connection_spec::Target::Slot(hand_over(session, fd).await?),
    };
    let spec = ConnectionSpec {
        target: Some(target),
        keep_half_open: args.keep_half_open,
        start_paused: args.start_paused,
        connect_timeout: args.timeout,
        tcp_options: args.tcp.options(),
        water_marks: args.marks.water_marks(),
        tls: args.tls.options()?.map(|options| TlsOptions {
            server_name: args.servername.unwrap_or_default(),
            ..options
        }),
    };
    Ok((watch_spec::Spec::Connection(spec), args.registration))
}

pub(super) async fn listen(session: &Session, args: Listen) -> Made {
    let target = match args.address {
        Address::Tcp { host, port } => {
            let hosts = if host.is_empty() { vec![] } else { vec![host] };
            let (port, reuse_port) = (u32::from(port), args.reuse_port);
            listener_spec::Target::Tcp(TcpListen {
                hosts,
                port,
                reuse_port,
                ipv6_only: args.dual_stack.then_some(false),
            })
        }
        Address::Unix(name) => listener_spec::Target::Unix(UnixAddress { name: Some(name) }),
        Address::Fd(fd) => listener_spec::Target::Slot(hand_over(session, fd).await?),
    };
    let spec = ListenerSpec {
        target: Some(target),
        backlog: args.backlog,
        keep_half_open: args.keep_half_open,
        start_paused: args.start_paused,
        tcp_options: args.tcp.options(),
        max_connections: args.max_conns,
        water_marks: args.marks.water_marks(),
        tls: args.tls.options()?,
    };
    Ok((watch_spec::Spec::Listener(spec), args.registration))
}
