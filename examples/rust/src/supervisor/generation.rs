//! One worker process and all that belongs to it. It is dropped whole, so that nothing late counts.

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use crate::error::{Error, Exit};
use crate::lifecycle::Health;
use crate::request::{PIECE_BYTES, PIECE_TOKENS, Piece};
use crate::wire::Info;
use crate::worker::Worker;

const WINDOW_REQUESTS: usize = 256; // more would not make better batches, only more to send again
const WINDOW_TOKENS: usize = 65_536; // of bulk work: seconds of it, so that its time-outs measure work, not the queue
const WINDOW_BYTES: usize = 16 << 20;
const PIPE_GRACE: Duration = Duration::from_millis(250); // somebody else may hold the pipes of a dead worker open

/// What an id in flight stands for.
pub(super) enum Awaited {
    Info,
    Ping(Option<SyncSender<()>>),
    Cancel(u64),
    Piece(Piece),
}

/// The sentence on a worker: it gets nothing new, and is killed then unless it has gone before.
pub(super) struct Doom {
    pub at: Instant,
    pub cause: Error,
}

pub(super) struct Generation {
    pub number: u64,
    pub worker: Worker,
    pub info: Option<Arc<Info>>, // since it was ready
    pub health: Health,
    pub in_flight: BTreeMap<u64, Awaited>,
    pub requests: usize, // of the pieces in flight, like the next two
    bulk_tokens: usize,
    bytes: usize,
    pub is_on_trial: bool, // a suspect is alone with it
    pub nonsense: u32,     // lines that are no answers
    pub is_distrusted: bool,
    pub is_pipe_lost: bool,
    pub doom: Option<Doom>,
    killed_at: Option<Instant>,
    exited: Option<(Instant, ExitStatus)>,
}

impl Generation {
    pub(super) fn new(number: u64, worker: Worker, now: Instant) -> Generation {
        Generation {
            number,
            worker,
            info: None,
            health: Health::new(now),
            in_flight: BTreeMap::new(),
            requests: 0,
            bulk_tokens: 0,
            bytes: 0,
            is_on_trial: false,
            nonsense: 0,
            is_distrusted: false,
            is_pipe_lost: false,
            doom: None,
            killed_at: None,
            exited: None,
        }
    }

    /// What it serves, while it may be sent something.
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
        self.is_on_trial |= piece.is_suspect;
    }

    /// Take a piece that was answered out of what is in flight.
    pub(super) fn settle(&mut self, id: u64, now: Instant) -> Option<Piece> {
        let Some(Awaited::Piece(piece)) = self.in_flight.remove(&id) else { return None };
        self.requests -= 1;
        self.bytes -= piece.bytes;
        self.bulk_tokens -= if piece.is_short() { 0 } else { piece.tokens };
        self.is_on_trial &= !piece.is_suspect;
        self.health.embedded(now);
        Some(piece)
    }

    pub(super) fn doom(&mut self, at: Instant, cause: Error) {
        if self.doom.as_ref().is_none_or(|doom| at < doom.at) {
            self.doom = Some(Doom { at, cause });
        }
    }

    pub(super) fn kill(&mut self, now: Instant) {
        if self.killed_at.is_none() {
            self.worker.kill();
            self.killed_at = Some(now);
        }
    }

    /// Whether its end is a matter of milliseconds.
    pub(super) fn is_dying(&self) -> bool {
        self.is_pipe_lost || self.killed_at.is_some() || self.exited.is_some()
    }

    /// Look whether the process is dead and has said all that it ever will; with its status, unless it will not die.
    pub(super) fn poll_end(&mut self, now: Instant, patience: Duration) -> Option<Option<ExitStatus>> {
        if self.exited.is_none() {
            self.exited = self.worker.try_exit().map(|status| (now, status));
        }
        match (self.exited, self.killed_at) {
            (Some((at, status)), _) => (self.worker.has_said_all() || now >= at + PIPE_GRACE).then_some(Some(status)),
            (None, Some(at)) => (now >= at + patience).then_some(None),
            (None, None) => None,
        }
    }

    /// The error that tells of its end.
    pub(super) fn last_words(&self, status: Option<ExitStatus>) -> Error {
        let error = match &self.doom {
            Some(doom) if self.killed_at.is_some() || matches!(doom.cause, Error::WorkerStart(_)) => doom.cause.clone(),
            _ if self.info.is_none() => Error::WorkerStart(Exit::default()),
            _ => Error::WorkerDied(Exit::default()),
        };
        error.with_exit(status, self.worker.stderr_tail())
    }
}
