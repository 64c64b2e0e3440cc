//! Asks the daemon for watches, loops and consumers: one by its name, or all of them.

use super::description::is_process;
use super::exit::no_process;
use super::failure::{Failure, complain};
use super::parse;
use super::session::{Session, answer};
use super::style::printable;
use crate::proto::{
    Consumer, GetConsumerRequest, GetLoopRequest, GetWatchRequest, ListConsumersRequest,
    ListLoopsRequest, ListWatchesRequest, Loop, LoopRef, Watch, WatchRef,
};

/// The most watches, loops or consumers in one answer of the daemon; lists are read page after page.
const PAGE_SIZE: u32 = 1000;

/// Returns one watch of the session's loop.
pub(super) async fn watch(session: &Session, watch: &WatchRef) -> Result<Watch, Failure> {
    let request = GetWatchRequest {
        r#loop: session.loop_ref.clone(),
        watch: Some(watch.clone()),
    };
    let got = answer(session.watches().get_watch(request).await)?;
    Ok(got.watch.unwrap_or_default())
}

/// Returns the process that a verb joins. Processes are joined by their names.
///
/// # Errors
/// The watch is not a process, or has no name.
pub(super) async fn process(session: &Session, asked: &WatchRef) -> Result<Watch, Failure> {
    let found = watch(session, asked).await?;
    if !is_process(&found) {
        return Err(no_process(&parse::watch_name(asked), &found));
    }
    if found.name.is_empty() {
        let id = parse::watch_name(asked);
        let advice = format!("`evloopctl events --watch {id}` prints its events");
        return Err(Failure::new(id, "the process has no name").advice(advice));
    }
    Ok(found)
}

/// Returns all watches of the session's loop that match `request`; none if the context has no loop.
pub(super) async fn watches(
    session: &Session,
    request: ListWatchesRequest,
) -> Result<Vec<Watch>, Failure> {
    Ok(list_watches(session, request).await?.unwrap_or_default())
}

/// As [`watches`], with a note on stderr if the context has no loop although its owner has loops.
pub(super) async fn watches_or_note(
    session: &Session,
    request: ListWatchesRequest,
) -> Result<Vec<Watch>, Failure> {
    let found = list_watches(session, request).await?;
    or_note(session, found).await
}

async fn list_watches(
    session: &Session,
    request: ListWatchesRequest,
) -> Result<Option<Vec<Watch>>, Failure> {
    let mut request = ListWatchesRequest {
        r#loop: session.loop_ref.clone(),
        page_size: PAGE_SIZE,
        ..request
    };
    let mut found = Vec::new();
    loop {
        let page = session.watches().list_watches(request.clone()).await;
        let page = match answer(page) {
            Err(failure) if failure.reason == "NO_LOOP_IN_CONTEXT" => return Ok(None),
            page => page?,
        };
        found.extend(page.watches);
        if page.next_page_token.is_empty() {
            return Ok(Some(found));
        }
        request.page_token = page.next_page_token;
    }
}

/// Returns one loop.
pub(super) async fn loop_of(session: &Session, asked: LoopRef) -> Result<Loop, Failure> {
    let request = GetLoopRequest {
        r#loop: Some(asked),
    };
    let found = answer(session.loops().get_loop(request).await)?;
    Ok(found.r#loop.unwrap_or_default())
}

/// Returns all loops of the caller. With `include_closed`, also closed loops whose events can still be read.
pub(super) async fn loops(session: &Session, include_closed: bool) -> Result<Vec<Loop>, Failure> {
    let mut request = ListLoopsRequest {
        page_size: PAGE_SIZE,
        include_closed,
        ..ListLoopsRequest::default()
    };
    let mut found = Vec::new();
    loop {
        let page = answer(session.loops().list_loops(request.clone()).await)?;
        found.extend(page.loops);
        if page.next_page_token.is_empty() {
            return Ok(found);
        }
        request.page_token = page.next_page_token;
    }
}

/// Returns one consumer of the session's loop.
pub(super) async fn consumer(session: &Session, name: String) -> Result<Consumer, Failure> {
    let request = GetConsumerRequest {
        r#loop: session.loop_ref.clone(),
        name,
    };
    let got = session.events().get_consumer(request).await;
    Ok(answer(got)?.consumer.unwrap_or_default())
}

/// Returns all consumers of the session's loop; none if the context has no loop.
pub(super) async fn consumers(session: &Session) -> Result<Vec<Consumer>, Failure> {
    Ok(list_consumers(session).await?.unwrap_or_default())
}

/// As [`consumers`], with a note on stderr if the context has no loop although its owner has loops.
pub(super) async fn consumers_or_note(session: &Session) -> Result<Vec<Consumer>, Failure> {
    let found = list_consumers(session).await?;
    or_note(session, found).await
}

async fn list_consumers(session: &Session) -> Result<Option<Vec<Consumer>>, Failure> {
    let mut request = ListConsumersRequest {
        r#loop: session.loop_ref.clone(),
        page_size: PAGE_SIZE,
        ..ListConsumersRequest::default()
    };
    let mut found = Vec::new();
    loop {
        let page = session.events().list_consumers(request.clone()).await;
        let page = match answer(page) {
            Err(failure) if failure.reason == "NO_LOOP_IN_CONTEXT" => return Ok(None),
            page => page?,
        };
        found.extend(page.consumers);
        if page.next_page_token.is_empty() {
            return Ok(Some(found));
        }
        request.page_token = page.next_page_token;
    }
}

/// Returns what was found on the loop of the context. If the context has no loop, writes a note on stderr that names the
/// caller's loops.
async fn or_note<T>(session: &Session, found: Option<Vec<T>>) -> Result<Vec<T>, Failure> {
    if found.is_none() {
        let loops = loops(session, false).await.unwrap_or_default();
        let names: Vec<_> = loops.iter().map(|found| printable(&found.name)).collect();
        if !names.is_empty() {
            let names = names.join(", ");
            complain(format_args!(
                "no loop is set for your context; `evloopctl loop set NAME` sets one; you have {names}"
            ));
        }
    }
    Ok(found.unwrap_or_default())
}
