//! Text embeddings from a supervised child process.
//!
//! An [`EmbedBridge`] starts `embed-worker`, speaks JSON lines with it over pipes, and keeps it alive: restarts with
//! back-off and a budget, replays what was in flight when it died, finds the text that kills it, notices when it hangs,
//! refuses vectors of another model, and leaves no process behind. The host links no machine-learning runtime and
//! survives the worker's crashes.
//!
//! ```no_run
//! use embed_bridge::{EmbedBridge, Options};
//!
//! let bridge = EmbedBridge::spawn(Options::default())?; // runs `embed-worker --supervised`
//! let documents = bridge.embed_documents(&["hello", "world"])?;
//! let query = bridge.embed_query(&["a greeting"])?;
//! assert_eq!(documents.row(1).len(), query.dimension);
//! println!("{}", documents.fingerprint); // keep it with the vectors: never mix two
//! # Ok::<(), embed_bridge::Error>(())
//! ```
//!
//! # From tokio, or any other runtime
//!
//! What ends in `_async` returns a [`Pending`], which is a future: the bridge's own threads wake it, so it needs no
//! particular runtime. Dropping it withdraws the call, and so does a time-out or a `select!` around it.
//!
//! ```no_run
//! # async fn search(bridge: &embed_bridge::EmbedBridge, query: String) -> Result<(), embed_bridge::Error> {
//! use embed_bridge::Parameters;
//!
//! let query = bridge.embed_async(vec![query], Parameters::query()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! [`close`](EmbedBridge::close) and dropping the bridge block: put them on the blocking pool.
//!
//! # From threads
//!
//! Calls of many threads are pipelined. One thread can pipeline, too:
//!
//! ```no_run
//! # use embed_bridge::{EmbedBridge, Options, Parameters, Pending};
//! # let bridge = EmbedBridge::spawn(Options::default())?;
//! let first = bridge.submit(vec!["one".into()], Parameters::new())?;
//! let second = bridge.submit(vec!["two".into()], Parameters::new())?;
//! let rows = [first, second].map(Pending::wait);
//! # Ok::<(), embed_bridge::Error>(())
//! ```
//!
//! # What a call can count on
//!
//! - It ends exactly once: with all its vectors or with one [`Error`].
//! - A worker that dies or hangs is replaced, and what it had in flight is sent again, one request at a time. A request
//!   of many inputs with which workers die is halved until the input to blame is found: that alone costs its call an
//!   [`Error::PoisonedInput`], which holds the vectors of all other inputs.
//! - An answer is checked before it is used: number of vectors, dimension, size, finite numbers, model, fingerprint.
//! - With [`Parameters::timeout`] it ends by then; the worker is told to drop it.

mod bridge;
mod chunk;
mod embeddings;
mod error;
mod exit;
mod health;
mod info;
mod investigation;
mod lifecycle;
mod options;
mod parameters;
mod pending;
mod policy;
#[cfg(test)]
mod policy_cases;
mod process;
mod promise;
mod supervisor;
mod text_call;
mod tokenization;
mod wire;
mod worker;

pub use bridge::{EmbedBridge, State, Stats};
pub use embeddings::Embeddings;
pub use error::{Error, ErrorCode};
pub use exit::{Cause, Exit};
pub use info::{Info, Limits};
pub use options::Options;
pub use parameters::{Parameters, Precision};
pub use pending::{Canceller, Pending};
pub use tokenization::{byte_ranges, Tokenization};
