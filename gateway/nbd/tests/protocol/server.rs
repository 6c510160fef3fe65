//! A server on a Unix socket in a directory of its own.

use crate::device::TestDevice;
use cairn_model::Ports;
use cairn_nbd::memory::DeviceTable;
use cairn_nbd::{CountersSnapshot, NbdServer, ServerConfig};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) struct TestServer {
    pub(crate) path: PathBuf,
    pub(crate) device: Arc<TestDevice>,
    pub(crate) shutdown: CancellationToken,
    server: NbdServer<DeviceTable<TestDevice>>,
    serving: JoinSet<()>,
    _directory: TempDir,
}

impl TestServer {
    /// One export, `disk`, of 64 MiB.
    pub(crate) async fn start() -> Self {
        Self::with(TestDevice::new(64 * MIB), ServerConfig::default()).await
    }

    pub(crate) async fn with_device(device: TestDevice) -> Self {
        Self::with(device, ServerConfig::default()).await
    }

    /// `device` as `disk`, and a read-only `snapshot`.
    pub(crate) async fn with(device: TestDevice, config: ServerConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nbd.sock");
        let device = Arc::new(device);
        let exports = DeviceTable::new([
            ("disk".to_owned(), device.clone()),
            ("snapshot".to_owned(), Arc::new(TestDevice::read_only(MIB))),
        ]);
        let server = NbdServer::new(Arc::new(exports), config, Ports::system()).unwrap();
        let listener = server.listen_unix(&path).await.unwrap();
        let shutdown = CancellationToken::new();
        let mut serving = JoinSet::new();
        let (running, token) = (server.clone(), shutdown.clone());
        serving.spawn(async move { running.serve(listener, token).await });
        Self { path, device, shutdown, server, serving, _directory: directory }
    }

    pub(crate) fn server(&self) -> &NbdServer<DeviceTable<TestDevice>> {
        &self.server
    }

    pub(crate) fn counters(&self) -> CountersSnapshot {
        self.server.counters().snapshot()
    }

    /// Asks it to stop and waits until it has.
    pub(crate) async fn stop(&mut self) {
        self.shutdown.cancel();
        while let Some(ended) = self.serving.join_next().await {
            ended.unwrap();
        }
    }
}

/// Waits for something that happens soon or never.
#[expect(clippy::disallowed_methods, reason = "a test waits in real time for a real server")]
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Fails a test that would hang.
#[expect(clippy::disallowed_methods, reason = "a test waits in real time for a real server")]
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it takes too long")
}

/// Lets the server do what it would do if it were going to.
#[expect(clippy::disallowed_methods, reason = "a test waits in real time for a real server")]
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Bytes that differ from place to place.
pub(crate) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| ((at * 131 + (at >> 8) * 17 + seed * 29) % 251) as u8).collect()
}
