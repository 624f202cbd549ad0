//! The vectors of one call.

/// The vectors of one call, and what belongs to them.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
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
    /// If there is no such input.
    #[must_use]
    pub fn row(&self, index: usize) -> &[f32] {
        &self.vectors[index * self.dimension..][..self.dimension]
    }

    /// Return the vectors in order.
    #[must_use]
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> + '_ {
        (0..self.len()).map(|index| self.row(index))
    }
}
