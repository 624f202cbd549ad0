//! One worker process and the threads around its pipes. It knows nothing of requests; whoever spawns it does.

use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::options::Options;
use crate::wire::Request;

const READ_BYTES: usize = 256 << 10;
const MAX_ANSWER_BYTES: u64 = 256 << 20;
const STDERR_TAIL_BYTES: usize = 8 << 10;
// In capitals: Windows writes them as it likes.
const PASSED_ENVIRONMENT: [&str; 8] = ["PATH", "HOME", "LANG", "TZ", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT"];
const PASSED_PREFIXES: [&str; 4] = ["LC_", "OMP_", "ORT_", "EMBED_WORKER_"];

/// What a worker is heard to do, on its reader's thread.
pub(crate) enum Heard<'a> {
    /// A complete line of standard output.
    Line(&'a [u8]),
    /// A line without an end in sight.
    EndlessLine,
    /// A pipe is gone; usually the process is about to follow.
    PipeLost,
}

/// A running worker. Dropping it closes its standard input and nothing else: end it with [`Worker::kill`].
pub(crate) struct Worker {
    pub pid: u32,
    child: Child,
    exit: Option<ExitStatus>,
    outbox: Option<Sender<(u64, Request)>>,
    stderr_tail: Arc<Mutex<Vec<u8>>>,
    readers: [JoinHandle<()>; 2],
}

impl Worker {
    /// Start a process, in a group of its own so that the terminal's Ctrl-C does not reach it.
    pub(crate) fn spawn<F>(options: &Options, hear: F) -> io::Result<Worker>
    where
        F: Fn(Heard<'_>) + Clone + Send + 'static,
    {
        let mut child = command(options)?.spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            unreachable!("all three were asked for");
        };
        let (outbox, inbox) = mpsc::channel();
        let stderr_tail = Arc::new(Mutex::new(Vec::new()));
        let (tail, forward, tell) = (Arc::clone(&stderr_tail), options.forward_stderr, hear.clone());
        let threads = named("writer", move || write(stdin, inbox, tell)).and_then(|_| {
            let reader = named("reader", move || read(stdout, hear))?;
            Ok([reader, named("stderr", move || drain(stderr, &tail, forward))?])
        });
        match threads {
            Ok(readers) => {
                Ok(Worker { pid: child.id(), child, exit: None, outbox: Some(outbox), stderr_tail, readers })
            }
            Err(error) => {
                let _ = child.kill().and_then(|()| child.wait());
                Err(error)
            }
        }
    }

    /// Queue a line; never blocks.
    pub(crate) fn send(&self, id: u64, request: Request) {
        if let Some(outbox) = &self.outbox {
            let _ = outbox.send((id, request)); // a writer that is gone has told why
        }
    }

    /// Close standard input once everything queued is written: the worker's sign to finish and leave.
    pub(crate) fn end_input(&mut self) {
        self.outbox = None;
    }

    /// Ask the whole process group for an end, where there is such a thing.
    pub(crate) fn terminate(&self) {
        self.signal_group("TERM");
    }

    /// End the process, and whatever it has started.
    pub(crate) fn kill(&mut self) {
        self.signal_group("KILL");
        let _ = self.child.kill(); // does nothing to a process that is reaped already
    }

    /// The exit status once the process is dead; reaps it.
    pub(crate) fn try_exit(&mut self) -> Option<ExitStatus> {
        self.exit = self.exit.or_else(|| self.child.try_wait().ok().flatten());
        self.exit
    }

    /// Whether everything it wrote has been read. Not so while somebody else holds its pipes open.
    pub(crate) fn has_said_all(&self) -> bool {
        self.readers.iter().all(JoinHandle::is_finished)
    }

    /// The end of its standard error, without what could act on a terminal.
    pub(crate) fn stderr_tail(&self) -> String {
        let tail = self.stderr_tail.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&tail);
        text.trim().chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
    }

    /// Signals need a system call that `std` does not wrap; the shell's built-in `kill` spares us a dependency with
    /// unsafe code. Where there is no shell, SIGTERM is left out and SIGKILL reaches the worker alone.
    fn signal_group(&self, signal: &str) {
        // The group's number is certainly ours until the process is reaped, or while one of the group holds a pipe.
        if cfg!(unix) && (self.exit.is_none() || !self.has_said_all()) {
            let pid = self.pid.to_string();
            let script = r#"kill -s "$0" -- "-$1" 2>/dev/null"#;
            let _ = Command::new("/bin/sh").args(["-c", script, signal, &pid]).stdin(Stdio::null()).status();
        }
    }
}

fn command(options: &Options) -> io::Result<Command> {
    let [program, arguments @ ..] = options.command.as_slice() else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the command is empty"));
    };
    let is_passed = |name: &str| {
        let name = name.to_ascii_uppercase();
        PASSED_ENVIRONMENT.contains(&&*name) || PASSED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_passed)))
        .envs(options.env.iter().cloned())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(cwd) = &options.cwd {
        command.current_dir(cwd);
    }
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    #[cfg(windows)]
    std::os::windows::process::CommandExt::creation_flags(&mut command, 0x0800_0200); // no window, a group of its own
    Ok(command)
}

fn named(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(format!("embed-{name}")).spawn(run)
}

fn write(mut stdin: ChildStdin, inbox: Receiver<(u64, Request)>, hear: impl Fn(Heard<'_>)) {
    let mut line = Vec::new();
    for (id, request) in inbox {
        line.clear();
        request.encode(id, &mut line);
        if stdin.write_all(&line).is_err() {
            return hear(Heard::PipeLost);
        }
        line.shrink_to(READ_BYTES); // one bulk request must not cost its size for ever
    }
}

fn read(stdout: ChildStdout, hear: impl Fn(Heard<'_>)) {
    let mut stdout = BufReader::with_capacity(READ_BYTES, stdout);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = stdout.by_ref().take(MAX_ANSWER_BYTES).read_until(b'\n', &mut line);
        // A last piece without a newline is not an answer.
        if read.is_err() || line.last() != Some(&b'\n') {
            if line.len() as u64 == MAX_ANSWER_BYTES {
                hear(Heard::EndlessLine);
            }
            return hear(Heard::PipeLost);
        }
        if !line.trim_ascii().is_empty() {
            hear(Heard::Line(&line));
        }
        line.shrink_to(READ_BYTES);
    }
}

/// Read standard error in chunks, never in lines: a progress bar has no newline.
fn drain(mut stderr: ChildStderr, tail: &Mutex<Vec<u8>>, forward: bool) {
    let _ = io::copy(&mut stderr, &mut Tail { tail, forward });
}

struct Tail<'a> {
    tail: &'a Mutex<Vec<u8>>,
    forward: bool,
}

impl Write for Tail<'_> {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        if self.forward {
            let _ = io::stderr().write_all(chunk);
        }
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend_from_slice(chunk);
        let surplus = tail.len().saturating_sub(STDERR_TAIL_BYTES);
        tail.drain(..surplus);
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
