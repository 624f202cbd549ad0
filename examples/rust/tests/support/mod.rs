//! Workers for the tests: the fake one with its faults, and the real one.

#![allow(dead_code)] // each test binary uses a part of it

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use embed_bridge::{EmbedBridge, Options};

/// For everything that must happen; nothing is proved by its length.
pub const WAIT: Duration = Duration::from_secs(180);

/// The interpreter that can run the workers.
pub fn interpreter() -> OsString {
    std::env::var_os("EMBED_BRIDGE_PYTHON").unwrap_or_else(|| "python3".into())
}

fn python(arguments: &[&str]) -> Options {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let arguments = arguments.iter().map(OsString::from);
    let mut options = Options::with_command([interpreter()].into_iter().chain(arguments));
    options.env = vec![("PYTHONPATH".into(), root.clone().into())];
    options.cwd = Some(root);
    options.request_timeout = 2 * WAIT;
    options.start_timeout = WAIT;
    (options.pong_timeout, options.stuck_after) = (WAIT, WAIT); // a busy machine is slow, and no test is about that
    options.backoff_initial = Duration::from_millis(10);
    options.backoff_max = Duration::from_millis(50);
    options.restart_budget = 20.0;
    options.drain = Duration::from_secs(2);
    options
}

/// The same options but for a change.
pub fn but(mut options: Options, change: impl FnOnce(&mut Options)) -> Options {
    change(&mut options);
    options
}

/// The fake worker with these faults. `python -m bridge_client.testing.fake_worker --help` lists them.
pub fn fake(faults: &[&str]) -> Options {
    python(&[&["-m", "bridge_client.testing.fake_worker"], faults].concat())
}

/// Short patience with a worker that gives no sign of life, or makes no progress. A busy machine makes healthy workers
/// late, too: it waits for two seconds and not for two moments.
pub fn impatient(options: Options) -> Options {
    but(options, |options| {
        options.ping_every = Duration::from_millis(100);
        options.pong_timeout = Duration::from_millis(1500);
        options.stuck_after = Duration::from_secs(2);
    })
}

/// The fake worker with these faults in its first process only.
pub fn fake_at_first(faults: &[&str]) -> Options {
    let file = count_file();
    fake(&[faults, &["--processes=1", "--count-file", path(&file)]].concat())
}

/// The real worker with the default model.
pub fn real() -> Options {
    real_with(&[])
}

/// The real worker with other arguments.
pub fn real_with(arguments: &[&str]) -> Options {
    python(&[&["-m", "embed_worker"], arguments].concat())
}

/// A folder of small models.
pub fn small_models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models")
}

/// A module of `bridge_client.testing` that is a worker, with these arguments.
pub fn testing(module: &str, arguments: &[&str]) -> Options {
    python(&[&["-m", &format!("bridge_client.testing.{module}")], arguments].concat())
}

/// A file that the clients of all languages share.
pub fn shared(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bridge_client/testing/conformance");
    std::fs::read_to_string(folder.join(name)).expect("a checkout of the project")
}

/// A folder for files of the tests, beside them: what is built here may run on another system.
pub fn scratch() -> PathBuf {
    let folder = std::env::current_exe().expect("this program").with_file_name("scratch");
    std::fs::create_dir_all(&folder).expect("a writable folder");
    folder
}

/// A file in which the processes of one fake worker count themselves.
pub fn count_file() -> PathBuf {
    static FILES: AtomicU32 = AtomicU32::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let file = scratch().join(format!("processes-{}-{number}", std::process::id()));
    let _ = std::fs::remove_file(&file);
    file
}

pub fn path(file: &Path) -> &str {
    file.to_str().expect("a printable path")
}

/// The number in the file of `--grandchild`.
pub fn pid_in(file: &Path) -> u32 {
    std::fs::read_to_string(file).expect("its file").trim().parse().expect("a number")
}

pub fn spawn(options: Options) -> EmbedBridge {
    EmbedBridge::spawn(options).expect("a thread")
}

/// The vector that a fake worker without faults gives to a text.
pub fn vector(text: &str) -> Vec<f32> {
    static HEALTHY: OnceLock<EmbedBridge> = OnceLock::new();
    let bridge = HEALTHY.get_or_init(|| spawn(fake(&[])));
    bridge.embed(&[text]).expect("no faults").vectors
}

/// The worker's process, as soon as there is a ready one.
pub fn pid(bridge: &EmbedBridge) -> u32 {
    bridge.info().expect("a ready worker").pid.expect("its process")
}

/// Send SIGKILL, or what Windows has instead; false when there is no such process.
pub fn kill(pid: u32) -> bool {
    system::signal(pid, "KILL")
}

/// Send SIGTERM, or what Windows has instead; false when there is no such process.
pub fn terminate(pid: u32) -> bool {
    system::signal(pid, "TERM")
}

/// Whether there is such a process, zombies included.
pub fn exists(pid: u32) -> bool {
    system::exists(pid)
}

/// Whether there is such a process that is not a zombie: an orphan is reaped by somebody else, some time.
pub fn is_running(pid: u32) -> bool {
    system::is_running(pid)
}

#[cfg(unix)]
mod system {
    use std::process::Command;

    use rustix::process::{kill_process, test_kill_process, Pid, Signal};

    fn process(pid: u32) -> Pid {
        i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process's number")
    }

    pub fn signal(pid: u32, name: &str) -> bool {
        kill_process(process(pid), if name == "KILL" { Signal::KILL } else { Signal::TERM }).is_ok()
    }

    pub fn exists(pid: u32) -> bool {
        test_kill_process(process(pid)).is_ok()
    }

    pub fn is_running(pid: u32) -> bool {
        let told = Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output().expect("`ps`");
        !matches!(String::from_utf8_lossy(&told.stdout).trim().bytes().next(), None | Some(b'Z' | b'X'))
    }
}

/// Python asks the system: that is unsafe code in Rust, and this crate has none.
#[cfg(windows)]
mod system {
    use std::path::Path;
    use std::process::Command;

    fn python(program: &str) -> bool {
        let program = format!("import sys; from bridge_client.testing.processes import *; {program}");
        let mut command = Command::new(super::interpreter());
        command.args(["-c", &program]).env("PYTHONPATH", Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
        command.output().expect("Python").status.success()
    }

    pub fn signal(pid: u32, name: &str) -> bool {
        python(&format!("send_signal({pid}, {name:?})"))
    }

    pub fn exists(pid: u32) -> bool {
        python(&format!("sys.exit(not is_there({pid}))"))
    }

    pub fn is_running(pid: u32) -> bool {
        exists(pid)
    }
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < WAIT, "{what}: it did not happen");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Run something that must not take for ever.
pub fn within_bounds(what: &str, run: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(run);
    wait_until(what, || thread.is_finished());
    thread.join().expect(what);
}
