//! Who has a volume, and what happened to those who had it.

use crate::volume::SimVolume;
use cairn_metadata::memory::MemoryHolder;
use cairn_model::{GatewayId, Generation};
use system_tests::oracle::verdict::Promise;

/// A gateway's term, in which its answers count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tenure {
    gateway: GatewayId,
    generation: Generation,
}

/// The state of a volume's history.
#[derive(Debug)]
pub(crate) struct Past {
    /// Who served it last, and since which term without a break: only then does its log count.
    last: Option<(GatewayId, Generation)>,
    /// What the events since the last check leave no excuse for losing.
    pub(crate) promise: Promise,
    /// No log has a say: whatever is there now is in the catalog.
    pub(crate) without_log: bool,
    moves: u64,
}

impl Past {
    pub(crate) fn new() -> Self {
        Self { last: None, promise: Promise::Acknowledged, without_log: false, moves: 0 }
    }
}

impl SimVolume {
    pub(crate) fn moves(&self) -> u64 {
        self.past.lock().moves
    }

    /// Something happened to the host of this gateway that only `promise` survives.
    pub(crate) fn excuse(&self, gateway: GatewayId, promise: Promise) {
        let mut past = self.past.lock();
        if past.last.is_some_and(|(last, _)| last == gateway) {
            past.promise = past.promise.max(promise);
        }
    }

    /// The gateway has lost its log.
    pub(crate) fn log_is_lost(&self, gateway: GatewayId) {
        self.excuse(gateway, Promise::Destaged);
        let mut past = self.past.lock();
        past.without_log |= past.last.is_some_and(|(last, _)| last == gateway);
    }

    /// The gateway serves the volume now. `None` if another one has it already.
    pub(crate) fn came_to(&self, gateway: GatewayId, generation: Generation) -> Option<Tenure> {
        let tenure = Tenure { gateway, generation };
        let holder = self.holder_if(tenure)?;
        let mut past = self.past.lock();
        let now = (gateway, holder.held_since);
        if past.last.is_some_and(|last| last != now) {
            // The log of whoever had it before says nothing any more.
            past.promise = Promise::Destaged;
            past.without_log = true;
            past.moves += 1;
        }
        past.last = Some(now);
        Some(tenure)
    }

    /// The gateway has ended in order: if it had the volume, it has given it back with everything in it.
    pub(crate) fn was_given_back(&self, gateway: GatewayId) {
        let holder =
            self.catalog.holder(self.id).filter(|holder| holder.released && holder.gateway == gateway);
        let mut past = self.past.lock();
        if holder.is_some_and(|holder| past.last == Some((gateway, holder.held_since))) {
            past.last = None;
        }
    }

    fn holder_if(&self, tenure: Tenure) -> Option<MemoryHolder> {
        let Tenure { gateway, generation } = tenure;
        self.catalog
            .holder(self.id)
            .filter(|holder| !holder.released)
            .filter(|holder| (holder.gateway, holder.generation) == (gateway, generation))
    }

    /// Whether the term goes on.
    pub(crate) fn is_held(&self, tenure: Tenure) -> bool {
        self.holder_if(tenure).is_some()
    }

    /// An answer counts, and is a broken promise if the volume belongs to somebody else.
    pub(crate) fn may_answer(&self, tenure: Tenure, what: &str) -> Result<(), String> {
        if self.is_held(tenure) {
            return Ok(());
        }
        Err(format!(
            "{} answers {what} in a term that is over: {:?} has it",
            self.name(),
            self.catalog.holder(self.id)
        ))
    }
}
