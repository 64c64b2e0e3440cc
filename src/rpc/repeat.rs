//! Makes mutations safe to repeat: the answer to the first request is kept under its `request_id`,
//! and every repeat gets that answer, on any connection.

use std::collections::{BTreeMap, HashMap};
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
use super::{Api, Requester, status};
use crate::access::Principal;
use crate::error::{Error, Result};
use crate::memory::{Budget, Taken, Use};
use crate::policy::ContextKey;
use crate::proto::*;

/// A request that may carry a `request_id`.
pub(super) trait Repeatable: Message + Clone + 'static {
    /// Returns the `request_id`; empty if there is none.
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
    CreateConsumerRequest, DeleteConsumerRequest, JoinGroupRequest, LeaveGroupRequest,
    NewEventLoopRequest, PauseReadingRequest, PostRequest, RearmRequest, RemoveWatchRequest,
    ResizePtyRequest, ResumeReadingRequest, RunLoopRequest, RunRequest, SendSignalRequest, SendToRequest,
    SetEventLoopPolicyRequest, SetEventLoopRequest, SetWaterMarksRequest, StartTlsRequest, StopLoopRequest,
    StopProcessRequest, TakeFdRequest, UpdateWatchRequest, WriteEofRequest, WriteRequest,
}

/// The kept answers take at most one part in this many of `limits.memory`.
const PART: u64 = 8;
/// Bytes that are counted for an answer beside its own.
const ENTRY: u64 = 512;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    principal: Principal,
    /// The context whose loop is meant if the request names none.
    context: Option<ContextKey>,
    method: &'static str,
    request_id: String,
}

/// The encoded answer, or the error.
type Answer = Result<Bytes>;

#[derive(Debug)]
struct Entry {
    /// A hash of the request's content.
    digest: u64,
    /// `None` while the first request is under way.
    answer: watch::Receiver<Option<Answer>>,
    number: u64,
    /// The memory that the answer holds, once it is there.
    taken: Option<Taken>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<Key, Entry>,
    /// The keys of `entries` by number, and so in the order of their requests.
    order: BTreeMap<u64, (Instant, Key)>,
    next: u64,
}

/// The table of kept answers.
#[derive(Debug)]
pub struct Repeats {
    max: usize,
    ttl: Duration,
    budget: Arc<Budget>,
    table: Mutex<Table>,
}

/// The side of the first request with a `request_id`, which provides the answer.
struct First {
    repeats: Arc<Repeats>,
    key: Key,
    number: u64,
    answer: watch::Sender<Option<Answer>>,
}

enum Attempt {
    First(First, watch::Receiver<Option<Answer>>),
    Repeat(watch::Receiver<Option<Answer>>),
}

impl Repeats {
    /// Makes a table of the answers to at most `max` mutations, each kept for `ttl`. The oldest
    /// answers go when all together exceed their part of the budget.
    #[must_use]
    pub fn new(max: usize, ttl: Duration, budget: Arc<Budget>) -> Arc<Self> {
        Arc::new(Self {
            max,
            ttl,
            budget,
            table: Mutex::default(),
        })
    }

    fn attempt(self: &Arc<Self>, key: Key, digest: u64) -> Result<Attempt> {
        let now = Instant::now();
        let mut table = self.table.lock();
        table.expire(now, self.ttl);
        if let Some(known) = table.entries.get(&key) {
            if known.digest != digest {
                let allowed = "is known from a request with another content";
                return Err(Error::invalid("request_id", allowed));
            }
            return Ok(Attempt::Repeat(known.answer.clone()));
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
            taken: None,
        };
        table.entries.insert(key.clone(), entry);
        table.order.insert(number, (now, key.clone()));
        let first = First {
            repeats: Arc::clone(self),
            key,
            number,
            answer: sender,
        };
        Ok(Attempt::First(first, answer))
    }
}

impl Table {
    fn expire(&mut self, now: Instant, ttl: Duration) {
        while let Some((&number, (at, _))) = self.order.first_key_value()
            && now.duration_since(*at) >= ttl
        {
            self.forget(number);
        }
    }

    fn forget(&mut self, number: u64) {
        if let Some((_, key)) = self.order.remove(&number) {
            self.entries.remove(&key);
        }
    }

    /// Removes the oldest answer. Returns false if all requests are still under way.
    fn forget_oldest(&mut self) -> bool {
        let answered = |(_, (_, key)): &(&u64, &(Instant, Key))| {
            let entry = self.entries.get(key);
            entry.is_none_or(|entry| entry.answer.borrow().is_some())
        };
        let oldest = self.order.iter().find(answered);
        let Some((&number, _)) = oldest else {
            return false;
        };
        self.forget(number);
        true
    }

    /// Takes memory for one more answer of `bytes`, and removes the oldest answers for it. Returns
    /// `None` if that is not enough.
    fn make_room(&mut self, budget: &Arc<Budget>, bytes: u64) -> Option<Taken> {
        let most = budget.limit() / PART;
        loop {
            let fits = budget.held(Use::Answers).saturating_add(bytes) <= most;
            let taken = fits
                .then(|| budget.take(Use::Answers, bytes).ok())
                .flatten();
            if taken.is_some() || bytes > most || !self.forget_oldest() {
                return taken;
            }
        }
    }
}

impl First {
    fn done(self, answer: Answer) {
        let passing = |error: &Error| {
            let code = status::describe(error).code;
            matches!(code, Code::ResourceExhausted | Code::Unavailable)
        };
        let bytes = answer.as_ref().map_or(0, |answer| answer.len() as u64);
        let mut table = self.repeats.table.lock();
        let taken = if answer.as_ref().is_err_and(passing) {
            None
        } else {
            table.make_room(&self.repeats.budget, bytes.saturating_add(ENTRY))
        };
        match (taken, table.entries.get_mut(&self.key)) {
            (Some(taken), Some(entry)) if entry.number == self.number => entry.taken = Some(taken),
            (None, _) => table.forget(self.number),
            // The entry was removed meanwhile.
            (Some(_), _) => {}
        }
        drop(table);
        // There may be no receiver any more.
        let _ = self.answer.send(Some(answer));
    }
}

async fn answered(mut answer: watch::Receiver<Option<Answer>>) -> Answer {
    let lost = Error::Internal("the task of the call ended without an answer");
    match answer.wait_for(Option::is_some).await {
        Ok(answer) => answer.clone().unwrap_or(Err(lost)),
        Err(_) => Err(lost),
    }
}

/// Returns a hash of a request's content.
fn digest(request: &impl Message) -> u64 {
    let mut hasher = DefaultHasher::new();
    request.encode_to_vec().hash(&mut hasher);
    hasher.finish()
}

impl Api {
    /// Carries out a mutation, or returns the answer of the one that it repeats. A mutation with a
    /// `request_id` goes on to its end even if the call is cancelled.
    ///
    /// # Errors
    /// The errors of the mutation; a `request_id` that is too long, or was used for a request with
    /// other content.
    pub(super) async fn once<Req, Res, Work>(
        &self,
        requester: Requester,
        method: &'static str,
        request: Req,
        work: impl FnOnce(Self, Requester, Req) -> Work,
    ) -> Result<Res>
    where
        Req: Repeatable,
        Res: Message + Default,
        Work: Future<Output = Result<Res>> + Send + 'static,
    {
        let request_id = request.request_id();
        if request_id.is_empty() {
            return work(self.clone(), requester, request).await;
        }
        if request_id.len() > TEXT_MAX {
            return Err(Error::invalid("request_id", "must be at most 128 bytes"));
        }
        let key = Key {
            principal: requester.caller.principal.clone(),
            context: self.registry.context_of(&requester.caller),
            method,
            request_id: request_id.to_owned(),
        };
        let answer = match self.repeats.attempt(key, digest(&request))? {
            Attempt::Repeat(answer) => answer,
            Attempt::First(first, answer) => {
                let work = work(self.clone(), requester, request);
                tokio::spawn(async move {
                    let answer = work.await;
                    first.done(answer.map(|answer| answer.encode_to_vec().into()));
                });
                answer
            }
        };
        let answer = answered(answer).await?;
        Res::decode(answer)
            .map_err(|_| Error::Internal("an answer that was kept cannot be decoded"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> Key {
        Key {
            principal: Principal::uid(1),
            context: None,
            method: "Post",
            request_id: id.to_owned(),
        }
    }

    fn first(attempt: Attempt) -> First {
        match attempt {
            Attempt::First(first, _) => first,
            Attempt::Repeat(_) => panic!("it is a repeat"),
        }
    }

    async fn repeated(attempt: Attempt) -> Answer {
        match attempt {
            Attempt::First(..) => panic!("it is no repeat"),
            Attempt::Repeat(answer) => answered(answer).await,
        }
    }

    #[tokio::test]
    async fn a_repeat_gets_the_first_answer_and_another_content_is_refused() {
        let repeats = Repeats::new(4, Duration::from_secs(60), Budget::new(1 << 20));
        let begun = first(repeats.attempt(key("a"), 1).unwrap());
        assert!(repeats.attempt(key("a"), 2).is_err());
        let waiting = repeats.attempt(key("a"), 1).unwrap();
        begun.done(Ok(Bytes::from_static(b"x")));
        assert_eq!(&repeated(waiting).await.unwrap()[..], b"x");
        let later = repeats.attempt(key("a"), 1).unwrap();
        assert_eq!(&repeated(later).await.unwrap()[..], b"x");
    }

    #[tokio::test]
    async fn a_refusal_is_kept_unless_it_may_pass() {
        let repeats = Repeats::new(4, Duration::from_secs(60), Budget::new(1 << 20));
        first(repeats.attempt(key("a"), 1).unwrap()).done(Err(Error::wrong_state("no")));
        assert!(
            repeated(repeats.attempt(key("a"), 1).unwrap())
                .await
                .is_err()
        );
        first(repeats.attempt(key("b"), 1).unwrap()).done(Err(Error::Draining));
        first(repeats.attempt(key("b"), 1).unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_is_bounded_by_number_and_time() {
        let repeats = Repeats::new(2, Duration::from_secs(60), Budget::new(1 << 20));
        let under_way = first(repeats.attempt(key("a"), 1).unwrap());
        first(repeats.attempt(key("b"), 1).unwrap()).done(Ok(Bytes::new()));
        // The oldest answer is removed, not the request under way.
        first(repeats.attempt(key("c"), 1).unwrap()).done(Ok(Bytes::new()));
        assert!(matches!(
            repeats.attempt(key("a"), 1),
            Ok(Attempt::Repeat(_))
        ));
        let also = first(repeats.attempt(key("b"), 1).unwrap());
        assert!(matches!(
            repeats.attempt(key("d"), 1),
            Err(Error::Limit { .. })
        ));
        under_way.done(Ok(Bytes::new()));
        also.done(Ok(Bytes::new()));
        tokio::time::advance(Duration::from_secs(61)).await;
        first(repeats.attempt(key("a"), 2).unwrap());
        assert_eq!(repeats.table.lock().order.len(), 1);
    }

    #[tokio::test]
    async fn the_table_never_holds_more_than_it_may() {
        let repeats = Repeats::new(8, Duration::from_secs(60), Budget::new(1 << 20));
        for n in 0..100 {
            let refused = first(repeats.attempt(key(&format!("r{n}")), 1).unwrap());
            refused.done(Err(Error::Draining));
        }
        // Requests under way fill the table; a removed answer does not make room.
        let under_way: Vec<_> = (0..8)
            .map(|n| first(repeats.attempt(key(&format!("u{n}")), 1).unwrap()))
            .collect();
        let full = repeats.attempt(key("more"), 1);
        assert!(matches!(full, Err(Error::Limit { .. })));
        let table = repeats.table.lock();
        assert_eq!((table.entries.len(), table.order.len()), (8, 8));
        drop(table);
        drop(under_way);
    }

    #[tokio::test]
    async fn answers_are_kept_by_their_bytes() {
        let budget = Budget::new(8 << 20);
        let repeats = Repeats::new(1000, Duration::from_secs(60), Arc::clone(&budget));
        let large = || Ok(Bytes::from(vec![0; 300 << 10]));
        for n in 0..50 {
            first(repeats.attempt(key(&format!("{n}")), 1).unwrap()).done(large());
            assert!(budget.total() <= 1 << 20);
        }
        assert_eq!(repeats.table.lock().entries.len(), 3);
        assert_eq!(budget.held(Use::Answers), 3 * ((300 << 10) + ENTRY));
        // The newest answers are there; one that is too large for the table is returned, but not
        // kept.
        assert!(
            repeated(repeats.attempt(key("49"), 1).unwrap())
                .await
                .is_ok()
        );
        let huge = first(repeats.attempt(key("huge"), 1).unwrap());
        let waits = repeats.attempt(key("huge"), 1).unwrap();
        huge.done(Ok(Bytes::from(vec![0; 2 << 20])));
        assert!(repeated(waits).await.is_ok());
        first(repeats.attempt(key("huge"), 1).unwrap());
    }

    #[tokio::test]
    async fn each_context_has_its_own_ids() {
        let repeats = Repeats::new(4, Duration::from_secs(60), Budget::new(1 << 20));
        let of = |session: &str| Key {
            context: Some(ContextKey::Session(Principal::uid(1), session.to_owned())),
            ..key("a")
        };
        first(repeats.attempt(of("x"), 1).unwrap()).done(Ok(Bytes::new()));
        first(repeats.attempt(of("y"), 1).unwrap()).done(Ok(Bytes::new()));
        assert!(matches!(
            repeats.attempt(of("x"), 1),
            Ok(Attempt::Repeat(_))
        ));
    }
}
