//! `stop --all`: ends all processes and closes all loops. With `--force`, it needs no answer of the
//! daemon for the processes.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use serde_json::json;

use super::descendants::{Ended, Holder, Process};
use super::description;
use super::explain;
use super::failure::{Failure, Outcome};
use super::lookup;
use super::output;
use super::session::{Global, Session, answer};
use super::stop;
use super::style::printable;
use super::units::counted;
use crate::client;
use crate::proto::{
    CloseLoopRequest, GetServerInfoRequest, ListWatchesRequest, Loop, LoopRef, loop_ref,
};

/// The largest number of loops, and of processes of one, that end at the same time.
const AT_ONCE: usize = 32;
/// How long the daemon may take to close the loops of processes that were killed without it.
const ANSWER: Duration = Duration::from_secs(10);

/// Ends all processes of the caller's loops, closes the loops, and then ends what is left of the
/// daemon's processes: those that have outlived their watch, or have escaped from it.
pub(super) async fn run(session: &Session, signal: &str, time: prost_types::Duration) -> Outcome {
    let code = close_all(session, signal, time).await?;
    let info = answer(
        session
            .admin()
            .get_server_info(GetServerInfoRequest {})
            .await,
    )?;
    if !info.administrator {
        return Ok(code);
    }
    let socket = PathBuf::from(&info.socket);
    let time = Duration::try_from(time).unwrap_or_default();
    let rest = blocking(move || match Holder::find(&socket)? {
        // In another namespace, the pid is another one, or the socket is not seen.
        Some(holder) if holder.daemon == Some(info.pid) => holder.end(Some(time)),
        _ => Ok(Ended::default()),
    });
    Ok(code.max(told(session.json, &rest.await?)?))
}

/// Kills the processes of the daemon that listens at the socket, and then has it close its loops, if
/// it answers.
pub(super) async fn force(
    global: Global,
    verb: String,
    signal: &str,
    time: prost_types::Duration,
) -> Outcome {
    let as_json = global.json;
    let sockets = client::sockets(global.socket.as_deref());
    let shown: Vec<_> = sockets
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let killed = blocking(move || {
        for socket in sockets {
            if let Some(holder) = Holder::find(&socket)? {
                return holder.end(None).map(Some);
            }
        }
        Ok(None)
    });
    let Some(killed) = killed.await? else {
        let why = "no daemon that you may look at listens there; what one has left that has ended \
                   with its keeper is nobody's any more";
        return Err(Failure::new(shown.join(", "), why));
    };
    let code = told(as_json, &killed)?;
    let closed = async {
        let session = Session::open(global, verb).await.ok()?;
        Some(close_all(&session, signal, time).await)
    };
    match tokio::time::timeout(ANSWER, closed).await {
        Ok(Some(closed)) => Ok(code.max(closed?)),
        Ok(None) | Err(_) => {
            output::note(
                "the daemon does not answer: its loops are still there, without processes",
            );
            Ok(code)
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    done.map_err(|error| Failure::new("the daemon's processes", error.to_string()))
}

async fn close_all(session: &Session, signal: &str, time: prost_types::Duration) -> Outcome {
    let loops = lookup::loops(session, false).await?;
    let mut closings = stream::iter(&loops)
        .map(|found| async move { (found, close(session, found, signal, time).await) })
        .buffered(AT_ONCE);
    let mut code = 0;
    while let Some((found, closed)) = closings.next().await {
        let name = &found.full_name;
        match closed {
            Ok(ended) if session.json => {
                output::json_lines([&json!({"loop": name, "ended": ended})])?;
            }
            Ok(ended) => {
                let ended = match ended.is_empty() {
                    true => String::new(),
                    false => format!("; ended: {}", printable(&ended.join(", "))),
                };
                output::line(&format!("{} closed{ended}", printable(name)))?;
            }
            // Somebody else has closed it.
            Err(failure) if matches!(&*failure.reason, "LOOP_CLOSED" | "LOOP_NOT_FOUND") => {}
            Err(failure) => code = explain::report(session, failure.about(name.clone())).await,
        }
    }
    Ok(code)
}

/// Ends the processes of a loop, and closes it. Returns the processes that have ended.
async fn close(
    session: &Session,
    found: &Loop,
    signal: &str,
    time: prost_types::Duration,
) -> Result<Vec<String>, Failure> {
    let mut on = session.clone();
    on.loop_ref = Some(LoopRef {
        r#ref: Some(loop_ref::Ref::LoopId(found.loop_id)),
    });
    let watches = lookup::watches(&on, ListWatchesRequest::default()).await?;
    let running = watches
        .iter()
        .filter(|watch| description::is_process(watch) && description::end(watch).is_none());
    let mut stops = stream::iter(running)
        .map(|watch| async {
            let stopped = stop::stop(&on, description::watch_ref(watch), signal, time).await;
            (description::reference(watch), stopped)
        })
        .buffered(AT_ONCE);
    let (mut ended, mut failed) = (Vec::new(), None);
    while let Some((name, stopped)) = stops.next().await {
        match stopped {
            Ok(()) => ended.push(name),
            Err(failure) => failed = Some(failure),
        }
    }
    let request = CloseLoopRequest {
        r#loop: on.loop_ref.clone(),
        stop: true,
        ..CloseLoopRequest::default()
    };
    answer(on.loops().close_loop(request).await)?;
    match failed {
        Some(failure) => Err(failure),
        None => Ok(ended),
    }
}

/// Says what has ended without the daemon's help, and what has not.
fn told(as_json: bool, outcome: &Ended) -> Outcome {
    let named = |one: &Process| format!("pid {} ({})", one.pid, printable(&one.name));
    for one in &outcome.ended {
        if as_json {
            output::json_lines([&json!({"pid": one.pid, "name": one.name})])?;
        } else {
            output::line(&format!("{} ended", named(one)))?;
        }
    }
    let list = |all: &[Process]| all.iter().map(named).collect::<Vec<_>>().join(", ");
    let count = |all: &[Process]| {
        let count = u64::try_from(all.len()).unwrap_or(u64::MAX);
        counted(count, "process", "processes")
    };
    if !outcome.doubtful.is_empty() {
        output::note(&format!(
            "{} may be the daemon's or somebody else's, and were left alone: {}",
            count(&outcome.doubtful),
            list(&outcome.doubtful)
        ));
    }
    if outcome.left.is_empty() {
        return Ok(0);
    }
    let what = format!(
        "{} did not end: {}",
        count(&outcome.left),
        list(&outcome.left)
    );
    let advice = "such a process waits for a device, or runs as another user";
    Ok(Failure::new("stop --all", what).advice(advice).report())
}
