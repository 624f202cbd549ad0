//! What waits, what is sent when, and what is withdrawn.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::Instant;

use super::State;
use super::generation::{Awaited, Generation};
use crate::error::Error;
use crate::request::{Job, Piece};
use crate::wire::Request;

/// What waits to be sent. Short pieces go first: a query must not wait behind an import.
#[derive(Default)]
pub(super) struct Queue {
    short: VecDeque<Piece>,
    bulk: VecDeque<Piece>,
    bytes: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.short.len() + self.bulk.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Piece> {
        self.short.iter().chain(&self.bulk)
    }

    fn lane(&mut self, piece: &Piece) -> &mut VecDeque<Piece> {
        if piece.is_short() { &mut self.short } else { &mut self.bulk }
    }

    pub(super) fn push_back(&mut self, piece: Piece) {
        self.bytes += piece.bytes;
        self.lane(&piece).push_back(piece);
    }

    pub(super) fn push_front(&mut self, piece: Piece) {
        self.bytes += piece.bytes;
        self.lane(&piece).push_front(piece);
    }

    fn pop(&mut self, worker: &Generation) -> Option<Piece> {
        let short = if worker.has_room(true) { self.short.pop_front() } else { None };
        let piece = short.or_else(|| if worker.has_room(false) { self.bulk.pop_front() } else { None })?;
        self.bytes -= piece.bytes;
        Some(piece)
    }

    fn retain(&mut self, is_kept: impl Fn(&Piece) -> bool) {
        self.short.retain(&is_kept);
        self.bulk.retain(&is_kept);
        self.bytes = self.iter().map(|piece| piece.bytes).sum();
    }
}

impl State {
    /// Whether a call of so many bytes may be queued; an error while nothing can be served.
    pub(super) fn has_space(&self, bytes: usize) -> Result<bool, Error> {
        self.refusal()?;
        let is_full = self.queue.len() >= self.options.max_queued;
        Ok(self.queue.len() == 0 || !is_full && self.queue.bytes + bytes <= self.options.max_queued_bytes)
    }

    /// Everything that somebody waits for.
    pub(super) fn pieces(&self) -> impl Iterator<Item = &Piece> {
        let in_flight = self.current.iter().flat_map(|current| current.in_flight.values());
        let sent = in_flight.filter_map(|awaited| if let Awaited::Piece(piece) = awaited { Some(piece) } else { None });
        sent.chain(&self.suspects).chain(self.queue.iter()).filter(|piece| !piece.job.is_over())
    }

    /// Send what may be sent: suspects first and alone, then short pieces, then bulk.
    pub(super) fn dispatch(&mut self, now: Instant) {
        while let Some(current) = &self.current
            && let Some(info) = current.serving()
            && !current.is_on_trial
        {
            let next = match self.suspects.is_empty() {
                true => self.queue.pop(current),
                false if current.requests == 0 => self.suspects.pop_front(),
                false => None, // until it has nothing else to do
            };
            let Some(piece) = next else { return };
            let job = Arc::clone(&piece.job);
            match piece.cut(&info.limits) {
                Ok((piece, rest)) => {
                    rest.into_iter().for_each(|rest| self.put_back(rest));
                    self.send_piece(piece, now);
                }
                Err(error) => self.fail(&job, error),
            }
            self.changed.notify_all(); // there may be room
        }
    }

    /// Let a piece be the next of its kind.
    pub(super) fn put_back(&mut self, piece: Piece) {
        if piece.is_suspect { self.suspects.push_front(piece) } else { self.queue.push_front(piece) }
    }

    fn send_piece(&mut self, mut piece: Piece, now: Instant) {
        let Some(current) = &mut self.current else { return };
        if current.requests == 0 {
            current.health.work_began(now);
        }
        piece.attempts += 1;
        piece.first_sent.get_or_insert(now);
        current.load(&piece);
        let next_check = current.health.next_check(true, &self.options);
        let deadline = piece.deadline().unwrap_or(next_check);
        self.send(Awaited::Piece(piece));
        self.wake_by(deadline.min(next_check));
    }

    /// Send something under an id that is never used again.
    pub(super) fn send(&mut self, awaited: Awaited) {
        let Some(current) = &mut self.current else { return };
        let request = match &awaited {
            Awaited::Info => Request::Info,
            Awaited::Ping(_) => Request::Ping,
            Awaited::Cancel(target) => Request::Cancel(*target),
            Awaited::Piece(piece) => Request::Embed(Arc::clone(&piece.job), piece.range.clone()),
        };
        current.worker.send(self.next_id, request);
        current.in_flight.insert(self.next_id, awaited);
        self.next_id += 1;
    }

    /// End a call with an error, unless it has ended before.
    pub(super) fn fail(&mut self, job: &Arc<Job>, error: Error) {
        if job.fail(error) {
            self.sweep();
        }
    }

    /// Fail everything that has not been sent.
    pub(super) fn fail_waiting(&mut self, error: impl Fn() -> Error) {
        let queue = mem::take(&mut self.queue);
        for piece in self.suspects.drain(..).chain(queue.short).chain(queue.bulk) {
            piece.job.fail(error());
        }
        self.sweep();
    }

    /// Drop what is left of calls that are over: unsent pieces here, sent ones in the worker.
    pub(super) fn sweep(&mut self) {
        self.suspects.retain(|piece| !piece.job.is_over());
        self.queue.retain(|piece| !piece.job.is_over());
        self.changed.notify_all();
        let mut withdrawn = Vec::new();
        for (id, awaited) in self.current.iter_mut().flat_map(|current| &mut current.in_flight) {
            // It stays in flight: it still takes the worker's time, and its late answer is ignored.
            if let Awaited::Piece(piece) = awaited
                && !piece.is_withdrawn
                && piece.job.is_over()
            {
                piece.is_withdrawn = true;
                withdrawn.push(*id);
            }
        }
        withdrawn.into_iter().for_each(|id| self.send(Awaited::Cancel(id)));
    }
}
