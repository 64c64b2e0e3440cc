//! `wait`: waits until processes have ended.

use std::collections::BTreeMap;

use clap::Args;

use super::description;
use super::exit::{end_of, exit_code};
use super::explain;
use super::failure::{Failure, OWN_FAILURE, Outcome, TIMED_OUT};
use super::feed::{Item, cut_short, end_feed};
use super::lookup;
use super::names::Watches;
use super::output;
use super::parse;
use super::render;
use super::session::Session;
use super::style::{NAME, printable};
use crate::proto::event::Kind;
use crate::proto::watch::Status;
use crate::proto::{Batch, Exited, Watch};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl wait build; echo \"make said $?\"
  evloopctl wait build test && evloopctl run -- ./deploy
  evloopctl wait --timeout 5min build
  evloopctl wait @7               # by id

The exit code is the process's own, or 128 + N if signal N ended it. Of several processes, it is \
the first that is not 0, in the order of the names. It is 124 if --timeout of this command, or of \
`run`, was exceeded; 125 if evloopctl itself failed or an exit status is not known.";

/// The message if the daemon was restarted between the look-up of the processes and the subscription.
const RESTARTED: &str = "the daemon was restarted: whether the processes still run is not known";

/// Options of `wait`.
#[derive(Debug, Args)]
pub(super) struct Wait {
    #[command(flatten)]
    names: Watches,
    /// Wait at most this long; a number alone is seconds
    #[arg(short, long, value_name = "DURATION", value_parser = parse::duration)]
    timeout: Option<prost_types::Duration>,
}

pub(super) async fn run(session: &Session, args: Wait) -> Outcome {
    let bound = args.timeout.map(std::time::Duration::try_from);
    let mut watches = Vec::new();
    let mut missing = false;
    for asked in args.names.references() {
        match lookup::watch(session, &asked).await {
            Ok(watch) => watches.push(watch),
            Err(failure) => {
                explain::report(session, failure).await;
                missing = true;
            }
        }
    }
    if missing {
        return Err(Failure::silent(OWN_FAILURE));
    }
    let mut waiting = Waiting::new(&watches)?;
    match bound {
        Some(Ok(bound)) => match tokio::time::timeout(bound, waiting.all(session)).await {
            Ok(waited) => waited?,
            Err(_) => return Err(waiting.timed_out(bound)),
        },
        Some(Err(_)) | None => waiting.all(session).await?,
    }
    let mut codes = Vec::new();
    for watch in &watches {
        if let Some(exited) = waiting.ended.get(&watch.watch_id) {
            codes.push(exit_code(&description::reference(watch), exited)?);
        }
    }
    Ok(codes.into_iter().find(|code| *code != 0).unwrap_or(0))
}

/// The processes for whose ends `wait` waits.
#[derive(Debug)]
struct Waiting<'a> {
    /// The processes that have not ended yet, by their ids.
    open: BTreeMap<u64, &'a Watch>,
    /// How the other processes ended, by their ids.
    ended: BTreeMap<u64, Exited>,
    /// Several processes were named: the end of each is printed.
    several: bool,
}

impl<'a> Waiting<'a> {
    fn new(watches: &'a [Watch]) -> Result<Self, Failure> {
        // Fails for a watch that is not a process, and for a process whose exit status is not known.
        for watch in watches {
            end_of(&description::reference(watch), watch)?;
        }
        Ok(Self {
            open: watches
                .iter()
                .map(|watch| (watch.watch_id, watch))
                .collect(),
            ended: BTreeMap::new(),
            several: watches.len() > 1,
        })
    }

    /// Waits until all processes have ended.
    async fn all(&mut self, session: &Session) -> Result<(), Failure> {
        for watch in self.open.values().copied().collect::<Vec<_>>() {
            self.look(session, watch)?;
        }
        let Some(first) = self.open.values().next() else {
            return Ok(());
        };
        let ids = self.open.keys().copied().collect();
        let epoch = first.added.clone().unwrap_or_default().epoch;
        let feed = end_feed(session, session.loop_ref.clone(), first, ids);
        let mut feed = feed.reporting_standstill();
        while !self.open.is_empty() {
            match feed.next().await? {
                Item::Header(header) if header.epoch == epoch => {}
                Item::Header(_) => return Err(Failure::plain(RESTARTED)),
                Item::Batch(batch) => self.batch(session, &batch).await?,
                Item::Goodbye(goodbye) => {
                    let short = cut_short(&goodbye);
                    return Err(short.unwrap_or_else(|| {
                        Failure::plain("the stream of events ended before all processes ended")
                    }));
                }
            }
        }
        Ok(())
    }

    async fn batch(&mut self, session: &Session, batch: &Batch) -> Result<(), Failure> {
        for event in &batch.events {
            // The watch is not looked up: it may have been removed by now.
            if let (Some(Kind::Exited(exited)), Some(watch)) =
                (&event.kind, self.open.get(&event.watch_id))
            {
                let ended = ended(watch, exited.clone());
                self.end(session, &ended, exited.clone())?;
            }
        }
        let told = |id: &u64| batch.events.iter().any(|event| event.watch_id == *id);
        let ids = self.open.keys().copied();
        let ids: Vec<_> = ids
            .filter(|id| !batch.gaps.is_empty() || told(id))
            .collect();
        for id in ids {
            let watch = lookup::watch(session, &parse::by_id(id)).await?;
            self.look(session, &watch)?;
        }
        Ok(())
    }

    fn look(&mut self, session: &Session, watch: &Watch) -> Result<(), Failure> {
        match end_of(&description::reference(watch), watch)? {
            Some(exited) => self.end(session, watch, exited),
            None => Ok(()),
        }
    }

    fn end(&mut self, session: &Session, watch: &Watch, exited: Exited) -> Result<(), Failure> {
        self.open.remove(&watch.watch_id);
        if session.json {
            output::messages([watch])?;
        } else if self.several {
            let (name, end) = (
                printable(&description::reference(watch)),
                render::exited(&exited),
            );
            output::line(&format!("{NAME}{name}{NAME:#}  {end}"))?;
        }
        self.ended.insert(watch.watch_id, exited);
        Ok(())
    }

    fn timed_out(&self, bound: std::time::Duration) -> Failure {
        let names: Vec<_> = self
            .open
            .values()
            .map(|watch| description::reference(watch))
            .collect();
        let names = names.join(", ");
        let what = format!(
            "{names}: not ended within {}",
            humantime::format_duration(bound)
        );
        Failure::plain(what).code(TIMED_OUT)
    }
}

/// Returns the watch with the end of its process in its status.
fn ended(watch: &Watch, exited: Exited) -> Watch {
    let mut watch = watch.clone();
    if let Some(Status::Process(process)) = &mut watch.status {
        process.exited = Some(exited);
    }
    watch
}
