//! The keys of an open site: the master key, and the domains' keys that it opens.
//!
//! Invariants: nothing is wrapped with a master key that the key file no longer holds; every change is a new revision (see `publish`),
//! durable before the change is.

use super::Site;
use super::publish::{KeyCopy, Revisions, is_revision};
use crate::error::GatewayError;
use crate::key::published::DOMAINS_MAX;
use crate::key::{KeyError, Master, Origin, file};
use cairn_metadata::{Catalog, CatalogError, DomainName, DomainRow, KeyRow};
use cairn_model::crypto::{self, Encryption, KeyId, SecretKey};
use cairn_model::{DomainId, Entropy, ErrorKind, Ports, WallTime};
use cairn_segment_writer::Pool;
use parking_lot::RwLock;

/// The keys in memory.
#[derive(Debug)]
pub(super) struct Keyring {
    state: RwLock<State>,
    /// Held through every change.
    pub(super) change: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    master: Master,
    opened: Vec<(DomainRow, SecretKey)>,
    closed: Vec<(DomainRow, String)>,
    copies: Vec<KeyCopy>,
}

impl Keyring {
    /// Opens what the catalog holds. Fails when the master key is not this site's, or when the key that everything needs does not
    /// open; another domain whose key does not open is left out.
    pub(super) async fn open(catalog: &dyn Catalog, master: Master) -> Result<Self, GatewayError> {
        let (opened, closed) = open_domains(catalog, &master).await?;
        let state = State { master, opened, closed, copies: Vec::new() };
        Ok(Self { state: RwLock::new(state), change: tokio::sync::Mutex::default() })
    }

    pub(super) fn master(&self) -> Master {
        self.state.read().master.clone()
    }

    pub(super) fn copies(&self) -> Vec<KeyCopy> {
        self.state.read().copies.clone()
    }

    /// Copies are on these nodes, and no others. What is known of them stays; the others have been given none yet.
    pub(super) fn expect_copies(&self, nodes: impl Iterator<Item = String>) {
        let mut state = self.state.write();
        let known = std::mem::take(&mut state.copies);
        let copy = |node: String| {
            let known = known.iter().find(|copy| copy.node == node).cloned();
            known.unwrap_or_else(|| KeyCopy { node, problem: Some("it has not answered yet".to_owned()) })
        };
        state.copies = nodes.map(copy).collect();
    }

    pub(super) fn set_copy(&self, copy: KeyCopy) {
        let mut state = self.state.write();
        if let Some(known) = state.copies.iter_mut().find(|known| known.node == copy.node) {
            *known = copy;
        }
    }

    pub(super) fn set_master(&self, master: Master) {
        self.state.write().master = master;
    }

    /// The key of the site's own domain.
    pub(super) fn data_key(&self) -> SecretKey {
        let state = self.state.read();
        let default = state.opened.iter().find(|(row, _)| row.id == DomainId::DEFAULT);
        default.map(|(_, key)| key.clone()).expect("a site does not open without it")
    }
}

type Opened = Vec<(DomainRow, SecretKey)>;
type Closed = Vec<(DomainRow, String)>;

async fn open_domains(catalog: &dyn Catalog, master: &Master) -> Result<(Opened, Closed), GatewayError> {
    let rows = catalog.keys().await?;
    let id = master.id();
    let mut wrapping: Vec<KeyId> =
        rows.iter().filter(|row| !is_revision(row)).map(|row| row.wrapped_by).collect();
    wrapping.dedup();
    if wrapping.is_empty() {
        return Err(KeyError::NoKeys.into());
    }
    let wrong =
        || KeyError::WrongKey { origin: master.origin.clone(), given: id, expected: wrapping.clone() };
    if !wrapping.contains(&id) {
        return Err(wrong().into());
    }
    let (mut opened, mut closed) = (Vec::new(), Vec::new());
    for domain in catalog.domains().await? {
        let purpose = DomainRow::key_purpose(domain.id);
        let own: Vec<&KeyRow> = rows.iter().filter(|row| row.purpose == purpose).collect();
        let key = own.iter().filter(|row| row.wrapped_by == id).find_map(|row| unwrap(row, master));
        let reason = match key {
            Some(key) => {
                opened.push((domain, key));
                continue;
            }
            None if own.iter().any(|row| row.wrapped_by == id) => {
                format!("its key is damaged in the catalog: it does not open with key {id}")
            }
            None => match own.first() {
                Some(row) => format!("its key is wrapped with key {}, not with {id}", row.wrapped_by),
                None => "the catalog has no key of it".to_owned(),
            },
        };
        if domain.id == DomainId::DEFAULT {
            let damaged = own.iter().any(|row| row.wrapped_by == id);
            let name = domain.name.to_string();
            return Err(
                if damaged { KeyError::DamagedDomainKey { name, master: id } } else { wrong() }.into()
            );
        }
        tracing::error!(domain = %domain.name, reason, "a domain is not available");
        closed.push((domain, reason));
    }
    Ok((opened, closed))
}

/// The key of a row, if it opens and is the one that the row names.
pub(super) fn unwrap(row: &KeyRow, master: &Master) -> Option<SecretKey> {
    let key = crypto::unwrap(&master.key, row.purpose.as_bytes(), &row.wrapped).ok()?;
    (key.id() == row.key_id).then_some(key)
}

/// `key` wrapped with `master`, as a row.
pub(super) fn wrapped(
    purpose: &str,
    key: &SecretKey,
    master: &SecretKey,
    entropy: &dyn Entropy,
    created_at: WallTime,
) -> KeyRow {
    KeyRow {
        purpose: purpose.to_owned(),
        key_id: key.id(),
        wrapped_by: master.id(),
        wrapped: crypto::wrap(master, purpose.as_bytes(), key, entropy).to_vec(),
        created_at,
    }
}

/// Makes the key of the site's own domain in a catalog that has none yet, as the first revision.
pub(super) async fn make_data_key(
    catalog: &dyn Catalog,
    master: &Master,
    ports: &Ports,
) -> Result<(), GatewayError> {
    let now = ports.clock.wall();
    let key = SecretKey::random(&*ports.entropy);
    let purpose = DomainRow::key_purpose(DomainId::DEFAULT);
    catalog.put_key(&wrapped(&purpose, &key, &master.key, &*ports.entropy, now)).await?;
    let first = Revisions::default().next(&*ports.entropy);
    Ok(catalog.replace_keys(&[first.row(master.id(), now)], master.id()).await?)
}

impl Site {
    /// Every domain whose key opened, the site's own among them.
    pub fn domains(&self) -> Result<Vec<(DomainRow, SecretKey)>, GatewayError> {
        Ok(self.keyring()?.state.read().opened.clone())
    }

    /// Domains that cannot be used, and why.
    pub fn unavailable_domains(&self) -> Vec<(DomainRow, String)> {
        self.keyring().map_or_else(|_| Vec::new(), |keyring| keyring.state.read().closed.clone())
    }

    /// The number of the latest change of the keys, and the id of the key that wraps them.
    pub async fn key_revision(&self) -> Result<(u64, KeyId), GatewayError> {
        let rows = self.catalog.keys().await?;
        let master = match self.keyring() {
            Ok(keyring) => keyring.master().id(),
            // The newest, when it is not known which of them opens.
            Err(_) => rows.iter().rev().find(|row| !is_revision(row)).ok_or(KeyError::NoKeys)?.wrapped_by,
        };
        Ok((Revisions::of(&rows, master).current().number, master))
    }

    /// Makes a domain with a key of its own.
    pub async fn create_domain(
        &self,
        name: DomainName,
        encryption: Encryption,
        pool: Option<&Pool>,
    ) -> Result<(DomainRow, SecretKey), GatewayError> {
        self.create_domain_telling(name, encryption, pool, |_, _| {}).await
    }

    /// [`Site::create_domain`], telling `made` as soon as the catalog has the domain: from then on a volume may be of it, while the data
    /// nodes may take long to answer.
    pub async fn create_domain_telling(
        &self,
        name: DomainName,
        encryption: Encryption,
        pool: Option<&Pool>,
        made: impl FnOnce(&DomainRow, &SecretKey) + Send,
    ) -> Result<(DomainRow, SecretKey), GatewayError> {
        let keyring = self.keyring()?;
        let _change = keyring.change.lock().await;
        self.check_source()?;
        let domains = self.catalog.domains().await?;
        if domains.iter().any(|domain| domain.name == name) {
            return Err(CatalogError::NameTaken { what: "domain", name: name.to_string() }.into());
        }
        if domains.len() >= DOMAINS_MAX {
            return Err(GatewayError::refused(
                ErrorKind::OutOfSpace,
                format!("this site has {DOMAINS_MAX} domains, which is all it may have"),
                "delete one that is not used any more",
            ));
        }
        let (ports, master) = (&self.ports, keyring.master());
        let row = DomainRow {
            id: DomainId::fresh(&*ports.clock, &*ports.entropy),
            name,
            encryption,
            created_at: ports.clock.wall(),
        };
        let key = SecretKey::random(&*ports.entropy);
        let purpose = DomainRow::key_purpose(row.id);
        let key_row = wrapped(&purpose, &key, &master.key, &*ports.entropy, row.created_at);
        self.begin_change(&master).await?;
        self.catalog.create_domain(&row, &key_row).await?;
        keyring.state.write().opened.push((row.clone(), key.clone()));
        made(&row, &key);
        self.publish_to_all(pool, false).await;
        Ok((row, key))
    }

    /// Closes the catalog once no change of the keys is under way: one that its client does not wait for any more comes to its end.
    pub async fn close(&self) {
        let _change = match self.keyring() {
            Ok(keyring) => Some(keyring.change.lock().await),
            Err(_) => None,
        };
        self.catalog.close().await;
    }

    /// Deletes a domain that nothing is of, and its key with it.
    pub async fn delete_domain(&self, name: &DomainName, pool: Option<&Pool>) -> Result<(), GatewayError> {
        let keyring = self.keyring()?;
        let _change = keyring.change.lock().await;
        self.check_source()?;
        let row = self.catalog.domain_by_name(name).await?;
        // What is refused is no change: it must not use up one of those that the catalog remembers.
        self.catalog.check_domain_unused(row.id).await?;
        self.begin_change(&keyring.master()).await?;
        self.catalog.delete_domain(row.id).await?;
        {
            let mut state = keyring.state.write();
            state.opened.retain(|(domain, _)| domain.id != row.id);
            state.closed.retain(|(domain, _)| domain.id != row.id);
        }
        self.publish_to_all(pool, false).await;
        Ok(())
    }

    /// What is wrong with the file of the key that this process works with, which the next start needs: missing, exchanged, or open to
    /// others.
    pub fn key_file_problem(&self) -> Option<KeyError> {
        let master = self.keyring().ok()?.master();
        let Origin::File(path) = &master.origin else { return None };
        match file::load(path) {
            Err(error) => Some(error),
            Ok(key) if key.id() == master.id() => None,
            Ok(key) => Some(KeyError::WrongKey {
                origin: master.origin.clone(),
                given: key.id(),
                expected: vec![master.id()],
            }),
        }
    }

    /// Fails when the key file does not hold the key that this process works with: somebody exchanged it, or it could not be
    /// replaced. What were wrapped now might never be opened again.
    pub(super) fn check_source(&self) -> Result<(), GatewayError> {
        let master = self.keyring()?.master();
        let Origin::File(path) = &master.origin else { return Ok(()) };
        let given = file::load(path)?.id();
        if given == master.id() {
            return Ok(());
        }
        Err(GatewayError::refused(
            ErrorKind::Conflict,
            format!(
                "{} holds key {given} now, and this process works with key {}",
                master.origin,
                master.id()
            ),
            "put the key back, or restart the gateway if the new one is right",
        ))
    }

    /// Makes the next revision durable. Also drops what other keys than `master` wrap: the rest of a rotation that did not end.
    pub(super) async fn begin_change(&self, master: &Master) -> Result<(), GatewayError> {
        let revisions = Revisions::of(&self.catalog.keys().await?, master.id());
        let next = revisions.next(&*self.ports.entropy).row(master.id(), self.ports.clock.wall());
        Ok(self.catalog.replace_keys(&[next], master.id()).await?)
    }
}
