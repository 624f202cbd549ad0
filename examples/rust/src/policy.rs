//! The numbers and the allow-list that the clients of all languages share, and what may pass into a worker.
//!
//! What a host can choose is in `options.rs`; the tests compare both with the policy file of the project.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

// A chunk is a second or two of work on a small machine: long enough to be batched well, short enough that a bulk call
// neither outlives its time limit in the worker's queue nor keeps others waiting behind it.
pub(crate) const CHUNK_TOKENS: usize = 16_384;
pub(crate) const CHUNK_BYTES: usize = 4 << 20;
pub(crate) const BYTES_PER_TOKEN: usize = 4;
pub(crate) const SPECIAL_TOKENS: usize = 2;
pub(crate) const MOST_TOKENS: usize = 512; // a text is truncated at the model's limit, and few models go further
pub(crate) const SHORT_TOKENS: usize = 512; // about one micro-batch of the worker

pub(crate) const WINDOW_REQUESTS: usize = 256; // more would not make better batches, only more to send again alone
pub(crate) const WINDOW_TOKENS: usize = 65_536; // of bulk work: seconds of it, so that its time-outs measure work
pub(crate) const WINDOW_BYTES: usize = 16 << 20;

pub(crate) const MAX_ANSWER_BYTES: usize = 256 << 20;
pub(crate) const MAX_DIMENSION: usize = 65_536; // no model is near it, and nothing is allocated for more
pub(crate) const STDERR_TAIL_BYTES: usize = 8 << 10;
pub(crate) const INVALID_LINES_BEFORE_READY: u32 = 20; // lines of a chatty library or wrapper script
pub(crate) const PIPE_GRACE: Duration = Duration::from_millis(250); // somebody else may hold a dead worker's pipes
pub(crate) const PIPE_LOST: Duration = Duration::from_secs(1); // a process whose pipe is gone should be gone, too
pub(crate) const LONGEST_DRAIN: Duration = Duration::from_secs(15); // a supervised worker allows itself 10

pub(crate) const BACKOFF_JITTER: f64 = 0.2;
pub(crate) const HEALTHY: Duration = Duration::from_secs(60);
pub(crate) const RECYCLE_EVERY: Duration = Duration::from_secs(60);
pub(crate) const PONG_MISSES: u32 = 2;
pub(crate) const SLOW_FACTOR: f64 = 20.0;
pub(crate) const AVERAGE_WEIGHT: f64 = 0.2; // of the newest micro-batch time in the moving average

/// What a locale, a home, a temporary folder, Windows, a linker and an accelerator need; `*` at the end is any name.
/// `HF_*` would pass a token.
pub(crate) const PASSED_ENVIRONMENT: [&str; 32] = [
    "PATH",
    "LANG",
    "LANGUAGE",
    "LC_*",
    "TZ",
    "HOME",
    "XDG_*",
    "TMPDIR",
    "TEMP",
    "TMP",
    "USERPROFILE",
    "HOMEDRIVE",
    "HOMEPATH",
    "APPDATA",
    "LOCALAPPDATA",
    "PROGRAMDATA",
    "SYSTEMROOT",
    "SYSTEMDRIVE",
    "WINDIR",
    "COMSPEC",
    "PATHEXT",
    "NUMBER_OF_PROCESSORS",
    "PROCESSOR_ARCHITECTURE",
    "PROCESSOR_IDENTIFIER",
    "LD_LIBRARY_PATH",
    "DYLD_*",
    "CUDA_*",
    "ORT_*",
    "OMP_*",
    "HF_HOME",
    "HF_HUB_CACHE",
    "EMBED_WORKER_*",
];

/// Set unless the host says otherwise: the worker's runtime would report its use to its maker.
pub(crate) const ENVIRONMENT_BY_DEFAULT: [(&str, &str); 1] = [("ORT_DISABLE_TELEMETRY", "1")];

/// Return what is started for a host's command: a worker that is not supervised outlives its host.
pub(crate) fn worker_command(given: &[OsString]) -> Vec<OsString> {
    let flag = OsString::from("--supervised");
    let is_there = given.contains(&flag);
    given.iter().cloned().chain((!is_there).then_some(flag)).collect()
}

/// Return what a worker gets of its host's environment, and what the host adds. Windows knows no case of names.
pub(crate) fn worker_environment(
    host: impl IntoIterator<Item = (OsString, OsString)>,
    added: impl IntoIterator<Item = (OsString, OsString)>,
    is_windows: bool,
) -> impl Iterator<Item = (OsString, OsString)> {
    let key = |name: &OsString| if is_windows { name.to_ascii_uppercase() } else { name.clone() };
    let is_passed = |name: &OsString| {
        let name = key(name);
        let Some(name) = name.to_str() else { return false };
        PASSED_ENVIRONMENT.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == *pattern,
        })
    };
    let by_default = ENVIRONMENT_BY_DEFAULT.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let passed = host.into_iter().filter(|(name, _)| is_passed(name));
    let mut environment = BTreeMap::new();
    for (name, value) in by_default.into_iter().chain(passed).chain(added) {
        environment.insert(key(&name), (name, value)); // the later one wins
    }
    environment.into_values()
}
