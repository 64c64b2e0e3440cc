//! `calendar`: tells when an expression of cron or of systemd is due. It needs no daemon.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use super::failure::{Failure, Outcome, USAGE, complain};
use super::output;
use super::units::span;
use crate::calendar::{Calendar, Cron, Expression, OnCalendar, TimeError, Zone, Zones, read_time};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl calendar '30 2 * * *'                      # of cron
  evloopctl calendar 'Mon..Fri 09:00'                  # of systemd
  evloopctl calendar '0 3 * * SUN' --zone Asia/Tokyo -n 5
  evloopctl calendar '30 2 * * *' --after 2027-03-27 --zone Europe/Berlin

Five or six words, or one that begins with @, are an expression of cron, with the second first if \
there are six; anything else is one of systemd's OnCalendar=. The zone is the one in the expression, \
else --zone, else TZ, else the host's.";

/// The database of zones of the host.
const ZONES: &str = "/usr/share/zoneinfo";
/// Fewer words than an expression of cron has are one of systemd.
const CRON_WORDS: usize = 5;

/// Options of `calendar`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The expression
    #[arg(value_name = "EXPRESSION")]
    text: String,
    /// The time zone, such as Europe/Berlin, or `local` for the host's [default: your TZ, else the host's]
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// How many times to print, at most 1000
    #[arg(short = 'n', long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    count: u16,
    /// Begin after this time, such as `tomorrow 02:00` or 2027-03-28 [default: now]
    #[arg(long, value_name = "TIME")]
    after: Option<String>,
}

pub(super) fn run(args: &Arguments, as_json: bool) -> Outcome {
    let refused = |error: &dyn std::fmt::Display| Failure::plain(error.to_string()).code(USAGE);
    let zones = Zones::open(Path::new(ZONES));
    let zone = zone(args, &zones)?;
    let now = Timestamp::now();
    let after = match &args.after {
        Some(text) => match read_time(text, now, &zone) {
            Ok(at) => at.instant,
            Err(TimeError::Past { instant, .. }) => instant,
            Err(error) => return Err(refused(&error)),
        },
        None => now,
    };
    let expression = expression(&args.text)?;
    if expression.is_more_than_once_a_minute() && !as_json {
        complain("it is due more than once a minute: six fields begin with the second");
    }
    let calendar = match expression.zone() {
        Some(name) => Calendar::new(expression.clone(), name, &zones),
        None => Ok(Calendar::in_zone(expression, zone)),
    };
    let calendar = calendar.map_err(|error| refused(&error))?;
    let first = calendar.first_after(after);
    first.map_err(|error| refused(&error))?;
    let due = calendar.upcoming(after).take(args.count.into());
    let time_zone = calendar.zone().time_zone();
    if as_json {
        let due: Vec<_> = due.map(|due| due.to_string()).collect();
        let value = json!({
            "expression": calendar.expression().text(),
            "zone": calendar.zone().name(),
            "zones": zones.version(),
            "due": due,
        });
        output::json_lines([&value])?;
        return Ok(0);
    }
    for due in due {
        let local = time_zone.to_datetime(due);
        let offset = time_zone.to_offset(due);
        let shown = format!("{} {offset}", local.strftime("%a %Y-%m-%d %H:%M:%S"));
        let wait = Duration::try_from(due.duration_since(now)).unwrap_or_default();
        let wait = if wait.is_zero() {
            String::new()
        } else {
            format!("  in {}", span(wait))
        };
        output::line(&format!("{shown} {}{wait}", calendar.zone().name()))?;
    }
    Ok(0)
}

/// Returns the zone of the command line, else of the environment, else of the host.
fn zone(args: &Arguments, zones: &Zones) -> Result<Zone, Failure> {
    let zone = match (&args.zone, std::env::var("TZ")) {
        (Some(name), _) => zones.get(name),
        (None, Ok(variable)) => zones.from_variable(&variable),
        (None, Err(_)) => zones.get("local"),
    };
    zone.map_err(|error| Failure::plain(error.to_string()).code(USAGE))
}

/// Reads an expression of either kind.
fn expression(text: &str) -> Result<Expression, Failure> {
    let is_cron =
        text.trim_start().starts_with('@') || text.split_whitespace().count() >= CRON_WORDS;
    let read = if is_cron {
        text.parse::<Cron>().map(Expression::from)
    } else {
        text.parse::<OnCalendar>().map(Expression::from)
    };
    read.map_err(|error| Failure::plain(error.to_string()).code(USAGE))
}
