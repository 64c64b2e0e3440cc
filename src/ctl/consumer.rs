//! `consumer`: named readers, whose place the daemon keeps and holds events for.

use clap::Subcommand;
use serde_json::{Value, json};

use super::failure::{Failure, Outcome};
use super::json::with;
use super::output::{self, BAD, DIM, GOOD, NAME, PLAIN, Table, cell, plain};
use super::parse::{self, cursor_text};
use super::render::local_time;
use super::session::{Session, answer};
use crate::proto::{
    Consumer, CreateConsumerRequest, Cursor, DeleteConsumerRequest, GetConsumerRequest, IfExists,
    ListConsumersRequest, StartAt, create_consumer_request::Start,
};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl consumer create audit --oldest --ttl 7days
  evloopctl events -f --consumer audit
  evloopctl consumer list

What a consumer has not acknowledged stays in the journal; when that is full, sources are not
read until it is. One that nobody reads as is deleted after its time.";

/// Most consumers in one page of a list.
const PAGE_SIZE: u32 = 1000;

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
        #[arg(value_parser = parse::name)]
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
        #[arg(value_parser = parse::name)]
        name: String,
    },
}

pub(super) async fn run(session: &Session, verb: Verb) -> Outcome {
    match verb {
        Verb::List => list(session).await?,
        Verb::Show { name } => {
            let request = GetConsumerRequest {
                r#loop: session.loop_ref.clone(),
                name,
            };
            let got = session.events().get_consumer(request).await;
            let consumer = answer("consumer show", got)?.consumer;
            output::object(session.json, &json(&consumer.unwrap_or_default()))?;
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
            let consumer = answer("consumer create", made)?.consumer;
            output::object(session.json, &json(&consumer.unwrap_or_default()))?;
        }
        Verb::Delete { name } => {
            let request = DeleteConsumerRequest {
                r#loop: session.loop_ref.clone(),
                name,
                ..DeleteConsumerRequest::default()
            };
            let deleted = session.events().delete_consumer(request).await;
            let acked = answer("consumer delete", deleted)?.acked;
            let acked = cursor_text(&acked.unwrap_or_default());
            output::object(session.json, &json!({"acked": acked}))?;
        }
    }
    Ok(0)
}

async fn list(session: &Session) -> Result<(), Failure> {
    let mut request = ListConsumersRequest {
        r#loop: session.loop_ref.clone(),
        page_size: PAGE_SIZE,
        ..ListConsumersRequest::default()
    };
    let mut found = Vec::new();
    loop {
        let page = session.events().list_consumers(request.clone()).await;
        let page = match answer("consumer list", page) {
            // The context has no loop yet, and so no consumers: nothing to complain of.
            Err(failure) if failure.reason == "NO_LOOP_IN_CONTEXT" => break,
            page => page?,
        };
        found.extend(page.consumers);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    if session.json {
        let values: Vec<_> = found.iter().map(json).collect();
        return output::json_lines(&values);
    }
    table(&found).print()
}

fn table(consumers: &[Consumer]) -> Table {
    let heads = [
        "NAME",
        "ACKED",
        "LAG EVENTS",
        "LAG BYTES",
        "LOST",
        "HELD",
        "EXPIRES",
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
            plain(&consumer.lag_events),
            plain(&consumer.lag_bytes),
            cell(&consumer.lost_events, lost_style),
            cell(&held, held_style),
            plain(&local_time(consumer.expires)),
        ]);
    }
    table
}

fn json(c: &Consumer) -> Value {
    let value = json!({
        "name": c.name,
        "acked": cursor_text(&c.acked.clone().unwrap_or_default()),
        "lag_events": c.lag_events,
        "lag_bytes": c.lag_bytes,
        "lost_events": c.lost_events,
        "held": c.held,
        "ttl": c.ttl.unwrap_or_default().to_string(),
        "takeovers": c.takeovers,
    });
    let time = |t: Option<prost_types::Timestamp>| t.map(|t| t.to_string().into());
    let value = with(value, "created", time(c.created));
    with(value, "expires", time(c.expires))
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
        let text = anstream::adapter::strip_str(&table(std::slice::from_ref(&consumer)).text())
            .to_string();
        let words: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(words, ["audit", "40", "12", "900", "2", "yes"]);
        let value = json(&consumer);
        assert_eq!(value["acked"], "0123456789abcdef0123456789abcdef:40");
        assert_eq!(value.get("expires"), None);
    }
}
