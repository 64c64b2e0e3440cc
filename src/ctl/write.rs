//! `write`: writes bytes to a process's stdin, a connection or a pipe, or sends a datagram.

use bytes::Bytes;
use clap::Args;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Notify;

use super::complete;
use super::failure::{Failure, Outcome};
use super::feed::{Feed, Item, Source, cut_short};
use super::feeder::{Ended, Feeder};
use super::lookup;
use super::parse;
use super::parse::Address;
use super::session::{Session, answer};
use crate::event::PAYLOAD_MAX;
use crate::kinds::WatchKind;
use crate::proto::{
    EventKind, Filter, SendToRequest, StartAt, SubscribeRequest, WatchRef, subscribe_request,
};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl write shell 'echo hello'$'\\n'
  evloopctl write sink --eof < big.file
  evloopctl write @7 hello               # by id
  evloopctl write dns hello --to 192.0.2.1:7

To a `watch udp` it sends all bytes as one datagram. \
It returns when the daemon has taken all bytes. Use one writer at a time: bytes of two writers \
mix. The exit code is 0, or 1 if reading stdin failed or the daemon did not take all bytes.";

/// Options of `write`.
#[derive(Debug, Args)]
pub(super) struct Write {
    /// The watch: its name, or `@7` for the id 7
    #[arg(value_parser = parse::watch_ref, add = complete::watches())]
    watch: WatchRef,
    /// The text to write [default: what stdin holds]
    text: Option<String>,
    /// End the outgoing direction afterwards: the reader gets end of file
    #[arg(long)]
    eof: bool,
    /// Send the datagram to IP:PORT, unix:PATH or unix:@NAME [default: the peer that the watch is connected to]
    #[arg(long, value_name = "ADDRESS", value_parser = parse::address, conflicts_with = "eof")]
    to: Option<Address>,
}

pub(super) async fn run(session: &Session, args: Write) -> Outcome {
    let watch = lookup::watch(session, &args.watch).await?;
    let id = watch.watch_id;
    if watch.watch_kind == WatchKind::Datagram.name() {
        return send_to(session, id, args).await;
    }
    if args.to.is_some() {
        let name = parse::watch_name(&args.watch);
        return Err(Failure::new(name, "only a `watch udp` takes --to").code(2));
    }
    let request = SubscribeRequest {
        r#loop: session.loop_ref.clone(),
        start: Some(subscribe_request::Start::StartAt(StartAt::Now.into())),
        filter: Some(Filter {
            watch_ids: vec![id],
            kinds: vec![EventKind::WriteResumed.into(), EventKind::Closed.into()],
            ..Filter::default()
        }),
        ..SubscribeRequest::default()
    };
    let resumed = Notify::new();
    let feeder = Feeder {
        session,
        loop_ref: session.loop_ref.clone(),
        watch: parse::by_id(id),
        resumed: &resumed,
        eof: args.eof,
    };
    let mut feed = Feed::new(session.clone(), Source::Subscribe(request));
    let sent = async {
        match &args.text {
            Some(text) => feeder.send(text.as_bytes()).await,
            None => feeder.send(tokio::io::stdin()).await,
        }
    };
    tokio::select! {
        ended = sent => match ended.map_err(|failure| closed_stdin(failure, &args.watch))? {
            Ended::Unreadable(error) => Err(Failure::new("stdin", error)),
            Ended::Sent | Ended::TerminalLost => Ok(0),
        },
        failure = listen(&mut feed, &resumed) => Err(failure),
    }
}

/// Sends the text, or all of stdin, as one datagram.
async fn send_to(session: &Session, id: u64, args: Write) -> Outcome {
    let data = match args.text {
        Some(text) => text.into_bytes(),
        None => {
            let mut data = Vec::new();
            // One byte more than the daemon takes, so that it refuses what is too long.
            let most = PAYLOAD_MAX as u64 + 1;
            let read = tokio::io::stdin().take(most).read_to_end(&mut data).await;
            read.map_err(|error| Failure::new("stdin", error))?;
            data
        }
    };
    let request = SendToRequest {
        r#loop: session.loop_ref.clone(),
        watch: Some(parse::by_id(id)),
        data: Bytes::from(data),
        peer: args.to.map(parse::endpoint).transpose()?,
        ..SendToRequest::default()
    };
    answer(session.transports().send_to(request).await)?;
    Ok(0)
}

/// Adds advice to the failure of a write to a process whose stdin is closed.
fn closed_stdin(failure: Failure, watch: &WatchRef) -> Failure {
    let name = parse::watch_name(watch);
    match failure.reason.as_str() {
        "WRONG_STATE" => {
            let advice = "a process takes input only if it was run with -i, and only until its stdin is ended";
            failure.about(name).advice(advice)
        }
        _ => failure,
    }
}

/// Notifies `resumed` of each event, after which the watch takes bytes again or is closed; the next write shows which.
/// Returns the failure that ends the stream of events.
async fn listen(feed: &mut Feed, resumed: &Notify) -> Failure {
    loop {
        match feed.next().await {
            Ok(Item::Batch(batch)) if !batch.events.is_empty() => resumed.notify_one(),
            Ok(Item::Header(_) | Item::Batch(_)) => {}
            Ok(Item::Goodbye(goodbye)) => match cut_short(&goodbye) {
                Some(failure) => return failure,
                None => return std::future::pending().await,
            },
            Err(failure) => return failure,
        }
    }
}
