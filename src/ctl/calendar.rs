//! `calendar`: tells when an expression of cron or of systemd is due. It needs no daemon.

use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use super::failure::{Failure, Outcome, USAGE};
use super::output;
use super::zone;
use crate::calendar::{TimeError, read_time};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl calendar '30 2 * * *'                      # of cron
  evloopctl calendar 'Mon..Fri 09:00'                  # of systemd
  evloopctl calendar '0 3 * * SUN' --zone Asia/Tokyo -n 5
  evloopctl calendar '30 2 * * *' --after 2027-03-27 --zone Europe/Berlin

Five or six words, or one that begins with @, are an expression of cron, with the second first if \
there are six; anything else is one of systemd's OnCalendar=. The zone is the one in the expression, \
else --zone, else TZ, else the host's.";

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
    let zones = zone::zones();
    let zone = zone::zone(args.zone.as_deref(), &zones)?;
    let now = Timestamp::now();
    let after = match &args.after {
        Some(text) => match read_time(text, now, &zone) {
            Ok(at) => at.instant,
            Err(TimeError::Past { instant, .. }) => instant,
            Err(error) => return Err(Failure::plain(error.to_string()).code(USAGE)),
        },
        None => now,
    };
    let calendar = zone::calendar(zone::expression(&args.text)?, zone, &zones, after)?;
    let due = calendar.upcoming(after).take(args.count.into());
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
        output::line(&zone::shown_with_wait(due, calendar.zone(), now))?;
    }
    Ok(0)
}
