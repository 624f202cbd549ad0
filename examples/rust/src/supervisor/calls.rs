//! What a host asks for: a call begins, and ends once.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::generation::{Awaited, Model};
use super::queue::{Call, Wanted};
use super::{Inner, Shared};
use crate::chunk::Chunk;
use crate::error::Error;
use crate::info::Info;
use crate::parameters::Parameters;
use crate::promise::Promise;
use crate::text_call::{Promised, TextCall};

impl Shared {
    /// Begin a call with texts and return its number; `is_bounded` refuses it while too much is waiting.
    pub(crate) fn begin(
        &self,
        inputs: Vec<String>,
        parameters: Parameters,
        promised: Promised,
        is_bounded: bool,
    ) -> Result<u64, Error> {
        promised.check(&parameters)?;
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let call = Arc::new(TextCall::new(number, inputs, parameters, promised, self.options.request_timeout));
        let chunk = Chunk::whole(Arc::clone(&call));
        let mut inner = self.lock();
        inner.refusal()?;
        if is_bounded && inner.is_full(call.bytes) {
            return Err(Error::QueueFull);
        }
        let wanted = Wanted::Texts(Arc::clone(&call));
        inner.begin(number, wanted, call.deadline, call.timeout);
        inner.calls.count_unsent(number, 1, 0);
        inner.queue.push_back(chunk);
        inner.dispatch(Instant::now());
        Ok(number)
    }

    /// Ask what the worker says of itself and a model, once it is ready; it may have to load the model.
    pub(crate) fn info(&self, model: Option<String>, is_to_load: bool) -> (u64, Arc<Promise<Info>>) {
        let promise: Arc<Promise<Info>> = Arc::default();
        let wanted = Wanted::Info { promise: Arc::clone(&promise), model, is_to_load };
        (self.ask(wanted), promise)
    }

    /// Ask for a sign of life.
    pub(crate) fn ping(&self) -> (u64, Arc<Promise<()>>) {
        let promise: Arc<Promise<()>> = Arc::default();
        (self.ask(Wanted::Pong(Arc::clone(&promise))), promise)
    }

    fn ask(&self, wanted: Wanted) -> u64 {
        let (number, timeout) = (self.numbers.fetch_add(1, Ordering::Relaxed), self.options.request_timeout);
        let now = Instant::now();
        let mut inner = self.lock();
        inner.begin(number, wanted, now.checked_add(timeout), timeout);
        if let Err(error) = inner.refusal() {
            inner.fail(number, error);
        } else {
            inner.asks.push_back(number);
            inner.dispatch(now);
        }
        number
    }

    /// Withdraw a call that has not ended.
    pub(crate) fn cancel(&self, number: u64) {
        self.lock().fail(number, Error::Cancelled);
    }
}

impl Inner {
    /// Whether a call of so many bytes must not be queued.
    fn is_full(&self, bytes: usize) -> bool {
        let (queued, options) = (self.calls.queued(), &self.options);
        queued > 0 && (queued >= options.max_queued || self.calls.queued_bytes() + bytes > options.max_queued_bytes)
    }

    fn begin(&mut self, number: u64, wanted: Wanted, deadline: Option<Instant>, timeout: Duration) {
        self.calls.insert(number, Call { wanted, deadline, timeout, unsent: 0, sent: Vec::new() });
        if let Some(deadline) = deadline {
            self.wake_by(deadline);
        }
    }

    /// End a call with an error, unless it has ended before. What is left of it is dropped: unsent chunks here, sent
    /// ones in the worker.
    pub(super) fn fail(&mut self, number: u64, error: Error) {
        let Some(call) = self.calls.remove(number) else { return };
        call.fail(error, &mut self.wakers);
        // They stay in flight: they still take the worker's time, and their late answers are ignored.
        for target in call.sent {
            self.send(Awaited::Cancel(target));
        }
        self.queue.forget(call.unsent);
    }

    /// Fail every call of which something has not been sent.
    pub(super) fn fail_unsent(&mut self, error: &Error) {
        self.asks.clear();
        for number in self.calls.unsent() {
            self.fail(number, error.clone());
        }
    }

    /// What has been sent once, and is bounded: its time runs.
    fn sent_pieces(&self) -> impl Iterator<Item = &Chunk> {
        let in_flight = self.current.iter().flat_map(|current| current.in_flight.values());
        let sent = in_flight.filter_map(|awaited| match awaited {
            Awaited::Texts(chunk, _) => Some(chunk),
            _ => None,
        });
        let waiting = self.case.isolated.iter().chain(&self.queue.again).chain(&self.parked);
        sent.chain(waiting.filter(|chunk| chunk.first_sent.is_some())).filter(|chunk| !chunk.call.is_over())
    }

    fn models_asked_for(&self) -> impl Iterator<Item = (&String, Instant)> {
        let models = self.current.iter().flat_map(|current| &current.models);
        models.filter_map(|(name, model)| match model {
            Model::AskedFor { since, .. } => Some((name, *since + self.options.start_timeout)),
            Model::Ready(_) => None,
        })
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let chunks = self.sent_pieces().filter_map(Chunk::deadline);
        let models = self.models_asked_for().map(|(_, until)| until);
        self.calls.next_deadline().into_iter().chain(chunks).chain(models).min()
    }

    /// Fail the calls whose time is over; the worker is told, and lives on.
    pub(super) fn expire(&mut self, now: Instant) {
        let is_late = |chunk: &&Chunk| chunk.deadline().is_some_and(|deadline| deadline <= now);
        let chunks = self.sent_pieces().filter(is_late).map(|chunk| chunk.call.number);
        let late: Vec<u64> = self.calls.late(now).into_iter().chain(chunks).collect();
        let models: Vec<String> =
            self.models_asked_for().filter(|(_, until)| *until <= now).map(|(name, _)| name.clone()).collect();
        if late.is_empty() && models.is_empty() {
            return;
        }
        for number in late {
            let Some(call) = self.calls.get_mut(number) else { continue };
            let error = Error::Timeout(call.timeout);
            self.fail(number, error);
        }
        for name in models {
            self.no_model(&name, &Error::Timeout(self.options.start_timeout));
        }
        self.dispatch(now);
    }
}
