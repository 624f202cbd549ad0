//! The tokens of one call.

use std::ops::Range;

/// The tokens of one call, and what belongs to them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tokenization {
    /// Real tokens of each input, as an embedding counts them: those of a prompt and special tokens included, before
    /// truncation.
    pub tokens: Vec<u32>,
    /// The indexes of the inputs that an embedding would cut.
    pub truncated: Vec<usize>,
    /// Where [`Parameters::offsets`](crate::Parameters::offsets) asked for it: for each input the range of each token of
    /// its own text, in code points (`char`s). [`byte_ranges`] makes ranges of bytes of them, which slice a `str`.
    pub offsets: Vec<Vec<Range<usize>>>,
    /// The model's name.
    pub model: String,
    /// Names the vector space, and with it the tokenizer.
    pub fingerprint: String,
}

/// Turn ranges of code points of a text into ranges of its bytes: what lies beyond the text ends with it.
///
/// ```
/// # use embed_bridge::byte_ranges;
/// let text = "Größe 😀";
/// let words = byte_ranges(text, &[0..5, 6..7]);
/// assert_eq!(words, [0..7, 8..12]);
/// assert_eq!(&text[words[1].clone()], "😀");
/// ```
#[must_use]
pub fn byte_ranges(text: &str, offsets: &[Range<usize>]) -> Vec<Range<usize>> {
    let starts: Vec<usize> = text.char_indices().map(|(start, _)| start).collect();
    let at = |point: usize| starts.get(point).copied().unwrap_or(text.len());
    offsets.iter().map(|range| at(range.start)..at(range.end)).collect()
}
