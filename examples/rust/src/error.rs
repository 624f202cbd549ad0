//! How a call can fail.

use std::fmt;
use std::time::Duration;

use crate::embeddings::Embeddings;
use crate::exit::{Cause, Exit};

/// Why a call did not end with vectors. Branch on the variants and on `code`, never on messages.
///
/// Every call gets exactly one outcome: its vectors or one of these.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Error {
    /// The worker answered with an error.
    #[non_exhaustive]
    Request {
        /// What kind of error it is.
        code: ErrorCode,
        /// What was wrong, for people; it never contains the text of an input.
        message: String,
        /// Whether the same call may succeed when it is made again.
        retryable: bool,
        /// The input that is to blame, where one is.
        index: Option<usize>,
    },
    /// The arguments were wrong; nothing was sent.
    InvalidArgument(String),
    /// The call's time is over. The worker was told to drop it, and lives on: slow is not hung.
    Timeout(Duration),
    /// Too much is waiting already; nothing was queued.
    QueueFull,
    /// The bridge was closed before the answer came.
    Closed,
    /// The call was withdrawn.
    Cancelled,
    /// Some inputs kill workers, each alone, twice. For an hour the same texts are refused without a worker.
    #[non_exhaustive]
    PoisonedInput {
        /// Which inputs, in order.
        indexes: Vec<usize>,
        /// The vectors of all the others, in order; `None` where none was computed.
        others: Option<Box<Embeddings>>,
    },
    /// No worker could be started.
    WorkerStart(Exit),
    /// The worker died with this call in flight, and the call was not to be sent again.
    WorkerDied(Exit),
    /// The worker stopped answering, or stopped working, and was killed; the call was not to be sent again.
    WorkerHung(Exit),
    /// The worker speaks another version of the protocol.
    ProtocolMismatch(Exit),
    /// A restarted worker has another model, fingerprint or dimension: its vectors must not be mixed with the earlier
    /// ones. Make a new bridge to go on with the new model.
    ModelChanged(Exit),
    /// The worker failed too often; calls are refused until the next attempt.
    #[non_exhaustive]
    CircuitOpen {
        /// When that will be.
        retry_in: Duration,
        /// What the last failure was.
        last: Box<Error>,
    },
}

impl Error {
    /// Return a stable name of the variant, for logs and metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Error::Request { .. } => "request",
            Error::InvalidArgument(_) => "invalid_argument",
            Error::Timeout(_) => "timeout",
            Error::QueueFull => "queue_full",
            Error::Closed => "closed",
            Error::Cancelled => "cancelled",
            Error::PoisonedInput { .. } => "poisoned_input",
            Error::WorkerStart(_) => "start",
            Error::WorkerDied(_) => "worker_died",
            Error::WorkerHung(_) => "worker_hung",
            Error::ProtocolMismatch(_) => "protocol_mismatch",
            Error::ModelChanged(_) => "model_changed",
            Error::CircuitOpen { .. } => "circuit_open",
        }
    }

    /// Return how the worker ended, where that is what the error tells.
    #[must_use]
    pub fn exit(&self) -> Option<&Exit> {
        match self {
            Error::WorkerStart(exit)
            | Error::WorkerDied(exit)
            | Error::WorkerHung(exit)
            | Error::ProtocolMismatch(exit)
            | Error::ModelChanged(exit) => Some(exit),
            Error::CircuitOpen { last, .. } => last.exit(),
            _ => None,
        }
    }

    /// Return the error that tells of a lost worker.
    pub(crate) fn of(exit: Exit) -> Error {
        match exit.cause {
            Cause::ProtocolMismatch => Error::ProtocolMismatch(exit),
            Cause::ModelChanged => Error::ModelChanged(exit),
            Cause::Hung => Error::WorkerHung(exit),
            _ if exit.was_ready => Error::WorkerDied(exit),
            _ => Error::WorkerStart(exit),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Request { code, message, .. } => write!(f, "{code}: {message}"),
            Error::InvalidArgument(why) => f.write_str(why),
            Error::Timeout(after) => write!(f, "no answer within {after:?}"),
            Error::QueueFull => f.write_str("too many calls are waiting"),
            Error::Closed => f.write_str("the bridge is closed"),
            Error::Cancelled => f.write_str("the call was withdrawn"),
            Error::PoisonedInput { indexes, .. } => write!(f, "inputs that kill the worker: {indexes:?}"),
            Error::WorkerStart(exit) => write!(f, "the worker did not start: {exit}"),
            Error::WorkerDied(exit) => write!(f, "the worker died: {exit}"),
            Error::WorkerHung(exit) => write!(f, "the worker hung and was killed: {exit}"),
            Error::ProtocolMismatch(exit) => write!(f, "the worker cannot be used: {exit}"),
            Error::ModelChanged(exit) => write!(f, "the worker came back with another model: {exit}"),
            Error::CircuitOpen { retry_in, .. } => {
                write!(f, "the worker failed too often, the next attempt is in {retry_in:.1?}")
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::CircuitOpen { last, .. } => Some(last),
            _ => self.exit()?.source(),
        }
    }
}

macro_rules! error_codes {
    ($($variant:ident = $name:literal, $meaning:literal;)*) => {
        /// The protocol's error codes.
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $(#[doc = $meaning] $variant,)*
            /// A code of a newer worker.
            Other(Box<str>),
        }

        impl ErrorCode {
            /// Return the code as it travels.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $(ErrorCode::$variant => $name,)*
                    ErrorCode::Other(name) => name,
                }
            }
        }

        impl From<&str> for ErrorCode {
            fn from(name: &str) -> ErrorCode {
                match name {
                    $($name => ErrorCode::$variant,)*
                    other => ErrorCode::Other(other.into()),
                }
            }
        }
    };
}

error_codes! {
    ParseError = "parse_error", "The line was not UTF-8, not JSON, or not an object.";
    LineTooLong = "line_too_long", "The line was longer than the worker reads.";
    InvalidRequest = "invalid_request", "A member has a wrong type, is unknown, is missing, or excludes another.";
    UnknownMethod = "unknown_method", "The worker has no such method.";
    DuplicateId = "duplicate_id", "The id is in use.";
    TooManyInputs = "too_many_inputs", "More inputs than the worker takes in one request.";
    InputTooLong = "input_too_long", "A text over the limit.";
    ModelNotFound = "model_not_found", "The model is not loaded, or in no models folder.";
    ModelLoadFailed = "model_load_failed", "The model was found, but cannot be used.";
    DeadlineExceeded = "deadline_exceeded", "The worker was told a deadline, and it has passed.";
    Cancelled = "cancelled", "The request was cancelled.";
    ShuttingDown = "shutting_down", "The worker is about to leave; the request was not begun.";
    OutOfMemory = "out_of_memory", "An allocation failed.";
    InferenceFailed = "inference_failed", "The runtime failed with this input alone.";
    NonFiniteEmbedding = "non_finite_embedding", "A vector would not be finite, or have no length.";
    InternalError = "internal_error", "A bug in the worker.";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::io;

    use super::*;

    #[test]
    fn a_code_of_a_newer_worker_is_kept_and_a_known_one_has_its_name() {
        assert_eq!(ErrorCode::from("input_too_long"), ErrorCode::InputTooLong);
        for name in ["input_too_long", "a code of tomorrow"] {
            assert_eq!(ErrorCode::from(name).to_string(), name);
        }
    }

    #[test]
    fn the_source_of_an_error_leads_to_what_the_system_said() {
        let io = io::Error::new(io::ErrorKind::NotFound, "no such program");
        let last = Error::of(Exit::not_spawned(Cause::Unusable, io));
        assert_eq!(last.kind(), "start");
        let open = Error::CircuitOpen { retry_in: Duration::from_secs(1), last: Box::new(last) };
        let start = open.source().expect("the last failure");
        assert!(start.source().expect("the system's error").is::<io::Error>());
        assert!(Error::Closed.source().is_none());
    }
}
