//! How a call can fail, and how a worker ends.

use std::fmt;
use std::process::ExitStatus;
use std::time::Duration;

/// Why a call did not end with vectors. Branch on the variants and on `code`, never on messages.
///
/// Every call gets exactly one outcome: its vectors or one of these.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Error {
    /// The worker answered with an error.
    Request {
        /// One of the protocol's error codes, such as `input_too_long`, or one of a newer worker.
        code: String,
        /// What was wrong, for people; it never contains the text of an input.
        message: String,
        /// Whether the same call may succeed when it is made again.
        retryable: bool,
        /// The input that is to blame, where one is.
        index: Option<usize>,
    },
    /// The call's time is over. The worker was told to drop it, and lives on: slow is not hung.
    Timeout(Duration),
    /// Too much is waiting already; nothing was queued.
    QueueFull,
    /// The bridge was closed before the answer came.
    Closed,
    /// The call was withdrawn.
    Cancelled,
    /// No worker could be started.
    WorkerStart(Exit),
    /// Workers died with this call in flight, as often as [`Options::max_attempts`](crate::Options::max_attempts) allows.
    WorkerDied(Exit),
    /// The worker stopped answering, or stopped working, and was killed; as often as `max_attempts` allows.
    WorkerHung(Exit),
    /// The worker speaks another version of the protocol.
    ProtocolMismatch(Exit),
    /// A restarted worker has another model, fingerprint or dimension: its vectors must not be mixed with the earlier
    /// ones. Make a new bridge to go on with the new model.
    ModelChanged(Exit),
    /// The worker failed too often; calls are refused until the next attempt.
    CircuitOpen {
        /// When that will be.
        retry_in: Duration,
        /// What the last failure was.
        last: Box<Error>,
    },
}

impl Error {
    /// A stable name of the variant, for logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::Request { .. } => "request",
            Error::Timeout(_) => "timeout",
            Error::QueueFull => "queue_full",
            Error::Closed => "closed",
            Error::Cancelled => "cancelled",
            Error::WorkerStart(_) => "start",
            Error::WorkerDied(_) => "worker_died",
            Error::WorkerHung(_) => "worker_hung",
            Error::ProtocolMismatch(_) => "protocol_mismatch",
            Error::ModelChanged(_) => "model_changed",
            Error::CircuitOpen { .. } => "circuit_open",
        }
    }

    /// The same error with what is known now that the process is gone.
    pub(crate) fn with_exit(mut self, status: Option<ExitStatus>, stderr_tail: String) -> Error {
        if let Error::WorkerStart(exit)
        | Error::WorkerDied(exit)
        | Error::WorkerHung(exit)
        | Error::ProtocolMismatch(exit)
        | Error::ModelChanged(exit) = &mut self
        {
            exit.status = status;
            exit.stderr_tail = stderr_tail;
        }
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Request { code, message, .. } => write!(f, "{code}: {message}"),
            Error::Timeout(after) => write!(f, "no answer within {after:?}"),
            Error::QueueFull => write!(f, "too many calls are waiting"),
            Error::Closed => write!(f, "the bridge is closed"),
            Error::Cancelled => write!(f, "the call was withdrawn"),
            Error::WorkerStart(exit) => write!(f, "the worker did not start: {exit}"),
            Error::WorkerDied(exit) => write!(f, "the worker died: {exit}"),
            Error::WorkerHung(exit) => write!(f, "the worker hung and was killed: {exit}"),
            Error::ProtocolMismatch(exit) => write!(f, "the worker cannot be used: {exit}"),
            Error::ModelChanged(exit) => write!(f, "the worker came back with another model: {exit}"),
            Error::CircuitOpen { retry_in, last } => {
                write!(f, "the worker failed too often, next attempt in {retry_in:.1?}; last: {last}")
            }
        }
    }
}

impl std::error::Error for Error {}

/// How a worker ended.
#[derive(Debug, Clone, Default)]
pub struct Exit {
    /// What was seen of it, where the status alone does not tell; may be empty.
    pub detail: String,
    /// The exit status or signal; `None` when there was no process, or when it would not die.
    pub status: Option<ExitStatus>,
    /// The end of what it wrote to standard error, control characters replaced.
    pub stderr_tail: String,
}

impl Exit {
    pub(crate) fn because(detail: impl Into<String>) -> Exit {
        Exit { detail: detail.into(), ..Exit::default() }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.detail.as_str(), self.status) {
            ("", None) => f.write_str("no exit status")?,
            ("", Some(status)) => write!(f, "{status}")?,
            (detail, None) => f.write_str(detail)?,
            (detail, Some(status)) => write!(f, "{detail}, {status}")?,
        }
        if !self.stderr_tail.is_empty() {
            write!(f, "\nthe end of its standard error:\n{}", self.stderr_tail)?;
        }
        Ok(())
    }
}
