//! One embedding call: its inputs, and how the vectors of its chunks are joined again.

use std::collections::BTreeMap;
use std::mem;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::embeddings::Embeddings;
use crate::error::Error;
use crate::info::Info;
use crate::parameters::Parameters;
use crate::promise::Promise;
use crate::wire::Vectors;

pub(crate) struct EmbedCall {
    pub number: u64,
    pub inputs: Vec<String>,
    pub parameters: Parameters,
    pub bytes: usize,
    pub deadline: Option<Instant>, // of the whole call; goes before `timeout`
    pub timeout: Duration,         // of each chunk, from being sent first
    pub promise: Arc<Promise<Embeddings>>,
    lone_deaths: AtomicU32, // of workers, with one of its chunks alone
    parts: Mutex<Parts>,
}

/// What has come back. Everything before `next` is joined already.
#[derive(Default)]
struct Parts {
    next: usize,
    waiting: BTreeMap<usize, (usize, Option<Vectors>)>, // by the first input: how many, and what came of them
    blamed: Vec<usize>,
    joined: Embeddings,
}

impl EmbedCall {
    pub(crate) fn new(
        number: u64,
        inputs: Vec<String>,
        parameters: Parameters,
        default_timeout: Duration,
    ) -> EmbedCall {
        EmbedCall {
            number,
            bytes: inputs.iter().map(String::len).sum(),
            inputs,
            deadline: parameters.timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            timeout: parameters.timeout.unwrap_or(default_timeout),
            parameters,
            promise: Arc::default(),
            lone_deaths: AtomicU32::new(0),
            parts: Mutex::default(),
        }
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.promise.is_over()
    }

    /// Count a worker that died with a chunk of this alone; return how many there are now.
    pub(crate) fn count_lone_death(&self) -> u32 {
        self.lone_deaths.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Put the vectors of a chunk in their place, and end the call with the last one.
    pub(crate) fn take(&self, range: Range<usize>, vectors: Vectors, info: &Info, wakers: &mut Vec<Waker>) {
        let mut parts = self.parts();
        if parts.joined.fingerprint.is_empty() {
            parts.joined.model.clone_from(&info.model);
            parts.joined.fingerprint.clone_from(&info.fingerprint);
            parts.joined.dimension = self.parameters.dimensions.unwrap_or(info.dimension);
        }
        self.add(parts, range, Some(vectors), wakers);
    }

    /// Do without an input that kills workers.
    pub(crate) fn blame(&self, index: usize, wakers: &mut Vec<Waker>) {
        let mut parts = self.parts();
        parts.blamed.push(index);
        self.add(parts, index..index + 1, None, wakers);
    }

    fn add(
        &self,
        mut parts: MutexGuard<'_, Parts>,
        range: Range<usize>,
        vectors: Option<Vectors>,
        wakers: &mut Vec<Waker>,
    ) {
        parts.waiting.insert(range.start, (range.len(), vectors));
        let count = self.inputs.len();
        while let Some((inputs, vectors)) = {
            let next = parts.next;
            parts.waiting.remove(&next)
        } {
            parts.next += inputs;
            if let Some(vectors) = vectors {
                parts.joined.append(vectors, count);
            }
        }
        if parts.next == count {
            let outcome = mem::take(&mut *parts).outcome();
            drop(parts);
            self.promise.settle(outcome, wakers);
        }
    }
}

impl Parts {
    fn outcome(mut self) -> Result<Embeddings, Error> {
        if self.blamed.is_empty() {
            return Ok(self.joined);
        }
        self.blamed.sort_unstable();
        let others = Some(Box::new(self.joined)).filter(|others| !others.fingerprint.is_empty());
        Err(Error::PoisonedInput { indexes: self.blamed, others })
    }
}

impl Embeddings {
    /// Append the rows of the next chunk; `count` rows are to be expected in all.
    fn append(&mut self, chunk: Vectors, count: usize) {
        let before = self.tokens.len();
        if before == 0 {
            (self.vectors, self.tokens) = (chunk.values, chunk.tokens); // the common case: nothing to join
        } else {
            // A wish: what comes is real memory, what is expected need not be.
            let missing = count.saturating_sub(before).saturating_mul(self.dimension);
            let _ = self.vectors.try_reserve_exact(missing);
            self.vectors.extend_from_slice(&chunk.values);
            self.tokens.extend_from_slice(&chunk.tokens);
        }
        self.truncated.extend(chunk.truncated.iter().map(|index| before + index));
        self.truncated.sort_unstable();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> Info {
        let line = br#"{"protocol": 1, "model": "m", "fingerprint": "f", "dimension": 2}"#;
        Info::parse(line).expect("an `info`")
    }

    fn vectors(range: Range<usize>) -> Vectors {
        let numbers = range.map(|index| u16::try_from(index).expect("a small number"));
        let values = numbers.clone().flat_map(|number| [f32::from(number), 0.5]).collect();
        Vectors { values, tokens: numbers.map(u32::from).collect(), truncated: vec![0] }
    }

    fn call(count: usize) -> EmbedCall {
        EmbedCall::new(1, vec![String::new(); count], Parameters::new(), Duration::ZERO)
    }

    #[test]
    fn answers_in_any_order_are_joined_in_the_order_of_the_inputs() {
        let call = call(5);
        for range in [4..5, 2..4, 0..2] {
            assert!(!call.is_over());
            call.take(range.clone(), vectors(range), &info(), &mut Vec::new());
        }
        let embeddings = call.promise.wait().expect("all chunks are there");
        assert_eq!(embeddings.vectors, [0.0, 0.5, 1.0, 0.5, 2.0, 0.5, 3.0, 0.5, 4.0, 0.5]);
        assert_eq!((embeddings.tokens, embeddings.truncated), (vec![0, 1, 2, 3, 4], vec![0, 2, 4]));
        assert_eq!((embeddings.model.as_str(), embeddings.dimension), ("m", 2));
    }

    #[test]
    fn the_others_of_blamed_inputs_keep_their_order_and_their_marks() {
        let call = call(6);
        call.blame(3, &mut Vec::new());
        call.take(4..6, vectors(4..6), &info(), &mut Vec::new());
        call.take(1..3, vectors(1..3), &info(), &mut Vec::new());
        call.blame(0, &mut Vec::new());
        let Err(Error::PoisonedInput { indexes, others: Some(others) }) = call.promise.wait() else { panic!("blamed") };
        assert_eq!(indexes, [0, 3]);
        assert_eq!(others.tokens, [1, 2, 4, 5]);
        assert_eq!(others.truncated, [0, 2]);
        assert_eq!(others.row(2), [4.0, 0.5]);
    }

    #[test]
    fn a_call_of_nothing_ends_with_nothing_and_a_call_of_blamed_inputs_alone_has_no_others() {
        let nothing = call(0);
        nothing.take(0..0, vectors(0..0), &info(), &mut Vec::new());
        assert!(nothing.promise.wait().expect("no vectors").is_empty());
        let blamed = call(1);
        blamed.blame(0, &mut Vec::new());
        assert!(matches!(blamed.promise.wait(), Err(Error::PoisonedInput { others: None, .. })));
    }
}
