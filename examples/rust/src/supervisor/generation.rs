//! One worker process and all that belongs to it. It is dropped whole, so that nothing late counts.

use std::collections::{BTreeMap, HashMap};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Instant;

use crate::exit::{cause_of, end_of, Cause, Exit};
use crate::health::Health;
use crate::info::Info;
use crate::piece::Piece;
use crate::policy::{PIECE_BYTES, PIECE_TOKENS, WINDOW_BYTES, WINDOW_REQUESTS, WINDOW_TOKENS};
use crate::worker::Worker;

/// What an id in flight stands for.
pub(super) enum Awaited {
    /// The handshake, or what the worker says of a further model.
    Info(Option<String>),
    LoadModel(String),
    /// A ping of the bridge itself, or of a host's call.
    Ping(Option<u64>),
    Cancel(u64),
    Embed(Piece, Arc<Info>),
}

/// A further model of this process.
pub(super) enum Model {
    AskedFor { since: Instant, is_loading: bool },
    Ready(Arc<Info>),
}

/// The sentence on a worker: it gets nothing new, and is killed then unless it has gone before.
pub(super) struct Doom {
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
    pub requests: usize, // of the pieces in flight, like the next two
    bulk_tokens: usize,
    bytes: usize,
    pub nonsense: u32, // lines that are no answers
    pub first_nonsense: String,
    pub is_distrusted: bool,
    pub doom: Option<Doom>,
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
            nonsense: 0,
            first_nonsense: String::new(),
            is_distrusted: false,
            doom: None,
            killed_at: None,
        }
    }

    /// Return what it serves, while it may be sent something.
    pub(super) fn serving(&self) -> Option<&Arc<Info>> {
        self.info.as_ref().filter(|_| self.doom.is_none())
    }

    /// Whether one more piece fits into the window of what is in flight.
    pub(super) fn has_room(&self, is_short: bool) -> bool {
        let Some(info) = self.serving() else { return false };
        let window_bytes = WINDOW_BYTES.min(info.limits.max_in_flight_bytes / 2);
        // Only bulk work counts against bulk work: a short text never waits behind a long call in here.
        let has_bulk_room =
            self.bulk_tokens + PIECE_TOKENS <= WINDOW_TOKENS && self.bytes + PIECE_BYTES <= window_bytes;
        let has_request_room = self.requests < WINDOW_REQUESTS.min(info.limits.max_in_flight);
        self.requests == 0 || has_request_room && (is_short || has_bulk_room)
    }

    /// Count a piece that was sent.
    pub(super) fn load(&mut self, piece: &Piece) {
        self.requests += 1;
        self.bytes += piece.bytes;
        self.bulk_tokens += if piece.is_short() { 0 } else { piece.tokens };
    }

    /// Take a piece that was answered out of what is in flight.
    pub(super) fn settle(&mut self, id: u64, now: Instant) -> Option<Piece> {
        if !matches!(self.in_flight.get(&id), Some(Awaited::Embed(..))) {
            return None;
        }
        let Some(Awaited::Embed(piece, _)) = self.in_flight.remove(&id) else { return None };
        self.requests -= 1;
        self.bytes -= piece.bytes;
        self.bulk_tokens -= if piece.is_short() { 0 } else { piece.tokens };
        self.health.embedded(now);
        Some(piece)
    }

    /// Send nothing more, and have it killed then, unless another reason is sooner.
    pub(super) fn doom(&mut self, at: Instant, cause: Cause, detail: impl Into<String>) {
        if self.doom.as_ref().map_or(true, |doom| at < doom.at) {
            self.doom = Some(Doom { at, cause, detail: detail.into() });
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
        let ours = self.doom.as_ref().filter(|_| is_ours).map(|doom| doom.cause);
        let why = self.doom.as_ref().filter(|_| is_ours || self.info.is_none()).map(|doom| doom.detail.clone());
        let noise = (self.info.is_none() && self.nonsense > 0)
            .then(|| format!("something else than answers was on the pipe: {}", self.first_nonsense));
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
