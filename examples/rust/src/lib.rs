//! Text embeddings from a supervised child process.
//!
//! An [`EmbedBridge`] starts `embed-worker`, speaks JSON lines with it over pipes, and keeps it alive: restarts with
//! back-off and a budget, replays what was in flight when it died, notices when it hangs, refuses vectors of another
//! model, and leaves no process behind. The host links no machine-learning runtime and survives the worker's crashes.
//!
//! ```no_run
//! use embed_bridge::{EmbedBridge, Options};
//!
//! let bridge = EmbedBridge::spawn(Options::default())?; // runs `embed-worker --supervised`
//! let embeddings = bridge.embed(&["hello", "world"])?;
//! assert_eq!(embeddings.row(1).len(), embeddings.dimension);
//! println!("{}", embeddings.fingerprint); // keep it with the vectors: never mix two
//! # Ok::<(), embed_bridge::Error>(())
//! ```
//!
//! Calls of many threads are pipelined. One thread can pipeline, too:
//!
//! ```no_run
//! # use embed_bridge::{EmbedBridge, Options, Parameters, Pending};
//! # let bridge = EmbedBridge::spawn(Options::default())?;
//! let first = bridge.submit(vec!["one".into()], Parameters::default())?;
//! let second = bridge.submit(vec!["two".into()], Parameters::default())?;
//! let rows = [first, second].map(Pending::wait);
//! # Ok::<(), embed_bridge::Error>(())
//! ```
//!
//! # From tokio
//!
//! The bridge has threads of its own and needs no runtime. A call blocks, so it belongs on the blocking pool:
//!
//! ```ignore
//! let bridge: Arc<EmbedBridge> = Arc::clone(&state.bridge);
//! let embeddings = tokio::task::spawn_blocking(move || bridge.embed(&[query])).await??;
//! ```
//!
//! # What a call can count on
//!
//! - It ends exactly once: with all its vectors or with one [`Error`].
//! - A worker that dies or hangs is replaced, and what it had in flight is sent again, one request at a time, so that
//!   a text that kills workers fails its own call and no other. [`Options::max_attempts`] bounds how often.
//! - An answer is checked before it is used: number of vectors, dimension, size, finite numbers, fingerprint.
//! - With [`Parameters::timeout`] it ends by then; the worker is told to drop it.

mod bridge;
mod error;
mod lifecycle;
mod options;
mod request;
mod supervisor;
mod wire;
mod worker;

pub use bridge::{Canceller, EmbedBridge, Pending, Stats};
pub use error::{Error, Exit};
pub use options::{Options, Parameters};
pub use request::Embeddings;
pub use wire::{Info, Limits};
