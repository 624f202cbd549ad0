//! Is the worker hung? Pure: times come in, a verdict comes out.
//!
//! Two detectors, because alive is not the same as working. *Silence*: two pings in a row without any sign of life.
//! *No progress*: a pong says that no micro-batch was finished for too long while work was in flight.

use std::time::{Duration, Instant};

use crate::options::Options;
use crate::policy::{AVERAGE_WEIGHT, PONG_MISSES, SLOW_FACTOR};

/// What is to be done about a worker now.
#[derive(Debug, PartialEq)]
pub(crate) enum Check {
    Nothing,
    Ping,
    /// Two pings in a row had no answer, and nothing else was heard.
    Silent,
    /// It answers pings but finishes nothing of what it has.
    Stuck,
}

/// What one worker has let us see since it was ready.
#[derive(Debug)]
pub(crate) struct Health {
    received_at: Instant,
    pinged_at: Option<Instant>,
    misses: u32,
    progress_at: Instant,
    seen_at: Instant, // when it was last known whether there was progress
    counted_at: Instant,
    micro_batches: Option<u64>, // as of the last pong since the work began
    micro_batch_s: f64,         // their moving average
    is_stuck: bool,
}

impl Health {
    pub(crate) fn new(now: Instant) -> Health {
        Health {
            received_at: now,
            pinged_at: None,
            misses: 0,
            progress_at: now,
            seen_at: now,
            counted_at: now,
            micro_batches: None,
            micro_batch_s: 0.0,
            is_stuck: false,
        }
    }

    /// Note that the first request after a pause was sent: time without work is no slow micro-batch.
    pub(crate) fn work_began(&mut self, now: Instant) {
        (self.progress_at, self.seen_at, self.micro_batches) = (now, now, None);
    }

    /// Note a sign of life: any line.
    pub(crate) fn received(&mut self, now: Instant) {
        (self.received_at, self.misses) = (now, 0);
    }

    /// Note an answer to an `embed`, which is progress.
    pub(crate) fn embedded(&mut self, now: Instant) {
        (self.progress_at, self.seen_at) = (now, now);
    }

    /// Note a pong and what it tells of progress.
    pub(crate) fn ponged(&mut self, micro_batches: u64, is_busy: bool, now: Instant, options: &Options) {
        let before = self.micro_batches.replace(micro_batches);
        let pinged_at = self.pinged_at.take();
        if before != Some(micro_batches) {
            if let Some(finished) = before.and_then(|before| micro_batches.checked_sub(before)) {
                #[allow(clippy::cast_precision_loss)] // a mean
                let each_s = (now - self.counted_at).as_secs_f64() / finished as f64;
                self.micro_batch_s += AVERAGE_WEIGHT * (each_s - self.micro_batch_s);
            }
            (self.progress_at, self.counted_at) = (now, now);
        } else if let Some(pinged_at) = pinged_at.filter(|_| is_busy) {
            // As of the ping: a host that slept has answers lying in the pipe behind this pong.
            let patience = Duration::try_from_secs_f64(SLOW_FACTOR * self.micro_batch_s).unwrap_or(Duration::MAX);
            self.is_stuck = pinged_at.saturating_duration_since(self.progress_at) >= patience.max(options.stuck_after);
        }
        self.seen_at = now;
    }

    /// Decide; a returned `Ping` counts as sent.
    pub(crate) fn check(&mut self, is_busy: bool, now: Instant, options: &Options) -> Check {
        if self.is_stuck {
            return Check::Stuck;
        }
        if now < self.next_check(is_busy, options) {
            return Check::Nothing;
        }
        if self.pinged_at.is_some_and(|at| self.received_at < at) {
            self.misses += 1;
            if self.misses >= PONG_MISSES {
                return Check::Silent;
            }
        }
        self.pinged_at = Some(now);
        Check::Ping
    }

    /// When `check` has something to say, as far as is known now.
    pub(crate) fn next_check(&self, is_busy: bool, options: &Options) -> Instant {
        match self.pinged_at {
            _ if self.is_stuck => self.received_at,
            Some(at) => at + options.pong_timeout,
            None if is_busy => self.received_at.min(self.seen_at) + options.ping_every,
            None => self.received_at + options.ping_every,
        }
    }
}
