//! Panics of a library that the product expects, and catches.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind, set_hook, take_hook};

/// The library that reads qcow2 images.
const LIBRARY: &str = "/imago-";

thread_local! {
    static TOLERANT: Cell<bool> = const { Cell::new(false) };
    static SEEN: Cell<bool> = const { Cell::new(false) };
}

fn is_expected(panic: &PanicHookInfo<'_>) -> bool {
    TOLERANT.get() && panic.location().is_some_and(|place| place.file().contains(LIBRARY))
}

/// Makes the panic hook let expected panics pass: libFuzzer's ends the process on any.
pub fn let_expected_panics_pass() {
    let hook = take_hook();
    set_hook(Box::new(move |panic| {
        if is_expected(panic) {
            SEEN.set(true);
        } else {
            hook(panic);
        }
    }));
}

/// What `work` returns, or `None` when the library panicked.
pub(crate) fn tolerated<T>(work: impl FnOnce() -> T) -> Option<T> {
    SEEN.set(false);
    TOLERANT.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    TOLERANT.set(false);
    match outcome {
        Ok(value) => Some(value),
        Err(_) if SEEN.get() => None,
        Err(panic) => resume_unwind(panic),
    }
}
