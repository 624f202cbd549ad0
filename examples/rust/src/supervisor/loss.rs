//! The end of a worker: what becomes of what it had in flight, and when the next one starts.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::mem;
use std::process::ExitStatus;
use std::time::Instant;

use super::generation::Awaited;
use super::{Inner, Phase};
use crate::error::Error;
use crate::exit::{Cause, Exit};
use crate::investigation::Verdict;
use crate::lifecycle::{Loss, Restart};
use crate::process;

impl Inner {
    /// Drop a process whole, decide about what was in flight, and go on.
    pub(super) fn lose(&mut self, status: Option<ExitStatus>, now: Instant) {
        let Some(mut current) = self.current.take() else { return };
        let exit = current.report(status);
        let mut chunks = Vec::new();
        for awaited in mem::take(&mut current.in_flight).into_values() {
            match awaited {
                Awaited::Texts(chunk, _) => chunks.push(chunk),
                Awaited::Ping(Some(number)) => self.asks.push_back(number),
                _ => {}
            }
        }
        for chunk in &chunks {
            if let Some(call) = self.calls.get_mut(chunk.call.number) {
                call.sent.clear();
            }
        }
        for chunk in mem::take(&mut self.parked).into_iter().rev() {
            self.put_back(chunk);
        }
        let verdict = if matches!(self.phase, Phase::Closing(..)) {
            for chunk in chunks {
                self.fail(chunk.call.number, Error::Closed);
            }
            Verdict::default()
        } else {
            self.case.judge(chunks, &exit, self.options.replay, now)
        };
        let charge = (!verdict.is_uncharged, verdict.is_investigation);
        self.carry_out(verdict, &exit, now);
        self.go_on(exit, charge, now);
        self.alarm.notify_one();
        drop(current);
    }

    /// Do as the investigation says: what was in flight is waiting again, or has its outcome.
    fn carry_out(&mut self, verdict: Verdict, exit: &Exit, now: Instant) {
        for number in verdict.isolated_of {
            self.calls.count_unsent(number, 1, 0);
        }
        for chunk in verdict.again.into_iter().rev() {
            self.calls.count_unsent(chunk.call.number, 1, 0);
            self.put_back(chunk);
        }
        for chunk in verdict.failed {
            self.fail(chunk.call.number, Error::of(exit.clone()));
        }
        if let Some(chunk) = verdict.blamed {
            self.quarantine.add(&chunk.texts()[0], now);
            chunk.call.blame(chunk.range.start, &mut self.wakers);
            self.calls.release(chunk.call.number);
        }
    }

    /// Go on without a worker that could not be started.
    pub(super) fn not_started(&mut self, error: io::Error, now: Instant) {
        self.current = None; // there were not threads enough for it
        let cause = if process::is_permanent(&error) { Cause::Unusable } else { Cause::NotSpawned };
        let mut exit = Exit::not_spawned(cause, error);
        // The system's error is the same where it is the working directory that is not there.
        exit.detail = match &self.options.cwd {
            Some(cwd) if !cwd.exists() => format!("there is no folder {}", cwd.display()),
            _ => format!("{:?}", self.options.command),
        };
        self.go_on(exit, (true, false), now);
    }

    /// Plan the next start, if there is to be one.
    fn go_on(&mut self, exit: Exit, (is_charged, is_investigation): (bool, bool), now: Instant) {
        self.last_exit = Some(exit.clone());
        if let Phase::Closing(..) = self.phase {
            return;
        }
        let cause = exit.cause;
        let error = Error::of(exit);
        self.phase = if cause.is_permanent() {
            Phase::Failed(error)
        } else {
            let is_recycle = cause == Cause::Recycled;
            let loss = Loss { is_recycle, is_charged, is_investigation, jitter: jitter(now) };
            match self.budget.lost(loss, now, &self.options) {
                Restart::At(at) => Phase::Waiting(at),
                Restart::Open(until) => Phase::Open(until, error),
            }
        };
        if let Err(refusal) = self.refusal() {
            self.fail_unsent(&refusal);
        }
    }
}

/// Return a number in -1 … 1, so that the workers of many hosts do not start in step.
fn jitter(now: Instant) -> f64 {
    #[allow(clippy::cast_precision_loss)] // any number will do
    let unit = RandomState::new().hash_one(now) as f64 / u64::MAX as f64;
    unit * 2.0 - 1.0
}
