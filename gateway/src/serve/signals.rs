//! SIGTERM and Ctrl-C.

use crate::error::GatewayError;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that ask a gateway to stop. From the moment this exists they no longer end the process by themselves.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Self, GatewayError> {
        let failed = |source| GatewayError::System { action: "listen for signals", source };
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    /// Returns when the first of them comes.
    pub(super) async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Returns when another one comes.
    pub(super) async fn stop_again(&mut self) {
        self.stop().await;
    }
}
