//! SIGTERM and Ctrl-C.

use crate::error::GatewayError;
use cairn_model::Clock;
use futures::FutureExt;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that come this close together are one.
const SAME_WISH: Duration = Duration::from_secs(1);

/// The signals that ask a gateway to stop. From the moment this exists they no longer end the process by themselves.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Within a runtime.
    pub fn listen() -> Result<Self, GatewayError> {
        let failed = |source| GatewayError::System { action: "listen for signals", source };
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    /// Returns when the first of them comes.
    pub async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Returns when another one comes, a while after the first: one wish to stop often arrives twice, from a terminal to a whole
    /// process group and from whoever supervises it.
    pub(super) async fn stop_again(&mut self, clock: &dyn Clock) {
        clock.sleep(SAME_WISH).await;
        while self.stop().now_or_never().is_some() {}
        self.stop().await;
    }
}
