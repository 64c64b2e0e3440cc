//! Checks the ranges of values, and values that depend on each other.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use rustix::net::SocketAddrUnix;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::file::join;
use super::findings::Findings;
use super::rlimit::{NICE, OOM_SCORE_ADJ, UMASK_MAX};
use super::shape::{meant, unknown};
use super::units::show_size;
use super::{
    Children, Config, Limits, Policy, Server, TlsSection, signal_name, signal_number, unwatchable,
};

const DAYS_30: Duration = Duration::from_secs(30 * 24 * 3600);
/// The classes of loops, and for each the backends that a policy of it may name.
const CLASSES: [(&str, &[&str]); 2] = [
    ("selector", &["auto", "epoll", "poll", "select"]),
    ("proactor", &["auto", "io_uring"]),
];
/// The allowed names of policies and loops.
const NAME: &str = "allowed is [a-z0-9][a-z0-9._-]{0,62}";
/// The levels of the log.
const LEVELS: &str = "off, error, warn, info, debug, trace";
const SERVICE: &str = "server.socket";
const HANDOVER: &str = "server.handover_socket";
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// 1 TiB
const SIZE_MAX: u64 = 1 << 40;
/// `sun_path` without its final NUL, unix(7).
const SOCKET_PATH_MAX: usize = 107;

/// Finds all values that are not allowed, and values that contradict each other.
pub(super) fn check(config: &Config, found: &mut Findings) {
    server(&config.server, found);
    sockets(&config.server, found);
    limits(&config.limits, found);
    children(&config.children, found);
    signals(&config.signals.allow, found);
    if let Err(why) = filter(&config.log.filter) {
        let allowed = format!("{LEVELS} or directives `target=level`, separated by commas");
        found.wrong("log.filter", format!("{why}; allowed is {allowed}"));
    }
    for (name, section) in &config.tls {
        tls(config, name, section, found);
    }
    for policy in config.policies.values() {
        self::policy(policy, found);
    }
    known_policy(config, "default_policy", &config.default_policy, found);
    loops(config, found);
}

/// Checks a log filter. `tracing_subscriber` reads a word that is not a level as the name of a
/// target, and then logs only that target. Such a word is usually a misspelt level, so it is
/// refused.
fn filter(filter: &str) -> Result<(), String> {
    // Directives with a span, `[...]`, are checked by the library only.
    for directive in filter
        .split(',')
        .filter(|directive| !directive.contains('['))
    {
        let level = directive
            .rsplit_once('=')
            .map_or(directive, |(_, level)| level);
        if level.parse::<LevelFilter>().is_err() {
            let near = meant(level, LEVELS.split(", "));
            return Err(format!("`{level}` is not a level{near}"));
        }
    }
    let parsed = EnvFilter::builder().parse(filter);
    parsed.map(drop).map_err(|error| error.to_string())
}

fn server(server: &Server, found: &mut Findings) {
    if server.mode > 0o777 || server.mode & 0o600 != 0o600 {
        let mode = format!("{:04o}", server.mode);
        let what = format!("is {mode}, allowed is 0600 to 0777: the owner must read and write");
        found.wrong("server.mode", what);
    }
    number(found, "server.worker_threads", server.worker_threads, 1, 64);
    duration(found, "server.drain_timeout", server.drain_timeout, HOUR);
    number(
        found,
        "server.max_connections",
        server.max_connections,
        1,
        65_536,
    );
    let of_principal = server.max_connections_per_principal;
    let key = "server.max_connections_per_principal";
    number(found, key, of_principal, 1, 65_536);
    if found.is_set(key) && of_principal > server.max_connections {
        let most = server.max_connections;
        let what = format!("is {of_principal}, allowed is at most server.max_connections, {most}");
        found.wrong_beside("server.max_connections", key, what);
    }
    between(found, "server.keepalive", server.keepalive, SECOND, HOUR);
    let handshake = server.handshake_timeout;
    between(found, "server.handshake_timeout", handshake, SECOND, HOUR);
    let receive = server.receive_timeout;
    between(found, "server.receive_timeout", receive, SECOND, HOUR);
    number(found, "server.restarts", server.restarts, 0, 1000);
    let delay = server.restart_delay;
    duration(found, "server.restart_delay", delay, HOUR);
}

/// Checks the paths of both sockets, whether they are configured or derived.
fn sockets(server: &Server, found: &mut Findings) {
    let service = server.socket_path();
    let given = server.socket.is_some();
    if let Err(why) = socket(&service) {
        let path = service.display();
        let origin = if given { "" } else { "by default it " };
        found.wrong(SERVICE, format!("{origin}is `{path}`, {why}"));
        return;
    }
    let handover = server.handover_path();
    let path = handover.display();
    match (socket(&handover), &server.handover_socket) {
        (Ok(()), _) => {}
        (Err(why), Some(_)) => found.wrong(HANDOVER, format!("is `{path}`, {why}")),
        (Err(why), None) => {
            let what =
                format!("{HANDOVER} is derived from it, `{path}`, {why}; or set {HANDOVER} itself");
            found.wrong_beside(HANDOVER, SERVICE, what);
        }
    }
    let locked = |path: &Path| {
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        PathBuf::from(lock)
    };
    let clash = if service == handover {
        Some("is the same path as")
    } else if locked(&service) == handover {
        Some("is the path of the lock file of")
    } else if service == locked(&handover) {
        Some("has its lock file at the path of")
    } else {
        None
    };
    if let Some(clash) = clash {
        let what = format!("`{path}` {clash} {SERVICE}, allowed is any other path");
        found.wrong_beside(SERVICE, HANDOVER, what);
    }
}

/// Checks that a path can be the address of a Unix socket, unix(7).
fn socket(path: &Path) -> Result<(), String> {
    let allowed = format!("allowed is an absolute path of at most {SOCKET_PATH_MAX} bytes");
    let len = path.as_os_str().len();
    let bytes = path.as_os_str().as_bytes();
    if len > SOCKET_PATH_MAX {
        return Err(format!("{len} bytes, {allowed}"));
    }
    let a_file = path.file_name().is_some() && !bytes.ends_with(b"/");
    if path.is_absolute() && a_file && SocketAddrUnix::new(path).is_ok() {
        return Ok(());
    }
    Err(allowed)
}

fn limits(limits: &Limits, found: &mut Findings) {
    size(found, "limits.memory", limits.memory, 1 << 20, SIZE_MAX);
    number(found, "limits.loops", limits.loops, 1, 10_000);
    number(found, "limits.watches", limits.watches, 1, 10_000_000);
    number(found, "limits.children", limits.children, 1, 1_000_000);
    number(found, "limits.streams", limits.streams, 1, 1_000_000);
    let calls = limits.connection_calls;
    number(found, "limits.connection_calls", calls, 1, 65_536);
    let (watches, inbox) = (limits.path_watches, limits.path_inbox as u64);
    number(found, "limits.path_watches", watches, 1, 10_000_000);
    size(found, "limits.path_inbox", inbox, 4 << 10, 64 << 20);
    number(found, "limits.consumers", limits.consumers, 1, 65_536);
    number(found, "limits.requests", limits.requests, 1, 1_000_000);
    let day = 24 * HOUR;
    between(found, "limits.request_ttl", limits.request_ttl, SECOND, day);
    number(found, "limits.slots", limits.slots, 1, 65_536);
    number(found, "limits.contexts", limits.contexts, 1, 1_000_000);
    number(found, "limits.mailbox", limits.mailbox, 16, 65_536);
    duration(
        found,
        "limits.mailbox_wait",
        limits.mailbox_wait,
        Duration::from_secs(60),
    );
    number(found, "limits.turn_events", limits.turn_events, 1, 65_536);
    let turn = limits.turn_bytes;
    size(found, "limits.turn_bytes", turn, 64 << 10, 1 << 30);
    let bytes = |size: usize| u64::try_from(size).unwrap_or(u64::MAX);
    size(
        found,
        "limits.read_size",
        bytes(limits.read_size),
        4 << 10,
        256 << 10,
    );
    size(
        found,
        "limits.write_buffer",
        bytes(limits.write_buffer),
        64 << 10,
        64 << 20,
    );
    if !found.is_wrong("limits.write_buffer") {
        let (high, most) = (bytes(limits.write_high_water), bytes(limits.write_buffer));
        size(found, "limits.write_high_water", high, 4 << 10, most);
    }
    duration(found, "limits.close_linger", limits.close_linger, HOUR);
    number(
        found,
        "limits.resolver_threads",
        limits.resolver_threads,
        1,
        256,
    );
    let handshakes = limits.tls_handshakes;
    number(found, "limits.tls_handshakes", handshakes, 1, 65_536);
    number(found, "limits.tls_threads", limits.tls_threads, 1, 64);
    number(found, "limits.screen_threads", limits.screen_threads, 1, 64);
}

fn tls(config: &Config, name: &str, section: &TlsSection, found: &mut Findings) {
    let key = |of: &str| join(&join("tls", name), of);
    self::name(&join("tls", name), name, found);
    let files = [
        ("cert", &section.cert),
        ("key", &section.key),
        ("ca", &section.ca),
        ("client_ca", &section.client_ca),
    ];
    for (of, path) in files {
        if path.as_ref().is_some_and(|path| !path.is_absolute()) {
            found.wrong(&key(of), "must be an absolute path");
        }
    }
    match (&section.cert, &section.key) {
        (Some(_), None) => found.wrong(&key("cert"), format!("needs {} too", key("key"))),
        (None, Some(_)) => found.wrong(&key("key"), format!("needs {} too", key("cert"))),
        (None, None) if section.client_ca.is_some() || !section.sni.is_empty() => {
            let of = if section.client_ca.is_some() {
                "client_ca"
            } else {
                "sni"
            };
            let what = format!(
                "is for servers, which need {} and {}",
                key("cert"),
                key("key")
            );
            found.wrong(&key(of), what);
        }
        _ => {}
    }
    for other in &section.sni {
        let what = match config.tls.get(other) {
            None => unknown(
                "section of TLS",
                other,
                config.tls.keys().map(String::as_str),
            ),
            Some(section) if section.cert.is_none() => {
                format!("{} has no cert", join("tls", other))
            }
            Some(_) => continue,
        };
        found.wrong(&key("sni"), what);
    }
}

fn children(children: &Children, found: &mut Findings) {
    duration(found, "children.pipe_grace", children.pipe_grace, HOUR);
    duration(found, "children.kill_grace", children.kill_grace, HOUR);
    duration(found, "children.reap_wait", children.reap_wait, HOUR);
    number(
        found,
        "children.spawn_threads",
        children.spawn_threads,
        1,
        64,
    );
    if let Some(umask) = children.umask.filter(|umask| *umask > UMASK_MAX) {
        let what = format!("is {umask:04o}, allowed is 0000 to {UMASK_MAX:04o}");
        found.wrong("children.umask", what);
    }
    if let Some(nice) = children.nice {
        number(found, "children.nice", nice, NICE.0, NICE.1);
    }
    if let Some(adj) = children.oom_score_adj {
        let (least, most) = OOM_SCORE_ADJ;
        number(found, "children.oom_score_adj", adj, least, most);
    }
    let pipes = children.drained_pipes;
    number(found, "children.drained_pipes", pipes, 0, 1_000_000);
    size(
        found,
        "children.drain_bytes",
        children.drain_bytes,
        0,
        SIZE_MAX,
    );
    duration(found, "children.drain_time", children.drain_time, YEAR);
}

fn signals(allow: &[String], found: &mut Findings) {
    let wrong = allow.iter().filter_map(|name| match signal_number(name) {
        Some(number) => {
            let why = unwatchable(number)?;
            Some(format!("{name} cannot be watched: {why}"))
        }
        None => {
            let named: Vec<String> = (1..=libc::SIGRTMAX()).filter_map(signal_name).collect();
            let near = meant(name, named.iter().map(String::as_str));
            Some(format!("`{name}` is not a signal{near}"))
        }
    });
    let wrong: Vec<String> = wrong.collect();
    if !wrong.is_empty() {
        let allowed =
            "SIGUSR1, SIGUSR2, SIGWINCH, SIGRTMIN+n and others that do not control the daemon";
        let what = format!("{}; allowed are {allowed}", wrong.join("; "));
        found.wrong("signals.allow", what);
    }
}

fn policy(policy: &Policy, found: &mut Findings) {
    let key = |name: &str| join(&join("policy", &policy.name), name);
    name(&join("policy", &policy.name), &policy.name, found);
    class_and_backends(policy, &key, found);
    number(
        found,
        &key("max_watches"),
        policy.max_watches,
        1,
        10_000_000,
    );
    duration(found, &key("timer_tick"), policy.timer_tick, SECOND);
    let events = policy.journal_events;
    number(found, &key("journal_events"), events, 16, 100_000_000);
    let bytes = policy.journal_bytes;
    size(found, &key("journal_bytes"), bytes, 64 << 10, SIZE_MAX);
    if !found.is_wrong(&key("journal_bytes")) {
        if let Some(share) = policy.journal_watch_bytes {
            size(found, &key("journal_watch_bytes"), share, 4 << 10, bytes);
        }
        let keep = policy.journal_watch_keep;
        size(found, &key("journal_watch_keep"), keep, 0, bytes);
    }
    let attached = policy.attached_bytes;
    size(found, &key("attached_bytes"), attached, 4 << 10, 1 << 30);
    let patience = policy.attached_patience;
    between(found, &key("attached_patience"), patience, SECOND, DAYS_30);
    between(
        found,
        &key("consumer_ttl"),
        policy.consumer_ttl,
        SECOND,
        YEAR,
    );
    duration(found, &key("finished_ttl"), policy.finished_ttl, DAYS_30);
    duration(found, &key("closed_ttl"), policy.closed_ttl, DAYS_30);
    name(&key("loop_name"), &policy.loop_name, found);
}

fn class_and_backends(policy: &Policy, key: &dyn Fn(&str) -> String, found: &mut Findings) {
    let known = CLASSES.iter().find(|(class, _)| *class == policy.class);
    let Some((class, allowed)) = known else {
        let known = CLASSES.iter().map(|(class, _)| *class);
        found.wrong(&key("class"), unknown("class", &policy.class, known));
        return;
    };
    let foreign = policy
        .backends
        .iter()
        .find(|b| !allowed.contains(&b.as_str()));
    let why = match foreign.map(String::as_str) {
        None if policy.backends.is_empty() => "is empty".to_owned(),
        None => return,
        Some(b) => match CLASSES.iter().find(|(_, backends)| backends.contains(&b)) {
            Some((other, _)) => {
                format!("`{b}` is of class {other}, but the policy is of class {class}")
            }
            None => {
                let near = meant(
                    b,
                    CLASSES.iter().flat_map(|(_, backends)| *backends).copied(),
                );
                format!("`{b}` is not a backend on Linux{near}")
            }
        },
    };
    let allowed = allowed.join(", ");
    let what = format!("{why}, allowed are {allowed}");
    found.wrong_beside(&key("class"), &key("backends"), what);
}

fn loops(config: &Config, found: &mut Findings) {
    let (count, most) = (config.loops.len(), config.limits.loops);
    if count > most {
        let what = format!("{count} loops are configured, limits.loops allows {most}");
        found.wrong_beside("limits.loops", "loop", what);
    }
    let mut names = BTreeSet::new();
    let mut bound = BTreeSet::new();
    for (index, entry) in config.loops.iter().enumerate() {
        let key = |name: &str| format!("loop[{index}].{name}");
        if entry.name.is_empty() && !found.is_set(&key("name")) {
            found.wrong(&key("name"), format!("is missing, {NAME}"));
        }
        name(&key("name"), &entry.name, found);
        if let Some(policy) = &entry.policy {
            known_policy(config, &key("policy"), policy, found);
        }
        let own = rustix::process::geteuid().as_raw();
        let principal = match &entry.principal {
            None => format!("uid:{own}"),
            Some(principal) => principal.clone(),
        };
        // A principal has exactly one spelling: `uid:+1` and `uid:01` are refused.
        let uid = principal.strip_prefix("uid:").map(str::parse::<u32>);
        if !matches!(uid, Some(Ok(uid)) if format!("uid:{uid}") == principal) {
            let what =
                format!("`{principal}` is not a principal, allowed is uid:N, such as uid:{own}");
            found.wrong(&key("principal"), what);
        }
        if !names.insert((principal.clone(), &entry.name)) {
            let name = &entry.name;
            let what =
                format!("{principal} has another loop `{name}`, allowed is one loop of each name");
            found.wrong(&key("name"), what);
        }
        if entry.bind && !bound.insert(principal) {
            let what = "another loop is bound already, allowed is one bound loop per principal";
            found.wrong(&key("bind"), what);
        }
    }
}

fn known_policy(config: &Config, key: &str, name: &str, found: &mut Findings) {
    if !config.policies.contains_key(name) {
        let known = config.policies.keys().map(String::as_str);
        found.wrong(key, unknown("policy", name, known));
    }
}

fn name(key: &str, name: &str, found: &mut Findings) {
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let fine = match name.as_bytes() {
        [first, rest @ ..] => {
            plain(first) && rest.len() <= 62 && rest.iter().all(|b| plain(b) || b"._-".contains(b))
        }
        [] => false,
    };
    if !fine {
        found.wrong(key, format!("`{name}` is not a valid name, {NAME}"));
    }
}

fn number<T: Copy + PartialOrd + Display>(
    found: &mut Findings,
    key: &str,
    value: T,
    least: T,
    most: T,
) {
    if !(least <= value && value <= most) {
        found.wrong(key, format!("is {value}, allowed is {least} to {most}"));
    }
}

fn size(found: &mut Findings, key: &str, value: u64, least: u64, most: u64) {
    if !(least..=most).contains(&value) {
        let [value, least, most] = [value, least, most].map(show_size);
        found.wrong(key, format!("is {value}, allowed is {least} to {most}"));
    }
}

fn duration(found: &mut Findings, key: &str, value: Duration, most: Duration) {
    if value > most {
        let [value, most] = [value, most].map(humantime::format_duration);
        found.wrong(key, format!("is {value}, allowed is at most {most}"));
    }
}

fn between(found: &mut Findings, key: &str, value: Duration, least: Duration, most: Duration) {
    if !(least..=most).contains(&value) {
        let [value, least, most] = [value, least, most].map(humantime::format_duration);
        found.wrong(key, format!("is {value}, allowed is {least} to {most}"));
    }
}
