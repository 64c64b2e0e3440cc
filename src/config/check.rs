//! The ranges, and what has to fit together.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::rlimit::{NICE, OOM_SCORE_ADJ, UMASK_MAX};
use super::units::show_size;
use super::{Children, Config, Limits, Policy, Server, signal_number, unwatchable};

/// A key, and what is wrong with it and allowed.
type Finding = (String, String);

const DAYS_30: Duration = Duration::from_secs(30 * 24 * 3600);
/// The classes, and the backends that a policy of each may name.
const CLASSES: [(&str, &[&str]); 2] = [
    ("selector", &["auto", "epoll", "poll", "select"]),
    ("proactor", &["auto", "io_uring"]),
];
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// 1 TiB
const SIZE_MAX: u64 = 1 << 40;
/// `sun_path` without its final NUL, unix(7).
const SOCKET_PATH_MAX: usize = 107;

/// Finds the first value that is not allowed.
pub(super) fn check(config: &Config) -> Result<(), Finding> {
    server(&config.server)?;
    limits(&config.limits)?;
    children(&config.children)?;
    signals(&config.signals.allow)?;
    if let Err(error) = EnvFilter::builder().parse(&config.log.filter) {
        let allowed = "a level (error, warn, info, debug, trace) or directives `target=level`";
        return wrong("log.filter", format!("{error}, allowed is {allowed}"));
    }
    for policy in config.policies.values() {
        self::policy(policy)?;
    }
    known_policy(config, "default_policy", &config.default_policy)?;
    loops(config)
}

fn server(server: &Server) -> Result<(), Finding> {
    socket("server.socket", server.socket.as_deref())?;
    socket("server.handover_socket", server.handover_socket.as_deref())?;
    if server.mode > 0o777 || server.mode & 0o600 != 0o600 {
        let mode = format!("{:04o}", server.mode);
        return wrong(
            "server.mode",
            format!("is {mode}, allowed is 0600 to 0777, owner reads and writes"),
        );
    }
    number("server.worker_threads", server.worker_threads, 1, 64)?;
    duration("server.drain_timeout", server.drain_timeout, HOUR)?;
    number("server.max_connections", server.max_connections, 1, 65_536)?;
    let of_principal = server.max_connections_per_principal;
    let key = "server.max_connections_per_principal";
    number(key, of_principal, 1, 65_536)?;
    between("server.keepalive", server.keepalive, SECOND, HOUR)?;
    let handshake = server.handshake_timeout;
    between("server.handshake_timeout", handshake, SECOND, HOUR)?;
    let receive = server.receive_timeout;
    between("server.receive_timeout", receive, SECOND, HOUR)
}

fn socket(key: &str, path: Option<&Path>) -> Result<(), Finding> {
    match path {
        Some(path) if !path.is_absolute() || path.as_os_str().len() > SOCKET_PATH_MAX => wrong(
            key,
            format!(
                "is `{}`, allowed is an absolute path of at most {SOCKET_PATH_MAX} bytes",
                path.display()
            ),
        ),
        _ => Ok(()),
    }
}

fn limits(limits: &Limits) -> Result<(), Finding> {
    size("limits.memory", limits.memory, 1 << 20, SIZE_MAX)?;
    number("limits.loops", limits.loops, 1, 10_000)?;
    number("limits.watches", limits.watches, 1, 10_000_000)?;
    number("limits.children", limits.children, 1, 1_000_000)?;
    number("limits.streams", limits.streams, 1, 1_000_000)?;
    let calls = limits.connection_calls;
    number("limits.connection_calls", calls, 1, 65_536)?;
    number("limits.consumers", limits.consumers, 1, 65_536)?;
    number("limits.requests", limits.requests, 1, 1_000_000)?;
    let day = 24 * HOUR;
    between("limits.request_ttl", limits.request_ttl, SECOND, day)?;
    number("limits.slots", limits.slots, 1, 65_536)?;
    number("limits.contexts", limits.contexts, 1, 1_000_000)?;
    number("limits.mailbox", limits.mailbox, 16, 65_536)?;
    duration(
        "limits.mailbox_wait",
        limits.mailbox_wait,
        Duration::from_secs(60),
    )?;
    number("limits.turn_events", limits.turn_events, 1, 65_536)?;
    size("limits.turn_bytes", limits.turn_bytes, 64 << 10, 1 << 30)?;
    let bytes = |size: usize| u64::try_from(size).unwrap_or(u64::MAX);
    size(
        "limits.read_size",
        bytes(limits.read_size),
        4 << 10,
        256 << 10,
    )?;
    size(
        "limits.write_buffer",
        bytes(limits.write_buffer),
        64 << 10,
        64 << 20,
    )?;
    let most = bytes(limits.write_buffer);
    size(
        "limits.write_high_water",
        bytes(limits.write_high_water),
        4 << 10,
        most,
    )?;
    duration("limits.close_linger", limits.close_linger, HOUR)
}

fn children(children: &Children) -> Result<(), Finding> {
    duration("children.pipe_grace", children.pipe_grace, HOUR)?;
    duration("children.kill_grace", children.kill_grace, HOUR)?;
    number("children.spawn_threads", children.spawn_threads, 1, 64)?;
    if let Some(umask) = children.umask.filter(|umask| *umask > UMASK_MAX) {
        let what = format!("is {umask:04o}, allowed is 0000 to {UMASK_MAX:04o}");
        return wrong("children.umask", what);
    }
    if let Some(nice) = children.nice {
        number("children.nice", nice, NICE.0, NICE.1)?;
    }
    if let Some(adj) = children.oom_score_adj {
        number(
            "children.oom_score_adj",
            adj,
            OOM_SCORE_ADJ.0,
            OOM_SCORE_ADJ.1,
        )?;
    }
    number(
        "children.drained_pipes",
        children.drained_pipes,
        0,
        1_000_000,
    )?;
    size("children.drain_bytes", children.drain_bytes, 0, SIZE_MAX)?;
    duration("children.drain_time", children.drain_time, YEAR)
}

fn signals(allow: &[String]) -> Result<(), Finding> {
    for name in allow {
        let why = match signal_number(name).map(unwatchable) {
            Some(None) => continue,
            Some(Some(why)) => format!("{name} cannot be watched: {why}"),
            None => format!("`{name}` is no signal"),
        };
        let allowed =
            "SIGUSR1, SIGUSR2, SIGWINCH, SIGRTMIN+n and others that do not steer the daemon";
        return wrong("signals.allow", format!("{why}; allowed are {allowed}"));
    }
    Ok(())
}

fn policy(policy: &Policy) -> Result<(), Finding> {
    let key = |name: &str| format!("policy.{}.{name}", policy.name);
    name(&format!("policy.{}", policy.name), &policy.name)?;
    let known = CLASSES.iter().find(|(class, _)| *class == policy.class);
    let Some((class, allowed)) = known else {
        let what = format!(
            "`{}` is unknown, allowed are selector, proactor",
            policy.class
        );
        return wrong(key("class"), what);
    };
    let foreign = policy
        .backends
        .iter()
        .find(|b| !allowed.contains(&b.as_str()));
    let backends = match foreign.map(String::as_str) {
        None if policy.backends.is_empty() => Some("is empty".to_owned()),
        None => None,
        Some(b) => Some(
            match CLASSES.iter().find(|(_, backends)| backends.contains(&b)) {
                Some((other, _)) => format!("`{b}` is of class {other}, the policy of {class}"),
                None => format!("`{b}` is no backend on Linux"),
            },
        ),
    };
    if let Some(why) = backends {
        let allowed = allowed.join(", ");
        return wrong(key("backends"), format!("{why}, allowed are {allowed}"));
    }
    number(&key("max_watches"), policy.max_watches, 1, 10_000_000)?;
    number(
        &key("journal_events"),
        policy.journal_events,
        16,
        100_000_000,
    )?;
    size(
        &key("journal_bytes"),
        policy.journal_bytes,
        64 << 10,
        SIZE_MAX,
    )?;
    if let Some(share) = policy.journal_watch_bytes {
        let most = policy.journal_bytes;
        size(&key("journal_watch_bytes"), share, 4 << 10, most)?;
    }
    size(
        &key("journal_watch_keep"),
        policy.journal_watch_keep,
        0,
        policy.journal_bytes,
    )?;
    size(
        &key("attached_bytes"),
        policy.attached_bytes,
        4 << 10,
        1 << 30,
    )?;
    between(
        &key("attached_patience"),
        policy.attached_patience,
        SECOND,
        DAYS_30,
    )?;
    between(&key("consumer_ttl"), policy.consumer_ttl, SECOND, YEAR)?;
    duration(&key("finished_ttl"), policy.finished_ttl, DAYS_30)?;
    duration(&key("closed_ttl"), policy.closed_ttl, DAYS_30)?;
    name(&key("loop_name"), &policy.loop_name)
}

fn loops(config: &Config) -> Result<(), Finding> {
    let most = config.limits.loops;
    if config.loops.len() > most {
        return wrong(
            "loop",
            format!("{} of them, limits.loops allows {most}", config.loops.len()),
        );
    }
    let mut names = BTreeSet::new();
    let mut bound = BTreeSet::new();
    for (index, entry) in config.loops.iter().enumerate() {
        let key = |name: &str| format!("loop[{index}].{name}");
        name(&key("name"), &entry.name)?;
        if let Some(policy) = &entry.policy {
            known_policy(config, &key("policy"), policy)?;
        }
        let principal = entry.principal.as_deref();
        let uid = |principal: &str| principal.strip_prefix("uid:")?.parse::<u32>().ok();
        if principal.is_some_and(|principal| uid(principal).is_none()) {
            return wrong(key("principal"), "is no principal, allowed is uid:N");
        }
        if !names.insert((principal, &entry.name)) {
            return wrong(
                key("name"),
                format!(
                    "`{}` is there already, allowed is one of a name",
                    entry.name
                ),
            );
        }
        if entry.bind && !bound.insert(principal) {
            return wrong(
                key("bind"),
                "another loop is bound already, allowed is one of a principal",
            );
        }
    }
    Ok(())
}

fn known_policy(config: &Config, key: &str, name: &str) -> Result<(), Finding> {
    if config.policies.contains_key(name) {
        return Ok(());
    }
    let known: Vec<&str> = config.policies.keys().map(String::as_str).collect();
    wrong(
        key,
        format!("`{name}` is no policy, there are {}", known.join(", ")),
    )
}

/// `[a-z0-9][a-z0-9._-]{0,62}`
fn name(key: &str, name: &str) -> Result<(), Finding> {
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let fine = match name.as_bytes() {
        [first, rest @ ..] => {
            plain(first) && rest.len() <= 62 && rest.iter().all(|b| plain(b) || b"._-".contains(b))
        }
        [] => false,
    };
    if fine {
        return Ok(());
    }
    wrong(
        key,
        format!("`{name}` is no name, allowed is [a-z0-9][a-z0-9._-]{{0,62}}"),
    )
}

fn number<T: Copy + PartialOrd + Display>(
    key: &str,
    value: T,
    least: T,
    most: T,
) -> Result<(), Finding> {
    if least <= value && value <= most {
        return Ok(());
    }
    wrong(key, format!("is {value}, allowed is {least} to {most}"))
}

fn size(key: &str, value: u64, least: u64, most: u64) -> Result<(), Finding> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let [value, least, most] = [value, least, most].map(show_size);
    wrong(key, format!("is {value}, allowed is {least} to {most}"))
}

fn duration(key: &str, value: Duration, most: Duration) -> Result<(), Finding> {
    if value <= most {
        return Ok(());
    }
    let [value, most] = [value, most].map(humantime::format_duration);
    wrong(key, format!("is {value}, allowed is at most {most}"))
}

fn between(key: &str, value: Duration, least: Duration, most: Duration) -> Result<(), Finding> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let [value, least, most] = [value, least, most].map(humantime::format_duration);
    wrong(key, format!("is {value}, allowed is {least} to {most}"))
}

fn wrong(key: impl Into<String>, what: impl Into<String>) -> Result<(), Finding> {
    Err((key.into(), what.into()))
}
