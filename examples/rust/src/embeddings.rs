//! The vectors of one call.

use crate::parameters::Precision;

/// The vectors of one call, and what belongs to them.
///
/// One of `vectors`, `float16` and `ubinary` holds them: that which [`Parameters::precision`](crate::Parameters::precision)
/// asked for.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Embeddings {
    /// The matrix, row-major: one row of `dimension` numbers for each input, in order.
    pub vectors: Vec<f32>,
    /// The same, each number the bits of an IEEE 754 half.
    pub float16: Vec<u16>,
    /// The signs, packed: rows of an eighth of `dimension` bytes, rounded up. A bit is 1 where a number is above 0; the
    /// first number is the highest bit.
    pub ubinary: Vec<u8>,
    /// How many numbers a vector has, at any precision.
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
    /// Return the number of vectors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Return whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Return the vector of one input.
    ///
    /// # Panics
    /// If there is no such input, or its vector came at another precision.
    #[must_use]
    pub fn row(&self, index: usize) -> &[f32] {
        &self.vectors[index * self.dimension..][..self.dimension]
    }

    /// Return the vector of one input as bits of halves.
    ///
    /// # Panics
    /// As [`row`](Embeddings::row).
    #[must_use]
    pub fn float16_row(&self, index: usize) -> &[u16] {
        &self.float16[index * self.dimension..][..self.dimension]
    }

    /// Return the packed signs of the vector of one input.
    ///
    /// # Panics
    /// As [`row`](Embeddings::row).
    #[must_use]
    pub fn ubinary_row(&self, index: usize) -> &[u8] {
        let length = Precision::Ubinary.row_length(self.dimension);
        &self.ubinary[index * length..][..length]
    }

    /// Return the vectors in order.
    ///
    /// # Panics
    /// As [`row`](Embeddings::row), when one is taken.
    #[must_use]
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> + '_ {
        (0..self.len()).map(|index| self.row(index))
    }
}
