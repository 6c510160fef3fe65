//! What one connection holds, and the rounds in which it moves.

use super::inflight::InFlight;
use super::input::{Expecting, Input};
use super::operation::{Completion, Operation, Outcome};
use super::output::Output;
use super::plan::Terms;
use super::replies;
use crate::counters::SessionTally;
use crate::error::NbdError;
use cairn_model::BlockDevice;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};

/// Requests and reads handled before replies are written.
const INPUT_STEPS_PER_ROUND: usize = 256;

/// Replies are written once this much is queued, before more requests are looked at.
const WRITE_AT: usize = 512 << 10;

/// Rounds before other tasks get their turn.
const ROUNDS_PER_POLL: usize = 32;

/// Replies that wait for one another to be written together. More would save calls, but the client, on another
/// core, would have nothing to do until the whole batch is done, and the server nothing while the client digests it.
const REPLIES_PER_WRITE: usize = 16;

/// What looking at the input came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Moved,
    /// More bytes are needed.
    Starved,
    /// A bound is reached, or nothing more is to be read.
    Stopped,
}

pub(super) struct Session<'s, D, S, F, R> {
    pub(super) stream: &'s mut S,
    pub(super) device: &'s D,
    pub(super) run: R,
    pub(super) terms: Terms,
    pub(super) bytes_in_flight_max: usize,
    pub(super) input: Input,
    pub(super) in_flight: InFlight<F>,
    pub(super) output: Output,
    /// The last write had to wait.
    pub(super) output_blocked: bool,
    /// Replies since the last write.
    pub(super) unsent_replies: usize,
    /// Something was written and maybe not handed to the socket.
    pub(super) unflushed: bool,
    pub(super) client_gone: bool,
    pub(super) tally: SessionTally,
    pub(super) failure: Option<NbdError>,
}

impl<D, S, F, R> Session<'_, D, S, F, R>
where
    D: BlockDevice,
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Completion>,
    R: Fn(u64, u64, Operation) -> F,
{
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), NbdError>> {
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
            let enough = self.output.queued() >= WRITE_AT || self.unsent_replies >= REPLIES_PER_WRITE;
            if enough && !self.output_blocked {
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
        self.unsent_replies = 0;
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

    pub(super) fn reply(&mut self, completion: Completion) {
        match &completion.outcome {
            Outcome::Failed { .. } => self.tally.requests_failed += 1,
            Outcome::Data { buffer, .. } => self.tally.bytes_read += buffer.len() as u64,
            Outcome::Done | Outcome::Statuses(_) => {}
        }
        self.unsent_replies += 1;
        if !self.client_gone {
            replies::queue(&mut self.output, self.terms.style, completion);
        }
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
