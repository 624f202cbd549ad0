//! A call that was begun.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::embeddings::Embeddings;
use crate::error::Error;
use crate::promise::Promise;
use crate::supervisor::Shared;

/// A call that was begun: await it from any runtime, or [`wait`](Pending::wait) for it on a thread.
///
/// Dropping it withdraws the call. It borrows nothing, so it can be moved to another task or thread.
#[must_use = "dropping it withdraws the call"]
pub struct Pending<T = Embeddings> {
    promise: Arc<Promise<T>>,
    canceller: Canceller,
}

impl<T> Pending<T> {
    pub(crate) fn new(shared: &Arc<Shared>, number: u64, promise: Arc<Promise<T>>) -> Pending<T> {
        Pending { promise, canceller: Canceller { number, shared: Arc::clone(shared) } }
    }

    /// Wait for the outcome.
    ///
    /// # Errors
    /// As [`EmbedBridge::embed`](crate::EmbedBridge::embed).
    pub fn wait(self) -> Result<T, Error> {
        self.promise.wait()
    }

    /// Return a handle for another thread or task, to withdraw the call.
    #[must_use]
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.promise.poll(context)
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        if !self.promise.is_over() {
            self.canceller.cancel();
        }
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("is_over", &self.promise.is_over()).finish_non_exhaustive()
    }
}

/// Withdraws a call.
#[derive(Clone)]
pub struct Canceller {
    number: u64,
    shared: Arc<Shared>,
}

impl Canceller {
    /// Withdraw the call: it ends with [`Error::Cancelled`], unless it has ended before.
    pub fn cancel(&self) {
        self.shared.cancel(self.number);
    }
}

impl fmt::Debug for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Canceller").field("call", &self.number).finish_non_exhaustive()
    }
}
