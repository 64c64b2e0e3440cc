//! The AdminService.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::server::admin_service_server::AdminService;
use super::{Api, requester};
use crate::event_loop::Handle;
use crate::keeper::Ended;
use crate::memory::Use;
use crate::proto::*;

#[tonic::async_trait]
impl AdminService for Api {
    async fn get_server_info(
        &self,
        request: Request<GetServerInfoRequest>,
    ) -> Result<Response<GetServerInfoResponse>, Status> {
        let requester = requester(&request)?;
        let identity = &self.identity;
        Ok(Response::new(GetServerInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: identity.instance.clone(),
            life: identity.life_number(),
            boot_id: identity.boot_id.clone(),
            pid: rustix::process::getpid().as_raw_pid(),
            uid: rustix::process::geteuid().as_raw(),
            started: Some(crate::clock::timestamp(identity.started)),
            socket: identity.socket.display().to_string(),
            handover_socket: identity.handover_socket.display().to_string(),
            principal: requester.peer.principal.to_string(),
            administrator: requester.peer.administrator,
        }))
    }

    async fn get_status(
        &self,
        request: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        let mut everybody = requester(&request)?.caller;
        everybody.administrator = true;
        let loops = self.registry.list(&everybody, 0, false);
        let services = self.registry.services();
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let usage = tokio::task::spawn_blocking(usage).await.unwrap_or_default();
        let place = services.cgroups.place();
        let zones = Arc::clone(&services.time_zones);
        let zones = tokio::task::spawn_blocking(move || zones.facts()).await;
        let zones = zones.unwrap_or_default();
        let (files, config) = (
            self.identity.files.clone(),
            Arc::clone(self.registry.config()),
        );
        let differences = tokio::task::spawn_blocking(move || files.differences(&config)).await;
        let (changed_keys, config_errors) = match differences.unwrap_or(Ok(Vec::new())) {
            Ok(keys) => (keys, Vec::new()),
            Err(lines) => (Vec::new(), lines),
        };
        let memory = self.registry.memory();
        let (budget, journal_bytes) = (memory.budget(), memory.used());
        let arena = self.registry.arena();
        let directory = arena.and_then(|arena| arena.directory()?.path());
        let directory = directory.map(|path| path.to_string_lossy().into_owned());
        let state_trouble = match (&self.identity.state_trouble, arena, &directory) {
            (Some(trouble), ..) => trouble.clone(),
            (None, Some(arena), None) if arena.directory().is_some() => {
                "the directory of the state was removed".to_owned()
            }
            _ => String::new(),
        };
        Ok(Response::new(GetStatusResponse {
            draining: self.registry.is_draining(),
            loops: small(loops.len()),
            open_watches: loops.iter().map(Handle::open_watches).sum(),
            children: small(services.children.used()),
            streams: small(self.streams.used()),
            journal_bytes,
            slots: small(self.slots.len()),
            open_fds: usage.open_fds,
            max_fds: usage.max_fds,
            rss_bytes: usage.rss_bytes,
            children_kept: small(services.reaper.kept()),
            drained_pipes: small(services.drain.pipes()),
            drained_bytes: services.drain.discarded(),
            memory_limit_bytes: budget.limit(),
            memory_used_bytes: journal_bytes + budget.total(),
            request_bytes: budget.held(Use::Requests),
            answer_bytes: budget.held(Use::Answers),
            snapshot_bytes: budget.held(Use::Snapshots),
            poll_bytes: budget.held(Use::Polls),
            command_bytes: budget.held(Use::Commands),
            screen_bytes: budget.held(Use::Screens),
            cgroups: place.as_ref().map_or_else(
                |_| String::new(),
                |path| path.to_string_lossy().into_owned(),
            ),
            cgroups_missing: place.err().unwrap_or_default(),
            tzdata_version: zones.version,
            tzdata_from_host: zones.from_host,
            tzdata_host_version: zones.host_version.unwrap_or_default(),
            time_zone: zones.local,
            socket_troubles: self.identity.socket_troubles.lock().clone(),
            limit_troubles: self.identity.limit_troubles.clone(),
            keeper: self.identity.life.as_ref().map(|life| Keeper {
                state_directory: directory.unwrap_or_default(),
                journals_in_files: self
                    .registry
                    .arena()
                    .is_some_and(|arena| arena.is_in_files()),
                state_trouble,
                state_bytes: self.registry.arena().map_or(0, |arena| arena.bytes()),
                pid: life.keeper().unwrap_or_default(),
                life: life.number(),
                ended_lives: life.earlier().map(ended_life).collect(),
                changed_keys,
                config_errors,
                set_aside_loops: self.registry.set_aside(),
            }),
        }))
    }

    async fn get_config(
        &self,
        request: Request<GetConfigRequest>,
    ) -> Result<Response<GetConfigResponse>, Status> {
        requester(&request)?;
        let config = Arc::clone(self.registry.config());
        let value = |(key, value, source)| ConfigValue { key, value, source };
        Ok(Response::new(GetConfigResponse {
            values: config.effective().into_iter().map(value).collect(),
        }))
    }
}

fn ended_life((life, at, how): (u64, u64, Ended)) -> EndedLife {
    EndedLife {
        life,
        ended: Some(crate::clock::timestamp(at)),
        how: Some(match how {
            Ended::Exited(code) => ended_life::How::ExitCode(code.into()),
            Ended::Killed(signal) => ended_life::How::Signal(signal.into()),
        }),
    }
}

/// Figures of the daemon's process; `None` where the kernel does not tell.
#[derive(Debug, Default)]
struct Usage {
    open_fds: Option<u64>,
    max_fds: Option<u64>,
    rss_bytes: Option<u64>,
}

/// Returns the kernel's figures of this process.
fn usage() -> Usage {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    Usage {
        open_fds: counted_fds().or_else(listed_fds),
        max_fds: limit.current,
        rss_bytes: resident_bytes(),
    }
}

const OPEN_FDS: &str = "/proc/self/fd";

/// Returns the number of open descriptors. Since Linux 6.2 it is the size of the directory
/// `/proc/self/fd`, and reading it needs no descriptor.
fn counted_fds() -> Option<u64> {
    let size = std::fs::metadata(OPEN_FDS).ok()?.len();
    (size > 0).then_some(size)
}

fn listed_fds() -> Option<u64> {
    let mut count = 0_u64;
    for entry in std::fs::read_dir(OPEN_FDS).ok()? {
        entry.ok()?;
        count += 1;
    }
    // One of the entries is the descriptor of the directory itself.
    count.checked_sub(1)
}

/// Returns the resident set, bytes: the second field of `/proc/self/statm`, which counts pages
/// (proc_pid_statm(5)).
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(u64::try_from(rustix::param::page_size()).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_count_descriptors_agree() {
        // Other tests open and close descriptors in between.
        let agree = || match counted_fds() {
            Some(counted) => listed_fds() == Some(counted),
            None => listed_fds().is_some(),
        };
        assert!((0..10_000).any(|_| agree()));
        assert!(resident_bytes().is_some());
    }
}
