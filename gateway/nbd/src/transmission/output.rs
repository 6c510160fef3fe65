//! Replies on their way to the client: heads and payloads in order, written with as few calls as possible and
//! without joining them.

use bytes::Bytes;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// Slices handed to one write.
const SLICES_MAX: usize = 128;

/// Payloads up to this are copied behind their head: cheaper than a slice of their own.
const INLINE_MAX: usize = 256;

/// Written heads are dropped from memory once they are this many bytes.
const COMPACT_AT: usize = 64 << 10;

#[derive(Debug)]
enum Segment {
    /// The next so many bytes of `heads`.
    Heads(usize),
    Payload(Bytes),
}

/// A queue of bytes to send. Its owner bounds it by [`Output::queued`] and [`Output::queued_heads`].
#[derive(Debug, Default)]
pub(super) struct Output {
    segments: VecDeque<Segment>,
    heads: Vec<u8>,
    heads_written: usize,
    queued: usize,
}

impl Output {
    /// Bytes that wait to be sent.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// How many of them are heads: what replies without data amount to.
    pub(super) fn queued_heads(&self) -> usize {
        self.heads.len() - self.heads_written
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queued == 0
    }

    pub(super) fn put_head(&mut self, bytes: &[u8]) {
        self.heads.extend_from_slice(bytes);
        self.queued += bytes.len();
        match self.segments.back_mut() {
            Some(Segment::Heads(length)) => *length += bytes.len(),
            _ => self.segments.push_back(Segment::Heads(bytes.len())),
        }
    }

    pub(super) fn put_payload(&mut self, bytes: Bytes) {
        if bytes.len() <= INLINE_MAX {
            self.put_head(&bytes);
        } else {
            self.queued += bytes.len();
            self.segments.push_back(Segment::Payload(bytes));
        }
    }

    /// Forgets everything: there is nobody to send it to.
    pub(super) fn discard(&mut self) {
        *self = Self::default();
    }

    /// Makes one write of what is queued; how much of it was taken.
    pub(super) fn poll_write<S>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>>
    where
        S: AsyncWrite + Unpin,
    {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = self.fill(&mut slices);
        let written = ready!(Pin::new(stream).poll_write_vectored(context, &slices[..count]))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(written);
        Poll::Ready(Ok(written))
    }

    fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut heads = &self.heads[self.heads_written..];
        let mut count = 0;
        for (slice, segment) in slices.iter_mut().zip(&self.segments) {
            *slice = match segment {
                Segment::Heads(length) => {
                    let (now, later) = heads.split_at(*length);
                    heads = later;
                    IoSlice::new(now)
                }
                Segment::Payload(bytes) => IoSlice::new(bytes),
            };
            count += 1;
        }
        count
    }

    fn advance(&mut self, mut written: usize) {
        self.queued -= written;
        while written > 0 {
            let front = self.segments.front_mut().expect("no more is written than was queued");
            let (taken, gone) = match front {
                Segment::Heads(length) => {
                    let taken = written.min(*length);
                    *length -= taken;
                    self.heads_written += taken;
                    (taken, *length == 0)
                }
                Segment::Payload(bytes) => {
                    let taken = written.min(bytes.len());
                    bytes::Buf::advance(bytes, taken);
                    (taken, bytes.is_empty())
                }
            };
            written -= taken;
            if gone {
                self.segments.pop_front();
            }
        }
        if self.heads_written == self.heads.len() {
            self.heads.clear();
            self.heads_written = 0;
        } else if self.heads_written >= COMPACT_AT {
            self.heads.drain(..self.heads_written);
            self.heads_written = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::task::Waker;

    /// Takes a few bytes per write, as many as its list says.
    struct Trickle {
        taken: Vec<u8>,
        amounts: Vec<usize>,
    }

    impl AsyncWrite for Trickle {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let amount = self.amounts.pop().unwrap_or(usize::MAX).min(bytes.len());
            self.taken.extend_from_slice(&bytes[..amount]);
            Poll::Ready(Ok(amount))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let joined = slices.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<_>>();
            self.poll_write(context, &joined)
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    proptest! {
        #[test]
        fn bytes_leave_in_the_order_they_came_whatever_a_write_takes(
            pieces in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 1..600)), 1..200),
            amounts in proptest::collection::vec(1..1000_usize, 0..100),
        ) {
            let mut output = Output::default();
            let mut expected = Vec::new();
            for (head, bytes) in &pieces {
                expected.extend_from_slice(bytes);
                if *head { output.put_head(bytes) } else { output.put_payload(Bytes::copy_from_slice(bytes)) }
            }
            prop_assert_eq!(output.queued(), expected.len());
            let mut sink = Trickle { taken: Vec::new(), amounts };
            let mut context = Context::from_waker(Waker::noop());
            while !output.is_empty() {
                prop_assert!(output.poll_write(&mut sink, &mut context).is_ready());
                prop_assert_eq!(output.queued() + sink.taken.len(), expected.len());
            }
            prop_assert_eq!(sink.taken, expected);
            prop_assert_eq!(output.queued_heads(), 0);
        }
    }
}
