//! `policy`: shows and sets the policy by which loops are made.

use clap::Subcommand;

use super::complete;
use super::failure::{Failure, Outcome};
use super::json::word;
use super::output;
use super::parse;
use super::session::{Session, answer};
use super::style::{NAME, printable};
use super::table::{Sheet, Table, cell, plain};
use super::units::{grouped, size, span};
use crate::proto::{
    GetEventLoopPolicyRequest, ListEventLoopPoliciesRequest, Policy, PolicyScope,
    SetEventLoopPolicyRequest,
};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl policy list
  evloopctl policy set windows-selector-compat
  evloopctl policy set                          # back to the default";

/// Commands for policies.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show the policy that is in force for you, or another one
    #[command(after_help = "Example:\n  evloopctl policy get macos-kqueue-compat")]
    Get {
        /// The policy's name; without it, the one that is in force for you
        #[arg(value_parser = parse::name, add = complete::policies())]
        name: Option<String>,
    },
    /// Set the policy that is in force for you; existing loops stay as they are
    #[command(after_help = "Example:\n  evloopctl policy set windows-selector-compat")]
    Set {
        /// The policy's name; without it, the default is in force again
        #[arg(value_parser = parse::name, add = complete::policies())]
        name: Option<String>,
        /// Set it for everybody who has set no policy, instead of for you
        #[arg(long)]
        daemon: bool,
    },
    /// List all policies
    #[command(after_help = "Example:\n  evloopctl policy list --json")]
    List,
}

pub(super) async fn run(session: &Session, verb: Verb) -> Outcome {
    let mut policies = session.policies();
    match verb {
        Verb::Get { name: None } => {
            let request = GetEventLoopPolicyRequest {};
            let got = answer(policies.get_event_loop_policy(request).await)?;
            if session.json {
                output::messages([&got])?;
            } else {
                let scope = word(got.scope().as_str_name(), "POLICY_SCOPE_");
                let mut sheet = sheet(&got.policy.unwrap_or_default());
                sheet.line("chosen for", scope);
                sheet.print()?;
            }
        }
        Verb::Get { name: Some(name) } => {
            let policy = named(list(session).await?, &name)?;
            if session.json {
                output::messages([&policy])?;
            } else {
                sheet(&policy).print()?;
            }
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
            let set = answer(policies.set_event_loop_policy(request).await)?;
            if session.json {
                output::messages([&set])?;
            } else {
                let policy = set.policy.unwrap_or_default();
                output::line(&format!(
                    "the policy in force is {NAME}{}{NAME:#}",
                    policy.name
                ))?;
            }
        }
        Verb::List => print(session.json, &list(session).await?)?,
    }
    Ok(0)
}

async fn list(session: &Session) -> Result<Vec<Policy>, Failure> {
    let request = ListEventLoopPoliciesRequest {};
    let list = session.policies().list_event_loop_policies(request).await;
    Ok(answer(list)?.policies)
}

fn named(policies: Vec<Policy>, name: &str) -> Result<Policy, Failure> {
    let found = policies.into_iter().find(|policy| policy.name == name);
    found.ok_or_else(|| {
        Failure::new(name, "there is no policy of this name")
            .advice("`evloopctl policy list` lists them")
    })
}

fn print(as_json: bool, policies: &[Policy]) -> Result<(), Failure> {
    if as_json {
        return output::messages(policies);
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

/// Returns all values of a policy, as labelled lines.
fn sheet(p: &Policy) -> Sheet {
    let name = printable(&p.name);
    let mut sheet = Sheet::new(format!("{NAME}{name}{NAME:#}  policy"));
    sheet.line("description", &p.description);
    sheet.line("extends", &p.extends);
    sheet.line("class", &p.loop_class);
    sheet.line("backends", p.backends.join(", "));
    sheet.line("context", &p.context);
    sheet.line("on missing", &p.on_missing);
    sheet.line("start", &p.start);
    sheet.line("child watcher", &p.child_watcher);
    sheet.line("watches", p.watch_kinds.join(", "));
    for refused in &p.refuses {
        sheet.line("refuses", format!("{}: {}", refused.name, refused.reason));
    }
    sheet.line("sockets only", if p.sockets_only { "yes" } else { "" });
    let most = |number: u64| {
        if number > 0 {
            grouped(number)
        } else {
            String::new()
        }
    };
    sheet.line("max sources", most(p.max_sources));
    sheet.line("max watches", most(p.max_watches));
    let events = grouped(p.journal_events);
    sheet.line(
        "journal",
        format!("{events} events, {}", size(p.journal_bytes)),
    );
    sheet.line("journal of a watch", size(p.journal_watch_bytes));
    sheet.line("history", &p.history);
    sheet.line("survives", &p.survives);
    sheet.line("when full", &p.when_full);
    let time = |d: &Option<prost_types::Duration>| {
        let time = std::time::Duration::try_from(d.unwrap_or_default());
        time.map_or_else(|_| String::new(), span)
    };
    let (bytes, patience) = (size(p.attached_bytes), time(&p.attached_patience));
    let tick = std::time::Duration::try_from(p.timer_tick.unwrap_or_default()).unwrap_or_default();
    if !tick.is_zero() {
        // A multiple of the microsecond is exact as a number of milliseconds.
        let every = format!("every {} ms", tick.as_secs_f64() * 1000.0);
        sheet.line("timers fire", every);
    }
    sheet.line("attached", format!("{bytes}, patience {patience}"));
    let kept = |time: String| {
        if time.is_empty() {
            time
        } else {
            format!("kept for {time}")
        }
    };
    sheet.line("finished watches", kept(time(&p.finished_ttl)));
    sheet.line("closed loops", kept(time(&p.closed_ttl)));
    sheet.line("idle consumers", kept(time(&p.consumer_ttl)));
    sheet
}
