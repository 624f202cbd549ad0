//! When to restart, and what is a hang: pure decisions. Times come in, verdicts come out.

use std::time::{Duration, Instant};

use crate::options::Options;

const HEALTHY: Duration = Duration::from_secs(60);
const RECYCLE_EVERY: Duration = Duration::from_secs(60);
const MISSES: u32 = 2;

/// What follows from the loss of a worker.
#[derive(Debug, PartialEq)]
pub(crate) enum Restart {
    At(Instant),
    /// The budget is spent: refuse everything until then.
    Open(Instant),
}

/// The restart budget: a leaky bucket. A failure adds one; only time in which a worker was really useful takes it out
/// again, so that neither a quick "successful" start nor a crash every minute goes on for ever.
#[derive(Default)]
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

    /// Account for the end of a worker. `jitter` lies in -1 … 1.
    pub(crate) fn lost(&mut self, is_recycle: bool, now: Instant, jitter: f64, options: &Options) -> Restart {
        let useful = self.useful_since.take().map_or(Duration::ZERO, |since| now - since);
        let was_healthy = self.ready_since.take().is_some_and(|since| now - since >= HEALTHY);
        let spent = f64::from(options.restart_budget);
        self.level = (self.level - useful.div_duration_f64(options.restart_forgive)).max(0.0);
        if is_recycle && self.recycled_at.is_none_or(|at| now - at >= RECYCLE_EVERY) {
            self.recycled_at = Some(now);
            return Restart::At(now);
        }
        self.level = (self.level + 1.0).min(spent);
        if self.level >= spent {
            let wait = self.open_for.unwrap_or(options.open_initial);
            self.open_for = Some((2 * wait).min(options.open_max));
            return Restart::Open(now + wait);
        }
        if was_healthy {
            (self.failures_in_a_row, self.open_for) = (0, None);
            return Restart::At(now);
        }
        let doubled = options.backoff_initial.as_secs_f64() * 2f64.powi(self.failures_in_a_row.min(64));
        self.failures_in_a_row += 1;
        let delay_s = doubled.min(options.backoff_max.as_secs_f64()) * (1.0 + 0.2 * jitter);
        Restart::At(now + Duration::from_secs_f64(delay_s))
    }
}

/// What is to be done about a worker now.
#[derive(Debug, PartialEq)]
pub(crate) enum Check {
    Nothing,
    Ping,
    /// Two pings in a row had no answer, and nothing else was heard.
    Silent,
    /// It answers pings but finishes nothing of what it has: alive is not the same as working.
    Stuck,
}

/// What one worker has let us see since it was ready.
pub(crate) struct Health {
    received_at: Instant,
    pinged_at: Option<Instant>,
    misses: u32,
    progress_at: Instant,
    seen_at: Instant, // when it was last known whether there was progress
    micro_batches: Option<u64>,
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
            micro_batches: None,
            is_stuck: false,
        }
    }

    /// Note that the first request after a pause was sent.
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
            self.progress_at = now;
        } else if let Some(pinged_at) = pinged_at.filter(|_| is_busy) {
            // As of the ping: a host that slept has answers lying in the pipe behind this pong.
            self.is_stuck = pinged_at.saturating_duration_since(self.progress_at) >= options.stuck_after;
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
            if self.misses >= MISSES {
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

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn delay(restart: Restart, now: Instant) -> f64 {
        match restart {
            Restart::At(at) => (at - now).as_secs_f64(),
            Restart::Open(_) => f64::INFINITY,
        }
    }

    #[test]
    fn the_back_off_doubles_and_the_fifth_failure_opens_the_circuit() {
        let (options, now) = (Options::default(), Instant::now());
        let mut budget = Budget::default();
        let delays: Vec<f64> = (0..4).map(|_| delay(budget.lost(false, now, 0.0, &options), now)).collect();
        assert_eq!(delays, [0.2, 0.4, 0.8, 1.6]);
        assert_eq!(budget.lost(false, now, 0.0, &options), Restart::Open(now + 60 * SECOND));
        assert_eq!(budget.lost(false, now, 0.0, &options), Restart::Open(now + 120 * SECOND), "half-open, and again");
    }

    #[test]
    fn starting_well_forgives_nothing_and_useful_time_does() {
        let (options, mut now) = (Options::default(), Instant::now());
        let (mut idle, mut useful) = (Budget::default(), Budget::default());
        for round in 0..10 {
            for budget in [&mut idle, &mut useful] {
                budget.ready(now);
            }
            useful.embedded(now);
            now += 61 * SECOND;
            let is_open = matches!(idle.lost(false, now, 0.0, &options), Restart::Open(_));
            assert_eq!(is_open, round >= 4, "ready but never useful, round {round}");
            assert_eq!(useful.lost(false, now, 0.0, &options), Restart::At(now), "useful, round {round}");
        }
    }

    #[test]
    fn a_recycle_is_free_once_a_minute() {
        let (options, now) = (Options::default(), Instant::now());
        let mut budget = Budget::default();
        assert_eq!(budget.lost(true, now, 0.0, &options), Restart::At(now));
        assert_ne!(budget.lost(true, now + SECOND, 0.0, &options), Restart::At(now + SECOND));
        assert_eq!(budget.lost(true, now + 60 * SECOND, 0.0, &options), Restart::At(now + 60 * SECOND));
    }

    #[test]
    fn two_pings_without_an_answer_are_a_hang_and_any_line_is_a_sign_of_life() {
        let (options, start) = (Options::default(), Instant::now());
        let mut health = Health::new(start);
        assert_eq!(health.check(false, start + 4 * SECOND, &options), Check::Nothing);
        assert_eq!(health.check(false, start + 5 * SECOND, &options), Check::Ping);
        health.received(start + 6 * SECOND);
        assert_eq!(health.check(false, start + 15 * SECOND, &options), Check::Ping, "something was heard meanwhile");
        assert_eq!(health.check(false, start + 25 * SECOND, &options), Check::Ping, "a miss");
        assert_eq!(health.check(false, start + 35 * SECOND, &options), Check::Silent);
    }

    #[test]
    fn answering_pings_without_progress_is_a_hang_only_while_there_is_work() {
        let (options, start) = (Options::default(), Instant::now());
        for is_busy in [true, false] {
            let mut health = Health::new(start);
            health.work_began(start);
            let mut verdicts = Vec::new();
            for second in 1..=100 {
                let now = start + second * SECOND;
                match health.check(is_busy, now, &options) {
                    Check::Ping => {
                        health.received(now);
                        health.ponged(7, is_busy, now, &options);
                    }
                    Check::Nothing => {}
                    verdict => verdicts.push((second, verdict)),
                }
            }
            let first = verdicts.into_iter().next();
            assert_eq!(first, is_busy.then_some((66, Check::Stuck)), "busy: {is_busy}");
        }
    }
}
