//! A range of a call's inputs that travels as one request, and how calls are cut into such.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, ErrorCode};
use crate::info::Limits;
use crate::policy::{BYTES_PER_TOKEN, CHUNK_BYTES, CHUNK_TOKENS, MOST_TOKENS, SHORT_TOKENS, SPECIAL_TOKENS};
use crate::text_call::TextCall;
use crate::wire;

const LINE_OVERHEAD_BYTES: usize = 512; // everything in a line but its inputs, its prompt and its model

#[derive(Clone)]
pub(crate) struct Chunk {
    pub call: Arc<TextCall>,
    pub range: Range<usize>,
    pub tokens: usize, // estimated
    pub bytes: usize,
    pub lone_deaths: u32,  // with this, or with the larger chunk that it was cut from, alone
    pub is_isolated: bool, // was in flight when a worker died
    pub first_sent: Option<Instant>,
}

impl Chunk {
    /// All inputs of a call as one chunk, to be cut when the worker's limits are known.
    pub(crate) fn whole(call: Arc<TextCall>) -> Chunk {
        let range = 0..call.inputs.len();
        let mut chunk =
            Chunk { call, range, tokens: 0, bytes: 0, lone_deaths: 0, is_isolated: false, first_sent: None };
        chunk.weigh();
        chunk
    }

    fn weigh(&mut self) {
        self.tokens = self.texts().iter().map(|text| cost(text)).sum();
        self.bytes = self.texts().iter().map(String::len).sum();
    }

    pub(crate) fn texts(&self) -> &[String] {
        &self.call.inputs[self.range.clone()]
    }

    /// Whether it is so small that it should not wait behind larger ones.
    pub(crate) fn is_short(&self) -> bool {
        self.tokens <= SHORT_TOKENS
    }

    /// When its time is over, as far as that is known yet.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.call.deadline.or_else(|| self.first_sent?.checked_add(self.call.timeout))
    }

    /// Cut at an input, counted from the chunk's first. Both parts keep the history.
    pub(crate) fn cut_at(mut self, inputs: usize) -> (Chunk, Chunk) {
        let middle = self.range.start + inputs;
        let mut rest = Chunk { range: middle..self.range.end, ..self.clone() };
        self.range.end = middle;
        self.weigh();
        rest.tokens -= self.tokens;
        rest.bytes -= self.bytes;
        (self, rest)
    }

    /// Cut off a first part of bounded cost that the worker accepts; the rest keeps its place.
    pub(crate) fn cut(self, limits: &Limits, most_inputs: usize) -> Result<(Chunk, Option<Chunk>), Error> {
        let parameters = &self.call.parameters;
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
            let is_full = tokens > CHUNK_TOKENS || bytes > CHUNK_BYTES || encoded > line_bytes;
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
    use crate::text_call::Promised;

    /// Cut all inputs into chunks.
    pub(crate) fn chunks(texts: Vec<String>, limits: &Limits) -> Vec<Chunk> {
        let call =
            Arc::new(TextCall::new(1, texts, Parameters::new(), Promised::Vectors(Arc::default()), Duration::ZERO));
        let (mut chunks, mut rest) = (Vec::new(), Some(Chunk::whole(call)));
        while let Some(chunk) = rest {
            let (first, others) = chunk.cut(limits, usize::MAX).expect("no text is too long");
            chunks.push(first);
            rest = others;
        }
        chunks
    }

    #[test]
    fn chunks_cover_the_inputs_in_order_and_keep_within_every_bound() {
        let texts: Vec<String> = (0..5000).map(|number| "\"\n".repeat(number % 900)).collect();
        let narrow = Limits { max_inputs: 9, max_line_bytes: 10_000, ..Limits::default() };
        for limits in [Limits::default(), narrow] {
            let chunks = chunks(texts.clone(), &limits);
            assert!(chunks.len() > 10);
            let covered: Vec<usize> = chunks.iter().flat_map(|chunk| chunk.range.clone()).collect();
            assert!(covered.into_iter().eq(0..5000));
            let whole = Chunk::whole(Arc::clone(&chunks[0].call));
            assert_eq!(chunks.iter().map(|chunk| chunk.bytes).sum::<usize>(), whole.bytes);
            assert_eq!(chunks.iter().map(|chunk| chunk.tokens).sum::<usize>(), whole.tokens);
            for chunk in chunks {
                assert!(chunk.tokens <= CHUNK_TOKENS && chunk.range.len() <= limits.max_inputs);
                let mut line = Vec::new();
                wire::Request::Texts { call: chunk.call, range: chunk.range, role_prompt: None }
                    .encode(u64::MAX, &mut line);
                assert!(line.len() <= limits.max_line_bytes);
            }
        }
    }
}
