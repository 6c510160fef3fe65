//! Dedupe domains.

use super::{Result, Tables};
use crate::{CatalogError, DomainName, DomainRow, KeyRow};
use cairn_model::crypto::Encryption;
use cairn_model::{DomainId, WallTime};
use std::collections::BTreeMap;

/// The domains of a catalog; the default one is always there.
pub(super) struct Domains {
    default: DomainRow,
    others: BTreeMap<DomainId, DomainRow>,
}

impl Default for Domains {
    fn default() -> Self {
        let default = DomainRow {
            id: DomainId::DEFAULT,
            name: DomainName::default_domain(),
            encryption: Encryption::Aes256Gcm,
            created_at: WallTime::from_unix_millis(0),
        };
        Self { default, others: BTreeMap::new() }
    }
}

impl Domains {
    pub(super) fn default_mut(&mut self) -> &mut DomainRow {
        &mut self.default
    }

    fn iter(&self) -> impl Iterator<Item = &DomainRow> {
        std::iter::once(&self.default).chain(self.others.values())
    }

    pub(super) fn contains(&self, id: DomainId) -> bool {
        id == DomainId::DEFAULT || self.others.contains_key(&id)
    }
}

impl Tables {
    pub(super) fn create_domain(&mut self, domain: &DomainRow, key: &KeyRow) -> Result<()> {
        domain.check_key(key)?;
        if self.domains.iter().any(|known| known.name == domain.name) {
            return Err(CatalogError::NameTaken { what: "domain", name: domain.name.to_string() });
        }
        if self.domains.contains(domain.id) {
            return Err(CatalogError::AlreadyExists { what: "domain", id: domain.id.to_string() });
        }
        self.put_key(key)?;
        self.domains.others.insert(domain.id, domain.clone());
        Ok(())
    }

    pub(super) fn domains(&self) -> Vec<DomainRow> {
        let mut rows: Vec<_> = self.domains.iter().cloned().collect();
        rows.sort_by(|one, other| one.name.cmp(&other.name));
        rows
    }

    pub(super) fn domain_by_name(&self, name: &DomainName) -> Result<DomainRow> {
        let found = self.domains.iter().find(|domain| domain.name == *name).cloned();
        found.ok_or_else(|| CatalogError::not_found("domain", name))
    }

    pub(super) fn check_domain_unused(&self, id: DomainId) -> Result<()> {
        if id == DomainId::DEFAULT {
            return Err(CatalogError::DefaultDomain);
        }
        let domain = self.domains.others.get(&id).ok_or_else(|| CatalogError::not_found("domain", &id))?;
        let is_used = self.volumes.values().any(|volume| !volume.deleted && volume.row.domain == id)
            || self.containers.values().any(|container| container.domain == id);
        if is_used {
            return Err(CatalogError::DomainInUse { name: domain.name.clone() });
        }
        Ok(())
    }

    pub(super) fn delete_domain(&mut self, id: DomainId) -> Result<()> {
        self.check_domain_unused(id)?;
        let purpose = DomainRow::key_purpose(id);
        self.keys.retain(|key| key.purpose != purpose);
        self.domains.others.remove(&id);
        Ok(())
    }
}
