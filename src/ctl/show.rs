//! `show`: prints all values of one process, watch, loop or consumer.

use clap::{Args, ValueEnum};

use super::complete;
use super::consumer;
use super::description;
use super::explain;
use super::failure::{Failure, Outcome};
use super::holder::{Holder, is_held};
use super::lookup;
use super::loops;
use super::output;
use super::parse;
use super::session::Session;
use super::style::{NOTICE, printable};
use crate::proto::{Loop, LoopRef, Watch, WatchRef, loop_ref};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl show build
  evloopctl show @7                       # the watch with the id 7
  evloopctl show --kind loop default
  evloopctl show build --json | jq .process.exited

A name is looked for among the watches of the loop (processes are watches), then among your \
loops, then among the loop's consumers.";

/// A kind of thing that has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// A process or any other watch of the loop.
    #[value(alias = "process")]
    Watch,
    /// A loop of yours.
    Loop,
    /// A consumer of the loop.
    Consumer,
}

/// Options of `show`.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// The names, or `@7` for the watch with the id 7
    #[arg(required = true, value_name = "NAME", value_parser = parse::watch_ref, add = complete::watches())]
    names: Vec<WatchRef>,
    /// Look only among things of this kind
    #[arg(long, value_enum)]
    kind: Option<Kind>,
}

pub(super) async fn run(session: &Session, args: Show) -> Outcome {
    let mut code = 0;
    for (index, asked) in args.names.iter().enumerate() {
        if index > 0 && !session.json {
            output::line("")?;
        }
        if let Err(failure) = one(session, asked, args.kind).await {
            code = explain::report(session, failure).await;
        }
    }
    Ok(code)
}

async fn one(session: &Session, asked: &WatchRef, kind: Option<Kind>) -> Result<(), Failure> {
    let name = parse::watch_name(asked);
    let kind = kind.or(name.starts_with('@').then_some(Kind::Watch));
    let sought = |sought| kind.is_none_or(|only| only == sought);
    let mut nothing = None;
    let mut found = Vec::new();
    if sought(Kind::Watch) {
        match lookup::watch(session, asked).await {
            Ok(watch) => found.push(Found::Watch(Box::new(watch))),
            Err(failure) => nothing = Some(missing(failure)?),
        }
    }
    if sought(Kind::Loop) {
        match lookup::loop_of(session, parse::loop_ref(&name).map_err(Failure::plain)?).await {
            Ok(of) => found.push(Found::Loop(Box::new(of))),
            Err(failure) => nothing = nothing.or(Some(missing(failure)?)),
        }
    }
    if sought(Kind::Consumer) && !name.starts_with('@') {
        match lookup::consumer(session, name.clone()).await {
            Ok(consumer) => found.push(Found::Consumer(consumer)),
            Err(failure) => nothing = nothing.or(Some(missing(failure)?)),
        }
    }
    let mut found = found.into_iter();
    match (found.next(), nothing) {
        (Some(first), _) => first.show(session).await?,
        (None, Some(nothing)) => return Err(nothing),
        (None, None) => {
            return Err(Failure::plain(format!(
                "`{name}` is an id, but consumers have only names"
            )));
        }
    }
    if !session.json {
        for other in found {
            let (what, name) = (other.kind(), printable(&name));
            output::note(&format!(
                "a {what} has this name too: `evloopctl show --kind {what} {name}` shows it"
            ));
        }
    }
    Ok(())
}

/// Prints all values of watches.
pub(super) async fn watches(session: &Session, asked: &[WatchRef]) -> Outcome {
    let names = asked.to_vec();
    let kind = Some(Kind::Watch);
    run(session, Show { names, kind }).await
}

/// Returns a failure as a value if it means that the thing does not exist.
///
/// # Errors
/// Any other failure; it ends the verb.
fn missing(failure: Failure) -> Result<Failure, Failure> {
    let reasons = [
        "WATCH_NOT_FOUND",
        "LOOP_NOT_FOUND",
        "CONSUMER_NOT_FOUND",
        "NO_LOOP_IN_CONTEXT",
        "INVALID_FIELD",
    ];
    if reasons.contains(&failure.reason.as_str()) {
        Ok(failure)
    } else {
        Err(failure)
    }
}

/// A thing that was found under the name.
enum Found {
    Watch(Box<Watch>),
    Loop(Box<Loop>),
    Consumer(crate::proto::Consumer),
}

impl Found {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Watch(_) => "watch",
            Self::Loop(_) => "loop",
            Self::Consumer(_) => "consumer",
        }
    }

    async fn show(&self, session: &Session) -> Result<(), Failure> {
        match self {
            Self::Watch(found) => watch(session, found).await,
            Self::Loop(found) => loops::show(session, found),
            Self::Consumer(found) => consumer::show(session, found),
        }
    }
}

/// Prints one watch: as JSON, or as a sheet.
pub(super) async fn watch(session: &Session, found: &Watch) -> Result<(), Failure> {
    if session.json {
        return output::messages([found]);
    }
    let none = LoopRef {
        r#ref: None::<loop_ref::Ref>,
    };
    let of = session.loop_ref.as_ref().unwrap_or(&none);
    // If the look-up fails, the watch is shown without the loop's name.
    let on = lookup::loop_of(session, of.clone())
        .await
        .unwrap_or_default();
    let mut sheet = description::sheet(found, &on.full_name);
    if found.source_pause.as_ref().is_some_and(is_held)
        && let Some(holder) = Holder::find(session).await
    {
        sheet.styled("held up by", holder, NOTICE);
    }
    sheet.print()
}
