//! The configuration: reads TOML files into checked types.
//!
//! Every value has a safe default, so `evloopd` runs without a file;
//! `config/evloopd.toml` shows all defaults. After [`Config::load`] every value
//! is within the range that the documentation of its field names.

mod carried;
mod check;
mod file;
mod findings;
mod inherit;
mod load;
mod paths;
mod policy;
mod refusals;
mod rlimit;
mod shape;
mod signals;
mod source;
mod units;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use file::join as full_key;
pub use load::Refusal;
pub use paths::{runtime_directory, system_socket, user_socket};
pub use policy::{
    ChildWatcher, Context, History, MACOS_KQUEUE_COMPAT, OnMissing, Policy, Start, Survives,
    WINDOWS_PROACTOR_COMPAT, WINDOWS_SELECTOR_COMPAT, WhenFull,
};
pub use refusals::Refusable;
pub use rlimit::{Limit, NICE, OOM_SCORE_ADJ, Resource, UMASK_MAX};
pub use signals::{signal_name, signal_number, unwatchable};
pub use source::{ConfigError, Source};
pub(crate) use units::show_size;

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The policy that is in force until a caller chooses another. Must be one of `policies`.
    pub default_policy: String,
    /// Sockets and connections.
    pub server: Server,
    /// The limits of the daemon's resources.
    pub limits: Limits,
    /// Child processes.
    pub children: Children,
    /// Signals of the daemon's own process.
    pub signals: Signals,
    /// The daemon's own log.
    pub log: Log,
    /// The certificates and keys of TLS, by name.
    pub tls: BTreeMap<String, TlsSection>,
    /// The policies by name, with all inherited values filled in.
    #[serde(rename = "policy")]
    pub policies: BTreeMap<String, Policy>,
    /// The loops that the daemon makes when it starts.
    #[serde(rename = "loop")]
    pub loops: Vec<LoopEntry>,
    /// The places of all values that are not defaults, by key.
    #[serde(skip)]
    sources: BTreeMap<String, Source>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            default_policy: policy::DEFAULT.to_owned(),
            server: Server::default(),
            limits: Limits::default(),
            children: Children::default(),
            signals: Signals::default(),
            log: Log::default(),
            tls: BTreeMap::new(),
            policies: policy::shipped().map(|p| (p.name.clone(), p)).into(),
            loops: Vec::new(),
            sources: BTreeMap::new(),
        }
    }
}

/// `[server]`: sockets and connections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// The service's Unix socket, absolute. None: `evloopd.sock` in the runtime directory.
    pub socket: Option<PathBuf>,
    /// The SEQPACKET socket for file descriptors, absolute. None: `socket` with `.handover`
    /// appended.
    pub handover_socket: Option<PathBuf>,
    /// File mode of both sockets, 0600 to 0777: the owner must be able to read and write.
    #[serde(with = "units::mode")]
    pub mode: u32,
    /// Threads that serve calls, 1 to 64. Loops have threads of their own.
    pub worker_threads: usize,
    /// How long the daemon may take to end in order after SIGTERM, at most 1 h.
    #[serde(with = "units::duration")]
    pub drain_timeout: Duration,
    /// Connections at once, 1 to 65,536.
    pub max_connections: usize,
    /// Connections of one principal at once, 1 to 65,536, at most `max_connections`.
    pub max_connections_per_principal: usize,
    /// Time between two pings of a client, and how long it may take to answer one before its
    /// connection is closed, 1 s to 1 h.
    #[serde(with = "units::duration")]
    pub keepalive: Duration,
    /// How long a client may take from the connection to the begin of HTTP/2, 1 s to 1 h.
    #[serde(with = "units::duration")]
    pub handshake_timeout: Duration,
    /// How long a request, or one message of a stream, may take to arrive, 1 s to 1 h.
    #[serde(with = "units::duration")]
    pub receive_timeout: Duration,
    /// Whether requests may contain private keys for TLS.
    pub tls_keys_in_requests: bool,
    /// How many times in a row the keeper starts the daemon again if it dies within 10 s of its
    /// start, 0 to 1,000. 0: never, not even if it dies later.
    pub restarts: u32,
    /// The longest time between two lives, at most 1 h.
    #[serde(with = "units::duration")]
    pub restart_delay: Duration,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            socket: None,
            handover_socket: None,
            mode: 0o600,
            worker_threads: 1,
            drain_timeout: Duration::from_secs(10),
            max_connections: 1024,
            max_connections_per_principal: 768,
            keepalive: Duration::from_secs(20),
            handshake_timeout: Duration::from_secs(10),
            receive_timeout: Duration::from_secs(30),
            tls_keys_in_requests: false,
            restarts: 10,
            restart_delay: Duration::from_secs(10),
        }
    }
}

/// `[limits]`: the limits of the daemon's resources.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of all journals and of all requests and answers that wait, together, 1 MiB to 1 TiB.
    #[serde(with = "units::size")]
    pub memory: u64,
    /// Open loops, 1 to 10,000. Each loop has a thread.
    pub loops: usize,
    /// Watches over all loops, 1 to 10,000,000.
    pub watches: usize,
    /// Children that run, 1 to 1,000,000, including children that outlived their watch.
    pub children: usize,
    /// Subscribe, Attach and Run streams, 1 to 1,000,000.
    pub streams: usize,
    /// Calls of one connection at once, streams included, 1 to 65,536; further calls wait in the
    /// client.
    pub connection_calls: usize,
    /// Directories that the path and file watches of one loop watch with inotify, and such watches,
    /// 1 to 10,000,000.
    pub path_watches: usize,
    /// Bytes of the changes that wait in one path watch for room in the journal, 4 KiB to 64 MiB.
    #[serde(with = "units::size")]
    pub path_inbox: usize,
    /// Consumers of one loop, 1 to 65,536.
    pub consumers: usize,
    /// Answers kept for clients that repeat a mutation with its `request_id`, 1 to 1,000,000.
    pub requests: usize,
    /// How long such an answer is kept, 1 s to 1 day.
    #[serde(with = "units::duration")]
    pub request_ttl: Duration,
    /// File descriptors handed over and not claimed yet, 1 to 65,536.
    pub slots: usize,
    /// Contexts (principals, sessions, processes) with a loop of their own, 1 to 1,000,000.
    pub contexts: usize,
    /// Commands that wait for one loop, 16 to 65,536.
    pub mailbox: usize,
    /// How long a command waits for room in the mailbox, at most 1 min.
    #[serde(with = "units::duration")]
    pub mailbox_wait: Duration,
    /// Completions that a loop takes in one turn, 1 to 65,536.
    pub turn_events: usize,
    /// Bytes that a loop reads in one turn, 64 KiB to 1 GiB.
    #[serde(with = "units::size")]
    pub turn_bytes: u64,
    /// Bytes of one read, and therefore of one Data event, 4 KiB to 256 KiB.
    #[serde(with = "units::size")]
    pub read_size: usize,
    /// Unsent bytes that a transport holds; Write takes no more beyond them, 64 KiB to 64 MiB.
    #[serde(with = "units::size")]
    pub write_buffer: usize,
    /// Unsent bytes above which a transport reports WritePaused, 4 KiB to `write_buffer`.
    #[serde(with = "units::size")]
    pub write_high_water: usize,
    /// How long a connection or write pipe that is removed, or whose loop closes, may take to send
    /// its unsent bytes and to discard the bytes that it still receives, at most 1 h.
    #[serde(with = "units::duration")]
    pub close_linger: Duration,
    /// Threads that resolve names, 1 to 256. A principal may use at most half of those that the
    /// others leave.
    pub resolver_threads: usize,
    /// TLS handshakes of one listener at once, 1 to 65,536; while so many are under way, it accepts
    /// no connection.
    pub tls_handshakes: usize,
    /// Threads for the handshakes of TLS, 1 to 64.
    pub tls_threads: usize,
    /// Threads for the screens of terminals, 1 to 64.
    pub screen_threads: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: 256 << 20,
            loops: 500,
            watches: 100_000,
            children: 10_000,
            streams: 4096,
            connection_calls: 4096,
            path_watches: 131_072,
            path_inbox: 1 << 20,
            consumers: 1024,
            requests: 16_384,
            request_ttl: Duration::from_secs(600),
            slots: 4096,
            contexts: 4096,
            mailbox: 1024,
            mailbox_wait: Duration::from_secs(5),
            turn_events: 1024,
            turn_bytes: 4 << 20,
            read_size: 256 << 10,
            write_buffer: 1 << 20,
            write_high_water: 64 << 10,
            close_linger: Duration::from_secs(5),
            resolver_threads: 16,
            tls_handshakes: 1024,
            tls_threads: 2,
            screen_threads: 1,
        }
    }
}

/// `[children]`: child processes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Children {
    /// How long other processes may keep an ended child's stdout or stderr open, at most 1 h.
    #[serde(with = "units::duration")]
    pub pipe_grace: Duration,
    /// The time between SIGTERM and SIGKILL, at most 1 h.
    #[serde(with = "units::duration")]
    pub kill_grace: Duration,
    /// How long the Exited of a pid watch waits until the process's parent has reaped it, at most
    /// 1 h.
    #[serde(with = "units::duration")]
    pub reap_wait: Duration,
    /// Whether each child gets a cgroup of its own.
    pub cgroups: CgroupUse,
    /// Threads that start children, 1 to 64. They run as long as the daemon.
    pub spawn_threads: usize,
    /// The umask of children, at most 0777. None: that of the client that asks, or the daemon's.
    #[serde(with = "units::optional_mode")]
    pub umask: Option<u32>,
    /// The nice value of children, -20 to 19. None: that of the client that asks, or the daemon's.
    pub nice: Option<i32>,
    /// The value in proc_pid_oom_score_adj(5) of children, -1000 to 1000. None: the daemon's.
    pub oom_score_adj: Option<i32>,
    /// Limits of setrlimit(2) for children. A resource that is not listed has the limit of the
    /// client that asks, or the daemon's.
    pub limits: BTreeMap<Resource, Limit>,
    /// Pipes of ended watches that are still read because other processes hold them open, at most
    /// 1,000,000. The bytes are discarded. Further pipes are closed, and their writers get SIGPIPE.
    pub drained_pipes: usize,
    /// Bytes that are read of one such pipe before it is closed, at most 1 TiB.
    #[serde(with = "units::size")]
    pub drain_bytes: u64,
    /// How long one such pipe is read before it is closed, at most 365 days.
    #[serde(with = "units::duration")]
    pub drain_time: Duration,
}

impl Default for Children {
    fn default() -> Self {
        Self {
            pipe_grace: Duration::from_secs(5),
            kill_grace: Duration::from_secs(5),
            reap_wait: Duration::from_secs(10),
            cgroups: CgroupUse::Auto,
            spawn_threads: 4,
            umask: None,
            nice: None,
            oom_score_adj: None,
            limits: BTreeMap::new(),
            drained_pipes: 4096,
            drain_bytes: 1 << 30,
            drain_time: Duration::from_secs(24 * 3600),
        }
    }
}

/// `[signals]`: signals of the daemon's own process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Signals {
    /// Names of the signals that clients may watch. [`signal_number`] knows each, and
    /// [`unwatchable`] refuses none.
    pub allow: Vec<String>,
}

impl Default for Signals {
    fn default() -> Self {
        let real_time = (1..8).map(|n| format!("SIGRTMIN+{n}"));
        let named = ["SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGRTMIN"].map(str::to_owned);
        Self {
            allow: named.into_iter().chain(real_time).collect(),
        }
    }
}

/// `[log]`: the daemon's own log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// A level, or directives such as `info,evloopd::rpc=debug`.
    pub filter: String,
    /// The format of the log's lines.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            filter: "info".to_owned(),
            format: LogFormat::Auto,
        }
    }
}

/// Whether each child gets a cgroup of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CgroupUse {
    /// Where the daemon may make one.
    Auto,
    /// Never.
    Off,
}

/// The format of lines of the daemon's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// `journald` if standard error goes to the systemd journal, else `text`.
    Auto,
    /// Text for people, with time and level.
    Text,
    /// One JSON object a line.
    Json,
    /// Text without time, with the `<N>` priority prefix of sd-daemon(3).
    Journald,
}

/// `[tls.NAME]`: certificates and keys of TLS, in PEM files with absolute paths.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSection {
    /// The daemon's own certificate, with those of its issuers after it. None: it has none.
    pub cert: Option<PathBuf>,
    /// The private key of `cert`. Both or none must be set.
    pub key: Option<PathBuf>,
    /// The certificates by which servers are verified: of authorities, or of a server itself. None:
    /// the host's trusted authorities.
    pub ca: Option<PathBuf>,
    /// The same for clients, which then must have a certificate. None: clients are not asked for
    /// one.
    pub client_ca: Option<PathBuf>,
    /// Further sections, whose certificates a server shows to clients that ask for a name that is
    /// theirs and not that of `cert`.
    pub sni: Vec<String>,
    /// Whether a server refuses clients that ask for no name, or for a name that no certificate
    /// has, instead of showing `cert`.
    pub strict_sni: bool,
}

/// `[[loop]]`: a loop that the daemon makes when it starts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoopEntry {
    /// Its name: `[a-z0-9][a-z0-9._-]{0,62}`, unique for its principal.
    pub name: String,
    /// The policy by which it is made. None: the default policy.
    pub policy: Option<String>,
    /// The principal that owns it: `uid:N`. None: the daemon's own user.
    pub principal: Option<String>,
    /// Whether it is the loop of the principal's context.
    pub bind: bool,
}

#[cfg(test)]
mod tests;
