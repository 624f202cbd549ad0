//! A range of a call's inputs that travels as one request, and how calls are cut into such.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, ErrorCode};
use crate::info::Limits;
use crate::job::Job;
use crate::policy::{BYTES_PER_TOKEN, MOST_TOKENS, PIECE_BYTES, PIECE_TOKENS, SHORT_TOKENS, SPECIAL_TOKENS};
use crate::wire;

const LINE_OVERHEAD_BYTES: usize = 512; // everything in a line but its inputs, its prompt and its model

#[derive(Clone)]
pub(crate) struct Piece {
    pub job: Arc<Job>,
    pub range: Range<usize>,
    pub tokens: usize, // estimated
    pub bytes: usize,
    pub lone_deaths: u32, // with this, or with the larger piece that it was cut from, alone
    pub is_suspect: bool, // was in flight when a worker died
    pub first_sent: Option<Instant>,
}

impl Piece {
    /// All inputs of a call as one piece, to be cut when the worker's limits are known.
    pub(crate) fn whole(job: Arc<Job>) -> Piece {
        let range = 0..job.inputs.len();
        let mut piece = Piece { job, range, tokens: 0, bytes: 0, lone_deaths: 0, is_suspect: false, first_sent: None };
        piece.weigh();
        piece
    }

    fn weigh(&mut self) {
        self.tokens = self.texts().iter().map(|text| cost(text)).sum();
        self.bytes = self.texts().iter().map(String::len).sum();
    }

    pub(crate) fn texts(&self) -> &[String] {
        &self.job.inputs[self.range.clone()]
    }

    /// Whether it is so small that it should not wait behind larger ones.
    pub(crate) fn is_short(&self) -> bool {
        self.tokens <= SHORT_TOKENS
    }

    /// When its time is over, as far as that is known yet.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.job.deadline.or_else(|| self.first_sent?.checked_add(self.job.timeout))
    }

    /// Cut at an input, counted from the piece's first. Both parts keep the history.
    pub(crate) fn cut_at(mut self, inputs: usize) -> (Piece, Piece) {
        let middle = self.range.start + inputs;
        let mut rest = Piece { range: middle..self.range.end, ..self.clone() };
        self.range.end = middle;
        self.weigh();
        rest.tokens -= self.tokens;
        rest.bytes -= self.bytes;
        (self, rest)
    }

    /// Cut off a first part of bounded cost that the worker accepts; the rest keeps its place.
    pub(crate) fn cut(self, limits: &Limits, most_inputs: usize) -> Result<(Piece, Option<Piece>), Error> {
        let parameters = &self.job.parameters;
        let names = [&parameters.model, &parameters.prompt, &parameters.prompt_name].into_iter().flatten();
        let overhead = LINE_OVERHEAD_BYTES + names.map(|name| wire::encoded_len(name)).sum::<usize>();
        let line_bytes = limits.max_line_bytes.saturating_sub(overhead);
        let most_inputs = most_inputs.min(limits.max_inputs).max(1);
        let (mut tokens, mut bytes, mut encoded, mut inputs) = (0, 0, 0, 0);
        for text in self.texts() {
            let encoded_text = wire::encoded_len(text);
            if encoded_text > line_bytes {
                let index = self.range.start + inputs;
                return Err(Error::Request {
                    code: ErrorCode::InputTooLong,
                    message: format!("input {index} takes {encoded_text} bytes of a line, the limit is {line_bytes}"),
                    retryable: false,
                    index: Some(index),
                });
            }
            (tokens, bytes, encoded) = (tokens + cost(text), bytes + text.len(), encoded + encoded_text);
            let is_full = tokens > PIECE_TOKENS || bytes > PIECE_BYTES || encoded > line_bytes;
            if inputs > 0 && (is_full || inputs == most_inputs) {
                break;
            }
            inputs += 1;
        }
        if inputs == self.range.len() {
            return Ok((self, None));
        }
        let (first, rest) = self.cut_at(inputs);
        Ok((first, Some(rest)))
    }
}

/// The estimated tokens of a text: its own and the special ones.
fn cost(text: &str) -> usize {
    SPECIAL_TOKENS + (text.len() / BYTES_PER_TOKEN).min(MOST_TOKENS)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::parameters::Parameters;

    /// Cut all inputs into pieces.
    pub(crate) fn pieces(texts: Vec<String>, limits: &Limits) -> Vec<Piece> {
        let job = Arc::new(Job::new(1, texts, Parameters::new(), Duration::ZERO));
        let (mut pieces, mut rest) = (Vec::new(), Some(Piece::whole(job)));
        while let Some(piece) = rest {
            let (first, others) = piece.cut(limits, usize::MAX).expect("no text is too long");
            pieces.push(first);
            rest = others;
        }
        pieces
    }

    #[test]
    fn pieces_cover_the_inputs_in_order_and_keep_within_every_bound() {
        let texts: Vec<String> = (0..5000).map(|number| "\"\n".repeat(number % 900)).collect();
        let narrow = Limits { max_inputs: 9, max_line_bytes: 10_000, ..Limits::default() };
        for limits in [Limits::default(), narrow] {
            let pieces = pieces(texts.clone(), &limits);
            assert!(pieces.len() > 10);
            let covered: Vec<usize> = pieces.iter().flat_map(|piece| piece.range.clone()).collect();
            assert!(covered.into_iter().eq(0..5000));
            let whole = Piece::whole(Arc::clone(&pieces[0].job));
            assert_eq!(pieces.iter().map(|piece| piece.bytes).sum::<usize>(), whole.bytes);
            assert_eq!(pieces.iter().map(|piece| piece.tokens).sum::<usize>(), whole.tokens);
            for piece in pieces {
                assert!(piece.tokens <= PIECE_TOKENS && piece.range.len() <= limits.max_inputs);
                let mut line = Vec::new();
                wire::Request::Embed { job: piece.job, range: piece.range, role_prompt: None }
                    .encode(u64::MAX, &mut line);
                assert!(line.len() <= limits.max_line_bytes);
            }
        }
    }
}
