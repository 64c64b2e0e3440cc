//! The queue of messages to a loop. Commands of clients wait for room in it, for a bounded time.
//! Notices and commands of the daemon itself need no room, because their number is bounded by what
//! causes them.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

use super::command::Command;
use super::waker::{Waker, WakeupFd};
use crate::access::ProcessKey;
use crate::driver::Key;
use crate::error::{Error, Result};
use crate::memory::{Budget, Taken, Use};
use crate::sync::Mutex;
use crate::watch::{Notice, Notifier};

/// Commands up to this many bytes take no memory from the budget: only their number is bounded.
const SMALL: usize = 1024;

pub(super) enum Message {
    /// A command of a client, which holds a permit and the memory for its size.
    Command(Command, Option<Taken>),
    /// A command of the daemon, which must not fail because the mailbox is full. It needs no
    /// permit: there is one for each ticket, and the limits on watches bound the tickets; and one
    /// for each call of [`Handle::call_internal`](super::Handle), which waits for the reply.
    Internal(Command),
    Notice(Key, Notice),
    /// A client process has ended.
    ClientEnded(ProcessKey),
    /// The database of time zones or the host's own zone was replaced.
    ZonesChanged,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(..) => f.write_str("Command"),
            Self::Internal(_) => f.write_str("Internal"),
            Self::Notice(key, notice) => write!(f, "Notice({key:?}, {notice:?})"),
            Self::ClientEnded(process) => write!(f, "ClientEnded({process:?})"),
            Self::ZonesChanged => f.write_str("ZonesChanged"),
        }
    }
}

#[derive(Debug)]
pub(super) struct Mailbox {
    queue: Mutex<VecDeque<Message>>,
    room: Semaphore,
    wait: Duration,
    budget: Arc<Budget>,
    pub(super) waker: Waker,
}

impl Mailbox {
    pub(super) fn new(
        capacity: usize,
        wait: Duration,
        budget: &Arc<Budget>,
    ) -> rustix::io::Result<(Arc<Self>, WakeupFd)> {
        let (waker, wakeup) = Waker::new()?;
        let mailbox = Self {
            queue: Mutex::default(),
            room: Semaphore::new(capacity),
            wait,
            budget: Arc::clone(budget),
            waker,
        };
        Ok((Arc::new(mailbox), wakeup))
    }

    /// Takes memory from the budget for a command of this many bytes. The command holds it until it
    /// is carried out, also while it waits for room and after its sender has gone. Returns `None`
    /// for small commands, which are bounded by their number.
    ///
    /// # Errors
    /// [`Error::Limit`]: the budget is used up.
    pub(super) fn take_memory(&self, bytes: usize) -> Result<Option<Taken>> {
        if bytes <= SMALL {
            return Ok(None);
        }
        self.budget.take(Use::Commands, bytes as u64).map(Some)
    }

    /// Queues a command. Waits for room at most as long as the configuration allows. The command
    /// holds memory for its size until it is carried out.
    pub(super) async fn send_command(&self, name: &str, command: Command) -> Result<()> {
        let held = self.take_memory(command.weight())?;
        let permit = match tokio::time::timeout(self.wait, self.room.acquire()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(closed(name)),
            Err(_) => {
                return Err(Error::MailboxFull {
                    name: name.to_owned(),
                    waited_ms: u64::try_from(self.wait.as_millis()).unwrap_or(u64::MAX),
                });
            }
        };
        permit.forget();
        self.push(Message::Command(command, held));
        Ok(())
    }

    pub(super) fn push(&self, message: Message) {
        let mut queue = self.queue.lock();
        if self.room.is_closed() {
            return;
        }
        queue.push_back(message);
        drop(queue);
        self.waker.kick();
    }

    /// Moves at most `max` messages out of the queue, in order.
    pub(super) fn take(&self, max: usize, into: &mut Vec<Message>) {
        let mut queue = self.queue.lock();
        let count = queue.len().min(max);
        into.extend(queue.drain(..count));
        drop(queue);
        let commands = into.iter().filter(|m| matches!(m, Message::Command(..)));
        self.room.add_permits(commands.count());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.lock().is_empty()
    }

    /// Returns whether it takes messages, and has none.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.lock().is_empty() && !self.room.is_closed()
    }

    /// Refuses further messages and drops those that wait, which tells their senders.
    pub(super) fn close(&self) {
        let mut queue = self.queue.lock();
        // Closed under the lock, so that no message is queued afterwards.
        self.room.close();
        let waiting = std::mem::take(&mut *queue);
        drop(queue);
        // Dropped without the lock, because commands may own watches, and dropping those takes
        // time.
        drop(waiting);
    }
}

pub(super) fn closed(name: &str) -> Error {
    Error::LoopClosed {
        name: name.to_owned(),
    }
}

/// The channel for the result of a command, used once its effect is committed.
#[derive(Debug)]
pub(super) struct Reply<T>(oneshot::Sender<Result<T>>);

impl<T> Reply<T> {
    pub(super) fn new() -> (Self, oneshot::Receiver<Result<T>>) {
        let (sender, receiver) = oneshot::channel();
        (Self(sender), receiver)
    }

    pub(super) fn send(self, result: Result<T>) {
        // If the caller no longer waits, the effect stands; the events show it.
        let _ = self.0.send(result);
    }
}

/// A closure that sends one result. It is called once the events of the turn can be read.
pub(super) type Deferred = Box<dyn FnOnce() + Send>;

/// A closure that checks or converts a result on the loop's thread. It returns the closure that
/// sends the reply.
pub(super) struct Visit<T>(Box<dyn FnOnce(Result<T>) -> Deferred + Send>);

impl<T> Visit<T> {
    pub(super) fn run(self, result: Result<T>) -> Deferred {
        (self.0)(result)
    }
}

impl<U: Send + 'static> Reply<U> {
    /// Returns a visit that converts the result with `look` and sends it to this reply.
    pub(super) fn after<T>(self, look: impl FnOnce(T) -> Result<U> + Send + 'static) -> Visit<T> {
        Visit(Box::new(move |result| {
            let result = result.and_then(look);
            Box::new(move || self.send(result))
        }))
    }
}

/// Sends notices to the watches of one loop.
#[derive(Debug)]
pub(super) struct LoopNotifier(pub(super) Arc<Mailbox>);

impl Notifier for LoopNotifier {
    fn notify(&self, to: Key, notice: Notice) {
        self.0.push(Message::Notice(to, notice));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Posted;
    use crate::event_loop::Posting;

    #[tokio::test]
    async fn commands_to_a_loop_that_does_not_come_to_them_stay_within_the_memory() {
        const LIMIT: u64 = 64 << 20;
        const POST: usize = 3 << 20;
        let budget = Budget::new(LIMIT);
        let wait = Duration::from_secs(60);
        let (mailbox, _bell) = Mailbox::new(1000, wait, &budget).unwrap();
        let mut waiting = 0;
        let refused = loop {
            let posted = Posted {
                payload: vec![0; POST].into(),
                ..Posted::default()
            };
            let postings = vec![Posting {
                posted,
                user_data: 0,
            }];
            let (reply, _) = Reply::new();
            match mailbox
                .send_command("busy", Command::Post { postings, reply })
                .await
            {
                Ok(()) => waiting += 1,
                Err(refused) => break refused,
            }
        };
        let limit = "limits.memory";
        assert!(matches!(refused, Error::Limit { limit: name, .. } if name == limit));
        assert_eq!(budget.held(Use::Commands), waiting * POST as u64);
        assert!(waiting > 0 && budget.total() <= LIMIT);
        // Small commands are still accepted.
        assert!(mailbox.take_memory(SMALL).unwrap().is_none());
        mailbox.close();
        assert_eq!(budget.total(), 0);
    }
}
