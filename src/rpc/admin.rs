//! AdminService.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::server::admin_service_server::AdminService;
use super::{Api, asker};
use crate::event_loop::Handle;
use crate::memory::Use;
use crate::proto::*;

#[tonic::async_trait]
impl AdminService for Api {
    async fn get_server_info(
        &self,
        request: Request<GetServerInfoRequest>,
    ) -> Result<Response<GetServerInfoResponse>, Status> {
        let asker = asker(&request)?;
        let identity = &self.identity;
        Ok(Response::new(GetServerInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: identity.instance.clone(),
            boot_id: identity.boot_id.clone(),
            pid: rustix::process::getpid().as_raw_pid(),
            uid: rustix::process::geteuid().as_raw(),
            started: Some(crate::clock::timestamp(identity.started)),
            socket: identity.socket.display().to_string(),
            handover_socket: identity.handover_socket.display().to_string(),
            principal: asker.peer.principal.to_string(),
            administrator: asker.peer.administrator,
        }))
    }

    async fn get_status(
        &self,
        request: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        let mut everybody = asker(&request)?.caller;
        everybody.administrator = true;
        let loops = self.registry.list(&everybody, 0, false);
        let services = self.registry.services();
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let usage = tokio::task::spawn_blocking(usage).await.unwrap_or_default();
        let memory = self.registry.memory();
        let (budget, journal_bytes) = (memory.budget(), memory.used());
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
        }))
    }

    async fn get_config(
        &self,
        request: Request<GetConfigRequest>,
    ) -> Result<Response<GetConfigResponse>, Status> {
        asker(&request)?;
        let config = Arc::clone(self.registry.config());
        let value = |(key, value, source)| ConfigValue { key, value, source };
        Ok(Response::new(GetConfigResponse {
            values: config.effective().into_iter().map(value).collect(),
        }))
    }
}

#[derive(Debug, Default)]
struct Usage {
    open_fds: u64,
    max_fds: u64,
    rss_bytes: u64,
}

/// What the kernel says of this process; 0 where /proc cannot be read.
fn usage() -> Usage {
    let open_fds = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    // The second field is the resident set, in pages (proc_pid_statm(5)).
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split_ascii_whitespace()
        .nth(1)
        .and_then(|p| p.parse::<u64>().ok());
    Usage {
        open_fds: open_fds as u64,
        max_fds: limit.current.unwrap_or(u64::MAX),
        rss_bytes: pages.unwrap_or(0) * rustix::param::page_size() as u64,
    }
}
