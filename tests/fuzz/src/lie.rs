//! Lies: what shows that a target can fail.
//!
//! Where a target compares, it asks [`told`]; while it is lied to, it is given a product that broke its promise, such as a
//! write that was answered and not made. A target that then still passes on all of its inputs checks nothing.

use std::cell::Cell;

thread_local! {
    static TOLD: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` with lies.
pub fn while_lying<T>(work: impl FnOnce() -> T) -> T {
    struct Truth;
    impl Drop for Truth {
        fn drop(&mut self) {
            TOLD.set(false);
        }
    }
    let _truth = Truth;
    TOLD.set(true);
    work()
}

/// Whether the target is lied to.
pub(crate) fn told() -> bool {
    TOLD.get()
}
