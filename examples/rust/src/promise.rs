//! An outcome that is decided once and taken once, by a thread that waits or by a task that is woken.

use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::error::Error;

pub(crate) struct Promise<T> {
    slot: Mutex<Slot<T>>,
    over: Condvar,
}

enum Slot<T> {
    Open(Option<Waker>),
    Over(Result<T, Error>),
    Taken,
}

impl<T> Default for Promise<T> {
    fn default() -> Promise<T> {
        Promise { slot: Mutex::new(Slot::Open(None)), over: Condvar::new() }
    }
}

// A waker is foreign code: cloned, woken or dropped it may drop a task, and with it the bridge. None of that may happen
// while a lock is held.
impl<T> Promise<T> {
    fn slot(&self) -> MutexGuard<'_, Slot<T>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_over(&self) -> bool {
        !matches!(*self.slot(), Slot::Open(_))
    }

    /// Decide the outcome, unless it is decided. Whom to wake is added to `wakers`; false when it was decided before.
    pub(crate) fn settle(&self, outcome: Result<T, Error>, wakers: &mut Vec<Waker>) -> bool {
        let mut slot = self.slot();
        let Slot::Open(waker) = &mut *slot else { return false };
        wakers.extend(waker.take());
        *slot = Slot::Over(outcome);
        self.over.notify_all();
        true
    }

    /// Wait for the outcome and take it.
    pub(crate) fn wait(&self) -> Result<T, Error> {
        let is_open = |slot: &mut Slot<T>| matches!(slot, Slot::Open(_));
        let mut slot = self.over.wait_while(self.slot(), is_open).unwrap_or_else(PoisonError::into_inner);
        take(&mut slot)
    }

    /// Take the outcome, or have the task woken when it is there.
    pub(crate) fn poll(&self, context: &mut Context<'_>) -> Poll<Result<T, Error>> {
        let mut newer = Some(context.waker().clone());
        let mut slot = self.slot();
        let outcome = match &mut *slot {
            Slot::Open(waker) => {
                mem::swap(waker, &mut newer);
                Poll::Pending
            }
            _ => Poll::Ready(take(&mut slot)),
        };
        drop(slot); // before the older waker
        outcome
    }
}

fn take<T>(slot: &mut Slot<T>) -> Result<T, Error> {
    match mem::replace(slot, Slot::Taken) {
        Slot::Over(outcome) => outcome,
        _ => Err(Error::Cancelled), // taken before: a future that is polled after its end
    }
}
