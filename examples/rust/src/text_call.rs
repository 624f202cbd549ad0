//! One call with texts: its inputs, and how the answers to its chunks are joined again.

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
use crate::parameters::{Parameters, Precision};
use crate::promise::Promise;
use crate::tokenization::Tokenization;
use crate::wire::Part;

pub(crate) struct TextCall {
    pub number: u64,
    pub inputs: Vec<String>,
    pub parameters: Parameters,
    pub bytes: usize,
    pub deadline: Option<Instant>, // of the whole call; goes before `timeout`
    pub timeout: Duration,         // of each chunk, from being sent first
    pub promised: Promised,
    lone_deaths: AtomicU32, // of workers, with one of its chunks alone
    parts: Mutex<Parts>,
}

/// What a call ends with.
pub(crate) enum Promised {
    Vectors(Arc<Promise<Embeddings>>),
    Tokens(Arc<Promise<Tokenization>>),
}

impl Promised {
    /// Refuse parameters that mean nothing to such a call.
    pub(crate) fn check(&self, parameters: &Parameters) -> Result<(), Error> {
        let Parameters { normalize, dimensions, precision, offsets, .. } = parameters;
        let foreign = match self {
            Promised::Vectors(_) => [("offsets", *offsets), ("", false), ("", false)],
            Promised::Tokens(_) => [
                ("normalize", normalize.is_some()),
                ("dimensions", dimensions.is_some()),
                ("precision", *precision != Precision::Float32),
            ],
        };
        match foreign.iter().find(|(_, is_set)| *is_set) {
            Some((name, _)) => Err(Error::InvalidArgument(format!("`{name}` means nothing to such a call"))),
            None => Ok(()),
        }
    }

    fn is_over(&self) -> bool {
        match self {
            Promised::Vectors(promise) => promise.is_over(),
            Promised::Tokens(promise) => promise.is_over(),
        }
    }

    /// Settle it with an error; false when it was settled before.
    pub(crate) fn fail(&self, error: Error, wakers: &mut Vec<Waker>) -> bool {
        match self {
            Promised::Vectors(promise) => promise.settle(Err(error), wakers),
            Promised::Tokens(promise) => promise.settle(Err(error), wakers),
        }
    }
}

/// What has come back. Everything before `next` is joined already.
#[derive(Default)]
struct Parts {
    next: usize,
    waiting: BTreeMap<usize, (usize, Option<Part>)>, // by the first input: how many, and what came of them
    blamed: Vec<usize>,
    joined: Embeddings,
    offsets: Vec<Vec<Range<usize>>>,
}

impl TextCall {
    pub(crate) fn new(
        number: u64,
        inputs: Vec<String>,
        parameters: Parameters,
        promised: Promised,
        default_timeout: Duration,
    ) -> TextCall {
        TextCall {
            number,
            bytes: inputs.iter().map(String::len).sum(),
            inputs,
            deadline: parameters.timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            timeout: parameters.timeout.unwrap_or(default_timeout),
            parameters,
            promised,
            lone_deaths: AtomicU32::new(0),
            parts: Mutex::default(),
        }
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.promised.is_over()
    }

    /// Count a worker that died with a chunk of this alone; return how many there are now.
    pub(crate) fn count_lone_death(&self) -> u32 {
        self.lone_deaths.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Put the answer about a chunk in its place, and end the call with the last one.
    pub(crate) fn take(&self, range: Range<usize>, part: Part, info: &Info, wakers: &mut Vec<Waker>) {
        let mut parts = self.parts();
        if parts.joined.fingerprint.is_empty() {
            parts.joined.model.clone_from(&info.model);
            parts.joined.fingerprint.clone_from(&info.fingerprint);
            parts.joined.dimension = self.parameters.dimensions.unwrap_or(info.dimension);
        }
        self.add(parts, range, Some(part), wakers);
    }

    /// Do without an input that kills workers.
    pub(crate) fn blame(&self, index: usize, wakers: &mut Vec<Waker>) {
        let mut parts = self.parts();
        parts.blamed.push(index);
        self.add(parts, index..index + 1, None, wakers);
    }

    fn add(&self, mut parts: MutexGuard<'_, Parts>, range: Range<usize>, part: Option<Part>, wakers: &mut Vec<Waker>) {
        parts.waiting.insert(range.start, (range.len(), part));
        let count = self.inputs.len();
        while let Some((inputs, part)) = {
            let next = parts.next;
            parts.waiting.remove(&next)
        } {
            parts.next += inputs;
            if let Some(mut part) = part {
                parts.offsets.append(&mut part.offsets);
                parts.joined.append(part, self.parameters.precision, count);
            }
        }
        if parts.next == count {
            let all = mem::take(&mut *parts);
            drop(parts);
            match &self.promised {
                Promised::Vectors(promise) => promise.settle(all.vectors(), wakers),
                Promised::Tokens(promise) => promise.settle(all.tokens(), wakers),
            };
        }
    }
}

impl Parts {
    fn tokens(mut self) -> Result<Tokenization, Error> {
        if self.blamed.is_empty() {
            let Embeddings { tokens, truncated, model, fingerprint, .. } = self.joined;
            return Ok(Tokenization { tokens, truncated, offsets: self.offsets, model, fingerprint });
        }
        self.blamed.sort_unstable();
        Err(Error::PoisonedInput { indexes: self.blamed, others: None })
    }

    fn vectors(mut self) -> Result<Embeddings, Error> {
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
    fn append(&mut self, chunk: Part, precision: Precision, count: usize) {
        let before = self.tokens.len();
        let missing = count.saturating_sub(before).saturating_mul(precision.row_length(self.dimension));
        join(&mut self.vectors, chunk.vectors, missing);
        join(&mut self.float16, chunk.float16, missing);
        join(&mut self.ubinary, chunk.ubinary, missing);
        join(&mut self.tokens, chunk.tokens, count.saturating_sub(before));
        self.truncated.extend(chunk.truncated.iter().map(|index| before + index));
        self.truncated.sort_unstable();
    }
}

/// Append a part to what there is; so many numbers are missing of the whole.
fn join<T: Copy>(all: &mut Vec<T>, part: Vec<T>, missing: usize) {
    if all.is_empty() {
        *all = part; // the common case: nothing to join
    } else {
        // A wish: what comes is real memory, what is expected need not be.
        let _ = all.try_reserve_exact(missing);
        all.extend_from_slice(&part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> Info {
        let line = br#"{"protocol": 1, "model": "m", "fingerprint": "f", "dimension": 2}"#;
        Info::parse(line).expect("an `info`")
    }

    fn vectors(range: Range<usize>) -> Part {
        let numbers = range.map(|index| u16::try_from(index).expect("a small number"));
        let vectors = numbers.clone().flat_map(|number| [f32::from(number), 0.5]).collect();
        Part { vectors, tokens: numbers.map(u32::from).collect(), truncated: vec![0], ..Part::default() }
    }

    fn call(count: usize) -> TextCall {
        TextCall::new(
            1,
            vec![String::new(); count],
            Parameters::new(),
            Promised::Vectors(Arc::default()),
            Duration::ZERO,
        )
    }

    fn wait(call: &TextCall) -> Result<Embeddings, Error> {
        let Promised::Vectors(promise) = &call.promised else { panic!("a call for vectors") };
        promise.wait()
    }

    #[test]
    fn answers_in_any_order_are_joined_in_the_order_of_the_inputs() {
        let call = call(5);
        for range in [4..5, 2..4, 0..2] {
            assert!(!call.is_over());
            call.take(range.clone(), vectors(range), &info(), &mut Vec::new());
        }
        let embeddings = wait(&call).expect("all chunks are there");
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
        let Err(Error::PoisonedInput { indexes, others: Some(others) }) = wait(&call) else { panic!("blamed") };
        assert_eq!(indexes, [0, 3]);
        assert_eq!(others.tokens, [1, 2, 4, 5]);
        assert_eq!(others.truncated, [0, 2]);
        assert_eq!(others.row(2), [4.0, 0.5]);
    }

    #[test]
    fn a_call_of_nothing_ends_with_nothing_and_a_call_of_blamed_inputs_alone_has_no_others() {
        let nothing = call(0);
        nothing.take(0..0, vectors(0..0), &info(), &mut Vec::new());
        assert!(wait(&nothing).expect("no vectors").is_empty());
        let blamed = call(1);
        blamed.blame(0, &mut Vec::new());
        assert!(matches!(wait(&blamed), Err(Error::PoisonedInput { others: None, .. })));
    }
}
