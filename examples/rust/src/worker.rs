//! One worker process and the threads around its pipes. It knows nothing of requests; whoever spawns it does.
//!
//! *writer*: queue → standard input. *reader*: standard output → lines. *stderr*: drained in chunks, its end kept.
//! *waiter*: the only one that reaps, and the last that is heard.

use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::iter;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::options::Options;
use crate::policy::{worker_command, worker_environment, MAX_ANSWER_BYTES, PIPE_GRACE, STDERR_TAIL_BYTES};
use crate::process::{self, Pipes, Process, PARENT_VARIABLE};
use crate::wire::Request;

const READ_BYTES: usize = 256 << 10;

/// What a worker is heard to do, on its own threads.
#[derive(Clone, Copy)]
pub(crate) enum Heard<'a> {
    /// A complete line of standard output.
    Line(&'a [u8]),
    /// A line without an end in sight.
    EndlessLine,
    /// A pipe is gone; usually the process is about to follow.
    PipeLost,
    /// Last of all: the process is dead and reaped, with its status unless somebody else has taken it.
    Gone(Option<ExitStatus>),
}

/// A running worker. Dropping it closes its standard input and nothing else: end it with [`Worker::kill`].
pub(crate) struct Worker {
    pub pid: u32, // another one than the process's where that is a launcher of the worker
    process: Arc<Process>,
    outbox: Option<Sender<(u64, Request)>>,
    stderr_tail: Arc<Mutex<Vec<u8>>>,
}

/// What is to be read and written, before anybody does.
pub(crate) struct Threads {
    process: Arc<Process>,
    pipes: Pipes,
    inbox: Receiver<(u64, Request)>,
    stderr_tail: Arc<Mutex<Vec<u8>>>,
    forward_stderr: bool,
}

impl Threads {
    /// Begin to read and to write. The process is gone when there are not threads enough.
    pub(crate) fn start<F>(self, hear: F) -> io::Result<()>
    where
        F: Fn(Heard<'_>) + Clone + Send + 'static,
    {
        let Threads { process, pipes: (stdin, stdout, stderr), inbox, stderr_tail, forward_stderr } = self;
        let (has_read, all_read) = mpsc::channel();
        let (waited, stderr_is_read) = (Arc::clone(&process), has_read.clone());
        let (tell_of_writing, tell_of_reading) = (hear.clone(), hear.clone());
        let start = || {
            named("stderr", move || drain(stderr, &stderr_tail, forward_stderr, stderr_is_read))?;
            named("writer", move || write(stdin, inbox, tell_of_writing))?;
            named("reader", move || read(stdout, tell_of_reading, has_read))?;
            named("waiter", move || wait(&waited, &all_read, hear))
        };
        start().map_err(|error| {
            process.kill();
            process.wait();
            error
        })
    }
}

impl Worker {
    /// Start a process; whatever becomes of it is heard once its threads are started.
    pub(crate) fn spawn(options: &Options) -> io::Result<(Worker, Threads)> {
        let (process, pipes) = process::spawn(command(options))?;
        let process = Arc::new(process);
        let (outbox, inbox) = mpsc::channel();
        let stderr_tail = Arc::default();
        let worker = Worker {
            pid: process.pid(),
            process: Arc::clone(&process),
            outbox: Some(outbox),
            stderr_tail: Arc::clone(&stderr_tail),
        };
        Ok((worker, Threads { process, pipes, inbox, stderr_tail, forward_stderr: options.forward_stderr }))
    }

    /// Take the number that the worker tells of itself, unless it belongs to another machine or namespace.
    pub(crate) fn learn_pid(&mut self, told: Option<u32>) {
        self.pid = told.filter(|pid| self.process.has_started(*pid)).unwrap_or(self.pid);
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

    /// Ask the process and what it has started for an end, where there is such a thing.
    pub(crate) fn terminate(&self) {
        self.process.terminate();
    }

    /// End the process, and what it has started.
    pub(crate) fn kill(&self) {
        self.process.kill();
    }

    /// Return the end of its standard error, without what could act on a terminal.
    pub(crate) fn stderr_tail(&self) -> String {
        let tail = self.stderr_tail.lock().unwrap_or_else(PoisonError::into_inner);
        printable(&String::from_utf8_lossy(&tail).replace("\r\n", "\n").replace('\r', "\n"))
    }
}

/// Escape what could act on a terminal or forge a log line; newlines stay.
pub(crate) fn printable(text: &str) -> String {
    let mut printed = String::with_capacity(text.len());
    for c in text.trim().chars() {
        if c.is_control() && c != '\n' {
            printed.extend(c.escape_default());
        } else {
            printed.push(c);
        }
    }
    printed
}

fn command(options: &Options) -> Command {
    let line = worker_command(&options.command);
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]);
    let parent = (PARENT_VARIABLE.into(), process::name_this_process().into());
    let added = iter::once(parent).chain(options.env.iter().cloned());
    command.env_clear().envs(worker_environment(env::vars_os(), added, cfg!(windows)));
    if let Some(cwd) = &options.cwd {
        command.current_dir(cwd);
    }
    command
}

fn named(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(format!("embed-{name}")).spawn(run).map(drop)
}

fn write(mut stdin: ChildStdin, inbox: Receiver<(u64, Request)>, hear: impl Fn(Heard<'_>)) {
    process::survive_broken_pipes();
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

fn read(stdout: ChildStdout, hear: impl Fn(Heard<'_>), _is_read: Sender<()>) {
    let mut stdout = BufReader::with_capacity(READ_BYTES, stdout);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = stdout.by_ref().take(MAX_ANSWER_BYTES as u64).read_until(b'\n', &mut line);
        // A last chunk without a newline is not an answer.
        if read.is_err() || line.last() != Some(&b'\n') {
            if line.len() == MAX_ANSWER_BYTES {
                hear(Heard::EndlessLine);
            }
            return hear(Heard::PipeLost);
        }
        if !line.iter().all(u8::is_ascii_whitespace) {
            hear(Heard::Line(&line));
        }
        line.shrink_to(READ_BYTES);
    }
}

/// Read standard error in chunks, never in lines: a progress bar has no newline.
fn drain(mut stderr: ChildStderr, tail: &Mutex<Vec<u8>>, forward: bool, _is_read: Sender<()>) {
    let mut chunk = [0; 8 << 10];
    loop {
        let size = match stderr.read(&mut chunk) {
            Ok(0) => return,
            Ok(size) => size,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        if forward {
            let _ = io::stderr().write_all(&chunk[..size]);
        }
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend_from_slice(&chunk[..size]);
        let surplus = tail.len().saturating_sub(STDERR_TAIL_BYTES);
        tail.drain(..surplus);
    }
}

fn wait(process: &Process, all_read: &Receiver<()>, hear: impl Fn(Heard<'_>)) {
    let status = process.wait();
    // What it had said before it died counts; but the pipes may be held open by somebody else. Nothing is ever sent
    // here: the readers let go of the channel when they end.
    let _ = all_read.recv_timeout(PIPE_GRACE);
    hear(Heard::Gone(status));
}

#[cfg(all(test, unix))]
mod tests {
    use std::process::Stdio;

    use nix::sys::signal::{SigSet, Signal};

    use super::*;

    #[test]
    fn the_thread_that_writes_to_a_dead_worker_would_not_be_ended_by_a_signal() {
        let mut child = Command::new("true").stdin(Stdio::piped()).spawn().expect("a process");
        let stdin = child.stdin.take().expect("a pipe");
        child.wait().expect("its end");
        let (outbox, inbox) = mpsc::channel();
        outbox.send((1, Request::Ping)).expect("a receiver");
        let (tell, told) = mpsc::channel();
        let hear = move |heard: Heard<'_>| {
            let mask = SigSet::thread_get_mask().expect("a mask");
            tell.send((matches!(heard, Heard::PipeLost), mask.contains(Signal::SIGPIPE))).expect("a receiver");
        };
        thread::spawn(move || write(stdin, inbox, hear)).join().expect("an end");
        assert_eq!(told.recv(), Ok((true, true)));
        assert!(!SigSet::thread_get_mask().expect("a mask").contains(Signal::SIGPIPE), "other threads are the host's");
    }
}
