//! `cron`, `at`, `every` and `after`: add a timer, say when it fires, and print its ticks.

use clap::Args;
use jiff::Timestamp;

use super::failure::{Failure, Outcome};
use super::output::note;
use super::parse;
use super::session::Session;
use super::watch::add::{self, Registration};
use super::zone;
use crate::calendar::{Calendar, Cron, Expression, OnCalendar, Zone};
use crate::proto::{TimerSpec, TimerStatus, Watch, timer_spec, watch, watch_spec};

pub(super) const EVERY_EXAMPLES: &str = "Examples:
  evloopctl every 5s
  evloopctl every 1m --name minute    # stays until `evloopctl rm minute`

Without a name the timer ends with this command. Time while the host is suspended counts.";

pub(super) const AFTER_EXAMPLES: &str = "Example:
  evloopctl after 90s && echo done

Without a name the timer ends with this command. Time while the host is suspended counts.";

pub(super) const AT_EXAMPLES: &str = "Examples:
  evloopctl at 02:00                          # the next 2 o'clock
  evloopctl at 'tomorrow 02:00' && echo done
  evloopctl at '2030-12-01 02:00' --zone Europe/Berlin --name winter
  evloopctl at 2030-12-01T02:00:00+01:00 --name winter

Without a name the timer ends with this command. It follows the clock when that is set.";

pub(super) const CRON_EXAMPLES: &str = "Examples:
  evloopctl cron '30 2 * * *' --name nightly  # stays until `evloopctl rm`
  evloopctl cron 'Mon..Fri 09:00'             # of systemd
  evloopctl cron '0 3 * * SUN' --zone Asia/Tokyo --splay 10m --name weekly
  evloopctl cron '@daily' --zone local --name daily

Five or six words, or one that begins with @, are an expression of cron, with the second first if \
there are six; anything else is one of systemd's OnCalendar=. The zone is the one in the expression, \
else --zone, else TZ, else the host's as it is now; --zone local follows the host. Without a name the \
timer ends with this command. `evloopctl calendar` tells more times and needs no daemon.";

/// How many times of a calendar are printed.
const TIMES: usize = 3;

/// Options of all timers.
#[derive(Debug, Default, Args)]
pub(super) struct Pace {
    /// The timer may fire up to this much later, together with others
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    slack: Option<prost_types::Duration>,
    /// The timer fires later by a part of this, always the same for this host and name
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    splay: Option<prost_types::Duration>,
    /// Do not let the timer fire until `evloopctl update NAME --resume`
    #[arg(long)]
    paused: bool,
}

/// The time zone of a timer.
#[derive(Debug, Default, Args)]
pub(super) struct InZone {
    /// The time zone, such as Europe/Berlin, or `local` to follow the host's [default: your TZ, else the host's]
    #[arg(long, value_name = "ZONE")]
    pub(super) zone: Option<String>,
}

impl Pace {
    /// Returns the specification of a timer with this schedule.
    pub(super) fn spec(&self, schedule: timer_spec::Schedule, time_zone: String) -> TimerSpec {
        TimerSpec {
            schedule: Some(schedule),
            time_zone,
            slack: self.slack,
            splay: self.splay,
            paused: self.paused,
        }
    }
}

/// Options of `every` and `after`.
#[derive(Debug, Args)]
pub(super) struct Timer {
    /// The interval or the delay: `100ms`, `5s`, `1h 30m`; a number alone is seconds
    #[arg(value_parser = parse::duration)]
    duration: prost_types::Duration,
    /// The timer's name; if a timer has it, that timer is joined
    #[arg(long, value_parser = parse::name)]
    name: Option<String>,
    #[command(flatten)]
    pace: Pace,
}

/// Options of `at`.
#[derive(Debug, Args)]
pub(super) struct At {
    /// The time: `02:00`, `tomorrow 02:00`, `2030-12-01 02:00`, or with an offset
    time: String,
    #[command(flatten)]
    zone: InZone,
    /// The timer's name; if a timer has it, that timer is joined
    #[arg(long, value_parser = parse::name)]
    name: Option<String>,
    #[command(flatten)]
    pace: Pace,
}

/// Options of `cron`.
#[derive(Debug, Args)]
pub(super) struct OfCalendar {
    /// The expression
    expression: String,
    #[command(flatten)]
    zone: InZone,
    /// The timer's name; if a timer has it, that timer is joined
    #[arg(long, value_parser = parse::name)]
    name: Option<String>,
    #[command(flatten)]
    pace: Pace,
}

pub(super) async fn every(session: &Session, args: Timer) -> Outcome {
    let schedule = timer_spec::Schedule::Every(args.duration);
    let spec = args.pace.spec(schedule, String::new());
    run(session, spec, args.name, Shown::here()?).await
}

pub(super) async fn after(session: &Session, args: Timer) -> Outcome {
    let schedule = timer_spec::Schedule::After(args.duration);
    let spec = args.pace.spec(schedule, String::new());
    run(session, spec, args.name, Shown::here()?).await
}

pub(super) async fn at(session: &Session, args: At) -> Outcome {
    let zone = zone::zone(args.zone.zone.as_deref(), &zone::zones())?;
    let at = zone::time(&args.time, &zone)?;
    let spec = args.pace.spec(at_realtime(at), String::new());
    run(session, spec, args.name, Shown::Zone(zone)).await
}

pub(super) async fn cron(session: &Session, args: OfCalendar) -> Outcome {
    let (schedule, time_zone, calendar) = calendar(&args.expression, args.zone.zone.as_deref())?;
    let spec = args.pace.spec(schedule, time_zone);
    run(session, spec, args.name, Shown::Calendar(calendar)).await
}

/// Returns the schedule of a timer at one time.
pub(super) fn at_realtime(at: Timestamp) -> timer_spec::Schedule {
    timer_spec::Schedule::AtRealtime(prost_types::Timestamp {
        seconds: at.as_second(),
        nanos: at.subsec_nanosecond(),
    })
}

/// Returns the schedule of a timer by a calendar, and the name of its time zone for the daemon.
pub(super) fn calendar(
    text: &str,
    zone_name: Option<&str>,
) -> Result<(timer_spec::Schedule, String, Calendar), Failure> {
    let zones = zone::zones();
    let zone = zone::zone(zone_name, &zones)?;
    let expression = zone::expression(text)?;
    let schedule = match &expression {
        Expression::Cron(_) => timer_spec::Schedule::Cron(text.to_owned()),
        Expression::OnCalendar(_) => timer_spec::Schedule::OnCalendar(text.to_owned()),
    };
    let time_zone = match expression.zone() {
        Some(_) => String::new(),
        None => zone::name_for_daemon(zone_name, &zone, &zones),
    };
    let calendar = zone::calendar(expression, zone, &zones, Timestamp::now())?;
    Ok((schedule, time_zone, calendar))
}

/// Returns the time zone of a watch that is a timer by a calendar, as the daemon would have to be told.
pub(super) fn zone_of(watch: &Watch) -> Option<String> {
    let (watch_spec::Spec::Timer(spec), Some(watch::Status::Timer(status))) =
        (watch.spec.as_ref()?.spec.as_ref()?, &watch.status)
    else {
        return None;
    };
    let expression = match spec.schedule.as_ref()? {
        timer_spec::Schedule::Cron(text) => Expression::from(text.parse::<Cron>().ok()?),
        timer_spec::Schedule::OnCalendar(text) => {
            Expression::from(text.parse::<OnCalendar>().ok()?)
        }
        _ => return None,
    };
    let has_own = expression.zone().is_some();
    Some(match (has_own, spec.time_zone.as_str()) {
        (true, _) => status.time_zone.clone(),
        (false, "") => zone::LOCAL.to_owned(),
        (false, name) => name.to_owned(),
    })
}

/// Says when a watch that is a timer fires next, on the clock of its zone.
pub(super) fn note_next(watch: &Watch) -> Result<(), Failure> {
    let Some(watch::Status::Timer(status)) = &watch.status else {
        return Ok(());
    };
    let of_timer = match status.time_zone.as_str() {
        "" => None,
        name => zone::zones().get(name).ok(),
    };
    let shown = match of_timer {
        Some(zone) => Shown::Zone(zone),
        None => Shown::here()?,
    };
    note_status(status, &shown);
    Ok(())
}

/// Says when a timer fires next. Returns that time.
fn note_status(status: &TimerStatus, shown: &Shown) -> Option<Timestamp> {
    let next = status
        .next
        .and_then(|next| Timestamp::new(next.seconds, next.nanos).ok());
    match next {
        Some(next) => {
            let next = zone::shown_with_wait(next, shown.zone(), Timestamp::now());
            note(&format!("next: {next}"));
        }
        None if status.paused => note("it is paused"),
        None => {}
    }
    next
}

/// How the next times of a timer are shown.
enum Shown {
    Zone(Zone),
    Calendar(Calendar),
}

impl Shown {
    /// On the clock of the environment or the host.
    fn here() -> Result<Self, Failure> {
        let zones = zone::zones();
        Ok(Self::Zone(zone::zone(None, &zones).or_else(|_| {
            zones
                .get("UTC")
                .map_err(|error| Failure::plain(error.to_string()))
        })?))
    }

    const fn zone(&self) -> &Zone {
        match self {
            Self::Zone(zone) => zone,
            Self::Calendar(calendar) => calendar.zone(),
        }
    }
}

/// Adds a timer, says when it fires next, and prints its events.
async fn run(session: &Session, spec: TimerSpec, name: Option<String>, shown: Shown) -> Outcome {
    // What comes later is later by its part of the splay, which only the daemon knows.
    let splayed = spec.splay.is_some();
    let spec = watch_spec::Spec::Timer(spec);
    let added = add::request(session, spec, &Registration::in_foreground(name)).await?;
    if let Some(watch::Status::Timer(status)) = added.watch.as_ref().and_then(|w| w.status.as_ref())
        && !session.json
    {
        let next = note_status(status, &shown);
        if let (Shown::Calendar(calendar), Some(next), false) = (&shown, next, splayed) {
            for later in calendar.upcoming(next).take(TIMES - 1) {
                note(&format!("then: {}", zone::shown(later, calendar.zone())));
            }
        }
    }
    add::follow(session, &added).await
}
