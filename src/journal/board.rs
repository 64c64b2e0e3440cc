//! State under a short lock, and who waits for it to change.
//!
//! Whoever waits looks at the state and leaves a waker under the same lock, so that no
//! change falls between the two.

use std::task::{Context, Poll, Waker};

use slab::Slab;

use crate::sync::Mutex;

/// Names someone who may wait.
pub(super) type Place = usize;

#[derive(Debug)]
pub(super) struct Board<T> {
    inner: Mutex<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    state: T,
    wakers: Slab<Option<Waker>>,
    /// Places that have left a waker.
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

    /// Looks at the state, or changes what nobody waits for.
    pub(super) fn with<R>(&self, look: impl FnOnce(&mut T) -> R) -> R {
        look(&mut self.inner.lock().state)
    }

    /// As [`Board::with`], and takes a place for one who may wait.
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

    /// As [`Board::join`], of one who cannot be refused.
    pub(super) fn take_place<R>(&self, look: impl FnOnce(&mut T, Place) -> R) -> R {
        let mut inner = self.inner.lock();
        let place = inner.wakers.insert(None);
        look(&mut inner.state, place)
    }

    /// Gives the place back.
    pub(super) fn leave<R>(&self, place: Place, look: impl FnOnce(&mut T) -> R) -> R {
        let mut inner = self.inner.lock();
        if inner.wakers.remove(place).is_some() {
            inner.waiting.retain(|waiting| *waiting != place);
        }
        look(&mut inner.state)
    }

    /// Changes the state; the wakers of all who wait are appended to `woken`, to be woken by
    /// the caller once the lock is free.
    pub(super) fn post<R>(&self, woken: &mut Vec<Waker>, change: impl FnOnce(&mut T) -> R) -> R {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let result = change(&mut inner.state);
        for place in inner.waiting.drain(..) {
            woken.extend(inner.wakers.get_mut(place).and_then(Option::take));
        }
        result
    }

    /// Changes the state; the change names who is to be woken, if anybody.
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

    /// Waits at that place until `look` finds something.
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
