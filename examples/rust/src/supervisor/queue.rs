//! What waits to be sent, and the calls that somebody waits for.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::generation::Generation;
use crate::chunk::Chunk;
use crate::error::Error;
use crate::info::Info;
use crate::promise::Promise;
use crate::text_call::TextCall;

const FEW: usize = 64;

/// What waits to be sent. Short chunks go first: a query must not wait behind an import.
#[derive(Default)]
pub(super) struct Queue {
    pub again: VecDeque<Chunk>, // sent before, and not answered through no fault of theirs
    short: VecDeque<Chunk>,
    bulk: VecDeque<Chunk>,
    dead: usize, // how many of them are of calls that are over, at most
}

impl Queue {
    fn lane(&mut self, chunk: &Chunk) -> &mut VecDeque<Chunk> {
        if chunk.first_sent.is_some() {
            &mut self.again
        } else if chunk.is_short() {
            &mut self.short
        } else {
            &mut self.bulk
        }
    }

    pub(super) fn push_back(&mut self, chunk: Chunk) {
        self.lane(&chunk).push_back(chunk);
    }

    pub(super) fn push_front(&mut self, chunk: Chunk) {
        self.lane(&chunk).push_front(chunk);
    }

    pub(super) fn pop(&mut self, worker: &Generation) -> Option<Chunk> {
        let (is_room, is_bulk_room) = (worker.has_room(true), worker.has_room(false));
        let lanes = [(&mut self.again, is_room), (&mut self.short, is_room), (&mut self.bulk, is_bulk_room)];
        lanes.into_iter().filter(|(_, is_room)| *is_room).find_map(|(lane, _)| lane.pop_front())
    }

    /// Note that chunks of a call that is over may lie about; they go at once when they are many, else when their turn
    /// comes. So withdrawing a call costs the same however long the queue is.
    pub(super) fn forget(&mut self, chunks: usize) {
        self.dead += chunks;
        let lanes = [&mut self.again, &mut self.short, &mut self.bulk];
        if self.dead > FEW.max(lanes.iter().map(|lane| lane.len()).sum::<usize>() / 2) {
            for lane in lanes {
                lane.retain(|chunk| !chunk.call.is_over());
            }
            self.dead = 0;
        }
    }
}

/// A call that somebody waits for.
pub(super) struct Call {
    pub wanted: Wanted,
    pub deadline: Option<Instant>,
    pub timeout: Duration,
    pub unsent: usize,  // chunks that wait to be sent
    pub sent: Vec<u64>, // requests in flight
}

pub(super) enum Wanted {
    Texts(Arc<TextCall>),
    Info { promise: Arc<Promise<Info>>, model: Option<String>, is_to_load: bool },
    Pong(Arc<Promise<()>>),
}

impl Call {
    pub(super) fn fail(&self, error: Error, wakers: &mut Vec<Waker>) {
        match &self.wanted {
            Wanted::Texts(call) => call.promised.fail(error, wakers),
            Wanted::Info { promise, .. } => promise.settle(Err(error), wakers),
            Wanted::Pong(promise) => promise.settle(Err(error), wakers),
        };
    }

    fn bytes(&self) -> usize {
        if let Wanted::Texts(call) = &self.wanted {
            call.bytes
        } else {
            0
        }
    }
}

/// All calls that are not over, by number.
#[derive(Default)]
pub(super) struct Calls {
    by_number: HashMap<u64, Call>,
    deadlines: BTreeSet<(Instant, u64)>,
    queued: usize, // calls with something unsent
    queued_bytes: usize,
}

impl Calls {
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Call> {
        self.by_number.get_mut(&number)
    }

    pub(super) fn insert(&mut self, number: u64, call: Call) {
        self.deadlines.extend(call.deadline.map(|deadline| (deadline, number)));
        self.by_number.insert(number, call);
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Call> {
        let call = self.by_number.remove(&number)?;
        call.deadline.map(|deadline| self.deadlines.remove(&(deadline, number)));
        if call.unsent > 0 {
            self.queued -= 1;
            self.queued_bytes -= call.bytes();
        }
        Some(call)
    }

    /// Count chunks that wait, or wait no more.
    pub(super) fn count_unsent(&mut self, number: u64, more: usize, fewer: usize) {
        let Some(call) = self.by_number.get_mut(&number) else { return };
        let before = call.unsent;
        call.unsent = call.unsent + more - fewer;
        match (before, call.unsent) {
            (0, 1..) => {
                self.queued += 1;
                self.queued_bytes += call.bytes();
            }
            (1.., 0) => {
                self.queued -= 1;
                self.queued_bytes -= call.bytes();
            }
            _ => {}
        }
    }

    /// Forget an embedding of which nothing is missing here any more.
    pub(super) fn release(&mut self, number: u64) {
        if self.by_number.get(&number).is_some_and(|call| call.unsent == 0 && call.sent.is_empty()) {
            self.remove(number);
        }
    }

    /// Whether a call asks what the worker says of this model.
    pub(super) fn asks_for(&self, number: u64, name: &str) -> bool {
        let wanted = self.by_number.get(&number).map(|call| &call.wanted);
        matches!(wanted, Some(Wanted::Info { model: Some(model), .. }) if model == name)
    }

    /// Return the calls that have something unsent, in the order in which they were made.
    pub(super) fn unsent(&self) -> Vec<u64> {
        let is_unsent = |call: &Call| call.unsent > 0 || !matches!(call.wanted, Wanted::Texts(_));
        let mut numbers: Vec<u64> =
            self.by_number.iter().filter(|(_, call)| is_unsent(call)).map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Return the calls whose own time is over.
    pub(super) fn late(&self, now: Instant) -> Vec<u64> {
        self.deadlines.iter().take_while(|(deadline, _)| *deadline <= now).map(|(_, number)| *number).collect()
    }
}
