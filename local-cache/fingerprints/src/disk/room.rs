//! Which containers leave a full index, and which are not worth their room.
//!
//! Ids begin with the wall time, so the lowest is the oldest and leaves first. But the clock may have been ahead when the index filled, and be right
//! again. Then those of that time would stay, and each new container would be the next to leave, until the time catches up. So a container that was
//! packed just now sends away those whose ids are of a time well after its own, before any other. One that is learned again says nothing about
//! the clock: whether it is too old is asked before ([`Disk::wants`]).

use super::{Disk, Failed, Writer};
use crate::counters::count;
use crate::failures::Operation;
use cairn_model::ContainerId;
use std::ops::Bound;
use std::sync::atomic::Ordering;

/// Containers that one commit forgets at most.
const EVICTIONS_MAX: u64 = 2;
/// Containers that are committed out of the order of their ids are not so far apart.
const AHEAD_MILLIS: u64 = 10 * 60 * 1000;
const LAST: ContainerId = ContainerId::from_bytes([0xff; 16]);

/// Who leaves for a new container.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    pub(super) containers: Vec<ContainerId>,
    /// The oldest that stays, where that changes.
    pub(super) oldest: Option<ContainerId>,
}

impl Disk {
    /// Who leaves for `container`, which is not listed. `None` when the disk failed.
    pub(super) fn room_for(
        &self,
        container: ContainerId,
        is_fresh: bool,
        writer: &mut Writer,
    ) -> Option<Leaving> {
        let containers = self.counters.containers.load(Ordering::Relaxed);
        let over = (containers + 1).saturating_sub(self.counters.containers_max()).min(EVICTIONS_MAX);
        if over == 0 {
            return Some(Leaving::default());
        }
        if is_fresh {
            let ahead = self.ahead_of(container, over, writer)?;
            if !ahead.is_empty() {
                return Some(Leaving { containers: ahead, oldest: None });
            }
        }
        let (containers, next) = self.oldest(over)?;
        let oldest = Some(next.map_or(container, |next| next.min(container)));
        Some(Leaving { containers, oldest })
    }

    /// Up to `count` of the latest containers, as far as their time is well after that of `container`.
    fn ahead_of(&self, container: ContainerId, count: u64, writer: &mut Writer) -> Option<Vec<ContainerId>> {
        let mut leaving = Vec::new();
        writer.latest = self.latest(Bound::Included(writer.latest.unwrap_or(LAST))).ok()?;
        let limit = millis(container) + AHEAD_MILLIS;
        let mut next = writer.latest;
        while let Some(ahead) = next.filter(|id| millis(*id) > limit && (leaving.len() as u64) < count) {
            leaving.push(ahead);
            next = self.latest(Bound::Excluded(ahead)).ok()?;
        }
        Some(leaving)
    }

    fn latest(&self, up_to: Bound<ContainerId>) -> Result<Option<ContainerId>, Failed> {
        self.looked_up(Operation::ReadKeys, self.store.last_list(up_to))
    }

    /// The `count` oldest containers, and the one after them.
    fn oldest(&self, count: u64) -> Option<(Vec<ContainerId>, Option<ContainerId>)> {
        let mut leaving = Vec::new();
        // A lower bound: it may have been forgotten since.
        let mut next = match self.store.horizon.get() {
            Some(oldest) if !self.has_list(oldest)? => {
                self.looked_up(Operation::ReadKeys, self.store.list_after(oldest)).ok()?
            }
            oldest => oldest,
        };
        while let Some(container) = next.filter(|_| (leaving.len() as u64) < count) {
            leaving.push(container);
            next = self.looked_up(Operation::ReadKeys, self.store.list_after(container)).ok()?;
        }
        Some((leaving, next))
    }

    /// Whether it is worth while to learn the container again.
    pub(crate) fn wants(&self, container: ContainerId) -> bool {
        if self.given_up().is_some() || self.contains(container) {
            return false;
        }
        let full = self.counters.containers.load(Ordering::Relaxed) >= self.counters.containers_max();
        let too_old = full && self.store.horizon.get().is_some_and(|oldest| container < oldest);
        if too_old {
            count(&self.counters.refused);
        }
        !too_old
    }
}

/// The wall time that an id was made at.
fn millis(container: ContainerId) -> u64 {
    container.as_bytes()[..6].iter().fold(0, |millis, byte| millis << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::{Clock, SeededEntropy, SystemClock};

    #[test]
    fn an_id_says_when_it_was_made() {
        let clock = SystemClock::new();
        let before = clock.wall().unix_millis();
        let container = ContainerId::fresh(&clock, &SeededEntropy::new(1));
        assert!((before..=clock.wall().unix_millis()).contains(&millis(container)));
    }
}
