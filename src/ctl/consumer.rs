//! `consumer`: named readers. The daemon keeps their place, and the events after it.

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
use crate::proto::{
    Consumer, CreateConsumerRequest, Cursor, DeleteConsumerRequest, IfExists, StartAt,
    create_consumer_request::Start,
};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl consumer create audit --oldest --ttl 7days
  evloopctl events -f --consumer audit
  evloopctl consumer list

Events that a consumer has not acknowledged stay in the journal. When the journal is full of \
them, sources are not read until it acknowledges some, or is deleted. A consumer that nobody reads \
as is deleted when its --ttl is over.";

/// What to do with consumers.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// The consumers of the loop
    #[command(after_help = "Example:\n  evloopctl consumer list --json | jq .lag_events")]
    List,
    /// All about one consumer
    #[command(after_help = "Example:\n  evloopctl consumer show audit")]
    Show {
        /// Its name
        #[arg(value_parser = parse::name, add = complete::consumers())]
        name: String,
    },
    /// Make a consumer: from here on, what comes after its place is held
    #[command(after_help = "Example:\n  evloopctl consumer create audit --oldest --ttl 7days")]
    Create {
        /// Its name
        #[arg(value_parser = parse::name)]
        name: String,
        /// Its place: before the oldest event that is held [default: after the newest]
        #[arg(long)]
        oldest: bool,
        /// Its place: after this position
        #[arg(long, value_name = "EPOCH:SEQ", value_parser = parse::cursor, conflicts_with = "oldest")]
        after: Option<Cursor>,
        /// How long it is kept while nobody reads as it [default: the policy's]
        #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
        ttl: Option<prost_types::Duration>,
        /// If it exists, be content, wherever it is
        #[arg(long)]
        if_missing: bool,
    },
    /// Forget a consumer: what only it held may go; who reads as it is ended
    #[command(after_help = "Example:\n  evloopctl consumer delete audit")]
    Delete {
        /// Its name
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
                output::line(&format!("it had acknowledged {acked}"))?;
            }
        }
    }
    Ok(0)
}

/// One consumer: as JSON, or all about it.
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

/// All about it.
fn sheet(c: &Consumer) -> Sheet {
    let name = printable(&c.name);
    let (state, style) = if c.held {
        ("somebody reads as it", GOOD)
    } else {
        ("nobody reads as it", DIM)
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
    let ttl = std::time::Duration::try_from(c.ttl.unwrap_or_default());
    sheet.line("is kept", ttl.map_or_else(|_| String::new(), span));
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
