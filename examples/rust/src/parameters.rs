//! What a call asks for beside its inputs.

use std::time::Duration;

/// What a call asks for beside its inputs. `None`: what the model's folder says.
///
/// ```
/// use std::time::Duration;
/// use embed_bridge::Parameters;
///
/// let parameters = Parameters::query().dimensions(256).timeout(Duration::from_secs(2));
/// assert_eq!(parameters.dimensions, Some(256));
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Parameters {
    /// A loaded model of the worker instead of its default one: see [`load_model`](crate::EmbedBridge::load_model).
    pub model: Option<String>,
    /// L2-normalise the vectors, or do not.
    pub normalize: Option<bool>,
    /// Keep so many of the dimensions (Matryoshka).
    pub dimensions: Option<usize>,
    /// A prompt of the model, such as `query`.
    pub prompt_name: Option<String>,
    /// A literal prefix.
    pub prompt: Option<String>,
    /// `Some(false)` makes a text over the model's limit an error of an embedding, and has a tokenization tell of the
    /// whole of it.
    pub truncate: Option<bool>,
    /// How vectors come.
    pub precision: Precision,
    /// Have a tokenization tell where in its input each token lies.
    pub offsets: bool,
    /// For the whole call, waiting included. Without it, [`Options::request_timeout`](crate::Options::request_timeout)
    /// counts for each chunk of it.
    pub timeout: Option<Duration>,
    pub(crate) role: Option<Role>,
}

/// What numbers vectors are made of. A database that stores halves or bits gets them from the worker, in half or a
/// thirty-second of the bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Precision {
    /// Into [`Embeddings::vectors`](crate::Embeddings::vectors).
    #[default]
    Float32,
    /// Rounded to halves, into [`Embeddings::float16`](crate::Embeddings::float16).
    Float16,
    /// The signs alone, into [`Embeddings::ubinary`](crate::Embeddings::ubinary).
    Ubinary,
}

impl Precision {
    /// Return its name on the wire.
    pub(crate) fn format(self) -> &'static str {
        match self {
            Precision::Float32 => "base64",
            Precision::Float16 => "base64_float16",
            Precision::Ubinary => "base64_ubinary",
        }
    }

    /// Return how many numbers hold a vector of so many dimensions.
    pub(crate) fn row_length(self, dimension: usize) -> usize {
        match self {
            Precision::Float32 | Precision::Float16 => dimension,
            Precision::Ubinary => dimension / 8 + usize::from(dimension % 8 > 0),
        }
    }
}

/// What the inputs are, for a model that tells queries and documents apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Query,
    Document,
}

impl Role {
    /// The prompts that fit; the first one of the model that is not empty is taken.
    pub(crate) fn prompt_names(self) -> &'static [&'static str] {
        match self {
            Role::Query => &["query"],
            Role::Document => &["document", "passage", "corpus"],
        }
    }
}

impl Parameters {
    /// Ask for what the model's folder says.
    #[must_use]
    pub fn new() -> Parameters {
        Parameters::default()
    }

    /// Ask for the vectors of queries: with the model's prompt for them, or with none.
    ///
    /// A prompt that is named or given beside this goes before it.
    #[must_use]
    pub fn query() -> Parameters {
        Parameters { role: Some(Role::Query), ..Parameters::default() }
    }

    /// Ask for the vectors of documents: with the model's prompt for them, or with none.
    ///
    /// The prompt is the first that is not empty of `document`, `passage` and `corpus`. One that is named or given
    /// beside this goes before it.
    #[must_use]
    pub fn document() -> Parameters {
        Parameters { role: Some(Role::Document), ..Parameters::default() }
    }

    /// Set [`model`](Parameters::model).
    #[must_use]
    pub fn model(self, name: impl Into<String>) -> Parameters {
        Parameters { model: Some(name.into()), ..self }
    }

    /// Set [`normalize`](Parameters::normalize).
    #[must_use]
    pub fn normalize(self, normalize: bool) -> Parameters {
        Parameters { normalize: Some(normalize), ..self }
    }

    /// Set [`dimensions`](Parameters::dimensions).
    #[must_use]
    pub fn dimensions(self, dimensions: usize) -> Parameters {
        Parameters { dimensions: Some(dimensions), ..self }
    }

    /// Set [`prompt_name`](Parameters::prompt_name).
    #[must_use]
    pub fn prompt_name(self, name: impl Into<String>) -> Parameters {
        Parameters { prompt_name: Some(name.into()), ..self }
    }

    /// Set [`prompt`](Parameters::prompt).
    #[must_use]
    pub fn prompt(self, prompt: impl Into<String>) -> Parameters {
        Parameters { prompt: Some(prompt.into()), ..self }
    }

    /// Set [`truncate`](Parameters::truncate).
    #[must_use]
    pub fn truncate(self, truncate: bool) -> Parameters {
        Parameters { truncate: Some(truncate), ..self }
    }

    /// Set [`precision`](Parameters::precision).
    #[must_use]
    pub fn precision(self, precision: Precision) -> Parameters {
        Parameters { precision, ..self }
    }

    /// Set [`offsets`](Parameters::offsets).
    #[must_use]
    pub fn offsets(self, offsets: bool) -> Parameters {
        Parameters { offsets, ..self }
    }

    /// Set [`timeout`](Parameters::timeout).
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Parameters {
        Parameters { timeout: Some(timeout), ..self }
    }
}
