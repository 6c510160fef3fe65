//! How much of the host's processors hash, compress and seal.
//!
//! The operator chooses a budget. While the log is nearly full it is raised to all cores: destage gets priority before writers are
//! slowed, and the budget holds again once the log has room. It is raised as well while somebody waits until all that was written is in
//! the pool: a command, the end of the engine.

use crate::compute::ComputePool;
use crate::engine::Shared;
use crate::error::EngineError;
use crate::status::CpuStatus;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::str::FromStr;
use std::sync::Arc;

/// A share of the host's cores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuBudget {
    /// A fifth: guests of the same host hardly notice.
    #[default]
    Normal,
    /// Two fifths.
    Insane,
    /// All of them, for a host that does nothing else.
    Unlimited,
}

/// A word that names no budget.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no CPU budget: write normal, insane or unlimited")]
pub struct UnknownCpuBudget(String);

impl CpuBudget {
    pub const ALL: [Self; 3] = [Self::Normal, Self::Insane, Self::Unlimited];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Insane => "insane",
            Self::Unlimited => "unlimited",
        }
    }

    pub const fn percent(self) -> usize {
        match self {
            Self::Normal => 20,
            Self::Insane => 40,
            Self::Unlimited => 100,
        }
    }

    /// Whole threads within the share, but never none.
    pub const fn threads(self, cores: usize) -> usize {
        let threads = cores * self.percent() / 100;
        if threads == 0 { 1 } else { threads }
    }
}

impl FromStr for CpuBudget {
    type Err = UnknownCpuBudget;

    fn from_str(name: &str) -> Result<Self, UnknownCpuBudget> {
        Self::ALL
            .into_iter()
            .find(|budget| budget.name() == name)
            .ok_or_else(|| UnknownCpuBudget(name.to_owned()))
    }
}

/// Keeps the number of compute threads as the budget and the log's fill want it.
#[derive(Debug)]
pub(crate) struct Governor {
    cores: usize,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    budget: CpuBudget,
    /// The log is nearly full, or somebody waits.
    is_raised: bool,
}

impl State {
    fn threads(self, cores: usize) -> usize {
        if self.is_raised { CpuBudget::Unlimited } else { self.budget }.threads(cores)
    }
}

impl Governor {
    /// With the threads to start with.
    pub(crate) fn new(budget: CpuBudget, cores: usize) -> (Self, usize) {
        let state = State { budget, is_raised: false };
        (Self { cores, state: Mutex::new(state) }, state.threads(cores))
    }

    fn choose(&self, budget: CpuBudget, compute: &ComputePool) -> Result<(), EngineError> {
        self.change(compute, |state| state.budget = budget)
    }

    fn raise(&self, is_raised: bool, compute: &ComputePool) -> Result<(), EngineError> {
        self.change(compute, |state| state.is_raised = is_raised)
    }

    /// The lock is held until the threads are as many: the last change is the one that stays.
    fn change(&self, compute: &ComputePool, change: impl FnOnce(&mut State)) -> Result<(), EngineError> {
        let mut state = self.state.lock();
        change(&mut state);
        compute.resize(state.threads(self.cores))
    }

    pub(crate) fn status(&self, compute: &ComputePool) -> CpuStatus {
        let state = *self.state.lock();
        CpuStatus {
            budget: state.budget,
            cores: self.cores as u64,
            threads: compute.threads() as u64,
            raised: state.is_raised,
        }
    }
}

impl crate::engine::Engine {
    /// Changes the budget until the engine ends. Work in progress is finished; on an error there are fewer threads than wanted.
    pub fn set_cpu_budget(&self, budget: CpuBudget) -> Result<(), EngineError> {
        let shared = self.shared();
        shared.governor.choose(budget, &shared.compute)
    }
}

/// Raises the budget when it is time to, until the engine stops.
pub(crate) async fn govern_until_stopped(shared: Arc<Shared>) {
    let mut destage_first = shared.pressure.destage_first();
    let mut waiting = shared.destage.waiting();
    let mut was_raised = false;
    loop {
        // Looked at first: somebody may have come before this task.
        let is_log_full = *destage_first.borrow_and_update();
        let waiting_now = *waiting.borrow_and_update();
        let is_raised = is_log_full || waiting_now > 0;
        if is_raised != std::mem::replace(&mut was_raised, is_raised) {
            tracing::debug!(is_log_full, waiting = waiting_now, is_raised, "the CPU budget changes");
            if let Err(error) = shared.governor.raise(is_raised, &shared.compute) {
                tracing::warn!(%error, "destage goes on with fewer threads than it should have");
            }
        }
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            changed = destage_first.changed() => if changed.is_err() { return },
            changed = waiting.changed() => if changed.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::ThreadSpawn;

    #[test]
    fn a_budget_is_its_share_of_the_cores_and_at_least_one_thread() {
        let threads = |cores| CpuBudget::ALL.map(|budget| budget.threads(cores));
        assert_eq!(threads(1), [1, 1, 1]);
        assert_eq!(threads(2), [1, 1, 2]);
        assert_eq!(threads(8), [1, 3, 8]);
        assert_eq!(threads(64), [12, 25, 64]);
    }

    #[test]
    fn budgets_are_known_by_their_names() {
        for budget in CpuBudget::ALL {
            assert_eq!(budget.name().parse(), Ok(budget));
            assert_eq!(serde_json::to_string(&budget).unwrap(), format!("\"{}\"", budget.name()));
        }
        let error = "all".parse::<CpuBudget>().unwrap_err().to_string();
        assert!(error.contains("`all`") && error.contains("insane"), "{error}");
    }

    #[test]
    fn a_raised_budget_has_all_cores_and_ends_in_what_was_chosen_meanwhile() {
        let (governor, threads) = Governor::new(CpuBudget::Normal, 10);
        let compute = ComputePool::start("test", threads, Arc::new(ThreadSpawn)).unwrap();
        assert_eq!(compute.threads(), 2);
        governor.raise(true, &compute).unwrap();
        governor.choose(CpuBudget::Insane, &compute).unwrap();
        let status = governor.status(&compute);
        assert_eq!((status.budget, status.threads, status.raised), (CpuBudget::Insane, 10, true));
        governor.raise(false, &compute).unwrap();
        assert_eq!(governor.status(&compute).threads, 4);
    }
}
