//! The inside of the bridge: one worker at a time, and the thread that keeps it alive.
//!
//! Any thread may submit; the reader of a worker settles its answers; everything that time brings happens on the
//! supervisor's thread. One lock guards the tables. It is never held while a process is spawned, an answer decoded or a
//! pipe written.

mod answers;
mod dispatch;
mod generation;

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::mem;
use std::process::ExitStatus;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::bridge::Stats;
use crate::error::{Error, Exit};
use crate::lifecycle::{Budget, Check, Restart};
use crate::options::Options;
use crate::request::{Job, Piece};
use crate::wire::Info;
use crate::worker::Worker;
use dispatch::Queue;
use generation::{Awaited, Generation};

const PERMANENT_STATUSES: [i32; 4] = [2, 78, 126, 127]; // usage, configuration, nothing to execute: no start can help
const RECYCLED_STATUS: i32 = 79; // it ended at its memory ceiling, everything accepted answered
const POLL_DYING: Duration = Duration::from_millis(2);
const POLL_STARTING: Duration = Duration::from_millis(100);
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

pub(crate) struct Shared {
    pub options: Arc<Options>,
    state: Mutex<State>,
    alarm: Arc<Condvar>,   // the supervisor sleeps here
    changed: Arc<Condvar>, // hosts wait here for room, readiness or the end
}

struct State {
    options: Arc<Options>,
    phase: Phase,
    current: Option<Generation>,
    suspects: VecDeque<Piece>, // in flight when a worker died: sent again first, and alone
    queue: Queue,
    expected: Option<Arc<Info>>, // what the first worker served, every later one must
    budget: Budget,
    next_id: u64,
    spawned: u64,
    alarm_at: Instant,
    alarm: Arc<Condvar>,
    changed: Arc<Condvar>,
}

enum Phase {
    /// A worker is to be started then.
    Waiting(Instant),
    /// `info` must be answered by then.
    Starting(Instant),
    Ready,
    /// Too many failures: everything is refused until then.
    Open(Instant, Error),
    /// No start can help.
    Failed(Error),
    /// Standard input is closed; SIGTERM or SIGKILL is due then.
    Closing(Rung, Instant),
    Closed,
}

#[derive(Clone, Copy)]
enum Rung {
    Terminate,
    Kill,
}

// What a host asks for --------------------------------------------------------------------------------------------

impl Shared {
    pub(crate) fn new(options: Options) -> Shared {
        let (options, now) = (Arc::new(options.clamped()), Instant::now());
        let (alarm, changed) = <(Arc<Condvar>, Arc<Condvar>)>::default();
        let state = State {
            options: Arc::clone(&options),
            phase: Phase::Waiting(now),
            current: None,
            suspects: VecDeque::new(),
            queue: Queue::default(),
            expected: None,
            budget: Budget::default(),
            next_id: 1,
            spawned: 0,
            alarm_at: now,
            alarm: Arc::clone(&alarm),
            changed: Arc::clone(&changed),
        };
        Shared { options, state: Mutex::new(state), alarm, changed }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queue a call. When too much waits, wait for room or refuse.
    pub(crate) fn submit(&self, job: &Arc<Job>, may_wait: bool) -> Result<(), Error> {
        let piece = Piece::whole(Arc::clone(job));
        let mut state = self.lock();
        while !state.has_space(piece.bytes)? {
            if !may_wait {
                return Err(Error::QueueFull);
            }
            state = self.wait(state, job.deadline, job.timeout)?;
        }
        state.queue.push_back(piece);
        job.deadline.inspect(|deadline| state.wake_by(*deadline));
        state.dispatch(Instant::now());
        Ok(())
    }

    /// Withdraw a call that has not ended.
    pub(crate) fn cancel(&self, job: &Arc<Job>) {
        if job.fail(Error::Cancelled) {
            self.lock().sweep();
        }
    }

    /// What the worker says of itself, as soon as it is ready.
    pub(crate) fn info(&self, timeout: Duration) -> Result<Info, Error> {
        self.when_ready(Instant::now().checked_add(timeout), timeout).map(|(_, info)| Info::clone(&info))
    }

    /// Wait for the answer to a ping; a worker that dies meanwhile is replaced, and asked again.
    pub(crate) fn ping(&self, timeout: Duration) -> Result<(), Error> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let (sender, receiver) = mpsc::sync_channel(1);
            self.when_ready(deadline, timeout)?.0.send(Awaited::Ping(Some(sender)));
            match receiver.recv_timeout(until(deadline)) {
                Ok(()) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => return Err(Error::Timeout(timeout)),
                Err(RecvTimeoutError::Disconnected) => {}
            }
        }
    }

    fn when_ready(
        &self,
        deadline: Option<Instant>,
        timeout: Duration,
    ) -> Result<(MutexGuard<'_, State>, Arc<Info>), Error> {
        let mut state = self.lock();
        loop {
            state.refusal()?;
            if let Some(info) = state.current.as_ref().and_then(Generation::serving) {
                let info = Arc::clone(info);
                return Ok((state, info));
            }
            state = self.wait(state, deadline, timeout)?;
        }
    }

    /// Sleep until something has changed; an error after the deadline.
    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        deadline: Option<Instant>,
        timeout: Duration,
    ) -> Result<MutexGuard<'a, State>, Error> {
        let left = until(deadline);
        if left.is_zero() {
            return Err(Error::Timeout(timeout));
        }
        Ok(self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0)
    }

    pub(crate) fn stats(&self) -> Stats {
        let state = self.lock();
        Stats {
            state: state.phase.name(),
            pid: state.current.as_ref().map(|current| current.worker.pid),
            restarts: state.spawned.saturating_sub(1),
            in_flight: state.current.as_ref().map_or(0, |current| current.requests),
            queued: state.queue.len() + state.suspects.len(),
        }
    }

    /// Close and wait for the end: down the whole ladder, or at once.
    pub(crate) fn close(&self, at_once: bool) {
        let mut state = self.lock();
        let now = Instant::now();
        match state.phase {
            Phase::Closed => {}
            _ if at_once => state.phase = Phase::Closing(Rung::Kill, now),
            Phase::Closing(..) => {}
            _ => state.phase = Phase::Closing(Rung::Terminate, now + self.options.drain),
        }
        if let Some(current) = &mut state.current {
            current.worker.end_input();
        }
        state.fail_waiting(|| Error::Closed);
        state.alarm.notify_one();
        drop(self.changed.wait_while(state, |state| !matches!(state.phase, Phase::Closed)));
    }
}

fn until(deadline: Option<Instant>) -> Duration {
    deadline.map_or(LONGEST_SLEEP, |deadline| deadline.saturating_duration_since(Instant::now()))
}

// The supervisor's thread -----------------------------------------------------------------------------------------

/// Whatever ends the supervisor's thread, nobody must wait for it any longer.
struct LastCall<'a>(&'a Shared);

impl Drop for LastCall<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.phase = Phase::Closing(Rung::Kill, Instant::now());
        if let Some(current) = &mut state.current {
            current.worker.kill();
        }
        state.lose(None, Instant::now());
        state.phase = Phase::Closed;
        state.fail_waiting(|| Error::Closed);
    }
}

impl Shared {
    pub(crate) fn supervise(self: &Arc<Shared>) {
        let _last_call = LastCall(self);
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            state.look_at_the_clock(now);
            match state.phase {
                Phase::Closed => return drop(state),
                Phase::Waiting(at) | Phase::Open(at, _) if at <= now => {
                    state.phase = Phase::Starting(now + self.options.start_timeout);
                    let number = state.spawned + 1;
                    drop(state);
                    let shared = Arc::clone(self);
                    let worker = Worker::spawn(&self.options, move |heard| shared.hear(number, heard));
                    state = self.lock();
                    state.install(number, worker, Instant::now());
                }
                _ => {
                    state.alarm_at = state.next_alarm(now);
                    let sleep = until(Some(state.alarm_at));
                    state = self.alarm.wait_timeout(state, sleep).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }
}

impl State {
    /// Do everything that is due.
    fn look_at_the_clock(&mut self, now: Instant) {
        self.expire(now);
        self.check_health(now);
        if let Some(current) = &mut self.current {
            match self.phase {
                Phase::Starting(until) if until <= now => {
                    let why = format!("not ready after {:?}", self.options.start_timeout);
                    current.doom(now, Error::WorkerStart(Exit::because(why)));
                }
                Phase::Closing(Rung::Terminate, at) if at <= now => {
                    current.worker.terminate();
                    self.phase = Phase::Closing(Rung::Kill, now + self.options.terminate);
                }
                Phase::Closing(Rung::Kill, at) if at <= now => current.kill(now),
                _ => {}
            }
            if current.doom.as_ref().is_some_and(|doom| doom.at <= now) {
                current.kill(now);
            }
            if let Some(status) = current.poll_end(now, self.options.terminate) {
                self.lose(status, now);
            }
        }
        if let (None, Phase::Closing(..)) = (&self.current, &self.phase) {
            self.phase = Phase::Closed;
        }
    }

    fn check_health(&mut self, now: Instant) {
        let Some(current) = self.current.as_mut().filter(|current| current.serving().is_some()) else { return };
        match current.health.check(current.requests > 0, now, &self.options) {
            Check::Nothing => {}
            Check::Ping => self.send(Awaited::Ping(None)),
            Check::Silent => current.doom(now, Error::WorkerHung(Exit::because("it gave no sign of life"))),
            Check::Stuck => {
                current.doom(now, Error::WorkerHung(Exit::because("it answered pings and did nothing else")))
            }
        }
    }

    /// Fail the calls whose time is over; the worker is told, and lives on.
    fn expire(&mut self, now: Instant) {
        let mut is_any_late = false;
        for piece in self.pieces() {
            if piece.deadline().is_some_and(|deadline| deadline <= now) {
                is_any_late |= piece.job.fail(Error::Timeout(piece.job.timeout));
            }
        }
        if is_any_late {
            self.sweep();
            self.dispatch(now);
        }
    }

    fn next_alarm(&self, now: Instant) -> Instant {
        let mut alarms = vec![now + LONGEST_SLEEP];
        alarms.extend(self.pieces().filter_map(Piece::deadline));
        match self.phase {
            Phase::Waiting(at) | Phase::Open(at, _) | Phase::Closing(_, at) => alarms.push(at),
            // Its end may have come before anybody listened.
            Phase::Starting(until) => alarms.push(until.min(now + POLL_STARTING)),
            Phase::Ready | Phase::Failed(_) | Phase::Closed => {}
        }
        if let Some(current) = &self.current {
            match &current.doom {
                _ if current.is_dying() => alarms.push(now + POLL_DYING),
                Some(doom) => alarms.push(doom.at),
                None if current.info.is_some() => {
                    alarms.push(current.health.next_check(current.requests > 0, &self.options));
                }
                None => {}
            }
        }
        alarms.into_iter().min().unwrap_or(now)
    }

    fn wake_by(&mut self, at: Instant) {
        if at < self.alarm_at {
            self.alarm_at = at;
            self.alarm.notify_one();
        }
    }

    fn install(&mut self, number: u64, worker: io::Result<Worker>, now: Instant) {
        match worker {
            Ok(mut worker) => {
                if let Phase::Closing(..) = self.phase {
                    worker.end_input();
                }
                self.spawned = number;
                self.current = Some(Generation::new(number, worker, now));
                self.send(Awaited::Info);
            }
            Err(error) => {
                use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
                let is_permanent = matches!(error.kind(), NotFound | PermissionDenied | NotADirectory);
                let why = Exit::because(format!("{:?}: {error}", self.options.command));
                self.go_on(Error::WorkerStart(why), is_permanent, false, now);
            }
        }
    }

    /// Drop a process whole, decide about what was in flight, and go on.
    fn lose(&mut self, status: Option<ExitStatus>, now: Instant) {
        let Some(mut current) = self.current.take() else { return };
        let is_closing = matches!(self.phase, Phase::Closing(..));
        let error = if is_closing { Error::Closed } else { current.last_words(status) };
        let code = status.and_then(|status| status.code());
        let is_recycle = code == Some(RECYCLED_STATUS);
        if !current.worker.has_said_all() {
            current.worker.kill(); // somebody of its group holds the pipes
        }
        // Embedding is a pure function, so what was in flight is sent again; but not for ever: it may be the reason.
        for awaited in mem::take(&mut current.in_flight).into_values().rev() {
            let Awaited::Piece(mut piece) = awaited else { continue };
            if is_recycle && !is_closing {
                piece.attempts -= 1; // what it has not answered it has not begun
                self.put_back(piece);
            } else if is_closing || piece.attempts >= self.options.max_attempts {
                piece.job.fail(error.clone());
            } else {
                piece.is_suspect = true;
                self.suspects.push_front(piece);
            }
        }
        self.sweep();
        let is_permanent = matches!(error, Error::ProtocolMismatch(_) | Error::ModelChanged(_))
            || code.is_some_and(|code| PERMANENT_STATUSES.contains(&code));
        self.go_on(error, is_permanent, is_recycle, now);
    }

    /// Plan the next start, if there is to be one.
    fn go_on(&mut self, error: Error, is_permanent: bool, is_recycle: bool, now: Instant) {
        if let Phase::Closing(..) = self.phase {
            return;
        }
        if is_permanent {
            self.phase = Phase::Failed(error);
        } else {
            let jitter = RandomState::new().hash_one(now) as f64 / u64::MAX as f64 * 2.0 - 1.0;
            self.phase = match self.budget.lost(is_recycle, now, jitter, &self.options) {
                Restart::At(at) => Phase::Waiting(at),
                Restart::Open(until) => Phase::Open(until, error),
            };
        }
        if let Err(refusal) = self.refusal() {
            self.fail_waiting(|| refusal.clone());
        }
    }

    /// Why nothing can be served now.
    fn refusal(&self) -> Result<(), Error> {
        match &self.phase {
            Phase::Open(at, last) => {
                Err(Error::CircuitOpen { retry_in: until(Some(*at)), last: Box::new(last.clone()) })
            }
            Phase::Failed(error) => Err(error.clone()),
            Phase::Closing(..) | Phase::Closed => Err(Error::Closed),
            Phase::Waiting(_) | Phase::Starting(_) | Phase::Ready => Ok(()),
        }
    }
}

impl Phase {
    fn name(&self) -> &'static str {
        match self {
            Phase::Waiting(_) => "backing_off",
            Phase::Starting(_) => "starting",
            Phase::Ready => "ready",
            Phase::Open(..) | Phase::Failed(_) => "failed",
            Phase::Closing(..) => "closing",
            Phase::Closed => "closed",
        }
    }
}
