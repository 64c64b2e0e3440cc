//! What the loops are loaded with. Each load is independent, and checks what it gets.

use std::future::Future;
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::field::{Field, Hand};

mod children;
mod connections;
mod datagrams;
mod registrations;
mod slots;
mod terminals;
mod timers;
mod tls;

pub(crate) use connections::port;

/// Starts all loads on a loop. They end once the site is over, with all that they have begun.
pub(crate) async fn start(field: &Arc<Field>, tasks: &mut JoinSet<()>) {
    begin(field, tasks, "children::fast", children::fast).await;
    begin(field, tasks, "children::slow", children::slow).await;
    begin(field, tasks, "children::brief", children::brief).await;
    begin(field, tasks, "children::echo", children::echo).await;
    begin(field, tasks, "connections::tcp", connections::tcp).await;
    begin(field, tasks, "connections::unix", connections::unix).await;
    begin(field, tasks, "connections::made_tcp", connections::made_tcp).await;
    begin(
        field,
        tasks,
        "connections::made_unix",
        connections::made_unix,
    )
    .await;
    begin(field, tasks, "datagrams::received", datagrams::received).await;
    begin(field, tasks, "datagrams::sent", datagrams::sent).await;
    begin(field, tasks, "timers::ticks", timers::ticks).await;
    begin(field, tasks, "timers::alarms", timers::alarms).await;
    begin(field, tasks, "terminals::typed", terminals::typed).await;
    begin(field, tasks, "tls::listener", tls::listener).await;
    begin(field, tasks, "slots::pipes", slots::pipes).await;
    begin(field, tasks, "registrations::single", registrations::single).await;
    begin(
        field,
        tasks,
        "registrations::batches",
        registrations::batches,
    )
    .await;
    begin(field, tasks, "registrations::posts", registrations::posts).await;
}

async fn begin<F>(
    field: &Arc<Field>,
    tasks: &mut JoinSet<()>,
    name: &'static str,
    load: impl FnOnce(Hand) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let field = Arc::clone(field);
    let name = (name, field.backend);
    field.site.running.lock().insert(name);
    let load = load(field.hand().await);
    tasks.spawn(async move {
        load.await;
        field.site.running.lock().remove(&name);
    });
}
