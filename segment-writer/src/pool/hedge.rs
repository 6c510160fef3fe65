//! How many reads may be sent to other nodes as well because they are late.

use parking_lot::Mutex;

/// Bounds how many reads are sent to other nodes as well because they are late: a pool that is slow as a whole is not asked for a multiple of everything.
#[derive(Debug)]
pub(super) struct HedgeBudget {
    /// In 1024ths of a read.
    left: Mutex<u32>,
}

/// Late reads in a row that are sent on.
const HEDGES_AT_ONCE: u32 = 32;

impl Default for HedgeBudget {
    fn default() -> Self {
        Self { left: Mutex::new(HEDGES_AT_ONCE * 1024) }
    }
}

impl HedgeBudget {
    pub(super) fn earn(&self, per_1024: u32) {
        let mut left = self.left.lock();
        *left = left.saturating_add(per_1024).min(HEDGES_AT_ONCE * 1024);
    }

    pub(super) fn spend(&self) -> bool {
        let mut left = self.left.lock();
        let has = *left >= 1024;
        if has {
            *left -= 1024;
        }
        has
    }
}
