//! Whether a node is worth asking: a circuit breaker (Nygard, "Release It!") on what this gateway alone saw.
//!
//! It opens after failures in a row or too many of the latest, for a time that doubles; then one request at a time is let through to see. An open one says that
//! other nodes are to be asked first, no more: whether a node is dead is for the catalog to say, and where no other can serve a node is asked all the same.

use cairn_model::Monotonic;
use parking_lot::Mutex;
use std::time::Duration;

/// Failures in a row that open it.
const IN_ROW: u32 = 3;

/// Requests in a row that were given up on because others were faster.
const OUTRUN_IN_ROW: u32 = 8;

/// Share of failures among the latest requests, some sixteen, that opens it.
const FAILING_SHARE: f32 = 0.4;

/// Requests before the share means anything.
const REQUESTS_MIN: u32 = 12;

const OPEN_FIRST: Duration = Duration::from_secs(1);
const OPEN_MAX: Duration = Duration::from_mins(1);

/// A node that hangs costs whoever tries it that much that it is left alone as after so many tries in vain: for 32 seconds at first.
const OPENED_HUNG: u32 = 6;

/// How a node did lately.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BreakerState {
    /// It answers.
    #[default]
    Closed,
    /// It failed too often, and is not asked for a while where others serve.
    Open,
    /// It failed too often, and is being tried again.
    HalfOpen,
}

#[derive(Debug, Default)]
pub(crate) struct Breaker {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: BreakerState,
    in_row: u32,
    outrun: u32,
    /// Moving average.
    failing: f32,
    requests: u32,
    /// When the next request is let through.
    until: Monotonic,
    /// Times it opened without having closed.
    opened: u32,
}

impl Breaker {
    pub(crate) fn state(&self) -> BreakerState {
        self.inner.lock().state
    }

    /// Whether a request may go to the node although others could serve it.
    pub(crate) fn admits(&self, now: Monotonic) -> bool {
        let inner = self.inner.lock();
        inner.state == BreakerState::Closed || now >= inner.until
    }

    /// A request goes to the node. When that is to see whether it is well again, no other one does so for a while; one whose answer never
    /// comes does not keep the node out for good.
    pub(crate) fn asked(&self, now: Monotonic) {
        let mut inner = self.inner.lock();
        if inner.state != BreakerState::Closed && now >= inner.until {
            inner.state = BreakerState::HalfOpen;
            inner.until = now.plus(inner.pause());
        }
    }

    pub(crate) fn success(&self) {
        let mut inner = self.inner.lock();
        inner.observe(false);
        inner.in_row = 0;
        inner.outrun = 0;
        if inner.state != BreakerState::Closed {
            *inner = Inner::default();
        }
    }

    /// The node failed. Whether that opened the breaker.
    pub(crate) fn failure(&self, now: Monotonic) -> bool {
        let mut inner = self.inner.lock();
        inner.observe(true);
        inner.in_row += 1;
        let is_bad =
            inner.in_row >= IN_ROW || (inner.requests >= REQUESTS_MIN && inner.failing > FAILING_SHARE);
        inner.open_if(is_bad, now)
    }

    /// The node had not answered when another one had. Whether that opened the breaker.
    pub(crate) fn outrun(&self, now: Monotonic) -> bool {
        let mut inner = self.inner.lock();
        inner.outrun += 1;
        let is_bad = inner.outrun >= OUTRUN_IN_ROW;
        inner.open_if(is_bad, now)
    }

    /// The node was waited for until nobody did any more: that needs no second time. Whether that opened the breaker.
    pub(crate) fn hung(&self, now: Monotonic) -> bool {
        let mut inner = self.inner.lock();
        inner.observe(true);
        let opens = inner.open_if(true, now);
        if opens {
            inner.opened = inner.opened.max(OPENED_HUNG);
            inner.until = now.plus(inner.pause());
        }
        opens
    }
}

impl Inner {
    fn observe(&mut self, failed: bool) {
        self.requests = self.requests.saturating_add(1);
        self.failing += (f32::from(u8::from(failed)) - self.failing) / 16.0;
    }

    fn pause(&self) -> Duration {
        OPEN_FIRST.saturating_mul(1 << self.opened.saturating_sub(1).min(10)).min(OPEN_MAX)
    }

    fn open_if(&mut self, is_bad: bool, now: Monotonic) -> bool {
        let opens = match self.state {
            BreakerState::Closed => is_bad,
            BreakerState::HalfOpen => true,
            // It was asked for want of others: that says nothing new.
            BreakerState::Open => false,
        };
        if opens {
            self.state = BreakerState::Open;
            self.opened = self.opened.saturating_add(1);
            self.until = now.plus(self.pause());
        }
        opens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_origin(Duration::from_secs(seconds))
    }

    /// Asks if that is let through.
    fn admits(breaker: &Breaker, now: Monotonic) -> bool {
        let admits = breaker.admits(now);
        if admits {
            breaker.asked(now);
        }
        admits
    }

    fn opened(breaker: &Breaker, now: Monotonic) {
        assert!(!breaker.failure(now) && !breaker.failure(now) && breaker.failure(now));
        assert_eq!(breaker.state(), BreakerState::Open);
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_does_not() {
        let breaker = Breaker::default();
        for _ in 0..4 {
            assert!(!breaker.failure(at(0)) && !breaker.failure(at(0)));
            for _ in 0..8 {
                breaker.success();
            }
        }
        assert!(admits(&breaker, at(0)));
        opened(&breaker, at(0));
        assert!(!admits(&breaker, at(0)));
    }

    #[test]
    fn every_second_failure_opens_it() {
        let breaker = Breaker::default();
        let opened = (0..100).any(|_| {
            breaker.success();
            breaker.failure(at(0))
        });
        assert!(opened);
    }

    #[test]
    fn one_request_in_twenty_does_not() {
        let breaker = Breaker::default();
        for number in 0..1000 {
            if number % 20 == 0 {
                assert!(!breaker.failure(at(0)));
            } else {
                breaker.success();
            }
        }
    }

    #[test]
    fn one_request_is_let_through_after_a_pause_that_doubles() {
        let breaker = Breaker::default();
        opened(&breaker, at(0));
        let mut now = 0;
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(!admits(
                &breaker,
                Monotonic::from_origin(Duration::from_millis(1000 * (now + pause) - 1))
            ));
            now += pause;
            assert!(admits(&breaker, at(now)));
            assert_eq!(breaker.state(), BreakerState::HalfOpen);
            assert!(!admits(&breaker, at(now)), "one at a time");
            breaker.failure(at(now));
            assert!(!breaker.failure(at(now)), "asked for want of others");
        }
        assert!(admits(&breaker, at(now + 60)));
        breaker.success();
        assert_eq!(breaker.state(), BreakerState::Closed);
        opened(&breaker, at(now + 60));
        assert!(admits(&breaker, at(now + 61)), "the pause begins anew");
    }

    #[test]
    fn a_request_whose_answer_never_comes_does_not_keep_the_node_out() {
        let breaker = Breaker::default();
        opened(&breaker, at(0));
        assert!(admits(&breaker, at(1)));
        assert!(admits(&breaker, at(2)));
    }

    #[test]
    fn a_node_that_is_always_outrun_is_avoided() {
        let breaker = Breaker::default();
        for _ in 0..OUTRUN_IN_ROW - 1 {
            assert!(!breaker.outrun(at(0)));
        }
        breaker.success();
        for _ in 0..OUTRUN_IN_ROW - 1 {
            assert!(!breaker.outrun(at(0)));
        }
        assert!(breaker.outrun(at(0)) && !admits(&breaker, at(0)));
    }

    #[test]
    fn a_node_that_hung_once_is_left_alone_for_long_and_longer_if_it_does_again() {
        let breaker = Breaker::default();
        assert!(breaker.hung(at(0)) && !breaker.hung(at(5)), "all who waited say the same");
        assert!(!admits(&breaker, at(31)) && admits(&breaker, at(32)));
        assert!(!admits(&breaker, at(33)), "one at a time");
        assert!(breaker.hung(at(42)));
        assert!(!admits(&breaker, at(101)) && admits(&breaker, at(102)));
        breaker.success();
        assert!(admits(&breaker, at(102)) && breaker.state() == BreakerState::Closed);
    }
}
