//! What a piece of work allocates at most: input must not make the product allocate more than its length justifies.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counting for each thread what it holds.
#[derive(Debug)]
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    /// Bytes allocated less bytes freed by this thread; memory may change threads, so it may be negative.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: usize, sign: isize) {
    let change = isize::try_from(bytes).unwrap_or(isize::MAX).wrapping_mul(sign);
    // A thread that ends frees what its locals held after they are gone.
    let _ = HELD.try_with(|held| {
        held.set(held.get().wrapping_add(change));
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call goes to the system's allocator with the same arguments; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(layout.size(), -1);
        count(new_size, 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

/// Runs `work` and fails if this thread held more than `bytes_max` beyond what it held before.
pub(crate) fn bounded<T>(bytes_max: usize, work: impl FnOnce() -> T) -> T {
    let before = HELD.get();
    PEAK.set(before);
    let value = work();
    let most = usize::try_from(PEAK.get().wrapping_sub(before)).unwrap_or(0);
    assert!(most <= bytes_max, "{most} bytes were allocated where {bytes_max} are allowed");
    value
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_allocated_within_the_bound_passes() {
        assert_eq!(super::bounded(2000, || vec![1_u8; 1000]).len(), 1000);
    }

    #[test]
    #[should_panic(expected = "bytes were allocated where")]
    fn what_is_allocated_beyond_the_bound_fails_even_if_it_is_freed() {
        super::bounded(2000, || drop(std::hint::black_box(Vec::<u8>::with_capacity(3000))));
    }
}
