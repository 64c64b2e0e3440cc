//! Finds the allowed values of a configuration that this host, or the daemon's user on it, refuses, and
//! those that it cannot meet. The checks run before the daemon starts anything, and use the same code as
//! the start.

use std::io;
use std::path::Path;

use crate::access::can_bind;
use crate::cgroup;
use crate::config::{Children, Config, Limit, Refusal, Resource, full_key, show_size};
use crate::policy::backend_of;
use crate::tls::Sections;

const OOM_SCORE_ADJ_FILE: &str = "/proc/self/oom_score_adj";

/// Returns the values that would keep the daemon from starting, or from starting children, by key.
///
/// Must be called before the process has other threads: a value that needs a privilege is set on
/// the process itself, and then set back.
#[must_use]
pub fn refusals(config: &Config) -> Vec<Refusal> {
    let mut refused = Vec::new();
    // Sockets passed by systemd are bound already.
    if std::env::var_os("LISTEN_FDS").is_none() {
        sockets(config, &mut refused);
    }
    children(&config.children, &mut refused);
    for (index, entry) in config.loops.iter().enumerate() {
        let name = entry.policy.as_ref().unwrap_or(&config.default_policy);
        let backend = config.policies.get(name).map(backend_of);
        if let Some(Err(error)) = backend {
            let what = format!("no backend of policy `{name}` is available on this host: {error}");
            refused.push((format!("loop[{index}].policy"), what));
        }
    }
    if let Err(wrong) = Sections::load(&config.tls) {
        refused.extend(wrong.into_iter().map(|(name, error)| {
            let key = full_key(&full_key("tls", &name), error.part);
            (key, error.why)
        }));
    }
    refused
}

/// Bytes that the daemon takes beside `[limits] memory`, about: its program and threads, the records of
/// loops and watches, and the parts of shared memory that are not filled.
const BESIDE: u64 = 32 << 20;
/// The least that `[limits] memory` may be.
const MEMORY_MIN: u64 = 1 << 20;

/// Returns the limits that this host does not let the daemon reach, by key. It starts all the same.
#[must_use]
pub fn warnings(config: &Config) -> Vec<Refusal> {
    let host = rustix::system::sysinfo();
    let of_host = u64::from(host.mem_unit) * host.totalram;
    let of_cgroup = cgroup::memory_limit();
    let allowed = of_cgroup
        .map(|(bytes, file)| (bytes, file.display().to_string()))
        .into_iter()
        .chain([(of_host, "the host's memory".to_owned())])
        .min_by_key(|(bytes, _)| *bytes);
    let memory = allowed.and_then(|(bytes, by)| memory(config.limits.memory, bytes, &by));
    memory.into_iter().collect()
}

/// Returns what is wrong with `[limits] memory` where the daemon can have that many bytes.
fn memory(limit: u64, bytes: u64, by: &str) -> Option<Refusal> {
    if limit.saturating_add(BESIDE) <= bytes {
        return None;
    }
    // Whole MiB are enough to tell.
    let most = bytes.saturating_sub(BESIDE) >> 20 << 20;
    let allowed = match most >= MEMORY_MIN {
        true => format!("allowed here is at most {}", show_size(most)),
        false => "no value is small enough".to_owned(),
    };
    let what = format!(
        "is {}, and the daemon takes about {} beside, but {by} is {}; the kernel cannot \
         reclaim what outlives the daemon, and kills a process instead: {allowed}",
        show_size(limit),
        show_size(BESIDE),
        show_size(bytes >> 20 << 20),
    );
    Some(("limits.memory".to_owned(), what))
}

fn sockets(config: &Config, refused: &mut Vec<Refusal>) {
    let server = &config.server;
    let mut look = |key: &str, path: &Path| {
        if let Err(error) = can_bind(path) {
            let what = format!("the socket cannot be made: {error}; choose another path");
            refused.push((key.to_owned(), what));
        }
    };
    look("server.socket", &server.socket_path());
    let own = server.handover_socket.is_some();
    let key = if own {
        "server.handover_socket"
    } else {
        "server.socket"
    };
    look(key, &server.handover_path());
}

fn children(children: &Children, refused: &mut Vec<Refusal>) {
    let mut tried = |key: String, value: String, result: io::Result<()>| {
        if let Err(error) = result {
            let uid = rustix::process::geteuid().as_raw();
            let what = format!("{value} is beyond what uid {uid} may set here: {error}");
            refused.push((key, what));
        }
    };
    for (resource, limit) in &children.limits {
        let key = format!("children.limits.{}", resource.name());
        tried(key, limit.to_string(), try_limit(*resource, *limit));
    }
    // If children also get a limit of their own on the nice value, that limit decides, not the
    // daemon's.
    let own_limit = children.limits.keys().all(|r| r.name() != "nice");
    if let Some(nice) = children.nice.filter(|_| own_limit) {
        tried("children.nice".to_owned(), nice.to_string(), try_nice(nice));
    }
    if let Some(adj) = children.oom_score_adj {
        let key = "children.oom_score_adj".to_owned();
        tried(key, adj.to_string(), try_oom_score_adj(adj));
    }
}

/// Tries to set a limit. The system can only refuse a higher hard limit.
fn try_limit(resource: Resource, limit: Limit) -> io::Result<()> {
    let own = resource.own();
    if limit.hard <= own.hard {
        return Ok(());
    }
    let raised = Limit {
        hard: limit.hard,
        ..own
    };
    rustix::process::setrlimit(resource.kernel(), raised.into())?;
    Ok(rustix::process::setrlimit(resource.kernel(), own.into())?)
}

/// Tries to set the nice value. The system can only refuse a lower one.
fn try_nice(nice: i32) -> io::Result<()> {
    let own = rustix::process::getpriority_process(None)?;
    if nice >= own {
        return Ok(());
    }
    rustix::process::setpriority_process(None, nice)?;
    Ok(rustix::process::setpriority_process(None, own)?)
}

/// Tries to set `oom_score_adj`. The system can only refuse a lower value.
fn try_oom_score_adj(adj: i32) -> io::Result<()> {
    let own = std::fs::read_to_string(OOM_SCORE_ADJ_FILE)?;
    let own = own.trim();
    if own.parse().is_ok_and(|own: i32| adj >= own) {
        return Ok(());
    }
    std::fs::write(OOM_SCORE_ADJ_FILE, adj.to_string())?;
    std::fs::write(OOM_SCORE_ADJ_FILE, own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_memory_that_cannot_be_met_is_named_with_what_is_allowed() {
        const MIB: u64 = 1 << 20;
        let said = |limit, bytes| memory(limit, bytes, "memory.max").map(|(_, what)| what);
        assert_eq!(said(256 * MIB, 288 * MIB), None);
        let what = said(256 * MIB, 288 * MIB - 1).unwrap();
        assert!(what.starts_with("is 256MiB,"), "{what}");
        assert!(what.contains("memory.max is 287MiB"), "{what}");
        assert!(what.ends_with("allowed here is at most 255MiB"), "{what}");
        let what = said(MIB, 20 * MIB).unwrap();
        assert!(what.ends_with("no value is small enough"), "{what}");
        assert!(said(u64::MAX, 64 * MIB).is_some());
    }
}
