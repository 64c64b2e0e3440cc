//! `config`: prints the daemon's configuration, and where each value comes from.

use super::failure::Outcome;
use super::output;
use super::session::{Session, answer};
use super::style::{DIM, NAME};
use super::table::{Table, cell, plain};
use crate::proto::GetConfigRequest;

pub(super) const EXAMPLES: &str = "Example:
  evloopctl config | grep limits";

pub(super) async fn run(session: &Session) -> Outcome {
    let request = GetConfigRequest {};
    let values = answer(session.admin().get_config(request).await)?.values;
    if session.json {
        output::messages(&values)?;
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
