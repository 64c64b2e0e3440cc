//! `version`: prints the versions of evloopctl and of the daemon.

use serde_json::json;

use super::failure::{Failure, Outcome};
use super::json::{self, joined};
use super::output;
use super::session::{Global, Session, answer};
use crate::proto::GetServerInfoRequest;

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl version
  evloopctl --version             # of evloopctl alone; needs no daemon";

/// The version of evloopctl.
const OWN: &str = env!("CARGO_PKG_VERSION");

pub(super) async fn run(global: Global, verb: String) -> Outcome {
    let as_json = global.json;
    if !as_json {
        output::line(&format!("evloopctl {OWN}"))?;
    }
    let session = match Session::open(global, verb).await {
        Ok(session) => session,
        Err(failure) => return Err(without_daemon(as_json, failure)?),
    };
    let info = answer(
        session
            .admin()
            .get_server_info(GetServerInfoRequest {})
            .await,
    )?;
    if as_json {
        let value = joined(json!({"client_version": OWN}), json::of(&info));
        output::json_lines([&value])?;
    } else {
        output::line(&format!("evloopd   {}, pid {}", info.version, info.pid))?;
    }
    Ok(0)
}

/// Prints evloopctl's own version as JSON, although no daemon was reached. Returns the failure to reach it.
fn without_daemon(as_json: bool, failure: Failure) -> Result<Failure, Failure> {
    if as_json {
        output::json_lines([&json!({"client_version": OWN})])?;
    }
    Ok(failure)
}
