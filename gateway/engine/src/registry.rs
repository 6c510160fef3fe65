//! The volumes that this gateway serves, by name.

use crate::error::EngineError;
use crate::volume::{Condition, Volume};
use cairn_model::VolumeId;
use parking_lot::{RwLock, RwLockReadGuard};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Lock order: the registry before any volume's state; states in the registry's order.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    volumes: RwLock<BTreeMap<String, Arc<Volume>>>,
}

impl Registry {
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Volume>> {
        self.volumes.read().get(name).cloned()
    }

    pub(crate) fn named(&self, name: &str) -> Result<Arc<Volume>, EngineError> {
        self.get(name).ok_or_else(|| EngineError::NoSuchVolume(name.to_owned()))
    }

    pub(crate) fn of_id(&self, id: VolumeId) -> Option<Arc<Volume>> {
        self.volumes.read().values().find(|volume| volume.id() == id).cloned()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.volumes.read().keys().cloned().collect()
    }

    /// All volumes in the order of their names.
    pub(crate) fn all(&self) -> Vec<Arc<Volume>> {
        self.volumes.read().values().cloned().collect()
    }

    /// Empties the registry. Volumes and engine hold on to each other through it: the end of the one needs this.
    pub(crate) fn take_all(&self) -> Vec<Arc<Volume>> {
        std::mem::take(&mut *self.volumes.write()).into_values().collect()
    }

    /// Fails when a volume in service has the name.
    pub(crate) fn check_free(&self, name: &str) -> Result<(), EngineError> {
        check_place(&self.volumes.read(), name)
    }

    /// Adds a volume, in place of one that is not served any more. One that is keeps its place: without it a cut would leave out its
    /// writes, and the log would forget them.
    pub(crate) fn insert(&self, name: String, volume: Arc<Volume>) -> Result<(), EngineError> {
        let mut volumes = self.volumes.write();
        check_place(&volumes, &name)?;
        volumes.insert(name, volume);
        Ok(())
    }

    pub(crate) fn remove(&self, volume: &Arc<Volume>) {
        self.volumes.write().retain(|_, held| !Arc::ptr_eq(held, volume));
    }

    /// Gives a volume another name, unless one that is served has it.
    pub(crate) fn rename(&self, volume: &Arc<Volume>, to: String) -> Result<(), EngineError> {
        let mut volumes = self.volumes.write();
        if volumes.get(&to).is_some_and(|held| Arc::ptr_eq(held, volume)) {
            return Ok(());
        }
        check_place(&volumes, &to)?;
        volumes.retain(|_, held| !Arc::ptr_eq(held, volume));
        volume.state().lock().name.clone_from(&to);
        volumes.insert(to, Arc::clone(volume));
        Ok(())
    }

    /// Keeps volumes from coming and going while the guard lives.
    pub(crate) fn freeze(&self) -> RwLockReadGuard<'_, BTreeMap<String, Arc<Volume>>> {
        self.volumes.read()
    }
}

/// Fails when a volume in service has the name. Names are unique in the catalog; here they lag behind when a change's answer was lost.
fn check_place(volumes: &BTreeMap<String, Arc<Volume>>, name: &str) -> Result<(), EngineError> {
    match volumes.get(name) {
        Some(held) if held.state().lock().condition == Condition::Serving => {
            Err(EngineError::NameServed(name.to_owned()))
        }
        _ => Ok(()),
    }
}
