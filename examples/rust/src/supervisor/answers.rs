//! What a worker says, on its reader's thread: each answer is checked, and settles what asked for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::generation::{Awaited, Generation};
use super::{Phase, Shared, State};
use crate::error::{Error, Exit};
use crate::lifecycle::Health;
use crate::wire::{Envelope, Failure, Info, Pong, Vectors};
use crate::worker::Heard;

const NONSENSE_BEFORE_READY: u32 = 20; // lines of a chatty library or wrapper script
const PIPE_LOST: Duration = Duration::from_secs(1); // a process whose pipe is gone should be gone, too
const LONGEST_DRAIN: Duration = Duration::from_secs(15); // a supervised worker allows itself 10

impl Shared {
    pub(super) fn hear(&self, number: u64, heard: Heard<'_>) {
        let now = Instant::now();
        match heard {
            Heard::Line(line) => self.on_line(number, line, now),
            Heard::EndlessLine => self.lock().distrust(number, "an answer without an end", now),
            Heard::PipeLost => {
                let mut state = self.lock();
                if let Some(current) = state.current(number) {
                    current.is_pipe_lost = true;
                    let why = "it closed its pipes but lived on";
                    state.doom(now + PIPE_LOST, Error::WorkerDied(Exit::because(why)));
                    state.wake_by(now);
                }
            }
        }
    }

    fn on_line(&self, number: u64, line: &[u8], now: Instant) {
        let envelope = serde_json::from_slice::<Envelope>(line);
        let mut state = self.lock();
        let Some(current) = state.current(number) else { return };
        let envelope = match envelope {
            Ok(envelope) => envelope,
            Err(error) => return state.on_strange_line(number, &error.to_string(), now),
        };
        current.health.received(now);
        // Nobody waits for a late, a repeated or an unknown id.
        let Some((id, awaited)) = envelope.id().and_then(|id| Some((id, current.in_flight.get(&id)?))) else { return };
        let (Awaited::Piece(piece), Some(info)) = (awaited, &current.info) else {
            return state.on_control(id, envelope.is_ok(), line, now);
        };
        if !envelope.is_ok() {
            return state.on_failure(number, id, line, now);
        }
        let (job, range, info) = (Arc::clone(&piece.job), piece.range.clone(), Arc::clone(info));
        drop(state);
        // Without the lock: this may be megabytes.
        let dimension = job.parameters.dimensions.unwrap_or(info.dimension);
        let vectors = match job.is_over() {
            true => None,
            false => Some(Vectors::parse(line, range.len(), dimension, &info.fingerprint)),
        };
        let mut state = self.lock();
        if let Some(Err(why)) = vectors {
            return state.distrust(number, &format!("an answer that does not fit: {why}"), now);
        }
        // A worker that was given up meanwhile has no answers: its pieces are waiting again.
        let Some(_piece) = state.current(number).and_then(|current| current.settle(id, now)) else { return };
        state.budget.embedded(now);
        state.dispatch(now);
        drop(state);
        if let Some(Ok(vectors)) = vectors {
            job.take(range, vectors, &info);
        }
    }
}

impl State {
    /// The worker of this number, unless it is gone or cannot be trusted any more.
    fn current(&mut self, number: u64) -> Option<&mut Generation> {
        self.current.as_mut().filter(|current| current.number == number && !current.is_distrusted)
    }

    fn doom(&mut self, at: Instant, cause: Error) {
        if let Some(current) = &mut self.current {
            current.doom(at, cause);
            self.wake_by(at);
        }
    }

    /// Believe nothing more of what this process says, and kill it.
    fn distrust(&mut self, number: u64, why: &str, now: Instant) {
        if let Some(current) = self.current(number) {
            current.is_distrusted = true;
            self.doom(now, Error::WorkerDied(Exit::because(why)));
        }
    }

    fn on_strange_line(&mut self, number: u64, why: &str, now: Instant) {
        let Some(current) = self.current(number) else { return };
        current.nonsense += 1;
        if current.info.is_some() || current.nonsense > NONSENSE_BEFORE_READY {
            self.distrust(number, &format!("standard output holds something else than answers: {why}"), now);
        }
    }

    fn on_failure(&mut self, number: u64, id: u64, line: &[u8], now: Instant) {
        let failure: Failure = match serde_json::from_slice(line) {
            Ok(failure) => failure,
            Err(error) => return self.distrust(number, &format!("an error that does not fit: {error}"), now),
        };
        let Some(mut piece) = self.current(number).and_then(|current| current.settle(id, now)) else { return };
        if failure.code == "shutting_down" {
            // No answer about the request: it was not begun, and the worker is about to leave.
            self.doom(now + LONGEST_DRAIN, Error::WorkerDied(Exit::because("it said that it would end, and did not")));
            piece.attempts -= 1;
            return self.put_back(piece);
        }
        let Failure { code, message, retryable, index } = failure;
        let index = index.map(|index| index + piece.range.start);
        self.fail(&piece.job, Error::Request { code, message, retryable, index });
        self.dispatch(now);
    }

    fn on_control(&mut self, id: u64, is_ok: bool, line: &[u8], now: Instant) {
        let Some(current) = &mut self.current else { return };
        match current.in_flight.remove(&id) {
            Some(Awaited::Ping(sender)) => {
                if let Ok(pong) = serde_json::from_slice::<Pong>(line) {
                    current.health.ponged(pong.micro_batches, current.requests > 0, now, &self.options);
                    let next_check = current.health.next_check(current.requests > 0, &self.options);
                    self.wake_by(next_check);
                }
                if let Some(sender) = sender {
                    let _ = sender.try_send(()); // the host may have given up waiting
                }
            }
            Some(Awaited::Info) => self.on_info(is_ok, line, now),
            _ => {}
        }
    }

    /// Compare what a new worker is with what it has to be.
    fn on_info(&mut self, is_ok: bool, line: &[u8], now: Instant) {
        let (Some(current), Phase::Starting(_)) = (&mut self.current, &self.phase) else { return };
        if !is_ok {
            // It says why, and should leave now with a status that says what that means.
            let why = serde_json::from_slice(line).map(|told: Failure| format!("{}: {}", told.code, told.message));
            let why = Exit::because(why.unwrap_or_default());
            return self.doom(now + self.options.terminate, Error::WorkerStart(why));
        }
        let info = match Info::parse(line) {
            Ok(info) => Arc::new(info),
            Err(why) => return self.doom(now, Error::ProtocolMismatch(Exit::because(why))),
        };
        let expected = self.expected.get_or_insert_with(|| Arc::clone(&info));
        if info.identity() != expected.identity() {
            let why = format!("{:?} instead of {:?}", info.identity(), expected.identity());
            return self.doom(now, Error::ModelChanged(Exit::because(why)));
        }
        current.info = Some(info);
        current.health = Health::new(now);
        self.budget.ready(now);
        self.phase = Phase::Ready;
        self.changed.notify_all();
        self.wake_by(now); // health checks begin
        self.dispatch(now);
    }
}
