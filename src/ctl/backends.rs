//! `backends`: what loops can wait with on this host.

use serde_json::{Value, json};

use super::failure::Outcome;
use super::output::{self, BAD, DIM, GOOD, NAME, PLAIN, Table, cell, plain};
use super::session::{Session, answer};
use crate::proto::{Backend, Capability, ListBackendsRequest};

pub(super) const EXAMPLES: &str = "Example:
  evloopctl backends --json | jq 'select(.available) | .name'";

pub(super) async fn run(session: &Session) -> Outcome {
    let request = ListBackendsRequest {};
    let list = answer("backends", session.policies().list_backends(request).await)?.backends;
    if session.json {
        let values: Vec<_> = list.iter().map(json).collect();
        output::json_lines(&values)?;
        return Ok(0);
    }
    let mut table = Table::new(&["BACKEND", "CLASS", "AVAILABLE", "CANNOT, OR UP TO"]);
    for backend in &list {
        let (available, style) = if backend.available {
            ("yes", GOOD)
        } else {
            ("no", BAD)
        };
        let (limits, quiet) = match backend.available {
            true => (limits(&backend.capabilities), PLAIN),
            false => (backend.unavailable_reason.clone(), DIM),
        };
        table.row([
            cell(&backend.name, NAME),
            plain(&backend.loop_class),
            cell(&available, style),
            cell(&limits, quiet),
        ]);
    }
    table.print()?;
    Ok(0)
}

fn limits(capabilities: &[Capability]) -> String {
    let limit = |c: &Capability| match (c.supported, c.limit) {
        (false, _) => Some(format!("no {}", c.name)),
        (true, 0) => None,
        (true, limit) => Some(format!("{} {limit}", c.name)),
    };
    capabilities
        .iter()
        .filter_map(limit)
        .collect::<Vec<_>>()
        .join(", ")
}

fn json(backend: &Backend) -> Value {
    let capability = |c: &Capability| {
        json!({
            "name": c.name,
            "supported": c.supported,
            "limit": c.limit,
            "reason": c.reason,
        })
    };
    json!({
        "name": backend.name,
        "loop_class": backend.loop_class,
        "available": backend.available,
        "unavailable_reason": backend.unavailable_reason,
        "capabilities": backend.capabilities.iter().map(capability).collect::<Vec<_>>(),
    })
}
