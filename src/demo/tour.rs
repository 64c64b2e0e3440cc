//! Act 2: one watch of each kind on every backend, each loop with one ordered stream.

use super::screen::{DIM, Rows, line};
use super::{Failure, Stage, Total, require};
use crate::history::{Recording, Summary, check};
use crate::proto::{GoodbyeReason, SubscribeResponse, subscribe_response};

/// The backends of Linux, each with a policy that allows it. A loop made with a named backend gets
/// that backend or is an error.
const BACKENDS: [(&str, &str); 4] = [
    ("epoll", "default"),
    ("poll", "default"),
    ("select", "default"),
    ("io_uring", "proactor"),
];

/// The kinds of events that every history must have, and how many at least.
const PROGRAMME: [(&str, u64); 9] = [
    ("timer_fired", 1),
    ("ready", 2),
    ("data", 3),
    ("eof", 2),
    ("accepted", 1),
    ("connected", 1),
    ("signal", 1),
    ("posted", 1),
    ("removed", WATCHES),
];

/// The number of watches: timer, pipe, socket, listener, the two ends of a connection, signal.
const WATCHES: u64 = 7;

/// Runs the act, and adds the checker's summaries to `total`.
pub(super) async fn play(stage: &Stage<'_>, total: &mut Total) -> Result<(), Failure> {
    stage.screen.act(
        "2. One of everything, on every backend, in one ordered stream",
        &[
            "A client makes a loop and watches a timer, a pipe, a socket of its own that it hands over, a TCP echo",
            "and a signal, and posts. Every event is shown as it comes; a row begins where the watch changes.",
        ],
    )?;
    let here = stage.backends().await?;
    for (backend, policy) in BACKENDS {
        match here.iter().find(|b| b.name == backend) {
            Some(missing) if !missing.available => {
                let reason = &missing.unavailable_reason;
                line(&format!(
                    "{DIM}{backend} is not available: {reason}{DIM:#}\n"
                ))?;
            }
            _ => on_backend(stage, backend, policy, total).await?,
        }
    }
    Ok(())
}

async fn on_backend(
    stage: &Stage<'_>,
    backend: &str,
    policy: &str,
    total: &mut Total,
) -> Result<(), Failure> {
    let (loop_id, recording) = watch(stage, backend, policy).await?;
    let used = stage.backend_of(loop_id).await?;
    require(used == backend, || {
        format!("the loop uses {used} instead of {backend}")
    })?;
    let summary = check(&recording).map_err(|violation| Failure::Broken {
        of: "the tour",
        violation,
    })?;
    on_programme(backend, &summary)?;
    let Summary {
        events,
        watches,
        lost,
        ..
    } = summary;
    line(&format!(
        "{DIM}{backend}: {events} events of {watches} watches, {lost} lost{DIM:#}\n"
    ))?;
    total.add(&summary, used);
    Ok(())
}

/// Starts the client, and shows and records the events that it passes on.
async fn watch(
    stage: &Stage<'_>,
    backend: &str,
    policy: &str,
) -> Result<(u64, Recording), Failure> {
    use subscribe_response::Message::{Batch, Goodbye, Header};

    let mut client = stage.client("tour", &[backend, policy])?;
    let mut rows = Rows::new(&stage.screen, backend)?;
    let (mut loop_id, mut recording) = (0, Recording::default());
    loop {
        match client
            .next::<SubscribeResponse>()
            .await?
            .and_then(|r| r.message)
        {
            Some(Header(header)) => {
                loop_id = header.loop_id;
                recording = Recording::new(header.epoch, header.after);
            }
            Some(Batch(batch)) => {
                for event in &batch.events {
                    rows.event(event)?;
                }
                recording.batches.push(batch);
            }
            Some(Goodbye(bye)) if bye.reason() == GoodbyeReason::LoopClosed => break,
            other => {
                return Err(Failure::Missing(match other {
                    Some(Goodbye(bye)) => format!("the stream ended early: {}", bye.message),
                    _ => format!("the client on {backend} ended before the tour did"),
                }));
            }
        }
    }
    drop(rows);
    let status = client.ended().await?;
    require(status.success(), || format!("the client failed: {status}"))?;
    Ok((loop_id, recording))
}

fn on_programme(backend: &str, summary: &Summary) -> Result<(), Failure> {
    require(summary.watches == WATCHES, || {
        format!(
            "{backend}: {} watches instead of {WATCHES}",
            summary.watches
        )
    })?;
    for (kind, least) in PROGRAMME {
        let seen = summary.kinds.get(kind).copied().unwrap_or_default();
        require(seen >= least, || {
            format!("{backend}: {seen} of {least} events {kind:?}")
        })?;
    }
    Ok(())
}
