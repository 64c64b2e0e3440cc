//! Adding watches, from outside the loop's thread.

use tokio::sync::oneshot;

use super::Handle;
use super::command::Command;
use super::record::Registration;
use super::registration::{AddOutcome, Registered};
use crate::error::Result;
use crate::journal::Reader;
use crate::proto;
use crate::watch::Order;

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
        let spec = registration.spec.as_deref();
        let bytes = spec.map_or(0, prost::Message::encoded_len);
        let held = self.mailbox.hold(bytes)?;
        let mut answer = self.ask_for(registration, order).await?;
        let on = self.clone();
        Ok(async move {
            let _held = held;
            loop {
                match on.hear(answer).await? {
                    AddOutcome::Exists(registered) => return Ok((*registered).into()),
                    AddOutcome::Undecided(decided, asked) => {
                        // An error means decided as well: the other registration is gone.
                        let _ = decided.await;
                        let (registration, order) = *asked;
                        answer = on.ask_for(registration, order).await?;
                    }
                }
            }
        })
    }

    async fn ask_for(
        &self,
        registration: Registration,
        order: Order,
    ) -> Result<oneshot::Receiver<Result<AddOutcome>>> {
        let registration = Box::new(registration);
        self.ask(|reply| Command::Add {
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
