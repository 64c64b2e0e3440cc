//! `ps`: lists processes.

use super::description;
use super::failure::Outcome;
use super::holder::{Holder, is_held};
use super::output;
use super::session::Session;
use super::style::printable;
use crate::proto::Watch;

mod condition;
mod follow;
mod listing;

pub(super) use listing::Ps;

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl ps
  evloopctl ps --filter status=failed --filter label=team=ci
  evloopctl kill $(evloopctl ps -q --running)
  evloopctl ps --watch

Finished processes are listed until `evloopctl rm NAME`, or until the daemon forgets them. A \
process is `stopped` after SIGSTOP or SIGTSTP, until SIGCONT. A process that is `ended, not told \
yet` is on a stopped loop; the loop reports how it ended once it runs (`evloopctl loop run`).";

pub(super) async fn run(session: &Session, args: Ps) -> Outcome {
    if args.watch {
        return follow::run(session, &args).await;
    }
    let processes = args.list(session).await?;
    args.print(session, &processes)?;
    let held_up = |process: &&Watch| process.source_pause.as_ref().is_some_and(is_held);
    if !session.json
        && !args.quiet
        && let Some(process) = processes.iter().find(held_up)
        && let Some(holder) = Holder::find(session).await
    {
        let name = printable(&description::reference(process));
        output::note(&format!("{name} is paused: {holder}"));
    }
    Ok(0)
}
