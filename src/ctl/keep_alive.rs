//! `keep-alive`: renews the lease of a watch or of a loop.

use clap::Args;

use super::complete;
use super::failure::Outcome;
use super::output;
use super::parse;
use super::session::{Session, answer};
use super::units::span;
use crate::clock;
use crate::proto::{KeepAliveRequest, WatchRef};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl keep-alive job                # as long as its lease was before
  evloopctl keep-alive job --lease 5m
  evloopctl --loop ci keep-alive          # the loop's own lease";

/// Options of `keep-alive`.
#[derive(Debug, Args)]
pub(super) struct KeepAlive {
    /// The watch [default: the loop itself]
    #[arg(value_name = "NAME", value_parser = parse::watch_ref, add = complete::watches())]
    watch: Option<WatchRef>,
    /// The length of the lease from now on [default: as before]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    lease: Option<prost_types::Duration>,
}

pub(super) async fn run(session: &Session, args: KeepAlive) -> Outcome {
    let request = KeepAliveRequest {
        r#loop: session.loop_ref.clone(),
        watch: args.watch,
        lease: args.lease,
    };
    let renewed = answer(session.loops().keep_alive(request).await)?;
    if session.json {
        output::messages([&renewed])?;
    } else if let Some(lease) = renewed.lease.as_ref().and_then(clock::span) {
        output::line(&format!("lives for {} more", span(lease)))?;
    }
    Ok(0)
}
