//! Waiting until the log has come as far as a position.

use cairn_model::Lsn;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

/// A position that only grows, and those who wait for it. Looking at it costs one atomic load; when it
/// grows, exactly those who have what they wait for are woken.
#[derive(Debug)]
pub(crate) struct Progress {
    reached: AtomicU64,
    /// An [`End`], or zero while it may grow.
    ended: AtomicU8,
    waiters: Mutex<Waiters>,
}

#[derive(Debug, Default)]
struct Waiters {
    by_position: BTreeMap<(Lsn, u64), Waker>,
    next_ticket: u64,
}

/// How growth ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum End {
    /// In order: what was reached counts.
    Closed = 1,
    /// By a failure: nothing is acknowledged any more, reached or not.
    Poisoned = 2,
}

/// Waiting is over without success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stopped;

impl Progress {
    pub(crate) fn new(reached: Lsn) -> Self {
        Self { reached: AtomicU64::new(reached.get()), ended: AtomicU8::new(0), waiters: Mutex::default() }
    }

    pub(crate) fn reached(&self) -> Lsn {
        Lsn::new(self.reached.load(Ordering::Acquire))
    }

    /// The furthest position somebody waits for.
    pub(crate) fn wanted(&self) -> Option<Lsn> {
        self.waiters.lock().by_position.last_key_value().map(|(&(lsn, _), _)| lsn)
    }

    /// Whoever has the writer calls this, or the syncer while a sync of its own is under way; with growing positions.
    pub(crate) fn advance(&self, to: Lsn) {
        self.reached.store(to.get(), Ordering::Release);
        let satisfied = {
            let mut waiters = self.waiters.lock();
            if waiters.by_position.first_key_value().is_none_or(|(&(lsn, _), _)| lsn > to) {
                return;
            }
            let rest = waiters.by_position.split_off(&(to.next(), 0));
            std::mem::replace(&mut waiters.by_position, rest)
        };
        satisfied.into_values().for_each(Waker::wake);
    }

    pub(crate) fn stop(&self, end: End) {
        self.ended.fetch_max(end as u8, Ordering::AcqRel);
        let all = std::mem::take(&mut self.waiters.lock().by_position);
        all.into_values().for_each(Waker::wake);
    }

    /// Resolves when `position` is reached. `registered` is called whenever the wait may be new to the writer.
    pub(crate) fn wait<F: Fn()>(&self, position: Lsn, registered: F) -> Wait<'_, F> {
        Wait { progress: self, position, ticket: None, registered }
    }

    fn check(&self, position: Lsn) -> Poll<Result<(), Stopped>> {
        let ended = self.ended.load(Ordering::Acquire);
        if ended == End::Poisoned as u8 {
            Poll::Ready(Err(Stopped))
        } else if self.reached() >= position {
            Poll::Ready(Ok(()))
        } else if ended == 0 {
            Poll::Pending
        } else {
            Poll::Ready(Err(Stopped))
        }
    }
}

/// See [`Progress::wait`]. Dropping it withdraws the wait.
#[derive(Debug)]
pub(crate) struct Wait<'a, F> {
    progress: &'a Progress,
    position: Lsn,
    ticket: Option<u64>,
    registered: F,
}

impl<F: Fn() + Unpin> Future for Wait<'_, F> {
    type Output = Result<(), Stopped>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let done = self.progress.check(self.position);
        if done.is_ready() {
            return done;
        }
        let first = self.ticket.is_none();
        {
            let mut waiters = self.progress.waiters.lock();
            // Growth is stored before the list is taken, so under this lock either the growth shows or our
            // entry will be seen.
            let done = self.progress.check(self.position);
            if done.is_ready() {
                return done;
            }
            let ticket = *self.ticket.get_or_insert(waiters.next_ticket);
            waiters.next_ticket += u64::from(first);
            let waker =
                waiters.by_position.entry((self.position, ticket)).or_insert_with(|| context.waker().clone());
            waker.clone_from(context.waker());
        }
        if first {
            (self.registered)();
        }
        Poll::Pending
    }
}

impl<F> Drop for Wait<'_, F> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.progress.waiters.lock().by_position.remove(&(self.position, ticket));
        }
    }
}
