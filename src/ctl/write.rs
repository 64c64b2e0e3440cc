//! `write`: writes bytes to a process's stdin, a connection or a pipe, or sends a datagram.

use std::net::IpAddr;

use bytes::Bytes;
use clap::Args;
use rustix::net::{AddressFamily, SocketType, netdevice};
use tokio::io::AsyncReadExt as _;
use tokio::sync::Notify;

use super::complete;
use super::description;
use super::failure::{Failure, Outcome};
use super::feed::{Feed, Item, Source, cut_short};
use super::feeder::{Ended, Feeder};
use super::lookup;
use super::parse;
use super::session::{Session, answer};
use crate::event::PAYLOAD_MAX;
use crate::kinds::WatchKind;
use crate::proto::{
    EventKind, Filter, SendToRequest, SocketAddress, StartAt, SubscribeRequest, Watch, WatchRef,
    subscribe_request,
};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl write shell 'echo hello'$'\\n'
  evloopctl write sink --eof < big.file
  evloopctl write @7 hello               # by id
  evloopctl write dns hello --to 192.0.2.1:7 --source 192.0.2.9

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
    #[arg(long, value_name = "ADDRESS", value_parser = parse::peer, conflicts_with = "eof")]
    to: Option<SocketAddress>,
    /// Send the datagram from this address of the host [default: the kernel chooses]
    #[arg(long, value_name = "IP", conflicts_with = "eof")]
    source: Option<IpAddr>,
    /// Send the datagram from this interface, by name or number [default: the kernel chooses]
    #[arg(long, value_name = "INTERFACE", value_parser = interface, conflicts_with = "eof")]
    interface: Option<u32>,
}

/// Returns the number of an interface.
fn interface(text: &str) -> Result<u32, String> {
    let index = match text.parse() {
        Ok(number) => Some(number),
        Err(_) => index_of(text).ok(),
    };
    let index = index.filter(|index| *index > 0);
    index.ok_or_else(|| "there is no interface of this name".to_owned())
}

fn index_of(name: &str) -> rustix::io::Result<u32> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    netdevice::name_to_index(socket, name)
}

pub(super) async fn run(session: &Session, args: Write) -> Outcome {
    let watch = lookup::watch(session, &args.watch).await?;
    let id = watch.watch_id;
    if watch.watch_kind == WatchKind::Datagram.name() {
        return send_to(session, id, args).await;
    }
    let name = parse::watch_name(&args.watch);
    for (given, option) in [
        (args.to.is_some(), "--to"),
        (args.source.is_some(), "--source"),
        (args.interface.is_some(), "--interface"),
    ] {
        if given {
            let what = format!("only a `watch udp` takes {option}");
            return Err(Failure::new(name, what).code(2));
        }
    }
    if let Some(failure) = takes_none(&name, &watch) {
        return Err(failure);
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
        ended = sent => match ended.map_err(|failure| closed_stdin(failure, &watch))? {
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
        peer: args.to,
        source_ip: args.source.map_or_else(String::new, |ip| ip.to_string()),
        source_interface_index: args.interface.unwrap_or(0),
        ..SendToRequest::default()
    };
    answer(session.transports().send_to(request).await)?;
    Ok(0)
}

/// Returns the failure of a write to a kind of watch that takes no bytes.
fn takes_none(name: &str, watch: &Watch) -> Option<Failure> {
    let takes = [
        WatchKind::Process,
        WatchKind::Connection,
        WatchKind::WritePipe,
    ];
    if takes.iter().any(|kind| watch.watch_kind == kind.name()) {
        return None;
    }
    let kind = watch.watch_kind.replace('_', " ");
    let failure = Failure::new(name, format!("it is a {kind}, which takes no bytes"));
    if watch.watch_kind != WatchKind::Listener.name() {
        return Some(failure);
    }
    let advice = "write to one of its connections: `evloopctl watch list --kind connection`";
    Some(failure.advice(advice))
}

/// Names the watch in the failure of a write, with advice if it is a process whose stdin is closed.
fn closed_stdin(failure: Failure, watch: &Watch) -> Failure {
    if failure.reason != "WRONG_STATE" {
        return failure;
    }
    let failure = failure.about(description::reference(watch));
    if !description::is_process(watch) {
        return failure;
    }
    failure.advice(
        "a process takes input only if it was run with -i, and only until its stdin is ended",
    )
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
