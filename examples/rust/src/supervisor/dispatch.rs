//! What is sent when.

use std::sync::Arc;
use std::time::Instant;

use super::generation::Awaited;
use super::Inner;
use crate::chunk::Chunk;
use crate::info::Info;
use crate::wire::{Request, RolePrompt};

impl Inner {
    /// Send what may be sent: isolated chunks first and alone, then short chunks, then bulk.
    pub(super) fn dispatch(&mut self, now: Instant) {
        self.answer_asks(now);
        while let Some(chunk) = self.next_piece() {
            if !chunk.call.is_over() {
                self.send_or_keep(chunk, now);
            }
        }
        self.case.close_if_done();
    }

    fn next_piece(&mut self) -> Option<Chunk> {
        let current = self.current.as_ref().filter(|current| current.serving().is_some())?;
        if self.case.is_probing() {
            return None;
        }
        if self.case.isolated.is_empty() {
            return self.queue.pop(current);
        }
        // An isolated chunk waits until the worker has nothing else to do.
        if current.requests == 0 {
            self.case.isolated.pop_front()
        } else {
            None
        }
    }

    fn send_or_keep(&mut self, chunk: Chunk, now: Instant) {
        let info = match &chunk.call.parameters.model {
            None => self.current.as_ref().and_then(|current| current.info.clone()),
            Some(name) => {
                let name = name.clone();
                self.model(&name, now)
            }
        };
        let Some(info) = info else { return self.parked.push(chunk) };
        if let Some(index) = self.quarantine.find(chunk.texts(), now).first() {
            return self.take_out(chunk, *index);
        }
        let number = chunk.call.number;
        match chunk.cut(&info.limits, self.case.most_inputs(now)) {
            Ok((chunk, rest)) => {
                if let Some(rest) = rest {
                    self.calls.count_unsent(number, 1, 0);
                    self.put_back(rest);
                }
                self.send_piece(chunk, info, now);
            }
            Err(error) => self.fail(number, error),
        }
    }

    /// Blame an input of a chunk without trying it again; the rest keeps its place.
    fn take_out(&mut self, chunk: Chunk, index: usize) {
        let call = Arc::clone(&chunk.call);
        let (before, rest) = chunk.cut_at(index);
        let (blamed, behind) = rest.cut_at(1);
        for part in [behind, before] {
            if !part.range.is_empty() {
                self.calls.count_unsent(call.number, 1, 0);
                self.put_back(part);
            }
        }
        self.calls.count_unsent(call.number, 0, 1);
        call.blame(blamed.range.start, &mut self.wakers);
        self.calls.release(call.number);
    }

    /// Let a chunk be the next of its kind.
    pub(super) fn put_back(&mut self, chunk: Chunk) {
        if chunk.is_isolated {
            self.case.isolated.push_front(chunk);
        } else {
            self.queue.push_front(chunk);
        }
    }

    fn send_piece(&mut self, mut chunk: Chunk, info: Arc<Info>, now: Instant) {
        let Some(current) = &mut self.current else { return };
        if current.requests == 0 {
            current.health.work_began(now);
        }
        if chunk.is_isolated {
            self.case.probe(self.next_id);
        }
        chunk.first_sent.get_or_insert(now);
        current.load(&chunk);
        let number = chunk.call.number;
        if let Some(call) = self.calls.get_mut(number) {
            call.sent.push(self.next_id);
        }
        self.calls.count_unsent(number, 0, 1);
        let next_check = current.health.next_check(true, &self.options);
        let deadline = chunk.deadline().unwrap_or(next_check);
        self.send(Awaited::Texts(chunk, info));
        self.wake_by(deadline.min(next_check));
    }

    /// Send something under an id that is never used again.
    pub(super) fn send(&mut self, awaited: Awaited) {
        let request = match &awaited {
            Awaited::Info(model) => Request::Info { model: model.clone() },
            Awaited::LoadModel(model) => Request::LoadModel { model: model.clone() },
            Awaited::Ping(_) => Request::Ping,
            Awaited::Cancel(target) => Request::Cancel { target: *target },
            Awaited::Texts(chunk, info) => Request::Texts {
                call: Arc::clone(&chunk.call),
                range: chunk.range.clone(),
                role_prompt: role_prompt(chunk, info),
            },
        };
        let Some(current) = &mut self.current else { return };
        current.worker.send(self.next_id, request);
        current.in_flight.insert(self.next_id, awaited);
        self.next_id += 1;
    }
}

/// Return what the model's prompts make of the call's role, unless the call names or gives a prompt itself.
fn role_prompt(chunk: &Chunk, info: &Info) -> Option<RolePrompt> {
    let parameters = &chunk.call.parameters;
    let role = parameters.role.filter(|_| parameters.prompt.is_none() && parameters.prompt_name.is_none())?;
    Some(info.first_prompt(role.prompt_names()).map_or(RolePrompt::Nothing, RolePrompt::Named))
}
