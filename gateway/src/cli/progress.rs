//! A progress bar on anything that takes longer than a second, when somebody watches.

use crate::transfer::Observer;
use cairn_model::{Clock, Monotonic, SystemClock};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Quicker than this needs no bar.
const QUIET: Duration = Duration::from_secs(1);
/// Between two pictures of a spinner.
const FRAME: Duration = Duration::from_millis(100);

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
        Self { drawn: bar, clock, started, watched: is_watched(), shown: AtomicBool::new(false) }
    }

    /// Removes the bar.
    pub(super) fn finish(&self) {
        self.drawn.finish_and_clear();
    }
}

/// Waits for `work`, under a spinner if it takes long and somebody watches.
pub(super) async fn spinning<T>(label: &'static str, work: impl Future<Output = T>) -> T {
    telling(|| label.to_owned(), work).await
}

/// The same, with what changes.
pub(super) async fn telling<T>(tell: impl Fn() -> String, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    if let Ok(done) = cairn_model::timeout(&SystemClock::new(), QUIET, &mut work).await {
        return done;
    }
    let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    spinner.set_style(ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("well formed"));
    spinner.set_message(tell());
    if is_watched() {
        spinner.set_draw_target(ProgressDrawTarget::stderr());
        spinner.enable_steady_tick(FRAME);
    }
    let done = loop {
        match cairn_model::timeout(&SystemClock::new(), QUIET, &mut work).await {
            Ok(done) => break done,
            Err(_) => spinner.set_message(tell()),
        }
    };
    spinner.finish_and_clear();
    done
}

/// Waits for `work`, under a line that `told` makes if it takes long and somebody watches.
pub(super) async fn following<T>(
    label: &'static str,
    work: impl Future<Output = T>,
    told: impl AsyncFn() -> Option<String>,
) -> T {
    if !is_watched() {
        return work.await;
    }
    let (mut work, clock) = (std::pin::pin!(work), SystemClock::new());
    if let Ok(done) = cairn_model::timeout(&clock, QUIET, &mut work).await {
        return done;
    }
    let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    spinner.set_style(ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("well formed"));
    spinner.set_message(label);
    spinner.enable_steady_tick(FRAME);
    loop {
        if let Some(line) = told().await {
            spinner.set_message(line);
        }
        if let Ok(done) = cairn_model::timeout(&clock, QUIET, &mut work).await {
            spinner.finish_and_clear();
            return done;
        }
    }
}

fn is_watched() -> bool {
    std::io::stdout().is_terminal() && std::io::stderr().is_terminal()
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
