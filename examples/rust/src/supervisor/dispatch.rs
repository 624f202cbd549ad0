//! What is sent when.

use std::sync::Arc;
use std::time::Instant;

use super::generation::Awaited;
use super::Inner;
use crate::info::Info;
use crate::piece::Piece;
use crate::wire::{Request, RolePrompt};

impl Inner {
    /// Send what may be sent: suspects first and alone, then short pieces, then bulk.
    pub(super) fn dispatch(&mut self, now: Instant) {
        self.answer_asks(now);
        while let Some(piece) = self.next_piece() {
            if !piece.job.is_over() {
                self.send_or_keep(piece, now);
            }
        }
        self.case.close_if_done();
    }

    fn next_piece(&mut self) -> Option<Piece> {
        let current = self.current.as_ref().filter(|current| current.serving().is_some())?;
        if self.case.is_trial() {
            return None;
        }
        if self.case.suspects.is_empty() {
            return self.queue.pop(current);
        }
        // A suspect waits until the worker has nothing else to do.
        if current.requests == 0 {
            self.case.suspects.pop_front()
        } else {
            None
        }
    }

    fn send_or_keep(&mut self, piece: Piece, now: Instant) {
        let info = match &piece.job.parameters.model {
            None => self.current.as_ref().and_then(|current| current.info.clone()),
            Some(name) => {
                let name = name.clone();
                self.model(&name, now)
            }
        };
        let Some(info) = info else { return self.parked.push(piece) };
        if let Some(index) = self.quarantine.find(piece.texts(), now).first() {
            return self.take_out(piece, *index);
        }
        let number = piece.job.number;
        match piece.cut(&info.limits, self.case.most_inputs(now)) {
            Ok((piece, rest)) => {
                if let Some(rest) = rest {
                    self.calls.count_unsent(number, 1, 0);
                    self.put_back(rest);
                }
                self.send_piece(piece, info, now);
            }
            Err(error) => self.fail(number, error),
        }
    }

    /// Convict an input of a piece without trying it again; the rest keeps its place.
    fn take_out(&mut self, piece: Piece, index: usize) {
        let job = Arc::clone(&piece.job);
        let (before, rest) = piece.cut_at(index);
        let (guilty, behind) = rest.cut_at(1);
        for part in [behind, before] {
            if !part.range.is_empty() {
                self.calls.count_unsent(job.number, 1, 0);
                self.put_back(part);
            }
        }
        self.calls.count_unsent(job.number, 0, 1);
        job.convict(guilty.range.start, &mut self.wakers);
        self.calls.release(job.number);
    }

    /// Let a piece be the next of its kind.
    pub(super) fn put_back(&mut self, piece: Piece) {
        if piece.is_suspect {
            self.case.suspects.push_front(piece);
        } else {
            self.queue.push_front(piece);
        }
    }

    fn send_piece(&mut self, mut piece: Piece, info: Arc<Info>, now: Instant) {
        let Some(current) = &mut self.current else { return };
        if current.requests == 0 {
            current.health.work_began(now);
        }
        if piece.is_suspect {
            self.case.begin_trial(self.next_id);
        }
        piece.first_sent.get_or_insert(now);
        current.load(&piece);
        let number = piece.job.number;
        if let Some(call) = self.calls.get_mut(number) {
            call.sent.push(self.next_id);
        }
        self.calls.count_unsent(number, 0, 1);
        let next_check = current.health.next_check(true, &self.options);
        let deadline = piece.deadline().unwrap_or(next_check);
        self.send(Awaited::Embed(piece, info));
        self.wake_by(deadline.min(next_check));
    }

    /// Send something under an id that is never used again.
    pub(super) fn send(&mut self, awaited: Awaited) {
        let request = match &awaited {
            Awaited::Info(model) => Request::Info { model: model.clone() },
            Awaited::LoadModel(model) => Request::LoadModel { model: model.clone() },
            Awaited::Ping(_) => Request::Ping,
            Awaited::Cancel(target) => Request::Cancel { target: *target },
            Awaited::Embed(piece, info) => Request::Embed {
                job: Arc::clone(&piece.job),
                range: piece.range.clone(),
                role_prompt: role_prompt(piece, info),
            },
        };
        let Some(current) = &mut self.current else { return };
        current.worker.send(self.next_id, request);
        current.in_flight.insert(self.next_id, awaited);
        self.next_id += 1;
    }
}

/// Return what the model's prompts make of the call's role, unless the call names or gives a prompt itself.
fn role_prompt(piece: &Piece, info: &Info) -> Option<RolePrompt> {
    let parameters = &piece.job.parameters;
    let role = parameters.role.filter(|_| parameters.prompt.is_none() && parameters.prompt_name.is_none())?;
    Some(info.first_prompt(role.prompt_names()).map_or(RolePrompt::Nothing, RolePrompt::Named))
}
