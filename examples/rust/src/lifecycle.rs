//! When to restart: a pure decision. Times come in, a verdict comes out.

use std::time::{Duration, Instant};

use crate::options::Options;
use crate::policy::{BACKOFF_JITTER, HEALTHY, RECYCLE_EVERY};

/// What the budget needs to know of a worker that is gone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loss {
    pub is_recycle: bool,       // it ended by itself at its memory ceiling, all work answered
    pub is_charged: bool,       // not so for the further deaths of one investigation
    pub is_investigation: bool, // one chunk was alone: the next start only waits the initial back-off
    pub jitter: f64,            // -1 … 1
}

/// What follows from the loss of a worker.
#[derive(Debug, PartialEq)]
pub(crate) enum Restart {
    At(Instant),
    /// The budget is spent: refuse everything until then.
    Open(Instant),
}

/// The restart budget: a leaky bucket. A failure adds one; only time in which a worker was really useful takes it out
/// again, so that neither a quick "successful" start nor a crash every minute goes on for ever.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    level: f64,
    failures_in_a_row: i32,
    ready_since: Option<Instant>,
    useful_since: Option<Instant>,
    recycled_at: Option<Instant>,
    open_for: Option<Duration>,
}

impl Budget {
    /// Note that the worker has answered `info`.
    pub(crate) fn ready(&mut self, now: Instant) {
        self.ready_since = Some(now);
    }

    /// Note that it has embedded something: from the first time on the bucket leaks.
    pub(crate) fn embedded(&mut self, now: Instant) {
        self.useful_since.get_or_insert(now);
    }

    /// Account for the end of a worker that another start may replace.
    pub(crate) fn lost(&mut self, loss: Loss, now: Instant, options: &Options) -> Restart {
        let useful = self.useful_since.take().map_or(Duration::ZERO, |since| now - since);
        let was_healthy = self.ready_since.take().is_some_and(|since| now - since >= HEALTHY);
        // NaN, of nothing useful and at-once forgiveness, is no leak: `max` passes over it.
        self.level = (self.level - useful.as_secs_f64() / options.restart_forgive.as_secs_f64()).max(0.0);
        let is_free = loss.is_recycle && self.recycled_at.map_or(true, |at| now - at >= RECYCLE_EVERY);
        if is_free {
            self.recycled_at = Some(now);
            return Restart::At(now);
        }
        if loss.is_charged {
            self.level = (self.level + 1.0).min(options.restart_budget);
            // The tolerance keeps sums of fractions honest.
            if self.level >= options.restart_budget - 1e-9 {
                let wait = self.open_for.unwrap_or(options.half_open_initial).min(options.half_open_max);
                self.open_for = Some((2 * wait).min(options.half_open_max));
                return Restart::Open(now + wait);
            }
        }
        Restart::At(now + self.back_off(was_healthy, loss, options))
    }

    fn back_off(&mut self, was_healthy: bool, loss: Loss, options: &Options) -> Duration {
        let delay_s = if loss.is_investigation {
            options.backoff_initial.as_secs_f64()
        } else if was_healthy {
            (self.failures_in_a_row, self.open_for) = (0, None);
            0.0
        } else {
            let doubled = options.backoff_initial.as_secs_f64() * 2f64.powi(self.failures_in_a_row.min(64));
            self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
            doubled.min(options.backoff_max.as_secs_f64())
        };
        Duration::from_secs_f64(delay_s * (1.0 + BACKOFF_JITTER * loss.jitter))
    }
}
