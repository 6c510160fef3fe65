//! How far a recovery is, for whoever watches.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Prefixes of the keys of segments, which are listed one by one.
const PREFIXES: u64 = 256;

/// What was done so far, counted.
#[derive(Debug, Default)]
pub struct RecoveryProgress {
    pieces: AtomicU64,
    pieces_total: AtomicU64,
    prefixes: AtomicU64,
    footers: AtomicU64,
    footers_total: AtomicU64,
    batches: AtomicU64,
}

fn add(to: &AtomicU64) {
    to.fetch_add(1, Ordering::Relaxed);
}

impl RecoveryProgress {
    /// A checkpoint of so many pieces is read, from the beginning.
    pub(super) fn checkpoint(&self, pieces: usize) {
        self.pieces.store(0, Ordering::Relaxed);
        self.pieces_total.store(pieces as u64, Ordering::Relaxed);
    }

    pub(super) fn piece(&self) {
        add(&self.pieces);
    }

    pub(super) fn prefix(&self) {
        add(&self.prefixes);
    }

    /// So many segments are not in the checkpoint.
    pub(super) fn unknown(&self, segments: usize) {
        self.footers_total.store(segments as u64, Ordering::Relaxed);
    }

    pub(super) fn footer(&self) {
        add(&self.footers);
    }

    pub(super) fn batch(&self) {
        add(&self.batches);
    }
}

impl fmt::Display for RecoveryProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let get = |of: &AtomicU64| of.load(Ordering::Relaxed);
        let (pieces, prefixes, footers) = (get(&self.pieces), get(&self.prefixes), get(&self.footers));
        let (pieces_total, footers_total) = (get(&self.pieces_total), get(&self.footers_total));
        if get(&self.batches) > 0 {
            write!(f, "adding batches: {}", get(&self.batches))
        } else if footers_total > 0 {
            write!(f, "reading segments that the checkpoint does not have: {footers} of {footers_total}")
        } else if prefixes > 0 {
            write!(f, "listing the pool: {prefixes} of {PREFIXES} parts")
        } else if pieces_total > 0 {
            write!(f, "reading the checkpoint: {pieces} of {pieces_total} pieces")
        } else {
            write!(f, "looking for the newest checkpoint")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_the_step_that_is_under_way() {
        let progress = RecoveryProgress::default();
        assert_eq!(progress.to_string(), "looking for the newest checkpoint");
        progress.checkpoint(3);
        progress.piece();
        assert_eq!(progress.to_string(), "reading the checkpoint: 1 of 3 pieces");
        progress.prefix();
        assert_eq!(progress.to_string(), "listing the pool: 1 of 256 parts");
        progress.unknown(7);
        progress.footer();
        assert!(progress.to_string().ends_with("1 of 7"));
        progress.batch();
        assert_eq!(progress.to_string(), "adding batches: 1");
    }
}
