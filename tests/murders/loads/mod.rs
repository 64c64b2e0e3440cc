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
pub(crate) fn start(field: &Arc<Field>, tasks: &mut JoinSet<()>) {
    begin(field, tasks, "children::fast", children::fast);
    begin(field, tasks, "children::slow", children::slow);
    begin(field, tasks, "children::brief", children::brief);
    begin(field, tasks, "children::echo", children::echo);
    begin(field, tasks, "connections::tcp", connections::tcp);
    begin(field, tasks, "connections::unix", connections::unix);
    begin(field, tasks, "connections::made_tcp", connections::made_tcp);
    begin(
        field,
        tasks,
        "connections::made_unix",
        connections::made_unix,
    );
    begin(field, tasks, "datagrams::received", datagrams::received);
    begin(field, tasks, "datagrams::sent", datagrams::sent);
    begin(field, tasks, "timers::ticks", timers::ticks);
    begin(field, tasks, "timers::alarms", timers::alarms);
    begin(field, tasks, "terminals::typed", terminals::typed);
    begin(field, tasks, "tls::listener", tls::listener);
    begin(field, tasks, "slots::pipes", slots::pipes);
    begin(field, tasks, "registrations::single", registrations::single);
    begin(
        field,
        tasks,
        "registrations::batches",
        registrations::batches,
    );
    begin(field, tasks, "registrations::posts", registrations::posts);
}

fn begin<F>(
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
    let load = load(field.hand());
    tasks.spawn(async move {
        load.await;
        field.site.running.lock().remove(&name);
    });
}
