//! The inside of the bridge: one worker at a time, and the thread that keeps it alive.
//!
//! Any thread may submit; the reader of a worker settles its answers, and its waiter tells of its end; everything that
//! time brings happens on the supervisor's thread. One lock guards the tables. While it is held no process is spawned
//! or waited for, no answer is decoded, no pipe is written, and nobody is woken.

mod answers;
mod calls;
mod dispatch;
mod generation;
mod loss;
mod models;
mod queue;

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::bridge::{State, Stats};
use crate::chunk::Chunk;
use crate::error::Error;
use crate::exit::{Cause, Exit};
use crate::health::Check;
use crate::info::Info;
use crate::investigation::{Investigation, Quarantine};
use crate::lifecycle::Budget;
use crate::options::Options;
use crate::worker::{Threads, Worker};
use generation::{Awaited, Generation};
use models::Models;
use queue::{Calls, Queue};

const LONGEST_SLEEP: Duration = Duration::from_secs(60);

pub(crate) struct Shared {
    options: Arc<Options>,
    inner: Mutex<Inner>,
    numbers: AtomicU64,    // of calls
    alarm: Arc<Condvar>,   // the supervisor sleeps here
    changed: Arc<Condvar>, // who closes waits here for the end
}

struct Inner {
    options: Arc<Options>,
    phase: Phase,
    current: Option<Generation>,
    calls: Calls,
    queue: Queue,
    asks: VecDeque<u64>, // calls for an `info` or a pong that the worker has not been asked for
    parked: Vec<Chunk>,  // for models that are being asked for
    case: Investigation,
    quarantine: Quarantine,
    expected: Option<Arc<Info>>, // what the first worker served, every later one must
    models: Models,
    budget: Budget,
    last_exit: Option<Exit>,
    next_id: u64,
    spawned: u64,
    alarm_at: Instant,
    alarm: Arc<Condvar>,
    changed: Arc<Condvar>,
    wakers: Vec<Waker>, // of tasks whose calls are over
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

/// The lock on the tables. Who is to be woken is woken when it is free: a task that is woken may do anything.
struct Locked<'a> {
    shared: &'a Shared,
    guard: Option<MutexGuard<'a, Inner>>,
}

impl Deref for Locked<'_> {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        self.guard.as_ref().expect("it is held until it is dropped")
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Inner {
        self.guard.as_mut().expect("it is held until it is dropped")
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let Some(mut guard) = self.guard.take() else { return };
        let wakers = mem::take(&mut guard.wakers);
        drop(guard);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl<'a> Locked<'a> {
    /// Sleep until the condition is notified, or for no reason.
    fn sleep(mut self, condition: &Condvar, at_most: Duration) -> Locked<'a> {
        let shared = self.shared;
        if self.wakers.is_empty() {
            if let Some(guard) = self.guard.take() {
                let guard = condition.wait_timeout(guard, at_most.min(LONGEST_SLEEP));
                return Locked { shared, guard: Some(guard.unwrap_or_else(PoisonError::into_inner).0) };
            }
        }
        drop(self); // somebody is to be woken first
        shared.lock()
    }
}

impl Shared {
    pub(crate) fn new(options: Options) -> Shared {
        let (options, now) = (Arc::new(options), Instant::now());
        let (alarm, changed) = <(Arc<Condvar>, Arc<Condvar>)>::default();
        let inner = Inner {
            options: Arc::clone(&options),
            phase: Phase::Waiting(now),
            current: None,
            calls: Calls::default(),
            queue: Queue::default(),
            asks: VecDeque::new(),
            parked: Vec::new(),
            case: Investigation::default(),
            quarantine: Quarantine::default(),
            expected: None,
            models: Models::default(),
            budget: Budget::default(),
            last_exit: None,
            next_id: 1,
            spawned: 0,
            alarm_at: now,
            alarm: Arc::clone(&alarm),
            changed: Arc::clone(&changed),
            wakers: Vec::new(),
        };
        Shared { options, inner: Mutex::new(inner), numbers: AtomicU64::new(1), alarm, changed }
    }

    fn lock(&self) -> Locked<'_> {
        Locked { shared: self, guard: Some(self.inner.lock().unwrap_or_else(PoisonError::into_inner)) }
    }

    pub(crate) fn stats(&self) -> Stats {
        let inner = self.lock();
        let current = inner.current.as_ref();
        Stats {
            state: inner.phase.state(),
            pid: current.map(|current| current.worker.pid),
            restarts: inner.spawned.saturating_sub(1),
            in_flight: current.map_or(0, |current| current.requests),
            queued: inner.calls.queued(),
            last_exit: inner.last_exit.clone(),
        }
    }

    /// Begin to close: down the whole ladder, or at once.
    pub(crate) fn close(&self, at_once: bool) {
        let mut inner = self.lock();
        let now = Instant::now();
        match inner.phase {
            Phase::Closed => return,
            _ if at_once => inner.phase = Phase::Closing(Rung::Kill, now),
            Phase::Closing(..) => return,
            _ => inner.phase = Phase::Closing(Rung::Terminate, now + self.options.drain),
        }
        if let Some(current) = &mut inner.current {
            current.worker.end_input();
        }
        inner.fail_unsent(&Error::Closed);
        inner.alarm.notify_one();
    }

    /// Wait until there is no worker any more, and will be none.
    pub(crate) fn wait_closed(&self) {
        let mut inner = self.lock();
        while !matches!(inner.phase, Phase::Closed) {
            inner = inner.sleep(&self.changed, LONGEST_SLEEP);
        }
    }
}

// The supervisor's thread -----------------------------------------------------------------------------------------

/// Whatever ends the supervisor's thread, nobody must wait for it any longer.
struct LastCall<'a>(&'a Shared);

impl Drop for LastCall<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        let now = Instant::now();
        inner.phase = Phase::Closing(Rung::Kill, now);
        if let Some(current) = &mut inner.current {
            current.kill(now);
        }
        inner.lose(None, now);
        inner.phase = Phase::Closed;
        inner.fail_unsent(&Error::Closed);
        inner.changed.notify_all();
    }
}

impl Shared {
    pub(crate) fn supervise(self: &Arc<Shared>) {
        let _last_call = LastCall(self);
        let mut inner = self.lock();
        loop {
            let now = Instant::now();
            inner.look_at_the_clock(now);
            match inner.phase {
                Phase::Closed => return,
                Phase::Waiting(at) | Phase::Open(at, _) if at <= now => {
                    inner.phase = Phase::Starting(now + self.options.start_timeout);
                    drop(inner);
                    self.start(Worker::spawn(&self.options));
                    inner = self.lock();
                }
                _ => {
                    inner.alarm_at = inner.next_alarm(now);
                    let at_most = inner.alarm_at.saturating_duration_since(now);
                    inner = inner.sleep(&self.alarm, at_most);
                }
            }
        }
    }

    fn start(self: &Arc<Shared>, spawned: io::Result<(Worker, Threads)>) {
        let now = Instant::now();
        let started = spawned.and_then(|(worker, threads)| {
            let number = self.lock().install(worker, now);
            let shared = Arc::clone(self);
            threads.start(move |heard| shared.hear(number, heard))
        });
        if let Err(error) = started {
            self.lock().not_started(error, now);
        }
    }
}

impl Inner {
    fn install(&mut self, mut worker: Worker, now: Instant) -> u64 {
        if let Phase::Closing(..) = self.phase {
            worker.end_input();
        }
        self.spawned += 1;
        self.current = Some(Generation::new(self.spawned, worker, now));
        self.send(Awaited::Info(None));
        self.spawned
    }

    /// Do everything that is due.
    fn look_at_the_clock(&mut self, now: Instant) {
        self.expire(now);
        self.check_health(now);
        let terminate = self.options.terminate;
        if let Some(current) = &mut self.current {
            match self.phase {
                Phase::Starting(until) if until <= now => {
                    let why = format!("not ready after {:?}", self.options.start_timeout);
                    current.stop(now, Cause::StartTimeout, why);
                }
                Phase::Closing(Rung::Terminate, at) if at <= now => {
                    current.worker.terminate();
                    self.phase = Phase::Closing(Rung::Kill, now + terminate);
                }
                Phase::Closing(Rung::Kill, at) if at <= now => current.kill(now),
                _ => {}
            }
            if current.stop.as_ref().is_some_and(|stop| stop.at <= now) {
                current.kill(now);
            }
            if current.killed_at.is_some_and(|at| at + terminate <= now) {
                self.lose(None, now); // it does not die
            }
        }
        if let (None, Phase::Closing(..)) = (&self.current, &self.phase) {
            self.phase = Phase::Closed;
            self.changed.notify_all();
        }
    }

    fn check_health(&mut self, now: Instant) {
        let Some(current) = self.current.as_mut().filter(|current| current.serving().is_some()) else { return };
        match current.health.check(current.requests > 0, now, &self.options) {
            Check::Nothing => {}
            Check::Ping => self.send(Awaited::Ping(None)),
            Check::Silent => current.stop(now, Cause::Hung, "it gave no sign of life"),
            Check::Stuck => current.stop(now, Cause::Hung, "it answered pings and did nothing else"),
        }
    }

    fn next_alarm(&self, now: Instant) -> Instant {
        let mut alarms = vec![now + LONGEST_SLEEP];
        alarms.extend(self.next_deadline());
        let killed_at = self.current.as_ref().and_then(|current| current.killed_at);
        match self.phase {
            _ if killed_at.is_some() => {} // it only has to disappear
            Phase::Waiting(at) | Phase::Open(at, _) | Phase::Starting(at) | Phase::Closing(_, at) => alarms.push(at),
            Phase::Ready | Phase::Failed(_) | Phase::Closed => {}
        }
        if let Some(current) = &self.current {
            match (killed_at, &current.stop) {
                (Some(at), _) => alarms.push(at + self.options.terminate),
                (None, Some(stop)) => alarms.push(stop.at),
                (None, None) if current.info.is_some() => {
                    alarms.push(current.health.next_check(current.requests > 0, &self.options));
                }
                (None, None) => {}
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

    /// Why nothing can be served now.
    fn refusal(&self) -> Result<(), Error> {
        match &self.phase {
            Phase::Open(at, last) => {
                let retry_in = at.saturating_duration_since(Instant::now());
                Err(Error::CircuitOpen { retry_in, last: Box::new(last.clone()) })
            }
            Phase::Failed(error) => Err(error.clone()),
            Phase::Closing(..) | Phase::Closed => Err(Error::Closed),
            Phase::Waiting(_) | Phase::Starting(_) | Phase::Ready => Ok(()),
        }
    }
}

impl Phase {
    fn state(&self) -> State {
        match self {
            Phase::Waiting(_) => State::BackingOff,
            Phase::Starting(_) => State::Starting,
            Phase::Ready => State::Ready,
            Phase::Open(..) | Phase::Failed(_) => State::Failed,
            Phase::Closing(..) => State::Closing,
            Phase::Closed => State::Closed,
        }
    }
}
