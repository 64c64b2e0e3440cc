//! `logs`: prints what processes wrote.

use clap::Args;
use futures_util::future::select_all;
use jiff::Timestamp;

use super::explain;
use super::failure::{Failure, Gone, OWN_FAILURE, Outcome, USAGE};
use super::feed::{Feed, Source as From};
use super::lookup;
use super::names::Watches;
use super::output;
use super::parse;
use super::session::Session;
use super::transcript::{Links, Transcript, Until};
use crate::proto::{OnGap, RunRequest, Watch, WatchRef};

mod lines;
mod shown;
mod source;

use shown::Shown;
use source::{Range, Source};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl logs build            # what there is
  evloopctl logs -f build         # until it is done
  evloopctl logs -n 20 -f build   # the last 20 lines, and what comes
  evloopctl logs --since 10m -t build
  evloopctl logs web worker       # of both, in the order they wrote
  evloopctl logs @7               # by id

The process's stdout goes to stdout and its stderr to stderr, byte for byte. Of several \
processes, and where only a part is asked for, whole lines are shown, in pieces if longer than \
64 KiB: one without its end is shown at the end. Lines of several processes that are there at \
the beginning are in the order in which they were written; with -f, later ones are shown as they \
arrive. --since shows lines that began at or after that time. With --until, -f ends with what is \
written after that time. The exit code is never the process's: 0 if this is all of what was asked \
for, 125 if the journal no longer holds all of it (stderr says how much is gone of which stream) \
or evloopctl failed.";

/// The most processes at a time: each takes a stream of the daemon.
const NAMES_MAX: usize = 64;

/// Options of `logs`.
#[derive(Debug, Args)]
pub(super) struct Logs {
    /// Go on until the processes are done
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines of what is there, of each; `all` is the default
    #[arg(short = 'n', long, value_name = "N", value_parser = tail)]
    tail: Option<Tail>,
    /// Only lines that began at or after it: `10m` or `600` (seconds) ago, `12:00:00`, `2030-01-31T12:00:00Z`
    #[arg(long, value_name = "WHEN", value_parser = parse::moment)]
    since: Option<Timestamp>,
    /// Only what was written at or before it
    #[arg(long, value_name = "WHEN", value_parser = parse::moment)]
    until: Option<Timestamp>,
    /// Begin each line with its time, in UTC
    #[arg(short, long)]
    timestamps: bool,
    /// Of several, do not begin each line with the name
    #[arg(long, visible_alias = "no-log-prefix")]
    no_prefix: bool,
    #[command(flatten)]
    names: Watches,
}

/// The value of `--tail`.
#[derive(Debug, Clone, Copy)]
enum Tail {
    All,
    Last(usize),
}

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail::All),
        number => {
            let number = number
                .parse()
                .map_err(|_| "a number of lines, or `all`, is expected");
            Ok(Tail::Last(number?))
        }
    }
}

pub(super) async fn run(session: &Session, args: Logs) -> Outcome {
    let range = Range {
        tail: match args.tail {
            Some(Tail::Last(lines)) => Some(lines),
            Some(Tail::All) | None => None,
        },
        since_ns: args.since.map(parse::nanoseconds),
        until_ns: args.until.map(parse::nanoseconds),
    };
    let (follow, timestamps, no_prefix) = (args.follow, args.timestamps, args.no_prefix);
    // Not by clap's `conflicts_with`: that overlooks a global option before the verb.
    if session.json && (args.tail.is_some() || !range.is_whole() || timestamps) {
        let what = "--json prints all events: -n, --since, --until and -t cannot be used with it";
        return Err(Failure::plain(what).code(USAGE));
    }
    let asked: Vec<_> = args.names.references().collect();
    if asked.len() > NAMES_MAX {
        let what = format!("{} names; at most {NAMES_MAX} at a time", asked.len());
        return Err(Failure::plain(what).code(USAGE));
    }
    let processes = found(session, asked).await?;
    match <[Watch; 1]>::try_from(processes) {
        Ok([process]) if range.is_whole() && !timestamps => through(session, follow, process).await,
        Ok([process]) => {
            let shown = Shown::new(&[&process], timestamps, true);
            by_line(session, vec![process], follow, range, shown).await
        }
        Err(_) if session.json => {
            Err(Failure::plain("--json is for one process at a time").code(USAGE))
        }
        Err(processes) => {
            let shown = Shown::new(&processes.iter().collect::<Vec<_>>(), timestamps, no_prefix);
            by_line(session, processes, follow, range, shown).await
        }
    }
}

/// Returns the processes, each once. Wrong names are reported before anything is shown.
async fn found(session: &Session, asked: Vec<WatchRef>) -> Result<Vec<Watch>, Failure> {
    let mut processes: Vec<Watch> = Vec::new();
    let mut missing = false;
    for name in asked {
        match lookup::process(session, &name).await {
            Ok(process) if processes.iter().any(|p| p.watch_id == process.watch_id) => {}
            Ok(process) => processes.push(process),
            Err(failure) => {
                explain::report(session, failure).await;
                missing = true;
            }
        }
    }
    if missing {
        return Err(Failure::silent(OWN_FAILURE));
    }
    Ok(processes)
}

fn feed(session: &Session, process: &Watch, follow: bool) -> Feed {
    let request = RunRequest {
        r#loop: session.loop_ref.clone(),
        name: process.name.clone(),
        on_gap: OnGap::Skip.into(),
        ..RunRequest::default()
    };
    let feed = Feed::new(session.clone(), From::Run(request));
    if follow {
        feed.telling_standstill()
    } else {
        feed
    }
}

/// Prints all output of one process, byte for byte.
async fn through(session: &Session, follow: bool, process: Watch) -> Outcome {
    let mut feed = feed(session, &process, follow);
    let until = if follow { Until::Done } else { Until::CaughtUp };
    let (mut transcript, links) = (Transcript::new(session.json), Links::default());
    let read = tokio::select! {
        read = transcript.run(&mut feed, until, &links) => read.map(|()| true),
        () = output::reader_gone() => Ok(false),
    };
    if matches!(read, Ok(true)) && transcript.ledger.is_open() {
        let known = known(session, &process, follow).await;
        transcript.ledger.settle(known.as_ref());
    }
    let whole = transcript.ledger.report(&process.name);
    ended(read.map(drop), whole)
}

/// Returns what the daemon says of the process: now with --follow, else as it was at the beginning, for the process may
/// have written more since then that was not asked for.
async fn known(session: &Session, process: &Watch, follow: bool) -> Option<Watch> {
    if !follow {
        return Some(process.clone());
    }
    let id = parse::by_id(process.watch_id);
    lookup::watch(session, &id).await.ok()
}

fn ended(read: Result<(), Failure>, whole: bool) -> Outcome {
    match read {
        Err(failure) if failure.gone != Some(Gone::Reader) => Err(failure),
        Ok(()) | Err(_) if whole => Ok(0),
        Ok(()) | Err(_) => Ok(OWN_FAILURE),
    }
}

/// Prints what is asked for of one process or several, line by line.
async fn by_line(
    session: &Session,
    processes: Vec<Watch>,
    follow: bool,
    range: Range,
    mut shown: Shown,
) -> Outcome {
    let mut sources: Vec<_> = processes
        .into_iter()
        .map(|process| {
            let feed = feed(session, &process, follow);
            Source::new(process, feed, range, follow)
        })
        .collect();
    let reading = async {
        let read = read(&mut sources, follow, &mut shown).await;
        shown.flush().and(read)
    };
    let read = tokio::select! {
        read = reading => read.map(|()| true),
        () = output::reader_gone() => Ok(false),
    };
    let mut whole = true;
    for source in &mut sources {
        if matches!(read, Ok(true)) && source.is_open() {
            // Output after --until does not count: what was there at the beginning is enough to know.
            let known = known(session, &source.watch, follow && !source.cut).await;
            source.settle(known.as_ref());
        }
        whole &= source.report();
    }
    ended(read.map(drop), whole)
}

/// Prints lines that are there in the order of the loop's sequence numbers, then later ones as they arrive.
async fn read(sources: &mut [Source], follow: bool, shown: &mut Shown) -> Result<(), Failure> {
    held(sources, shown).await?;
    if follow {
        coming(sources, shown).await?;
    }
    Ok(())
}

async fn held(sources: &mut [Source], shown: &mut Shown) -> Result<(), Failure> {
    loop {
        let mut first: Option<(u64, usize)> = None;
        for (index, source) in sources.iter_mut().enumerate() {
            let seq = source.peek().await?.map(|line| line.seq);
            let earlier = seq.map(|seq| (seq, index));
            first = [first, earlier].into_iter().flatten().min();
        }
        let Some((_, index)) = first else { break };
        let source = &mut sources[index];
        if let Some(line) = source.next() {
            shown.line(index, &line)?;
        }
    }
    for source in sources {
        source.settle_tail();
    }
    shown.flush()
}

async fn coming(sources: &mut [Source], shown: &mut Shown) -> Result<(), Failure> {
    let mut last = 0;
    loop {
        let open = sources.iter_mut().enumerate();
        let mut open: Vec<_> = open.filter(|(_, source)| !source.done).collect();
        // The processes take turns: one that always writes does not keep the others waiting.
        open.sort_by_key(|(index, _)| (*index <= last, *index));
        let fills: Vec<_> = open
            .into_iter()
            .map(|(index, source)| Box::pin(async move { (index, source.fill().await) }))
            .collect();
        if fills.is_empty() {
            return Ok(());
        }
        let ((index, filled), _, _) = select_all(fills).await;
        last = index;
        let source = &mut sources[index];
        while let Some(line) = source.next() {
            shown.line(index, &line)?;
        }
        shown.flush()?;
        filled?;
    }
}
