//! What a worker says, on its own threads: each answer is checked, and settles what asked for it.

use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use super::generation::{Awaited, Generation};
use super::queue::Wanted;
use super::{Inner, Phase, Shared};
use crate::chunk::Chunk;
use crate::error::ErrorCode;
use crate::exit::Cause;
use crate::health::Health;
use crate::info::Info;
use crate::policy::{INVALID_LINES_BEFORE_READY, LONGEST_DRAIN, PIPE_LOST};
use crate::wire::Answer;
use crate::worker::{printable, Heard};

const QUOTED_CHARS: usize = 80; // characters of a line that is no answer

impl Shared {
    pub(super) fn hear(&self, number: u64, heard: Heard<'_>) {
        let now = Instant::now();
        match heard {
            Heard::Line(line) => self.on_line(number, line, now),
            Heard::EndlessLine => {
                let mut inner = self.lock();
                if inner.trusted(number).is_some() {
                    inner.ignore_output("an answer without an end", now);
                }
            }
            Heard::PipeLost => {
                let mut inner = self.lock();
                if let Some(current) = inner.trusted(number) {
                    current.stop(now + PIPE_LOST, Cause::Exited, "it closed its pipes but lived on");
                    inner.wake_by(now + PIPE_LOST);
                }
            }
            Heard::Gone(status) => {
                let mut inner = self.lock();
                if inner.current.as_ref().is_some_and(|current| current.number == number) {
                    inner.lose(status, now);
                }
            }
        }
    }

    fn on_line(&self, number: u64, line: &[u8], now: Instant) {
        let answer = Answer::parse(line);
        let mut inner = self.lock();
        let Some(current) = inner.trusted(number) else { return };
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => return inner.on_strange_line(line, &why, now),
        };
        current.health.received(now);
        // Nobody waits for a late, a repeated or an unknown id.
        let Some((id, awaited)) = answer.id().and_then(|id| Some((id, current.in_flight.get(&id)?))) else { return };
        let Awaited::Texts(chunk, info) = awaited else { return inner.on_control(id, &answer, line, now) };
        if !answer.is_ok() {
            return inner.on_failure(id, &answer, now);
        }
        let (call, range, info) = (Arc::clone(&chunk.call), chunk.range.clone(), Arc::clone(info));
        drop(inner);
        // Without the lock: this may be megabytes.
        let part = (!call.is_over()).then(|| answer.part(&call, range.clone(), &info)).transpose();
        let mut inner = self.lock();
        // A worker that was given up meanwhile has no answers: its chunks are waiting again.
        if inner.trusted(number).is_none() {
            return;
        }
        let part = match part {
            Ok(part) => part,
            Err(why) => return inner.ignore_output(&format!("an answer that does not fit: {why}"), now),
        };
        if inner.settle(id, now).is_none() {
            return;
        }
        inner.calls.release(call.number);
        inner.budget.embedded(now);
        inner.dispatch(now);
        drop(inner);
        let mut wakers = Vec::new();
        if let Some(part) = part {
            call.take(range, part, &info, &mut wakers);
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Inner {
    /// Return the worker of this number, unless it is gone or cannot be trusted any more.
    fn trusted(&mut self, number: u64) -> Option<&mut Generation> {
        self.current.as_mut().filter(|current| current.number == number && !current.is_output_ignored)
    }

    /// Believe nothing more of what the worker says, and kill it.
    pub(super) fn ignore_output(&mut self, why: &str, now: Instant) {
        if let Some(current) = &mut self.current {
            current.is_output_ignored = true;
            current.stop(now, Cause::BrokeProtocol, why);
            self.wake_by(now);
        }
    }

    fn on_strange_line(&mut self, line: &[u8], why: &str, now: Instant) {
        let Some(current) = &mut self.current else { return };
        current.invalid_lines += 1;
        if current.invalid_lines == 1 {
            let quoted: String = String::from_utf8_lossy(line).chars().take(QUOTED_CHARS).collect();
            current.first_invalid_line = format!("{:?}", printable(&quoted));
        }
        if current.info.is_some() || current.invalid_lines > INVALID_LINES_BEFORE_READY {
            self.ignore_output(&format!("standard output holds something else than answers: {why}"), now);
        } else {
            // It may have swallowed the answer to the handshake: a banner has not always a newline.
            self.send(Awaited::Info(None));
        }
    }

    /// Take a chunk that was answered out of what is in flight.
    fn settle(&mut self, id: u64, now: Instant) -> Option<Chunk> {
        let chunk = self.current.as_mut()?.settle(id, now)?;
        self.case.answered(id);
        if let Some(call) = self.calls.get_mut(chunk.call.number) {
            call.sent.retain(|sent| *sent != id);
        }
        Some(chunk)
    }

    fn on_failure(&mut self, id: u64, answer: &Answer<'_>, now: Instant) {
        let inputs = match self.current.as_ref().and_then(|current| current.in_flight.get(&id)) {
            Some(Awaited::Texts(chunk, _)) => chunk.range.len(),
            _ => return,
        };
        let failure = match answer.failure(inputs) {
            Ok(failure) => failure,
            Err(why) => return self.ignore_output(&format!("an error that does not fit: {why}"), now),
        };
        let Some(chunk) = self.settle(id, now) else { return };
        let number = chunk.call.number;
        if failure.code == ErrorCode::ShuttingDown {
            // No answer about the request: it was not begun, and the worker is about to leave.
            if let Some(current) = &mut self.current {
                current.stop(now + LONGEST_DRAIN, Cause::Exited, "it said that it would end, and did not");
                self.wake_by(now + LONGEST_DRAIN);
            }
            self.calls.count_unsent(number, 1, 0);
            return self.put_back(chunk);
        }
        if failure.code == ErrorCode::OutOfMemory {
            self.case.out_of_memory(inputs, now);
        }
        self.fail(number, failure.into_error(chunk.range.start));
        self.dispatch(now);
    }

    fn on_control(&mut self, id: u64, answer: &Answer<'_>, line: &[u8], now: Instant) {
        let Some(current) = &mut self.current else { return };
        match current.in_flight.remove(&id) {
            Some(Awaited::Ping(host)) => {
                if let Some(micro_batches) = answer.micro_batches() {
                    let is_busy = current.requests > 0;
                    current.health.ponged(micro_batches, is_busy, now, &self.options);
                    let next_check = current.health.next_check(is_busy, &self.options);
                    self.wake_by(next_check);
                }
                if let Some(Wanted::Pong(promise)) =
                    host.and_then(|host| self.calls.remove(host)).map(|call| call.wanted)
                {
                    promise.settle(Ok(()), &mut self.wakers);
                }
            }
            Some(Awaited::Info(None)) => self.on_info(answer, line, now),
            Some(Awaited::Info(Some(name))) => self.on_model(&name, answer, line, now),
            Some(Awaited::LoadModel(name)) => self.on_loaded(name, answer, now),
            _ => {}
        }
    }

    /// Compare what a new worker is with what it has to be.
    fn on_info(&mut self, answer: &Answer<'_>, line: &[u8], now: Instant) {
        let (Some(current), Phase::Starting(_)) = (&mut self.current, &self.phase) else { return };
        if !answer.is_ok() {
            // It says why, and should leave now with a status that says what that means.
            let why = match answer.failure(0) {
                Ok(failure) => format!("{}: {}", failure.code, failure.message),
                Err(why) => format!("its answer to `info` is an error that does not fit: {why}"),
            };
            let at = now + self.options.terminate;
            current.stop(at, Cause::Unusable, why);
            return self.wake_by(at);
        }
        let unusable = match Info::parse(line) {
            Ok(info) => {
                let info = Arc::new(info);
                let expected = self.expected.get_or_insert_with(|| Arc::clone(&info));
                if info.identity() == expected.identity() {
                    return self.on_ready(info, now);
                }
                (Cause::ModelChanged, format!("{:?} instead of {:?}", info.identity(), expected.identity()))
            }
            Err(why) => (Cause::ProtocolMismatch, why),
        };
        current.stop(now, unusable.0, unusable.1);
        self.wake_by(now);
    }

    fn on_ready(&mut self, info: Arc<Info>, now: Instant) {
        if let Some(current) = &mut self.current {
            current.worker.learn_pid(info.pid);
            current.info = Some(info);
            current.health = Health::new(now);
        }
        self.budget.ready(now);
        self.phase = Phase::Ready;
        self.dispatch(now);
        self.wake_by(now); // health checks begin
    }
}
