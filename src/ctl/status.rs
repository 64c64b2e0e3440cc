//! `status`: who answers, and how it is.

use serde_json::json;

use super::failure::Outcome;
use super::json::with;
use super::output;
use super::session::{Session, answer};
use crate::proto::{GetServerInfoRequest, GetStatusRequest};

pub(super) const EXAMPLES: &str = "Example:
  evloopctl status --json | jq .open_watches";

pub(super) async fn run(session: &Session) -> Outcome {
    let mut admin = session.admin();
    let info = answer(
        "status",
        admin.get_server_info(GetServerInfoRequest {}).await,
    )?;
    let status = answer("status", admin.get_status(GetStatusRequest {}).await)?;
    let value = json!({
        "version": info.version,
        "pid": info.pid,
        "uid": info.uid,
        "instance": info.instance,
        "boot_id": info.boot_id,
    });
    let value = with(
        value,
        "started",
        info.started.map(|time| time.to_string().into()),
    );
    let more = json!({
        "socket": info.socket,
        "handover_socket": info.handover_socket,
        "connected_to": session.socket.to_string_lossy(),
        "principal": info.principal,
        "administrator": info.administrator,
        "draining": status.draining,
        "loops": status.loops,
        "open_watches": status.open_watches,
        "children": status.children,
        "children_kept": status.children_kept,
        "drained_pipes": status.drained_pipes,
        "drained_bytes": status.drained_bytes,
        "streams": status.streams,
        "journal_bytes": status.journal_bytes,
        "memory_limit_bytes": status.memory_limit_bytes,
        "memory_used_bytes": status.memory_used_bytes,
        "request_bytes": status.request_bytes,
        "answer_bytes": status.answer_bytes,
        "snapshot_bytes": status.snapshot_bytes,
        "poll_bytes": status.poll_bytes,
        "command_bytes": status.command_bytes,
        "slots": status.slots,
        "open_fds": status.open_fds,
        "max_fds": status.max_fds,
        "rss_bytes": status.rss_bytes,
    });
    let mut value = value;
    if let (Some(object), serde_json::Value::Object(more)) = (value.as_object_mut(), more) {
        object.extend(more);
    }
    output::object(session.json, &value)?;
    Ok(0)
}
