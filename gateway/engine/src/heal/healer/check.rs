//! Looking for what a node lacks: of a node on which a shard is missing, each is asked for.

use super::super::examine::{Found, examine, is_absent, not_readable};
use super::super::step::{Outcome, Step, place_of};
use super::AT_ONCE_AT_RISK;
use crate::engine::Shared;
use crate::error::EngineError;
use cairn_metadata::SegmentPlace;
use cairn_model::{NodeId, SegmentId};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Semaphore;

/// How far the shards of a node were looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Check {
    pub(super) after: Option<SegmentId>,
    /// It has passed by some that could not be asked, and that nobody else will ask: it goes on from there once more.
    has_skipped: bool,
    /// They are behind this one.
    skipped_after: Option<SegmentId>,
}

impl Check {
    /// There is something missing that it may have passed by: when it has come to the end, it goes through everything once more. Not at once: what it could not ask, and
    /// what turns out to be missing when others answer again, would keep it from ever coming to the end.
    pub(super) fn must_see(&mut self, segment: SegmentId) {
        if self.after.is_some_and(|after| segment <= after) {
            (self.has_skipped, self.skipped_after) = (true, None);
        }
    }

    /// Some behind `after` could not be asked.
    pub(super) fn passes_by(&mut self, after: Option<SegmentId>) {
        // What was passed by before is before them.
        if !self.has_skipped {
            (self.has_skipped, self.skipped_after) = (true, after);
        }
    }

    /// It has come to the end. Whether it is over, or goes on where it passed by something.
    pub(super) fn is_over(&mut self) -> bool {
        let is_over = !self.has_skipped;
        *self = Self { after: self.skipped_after, ..Self::default() };
        is_over
    }
}

/// What the segments of a check have in common.
pub(super) struct Checking {
    at_once: Semaphore,
    has_skipped: AtomicBool,
}

impl Checking {
    pub(super) fn new() -> Self {
        Self { at_once: Semaphore::new(AT_ONCE_AT_RISK), has_skipped: AtomicBool::new(false) }
    }

    /// Whether it passed by a shard that it has to come back to.
    pub(super) fn has_skipped(self) -> bool {
        self.has_skipped.into_inner()
    }

    /// A shard cannot be asked now. The check comes back to it unless it is read again anyway.
    fn pass_by(&self, shared: &Shared, segment: SegmentId, index: usize) {
        if !shared.heal.unreadable.lock().contains_key(&(segment, index)) {
            self.has_skipped.store(true, Ordering::Relaxed);
        }
    }

    /// Asks for the shard of a segment that is on the node. What is not there is lost in the catalog; what is at risk then is made anew at once.
    pub(super) async fn look_for(
        &self,
        step: &Step<'_>,
        segment: &SegmentPlace,
        node: NodeId,
    ) -> Result<Outcome, EngineError> {
        let shared = step.shared;
        let Some(index) = index_on(segment, node) else { return Ok(Outcome::Changed) };
        // Everything that can be said of it was said.
        if shared.heal.beyond_repair.lock().has(segment.id, index) {
            return Ok(Outcome::Fine);
        }
        match is_absent(shared, segment, index).await {
            Ok(true) => {}
            Ok(false) => return Ok(Outcome::Fine),
            Err(error) => {
                not_readable(shared, (segment.id, index), Some(node)).await;
                self.pass_by(shared, segment.id, index);
                return Err(error.into());
            }
        }
        let _permit = self.at_once.acquire().await.map_err(|_| EngineError::Stopped)?;
        match examine(shared, segment, index).await {
            Ok(Found::Lost(_)) => {}
            Ok(Found::Unread) => {
                self.pass_by(shared, segment.id, index);
                return Ok(Outcome::Fine);
            }
            // Nobody has said anything of it yet.
            Ok(Found::Changed) => {
                self.has_skipped.store(true, Ordering::Relaxed);
                return Ok(Outcome::Fine);
            }
            Err(error) => {
                self.has_skipped.store(true, Ordering::Relaxed);
                return Err(error);
            }
            Ok(Found::Whole | Found::BeyondRepair(_)) => return Ok(Outcome::Fine),
        }
        // Of a node that lost everything there may be very much to look for: what is at risk does not wait for the end of that.
        match place_of(shared, segment.id).await? {
            Some(now) if step.view.is_at_risk(&now.place, &[]) => step.heal(&now, &[]).await,
            _ => Ok(Outcome::Changed),
        }
    }
}

/// Which shard of a segment is on a node.
pub(super) fn index_on(segment: &SegmentPlace, node: NodeId) -> Option<usize> {
    segment.place.placement.present().find(|(_, shard)| shard.node == node).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> SegmentId {
        SegmentId::from_bytes([number; 16])
    }

    #[test]
    fn a_check_comes_to_its_end_whatever_turns_out_to_be_missing_behind_it() {
        let mut check = Check { after: Some(id(5)), ..Check::default() };
        check.must_see(id(6));
        assert_eq!(check, Check { after: Some(id(5)), ..Check::default() }, "it comes by that one yet");
        for missing in [3, 4, 1] {
            check.must_see(id(missing));
            assert_eq!(check.after, Some(id(5)), "it goes on where it is");
        }
        check.after = Some(id(9));
        assert!(!check.is_over());
        assert_eq!(check, Check::default(), "once more from the beginning");
        check.after = Some(id(9));
        assert!(check.is_over());
    }

    #[test]
    fn a_check_goes_on_where_it_passed_by_something_first() {
        let mut check = Check { after: Some(id(3)), ..Check::default() };
        check.passes_by(Some(id(3)));
        check.passes_by(Some(id(7)));
        assert!(!check.is_over());
        assert_eq!(check, Check { after: Some(id(3)), ..Check::default() });
        check.passes_by(Some(id(7)));
        check.after = Some(id(8));
        check.must_see(id(2));
        assert!(!check.is_over());
        assert_eq!(check.after, None);
    }
}
