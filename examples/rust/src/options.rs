//! What a host can choose.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::Error;

/// The worker's command and how patient the bridge is with it.
///
/// The defaults suit every model; tests shorten them. `Duration::MAX` is never. Zero is at once, and is refused for
/// [`ping_every`](Options::ping_every), [`pong_timeout`](Options::pong_timeout) and
/// [`half_open_initial`](Options::half_open_initial).
///
/// ```
/// use std::time::Duration;
/// use embed_bridge::Options;
///
/// let mut options = Options::with_model("all-MiniLM-L6-v2");
/// options.request_timeout = Duration::from_secs(10);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// The command line; by default `embed-worker`. `--supervised` is added where it is missing: such a worker leaves
    /// when its host has died.
    pub command: Vec<OsString>,
    /// Set in the worker's environment, beside an allow-list of the host's (`PATH`, the home, locale and temporary
    /// folders, libraries and accelerators, `OMP_*`, `ORT_*`, `EMBED_WORKER_*`): the worker never sees the host's
    /// secrets. `ORT_DISABLE_TELEMETRY=1` is set unless the host or this says otherwise.
    pub env: Vec<(OsString, OsString)>,
    /// The worker's working directory; the host's by default.
    pub cwd: Option<PathBuf>,
    /// Copy the worker's standard error to the host's. Its end is kept for errors either way.
    pub forward_stderr: bool,
    /// Until the worker must have answered `info`, and until it must have loaded a further model.
    pub start_timeout: Duration,
    /// For each request on the wire, from being sent first. A call's own [`timeout`](crate::Parameters::timeout)
    /// replaces it and covers the whole call.
    pub request_timeout: Duration,
    /// Send requests again that were in flight when the worker died, and find the input that is to blame.
    pub replay: bool,
    /// Failures that may come together; at this level of the leaky bucket the circuit opens.
    pub restart_budget: f64,
    /// Useful time that takes one failure out of the bucket.
    pub restart_forgive: Duration,
    /// Before a restart; it doubles with every failure in a row, ±20 %.
    pub backoff_initial: Duration,
    /// The longest wait before a restart.
    pub backoff_max: Duration,
    /// How long the circuit stays open at first; it doubles.
    pub half_open_initial: Duration,
    /// The longest that the circuit stays open.
    pub half_open_max: Duration,
    /// Silence after which a ping is sent.
    pub ping_every: Duration,
    /// A ping without any sign of life for so long is a miss; two in a row are a hang.
    pub pong_timeout: Duration,
    /// No progress for so long while work is in flight is a hang, too. A worker whose micro-batches are slow gets 20
    /// times their moving average.
    pub stuck_after: Duration,
    /// When closing: after the end of input, before SIGTERM.
    pub drain: Duration,
    /// After SIGTERM, before SIGKILL; also how long a killed process may take to disappear.
    pub terminate: Duration,
    /// Calls that may wait to be sent before [`submit`](crate::EmbedBridge::submit) refuses more.
    pub max_queued: usize,
    /// Bytes of their texts; a larger call is admitted when it is alone.
    pub max_queued_bytes: usize,
}

impl Options {
    /// Return the defaults with another command, such as `["python3", "-m", "embed_worker"]`.
    pub fn with_command<S: Into<OsString>>(command: impl IntoIterator<Item = S>) -> Options {
        Options { command: command.into_iter().map(Into::into).collect(), ..Options::default() }
    }

    /// Return the defaults with a model's name or folder for `embed-worker`.
    pub fn with_model(model: impl Into<OsString>) -> Options {
        Options::with_command(["embed-worker".into(), "--model".into(), model.into()])
    }

    /// Return the same with durations that can be added to any time; refuse what would keep a thread busy for ever.
    pub(crate) fn checked(mut self) -> Result<Options, Error> {
        const A_CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
        if self.command.is_empty() {
            return Err(Error::InvalidArgument("`command` is empty".into()));
        }
        if self.restart_budget.is_nan() {
            return Err(Error::InvalidArgument("`restart_budget` is not a number".into()));
        }
        for (name, duration) in [
            ("ping_every", self.ping_every),
            ("pong_timeout", self.pong_timeout),
            ("half_open_initial", self.half_open_initial),
        ] {
            if duration.is_zero() {
                return Err(Error::InvalidArgument(format!("`{name}` must be more than zero")));
            }
        }
        for duration in [
            &mut self.start_timeout,
            &mut self.request_timeout,
            &mut self.restart_forgive,
            &mut self.backoff_initial,
            &mut self.backoff_max,
            &mut self.half_open_initial,
            &mut self.half_open_max,
            &mut self.ping_every,
            &mut self.pong_timeout,
            &mut self.stuck_after,
            &mut self.drain,
            &mut self.terminate,
        ] {
            *duration = A_CENTURY.min(*duration);
        }
        Ok(self)
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            command: vec!["embed-worker".into()],
            env: Vec::new(),
            cwd: None,
            forward_stderr: false,
            start_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(120),
            replay: true,
            restart_budget: 5.0,
            restart_forgive: Duration::from_secs(60),
            backoff_initial: Duration::from_millis(200),
            backoff_max: Duration::from_secs(30),
            half_open_initial: Duration::from_secs(60),
            half_open_max: Duration::from_secs(600),
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
