//! Wrapped keys.

use super::{Result, Tables};
use crate::{CatalogError, KeyRow};
use cairn_model::crypto::KeyId;

/// What no two rows share.
fn identity(key: &KeyRow) -> (&str, KeyId, KeyId) {
    (&key.purpose, key.key_id, key.wrapped_by)
}

impl Tables {
    pub(super) fn put_key(&mut self, key: &KeyRow) -> Result<()> {
        if self.keys.iter().any(|known| identity(known) == identity(key)) {
            return Err(CatalogError::AlreadyExists { what: "key", id: key.key_id.to_string() });
        }
        self.keys.push(key.clone());
        Ok(())
    }

    pub(super) fn keys(&self) -> Vec<KeyRow> {
        let mut keys = self.keys.clone();
        keys.sort_by_key(|key| (key.created_at, key.purpose.clone(), *key.key_id.as_bytes()));
        keys
    }

    pub(super) fn replace_keys(&mut self, rows: &[KeyRow], keep: KeyId) -> Result<()> {
        if let Some(stray) = rows.iter().find(|row| row.wrapped_by != keep) {
            return Err(CatalogError::stray_key(stray, keep));
        }
        let mut kept: Vec<KeyRow> = Vec::new();
        // The last row of an identity counts: the new ones come first.
        for key in rows.iter().rev().chain(self.keys.iter().filter(|key| key.wrapped_by == keep)) {
            if !kept.iter().any(|known| identity(known) == identity(key)) {
                kept.push(key.clone());
            }
        }
        let is_lost =
            |key: &&KeyRow| !kept.iter().any(|row| (&row.purpose, row.key_id) == (&key.purpose, key.key_id));
        if let Some(lost) = self.keys.iter().find(is_lost) {
            return Err(CatalogError::KeyLost { purpose: lost.purpose.clone(), key: lost.key_id });
        }
        self.keys = kept;
        Ok(())
    }
}
