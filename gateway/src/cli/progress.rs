//! A progress bar on anything that takes longer than a second, when somebody watches.

use crate::transfer::Observer;
use cairn_model::{Clock, Monotonic, SystemClock};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Quicker than this needs no bar.
const QUIET: Duration = Duration::from_secs(1);

pub(super) struct Bar {
    drawn: ProgressBar,
    clock: SystemClock,
    started: Monotonic,
    watched: bool,
    shown: AtomicBool,
}

impl Bar {
    pub(super) fn new(label: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let template = "{msg} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        bar.set_style(ProgressStyle::with_template(template).expect("the template is well formed"));
        bar.set_message(label.to_owned());
        let clock = SystemClock::new();
        let started = clock.now();
        let watched = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        Self { drawn: bar, clock, started, watched, shown: AtomicBool::new(false) }
    }

    /// Removes the bar.
    pub(super) fn finish(&self) {
        self.drawn.finish_and_clear();
    }
}

impl Observer for Bar {
    fn total(&self, bytes: u64) {
        self.drawn.set_length(bytes);
    }

    fn advance(&self, bytes: u64) {
        self.drawn.inc(bytes);
        self.show_when_late();
    }

    fn settling(&self) {
        self.drawn.set_message("import: waiting for the pool");
        self.show_when_late();
    }
}

impl Bar {
    fn show_when_late(&self) {
        let late = self.watched && self.clock.now().since(self.started) >= QUIET;
        if late && !self.shown.swap(true, Ordering::Relaxed) {
            self.drawn.set_draw_target(ProgressDrawTarget::stderr());
        }
    }
}
