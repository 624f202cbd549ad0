//! What a host can choose.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

/// The worker's command and how patient the bridge is with it. The defaults suit every model; tests shorten them.
/// `Duration::MAX` is never.
#[derive(Debug, Clone)]
pub struct Options {
    /// The whole command line; by default `embed-worker --supervised`, with which the worker also watches that its
    /// host is alive.
    pub command: Vec<OsString>,
    /// Set in the worker's environment, beside an allow-list of the host's (`PATH`, `HOME`, locale, temporary folders,
    /// `OMP_*`, `ORT_*`, `EMBED_WORKER_*`): the worker never sees the host's secrets.
    pub env: Vec<(OsString, OsString)>,
    /// The worker's working directory; the host's by default.
    pub cwd: Option<PathBuf>,
    /// Copy the worker's standard error to the host's. Its end is kept for errors either way.
    pub forward_stderr: bool,
    /// Until the worker must have answered `info`.
    pub start_timeout: Duration,
    /// For each request on the wire, from being sent first. A call's own [`Parameters::timeout`] replaces it.
    pub request_timeout: Duration,
    /// How often one request may be sent in all, when workers die with it. 1 turns replaying off.
    pub max_attempts: u32,
    /// Failures that may come together; the one that fills the budget opens the circuit.
    pub restart_budget: u32,
    /// Useful time that takes one failure out of the budget.
    pub restart_forgive: Duration,
    /// Before a restart; it doubles with every failure in a row, ±20 %.
    pub backoff_initial: Duration,
    /// The longest wait before a restart.
    pub backoff_max: Duration,
    /// How long the circuit stays open at first; it doubles.
    pub open_initial: Duration,
    /// The longest that the circuit stays open.
    pub open_max: Duration,
    /// Silence after which a ping is sent.
    pub ping_every: Duration,
    /// A ping without any sign of life for so long is a miss; two in a row are a hang.
    pub pong_timeout: Duration,
    /// No progress for so long while work is in flight is a hang, too.
    pub stuck_after: Duration,
    /// When closing: after the end of input, before SIGTERM.
    pub drain: Duration,
    /// After SIGTERM, before SIGKILL.
    pub terminate: Duration,
    /// Calls that may wait to be sent.
    pub max_queued: usize,
    /// Bytes of their texts; a larger call is admitted when it is alone.
    pub max_queued_bytes: usize,
}

impl Options {
    /// The defaults with another command, such as
    /// `Options::with_command(["python3", "-m", "embed_worker", "--supervised"])`.
    pub fn with_command<S: Into<OsString>>(command: impl IntoIterator<Item = S>) -> Options {
        Options { command: command.into_iter().map(Into::into).collect(), ..Options::default() }
    }

    /// The same with durations that can be added to any time.
    pub(crate) fn clamped(mut self) -> Options {
        const A_CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
        for duration in [
            &mut self.start_timeout,
            &mut self.request_timeout,
            &mut self.restart_forgive,
            &mut self.backoff_initial,
            &mut self.backoff_max,
            &mut self.open_initial,
            &mut self.open_max,
            &mut self.ping_every,
            &mut self.pong_timeout,
            &mut self.stuck_after,
            &mut self.drain,
            &mut self.terminate,
        ] {
            *duration = A_CENTURY.min(*duration);
        }
        self
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            command: vec!["embed-worker".into(), "--supervised".into()],
            env: Vec::new(),
            cwd: None,
            forward_stderr: false,
            start_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(120),
            max_attempts: 3,
            restart_budget: 5,
            restart_forgive: Duration::from_secs(60),
            backoff_initial: Duration::from_millis(200),
            backoff_max: Duration::from_secs(30),
            open_initial: Duration::from_secs(60),
            open_max: Duration::from_secs(600),
            ping_every: Duration::from_secs(5),
            pong_timeout: Duration::from_secs(10),
            stuck_after: Duration::from_secs(60),
            drain: Duration::from_secs(5),
            terminate: Duration::from_secs(2),
            max_queued: 1024,
            max_queued_bytes: 64 << 20,
        }
    }
}

/// What a call asks for beside its inputs. `None`: what the model's folder says.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Parameters {
    /// L2-normalise the vectors, or do not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalize: Option<bool>,
    /// Keep so many of the dimensions (Matryoshka).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<usize>,
    /// A prompt of the model, such as `query`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_name: Option<String>,
    /// A literal prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// `Some(false)` makes a text over the model's limit an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncate: Option<bool>,
    /// For the whole call, waiting included. Without it, [`Options::request_timeout`] counts for each piece of it.
    #[serde(skip)]
    pub timeout: Option<Duration>,
}
