//! State under a short lock, and the wakers of the tasks that wait for it to change.
//!
//! A task that waits looks at the state and leaves its waker under the same lock, so that no change
//! can happen between the two.

use std::task::{Context, Poll, Waker};

use slab::Slab;

use crate::sync::Mutex;

/// The number of a task that may wait: its slot in [`Inner::wakers`].
pub(super) type Place = usize;

#[derive(Debug)]
pub(super) struct Board<T> {
    inner: Mutex<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    state: T,
    wakers: Slab<Option<Waker>>,
    /// The places whose waker is set.
    waiting: Vec<Place>,
}

impl<T> Board<T> {
    pub(super) fn new(state: T) -> Self {
        Self {
            inner: Mutex::new(Inner {
                state,
                wakers: Slab::new(),
                waiting: Vec::new(),
            }),
        }
    }

    /// Reads the state, or changes a part of it that no task waits for.
    pub(super) fn with<R>(&self, look: impl FnOnce(&mut T) -> R) -> R {
        look(&mut self.inner.lock().state)
    }

    /// Calls `look` as [`Board::with`] does, with a new place for a task that may wait. An error
    /// gives the place back.
    pub(super) fn join<R, E>(
        &self,
        look: impl FnOnce(&mut T, Place) -> Result<R, E>,
    ) -> Result<R, E> {
        let mut inner = self.inner.lock();
        let place = inner.wakers.insert(None);
        let joined = look(&mut inner.state, place);
        if joined.is_err() {
            inner.wakers.remove(place);
        }
        joined
    }

    /// Does the same as [`Board::join`], where `look` cannot fail.
    pub(super) fn take_place<R>(&self, look: impl FnOnce(&mut T, Place) -> R) -> R {
        let mut inner = self.inner.lock();
        let place = inner.wakers.insert(None);
        look(&mut inner.state, place)
    }

    /// Gives the place back and calls `look`.
    pub(super) fn leave<R>(&self, place: Place, look: impl FnOnce(&mut T) -> R) -> R {
        let mut inner = self.inner.lock();
        if inner.wakers.remove(place).is_some() {
            inner.waiting.retain(|waiting| *waiting != place);
        }
        look(&mut inner.state)
    }

    /// Changes the state and appends the wakers of all waiting tasks to `woken`. The caller wakes
    /// them once the lock is free.
    pub(super) fn post<R>(&self, woken: &mut Vec<Waker>, change: impl FnOnce(&mut T) -> R) -> R {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let result = change(&mut inner.state);
        for place in inner.waiting.drain(..) {
            woken.extend(inner.wakers.get_mut(place).and_then(Option::take));
        }
        result
    }

    /// Changes the state. Returns the waker of the task at the place that `change` names, if that
    /// task waits.
    pub(super) fn tell<R>(
        &self,
        change: impl FnOnce(&mut T) -> (R, Option<Place>),
    ) -> (R, Option<Waker>) {
        let mut inner = self.inner.lock();
        let (result, place) = change(&mut inner.state);
        let waker = place.and_then(|place| inner.wakers.get_mut(place).and_then(Option::take));
        if waker.is_some() {
            inner.waiting.retain(|waiting| Some(*waiting) != place);
        }
        (result, waker)
    }

    /// Polls for a result of `look`. While there is none, the task's waker stays at `place`.
    pub(super) fn poll<R>(
        &self,
        cx: &Context<'_>,
        place: Place,
        look: impl FnOnce(&mut T) -> Option<R>,
    ) -> Poll<R> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if let Some(found) = look(&mut inner.state) {
            return Poll::Ready(found);
        }
        if let Some(slot) = inner.wakers.get_mut(place) {
            match slot {
                Some(waker) => waker.clone_from(cx.waker()),
                None => {
                    *slot = Some(cx.waker().clone());
                    inner.waiting.push(place);
                }
            }
        }
        Poll::Pending
    }
}
