//! Who killed the worker? Which requests are sent again when it died, how, and which input is to blame.
//!
//! What was in flight is isolated: sent again alone, one chunk at a time. A chunk of many inputs that is alone when
//! the worker dies is halved; one input that was alone twice, by itself or inside what it was cut from, is blamed. A
//! signal from outside blames nobody.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use crate::chunk::Chunk;
use crate::exit::{Cause, Exit};

const DEATHS_TO_BLAME: u32 = 2;
const OUT_OF_MEMORY_DIVISOR: usize = 4;
const CEILING_REMEMBERED: Duration = Duration::from_secs(600);
const QUARANTINE: Duration = Duration::from_secs(3600);
const QUARANTINE_TEXTS: usize = 1024;

/// What follows from one death.
#[derive(Default)]
pub(crate) struct Verdict {
    pub again: Vec<Chunk>, // to be sent before everything else, in order, as if nothing had happened
    pub isolated_of: Vec<u64>, // the call of each chunk that is to be sent alone
    pub blamed: Option<Chunk>,
    pub failed: Vec<Chunk>, // the whole call fails with the death
    pub is_uncharged: bool,
    pub is_investigation: bool,
}

/// The isolated chunks, and what the deaths of workers have taught.
#[derive(Default)]
pub(crate) struct Investigation {
    pub isolated: VecDeque<Chunk>, // to be sent alone, before anything else
    probed: Option<u64>,           // the request of the chunk that is alone with the worker
    is_charged: bool,              // for deaths with one chunk alone
    ceiling: Option<(usize, Instant)>,
}

impl Investigation {
    /// Whether an isolated chunk is alone with the worker: nothing else may be sent.
    pub(crate) fn is_probing(&self) -> bool {
        self.probed.is_some()
    }

    /// Return the most inputs that a chunk may have since memory was short.
    pub(crate) fn most_inputs(&self, now: Instant) -> usize {
        self.ceiling.filter(|(_, until)| now < *until).map_or(usize::MAX, |(inputs, _)| inputs)
    }

    pub(crate) fn probe(&mut self, request: u64) {
        self.probed = Some(request);
    }

    /// Clear an isolated chunk: it is to blame for nothing.
    pub(crate) fn answered(&mut self, request: u64) {
        self.probed = self.probed.filter(|&probed| probed != request);
        self.close_if_done();
    }

    /// End the investigation when nobody is left.
    pub(crate) fn close_if_done(&mut self) {
        self.is_charged &= self.probed.is_some() || !self.isolated.is_empty();
    }

    /// Learn from a chunk of so many inputs that took too much memory.
    pub(crate) fn out_of_memory(&mut self, inputs: usize, now: Instant) {
        let most = self.most_inputs(now).min(inputs) / OUT_OF_MEMORY_DIVISOR;
        self.ceiling = Some((most.max(1), now + CEILING_REMEMBERED));
    }

    /// Decide about everything that was in flight, in the order in which it was sent.
    pub(crate) fn judge(&mut self, in_flight: Vec<Chunk>, exit: &Exit, replay: bool, now: Instant) -> Verdict {
        let mut verdict = Verdict::default();
        let is_alone = in_flight.len() == 1;
        self.probed = None;
        if let Some(largest) = in_flight.iter().map(|chunk| chunk.range.len()).max() {
            if exit.may_be_out_of_memory() {
                self.out_of_memory(largest, now);
            }
        }
        let wanted: Vec<Chunk> = in_flight.into_iter().filter(|chunk| !chunk.call.is_over()).collect();
        let mut isolated = Vec::new();
        if matches!(exit.cause, Cause::Asked | Cause::Recycled) {
            // It ended in an orderly way: what it has not answered it has not begun.
            (isolated, verdict.again) = wanted.into_iter().partition(|chunk| chunk.is_isolated);
        } else if !replay {
            verdict.failed = wanted;
        } else if is_alone {
            isolated = wanted.into_iter().flat_map(|chunk| self.judge_alone(chunk, exit, &mut verdict)).collect();
        } else {
            isolated = wanted;
        }
        for mut chunk in isolated.into_iter().rev() {
            chunk.is_isolated = true;
            verdict.isolated_of.push(chunk.call.number);
            self.isolated.push_front(chunk);
        }
        self.close_if_done();
        verdict
    }

    /// Decide about a chunk that was alone with the worker; return what is still to be isolated.
    fn judge_alone(&mut self, mut chunk: Chunk, exit: &Exit, verdict: &mut Verdict) -> Vec<Chunk> {
        let (inputs, blames_input) = (chunk.range.len(), exit.cause.may_blame_input());
        // Deaths that bring the search further cost the budget once; a single input that is killed from outside again
        // and again brings nothing further, and must not restart the worker for ever.
        if blames_input || exit.may_be_out_of_memory() && inputs > 1 {
            (verdict.is_uncharged, verdict.is_investigation) = (self.is_charged, true);
            self.is_charged = true;
        }
        if !blames_input {
            return vec![chunk];
        }
        chunk.lone_deaths += 1;
        let (of_call, all_inputs) = (chunk.call.count_lone_death(), chunk.call.inputs.len());
        if all_inputs != 1 && of_call >= most_lone_deaths(all_inputs) {
            verdict.failed.push(chunk);
        } else if inputs > 1 {
            let (left, right) = chunk.cut_at(inputs / 2);
            return vec![left, right];
        } else if inputs == 1 && chunk.lone_deaths >= DEATHS_TO_BLAME {
            verdict.blamed = Some(chunk);
        } else {
            return vec![chunk];
        }
        Vec::new()
    }
}

/// How many workers one call may kill: one more than it takes to find any two inputs to blame.
fn most_lone_deaths(inputs: usize) -> u32 {
    2 + 2 * inputs.max(1).next_power_of_two().trailing_zeros()
}

/// The inputs that were blamed within the last hour, as hashes under keys that nobody knows: no text is kept.
#[derive(Default)]
pub(crate) struct Quarantine {
    keys: [RandomState; 2],
    until: HashMap<[u64; 2], Instant>,
}

impl Quarantine {
    fn digest(&self, text: &str) -> [u64; 2] {
        [self.keys[0].hash_one(text), self.keys[1].hash_one(text)]
    }

    /// Refuse this text for an hour; the one that has the least time left goes when there are too many.
    pub(crate) fn add(&mut self, text: &str, now: Instant) {
        self.until.insert(self.digest(text), now + QUARANTINE);
        if self.until.len() > QUARANTINE_TEXTS {
            let first = self.until.iter().min_by_key(|(_, until)| **until).map(|(digest, _)| *digest);
            first.map(|digest| self.until.remove(&digest));
        }
    }

    /// Return the indexes of the texts that are refused.
    pub(crate) fn find(&self, texts: &[String], now: Instant) -> Vec<usize> {
        if self.until.is_empty() {
            return Vec::new();
        }
        let is_refused = |text: &String| self.until.get(&self.digest(text)).is_some_and(|until| now < *until);
        texts.iter().enumerate().filter(|(_, text)| is_refused(text)).map(|(index, _)| index).collect()
    }
}
