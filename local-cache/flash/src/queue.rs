//! What waits to be written. foyer's store holds on to each piece until it is written, so it is found meanwhile.

use bytes::Bytes;
use foyer::{HybridCacheProperties, PieceRef};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::Notify;

use crate::key::Key;

pub(crate) type Piece = PieceRef<Key, Bytes, HybridCacheProperties>;

/// How far the cache is on its way to the end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
enum Stage {
    #[default]
    Open,
    /// What waits is written, nothing is added.
    Draining,
    /// What waits is dropped, and so is what comes.
    Closed,
}

#[derive(Debug, Default)]
struct State {
    pieces: VecDeque<Piece>,
    /// Of what the writer has taken and not yet written.
    writing: Vec<u64>,
    /// Those of `writing` that turned out to be damaged meanwhile.
    spoiled: Vec<u64>,
    stage: Stage,
}

/// From callers to the writer. Its bound is kept by admission, which looks at [`Queue::bytes`] first.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    bytes: AtomicU64,
    /// How many are in `spoiled`: looked at for every read.
    spoiled: AtomicUsize,
    wake: Arc<Notify>,
}

impl Queue {
    pub(crate) fn new(wake: Arc<Notify>) -> Self {
        Self { state: Mutex::default(), bytes: AtomicU64::new(0), spoiled: AtomicUsize::new(0), wake }
    }

    pub(crate) fn push(&self, piece: Piece) {
        let bytes = piece.value().len() as u64;
        let mut state = self.state.lock();
        if state.stage != Stage::Open {
            drop(state);
            return;
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        state.pieces.push_back(piece);
        drop(state);
        self.wake.notify_one();
    }

    /// The next pieces, of about so many bytes together. They count as waiting until [`Queue::written`]; call it before the next
    /// pieces are taken.
    pub(crate) fn take(&self, bytes_max: u64) -> Vec<Piece> {
        let mut state = self.state.lock();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while bytes < bytes_max {
            let Some(piece) = state.pieces.pop_front() else { break };
            bytes += piece.value().len() as u64;
            taken.push(piece);
        }
        state.writing = taken.iter().map(|piece| piece.key().hash64()).collect();
        taken
    }

    /// What was taken is written, so many bytes. Those of it that were found to be damaged meanwhile: the index must forget them.
    pub(crate) fn written(&self, bytes: u64) -> Vec<u64> {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        let mut state = self.state.lock();
        state.writing.clear();
        self.spoiled.store(0, Ordering::Relaxed);
        std::mem::take(&mut state.spoiled)
    }

    /// Drops what waits with this key: its bytes are damaged. Whether there was any.
    pub(crate) fn forget(&self, hash: u64) -> bool {
        let mut state = self.state.lock();
        let pieces = std::mem::take(&mut state.pieces).into_iter();
        let (dropped, kept): (Vec<_>, Vec<_>) = pieces.partition(|piece| piece.key().hash64() == hash);
        state.pieces = kept.into();
        let taken = state.writing.contains(&hash) && !state.spoiled.contains(&hash);
        if taken {
            state.spoiled.push(hash);
            self.spoiled.store(state.spoiled.len(), Ordering::Relaxed);
        }
        drop(state);
        let bytes: u64 = dropped.iter().map(|piece| piece.value().len() as u64).sum();
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        taken || !dropped.is_empty()
    }

    /// Whether what the writer is writing with this key is damaged.
    pub(crate) fn is_spoiled(&self, hash: u64) -> bool {
        self.spoiled.load(Ordering::Relaxed) > 0 && self.state.lock().spoiled.contains(&hash)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Takes nothing more; the writer writes what is there and ends.
    pub(crate) fn drain(&self) {
        let mut state = self.state.lock();
        state.stage = state.stage.max(Stage::Draining);
        drop(state);
        self.wake.notify_one();
    }

    /// Lets go of everything.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.stage = Stage::Closed;
        let pieces = std::mem::take(&mut state.pieces);
        drop(state);
        let bytes: u64 = pieces.iter().map(|piece| piece.value().len() as u64).sum();
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.wake.notify_one();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.state.lock().stage != Stage::Open
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().stage == Stage::Closed
    }

    pub(crate) async fn changed(&self) {
        self.wake.notified().await;
    }
}
