//! The ring as an engine of foyer's store.

use crate::key::Key;
use crate::queue::Piece;
use crate::ring::{Entry, Found, Ring};
use bytes::Bytes;
use foyer::{
    Age, Device, DeviceBuilder, Engine, EngineBuildContext, EngineConfig, HybridCacheProperties, Load,
    NoopDeviceBuilder, StorageFilterResult,
};
use foyer_storage::Populated;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use std::sync::Arc;
use tokio::sync::watch;

type Loaded = Load<Key, Bytes, HybridCacheProperties>;

/// A ring that is ready, on its way into foyer's builder.
#[derive(Debug)]
pub(crate) struct RingConfig {
    pub(crate) ring: Arc<Ring>,
    /// True when the writer has ended.
    pub(crate) ended: watch::Receiver<bool>,
}

impl EngineConfig<Key, Bytes, HybridCacheProperties> for RingConfig {
    fn build(
        self: Box<Self>,
        _: EngineBuildContext,
    ) -> BoxFuture<'static, foyer::Result<Arc<dyn Engine<Key, Bytes, HybridCacheProperties>>>> {
        // foyer keeps its statistics in a device. The ring has one of its own kind, so this one does nothing.
        let device = NoopDeviceBuilder::default().build();
        let engine = device.map(|device| -> Arc<dyn Engine<Key, Bytes, HybridCacheProperties>> {
            Arc::new(RingEngine { ring: self.ring, ended: self.ended, device })
        });
        ready(engine).boxed()
    }
}

#[derive(Debug)]
struct RingEngine {
    ring: Arc<Ring>,
    ended: watch::Receiver<bool>,
    device: Arc<dyn Device>,
}

impl Engine<Key, Bytes, HybridCacheProperties> for RingEngine {
    fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Admission is decided before a chunk is copied; see `admission`.
    fn filter(&self, _: u64, _: usize) -> StorageFilterResult {
        StorageFilterResult::Admit
    }

    fn enqueue(&self, piece: Piece, _: usize) {
        self.ring.queue.push(piece);
    }

    fn load(&self, hash: u64) -> BoxFuture<'static, foyer::Result<Loaded>> {
        match self.ring.find(hash) {
            Found::Entry(entry) => ready(Ok(loaded(entry))).boxed(),
            Found::Nothing => ready(Ok(Load::Miss)).boxed(),
            Found::OnDevice(location, buffer) => {
                let ring = self.ring.clone();
                async move { Ok(ring.fetch(hash, location, buffer).await.map_or(Load::Miss, loaded)) }.boxed()
            }
        }
    }

    fn delete(&self, hash: u64) {
        self.ring.index.remove(hash);
    }

    fn may_contains(&self, hash: u64) -> bool {
        self.ring.index.get(hash).is_some()
    }

    fn destroy(&self) -> BoxFuture<'static, foyer::Result<()>> {
        ready(Err(foyer::Error::new(foyer::ErrorKind::Unsupported, "the ring is never emptied"))).boxed()
    }

    fn wait(&self) -> BoxFuture<'static, ()> {
        ready(()).boxed()
    }

    /// Writes what waits, and returns when the writer has ended.
    fn close(&self) -> BoxFuture<'static, foyer::Result<()>> {
        self.ring.queue.drain();
        let mut ended = self.ended.clone();
        async move {
            // An error says that the writer is gone without a word: it has ended as well.
            let _ = ended.wait_for(|&ended| ended).await;
            Ok(())
        }
        .boxed()
    }
}

impl Drop for RingEngine {
    fn drop(&mut self) {
        self.ring.queue.close();
    }
}

fn loaded(entry: Entry) -> Loaded {
    let age = if entry.old { Age::Old } else { Age::Young };
    Load::Entry { key: entry.key, value: entry.stored, populated: Populated { age } }
}
