//! Further models of a worker: what it says of each is asked for before its first vectors, and again after a restart.

use std::collections::{BTreeSet, HashMap};
use std::mem;
use std::sync::Arc;
use std::time::Instant;

use super::generation::{Awaited, Model};
use super::queue::Wanted;
use super::Inner;
use crate::chunk::Chunk;
use crate::error::Error;
use crate::exit::Cause;
use crate::info::Info;
use crate::wire::Answer;

#[derive(Default)]
pub(super) struct Models {
    loaded: BTreeSet<String>,             // by hosts: a new worker is asked to load them again
    expected: HashMap<String, Arc<Info>>, // what the first worker said of each, every later one must
}

impl Inner {
    /// Answer what hosts ask for, as far as the worker can be asked.
    pub(super) fn answer_asks(&mut self, now: Instant) {
        let Some(info) = self.current.as_ref().and_then(|current| current.serving()).cloned() else { return };
        for number in mem::take(&mut self.asks) {
            let Some(call) = self.calls.get_mut(number) else { continue };
            let Wanted::Info { promise, model, is_to_load } = &call.wanted else {
                self.send(Awaited::Ping(Some(number)));
                continue;
            };
            let (promise, model, is_to_load) = (Arc::clone(promise), model.clone(), *is_to_load);
            let told = match model {
                None => Some(Arc::clone(&info)),
                Some(name) => {
                    if is_to_load && !self.models.loaded.contains(&name) {
                        self.models.loaded.insert(name.clone());
                    }
                    self.model(&name, now)
                }
            };
            if let Some(told) = told {
                self.calls.remove(number);
                promise.settle(Ok(Info::clone(&told)), &mut self.wakers);
            } else {
                self.asks.push_back(number);
            }
        }
    }

    /// Return what this worker says of a further model; ask it where that is not known.
    pub(super) fn model(&mut self, name: &str, now: Instant) -> Option<Arc<Info>> {
        let current = self.current.as_mut()?;
        match current.models.get(name) {
            Some(Model::Ready(info)) => return Some(Arc::clone(info)),
            Some(Model::AskedFor { .. }) => return None,
            None => {}
        }
        let is_loading = self.models.loaded.contains(name);
        current.models.insert(name.to_owned(), Model::AskedFor { since: now, is_loading });
        let name = name.to_owned();
        self.send(if is_loading { Awaited::LoadModel(name) } else { Awaited::Info(Some(name)) });
        self.wake_by(now + self.options.start_timeout);
        None
    }

    /// Take the answer to `load_model`.
    pub(super) fn on_loaded(&mut self, name: String, answer: &Answer<'_>, now: Instant) {
        if answer.is_ok() {
            return self.send(Awaited::Info(Some(name)));
        }
        self.models.loaded.remove(&name);
        self.refuse_model(&name, answer, now);
    }

    /// Take what the worker says of a further model.
    pub(super) fn on_model(&mut self, name: &str, answer: &Answer<'_>, line: &[u8], now: Instant) {
        let Some(current) = &mut self.current else { return };
        let Some(Model::AskedFor { is_loading, .. }) = current.models.get(name) else { return };
        if !answer.is_ok() {
            if !is_loading && self.models.loaded.contains(name) {
                // A host has asked for it to be loaded since.
                current.models.remove(name);
                return self.dispatch(now);
            }
            return self.refuse_model(name, answer, now);
        }
        let info = match Info::parse(line) {
            Ok(info) => Arc::new(info),
            Err(why) => return self.ignore_output(&why, now),
        };
        let expected = self.models.expected.entry(name.to_owned()).or_insert_with(|| Arc::clone(&info));
        if info.identity() != expected.identity() {
            let mut exit = current.report(None);
            exit.cause = Cause::ModelChanged;
            exit.detail = format!("{:?} instead of {:?}", info.identity(), expected.identity());
            return self.no_model(name, &Error::ModelChanged(exit));
        }
        current.models.insert(name.to_owned(), Model::Ready(info));
        let ready = self.unpark(name);
        ready.into_iter().rev().for_each(|chunk| self.put_back(chunk));
        self.dispatch(now);
    }

    fn refuse_model(&mut self, name: &str, answer: &Answer<'_>, now: Instant) {
        match answer.failure(0) {
            Ok(failure) => self.no_model(name, &failure.into_error(0)),
            Err(why) => self.ignore_output(&format!("an error that does not fit: {why}"), now),
        }
    }

    /// Fail everything that waits for a model. The next call asks again.
    pub(super) fn no_model(&mut self, name: &str, error: &Error) {
        if let Some(current) = &mut self.current {
            current.models.remove(name);
        }
        let mut numbers: Vec<u64> = self.unpark(name).iter().map(|chunk| chunk.call.number).collect();
        numbers.extend(self.asks.iter().filter(|number| self.calls.asks_for(**number, name)));
        for number in numbers {
            self.fail(number, error.clone());
        }
    }

    /// Return the chunks that wait for a model.
    fn unpark(&mut self, name: &str) -> Vec<Chunk> {
        let is_of = |chunk: &Chunk| chunk.call.parameters.model.as_deref() == Some(name);
        let (found, others) = mem::take(&mut self.parked).into_iter().partition(is_of);
        self.parked = others;
        found
    }
}
