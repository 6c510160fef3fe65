//! Requests on their way in.
//!
//! Headers and small payloads arrive in one read buffer, many per read. A large payload is received straight into
//! the buffer that the device will own; only what the last buffered read brought of it is copied.

use super::operation::Completion;
use super::plan::WritePlan;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

/// The read buffer: a queue depth of 32 with 4 KiB writes fits twice.
const BUFFER_LENGTH: usize = 256 << 10;

/// Payloads up to this wait in the read buffer until they are whole; longer ones are received in place.
pub(super) const BUFFERED_PAYLOAD_MAX: u32 = 16 << 10;

/// After a payload that was received in place another one is likely: a read of this length brings its header
/// without much of the payload, which would have to be copied.
const READ_AFTER_LARGE: usize = 4 << 10;

/// Memory claimed when a payload is announced. More is claimed as the bytes arrive, so that an announcement alone pins little.
const FIRST_CLAIM: usize = 1 << 20;

/// A write whose payload is received in place.
#[derive(Debug)]
pub(super) struct IncomingWrite {
    pub(super) cookie: u64,
    pub(super) plan: WritePlan,
    data: BytesMut,
}

impl IncomingWrite {
    pub(super) fn new(cookie: u64, plan: WritePlan) -> Self {
        let data = BytesMut::with_capacity((plan.length as usize).min(FIRST_CLAIM));
        Self { cookie, plan, data }
    }

    fn missing(&self) -> usize {
        self.plan.length as usize - self.data.len()
    }

    fn claim_more(&mut self) {
        if self.data.len() == self.data.capacity() {
            self.data.reserve(self.missing().min(3 * self.data.len()));
        }
    }

    pub(super) fn into_data(self) -> Bytes {
        self.data.freeze()
    }
}

/// What the next bytes are.
#[derive(Debug)]
pub(super) enum Expecting {
    Header,
    Payload(IncomingWrite),
    /// The rest of a payload that nobody wants, and the answer to give after it.
    Discard {
        remaining: u64,
        answer: Completion,
    },
}

#[derive(Debug)]
pub(super) struct Input {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    read_length: usize,
    pub(super) expecting: Expecting,
    /// Nothing more will be read.
    pub(super) ended: bool,
}

impl Input {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER_LENGTH].into_boxed_slice(),
            start: 0,
            end: 0,
            read_length: BUFFER_LENGTH,
            expecting: Expecting::Header,
            ended: false,
        }
    }

    /// What arrived and was not consumed.
    pub(super) fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(super) fn consume(&mut self, length: usize) {
        self.start += length;
        debug_assert!(self.start <= self.end, "only what is buffered is consumed");
    }

    /// Moves what is buffered of the expected payload where it belongs; whether the payload is complete.
    pub(super) fn settle_payload(&mut self) -> bool {
        let mut buffered = &self.buffer[self.start..self.end];
        let before = buffered.len();
        let complete = match &mut self.expecting {
            Expecting::Header => true,
            Expecting::Payload(write) => {
                // The claim holds all of the read buffer: what is left to receive then goes straight in.
                let taken = write.missing().min(buffered.len());
                write.data.put_slice(&buffered[..taken]);
                buffered.advance(taken);
                write.missing() == 0
            }
            Expecting::Discard { remaining, .. } => {
                let taken = usize::try_from(*remaining).unwrap_or(usize::MAX).min(buffered.len());
                buffered.advance(taken);
                *remaining -= taken as u64;
                *remaining == 0
            }
        };
        self.start += before - buffered.len();
        complete
    }

    /// Reads once; how many bytes came, 0 at the end of the stream.
    pub(super) fn poll_fill<S>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>>
    where
        S: AsyncRead + Unpin,
    {
        if let Expecting::Payload(write) = &mut self.expecting {
            write.claim_more();
            self.read_length = READ_AFTER_LARGE;
            let missing = write.missing();
            return poll_read_buf(Pin::new(stream), context, &mut (&mut write.data).limit(missing));
        }
        self.make_room();
        let length = self.read_length.min(self.buffer.len() - self.end);
        let mut space = ReadBuf::new(&mut self.buffer[self.end..self.end + length]);
        ready!(Pin::new(stream).poll_read(context, &mut space))?;
        let filled = space.filled().len();
        self.end += filled;
        Poll::Ready(Ok(filled))
    }

    /// The next reads may fill the buffer again.
    pub(super) fn expect_small(&mut self) {
        self.read_length = BUFFER_LENGTH;
    }

    /// A partial request moves to the front, so that the longest buffered one always fits.
    fn make_room(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
    }
}
