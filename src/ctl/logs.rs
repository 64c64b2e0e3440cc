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
use super::transcript::{OutputState, Transcript, Until};
use crate::proto::{OnGap, RunRequest, Watch, WatchRef};

mod lines;
mod shown;
mod source;

use shown::Shown;
use source::{Range, Source};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl logs build            # all output so far
  evloopctl logs -f build         # until the process has ended
  evloopctl logs -n 20 -f build   # the last 20 lines, and new ones
  evloopctl logs --since 10m -t build
  evloopctl logs web worker       # of both, in the order they wrote
  evloopctl logs @7               # by id

The process's stdout goes to stdout and its stderr to stderr, byte for byte. For several \
processes, or with an option that selects a part, whole lines are printed; a line longer than \
64 KiB is split, and an incomplete line is printed last. The lines that exist at the start are \
printed in the order in which they were written; with -f, new lines are printed as they arrive. \
--since prints lines that began at or after that time. With --until, -f ends once a process has \
written something after that time. The exit code is not the process's: it is 0 if all output that \
was asked for is printed; 125 if the journal no longer has all of it, and stderr says how many \
bytes of which stream are gone; or 125 if evloopctl failed.";

/// The largest number of processes. Each needs a stream of the daemon.
const NAMES_MAX: usize = 64;

/// Options of `logs`.
#[derive(Debug, Args)]
pub(super) struct Logs {
    /// Go on with new output until the processes have ended
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines of each process's output so far, or `all` [default: all]
    #[arg(short = 'n', long, value_name = "N", value_parser = tail)]
    tail: Option<Tail>,
    /// Only lines that began at or after this time: `10m` or `600` (seconds) ago, `12:00:00`, `2030-01-31T12:00:00Z`
    #[arg(long, value_name = "WHEN", value_parser = parse::moment)]
    since: Option<Timestamp>,
    /// Only output that was written at or before this time
    #[arg(long, value_name = "WHEN", value_parser = parse::moment)]
    until: Option<Timestamp>,
    /// Begin each line with its time, in UTC
    #[arg(short, long)]
    timestamps: bool,
    /// For several processes, do not begin each line with the process's name
    #[arg(long, visible_alias = "no-log-prefix")]
    no_prefix: bool,
    /// At a terminal, print also what it would answer (queries), and titles and clipboard writes
    #[arg(long)]
    raw: bool,
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
    let raw = args.raw;
    // `conflicts_with` of clap overlooks a global option before the verb.
    if session.json && (args.tail.is_some() || !range.is_whole() || timestamps) {
        let what = "--json prints all events; it cannot be used with -n, --since, --until or -t";
        return Err(Failure::plain(what).code(USAGE));
    }
    let asked: Vec<_> = args.names.references().collect();
    if asked.len() > NAMES_MAX {
        let what = format!(
            "there are {} names; at most {NAMES_MAX} are allowed",
            asked.len()
        );
        return Err(Failure::plain(what).code(USAGE));
    }
    let processes = found(session, asked).await?;
    match <[Watch; 1]>::try_from(processes) {
        Ok([process]) if range.is_whole() && !timestamps => {
            through(session, follow, raw, process).await
        }
        Ok([process]) => {
            let shown = Shown::new(&[&process], timestamps, true, raw);
            by_line(session, vec![process], follow, range, shown).await
        }
        Err(_) if session.json => {
            Err(Failure::plain("--json is allowed for one process only").code(USAGE))
        }
        Err(processes) => {
            let shown = Shown::new(
                &processes.iter().collect::<Vec<_>>(),
                timestamps,
                no_prefix,
                raw,
            );
            by_line(session, processes, follow, range, shown).await
        }
    }
}

/// Returns the processes, each once. Reports all names that are wrong before any output is printed.
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
        feed.reporting_standstill()
    } else {
        feed
    }
}

/// Prints all output of one process, byte for byte.
async fn through(session: &Session, follow: bool, raw: bool, process: Watch) -> Outcome {
    let mut feed = feed(session, &process, follow);
    let until = if follow { Until::Done } else { Until::CaughtUp };
    let (mut transcript, output_state) = (Transcript::new(session.json), OutputState::default());
    if !raw {
        transcript = transcript.without_questions();
    }
    let read = tokio::select! {
        read = transcript.run(&mut feed, until, &output_state) => read.map(|()| true),
        () = output::reader_gone() => Ok(false),
    };
    if matches!(read, Ok(true)) && transcript.ledger.is_incomplete() {
        let known = known(session, &process, follow).await;
        transcript.ledger.compare_with_totals(known.as_ref());
    }
    let whole = transcript.ledger.report(&process.name);
    ended(read.map(drop), whole)
}

/// Returns the process with the totals of its output: as it is now with `--follow`, else as it was at the start, because
/// output after the start was not asked for. `None` if the daemon no longer knows the process.
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

/// Prints the output of one process or several, line by line.
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
        let read = print(&mut sources, follow, &mut shown).await;
        shown.flush().and(read)
    };
    let read = tokio::select! {
        read = reading => read.map(|()| true),
        () = output::reader_gone() => Ok(false),
    };
    let mut whole = true;
    for source in &mut sources {
        if matches!(read, Ok(true)) && source.is_incomplete() {
            // After `--until`, the totals at the start are enough: later output was not asked for.
            let known = known(session, &source.watch, follow && !source.cut).await;
            source.compare_with_totals(known.as_ref());
        }
        whole &= source.report();
    }
    ended(read.map(drop), whole)
}

/// Prints the lines that exist in the order of their sequence numbers, then with `follow` new lines as they arrive.
async fn print(sources: &mut [Source], follow: bool, shown: &mut Shown) -> Result<(), Failure> {
    print_existing(sources, shown).await?;
    if follow {
        print_new(sources, shown).await?;
    }
    Ok(())
}

async fn print_existing(sources: &mut [Source], shown: &mut Shown) -> Result<(), Failure> {
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
        source.ignore_losses_before_tail();
    }
    shown.flush()
}

async fn print_new(sources: &mut [Source], shown: &mut Shown) -> Result<(), Failure> {
    let mut last = 0;
    loop {
        let open = sources.iter_mut().enumerate();
        let mut open: Vec<_> = open.filter(|(_, source)| !source.done).collect();
        // The processes take turns, so that one that always writes does not delay the others.
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
