//! What the end of a worker means. Pure: a status and what we did to the process go in, a cause comes out.

use std::fmt;
use std::io;
use std::process::ExitStatus;
use std::sync::Arc;

/// Why a worker is gone, or could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// The host closed the bridge.
    Asked,
    /// A signal of its own making, an abort, or an internal error.
    Crashed,
    /// It gave no sign of life, or made no progress, and was killed for it.
    Hung,
    /// A signal from outside.
    Killed,
    /// It said that it was short of memory.
    OutOfMemory,
    /// It had reached its memory ceiling and ended in good order.
    Recycled,
    /// Any other end.
    Exited,
    /// It wrote what no answer can be, and was killed for it.
    BrokeProtocol,
    /// It was not ready in time, and was killed for it.
    StartTimeout,
    /// The system refused to start it for now.
    NotSpawned,
    /// Usage, configuration, the model, or nothing to execute: no start can help.
    Unusable,
    /// It speaks another protocol.
    ProtocolMismatch,
    /// It serves another model than before.
    ModelChanged,
}

impl Cause {
    /// Return the name that logs and the other clients use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Asked => "asked",
            Cause::Crashed => "crashed",
            Cause::Hung => "hung",
            Cause::Killed => "killed",
            Cause::OutOfMemory => "out_of_memory",
            Cause::Recycled => "recycled",
            Cause::Exited => "exited",
            Cause::BrokeProtocol => "broke_protocol",
            Cause::StartTimeout => "start_timeout",
            Cause::NotSpawned => "not_spawned",
            Cause::Unusable => "unusable",
            Cause::ProtocolMismatch => "protocol_mismatch",
            Cause::ModelChanged => "model_changed",
        }
    }

    /// Return whether another start cannot help.
    #[must_use]
    pub fn is_permanent(self) -> bool {
        matches!(self, Cause::Unusable | Cause::ProtocolMismatch | Cause::ModelChanged)
    }

    /// Return whether what was being computed can be the reason; a signal from outside never is.
    #[must_use]
    pub fn may_blame_input(self) -> bool {
        matches!(self, Cause::Crashed | Cause::Hung)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.as_str().replace('_', " "))
    }
}

/// How a process ended, on any system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(unix), allow(dead_code))] // Windows has no signals
pub(crate) enum End {
    Signal(i32),
    Status(u32),
    /// Somebody else has collected the status, or the process would not die.
    Unknown,
}

const CRASH_SIGNALS: [&str; 5] = ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"];
const OUTSIDE_SIGNALS: [&str; 2] = ["SIGKILL", "SIGTERM"];
// Windows knows no signals. `abort()` ends with 3, NTSTATUS errors are access violations, stack overflows and the like,
// and from outside come Ctrl-C, a logoff, and `TerminateProcess` with the numbers that people pass to it.
const WINDOWS_CRASHES: std::ops::Range<u32> = 0xC000_0000..0xD000_0000;
const WINDOWS_ABORT: u32 = 3;
const WINDOWS_OUTSIDE: [u32; 5] = [1, 9, 15, 0xC000_013A, 0xC000_0142];
const PERMANENT_STATUSES: [u32; 4] = [2, 78, 126, 127]; // usage, configuration, nothing to execute
const INTERNAL_ERROR_STATUS: u32 = 70;
const OUT_OF_MEMORY_STATUS: u32 = 75;
const RECYCLED_STATUS: u32 = 79;

/// Tell why a process ended; `ours` is why we ended it, and names the cause unless it ended in its own way before.
pub(crate) fn cause_of(end: End, ours: Option<Cause>, is_windows: bool) -> Cause {
    let is_one_of = |names: &[&str], number: i32| signal_name(number).is_some_and(|name| names.contains(&name));
    let is_from_outside = match end {
        End::Signal(number) => is_one_of(&OUTSIDE_SIGNALS, number),
        End::Status(status) => is_windows && WINDOWS_OUTSIDE.contains(&status),
        End::Unknown => true,
    };
    match (ours, end) {
        (Some(ours), _) if ours == Cause::Asked || is_from_outside => ours,
        (_, End::Status(status)) if PERMANENT_STATUSES.contains(&status) => Cause::Unusable,
        (_, End::Unknown) => Cause::Exited,
        _ if is_from_outside => Cause::Killed,
        (_, End::Signal(number)) if is_one_of(&CRASH_SIGNALS, number) => Cause::Crashed,
        (_, End::Status(INTERNAL_ERROR_STATUS)) => Cause::Crashed,
        (_, End::Status(status)) if is_windows && (status == WINDOWS_ABORT || WINDOWS_CRASHES.contains(&status)) => {
            Cause::Crashed
        }
        (_, End::Status(OUT_OF_MEMORY_STATUS)) => Cause::OutOfMemory,
        (_, End::Status(RECYCLED_STATUS)) => Cause::Recycled,
        _ => Cause::Exited,
    }
}

#[cfg(unix)]
fn signal_name(number: i32) -> Option<&'static str> {
    use rustix::process::Signal;
    Some(match Signal::from_named_raw(number)? {
        Signal::SEGV => "SIGSEGV",
        Signal::ABORT => "SIGABRT",
        Signal::BUS => "SIGBUS",
        Signal::ILL => "SIGILL",
        Signal::FPE => "SIGFPE",
        Signal::KILL => "SIGKILL",
        Signal::TERM => "SIGTERM",
        Signal::HUP => "SIGHUP",
        _ => return None,
    })
}

#[cfg(not(unix))]
fn signal_name(_number: i32) -> Option<&'static str> {
    None
}

/// How a worker ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Exit {
    /// Why it is gone.
    pub cause: Cause,
    /// What was seen of it, where the status alone does not tell; may be empty.
    pub detail: String,
    /// Its process, when there was one.
    pub pid: Option<u32>,
    /// The exit status or signal; `None` when there was no process, when it would not die, or when somebody else in
    /// the host has collected the status.
    pub status: Option<ExitStatus>,
    /// The end of what it wrote to standard error, control characters escaped.
    pub stderr_tail: String,
    pub(crate) was_ready: bool,
    pub(crate) source: Option<Arc<io::Error>>,
}

impl Exit {
    /// Describe a worker that the system could not start.
    pub(crate) fn not_spawned(cause: Cause, error: io::Error) -> Exit {
        Exit {
            cause,
            detail: String::new(),
            pid: None,
            status: None,
            stderr_tail: String::new(),
            was_ready: false,
            source: Some(Arc::new(error)),
        }
    }

    /// Whether memory was short: the worker said so, or the kernel may have killed it.
    pub(crate) fn may_be_out_of_memory(&self) -> bool {
        let is_sigkill = matches!(end_of(self.status), End::Signal(number) if signal_name(number) == Some("SIGKILL"));
        self.cause == Cause::OutOfMemory || self.cause == Cause::Killed && is_sigkill
    }

    pub(crate) fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|error| error as _)
    }
}

/// Return how a process ended.
pub(crate) fn end_of(status: Option<ExitStatus>) -> End {
    let Some(status) = status else { return End::Unknown };
    #[cfg(unix)]
    if let Some(number) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return End::Signal(number);
    }
    #[allow(clippy::cast_sign_loss)] // Windows tells an NTSTATUS as a negative number
    status.code().map_or(End::Unknown, |code| End::Status(code as u32))
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cause)?;
        match (self.status, self.pid) {
            (Some(status), _) => write!(f, ", {status}")?,
            (None, Some(_)) => f.write_str(", no exit status")?,
            (None, None) => {}
        }
        if self.cause == Cause::Killed && self.may_be_out_of_memory() {
            f.write_str(", by the kernel for want of memory?")?;
        }
        if !self.detail.is_empty() {
            write!(f, ", {}", self.detail)?;
        }
        if !self.stderr_tail.is_empty() {
            write!(f, "\nthe end of its standard error:\n{}", self.stderr_tail)?;
        }
        Ok(())
    }
}

/// Return the number of a signal that `cause_of` knows.
#[cfg(test)]
pub(crate) fn signal_number(name: &str) -> Option<i32> {
    (1..32).find(|&number| signal_name(number) == Some(name))
}
