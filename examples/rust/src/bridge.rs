//! What a host calls. Everything here is a thin face; `supervisor.rs` does the work.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};

use crate::embeddings::Embeddings;
use crate::error::Error;
use crate::exit::{Cause, Exit};
use crate::info::Info;
use crate::options::Options;
use crate::parameters::Parameters;
use crate::pending::Pending;
use crate::promise::Promise;
use crate::supervisor::Shared;
use crate::text_call::Promised;
use crate::tokenization::Tokenization;

/// A worker that is kept alive: spawned at once, supervised, restarted.
///
/// `Send + Sync`: share it by reference or in an `Arc`. Calls of many threads and tasks travel over one pipe at the same
/// time. What ends in `_async` returns at once, with something to await; the same without it blocks.
///
/// [`close`](EmbedBridge::close) lets the worker finish; dropping the bridge kills and reaps it. A host that ends in
/// any other way, SIGKILL included, leaves no worker either: it sees the end of its input, and with `--supervised` the
/// end of its parent.
pub struct EmbedBridge {
    shared: Arc<Shared>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
    supervisor_id: ThreadId,
}

impl EmbedBridge {
    /// Start the worker without waiting for it; calls made meanwhile wait, and fail if it cannot start.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for options that mean nothing, [`Error::WorkerStart`] if there is no thread to be had.
    pub fn spawn(options: Options) -> Result<EmbedBridge, Error> {
        let shared = Arc::new(Shared::new(options.checked()?));
        let supervisor = thread::Builder::new().name("embed-supervisor".into()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.supervise()
        });
        let supervisor = supervisor.map_err(|error| Error::of(Exit::not_spawned(Cause::NotSpawned, error)))?;
        Ok(EmbedBridge { shared, supervisor_id: supervisor.thread().id(), supervisor: Mutex::new(Some(supervisor)) })
    }

    // Embeddings

    /// Embed any number of texts; return their vectors in order. What is too much for one request is cut and joined
    /// again. Waits while much is queued.
    ///
    /// # Errors
    /// One [`Error`], and exactly one: see its variants.
    pub fn embed<S: AsRef<str>>(&self, inputs: &[S]) -> Result<Embeddings, Error> {
        self.embed_with(inputs, Parameters::new())
    }

    /// Embed queries: with the model's prompt for them, see [`Parameters::query`].
    ///
    /// # Errors
    /// As [`embed`](EmbedBridge::embed).
    pub fn embed_query<S: AsRef<str>>(&self, inputs: &[S]) -> Result<Embeddings, Error> {
        self.embed_with(inputs, Parameters::query())
    }

    /// Embed documents: with the model's prompt for them, see [`Parameters::document`].
    ///
    /// # Errors
    /// As [`embed`](EmbedBridge::embed).
    pub fn embed_documents<S: AsRef<str>>(&self, inputs: &[S]) -> Result<Embeddings, Error> {
        self.embed_with(inputs, Parameters::document())
    }

    /// Do as [`embed`](EmbedBridge::embed), with parameters.
    ///
    /// # Errors
    /// As [`embed`](EmbedBridge::embed).
    pub fn embed_with<S: AsRef<str>>(&self, inputs: &[S], parameters: Parameters) -> Result<Embeddings, Error> {
        self.embed_async(inputs.iter().map(|text| text.as_ref().to_owned()).collect(), parameters).wait()
    }

    /// Begin an embedding, however much is waiting already: the wait for the outcome is the wait for room.
    pub fn embed_async(&self, inputs: Vec<String>, parameters: Parameters) -> Pending {
        self.begin_anyway(inputs, parameters, Promised::Vectors)
    }

    /// Begin an embedding, unless too much is waiting already.
    ///
    /// # Errors
    /// [`Error::QueueFull`] if too much is waiting; otherwise only what is known already, such as [`Error::Closed`].
    pub fn submit(&self, inputs: Vec<String>, parameters: Parameters) -> Result<Pending, Error> {
        self.begin(inputs, parameters, Promised::Vectors, true)
    }

    fn begin<T>(
        &self,
        inputs: Vec<String>,
        parameters: Parameters,
        promised: fn(Arc<Promise<T>>) -> Promised,
        is_bounded: bool,
    ) -> Result<Pending<T>, Error> {
        let promise = Arc::default();
        let number = self.shared.begin(inputs, parameters, promised(Arc::clone(&promise)), is_bounded)?;
        Ok(Pending::new(&self.shared, number, promise))
    }

    fn begin_anyway<T>(
        &self,
        inputs: Vec<String>,
        parameters: Parameters,
        promised: fn(Arc<Promise<T>>) -> Promised,
    ) -> Pending<T> {
        self.begin(inputs, parameters, promised, false).unwrap_or_else(|error| {
            let promise = Promise::default();
            promise.settle(Err(error), &mut Vec::new());
            Pending::new(&self.shared, 0, Arc::new(promise))
        })
    }

    // Tokens

    /// Count the tokens of any number of texts as [`embed`](EmbedBridge::embed) would, without a vector: so that a text
    /// can be cut at the model's limit, [`Info::max_tokens`]. It is cut into requests, sent again and ended as an
    /// embedding is.
    ///
    /// # Errors
    /// As [`embed`](EmbedBridge::embed).
    pub fn tokenize<S: AsRef<str>>(&self, inputs: &[S]) -> Result<Tokenization, Error> {
        self.tokenize_with(inputs, Parameters::new())
    }

    /// Do as [`tokenize`](EmbedBridge::tokenize), with parameters: see [`Parameters::offsets`].
    ///
    /// # Errors
    /// As [`embed`](EmbedBridge::embed).
    pub fn tokenize_with<S: AsRef<str>>(&self, inputs: &[S], parameters: Parameters) -> Result<Tokenization, Error> {
        self.tokenize_async(inputs.iter().map(|text| text.as_ref().to_owned()).collect(), parameters).wait()
    }

    /// Do as [`tokenize_with`](EmbedBridge::tokenize_with), without blocking.
    pub fn tokenize_async(&self, inputs: Vec<String>, parameters: Parameters) -> Pending<Tokenization> {
        self.begin_anyway(inputs, parameters, Promised::Tokens)
    }

    // The worker

    /// Return what the worker says of itself and its default model, as soon as it is ready.
    ///
    /// # Errors
    /// [`Error::Timeout`] after [`Options::request_timeout`], or why there is no worker.
    pub fn info(&self) -> Result<Info, Error> {
        self.info_async().wait()
    }

    /// Do as [`info`](EmbedBridge::info), without blocking.
    pub fn info_async(&self) -> Pending<Info> {
        let (number, promise) = self.shared.info(None, false);
        Pending::new(&self.shared, number, promise)
    }

    /// Have the worker load a further model, or find it loaded, for [`Parameters::model`]. A worker that is started
    /// anew loads it again when it is needed.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such model or it cannot be used, and as [`info`](EmbedBridge::info).
    pub fn load_model(&self, name: &str) -> Result<Info, Error> {
        self.load_model_async(name).wait()
    }

    /// Do as [`load_model`](EmbedBridge::load_model), without blocking.
    pub fn load_model_async(&self, name: &str) -> Pending<Info> {
        let (number, promise) = self.shared.info(Some(name.to_owned()), true);
        Pending::new(&self.shared, number, promise)
    }

    /// Wait for a sign of life.
    ///
    /// # Errors
    /// As [`info`](EmbedBridge::info).
    pub fn ping(&self) -> Result<(), Error> {
        self.ping_async().wait()
    }

    /// Do as [`ping`](EmbedBridge::ping), without blocking.
    pub fn ping_async(&self) -> Pending<()> {
        let (number, promise) = self.shared.ping();
        Pending::new(&self.shared, number, promise)
    }

    /// Return the bridge's own view.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Stop the worker and wait for its end: the end of its input, then SIGTERM, then SIGKILL, each wait bounded.
    ///
    /// What the worker has begun may still be answered; the rest fails with [`Error::Closed`]. Idempotent. It blocks,
    /// so from an async task it belongs on the blocking pool.
    pub fn close(&self) {
        self.end(false);
    }

    fn end(&self, at_once: bool) {
        self.shared.close(at_once);
        // The supervisor wakes tasks, and a task that is woken may drop the bridge: it cannot wait for itself.
        if thread::current().id() == self.supervisor_id {
            return;
        }
        self.shared.wait_closed();
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

impl fmt::Debug for EmbedBridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EmbedBridge").field(&self.stats()).finish()
    }
}

/// Where a bridge is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// A worker was started and has not answered yet.
    Starting,
    /// Requests are served.
    Ready,
    /// A worker is gone, and the next one is about to be started.
    BackingOff,
    /// Calls are refused: until the next attempt, or for good.
    Failed,
    /// The worker was asked to leave.
    Closing,
    /// There is no worker, and will be none.
    Closed,
}

impl State {
    /// Return the name that logs and the other clients use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Ready => "ready",
            State::BackingOff => "backing_off",
            State::Failed => "failed",
            State::Closing => "closing",
            State::Closed => "closed",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What [`EmbedBridge::stats`] tells.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Stats {
    /// Where the bridge is in its life.
    pub state: State,
    /// The worker's process, while there is one.
    pub pid: Option<u32>,
    /// Workers started after the first.
    pub restarts: u64,
    /// Requests sent and not answered.
    pub in_flight: usize,
    /// Calls of which something waits to be sent.
    pub queued: usize,
    /// How the last worker that is gone ended.
    pub last_exit: Option<Exit>,
}
