//! Tells systemd how the gateway is doing (`sd_notify`). Without systemd these do nothing.

use sd_notify::NotifyState;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot tell the service manager about a change of state");
    }
}

/// What is going on before the gateway is ready.
pub(crate) fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// Every export can be used.
pub(crate) fn ready(text: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(text)]);
}

/// The gateway is destaging and will end.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("destaging, then stopping")]);
}
