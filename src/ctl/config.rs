//! `config`: the daemon's configuration, and where each value came from.

use serde_json::json;

use super::failure::Outcome;
use super::output::{self, DIM, NAME, Table, cell, plain};
use super::session::{Session, answer};
use crate::proto::GetConfigRequest;

pub(super) const EXAMPLES: &str = "Example:
  evloopctl config | grep limits";

pub(super) async fn run(session: &Session) -> Outcome {
    let request = GetConfigRequest {};
    let values = answer("config", session.admin().get_config(request).await)?.values;
    if session.json {
        let lines: Vec<_> = values
            .iter()
            .map(|v| json!({"key": v.key, "value": v.value, "source": v.source}))
            .collect();
        output::json_lines(&lines)?;
        return Ok(0);
    }
    let mut table = Table::new(&["KEY", "VALUE", "FROM"]);
    for value in &values {
        table.row([
            cell(&value.key, NAME),
            plain(&value.value),
            cell(&value.source, DIM),
        ]);
    }
    table.print()?;
    Ok(0)
}
