//! A process on a host, run in slices of the world's time.
//!
//! Each process has a runtime of its own, and the runtimes take turns on one thread: a process that is paused is one whose turn does not
//! come. Dropping the runtime ends every task at the await where it stands, as the end of a process does; only the world is left.

use crate::life::Life;
use cairn_engine::Engine;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

/// See the module.
pub(crate) struct Process {
    // Before the runtime: what it waits for belongs to it.
    main: Pin<Box<dyn Future<Output = Result<(), String>>>>,
    life: Arc<Life>,
    runtime: Runtime,
}

impl Process {
    /// Starts a process whose life `make` makes, inside the runtime.
    pub(crate) fn start(make: impl FnOnce() -> Life) -> Self {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime of one thread");
        let life = Arc::new(runtime.block_on(async { make() }));
        let main = Box::pin(Arc::clone(&life).run());
        Self { main, life, runtime }
    }

    pub(crate) fn life(&self) -> &Life {
        &self.life
    }

    /// Runs until the world's time `until`. An end of the process is returned; an error is a finding.
    pub(crate) fn run_until(&mut self, until: Duration) -> Option<Result<(), String>> {
        let Self { main, life, runtime } = self;
        runtime.block_on(async {
            let turn_ends = tokio::time::sleep_until(life.clock().moment(until));
            tokio::select! {
                biased;
                ended = main => Some(ended),
                () = turn_ends => None,
            }
        })
    }

    /// Lets the process see that it is `now`, all at once.
    pub(crate) fn wake_up_at(&mut self, now: Duration) {
        let Self { life, runtime, .. } = self;
        runtime.block_on(async {
            let paused = life.clock().moment(now).saturating_duration_since(Instant::now());
            tokio::time::advance(paused).await;
        });
    }

    /// Ends the process where it stands, if it has not ended. What it found, if anything.
    pub(crate) fn end(self) -> Option<String> {
        let Self { main, life, runtime } = self;
        drop(main);
        drop(runtime);
        if let Some(engine) = life.take_engine() {
            take_apart(&engine);
        }
        life.finding().or_else(crate::panics::first)
    }
}

/// Breaks the engine's circles of references: nothing of it runs any more, so this only frees memory.
fn take_apart(engine: &Engine) {
    let runtime = Builder::new_current_thread().build().expect("a runtime of one thread");
    runtime.block_on(engine.abandon());
}
