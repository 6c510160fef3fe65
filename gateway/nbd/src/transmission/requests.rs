//! From buffered bytes to operations, one message at a time.

use super::input::{BUFFERED_PAYLOAD_MAX, Expecting, IncomingWrite};
use super::operation::{Completion, Operation, Outcome};
use super::plan::{Plan, Refusal, WritePlan, block_status, plan};
use super::session::{Session, Step};
use crate::error::NbdError;
use crate::negotiation::ContextSet;
use crate::protocol::request::{RequestHeader, read_u32, read_u64};
use bytes::Bytes;
use cairn_model::BlockDevice;
use std::future::Future;
use tokio::io::{AsyncRead, AsyncWrite};

/// Heads of replies that may wait for a client that does not receive.
const QUEUED_HEADS_MAX: usize = 1 << 20;

impl<D, S, F, R> Session<'_, D, S, F, R>
where
    D: BlockDevice,
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Completion>,
    R: Fn(u64, u64, Operation) -> F,
{
    /// Handles what is buffered, one message at a time.
    pub(super) fn step(&mut self) -> Step {
        if self.input.ended {
            return Step::Stopped;
        }
        if !self.input.settle_payload() {
            return Step::Starved;
        }
        match std::mem::replace(&mut self.input.expecting, Expecting::Header) {
            Expecting::Header => self.step_header(),
            Expecting::Payload(write) => {
                let (cookie, plan) = (write.cookie, write.plan);
                self.start_write(cookie, plan, write.into_data());
                Step::Moved
            }
            Expecting::Discard { answer, .. } => {
                self.reply(answer);
                Step::Moved
            }
        }
    }

    fn step_header(&mut self) -> Step {
        if self.in_flight.is_full() || self.output.queued_heads() >= QUEUED_HEADS_MAX {
            return Step::Stopped;
        }
        let form = self.terms.header_form();
        let buffered = self.input.buffered();
        if buffered.len() < form.length() {
            return Step::Starved;
        }
        let Some(header) = RequestHeader::decode(form, buffered) else {
            return self.hang_up("a request began with a wrong magic");
        };
        match plan(&header, self.terms, self.device.info()) {
            Plan::Start(operation) => {
                if !self.has_room_for(operation.cost()) {
                    return Step::Stopped;
                }
                self.accept_header();
                self.start(header.cookie, header.offset, operation);
            }
            Plan::ReceiveWrite(write) => return self.receive_write(&header, write),
            Plan::ReceiveSelection { length, one } => return self.receive_selection(&header, length, one),
            Plan::Refuse { payload, refusal } => {
                self.accept_header();
                let answer = refused(&header, refusal);
                self.input.expecting = Expecting::Discard { remaining: payload, answer };
            }
            Plan::Disconnect => self.input.ended = true,
            Plan::HangUp => return self.hang_up("a request announced an absurdly long payload"),
        }
        Step::Moved
    }

    fn receive_write(&mut self, header: &RequestHeader, write: WritePlan) -> Step {
        let length = write.length as usize;
        if !self.has_room_for(length) {
            return Step::Stopped;
        }
        if write.length > BUFFERED_PAYLOAD_MAX {
            self.accept_header();
            self.input.expecting = Expecting::Payload(IncomingWrite::new(header.cookie, write));
            return Step::Moved;
        }
        self.input.expect_small();
        let head = self.terms.header_form().length();
        let Some(payload) = self.input.buffered().get(head..head + length) else {
            return Step::Starved;
        };
        // A copy of its own: a slice would keep the whole read buffer alive for as long as the device holds it.
        let data = Bytes::copy_from_slice(payload);
        self.accept_header();
        self.input.consume(length);
        self.start_write(header.cookie, write, data);
        Step::Moved
    }

    /// BLOCK_STATUS with a payload: an effect length, then some of the selected contexts, each once.
    fn receive_selection(&mut self, header: &RequestHeader, length: u32, one: bool) -> Step {
        let head = self.terms.header_form().length();
        let Some(payload) = self.input.buffered().get(head..head + length as usize) else {
            return Step::Starved;
        };
        let selected = match selection(payload, self.terms.contexts) {
            Some(contexts) => {
                block_status(header.offset, read_u64(payload, 0), one, contexts, self.device.info())
            }
            None => Err(Refusal::invalid(
                "the payload must be a length and the identifiers of selected contexts, each once",
            )),
        };
        if let Ok(operation) = &selected
            && !self.has_room_for(operation.cost())
        {
            return Step::Stopped;
        }
        self.accept_header();
        self.input.consume(length as usize);
        match selected {
            Ok(operation) => self.start(header.cookie, header.offset, operation),
            Err(refusal) => self.reply(refused(header, refusal)),
        }
        Step::Moved
    }

    fn accept_header(&mut self) {
        self.input.consume(self.terms.header_form().length());
        self.tally.requests += 1;
    }

    /// Whether `cost` more bytes may be held. With nothing held everything fits: the limit is no smaller than a
    /// request. A payload on its way needs no counting: no other request is looked at until it is there.
    fn has_room_for(&self, cost: usize) -> bool {
        let held = self.in_flight.cost() + self.output.queued();
        held == 0 || held + cost <= self.bytes_in_flight_max
    }

    fn start_write(&mut self, cookie: u64, plan: WritePlan, data: Bytes) {
        self.tally.bytes_written += data.len() as u64;
        self.start(cookie, plan.offset, Operation::Write { offset: plan.offset, data, fua: plan.fua });
    }

    fn start(&mut self, cookie: u64, offset: u64, operation: Operation) {
        let cost = operation.cost();
        let future = (self.run)(cookie, offset, operation);
        if let Some(completion) = self.in_flight.start(future, cost) {
            self.reply(completion);
        }
    }

    fn hang_up(&mut self, reason: &'static str) -> Step {
        self.input.ended = true;
        self.failure = Some(NbdError::Protocol(reason));
        Step::Stopped
    }
}

/// The contexts of a payload; `None` when it is not made of a length and of some of `known`, each once.
fn selection(payload: &[u8], known: ContextSet) -> Option<ContextSet> {
    let ids = payload.get(8..).filter(|ids| !ids.is_empty() && ids.len().is_multiple_of(4))?;
    let mut ids = ids.chunks_exact(4).map(|id| read_u32(id, 0));
    ids.try_fold(ContextSet::default(), |set, id| set.with(id).filter(|_| known.contains(id)))
}

fn refused(header: &RequestHeader, refusal: Refusal) -> Completion {
    let Refusal { errno, message } = refusal;
    Completion { cookie: header.cookie, offset: header.offset, outcome: Outcome::Failed { errno, message } }
}
