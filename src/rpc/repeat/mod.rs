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

use crate::access::Principal;
use crate::clock::Now;
use crate::error::{Error, Result};
use crate::faults::{self, Point};
use crate::memory::{Budget, Taken, Use};
use crate::policy::ContextKey;
use crate::proto::state::KeptRequest;
use crate::proto::*;
use crate::rpc::convert::TEXT_MAX;
use crate::rpc::{Api, Requester, status};
use crate::state::{self, Arena, DAEMON, Found, Records};

#[cfg(test)]
mod tests;

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
/// The kind of the records of requests.
const REQUEST: u8 = 1;
/// Bytes that are counted for an answer beside its own.
const ENTRY: u64 = 512;

/// Whose request it is, as text that later lives compare: the principal, the context whose loop is meant
/// if the request names none, the method and the `request_id`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key(Arc<str>);

impl Key {
    fn new(
        principal: &Principal,
        context: Option<&ContextKey>,
        method: &str,
        request_id: &str,
    ) -> Self {
        // No text but the last may have a NUL.
        Self(format!("{principal}\0{context:?}\0{method}\0{request_id}").into())
    }
}

/// The methods that do something else if they are carried out twice.
const ONCE: [&str; 8] = [
    "AddWatch",
    "BatchAddWatches",
    "CreateConsumer",
    "NewEventLoop",
    "Post",
    "SendSignal",
    "SendTo",
    "TakeFd",
];

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
    /// Where later lives find it.
    kept: Option<state::Entry>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<Key, Entry>,
    /// The keys of `entries` by number, and so in the order of their requests.
    order: BTreeMap<u64, (Instant, Key)>,
    next: u64,
    /// `None` if no later life goes on.
    records: Option<Records>,
    /// The number of the newest record.
    next_kept: u64,
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

    /// As [`Repeats::new`], with the answers that earlier lives have kept, where later lives find them.
    #[must_use]
    pub fn that_survive(self: Arc<Self>, arena: Arc<Arena>, found: Vec<Found>) -> Arc<Self> {
        let (mut records, entries, _) =
            Records::recover(arena, DAEMON, state::Kind::Requests, found, 0);
        let now = (Instant::now(), Now::sample().monotonic);
        let mut all = Vec::new();
        for entry in entries {
            match KeptRequest::decode(entry.bytes()) {
                Ok(request) => all.push((request, entry)),
                Err(_) => records.free_now(entry),
            }
        }
        all.sort_by_key(|(request, _)| request.at);
        let mut table = self.table.lock();
        table.records = Some(records);
        for (request, entry) in all {
            let age = Duration::from_nanos(now.1.saturating_sub(request.at));
            let at = now.0.checked_sub(age).unwrap_or(now.0);
            table.take_up(&self.budget, at, request, entry);
        }
        drop(table);
        self
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
        let kept = table.keep(None, &key, digest, None);
        faults::point(Point::RequestKept);
        let entry = Entry {
            digest,
            answer: answer.clone(),
            number,
            taken: None,
            kept,
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
        if let Some((_, key)) = self.order.remove(&number)
            && let Some(entry) = self.entries.remove(&key)
        {
            self.free(entry.kept);
        }
    }

    fn free(&mut self, kept: Option<state::Entry>) {
        if let (Some(records), Some(kept)) = (&mut self.records, kept) {
            records.free_now(kept);
        }
    }

    /// Writes a request to where later lives find it, in place of `earlier`; `None` if it is not there.
    fn keep(
        &mut self,
        earlier: Option<state::Entry>,
        key: &Key,
        digest: u64,
        answer: Option<&Bytes>,
    ) -> Option<state::Entry> {
        let records = self.records.as_mut()?;
        let request = KeptRequest {
            key: key.0.to_string(),
            digest,
            at: Now::sample().monotonic,
            answer: answer.map(|answer| answer.to_vec()),
        };
        let bytes = request.encode_to_vec();
        match earlier {
            Some(mut entry) => {
                let replaced = records.replace_now(&mut entry, &bytes);
                if replaced.is_err() {
                    records.free_now(entry);
                    return None;
                }
                Some(entry)
            }
            None => {
                self.next_kept += 1;
                records.put_now(REQUEST, self.next_kept, &bytes).ok()
            }
        }
    }

    /// Takes up a request of an earlier life.
    fn take_up(
        &mut self,
        budget: &Arc<Budget>,
        at: Instant,
        request: KeptRequest,
        kept: state::Entry,
    ) {
        self.next_kept = self.next_kept.max(kept.id());
        let method = request.key.split('\0').nth(2).unwrap_or_default();
        let answer = match request.answer {
            Some(answer) => Ok(Bytes::from(answer)),
            None if ONCE.contains(&method) => Err(Error::OutcomeUnknown),
            // It does no harm twice.
            None => return self.free(Some(kept)),
        };
        let bytes = answer.as_ref().map_or(0, |answer| answer.len() as u64);
        let Some(taken) = self.make_room(budget, bytes.saturating_add(ENTRY)) else {
            return self.free(Some(kept));
        };
        self.next += 1;
        let key = Key(request.key.into());
        let entry = Entry {
            digest: request.digest,
            answer: watch::channel(Some(answer)).1,
            number: self.next,
            taken: Some(taken),
            kept: Some(kept),
        };
        self.order.insert(self.next, (at, key.clone()));
        self.entries.insert(key, entry);
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
        faults::point(Point::RequestDone);
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
            (Some(taken), Some(entry)) if entry.number == self.number => {
                entry.taken = Some(taken);
                let (kept, digest) = (entry.kept.take(), entry.digest);
                let kept = match &answer {
                    Ok(answer) => table.keep(kept, &self.key, digest, Some(answer)),
                    // A later life refuses it as well.
                    Err(_) => {
                        table.free(kept);
                        None
                    }
                };
                if let Some(entry) = table.entries.get_mut(&self.key) {
                    entry.kept = kept;
                }
            }
            (None, _) => table.forget(self.number),
            // The entry was removed meanwhile.
            (Some(_), _) => {}
        }
        drop(table);
        faults::point(Point::AnswerKept);
        // There may be no receiver any more.
        let _ = self.answer.send(Some(answer));
        faults::point(Point::Answered);
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
        let context = self.registry.context_of(&requester.caller);
        let principal = &requester.caller.principal;
        let key = Key::new(principal, context.as_ref(), method, request_id);
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
