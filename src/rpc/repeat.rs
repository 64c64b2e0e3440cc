//! Mutations that are safe to repeat: the answer of the first is kept under its `request_id`
//! and given to every repeat, over whichever connection it comes.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Code;

use super::convert::TEXT_MAX;
use super::{Api, Asker, status};
use crate::access::Principal;
use crate::error::{Error, Result};
use crate::proto::*;

/// A request that may carry a `request_id`.
pub(super) trait Repeatable: Message + Clone + 'static {
    /// Empty if it carries none.
    fn request_id(&self) -> &str;
}

macro_rules! repeatable {
    ($($request:ident),+ $(,)?) => {$(
        impl Repeatable for $request {
            fn request_id(&self) -> &str {
                &self.request_id
            }
        }
    )+};
}

repeatable! {
    AbortRequest, AckRequest, AddWatchRequest, BatchAddWatchesRequest, CloseLoopRequest,
    CreateConsumerRequest, DeleteConsumerRequest, NewEventLoopRequest, PauseReadingRequest,
    PostRequest, RearmRequest, RemoveWatchRequest, ResumeReadingRequest, RunLoopRequest, RunRequest,
    SendSignalRequest, SetEventLoopPolicyRequest, SetEventLoopRequest, StopLoopRequest,
    TakeFdRequest, WriteEofRequest, WriteRequest,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    principal: Principal,
    method: &'static str,
    request_id: String,
}

/// Encoded, or refused.
type Answer = Result<Bytes>;

#[derive(Debug)]
struct Entry {
    /// Of the request's content.
    digest: u64,
    /// `None` while the first is under way.
    answer: watch::Receiver<Option<Answer>>,
    number: u64,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<Key, Entry>,
    /// In the order they came, with their numbers: what was forgotten since is still among them.
    order: VecDeque<(Instant, Key, u64)>,
    next: u64,
}

/// The answers that are kept.
#[derive(Debug)]
pub struct Repeats {
    max: usize,
    ttl: Duration,
    table: Mutex<Table>,
}

/// The part of the first with a `request_id`.
struct First {
    repeats: Arc<Repeats>,
    key: Key,
    number: u64,
    answer: watch::Sender<Option<Answer>>,
}

enum Turn {
    First(First, watch::Receiver<Option<Answer>>),
    Repeat(watch::Receiver<Option<Answer>>),
}

impl Repeats {
    /// Keeps the answers of at most `max` mutations, each for `ttl`.
    #[must_use]
    pub fn new(max: usize, ttl: Duration) -> Arc<Self> {
        Arc::new(Self {
            max,
            ttl,
            table: Mutex::default(),
        })
    }

    fn turn(self: &Arc<Self>, key: Key, digest: u64) -> Result<Turn> {
        let now = Instant::now();
        let mut table = self.table.lock();
        table.expire(now, self.ttl);
        if let Some(known) = table.entries.get(&key) {
            if known.digest != digest {
                let allowed = "is known from a request with another content";
                return Err(Error::invalid("request_id", allowed));
            }
            return Ok(Turn::Repeat(known.answer.clone()));
        }
        if table.entries.len() >= self.max && !table.forget_oldest() {
            return Err(Error::limit("limits.requests", self.max as u64));
        }
        let (sender, answer) = watch::channel(None);
        table.next += 1;
        let number = table.next;
        let entry = Entry {
            digest,
            answer: answer.clone(),
            number,
        };
        table.entries.insert(key.clone(), entry);
        table.order.push_back((now, key.clone(), number));
        let first = First {
            repeats: Arc::clone(self),
            key,
            number,
            answer: sender,
        };
        Ok(Turn::First(first, answer))
    }
}

impl Table {
    fn expire(&mut self, now: Instant, ttl: Duration) {
        while let Some((at, ..)) = self.order.front()
            && now.duration_since(*at) >= ttl
        {
            if let Some((_, key, number)) = self.order.pop_front() {
                self.forget(&key, number);
            }
        }
    }

    fn forget(&mut self, key: &Key, number: u64) {
        if self.entries.get(key).is_some_and(|e| e.number == number) {
            self.entries.remove(key);
        }
    }

    /// Forgets the oldest answer; false if all are still under way.
    fn forget_oldest(&mut self) -> bool {
        let answered = |(_, key, number): &(Instant, Key, u64)| {
            let entry = self.entries.get(key).filter(|e| e.number == *number);
            entry.is_none_or(|entry| entry.answer.borrow().is_some())
        };
        let Some(at) = self.order.iter().position(answered) else {
            return false;
        };
        if let Some((_, key, number)) = self.order.remove(at) {
            self.forget(&key, number);
        }
        self.entries.len() < self.order.len() + 1
    }
}

impl First {
    fn done(self, answer: Answer) {
        let passing = |error: &Error| {
            let code = status::describe(error).code;
            matches!(code, Code::ResourceExhausted | Code::Unavailable)
        };
        if answer.as_ref().is_err_and(passing) {
            self.repeats.table.lock().forget(&self.key, self.number);
        }
        // Nobody may wait for it any more.
        let _ = self.answer.send(Some(answer));
    }
}

async fn answered(mut answer: watch::Receiver<Option<Answer>>) -> Answer {
    let lost = Error::Internal("the answer was lost");
    match answer.wait_for(Option::is_some).await {
        Ok(answer) => answer.clone().unwrap_or(Err(lost)),
        Err(_) => Err(lost),
    }
}

/// Of the content, and of whose loop an absent one means.
fn digest(asker: &Asker, request: &impl Message) -> u64 {
    let mut hasher = DefaultHasher::new();
    asker.caller.session.hash(&mut hasher);
    request.encode_to_vec().hash(&mut hasher);
    hasher.finish()
}

impl Api {
    /// Does a mutation, or gives the answer of the one that it repeats. With a
    /// `request_id` it goes on to its end, whatever becomes of the call.
    ///
    /// # Errors
    /// The mutation's own; a `request_id` that is too long, or known from another content.
    pub(super) async fn once<Req, Res, Work>(
        &self,
        asker: Asker,
        method: &'static str,
        request: Req,
        work: impl FnOnce(Self, Asker, Req) -> Work,
    ) -> Result<Res>
    where
        Req: Repeatable,
        Res: Message + Default,
        Work: Future<Output = Result<Res>> + Send + 'static,
    {
        let request_id = request.request_id();
        if request_id.is_empty() {
            return work(self.clone(), asker, request).await;
        }
        if request_id.len() > TEXT_MAX {
            return Err(Error::invalid("request_id", "at most 128 bytes"));
        }
        let key = Key {
            principal: asker.caller.principal.clone(),
            method,
            request_id: request_id.to_owned(),
        };
        let answer = match self.repeats.turn(key, digest(&asker, &request))? {
            Turn::Repeat(answer) => answer,
            Turn::First(first, answer) => {
                let work = work(self.clone(), asker, request);
                tokio::spawn(async move {
                    let answer = work.await;
                    first.done(answer.map(|answer| answer.encode_to_vec().into()));
                });
                answer
            }
        };
        let answer = answered(answer).await?;
        Res::decode(answer).map_err(|_| Error::Internal("a kept answer does not decode"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> Key {
        Key {
            principal: Principal::uid(1),
            method: "Post",
            request_id: id.to_owned(),
        }
    }

    fn first(turn: Turn) -> First {
        match turn {
            Turn::First(first, _) => first,
            Turn::Repeat(_) => panic!("it is a repeat"),
        }
    }

    async fn repeated(turn: Turn) -> Answer {
        match turn {
            Turn::First(..) => panic!("it is no repeat"),
            Turn::Repeat(answer) => answered(answer).await,
        }
    }

    #[tokio::test]
    async fn a_repeat_gets_the_first_answer_and_another_content_is_refused() {
        let repeats = Repeats::new(4, Duration::from_secs(60));
        let begun = first(repeats.turn(key("a"), 1).unwrap());
        assert!(repeats.turn(key("a"), 2).is_err());
        let waiting = repeats.turn(key("a"), 1).unwrap();
        begun.done(Ok(Bytes::from_static(b"x")));
        assert_eq!(&repeated(waiting).await.unwrap()[..], b"x");
        let later = repeats.turn(key("a"), 1).unwrap();
        assert_eq!(&repeated(later).await.unwrap()[..], b"x");
    }

    #[tokio::test]
    async fn a_refusal_is_kept_unless_it_may_pass() {
        let repeats = Repeats::new(4, Duration::from_secs(60));
        first(repeats.turn(key("a"), 1).unwrap()).done(Err(Error::wrong_state("no")));
        assert!(repeated(repeats.turn(key("a"), 1).unwrap()).await.is_err());
        first(repeats.turn(key("b"), 1).unwrap()).done(Err(Error::Draining));
        first(repeats.turn(key("b"), 1).unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_is_bounded_by_number_and_time() {
        let repeats = Repeats::new(2, Duration::from_secs(60));
        let under_way = first(repeats.turn(key("a"), 1).unwrap());
        first(repeats.turn(key("b"), 1).unwrap()).done(Ok(Bytes::new()));
        // The oldest answer gives way, not what is under way.
        first(repeats.turn(key("c"), 1).unwrap()).done(Ok(Bytes::new()));
        assert!(matches!(repeats.turn(key("a"), 1), Ok(Turn::Repeat(_))));
        let also = first(repeats.turn(key("b"), 1).unwrap());
        assert!(matches!(
            repeats.turn(key("d"), 1),
            Err(Error::Limit { .. })
        ));
        under_way.done(Ok(Bytes::new()));
        also.done(Ok(Bytes::new()));
        tokio::time::advance(Duration::from_secs(61)).await;
        first(repeats.turn(key("a"), 2).unwrap());
        assert_eq!(repeats.table.lock().order.len(), 1);
    }
}
