//! The numbers of the keys' changes, and the keys' copy on the data nodes.
//!
//! Every change of keys is a numbered revision, kept in the catalog beside the keys it is of, as a row of purpose `revision`: its `wrapped`
//! is the list of the latest changes, newest first, each 8 bytes big-endian number and 8 random bytes.
//!
//! Invariants:
//! 1. A number is durable in the catalog before its change is, and its change before it is published: what two objects of one
//!    revision show is the same.
//! 2. An object on a data node is replaced unasked only by a catalog that has its revision among its own: a catalog that was put back from
//!    an old copy does not undo what is published, whatever it does afterwards and however far it counts.
//!
//! Crash cases: after the number and before the change, a number is used up; after the change and before it is published, the next
//! start publishes it.

use super::Site;
use super::keys::Keyring;
use crate::error::GatewayError;
use crate::key::published::{PublishedDomain, PublishedError, PublishedKeys, Revision};
use crate::key::{Master, Protection};
use bytes::Bytes;
use cairn_metadata::{Catalog, DomainRow, KeyRow};
use cairn_model::crypto::{self, KeyId};
use cairn_model::{Entropy, ErrorKind, SiteId, WallTime};
use cairn_segment_writer::{DataNode, Pool, PoolError};
use std::sync::Arc;
use std::time::Duration;

/// The row that says which change the keys are of.
const REVISION_PURPOSE: &str = "revision";

/// It is no key's; the row is found by it.
const REVISION_ID: KeyId = KeyId::from_bytes([0; 8]);

/// Changes that a catalog remembers. A node that misses more than these is written again by hand.
const REVISIONS_MAX: usize = 128;
const REVISION_BYTES: usize = 16;

/// What a catalog from before there were changes shows: the past of every other.
const BEFORE_ALL: Revision = Revision { number: 0, tag: [0; 8] };

/// How long a change of keys waits for a data node; what is not published then is published later, by whoever serves.
const PUBLISH_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a start or a change of nodes does.
const SOON: Duration = Duration::from_secs(1);

/// What to do about an object that is in the way.
const REPLACE_BY_HAND: &str = "see what it is; to replace it, run `cairn key publish --force`";

/// What became of the keys' copy on a data node, the last time it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyCopy {
    pub node: String,
    /// Why it is not what it should be, if it is not.
    pub problem: Option<String>,
}

pub(super) fn is_revision(row: &KeyRow) -> bool {
    row.purpose == REVISION_PURPOSE
}

/// The latest changes of keys, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Revisions(Vec<Revision>);

impl Revisions {
    /// Those that stand beside the keys that `master` wraps.
    pub(super) fn of(rows: &[KeyRow], master: KeyId) -> Self {
        let row = rows.iter().find(|row| row.purpose == REVISION_PURPOSE && row.wrapped_by == master);
        let bytes = row.map_or(&[][..], |row| &row.wrapped);
        let revision = |entry: &[u8]| {
            let (number, tag) = entry.split_at(8);
            Revision {
                number: u64::from_be_bytes(number.try_into().expect("half of an entry")),
                tag: tag.try_into().expect("the other half"),
            }
        };
        Self(bytes.chunks_exact(REVISION_BYTES).take(REVISIONS_MAX).map(revision).collect())
    }

    /// With one that was published, of which this catalog may not know yet.
    pub(super) fn with(mut self, published: Revision) -> Self {
        if !self.0.contains(&published) {
            self.0.insert(0, published);
            self.0.truncate(REVISIONS_MAX);
        }
        self
    }

    pub(super) fn current(&self) -> Revision {
        self.0.first().copied().unwrap_or(BEFORE_ALL)
    }

    /// Whether a change is among them.
    pub(super) fn knows(&self, revision: Revision) -> bool {
        self.0.contains(&revision)
    }

    /// With one more change.
    pub(super) fn next(&self, entropy: &dyn Entropy) -> Self {
        let mut tag = [0; 8];
        entropy.fill(&mut tag);
        let mut revisions = vec![Revision { number: self.current().number + 1, tag }];
        revisions.extend(self.0.iter().take(REVISIONS_MAX - 1));
        Self(revisions)
    }

    pub(super) fn row(&self, master: KeyId, created_at: WallTime) -> KeyRow {
        let entry = |revision: &Revision| [revision.number.to_be_bytes(), revision.tag].concat();
        KeyRow {
            purpose: REVISION_PURPOSE.to_owned(),
            key_id: REVISION_ID,
            wrapped_by: master,
            wrapped: self.0.iter().flat_map(entry).collect(),
            created_at,
        }
    }

    /// Whether an object of `revision` may be replaced by the present keys: it is of this catalog's past.
    fn may_replace(&self, revision: Revision) -> bool {
        self.0.contains(&revision) || revision == BEFORE_ALL
    }
}

impl Site {
    /// What became of the keys' copies on the data nodes; empty before they were looked at.
    pub fn key_copies(&self) -> Vec<KeyCopy> {
        self.keyring().map_or_else(|_| Vec::new(), Keyring::copies)
    }

    /// Writes the keys to every data node that has them not, or of this catalog's past; with `force` over whatever is there. Returns what
    /// became of it.
    pub async fn publish_keys(&self, pool: Option<&Pool>, force: bool) -> Result<Vec<KeyCopy>, GatewayError> {
        let keyring = self.keyring()?;
        // Who waits only so long for this knows all the same which nodes have none yet.
        keyring.expect_copies(self.catalog.nodes().await?.into_iter().map(|node| node.name));
        let _change = keyring.change.lock().await;
        Box::pin(self.publish_to_all(pool, force)).await;
        Ok(self.key_copies())
    }

    /// [`Site::publish_keys`], as far as data nodes answer at once. The others are told of in [`Site::key_copies`], and given theirs by whoever serves.
    pub async fn publish_soon(&self, pool: &Pool) -> Result<(), GatewayError> {
        let publishing = Box::pin(self.publish_keys(Some(pool), false));
        cairn_model::timeout(&*self.ports.clock, SOON, publishing).await.map_or(Ok(()), |done| done.map(drop))
    }

    /// [`Site::publish_keys`] within a change. A node that does not take them is warned of, and is no reason to fail.
    pub(super) async fn publish_to_all(&self, pool: Option<&Pool>, force: bool) {
        let (keyring, nodes) = match (self.keyring(), self.data_nodes(pool).await) {
            (Ok(keyring), Ok(nodes)) => (keyring, nodes),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(error = error.full_message(), "cannot tell the data nodes");
                return;
            }
        };
        keyring.expect_copies(nodes.iter().map(|(name, _)| name.clone()));
        // Side by side: one that does not answer holds up nobody but itself.
        let publish = async |(node, opened): (String, Result<Arc<DataNode>, GatewayError>)| {
            let published = match opened {
                Ok(opened) => self.publish_in_time(&opened, force).await,
                Err(error) => Err(error),
            };
            let problem = published.err().as_ref().map(told);
            if let Some(problem) = &problem {
                tracing::warn!(node, problem, "the copy of the keys on a data node is not up to date");
            }
            keyring.set_copy(KeyCopy { node, problem });
        };
        futures::future::join_all(nodes.into_iter().map(publish)).await;
    }

    async fn data_nodes(
        &self,
        pool: Option<&Pool>,
    ) -> Result<Vec<(String, Result<Arc<DataNode>, GatewayError>)>, GatewayError> {
        self.require_taken_over()?;
        let mut nodes = Vec::new();
        for row in self.catalog.nodes().await? {
            let node = match pool.and_then(|pool| pool.node(row.id).ok()) {
                Some(node) => Ok(node),
                None => Box::pin(super::node::open(self, &row)).await.map(Arc::new),
            };
            nodes.push((row.name, node));
        }
        Ok(nodes)
    }

    async fn publish_in_time(&self, node: &DataNode, force: bool) -> Result<(), GatewayError> {
        let master = self.keyring()?.master();
        let publishing = Box::pin(publish(&*self.catalog, self.row.id, &master, node, force));
        let clock = &*self.ports.clock;
        cairn_model::timeout(clock, PUBLISH_TIME_MAX, publishing).await.unwrap_or_else(|_| {
            let seconds = PUBLISH_TIME_MAX.as_secs();
            Err(GatewayError::Refused {
                kind: ErrorKind::Unavailable,
                what: format!("{} did not answer within {seconds} s", node.name()),
                next: None,
            })
        })
    }
}

/// Brings one node's keys up to date, unless what is there is none of this catalog's past.
pub(super) async fn publish(
    catalog: &dyn Catalog,
    site: SiteId,
    master: &Master,
    node: &DataNode,
    force: bool,
) -> Result<(), GatewayError> {
    let rows = catalog.keys().await?;
    let revisions = Revisions::of(&rows, master.id());
    let keys = present_keys(catalog, &rows, revisions.current(), site, master).await?;
    if let Some(object) = read_object(node, force).await? {
        if !force && is_present(&object, &keys, master) {
            return Ok(());
        }
        check_replaceable(&object, &revisions, &keys, node, force)?;
    }
    Ok(Box::pin(node.put_keys(keys.encode(&master.key).into())).await?)
}

/// The problem with what to do about it, which is told long after the error.
fn told(error: &GatewayError) -> String {
    let message = error.full_message();
    error.hint().map_or_else(|| message.clone(), |hint| format!("{message} ({hint})"))
}

/// The object that is there. One that cannot be read is in the way, unless it is replaced with `force`.
async fn read_object(node: &DataNode, force: bool) -> Result<Option<Bytes>, GatewayError> {
    match Box::pin(node.read_keys()).await {
        Ok(object) => Ok(object),
        Err(error) if force => {
            tracing::warn!(node = %node.name(), %error, "the keys on a data node cannot be read; they are replaced");
            Ok(None)
        }
        Err(error @ PoolError::Corrupt { .. }) => {
            Err(GatewayError::refused(ErrorKind::Corrupt, error.to_string(), REPLACE_BY_HAND))
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether `object` shows all that it should: also a key file that got, lost or changed its passphrase outside of this program is a change.
fn is_present(object: &[u8], keys: &PublishedKeys, master: &Master) -> bool {
    PublishedKeys::decode(object).is_ok_and(|found| found == *keys)
        && PublishedKeys::is_authentic(object, &master.key)
}

/// Fails when `object` may not be replaced by `keys`.
fn check_replaceable(
    object: &[u8],
    revisions: &Revisions,
    keys: &PublishedKeys,
    node: &DataNode,
    force: bool,
) -> Result<(), GatewayError> {
    let name = node.name();
    let refused = |what: String, next: &str| Err(GatewayError::refused(ErrorKind::Conflict, what, next));
    match PublishedKeys::decode(object) {
        Ok(found) if found.site != keys.site => refused(
            format!("the keys on {name} are of site {}", found.site),
            "give each site its own bucket or prefix",
        ),
        Ok(found) if force || revisions.may_replace(found.revision) => Ok(()),
        Ok(found) => {
            let (theirs, ours) = (found.revision.number, keys.revision.number);
            let what = format!(
                "the keys on {name} are of change {theirs}, which is none that this catalog (at change {ours}) knows of its \
                 past: it seems to be put back from an old copy, or the node was away for more than {REVISIONS_MAX} changes"
            );
            refused(what, "restore a newer catalog; to go on with this one, run `cairn key publish --force`")
        }
        Err(_) if force => Ok(()),
        Err(PublishedError::Newer(version)) => refused(
            format!("the keys on {name} have version {version}, which this version does not know"),
            "use a later version of Cairn, or replace them with `cairn key publish --force`",
        ),
        Err(PublishedError::Damaged(reason)) => {
            tracing::warn!(node = %name, reason, "the keys on a data node are damaged; writing them again");
            Ok(())
        }
    }
}

async fn present_keys(
    catalog: &dyn Catalog,
    rows: &[KeyRow],
    revision: Revision,
    site: SiteId,
    master: &Master,
) -> Result<PublishedKeys, GatewayError> {
    let mut domains = Vec::new();
    for domain in catalog.domains().await? {
        let purpose = DomainRow::key_purpose(domain.id);
        let row = rows.iter().find(|row| row.purpose == purpose && row.wrapped_by == master.id());
        // A wrapped key of the wrong length opens nothing, here or in the catalog, and would spoil the object for the others.
        if let Some(row) = row.filter(|row| row.wrapped.len() == crypto::WRAPPED_KEY_BYTES) {
            domains.push(PublishedDomain {
                id: domain.id,
                name: domain.name.to_string(),
                encryption: domain.encryption,
                key_id: row.key_id,
                wrapped: row.wrapped.clone(),
            });
        }
    }
    let key_file = match &master.protection {
        Protection::Passphrase(sealed) => Some(sealed.to_string()),
        Protection::Plain | Protection::Command => None,
    };
    Ok(PublishedKeys { site, revision, master: master.id(), key_file, domains })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::SeededEntropy;

    fn revisions(count: usize) -> Revisions {
        let entropy = SeededEntropy::new(1);
        (0..count).fold(Revisions::default(), |revisions, _| revisions.next(&entropy))
    }

    #[test]
    fn revisions_are_read_back_from_their_row() {
        let master = KeyId::from_bytes([1; 8]);
        for count in [0, 1, 5, 300] {
            let revisions = revisions(count);
            let row = revisions.row(master, WallTime::from_unix_millis(0));
            assert_eq!(Revisions::of(&[row], master), revisions);
            assert_eq!(revisions.current().number, count as u64);
            assert!(revisions.0.len() <= REVISIONS_MAX);
        }
    }

    #[test]
    fn what_was_published_joins_what_a_catalog_remembers() {
        let (old, new) = (revisions(3), revisions(4).current());
        let joined = old.clone().with(new);
        assert_eq!(joined.current(), new);
        assert!(joined.may_replace(old.current()) && joined.may_replace(revisions(1).current()));
        assert_eq!(joined.clone().with(revisions(2).current()), joined, "it knows of it");
        assert!(revisions(1000).with(new).0.len() <= REVISIONS_MAX);
    }

    #[test]
    fn only_the_past_of_a_catalog_is_replaced() {
        let entropy = SeededEntropy::new(9);
        let old = revisions(3);
        let new = old.next(&entropy).next(&entropy);
        assert!(new.may_replace(old.current()));
        assert!(!old.may_replace(new.current()));
        // The old catalog goes on and overtakes by number.
        let other = (0..4).fold(old, |revisions, _| revisions.next(&SeededEntropy::new(77)));
        assert!(other.current().number > new.current().number);
        assert!(!other.may_replace(new.current()));
    }

    #[test]
    fn what_is_older_than_a_catalog_remembers_is_not_taken_for_its_past() {
        // Another copy of the catalog may have written it.
        assert!(!revisions(1000).may_replace(revisions(2).current()));
        assert!(!revisions(1000).may_replace(Revision { number: 0, tag: [1; 8] }));
        assert!(revisions(1000).may_replace(Revisions::default().current()));
    }
}
