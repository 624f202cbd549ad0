//! One call of a host and the pieces of it that travel: how inputs are cut, and how vectors are joined again.

use std::mem;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::options::Parameters;
use crate::wire::{self, Info, Limits, Vectors};

// A piece is a second or two of work on a small machine: long enough to be batched well, short enough that a bulk call
// neither outlives its time limit in the worker's queue nor keeps others waiting behind it. The Python client cuts the
// same way.
pub(crate) const PIECE_TOKENS: usize = 16_384;
pub(crate) const PIECE_BYTES: usize = 4 << 20;
const SHORT_TOKENS: usize = 512; // about one micro-batch of the worker
const BYTES_PER_TOKEN: usize = 4;
const MOST_TOKENS: usize = 512; // a text is truncated at the model's limit, and few models go further
const LINE_OVERHEAD_BYTES: usize = 512; // everything in a line but its inputs and prompt

/// The vectors of one call, and what belongs to them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Embeddings {
    /// The matrix, row-major: one row of `dimension` numbers for each input, in order.
    pub vectors: Vec<f32>,
    /// The length of a row.
    pub dimension: usize,
    /// Real tokens of each input, special tokens included, before truncation.
    pub tokens: Vec<u32>,
    /// The indexes of the inputs that were cut.
    pub truncated: Vec<usize>,
    /// The model's name.
    pub model: String,
    /// Names the vector space; vectors of two fingerprints must not be mixed.
    pub fingerprint: String,
}

impl Embeddings {
    /// The number of vectors.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The vector of one input.
    ///
    /// # Panics
    /// If there is no such input.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.vectors[index * self.dimension..][..self.dimension]
    }

    /// The vectors in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        (0..self.len()).map(|index| self.row(index))
    }
}

/// One call. Its outcome is decided once, by whoever comes first.
pub(crate) struct Job {
    pub inputs: Vec<String>,
    pub parameters: Parameters,
    pub deadline: Option<Instant>, // of the whole call; goes before `timeout`
    pub timeout: Duration,         // of each piece, from being sent first
    progress: Mutex<Progress>,
    over: Condvar,
}

enum Progress {
    Open { pieces: usize, partial: Embeddings },
    Over(Result<Embeddings, Error>),
    Taken,
}

impl Job {
    pub(crate) fn new(inputs: Vec<String>, parameters: Parameters, default_timeout: Duration) -> Arc<Job> {
        Arc::new(Job {
            inputs,
            deadline: parameters.timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            timeout: parameters.timeout.unwrap_or(default_timeout),
            parameters,
            progress: Mutex::new(Progress::Open { pieces: 1, partial: Embeddings::default() }),
            over: Condvar::new(),
        })
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_over(&self) -> bool {
        !matches!(*self.progress(), Progress::Open { .. })
    }

    /// Put the vectors of a piece in their place, and end the call with the last one.
    pub(crate) fn take(&self, range: Range<usize>, vectors: Vectors, info: &Info) {
        let mut progress = self.progress();
        let Progress::Open { pieces, partial } = &mut *progress else { return };
        if *pieces == 1 && range == (0..self.inputs.len()) {
            (partial.vectors, partial.tokens) = (vectors.values, vectors.tokens); // the common case: nothing to join
        } else {
            let width = vectors.values.len() / range.len().max(1);
            partial.vectors.resize(self.inputs.len() * width, 0.0);
            partial.vectors[range.start * width..range.end * width].copy_from_slice(&vectors.values);
            partial.tokens.resize(self.inputs.len(), 0);
            partial.tokens[range.clone()].copy_from_slice(&vectors.tokens);
        }
        partial.truncated.extend(vectors.truncated.iter().map(|index| range.start + index));
        *pieces -= 1;
        if *pieces == 0 {
            partial.truncated.sort_unstable();
            partial.dimension = self.parameters.dimensions.unwrap_or(info.dimension);
            partial.model.clone_from(&info.model);
            partial.fingerprint.clone_from(&info.fingerprint);
            let embeddings = mem::take(partial);
            *progress = Progress::Over(Ok(embeddings));
            self.over.notify_all();
        }
    }

    /// End the call with an error; false when it has ended before.
    pub(crate) fn fail(&self, error: Error) -> bool {
        let mut progress = self.progress();
        let is_open = matches!(*progress, Progress::Open { .. });
        if is_open {
            *progress = Progress::Over(Err(error));
            self.over.notify_all();
        }
        is_open
    }

    /// Wait for the outcome and take it.
    pub(crate) fn wait(&self) -> Result<Embeddings, Error> {
        let is_open = |progress: &mut Progress| matches!(progress, Progress::Open { .. });
        let mut progress = self.over.wait_while(self.progress(), is_open).unwrap_or_else(PoisonError::into_inner);
        match mem::replace(&mut *progress, Progress::Taken) {
            Progress::Over(outcome) => outcome,
            _ => Err(Error::Cancelled), // taken before, which the type of `Pending` rules out
        }
    }
}

/// A range of a call's inputs that waits to be sent, or has been sent as one request.
#[derive(Clone)]
pub(crate) struct Piece {
    pub job: Arc<Job>,
    pub range: Range<usize>,
    pub tokens: usize, // estimated
    pub bytes: usize,
    pub attempts: u32,
    pub is_suspect: bool,   // was in flight when a worker died
    pub is_withdrawn: bool, // `cancel` was sent
    pub first_sent: Option<Instant>,
}

impl Piece {
    /// All inputs of a call as one piece, to be cut when the worker's limits are known.
    pub(crate) fn whole(job: Arc<Job>) -> Piece {
        let mut piece = Piece {
            range: 0..job.inputs.len(),
            job,
            tokens: 0,
            bytes: 0,
            attempts: 0,
            is_suspect: false,
            is_withdrawn: false,
            first_sent: None,
        };
        piece.weigh();
        piece
    }

    fn weigh(&mut self) {
        let texts = &self.job.inputs[self.range.clone()];
        self.tokens = texts.iter().map(|text| cost(text)).sum();
        self.bytes = texts.iter().map(String::len).sum();
    }

    /// Whether it is so small that it should not wait behind larger ones.
    pub(crate) fn is_short(&self) -> bool {
        self.tokens <= SHORT_TOKENS
    }

    /// When its time is over, as far as that is known yet.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.job.deadline.or_else(|| self.first_sent?.checked_add(self.job.timeout))
    }

    /// Cut off a first part of bounded cost that the worker accepts; the rest keeps its place.
    pub(crate) fn cut(mut self, limits: &Limits) -> Result<(Piece, Option<Piece>), Error> {
        let parameters = &self.job.parameters;
        let prompts = [&parameters.prompt, &parameters.prompt_name].into_iter().flatten();
        let overhead = LINE_OVERHEAD_BYTES + prompts.map(|prompt| wire::encoded_len(prompt)).sum::<usize>();
        let line_bytes = limits.max_line_bytes.saturating_sub(overhead);
        let (mut tokens, mut bytes, mut end) = (0, 0, self.range.start);
        for text in &self.job.inputs[self.range.clone()] {
            let (text_tokens, text_bytes) = (cost(text), wire::encoded_len(text));
            if text_bytes > line_bytes {
                return Err(Error::Request {
                    code: "input_too_long".into(),
                    message: format!("input {end} takes {text_bytes} bytes of a line, the limit is {line_bytes}"),
                    retryable: false,
                    index: Some(end),
                });
            }
            let is_full = tokens + text_tokens > PIECE_TOKENS || bytes + text_bytes > PIECE_BYTES.min(line_bytes);
            if end > self.range.start && (is_full || end - self.range.start == limits.max_inputs) {
                break;
            }
            (tokens, bytes, end) = (tokens + text_tokens, bytes + text_bytes, end + 1);
        }
        if end == self.range.end {
            return Ok((self, None));
        }
        let mut rest = Piece { range: end..self.range.end, ..self.clone() };
        self.range.end = end;
        self.weigh();
        rest.tokens -= self.tokens;
        rest.bytes -= self.bytes;
        if let Progress::Open { pieces, .. } = &mut *self.job.progress() {
            *pieces += 1;
        }
        Ok((self, Some(rest)))
    }
}

/// The estimated tokens of a text: its own and the two special ones.
fn cost(text: &str) -> usize {
    2 + (text.len() / BYTES_PER_TOKEN).min(MOST_TOKENS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(texts: Vec<String>, limits: &Limits) -> Vec<Piece> {
        let job = Job::new(texts, Parameters::default(), Duration::ZERO);
        let (mut pieces, mut rest) = (Vec::new(), Some(Piece::whole(job)));
        while let Some(piece) = rest {
            let (first, others) = piece.cut(limits).expect("no text is too long");
            pieces.push(first);
            rest = others;
        }
        pieces
    }

    #[test]
    fn pieces_cover_the_inputs_in_order_and_keep_within_every_bound() {
        let texts: Vec<String> = (0..5000).map(|number| "\"\n".repeat(number % 900)).collect();
        let whole = Piece::whole(Job::new(texts.clone(), Parameters::default(), Duration::ZERO));
        for limits in [Limits::default(), Limits { max_inputs: 9, max_line_bytes: 10_000, ..Limits::default() }] {
            let pieces = pieces(texts.clone(), &limits);
            assert!(pieces.len() > 10);
            assert_eq!(
                pieces.iter().flat_map(|piece| piece.range.clone()).collect::<Vec<_>>(),
                Vec::from_iter(0..5000)
            );
            assert_eq!(pieces.iter().map(|piece| piece.bytes).sum::<usize>(), whole.bytes);
            assert_eq!(pieces.iter().map(|piece| piece.tokens).sum::<usize>(), whole.tokens);
            for piece in pieces {
                assert!(piece.tokens <= PIECE_TOKENS && piece.range.len() <= limits.max_inputs);
                let mut line = Vec::new();
                wire::Request::Embed(piece.job, piece.range).encode(u64::MAX, &mut line);
                assert!(line.len() <= limits.max_line_bytes);
            }
        }
    }

    #[test]
    fn answers_in_any_order_are_joined_in_the_order_of_the_inputs() {
        let info: Info = serde_json::from_str(
            r#"{"protocol": 1, "pid": 1, "model": "m", "fingerprint": "f", "dimension": 2, "max_tokens": null}"#,
        )
        .expect("an `info`");
        let limits = Limits { max_inputs: 2, ..Limits::default() };
        let pieces = pieces(vec![String::new(); 5], &limits);
        for piece in pieces.iter().rev() {
            assert!(!piece.job.is_over());
            let values = piece.range.clone().flat_map(|index| [index as f32, 0.5]).collect();
            let tokens = piece.range.clone().map(|index| index as u32).collect();
            piece.job.take(piece.range.clone(), Vectors { values, tokens, truncated: vec![0] }, &info);
        }
        let embeddings = pieces[0].job.wait().expect("all pieces are there");
        assert_eq!(embeddings.vectors, [0.0, 0.5, 1.0, 0.5, 2.0, 0.5, 3.0, 0.5, 4.0, 0.5]);
        assert_eq!((embeddings.tokens, embeddings.truncated), (vec![0, 1, 2, 3, 4], vec![0, 2, 4]));
    }
}
