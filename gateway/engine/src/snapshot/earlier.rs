//! Earlier moments of a volume or of a snapshot: the snapshots of the same volume that are older.

use super::open;
use crate::engine::until_known;
use crate::error::EngineError;
use crate::volume::Volume;
use cairn_metadata::SnapshotName;
use std::sync::Arc;

impl Volume {
    /// Names of the snapshots that this can be compared with, the oldest first: of a volume all that it has, of a snapshot those before it.
    pub(crate) async fn earlier_snapshots(&self) -> Result<Vec<String>, EngineError> {
        let shared = self.shared();
        let committed = until_known(shared, || shared.catalog.snapshots(self.id())).await?;
        let own = self.state().lock().map.term().point;
        // A view is of the first one at its point: those of one point show the same.
        let older = committed.iter().take_while(|row| row.at != own);
        let mut names: Vec<String> = older.map(|row| row.name.to_string()).collect();
        // Those in the log alone come after all that are committed.
        let served = shared.registry.of_id(self.id());
        if let Some(served) = served.filter(|served| std::ptr::eq(Arc::as_ptr(served), self)) {
            let state = served.state().lock();
            let is_new = |name: &String| committed.iter().all(|row| row.name.as_str() != name);
            names.extend(state.buffer.snapshots().map(|new| new.name.to_string()).filter(is_new));
        }
        Ok(names)
    }

    /// Opens one of them, once its map is in the leaves; `None` when there is none of that name. It is not deleted while somebody holds what this
    /// returns.
    pub(crate) async fn open_earlier_snapshot(&self, name: &str) -> Result<Option<Arc<Self>>, EngineError> {
        let Ok(snapshot) = SnapshotName::new(name) else { return Ok(None) };
        let shared = self.shared();
        // Of the same term of ownership: what is asked of an earlier one fails.
        let served = shared.registry.of_id(self.id()).filter(|served| served.shares_lease_with(self));
        let Some(served) = served else { return Err(EngineError::Fenced(self.name())) };
        let opened = match open(shared, served, &snapshot).await {
            Ok(opened) => opened,
            Err(EngineError::NoSuchSnapshot(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Asked now: what is open keeps its name, and no later snapshot can have taken it.
        let is_earlier = self.earlier_snapshots().await?.iter().any(|earlier| earlier == name);
        Ok(is_earlier.then_some(opened))
    }
}
