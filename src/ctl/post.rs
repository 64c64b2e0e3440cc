//! `post`: appends an event of the caller's own to a loop.

use bytes::Bytes;
use clap::Args;

use super::failure::Outcome;
use super::output;
use super::parse;
use super::session::{Session, answer};
use crate::proto::{Post as Message, PostRequest};

pub(super) const EXAMPLES: &str = "Example:
  evloopctl post deploy '{\"version\": 7}'

Readers of the loop's events see it as `posted`, after all earlier events.";

/// Options of `post`.
#[derive(Debug, Args)]
pub(super) struct Post {
    /// The event's topic, any text
    topic: String,
    /// The event's payload, any text
    #[arg(default_value = "")]
    payload: String,
    /// A number of your own that the event carries
    #[arg(long, default_value_t = 0)]
    user_data: u64,
}

pub(super) async fn run(session: &Session, args: Post) -> Outcome {
    let post = Message {
        topic: args.topic,
        payload: Bytes::from(args.payload),
        user_data: args.user_data,
        ..Message::default()
    };
    let request = PostRequest {
        r#loop: session.loop_ref.clone(),
        posts: vec![post],
        ..PostRequest::default()
    };
    let posted = answer(session.events().post(request).await)?;
    if session.json {
        output::messages([&posted])?;
    } else {
        output::line(&parse::cursor_text(&posted.cursor.unwrap_or_default()))?;
    }
    Ok(0)
}
