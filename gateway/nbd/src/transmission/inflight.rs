//! Operations that did not complete where they were started.
//!
//! Each lives in a slot whose allocation and waker are kept for the next one. A wake sets the slot's bit and wakes
//! the session's task, so that a wake costs a look at the slots that have something to say, not at all of them.

use futures::task::AtomicWaker;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

const BITS: usize = 64;

/// Which slots were woken.
#[derive(Debug)]
struct WokenSlots {
    words: Box<[AtomicU64]>,
    session: AtomicWaker,
}

/// Wakes one slot.
#[derive(Debug)]
struct SlotWaker {
    woken: Arc<WokenSlots>,
    index: usize,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let bit = 1 << (self.index % BITS);
        // Release: what the waker's side wrote is seen by the poll that takes the bit.
        if self.woken.words[self.index / BITS].fetch_or(bit, Ordering::AcqRel) & bit == 0 {
            self.woken.session.wake();
        }
    }
}

#[derive(Debug)]
struct Slot<F> {
    /// `None` while the slot is free.
    future: Pin<Box<Option<F>>>,
    waker: Waker,
    cost: usize,
}

/// A bounded set of operations.
#[derive(Debug)]
pub(super) struct InFlight<F> {
    slots: Vec<Slot<F>>,
    free: Vec<usize>,
    woken: Arc<WokenSlots>,
    capacity: usize,
    cost: usize,
}

impl<F: Future> InFlight<F> {
    pub(super) fn new(capacity: usize) -> Self {
        let words = (0..capacity.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect();
        let woken = Arc::new(WokenSlots { words, session: AtomicWaker::new() });
        Self { slots: Vec::new(), free: Vec::new(), woken, capacity, cost: 0 }
    }

    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() == self.capacity
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Sum of the costs of what is in flight.
    pub(super) fn cost(&self) -> usize {
        self.cost
    }

    /// The task to wake when an operation can go on. Call it before looking for completions.
    pub(super) fn register(&self, waker: &Waker) {
        self.woken.session.register(waker);
    }

    /// Polls `future` once; its output if that was enough, otherwise it stays here. The set must not be full.
    pub(super) fn start(&mut self, future: F, cost: usize) -> Option<F::Output> {
        let index = self.free.pop().unwrap_or_else(|| self.add_slot());
        let slot = &mut self.slots[index];
        slot.future.set(Some(future));
        slot.cost = cost;
        self.cost += cost;
        self.poll_slot(index)
    }

    /// The next output of an operation that was woken and could complete.
    pub(super) fn next_completed(&mut self) -> Option<F::Output> {
        for word in 0..self.woken.words.len() {
            while let Some(index) = self.take_woken(word) {
                if let Some(output) = self.poll_slot(index) {
                    return Some(output);
                }
            }
        }
        None
    }

    fn take_woken(&self, word: usize) -> Option<usize> {
        let bits = &self.woken.words[word];
        let seen = bits.load(Ordering::Relaxed);
        if seen == 0 {
            return None;
        }
        let lowest = seen & seen.wrapping_neg();
        bits.fetch_and(!lowest, Ordering::AcqRel);
        Some(word * BITS + lowest.trailing_zeros() as usize)
    }

    fn poll_slot(&mut self, index: usize) -> Option<F::Output> {
        let slot = &mut self.slots[index];
        // A waker may outlive its operation: then the slot is free, or another operation is polled in vain.
        let future = slot.future.as_mut().as_pin_mut()?;
        match future.poll(&mut Context::from_waker(&slot.waker)) {
            Poll::Pending => None,
            Poll::Ready(output) => {
                slot.future.set(None);
                self.cost -= slot.cost;
                self.free.push(index);
                Some(output)
            }
        }
    }

    fn add_slot(&mut self) -> usize {
        let index = self.slots.len();
        assert!(index < self.capacity, "the caller checks that the set is not full");
        let waker = Waker::from(Arc::new(SlotWaker { woken: self.woken.clone(), index }));
        self.slots.push(Slot { future: Box::pin(None), waker, cost: 0 });
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Context;
    use tokio::sync::oneshot;

    #[test]
    fn what_completes_at_once_takes_no_slot() {
        let mut set = InFlight::new(1);
        for value in 0..3 {
            assert_eq!(set.start(std::future::ready(value), 10), Some(value));
        }
        assert!(set.is_empty() && !set.is_full());
        assert_eq!(set.cost(), 0);
    }

    #[tokio::test]
    async fn outputs_come_in_the_order_of_completion_and_free_their_slots() {
        let mut set = InFlight::new(130);
        let mut senders = Vec::new();
        for value in 0..130 {
            let (sender, receiver) = oneshot::channel();
            senders.push(sender);
            assert!(set.start(async move { (value, receiver.await) }, 2).is_none());
        }
        assert!(set.is_full());
        assert_eq!(set.cost(), 260);

        let later = senders.remove(100);
        let earlier = senders.remove(3);
        later.send(()).unwrap();
        let first = std::future::poll_fn(|context: &mut Context<'_>| {
            set.register(context.waker());
            set.next_completed().map_or(Poll::Pending, Poll::Ready)
        });
        assert_eq!(first.await.0, 100);
        assert!(set.next_completed().is_none());
        earlier.send(()).unwrap();
        assert_eq!(set.next_completed().map(|output| output.0), Some(3));
        assert!(!set.is_full());
        assert_eq!(set.cost(), 256);
    }

    #[test]
    fn a_wake_of_an_operation_that_is_gone_is_harmless() {
        let mut set = InFlight::new(4);
        let mut kept = None;
        let future = std::future::poll_fn(|context: &mut Context<'_>| {
            let first = kept.is_none();
            kept = Some(context.waker().clone());
            if first { Poll::Pending } else { Poll::Ready(7) }
        });
        let mut future = Box::pin(future);
        assert!(set.start(future.as_mut(), 0).is_none());
        set.slots[0].waker.wake_by_ref();
        assert_eq!(set.next_completed(), Some(7));
        set.slots[0].waker.wake_by_ref();
        assert_eq!(set.next_completed(), None);
    }
}
