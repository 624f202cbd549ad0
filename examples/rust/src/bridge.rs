//! What a host calls. Everything here is a thin face; `supervisor.rs` does the work.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::error::{Error, Exit};
use crate::options::{Options, Parameters};
use crate::request::{Embeddings, Job};
use crate::supervisor::Shared;
use crate::wire::Info;

/// A worker that is kept alive: spawned at once, supervised, restarted.
///
/// `Send + Sync`: share it by reference or in an `Arc`. Calls of many threads travel over one pipe at the same time.
/// [`close`](EmbedBridge::close) lets the worker finish; dropping the bridge kills and reaps it. A host that ends in
/// any other way, SIGKILL included, leaves no worker either: it sees the end of its input, and with `--supervised` the
/// end of its parent.
pub struct EmbedBridge {
    shared: Arc<Shared>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
}

impl EmbedBridge {
    /// Start the worker without waiting for it; calls made meanwhile wait, and fail if it cannot start.
    ///
    /// # Errors
    /// [`Error::WorkerStart`] if there is no thread to be had.
    pub fn spawn(options: Options) -> Result<EmbedBridge, Error> {
        let shared = Arc::new(Shared::new(options));
        let supervisor = thread::Builder::new().name("embed-supervisor".into()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.supervise()
        });
        let supervisor = supervisor.map_err(|error| Error::WorkerStart(Exit::because(error.to_string())))?;
        Ok(EmbedBridge { shared, supervisor: Mutex::new(Some(supervisor)) })
    }

    /// The vectors of any number of texts, in order. What is too much for one request is cut and joined again.
    ///
    /// # Errors
    /// One [`Error`], and exactly one: see its variants.
    pub fn embed<S: AsRef<str>>(&self, inputs: &[S]) -> Result<Embeddings, Error> {
        self.embed_with(inputs, Parameters::default())
    }

    /// Do as [`embed`](EmbedBridge::embed), with parameters. Waits while the queue is full.
    ///
    /// # Errors
    /// As `embed`.
    pub fn embed_with<S: AsRef<str>>(&self, inputs: &[S], parameters: Parameters) -> Result<Embeddings, Error> {
        let inputs = inputs.iter().map(|text| text.as_ref().to_owned()).collect();
        let job = Job::new(inputs, parameters, self.shared.options.request_timeout);
        self.shared.submit(&job, true)?;
        job.wait()
    }

    /// Begin an embedding and return at once.
    ///
    /// # Errors
    /// [`Error::QueueFull`] if too much is waiting; otherwise only what is known already, such as [`Error::Closed`].
    pub fn submit(&self, inputs: Vec<String>, parameters: Parameters) -> Result<Pending, Error> {
        let job = Job::new(inputs, parameters, self.shared.options.request_timeout);
        self.shared.submit(&job, false)?;
        Ok(Pending(Canceller { job, shared: Arc::clone(&self.shared) }))
    }

    /// What the worker says of itself and its model, as soon as it is ready.
    ///
    /// # Errors
    /// [`Error::Timeout`] after `request_timeout`, or why there is no worker.
    pub fn info(&self) -> Result<Info, Error> {
        self.shared.info(self.shared.options.request_timeout)
    }

    /// Wait for a sign of life.
    ///
    /// # Errors
    /// As `info`.
    pub fn ping(&self) -> Result<(), Error> {
        self.shared.ping(self.shared.options.request_timeout)
    }

    /// The bridge's own view.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Stop the worker and wait for its end: the end of its input, then SIGTERM, then SIGKILL, each wait bounded.
    ///
    /// What the worker has begun may still be answered; the rest fails with [`Error::Closed`]. Idempotent.
    pub fn close(&self) {
        self.end(false);
    }

    fn end(&self, at_once: bool) {
        self.shared.close(at_once);
        let supervisor = self.supervisor.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(supervisor) = supervisor {
            let _ = supervisor.join();
        }
    }
}

impl Drop for EmbedBridge {
    fn drop(&mut self) {
        self.end(true);
    }
}

/// A call that was begun. Dropping it withdraws the call.
pub struct Pending(Canceller);

impl Pending {
    /// Wait for the outcome.
    ///
    /// # Errors
    /// As [`EmbedBridge::embed`].
    pub fn wait(self) -> Result<Embeddings, Error> {
        self.0.job.wait()
    }

    /// A handle for another thread, to withdraw the call.
    pub fn canceller(&self) -> Canceller {
        self.0.clone()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Withdraws a call.
#[derive(Clone)]
pub struct Canceller {
    job: Arc<Job>,
    shared: Arc<Shared>,
}

impl Canceller {
    /// Withdraw the call: it ends with [`Error::Cancelled`], unless it has ended before.
    pub fn cancel(&self) {
        self.shared.cancel(&self.job);
    }
}

/// What [`EmbedBridge::stats`] tells.
#[derive(Debug, Clone)]
pub struct Stats {
    /// `starting`, `ready`, `backing_off`, `failed`, `closing` or `closed`.
    pub state: &'static str,
    /// The worker's process, while there is one.
    pub pid: Option<u32>,
    /// Workers started after the first.
    pub restarts: u64,
    /// Requests sent and not answered.
    pub in_flight: usize,
    /// Requests that wait to be sent.
    pub queued: usize,
}
