//! The transmission phase of one connection.
//!
//! One task does everything, in rounds: replies of operations that were woken, then requests from the socket, each
//! polled once where it stands, then one vectored write of whatever is ready. A round in which nothing moved ends
//! the poll; every source that could move was asked last by something that will wake the task.
//!
//! Bounds. Requests are taken while a slot is free and while payloads (arriving, in flight, waiting to be sent)
//! stay below the connection's limit; one request is always taken, and the limit holds the largest. At a bound the
//! socket is not read: a client that sends and never receives blocks itself and nobody else.
//!
//! End. After DISC, the end of the stream, a broken protocol or a shutdown nothing more is read; what is in flight
//! completes and is answered. When the client is gone it completes all the same, so that no write is cut short.

mod inflight;
mod input;
mod operation;
mod output;
mod plan;
mod replies;

use crate::config::Limits;
use crate::counters::{Counters, SessionTally};
use crate::error::NbdError;
use crate::negotiation::Agreed;
use crate::protocol::BASE_ALLOCATION_ID;
use crate::protocol::request::{RequestHeader, read_u32, read_u64};
use bytes::Bytes;
use cairn_model::BlockDevice;
use inflight::InFlight;
use input::{BUFFERED_PAYLOAD_MAX, Expecting, IncomingWrite, Input};
use operation::{Completion, Operation, Outcome};
use output::Output;
use plan::{Plan, Refusal, Terms, WritePlan, block_status, plan};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// Requests and reads handled before replies are written.
const INPUT_STEPS_PER_ROUND: usize = 256;

/// Replies are written once this much is queued, before more requests are looked at.
const WRITE_AT: usize = 512 << 10;

/// Rounds before other tasks get their turn.
const ROUNDS_PER_POLL: usize = 32;

/// Heads of replies that may wait for a client that does not receive.
const QUEUED_HEADS_MAX: usize = 1 << 20;

/// Serves one client until it leaves, breaks the protocol or `stop` is cancelled.
pub(crate) async fn serve<D, S>(
    stream: &mut S,
    agreed: &Agreed<D>,
    limits: &Limits,
    counters: &Counters,
    stop: &CancellationToken,
) -> Result<(), NbdError>
where
    D: BlockDevice,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let device = &*agreed.device;
    let mut session = Session {
        stream,
        device,
        run: |cookie, offset, operation| operation::run(device, cookie, offset, operation),
        terms: Terms { style: agreed.style, contexts: agreed.contexts },
        bytes_in_flight_max: limits.bytes_in_flight_max,
        input: Input::new(),
        in_flight: InFlight::new(limits.requests_in_flight_max),
        output: Output::default(),
        output_blocked: false,
        unflushed: false,
        client_gone: false,
        tally: SessionTally::default(),
        failure: None,
    };
    let mut stopped = pin!(stop.cancelled());
    poll_fn(|context| {
        if !session.input.ended && stopped.as_mut().poll(context).is_ready() {
            session.input.ended = true;
        }
        let polled = session.poll(context);
        counters.add(&std::mem::take(&mut session.tally));
        polled
    })
    .await
}

/// What looking at the input came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Moved,
    /// More bytes are needed.
    Starved,
    /// A bound is reached, or nothing more is to be read.
    Stopped,
}

struct Session<'s, D, S, F, R> {
    stream: &'s mut S,
    device: &'s D,
    run: R,
    terms: Terms,
    bytes_in_flight_max: usize,
    input: Input,
    in_flight: InFlight<F>,
    output: Output,
    /// The last write had to wait.
    output_blocked: bool,
    /// Something was written and maybe not handed to the socket.
    unflushed: bool,
    client_gone: bool,
    tally: SessionTally,
    failure: Option<NbdError>,
}

impl<D, S, F, R> Session<'_, D, S, F, R>
where
    D: BlockDevice,
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Completion>,
    R: Fn(u64, u64, Operation) -> F,
{
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), NbdError>> {
        self.in_flight.register(context.waker());
        for _ in 0..ROUNDS_PER_POLL {
            let completed = self.collect_completions();
            let received = self.poll_input(context);
            let sent = self.poll_output(context);
            if self.input.ended && self.in_flight.is_empty() && self.output.is_empty() && !self.unflushed {
                return Poll::Ready(self.failure.take().map_or(Ok(()), Err));
            }
            if !(completed || received || sent) {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn collect_completions(&mut self) -> bool {
        let mut moved = false;
        while let Some(completion) = self.in_flight.next_completed() {
            self.reply(completion);
            moved = true;
        }
        moved
    }

    fn poll_input(&mut self, context: &mut Context<'_>) -> bool {
        let mut moved = false;
        for _ in 0..INPUT_STEPS_PER_ROUND {
            if self.output.queued() >= WRITE_AT && !self.output_blocked {
                return true;
            }
            match self.step() {
                Step::Moved => moved = true,
                Step::Stopped => return moved,
                Step::Starved => match self.input.poll_fill(self.stream, context) {
                    Poll::Pending => return moved,
                    Poll::Ready(Ok(0)) => self.end_of_stream(),
                    Poll::Ready(Ok(_)) => moved = true,
                    Poll::Ready(Err(error)) => self.lose_client(error),
                },
            }
        }
        true
    }

    fn poll_output(&mut self, context: &mut Context<'_>) -> bool {
        let mut moved = false;
        self.output_blocked = false;
        while !self.output.is_empty() {
            match self.output.poll_write(self.stream, context) {
                Poll::Ready(Ok(_)) => {
                    moved = true;
                    self.unflushed = true;
                }
                Poll::Ready(Err(error)) => self.lose_client(error),
                Poll::Pending => {
                    self.output_blocked = true;
                    return moved;
                }
            }
        }
        self.poll_flush(context);
        moved
    }

    /// TLS may have taken bytes that it has not handed to the socket yet.
    fn poll_flush(&mut self, context: &mut Context<'_>) {
        if !self.unflushed {
            return;
        }
        match Pin::new(&mut *self.stream).poll_flush(context) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => self.unflushed = false,
            Poll::Ready(Err(error)) => self.lose_client(error),
        }
    }

    /// Handles what is buffered, one message at a time.
    fn step(&mut self) -> Step {
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

    /// BLOCK_STATUS with a payload: an effect length, then each context once. There is one context.
    fn receive_selection(&mut self, header: &RequestHeader, length: u32, one: bool) -> Step {
        let head = self.terms.header_form().length();
        let Some(payload) = self.input.buffered().get(head..head + length as usize) else {
            return Step::Starved;
        };
        let selected = if payload.len() == 12 && read_u32(payload, 8) == BASE_ALLOCATION_ID {
            block_status(header.offset, read_u64(payload, 0), one, self.device.info())
        } else {
            Err(Refusal::invalid(
                "the payload must be a length and the identifiers of selected contexts, each once",
            ))
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

    /// Whether `cost` more bytes may be held. With nothing held everything fits: the limit is no smaller than a request.
    fn has_room_for(&self, cost: usize) -> bool {
        let held = self.in_flight.cost() + self.output.queued() + self.input.cost();
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

    fn reply(&mut self, completion: Completion) {
        match &completion.outcome {
            Outcome::Failed { .. } => self.tally.requests_failed += 1,
            Outcome::Data { buffer, .. } => self.tally.bytes_read += buffer.len() as u64,
            Outcome::Done | Outcome::Extents(_) => {}
        }
        if !self.client_gone {
            replies::queue(&mut self.output, self.terms.style, completion);
        }
    }

    fn hang_up(&mut self, reason: &'static str) -> Step {
        self.input.ended = true;
        self.failure = Some(NbdError::Protocol(reason));
        Step::Stopped
    }

    fn end_of_stream(&mut self) {
        self.input.ended = true;
        let between = matches!(self.input.expecting, Expecting::Header) && self.input.buffered().is_empty();
        if !between {
            self.failure = Some(NbdError::Protocol("it left in the middle of a request"));
        }
    }

    fn lose_client(&mut self, error: std::io::Error) {
        self.input.ended = true;
        self.client_gone = true;
        self.output.discard();
        self.unflushed = false;
        self.failure.get_or_insert(NbdError::Connection(error));
    }
}

fn refused(header: &RequestHeader, refusal: Refusal) -> Completion {
    let Refusal { errno, message } = refusal;
    Completion { cookie: header.cookie, offset: header.offset, outcome: Outcome::Failed { errno, message } }
}
