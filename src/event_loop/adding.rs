//! Adding watches, from outside the loop's thread.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::Handle;
use super::command::Command;
use super::mailbox::Reply;
use super::record::Registration;
use super::registration::{Admission, Registered, Ticket};
use crate::error::{Error, Result};
use crate::journal::Reader;
use crate::proto;
use crate::watch::{Build, Order, Prepare};

/// A watch that was asked for and is there.
#[derive(Debug)]
pub struct Added {
    /// How it is.
    pub watch: proto::Watch,
    /// It was there before.
    pub existed: bool,
    /// Of a new watch, if one was asked for: attached from its first event on.
    pub reader: Option<Reader>,
}

impl Handle {
    /// Adds a watch. What can fail before it exists fails here and leaves nothing.
    ///
    /// # Errors
    /// A taken name, a limit, the system's refusal, a closed loop, a full mailbox.
    pub async fn add(&self, registration: Registration, order: Order) -> Result<Added> {
        self.begin_add(registration, order).await?.await
    }

    /// As [`Self::add`], up to where it has its place in the order of what is done. What it
    /// gives back waits for the rest.
    ///
    /// # Errors
    /// A closed loop, a full mailbox. The others come later.
    pub async fn begin_add(
        &self,
        registration: Registration,
        order: Order,
    ) -> Result<impl Future<Output = Result<Added>> + Send + use<>> {
        let (build, mut later) = match order {
            Order::Now(build) => (Some(build), None),
            Order::Later(prepare) => (None, Some(prepare)),
        };
        let spec = registration.spec.as_deref();
        let bytes = spec.map_or(0, prost::Message::encoded_len);
        let held = self.mailbox.hold(bytes)?;
        let mut answer = self.ask_room(&registration, build).await?;
        let on = self.clone();
        Ok(async move {
            let _held = held;
            loop {
                let (admission, unused) = on.hear(answer).await?;
                match (admission, later.take()) {
                    (Admission::Exists(registered), _) => return Ok((*registered).into()),
                    (Admission::Ticket(ticket), Some(prepare)) => {
                        return on.prepare(registration, prepare, ticket).await;
                    }
                    (Admission::Ticket(_), None) => {
                        return Err(Error::Internal("a reservation was left"));
                    }
                    (Admission::Undecided(decided), prepare) => {
                        later = prepare;
                        // An error means decided as well: the other registration is gone.
                        let _ = decided.await;
                        answer = on.ask_room(&registration, unused).await?;
                    }
                }
            }
        })
    }

    async fn ask_room(
        &self,
        registration: &Registration,
        build: Option<Build>,
    ) -> Result<oneshot::Receiver<Result<(Admission, Option<Build>)>>> {
        let registration = Box::new(registration.clone());
        self.ask(|reply| Command::Add {
            registration,
            build,
            reply,
        })
        .await
    }

    /// Prepares the watch off the loop's thread and makes it exist, both in one job: nothing
    /// can come between them.
    async fn prepare(
        &self,
        registration: Registration,
        prepare: Prepare,
        ticket: Ticket,
    ) -> Result<Added> {
        let services = Arc::clone(&self.services);
        let (reply, answer) = Reply::new();
        let job = move || {
            let watch = prepare(&services)?;
            ticket.complete(|ticket| Command::Register {
                ticket,
                registration: Box::new(registration),
                watch,
                reply,
            });
            Ok::<_, Error>(())
        };
        self.services.starters.run(job).await??;
        self.hear(answer).await.map(Into::into)
    }
}

impl From<Registered> for Added {
    fn from(registered: Registered) -> Self {
        Self {
            watch: registered.watch,
            existed: registered.existed,
            reader: registered.reader,
        }
    }
}
