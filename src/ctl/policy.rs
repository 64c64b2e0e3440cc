//! `policy`: how loops are made.

use clap::Subcommand;
use serde_json::{Value, json};

use super::failure::Outcome;
use super::json::{with, word};
use super::output::{self, NAME, Table, cell, plain};
use super::parse;
use super::session::{Session, answer};
use crate::proto::{
    GetEventLoopPolicyRequest, ListEventLoopPoliciesRequest, Policy, PolicyScope,
    SetEventLoopPolicyRequest,
};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl policy list
  evloopctl policy set windows-selector-compat
  evloopctl policy set                          # back to the default";

/// What to do with policies.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// The policy in force for you
    #[command(after_help = "Example:\n  evloopctl policy get")]
    Get,
    /// Switch the policy in force; existing loops stay as they are
    #[command(after_help = "Example:\n  evloopctl policy set windows-selector-compat")]
    Set {
        /// The policy [default: the default]
        #[arg(value_parser = parse::name)]
        name: Option<String>,
        /// For everybody who has chosen none, not for you
        #[arg(long)]
        daemon: bool,
    },
    /// All policies
    #[command(after_help = "Example:\n  evloopctl policy list --json")]
    List,
}

pub(super) async fn run(session: &Session, verb: Verb) -> Outcome {
    let mut policies = session.policies();
    match verb {
        Verb::Get => {
            let request = GetEventLoopPolicyRequest {};
            let got = answer("policy get", policies.get_event_loop_policy(request).await)?;
            let scope = word(got.scope().as_str_name(), "POLICY_SCOPE_");
            let value = json(&got.policy.unwrap_or_default());
            output::object(session.json, &with(value, "scope", Some(scope.into())))?;
        }
        Verb::Set { name, daemon } => {
            let scope = if daemon {
                PolicyScope::Daemon
            } else {
                PolicyScope::Principal
            };
            let request = SetEventLoopPolicyRequest {
                policy_name: name,
                scope: scope.into(),
                ..SetEventLoopPolicyRequest::default()
            };
            let set = answer("policy set", policies.set_event_loop_policy(request).await)?;
            let policy = set.policy.unwrap_or_default();
            if session.json {
                output::json_lines([&json(&policy)])?;
            } else {
                output::line(&format!(
                    "the policy in force is {NAME}{}{NAME:#}",
                    policy.name
                ))?;
            }
        }
        Verb::List => {
            let request = ListEventLoopPoliciesRequest {};
            let list = answer(
                "policy list",
                policies.list_event_loop_policies(request).await,
            )?;
            print(session.json, &list.policies)?;
        }
    }
    Ok(0)
}

fn print(as_json: bool, policies: &[Policy]) -> Result<(), super::failure::Failure> {
    if as_json {
        let values: Vec<_> = policies.iter().map(json).collect();
        return output::json_lines(&values);
    }
    let heads = [
        "NAME",
        "CLASS",
        "BACKENDS",
        "CONTEXT",
        "MISSING",
        "START",
        "WHEN FULL",
        "DESCRIPTION",
    ];
    let mut table = Table::new(&heads);
    for policy in policies {
        table.row([
            cell(&policy.name, NAME),
            plain(&policy.loop_class),
            plain(&policy.backends.join(",")),
            plain(&policy.context),
            plain(&policy.on_missing),
            plain(&policy.start),
            plain(&policy.when_full),
            plain(&policy.description),
        ]);
    }
    table.print()
}

fn json(p: &Policy) -> Value {
    json!({
        "name": p.name,
        "description": p.description,
        "extends": p.extends,
        "loop_class": p.loop_class,
        "backends": p.backends,
        "context": p.context,
        "on_missing": p.on_missing,
        "start": p.start,
        "child_watcher": p.child_watcher,
        "watch_kinds": p.watch_kinds,
        "sockets_only": p.sockets_only,
        "max_sources": p.max_sources,
        "max_watches": p.max_watches,
        "journal_events": p.journal_events,
        "journal_bytes": p.journal_bytes,
        "history": p.history,
        "when_full": p.when_full,
        "journal_watch_bytes": p.journal_watch_bytes,
        "journal_watch_keep": p.journal_watch_keep,
        "attached_bytes": p.attached_bytes,
        "attached_patience": p.attached_patience.unwrap_or_default().to_string(),
        "consumer_ttl": p.consumer_ttl.unwrap_or_default().to_string(),
        "finished_ttl": p.finished_ttl.unwrap_or_default().to_string(),
        "closed_ttl": p.closed_ttl.unwrap_or_default().to_string(),
    })
}
