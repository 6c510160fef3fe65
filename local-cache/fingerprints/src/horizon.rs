//! Which anchors are of no use any more, without a look-up for each.
//!
//! Containers leave the full index oldest first, and ids sort by age. So an anchor that names a container below the oldest one that is still
//! listed is dead, and is dropped when the store next rewrites the table it is in. To delete a forgotten container's anchors instead, each had to be
//! read first, because it may name another container by now: hundreds of random reads.

use crate::format::anchored;
use cairn_model::ContainerId;
use fjall::compaction::filter::{
    CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict,
};
use parking_lot::RwLock;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

/// The oldest container that is listed; nothing is known to be dead without one.
#[derive(Clone, Debug)]
pub(crate) struct Horizon(Arc<AssertUnwindSafe<RwLock<Option<ContainerId>>>>);

impl Horizon {
    pub(crate) fn unknown() -> Self {
        Self(Arc::new(AssertUnwindSafe(RwLock::new(None))))
    }

    pub(crate) fn get(&self) -> Option<ContainerId> {
        *self.0.read()
    }

    pub(crate) fn set(&self, oldest: Option<ContainerId>) {
        *self.0.write() = oldest;
    }

    /// `container` is listed from now on.
    pub(crate) fn include(&self, container: ContainerId) {
        let mut oldest = self.0.write();
        *oldest = Some(oldest.map_or(container, |oldest| oldest.min(container)));
    }
}

impl Factory for Horizon {
    fn name(&self) -> &'static str {
        "anchors of forgotten containers"
    }

    /// The horizon as it is now. If it is lowered while the compaction runs, some anchors may be lost with it: hints, no more.
    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(DeadAnchors(self.get()))
    }
}

struct DeadAnchors(Option<ContainerId>);

impl CompactionFilter for DeadAnchors {
    /// `Destroy` may let an older anchor of the same fingerprint reappear: as much of a hint as this one was.
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> CompactionFilterResult {
        let Some(oldest) = self.0 else { return Ok(Verdict::Keep) };
        let dead = anchored(&item.value()?).is_none_or(|container| container < oldest);
        Ok(if dead { Verdict::Destroy } else { Verdict::Keep })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_horizon_is_the_oldest_container_that_was_included() {
        let id = |byte| ContainerId::from_bytes([byte; 16]);
        let horizon = Horizon::unknown();
        assert_eq!(horizon.get(), None);
        for (included, oldest) in [(5, 5), (7, 5), (3, 3)] {
            horizon.include(id(included));
            assert_eq!(horizon.get(), Some(id(oldest)));
        }
        horizon.set(Some(id(7)));
        assert_eq!(horizon.get(), Some(id(7)));
    }
}
