//! Adds watches, from outside the loop's thread.

use tokio::sync::oneshot;

use super::Handle;
use super::command::Command;
use super::record::Registration;
use super::registration::{AddOutcome, Registered};
use crate::error::Result;
use crate::journal::Reader;
use crate::proto;
use crate::watch::Order;

/// The result of adding a watch.
#[derive(Debug)]
pub struct Added {
    /// The state of the watch.
    pub watch: proto::Watch,
    /// Whether the watch existed before the call.
    pub existed: bool,
    /// A reader that is attached to the watch from its first event on, if the watch is new and the
    /// registration asked for a reader.
    pub reader: Option<Reader>,
}

impl Handle {
    /// Adds a watch. An error before the watch exists is returned here, and leaves nothing behind.
    ///
    /// # Errors
    /// The name is taken, a limit is reached, the system refused something, the loop is closed, or
    /// its mailbox is full.
    pub async fn add(&self, registration: Registration, order: Order) -> Result<Added> {
        self.begin_add(registration, order).await?.await
    }

    /// Begins to add a watch as [`Self::add`] does, and returns once the command is in the loop's
    /// mailbox. The returned future waits for the result.
    ///
    /// # Errors
    /// The loop is closed, or its mailbox is full. The future returns the other errors.
    pub async fn begin_add(
        &self,
        mut registration: Registration,
        order: Order,
    ) -> Result<impl Future<Output = Result<Added>> + Send + use<>> {
        let spec = registration.spec.as_deref();
        let bytes = spec.map_or(0, prost::Message::encoded_len);
        registration.memory = self.mailbox.take_memory(bytes)?;
        let mut answer = self.request_room(registration, order).await?;
        let on = self.clone();
        Ok(async move {
            loop {
                match on.await_reply(answer).await? {
                    AddOutcome::Exists(registered) => return Ok((*registered).into()),
                    AddOutcome::Undecided(decided, asked) => {
                        // An error also means that the other registration is decided: it no longer
                        // exists.
                        let _ = decided.await;
                        let (registration, order) = *asked;
                        answer = on.request_room(registration, order).await?;
                    }
                }
            }
        })
    }

    async fn request_room(
        &self,
        registration: Registration,
        order: Order,
    ) -> Result<oneshot::Receiver<Result<AddOutcome>>> {
        let registration = Box::new(registration);
        self.send(|reply| Command::Add {
            registration,
            order,
            reply,
        })
        .await
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
