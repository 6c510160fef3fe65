//! Panics of tasks, which a runtime swallows: in a simulation each is a finding.

use std::cell::RefCell;
use std::sync::Once;

thread_local! {
    static SEEN: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Remembers every panic from here on, by thread: a simulation is one.
pub(crate) fn watch() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            SEEN.with_borrow_mut(|seen| seen.push(panic.to_string()));
            before(panic);
        }));
    });
    SEEN.take();
}

/// The first panic since [`watch`].
pub(crate) fn first() -> Option<String> {
    SEEN.with_borrow(|seen| seen.first().cloned())
}
