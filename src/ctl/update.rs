//! `update`: changes a watch in place.

use clap::Args;
use prost_types::FieldMask;

use super::complete;
use super::failure::{Failure, Outcome, USAGE};
use super::lookup;
use super::output;
use super::parse;
use super::session::{Session, answer};
use super::timer;
use super::watch::Only;
use super::zone;
use crate::proto::{
    AtEnd, PathChangeKind, PathSpec, ProcessSpec, TimerSpec, UpdateWatchRequest, WatchRef,
    WatchSpec, timer_spec, watch_spec,
};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl update nightly --cron '30 3 * * *'
  evloopctl update minute --every 2m
  evloopctl update nightly --pause            # and --resume
  evloopctl update build --timeout 2h --label ticket=71
  evloopctl update build --at-end keep
  evloopctl update src -r --ignore target --ignore '*.o'

A changed schedule counts from its change and does not fire for it. A new expression keeps the time zone of \
the one before, unless it has one of its own or --zone is given. A changed path watch tells by \
`path_rescan` that everything is to be looked at.";

/// Options of `update`.
#[derive(Debug, Args)]
pub(super) struct Update {
    /// The watch
    #[arg(value_name = "NAME", value_parser = parse::watch_ref, add = complete::watches())]
    watch: WatchRef,
    #[command(flatten)]
    schedule: Schedule,
    #[command(flatten)]
    zone: timer::InZone,
    /// Let the timer fire up to this much later; 0 for not
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    slack: Option<prost_types::Duration>,
    /// Let the timer fire later by a part of this, which depends on host and name; 0 for not
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    splay: Option<prost_types::Duration>,
    /// Let the timer not fire
    #[arg(long, conflicts_with = "resume")]
    pause: bool,
    /// Let a paused timer fire again
    #[arg(long)]
    resume: bool,
    /// How long the process may run, from its start on; 0 for as long as it wants
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    timeout: Option<prost_types::Duration>,
    /// What happens to the process when its watch ends
    #[arg(long, value_parser = ["kill-tree", "keep"])]
    at_end: Option<String>,
    /// The time between the stop signal and SIGKILL
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    kill_grace: Option<prost_types::Duration>,
    /// The signal that asks the process to end
    #[arg(long, value_name = "SIGNAL", value_parser = parse::signal)]
    stop_signal: Option<String>,
    #[command(flatten)]
    path: OfPath,
    /// Replace the labels of the watch by these; may be repeated
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = parse::key_value)]
    labels: Vec<(String, String)>,
    /// How long the watch can be looked at after its end
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    finished_ttl: Option<prost_types::Duration>,
}

#[derive(Debug, Args)]
struct OfPath {
    /// Watch all directories below the path too
    #[arg(short, long, conflicts_with = "no_recursive")]
    recursive: bool,
    /// Do not watch the directories below the path
    #[arg(long)]
    no_recursive: bool,
    /// Tell these changes of the path
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KINDS")]
    only: Vec<Only>,
    /// Replace the patterns of what is left out of the path by these; may be repeated; '' for none
    #[arg(long, value_name = "PATTERN")]
    ignore: Vec<String>,
    /// Make equal changes of the path within this time one event; 0 for not
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    window: Option<prost_types::Duration>,
    /// Look at file systems that tell nothing, such as NFS, at this interval; 0 for not
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    poll: Option<prost_types::Duration>,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
struct Schedule {
    /// Fire once, this long from now
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    after: Option<prost_types::Duration>,
    /// Fire again and again, at this interval
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    every: Option<prost_types::Duration>,
    /// Fire once, at this time, such as `tomorrow 02:00`
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Fire when this expression of cron or of systemd is due
    #[arg(long, value_name = "EXPRESSION")]
    cron: Option<String>,
}

/// A request, as it is put together.
#[derive(Default)]
struct Made {
    timer: TimerSpec,
    process: ProcessSpec,
    path: PathSpec,
    paths: Vec<&'static str>,
}

impl Made {
    /// `kept` is the time zone that the timer has.
    fn of_timer(&mut self, args: &Update, kept: Option<&str>) -> Result<(), Failure> {
        let schedule = &args.schedule;
        let zone_name = args.zone.zone.as_deref().or(kept);
        if let Some(text) = &schedule.cron {
            let (given, time_zone, _) = timer::calendar(text, zone_name)?;
            self.paths.push(match given {
                timer_spec::Schedule::OnCalendar(_) => "spec.timer.on_calendar",
                _ => "spec.timer.cron",
            });
            (self.timer.schedule, self.timer.time_zone) = (Some(given), time_zone);
            self.paths.push("spec.timer.time_zone");
        } else if let Some(name) = &args.zone.zone {
            self.timer.time_zone.clone_from(name);
            self.paths.push("spec.timer.time_zone");
        }
        let at = match &schedule.at {
            Some(text) => {
                let zone = zone::zone(zone_name, &zone::zones())?;
                Some(timer::at_realtime(zone::time(text, &zone)?))
            }
            None => None,
        };
        let others = [
            (
                schedule.after.map(timer_spec::Schedule::After),
                "spec.timer.after",
            ),
            (
                schedule.every.map(timer_spec::Schedule::Every),
                "spec.timer.every",
            ),
            (at, "spec.timer.at_realtime"),
        ];
        for (given, path) in others {
            if given.is_some() {
                self.timer.schedule = given;
                self.paths.extend([path, "spec.timer.time_zone"]);
                self.timer.time_zone.clear();
            }
        }
        if args.slack.is_some() {
            self.timer.slack = args.slack;
            self.paths.push("spec.timer.slack");
        }
        if args.splay.is_some() {
            self.timer.splay = args.splay;
            self.paths.push("spec.timer.splay");
        }
        if args.pause || args.resume {
            self.timer.paused = args.pause;
            self.paths.push("spec.timer.paused");
        }
        Ok(())
    }

    fn of_process(&mut self, args: &Update) {
        let nothing = prost_types::Duration::default();
        if args.timeout.is_some() {
            self.process.timeout = args.timeout.filter(|timeout| *timeout != nothing);
            self.paths.push("spec.process.timeout");
        }
        if let Some(at_end) = args.at_end.as_deref() {
            let at_end = match at_end {
                "keep" => AtEnd::Keep,
                _ => AtEnd::KillTree,
            };
            self.process.at_end = at_end.into();
            self.paths.push("spec.process.at_end");
        }
        if args.kill_grace.is_some() {
            self.process.kill_grace = args.kill_grace;
            self.paths.push("spec.process.kill_grace");
        }
        if let Some(signal) = &args.stop_signal {
            self.process.stop_signal.clone_from(signal);
            self.paths.push("spec.process.stop_signal");
        }
    }

    fn of_path(&mut self, args: &OfPath) {
        let nothing = prost_types::Duration::default();
        if args.recursive || args.no_recursive {
            self.path.recursive = args.recursive;
            self.paths.push("spec.path.recursive");
        }
        if !args.only.is_empty() {
            let kinds = args.only.iter().map(|only| PathChangeKind::from(*only));
            self.path.kinds = kinds.map(i32::from).collect();
            self.paths.push("spec.path.kinds");
        }
        if !args.ignore.is_empty() {
            let patterns = args.ignore.iter().filter(|pattern| !pattern.is_empty());
            self.path.ignore = patterns.cloned().collect();
            self.paths.push("spec.path.ignore");
        }
        if args.window.is_some() {
            self.path.window = args.window.filter(|window| *window != nothing);
            self.paths.push("spec.path.window");
        }
        if args.poll.is_some() {
            self.path.poll = args.poll.filter(|poll| *poll != nothing);
            self.paths.push("spec.path.poll");
        }
    }

    /// Returns the specification; none if no field of one is named.
    fn spec(&self) -> Result<Option<watch_spec::Spec>, Failure> {
        let of = |kind: &str| self.paths.iter().any(|path| path.starts_with(kind));
        match (of("spec.timer."), of("spec.process."), of("spec.path.")) {
            (true, false, false) => Ok(Some(watch_spec::Spec::Timer(self.timer.clone()))),
            (false, true, false) => Ok(Some(watch_spec::Spec::Process(self.process.clone()))),
            (false, false, true) => Ok(Some(watch_spec::Spec::Path(self.path.clone()))),
            (false, false, false) => Ok(None),
            _ => {
                let several =
                    "these options are for different kinds of watches: timers, processes, paths";
                Err(Failure::plain(several).code(USAGE))
            }
        }
    }
}

pub(super) async fn run(session: &Session, args: Update) -> Outcome {
    let mut made = Made::default();
    let kept = match (&args.schedule.cron, &args.zone.zone) {
        (Some(_), None) => timer::zone_of(&lookup::watch(session, &args.watch).await?),
        _ => None,
    };
    made.of_timer(&args, kept.as_deref())?;
    made.of_process(&args);
    made.of_path(&args.path);
    let spec = made.spec()?;
    let mut paths = made.paths;
    if !args.labels.is_empty() {
        paths.push("labels");
    }
    if args.finished_ttl.is_some() {
        paths.push("finished_ttl");
    }
    if paths.is_empty() {
        let advice = "see `evloopctl update --help`";
        return Err(Failure::plain("nothing is to be changed")
            .advice(advice)
            .code(USAGE));
    }
    let request = UpdateWatchRequest {
        r#loop: session.loop_ref.clone(),
        watch: Some(args.watch),
        spec: spec.map(|spec| WatchSpec { spec: Some(spec) }),
        labels: args.labels.into_iter().collect(),
        finished_ttl: args.finished_ttl,
        update_mask: Some(FieldMask {
            paths: paths.into_iter().map(str::to_owned).collect(),
        }),
        request_id: String::new(),
    };
    let done = answer(session.watches().update_watch(request).await)?;
    if session.json {
        output::messages([&done])?;
        return Ok(0);
    }
    let text = match &done.updated {
        Some(cursor) => parse::cursor_text(cursor),
        None => "nothing changed".to_owned(),
    };
    output::line(&text)?;
    if let (Some(watch), true) = (&done.watch, done.updated.is_some()) {
        timer::note_next(watch)?;
    }
    Ok(0)
}
