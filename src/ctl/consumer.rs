//! `consumer`: makes, shows and deletes consumers. A consumer is a named reader whose position the daemon keeps, together
//! with the events after it.

use clap::Subcommand;

use super::complete;
use super::failure::{Failure, Outcome};
use super::lookup;
use super::output;
use super::parse::{self, cursor_text};
use super::session::{Session, answer};
use super::style::{BAD, DIM, GOOD, NAME, PLAIN, printable};
use super::table::{Sheet, Table, cell, plain};
use super::units::{counted, date_and_age, grouped, size, span};
use crate::clock;
use crate::proto::{
    Consumer, CreateConsumerRequest, Cursor, DeleteConsumerRequest, IfExists, StartAt,
    create_consumer_request::Start,
};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl consumer create audit --oldest --ttl 7days
  evloopctl events -f --consumer audit
  evloopctl consumer list

Events that a consumer has not acknowledged stay in the journal. When the journal is full of \
them, the loop reads no source until the consumer acknowledges some, or is deleted. A consumer is \
deleted when nobody has read as it for the time of --ttl.";

/// Commands for consumers.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List the consumers of the loop
    #[command(after_help = "Example:\n  evloopctl consumer list --json | jq .lag_events")]
    List,
    /// Show one consumer
    #[command(after_help = "Example:\n  evloopctl consumer show audit")]
    Show {
        /// The consumer's name
        #[arg(value_parser = parse::name, add = complete::consumers())]
        name: String,
    },
    /// Make a consumer: the loop keeps all events after the consumer's position
    #[command(after_help = "Example:\n  evloopctl consumer create audit --oldest --ttl 7days")]
    Create {
        /// The consumer's name
        #[arg(value_parser = parse::name)]
        name: String,
        /// Start before the oldest event in the journal [default: after the newest event]
        #[arg(long)]
        oldest: bool,
        /// Start after this position
        #[arg(long, value_name = "EPOCH:SEQ", value_parser = parse::cursor, conflicts_with = "oldest")]
        after: Option<Cursor>,
        /// How long the consumer is kept while nobody reads as it [default: as the policy says]
        #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
        ttl: Option<prost_types::Duration>,
        /// Do nothing if the consumer exists, whatever its position; without it, that is an error
        #[arg(long)]
        if_missing: bool,
    },
    /// Delete a consumer: the journal no longer keeps events for it, and the stream of its reader ends
    #[command(after_help = "Example:\n  evloopctl consumer delete audit")]
    Delete {
        /// The consumer's name
        #[arg(value_parser = parse::name, add = complete::consumers())]
        name: String,
    },
}

pub(super) async fn run(session: &Session, verb: Verb) -> Outcome {
    match verb {
        Verb::List => list(session).await?,
        Verb::Show { name } => {
            show(session, &lookup::consumer(session, name).await?)?;
        }
        Verb::Create {
            name,
            oldest,
            after,
            ttl,
            if_missing,
        } => {
            let start = match after {
                Some(cursor) => Start::After(cursor),
                None if oldest => Start::StartAt(StartAt::Oldest.into()),
                None => Start::StartAt(StartAt::Now.into()),
            };
            let if_exists = if if_missing {
                IfExists::Return
            } else {
                IfExists::Fail
            };
            let request = CreateConsumerRequest {
                r#loop: session.loop_ref.clone(),
                name,
                start: Some(start),
                ttl,
                if_exists: if_exists.into(),
                ..CreateConsumerRequest::default()
            };
            let made = session.events().create_consumer(request).await;
            let consumer = answer(made)?.consumer;
            show(session, &consumer.unwrap_or_default())?;
        }
        Verb::Delete { name } => {
            let request = DeleteConsumerRequest {
                r#loop: session.loop_ref.clone(),
                name,
                ..DeleteConsumerRequest::default()
            };
            let deleted = session.events().delete_consumer(request).await;
            let deleted = answer(deleted)?;
            if session.json {
                output::messages([&deleted])?;
            } else {
                let acked = cursor_text(&deleted.acked.unwrap_or_default());
                output::line(&format!("deleted; the consumer had acknowledged {acked}"))?;
            }
        }
    }
    Ok(0)
}

/// Prints one consumer: as JSON, or as a sheet.
pub(super) fn show(session: &Session, consumer: &Consumer) -> Result<(), Failure> {
    if session.json {
        return output::messages([consumer]);
    }
    sheet(consumer).print()
}

async fn list(session: &Session) -> Result<(), Failure> {
    let found = lookup::consumers_or_note(session).await?;
    if session.json {
        return output::messages(&found);
    }
    table(&found).print()
}

fn table(consumers: &[Consumer]) -> Table {
    let heads = [
        "NAME", "ACKED", "BEHIND", "HOLDS", "LOST", "HELD", "EXPIRES",
    ];
    let mut table = Table::new(&heads);
    for consumer in consumers {
        let (held, held_style) = if consumer.held {
            ("yes", GOOD)
        } else {
            ("no", DIM)
        };
        let lost_style = if consumer.lost_events > 0 { BAD } else { PLAIN };
        table.row([
            cell(&consumer.name, NAME),
            plain(&consumer.acked.clone().unwrap_or_default().seq),
            plain(&grouped(consumer.lag_events)),
            plain(&size(consumer.lag_bytes)),
            cell(&consumer.lost_events, lost_style),
            cell(&held, held_style),
            plain(&date_and_age(consumer.expires)),
        ]);
    }
    table
}

/// Returns all values of a consumer, as labelled lines.
fn sheet(c: &Consumer) -> Sheet {
    let name = printable(&c.name);
    let (state, style) = if c.held {
        ("has a reader", GOOD)
    } else {
        ("has no reader", DIM)
    };
    let mut sheet = Sheet::new(format!(
        "{NAME}{name}{NAME:#}  consumer, {style}{state}{style:#}"
    ));
    let events = counted(c.lag_events, "event", "events");
    sheet.line("behind by", format!("{events}, {}", size(c.lag_bytes)));
    if c.lost_events > 0 {
        sheet.styled("lost", counted(c.lost_events, "event", "events"), BAD);
    }
    sheet.line("since", date_and_age(c.created));
    let ttl = clock::span(&c.ttl.unwrap_or_default());
    sheet.line("ttl", ttl.map_or_else(String::new, span));
    sheet.line("expires", date_and_age(c.expires));
    sheet.line("taken over", counted(c.takeovers, "time", "times"));
    let acked = c.acked.as_ref().map_or_else(String::new, cursor_text);
    sheet.styled("acked", acked, DIM);
    sheet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_place_lag_and_loss() {
        let epoch = "0123456789abcdef0123456789abcdef".to_owned();
        let consumer = Consumer {
            name: "audit".to_owned(),
            acked: Some(Cursor { epoch, seq: 40 }),
            lag_events: 12,
            lag_bytes: 900,
            lost_events: 2,
            held: true,
            ..Consumer::default()
        };
        let text = table(std::slice::from_ref(&consumer)).text(None);
        let text = anstream::adapter::strip_str(&text).to_string();
        let words: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(words, ["audit", "40", "12", "900", "B", "2", "yes"]);
        let text = sheet(&consumer).text(None);
        assert!(
            text.contains("0123456789abcdef0123456789abcdef:40"),
            "{text}"
        );
        assert!(
            text.contains("2 events") && !text.contains("expires"),
            "{text}"
        );
    }
}
