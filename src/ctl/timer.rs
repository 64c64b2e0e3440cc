//! `every` and `after`: add a timer and print its ticks.

use clap::Args;

use super::failure::Outcome;
use super::parse;
use super::session::Session;
use super::watch::add::{self, Registration};
use crate::proto::{TimerSpec, timer_spec, watch_spec};

pub(super) const EVERY_EXAMPLES: &str = "Examples:
  evloopctl every 5s
  evloopctl every 1m --name minute    # stays until `evloopctl rm minute`

Without a name the timer ends with this command.";

pub(super) const AFTER_EXAMPLES: &str = "Example:
  evloopctl after 90s && echo done

Without a name the timer ends with this command.";

/// Options of `every` and `after`.
#[derive(Debug, Args)]
pub(super) struct Timer {
    /// The interval or the delay: `100ms`, `5s`, `1h 30m`; a number alone is seconds
    #[arg(value_parser = parse::duration)]
    duration: prost_types::Duration,
    /// The timer's name; if a timer has it, that timer is joined
    #[arg(long, value_parser = parse::name)]
    name: Option<String>,
}

pub(super) async fn every(session: &Session, args: Timer) -> Outcome {
    let schedule = timer_spec::Schedule::Every(args.duration);
    run(session, schedule, args.name).await
}

pub(super) async fn after(session: &Session, args: Timer) -> Outcome {
    let schedule = timer_spec::Schedule::After(args.duration);
    run(session, schedule, args.name).await
}

async fn run(session: &Session, schedule: timer_spec::Schedule, name: Option<String>) -> Outcome {
    let spec = watch_spec::Spec::Timer(TimerSpec {
        schedule: Some(schedule),
    });
    let added = add::request(session, spec, &Registration::in_foreground(name)).await?;
    add::follow(session, &added).await
}
