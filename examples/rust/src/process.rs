//! One child process, ended and reaped so that no signal can reach a process of somebody else.
//!
//! A process number is ours until the process is reaped. So whoever signals holds the lock that the reaper takes, and
//! asks first whether the process is still a child of ours: a host may wait for any child, or ignore SIGCHLD, and then
//! the number may belong to another.

use std::io;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

pub(crate) use system::{survive_broken_pipes, Process};

pub(crate) type Pipes = (ChildStdin, ChildStdout, ChildStderr);

/// Start a process whose three streams are pipes, in a group of its own so that the terminal's Ctrl-C does not reach it.
pub(crate) fn spawn(mut command: Command) -> io::Result<(Process, Pipes)> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Process::spawn(command)
}

/// The variable that tells a supervised worker whom to watch: what is started may be a launcher of it.
pub(crate) const PARENT_VARIABLE: &str = "EMBED_WORKER_PARENT";

/// Return what that variable says of this process: its number and, where that is at hand, what tells a later owner of
/// the number apart.
pub(crate) fn name_this_process() -> String {
    let pid = std::process::id();
    match start_of_this_process() {
        Some(start) => format!("{pid}:{start}"),
        None => pid.to_string(),
    }
}

#[cfg(target_os = "linux")]
fn start_of_this_process() -> Option<u64> {
    // Of the first thread, which is as old as the process: qemu makes up what a process reads of itself.
    let stat = std::fs::read_to_string(format!("/proc/self/task/{}/stat", std::process::id())).ok()?;
    let (_, behind_the_name) = stat.rsplit_once(')')?;
    behind_the_name.split_ascii_whitespace().nth(19)?.parse().ok() // field 22
}

#[cfg(not(target_os = "linux"))]
fn start_of_this_process() -> Option<u64> {
    None
}

/// Whether another try cannot help: what cannot be executed never will be, while a system without memory or processes
/// may recover.
pub(crate) fn is_permanent(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, NotFound, PermissionDenied};
    #[cfg(unix)]
    if rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::NOTDIR) {
        return true;
    }
    matches!(error.kind(), NotFound | PermissionDenied | InvalidInput)
}

#[cfg(unix)]
mod system {
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::Child;
    use std::sync::{Mutex, PoisonError};

    use nix::sys::signal::SigSet;
    use rustix::io::Errno;
    use rustix::process::{getpgid, kill_process_group, waitid, Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus};

    use super::{io, Command, ExitStatus, Pipes};

    pub(crate) struct Process {
        pid: Pid,
        child: Mutex<Option<Child>>, // until it is reaped
        #[cfg(target_os = "linux")]
        handle: Option<std::os::fd::OwnedFd>, // names this process for ever, whatever becomes of its number
    }

    /// Let this thread have an error where it writes to a dead worker, also in a host that does not ignore SIGPIPE.
    pub(crate) fn survive_broken_pipes() {
        let _ = SigSet::from(nix::sys::signal::Signal::SIGPIPE).thread_block();
    }

    const WATCH: WaitIdOptions = WaitIdOptions::EXITED.union(WaitIdOptions::NOWAIT);
    const LOOK: WaitIdOptions = WATCH.union(WaitIdOptions::NOHANG);

    impl Process {
        pub(super) fn spawn(mut command: Command) -> io::Result<(Process, Pipes)> {
            let mut child = command.process_group(0).spawn()?;
            let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
            let (Some(stdin), Some(stdout), Some(stderr)) = pipes else { unreachable!("all three were asked for") };
            let pid = Pid::from_child(&child);
            let process = Process {
                pid,
                child: Mutex::new(Some(child)),
                #[cfg(target_os = "linux")]
                handle: handle_of(pid),
            };
            Ok((process, (stdin, stdout, stderr)))
        }

        pub(crate) fn pid(&self) -> u32 {
            self.pid.as_raw_nonzero().get().unsigned_abs()
        }

        /// Whether this number is of a process that was started by ours, in its group.
        pub(crate) fn has_started(&self, pid: u32) -> bool {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            pid.is_some_and(|pid| getpgid(Some(pid)) == Ok(self.pid))
        }

        fn wait_id(&self) -> WaitId<'_> {
            #[cfg(target_os = "linux")]
            if let Some(handle) = &self.handle {
                return WaitId::PidFd(std::os::fd::AsFd::as_fd(handle));
            }
            WaitId::Pid(self.pid)
        }

        /// Wait until it is dead, end what it has left of its group, and reap it. Without a status when somebody else
        /// has reaped it.
        pub(crate) fn wait(&self) -> Option<ExitStatus> {
            let seen = loop {
                match waitid(self.wait_id(), WATCH) {
                    Ok(Some(end)) => break status_of(&end),
                    Ok(None) | Err(Errno::INTR) => {}
                    Err(_) => break None,
                }
            };
            self.signal(Signal::KILL);
            let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
            child.take()?.wait().ok().or(seen)
        }

        /// Ask the whole group for an end.
        pub(crate) fn terminate(&self) {
            self.signal(Signal::TERM);
        }

        /// End the whole group.
        pub(crate) fn kill(&self) {
            self.signal(Signal::KILL);
        }

        fn signal(&self, signal: Signal) {
            let child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
            if child.is_some() && waitid(self.wait_id(), LOOK).is_ok() {
                let _ = kill_process_group(self.pid, signal); // it may have just ended
            }
        }
    }

    /// Return a handle that can be waited for: Linux has it since 5.4.
    #[cfg(target_os = "linux")]
    fn handle_of(pid: Pid) -> Option<std::os::fd::OwnedFd> {
        let handle = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()?;
        let id = WaitId::PidFd(std::os::fd::AsFd::as_fd(&handle));
        waitid(id, LOOK).is_ok().then_some(handle)
    }

    fn status_of(end: &WaitIdStatus) -> Option<ExitStatus> {
        let raw = end.terminating_signal().or_else(|| Some(end.exit_status()? << 8))?;
        Some(ExitStatus::from_raw(raw))
    }
}

#[cfg(windows)]
mod system {
    use std::os::windows::process::CommandExt;

    use shared_child::SharedChild;

    use super::{io, Command, ExitStatus, Pipes};

    const NO_WINDOW_AND_A_GROUP_OF_ITS_OWN: u32 = 0x0800_0200;

    pub(crate) struct Process(SharedChild);

    /// There is no such signal.
    pub(crate) fn survive_broken_pipes() {}

    impl Process {
        pub(super) fn spawn(mut command: Command) -> io::Result<(Process, Pipes)> {
            let child = SharedChild::spawn(command.creation_flags(NO_WINDOW_AND_A_GROUP_OF_ITS_OWN))?;
            let pipes = (child.take_stdin(), child.take_stdout(), child.take_stderr());
            let (Some(stdin), Some(stdout), Some(stderr)) = pipes else { unreachable!("all three were asked for") };
            Ok((Process(child), (stdin, stdout, stderr)))
        }

        pub(crate) fn pid(&self) -> u32 {
            self.0.id()
        }

        /// Windows keeps no groups, so a launcher's word for its child has to do.
        #[allow(clippy::unused_self)]
        pub(crate) fn has_started(&self, _pid: u32) -> bool {
            true
        }

        pub(crate) fn wait(&self) -> Option<ExitStatus> {
            self.0.wait().ok()
        }

        /// Windows has no such request but the end of input, which the worker has: one that stays is ended.
        pub(crate) fn terminate(&self) {
            self.kill();
        }

        pub(crate) fn kill(&self) {
            let _ = self.0.kill();
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::io::{BufRead, BufReader, Write};

    use rustix::process::{waitpid, Pid, WaitOptions};

    use super::*;

    #[test]
    fn a_group_whose_leader_somebody_else_has_reaped_is_not_signalled() {
        let mut command = Command::new("sh");
        command.args(["-c", "exec 3<&0; cat <&3 &"]); // it leaves an echo behind
        let (process, (mut stdin, stdout, _stderr)) = spawn(command).expect("a shell");
        let leader = i32::try_from(process.pid()).ok().and_then(Pid::from_raw);
        waitpid(leader, WaitOptions::empty()).expect("its end");

        process.kill();
        process.terminate();
        assert_eq!(process.wait(), None, "its status is gone, and that is no success");
        // The number of the group might be another's by now.
        stdin.write_all(b"still there\n").expect("a reader");
        drop(stdin);
        let lines: Vec<String> = BufReader::new(stdout).lines().map(|line| line.expect("text")).collect();
        assert_eq!(lines, ["still there"]);
    }

    #[test]
    fn the_group_of_a_leader_that_ended_is_ended_and_its_status_is_told() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & exit 7"]);
        let (process, (_stdin, stdout, _stderr)) = spawn(command).expect("a shell");
        assert_eq!(process.wait().and_then(|status| status.code()), Some(7));
        // `sleep` holds the other end of this pipe for as long as it lives.
        assert_eq!(BufReader::new(stdout).lines().count(), 0);
        process.kill();
    }
}
