//! A monitor: state under a short lock, and the wakers of the tasks that wait for it to change.
//!
//! A task that waits looks at the state and leaves its waker under the same lock, so that no change
//! can happen between the two.

use std::task::{Context, Poll, Waker};

use slab::Slab;

use crate::sync::Mutex;

/// Identifies a task that may wait: its slot in [`Inner::wakers`]. It is reused once the task has
/// left.
pub(super) type WaiterId = usize;

#[derive(Debug)]
pub(super) struct Monitor<T> {
    inner: Mutex<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    state: T,
    wakers: Slab<Option<Waker>>,
    /// The tasks whose waker is set.
    waiting: Vec<WaiterId>,
}

impl<T> Monitor<T> {
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

    /// Calls `look` as [`Monitor::with`] does, with a new id for a task that may wait. If `look`
    /// fails, the id is free again.
    pub(super) fn try_add_waiter<R, E>(
        &self,
        look: impl FnOnce(&mut T, WaiterId) -> Result<R, E>,
    ) -> Result<R, E> {
        let mut inner = self.inner.lock();
        let waiter = inner.wakers.insert(None);
        let joined = look(&mut inner.state, waiter);
        if joined.is_err() {
            inner.wakers.remove(waiter);
        }
        joined
    }

    /// Does the same as [`Monitor::try_add_waiter`], where `look` cannot fail.
    pub(super) fn add_waiter<R>(&self, look: impl FnOnce(&mut T, WaiterId) -> R) -> R {
        let mut inner = self.inner.lock();
        let waiter = inner.wakers.insert(None);
        look(&mut inner.state, waiter)
    }

    /// Frees the id of a task that waits no longer, and calls `look`.
    pub(super) fn remove_waiter<R>(&self, waiter: WaiterId, look: impl FnOnce(&mut T) -> R) -> R {
        let mut inner = self.inner.lock();
        if inner.wakers.remove(waiter).is_some() {
            inner.waiting.retain(|waiting| *waiting != waiter);
        }
        look(&mut inner.state)
    }

    /// Changes the state and appends the wakers of all waiting tasks to `woken`. The caller wakes
    /// them once the lock is free.
    pub(super) fn notify_all<R>(
        &self,
        woken: &mut Vec<Waker>,
        change: impl FnOnce(&mut T) -> R,
    ) -> R {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let result = change(&mut inner.state);
        for waiter in inner.waiting.drain(..) {
            woken.extend(inner.wakers.get_mut(waiter).and_then(Option::take));
        }
        result
    }

    /// Changes the state. Returns the waker of the task that `change` names, if that task
    /// waits.
    pub(super) fn notify_one<R>(
        &self,
        change: impl FnOnce(&mut T) -> (R, Option<WaiterId>),
    ) -> (R, Option<Waker>) {
        let mut inner = self.inner.lock();
        let (result, waiter) = change(&mut inner.state);
        let waker = waiter.and_then(|waiter| inner.wakers.get_mut(waiter).and_then(Option::take));
        if waker.is_some() {
            inner.waiting.retain(|waiting| Some(*waiting) != waiter);
        }
        (result, waker)
    }

    /// Polls for a result of `look`. While there is none, the task's waker is kept for
    /// `waiter`.
    pub(super) fn poll<R>(
        &self,
        cx: &Context<'_>,
        waiter: WaiterId,
        look: impl FnOnce(&mut T) -> Option<R>,
    ) -> Poll<R> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if let Some(found) = look(&mut inner.state) {
            return Poll::Ready(found);
        }
        if let Some(slot) = inner.wakers.get_mut(waiter) {
            match slot {
                Some(waker) => waker.clone_from(cx.waker()),
                None => {
                    *slot = Some(cx.waker().clone());
                    inner.waiting.push(waiter);
                }
            }
        }
        Poll::Pending
    }
}
