//! One worker process and all that belongs to it. It is dropped whole, so that nothing late counts.

use std::collections::{BTreeMap, HashMap};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Instant;

use crate::chunk::Chunk;
use crate::exit::{cause_of, end_of, Cause, Exit};
use crate::health::Health;
use crate::info::Info;
use crate::policy::{CHUNK_BYTES, CHUNK_TOKENS, WINDOW_BYTES, WINDOW_REQUESTS, WINDOW_TOKENS};
use crate::worker::Worker;

/// What an id in flight stands for.
pub(super) enum Awaited {
    /// The handshake, or what the worker says of a further model.
    Info(Option<String>),
    LoadModel(String),
    /// A ping of the bridge itself, or of a host's call.
    Ping(Option<u64>),
    Cancel(u64),
    Texts(Chunk, Arc<Info>),
}

/// A further model of this process.
pub(super) enum Model {
    AskedFor { since: Instant, is_loading: bool },
    Ready(Arc<Info>),
}

/// The sentence on a worker: it gets nothing new, and is killed then unless it has gone before.
pub(super) struct Stop {
    pub at: Instant,
    cause: Cause,
    detail: String,
}

pub(super) struct Generation {
    pub number: u64,
    pub worker: Worker,
    pub info: Option<Arc<Info>>, // since it was ready
    pub models: HashMap<String, Model>,
    pub health: Health,
    pub in_flight: BTreeMap<u64, Awaited>,
    pub requests: usize, // of the chunks in flight, like the next two
    bulk_tokens: usize,
    bytes: usize,
    pub invalid_lines: u32, // lines that are no answers
    pub first_invalid_line: String,
    pub is_output_ignored: bool,
    pub stop: Option<Stop>,
    pub killed_at: Option<Instant>,
}

impl Generation {
    pub(super) fn new(number: u64, worker: Worker, now: Instant) -> Generation {
        Generation {
            number,
            worker,
            info: None,
            models: HashMap::new(),
            health: Health::new(now),
            in_flight: BTreeMap::new(),
            requests: 0,
            bulk_tokens: 0,
            bytes: 0,
            invalid_lines: 0,
            first_invalid_line: String::new(),
            is_output_ignored: false,
            stop: None,
            killed_at: None,
        }
    }

    /// Return what it serves, while it may be sent something.
    pub(super) fn serving(&self) -> Option<&Arc<Info>> {
        self.info.as_ref().filter(|_| self.stop.is_none())
    }

    /// Whether one more chunk fits into the window of what is in flight.
    pub(super) fn has_room(&self, is_short: bool) -> bool {
        let Some(info) = self.serving() else { return false };
        let window_bytes = WINDOW_BYTES.min(info.limits.max_in_flight_bytes / 2);
        // Only bulk work counts against bulk work: a short text never waits behind a long call in here.
        let has_bulk_room =
            self.bulk_tokens + CHUNK_TOKENS <= WINDOW_TOKENS && self.bytes + CHUNK_BYTES <= window_bytes;
        let has_request_room = self.requests < WINDOW_REQUESTS.min(info.limits.max_in_flight);
        self.requests == 0 || has_request_room && (is_short || has_bulk_room)
    }

    /// Count a chunk that was sent.
    pub(super) fn load(&mut self, chunk: &Chunk) {
        self.requests += 1;
        self.bytes += chunk.bytes;
        self.bulk_tokens += if chunk.is_short() { 0 } else { chunk.tokens };
    }

    /// Take a chunk that was answered out of what is in flight.
    pub(super) fn settle(&mut self, id: u64, now: Instant) -> Option<Chunk> {
        if !matches!(self.in_flight.get(&id), Some(Awaited::Texts(..))) {
            return None;
        }
        let Some(Awaited::Texts(chunk, _)) = self.in_flight.remove(&id) else { return None };
        self.requests -= 1;
        self.bytes -= chunk.bytes;
        self.bulk_tokens -= if chunk.is_short() { 0 } else { chunk.tokens };
        self.health.embedded(now);
        Some(chunk)
    }

    /// Send nothing more, and have it killed then, unless another reason is sooner.
    pub(super) fn stop(&mut self, at: Instant, cause: Cause, detail: impl Into<String>) {
        if self.stop.as_ref().map_or(true, |stop| at < stop.at) {
            self.stop = Some(Stop { at, cause, detail: detail.into() });
        }
    }

    pub(super) fn kill(&mut self, now: Instant) {
        if self.killed_at.is_none() {
            self.worker.kill();
            self.killed_at = Some(now);
        }
    }

    /// Tell of its end.
    pub(super) fn report(&self, status: Option<ExitStatus>) -> Exit {
        let is_ours = self.killed_at.is_some();
        let ours = self.stop.as_ref().filter(|_| is_ours).map(|stop| stop.cause);
        let why = self.stop.as_ref().filter(|_| is_ours || self.info.is_none()).map(|stop| stop.detail.clone());
        let noise = (self.info.is_none() && self.invalid_lines > 0)
            .then(|| format!("something else than answers was on the pipe: {}", self.first_invalid_line));
        Exit {
            cause: cause_of(end_of(status), ours, cfg!(windows)),
            detail: why.into_iter().chain(noise).collect::<Vec<_>>().join(", "),
            pid: Some(self.worker.pid),
            status,
            stderr_tail: self.worker.stderr_tail(),
            was_ready: self.info.is_some(),
            source: None,
        }
    }
}
