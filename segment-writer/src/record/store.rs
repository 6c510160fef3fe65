//! Where the record is: whole on every node that answers, read from whichever node has it.
//!
//! - An object is *everywhere* when it is on one node more than the pool's profile survives the loss of. Nodes that are late or away are not waited for when others suffice;
//!   they get what they lack with a later record.
//! - It is *durable* with fewer copies, too, while all other nodes are silent or were given up: with as many as a segment needs to be published (the losses that one must still
//!   survive, and one), or, where a list takes fewer answers than that, with those. Otherwise one missing node of `replica:2` on two would end all records, and nobody could take over the
//!   site from the other. A node that is full is not silent: room is made on it.
//! - What is durable and not everywhere may be lost with its copies, within what the profile survives. Then a node that missed it has an older record, so whoever counts on a durable one
//!   must leave alone what older ones need on the nodes that lack it ([`RecordStore::lacking`]): objects that are to be deleted, older manifests and their pieces. With that the older
//!   record is whole on what is left: the lost nodes are all that anything was deleted on.
//! - A list counts when no more nodes are silent than the profile survives the loss of: what is everywhere is in it, and what is durable on fewer nodes unless all of those are silent.
//! - Nodes that were given up are left out of all of this.

use super::put::Putting;
use super::{Manifest, ManifestId, Piece, PieceName, RecordError, RecordKey, SealedPiece, VERSION};
use crate::error::{Action, PoolError};
use crate::pool::{DataNode, Direction, Member, NodeState, Pool};
use bytes::Bytes;
use cairn_model::{Clock, Entropy, Monotonic, NodeId, boxed};
use futures::StreamExt;
use futures::future::{BoxFuture, join_all};
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const PIECES: &str = "record/pieces";
const MANIFESTS: &str = "record/manifests";
const RESERVE: &str = "record/reserve";
const RESERVE_NAME: &str = "1";
/// What a record of a pool that is full can count on: some pieces. A site whose record changes more between two needs space from elsewhere.
const RESERVE_BYTES: usize = 4 << 20;

/// Longest object of a record that is read.
const OBJECT_BYTES_MAX: u64 = 64 << 20;

/// How long those are waited for that are not needed.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a node may take for the reserve.
const RESERVE_PATIENCE: Duration = Duration::from_secs(30);
/// How long one may take to delete a manifest that is in somebody's way, and how long it is tried again.
const WITHDRAW_PATIENCE: Duration = Duration::from_secs(10);
const WITHDRAW_LIMIT: Duration = Duration::from_mins(1);

/// The nodes that have an object.
pub type Copies = BTreeSet<NodeId>;

fn piece_key(name: PieceName) -> String {
    format!("{PIECES}/{name}")
}

fn manifest_key(id: ManifestId) -> String {
    format!("{MANIFESTS}/{id}")
}

/// The objects of a pool's records, on the nodes that answered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecordListing {
    pub manifests: BTreeMap<ManifestId, Copies>,
    /// How long the object is on each of them.
    pub pieces: BTreeMap<PieceName, BTreeMap<NodeId, u64>>,
}

/// The record of a site in its pool.
#[derive(Debug)]
pub struct RecordStore {
    pool: Arc<Pool>,
    key: RecordKey,
    pub(super) clock: Arc<dyn Clock>,
    /// Nodes that let puts of this record wait too long.
    pub(super) late: Mutex<Copies>,
}

enum Event<T> {
    Answer(NodeId, Result<T, PoolError>),
    Late,
}

type Events<'a, T> = FuturesUnordered<BoxFuture<'a, Event<T>>>;

impl RecordStore {
    pub fn new(pool: Arc<Pool>, key: RecordKey) -> Self {
        let clock = Arc::clone(&pool.ports().clock);
        Self { pool, key, clock, late: Mutex::default() }
    }

    pub fn key(&self) -> &RecordKey {
        &self.key
    }

    fn members(&self) -> Vec<Member> {
        self.pool.members().into_iter().filter(|member| member.state != NodeState::Failed).collect()
    }

    /// Whether as many nodes have an object as it takes, as things are.
    pub fn is_durable(&self, copies: &Copies) -> bool {
        let (members, now) = (self.members(), self.clock.now());
        let silent = |member: &Member| copies.contains(&member.node.id()) || self.is_silent(member, now);
        self.is_everywhere(copies)
            || (count(&members, copies) >= self.least(&members) && members.iter().all(silent))
    }

    /// Whether an object is on more nodes than may be lost.
    pub fn is_everywhere(&self, copies: &Copies) -> bool {
        count(&self.members(), copies) >= self.needed()
    }

    /// The nodes that do not have an object.
    pub fn lacking(&self, copies: &Copies) -> Copies {
        let ids = self.members().into_iter().map(|member| member.node.id());
        ids.filter(|id| !copies.contains(id)).collect()
    }

    /// Whether one of these nodes takes puts, as far as is known.
    pub fn is_one_well(&self, nodes: &Copies) -> bool {
        let now = self.clock.now();
        let is_well = |member: &Member| nodes.contains(&member.node.id()) && !self.is_silent(member, now);
        self.members().iter().any(is_well)
    }

    pub(super) fn is_silent(&self, member: &Member, now: Monotonic) -> bool {
        let health = member.node.health();
        // Whoever says no is not silent.
        !health.is_refusing(now)
            && (self.late.lock().contains(&member.node.id()) || !health.answers_puts(now))
    }

    /// Copies that count while all other nodes are silent.
    pub(super) fn least(&self, members: &[Member]) -> usize {
        let tolerates = self.pool.profile().tolerates();
        let of_segments = self.pool.settings().spare_losses.min(tolerates) + 1;
        of_segments.min(listed(members.len(), tolerates))
    }

    pub(super) fn needed(&self) -> usize {
        self.pool.profile().tolerates() + 1
    }

    /// Stores a piece on the nodes that do not have it, until it is durable. May be repeated, and dropped at any point: what is there under the name is this piece.
    #[boxed]
    pub async fn put_piece(&self, piece: &SealedPiece, copies: &mut Copies) -> Result<(), PoolError> {
        self.put(&piece_key(piece.name), &piece.object, copies).await
    }

    /// Stores a manifest when all its pieces are durable, until it is. After an error it may be there or not.
    #[boxed]
    pub async fn put_manifest(
        &self,
        manifest: &Manifest,
        entropy: &dyn Entropy,
        copies: &mut Copies,
    ) -> Result<(), PoolError> {
        self.put(&manifest_key(manifest.id), &self.key.seal_manifest(manifest, entropy).into(), copies).await
    }

    async fn put(&self, key: &str, object: &Bytes, copies: &mut Copies) -> Result<(), PoolError> {
        let members = self.members();
        Putting::new(self, &members, key, object, copies).run().await
    }

    pub(super) fn too_few(&self, verb: &'static str, key: &str) -> PoolError {
        let profile = self.pool.profile();
        PoolError::Unavailable {
            node: "the pool".into(),
            action: Action { verb, key: key.to_owned() },
            cause: format!("with {profile} an object of the record is to be on {} nodes", self.needed()),
            source: None,
        }
    }

    /// Deletes a piece that no manifest names from the nodes that have it, which are `copies` afterwards no more. One that cannot delete it now is left, and noted
    /// as `away`: those that are noted are not asked. Whether it is there still is not known then.
    #[boxed]
    pub async fn delete_piece(&self, name: PieceName, copies: &mut Copies, away: &mut Copies) {
        self.delete(&piece_key(name), copies, away).await;
    }

    /// The same for a manifest; only after that may what it alone names be deleted.
    #[boxed]
    pub async fn delete_manifest(&self, id: ManifestId, copies: &mut Copies, away: &mut Copies) {
        self.delete(&manifest_key(id), copies, away).await;
    }

    async fn delete(&self, key: &str, copies: &mut Copies, away: &mut Copies) {
        let members = self.members();
        copies.retain(|copy| members.iter().any(|member| member.node.id() == *copy));
        let now = self.clock.now();
        let asked = members.iter().filter(|member| {
            let id = member.node.id();
            if !member.node.health().admits(now) {
                away.insert(id);
            }
            copies.contains(&id) && !away.contains(&id)
        });
        let asked: Vec<&Member> = asked.collect();
        let deletes = asked.into_iter().map(|member| async {
            let delete = cairn_model::timeout(&*self.clock, PATIENCE, member.node.delete(key)).await;
            (member.node.id(), matches!(delete, Ok(Ok(()))))
        });
        for (node, is_gone) in join_all(deletes).await {
            if is_gone {
                copies.remove(&node);
            } else {
                away.insert(node);
            }
        }
    }

    /// Deletes a manifest from every node that is not given up, and waits for them: whoever put it does not know where it is if an answer was lost, and is in nobody's way once it is gone. An error
    /// names those that did not say so in time.
    #[boxed]
    pub async fn withdraw_manifest(&self, id: ManifestId) -> Result<(), PoolError> {
        let (key, began) = (manifest_key(id), self.clock.now());
        let mut left = self.members();
        loop {
            let deletes = left.iter().map(|member| async {
                let delete =
                    cairn_model::timeout(&*self.clock, WITHDRAW_PATIENCE, member.node.delete(&key)).await;
                matches!(delete, Ok(Ok(())))
            });
            let are_gone = join_all(deletes).await;
            let mut are_gone = are_gone.into_iter();
            left.retain(|_| are_gone.next() == Some(false));
            if left.is_empty() {
                return Ok(());
            }
            if self.clock.now().since(began) >= WITHDRAW_LIMIT {
                break;
            }
            self.clock.sleep(PATIENCE).await;
        }
        let names: Vec<&str> = left.iter().map(|member| &**member.node.name()).collect();
        Err(PoolError::Unavailable {
            node: names.join(", ").into(),
            action: Action { verb: "delete", key },
            cause: "it did not say in time that it is gone".to_owned(),
            source: None,
        })
    }

    /// The nodes that have the reserve: an object that takes room, which is deleted when a record has none.
    #[boxed]
    pub async fn reserves(&self) -> Result<Copies, PoolError> {
        let mut found = self.list(RESERVE, PATIENCE, |name| (name == RESERVE_NAME).then_some(())).await?;
        Ok(found.remove(&()).unwrap_or_default().into_keys().collect())
    }

    /// Puts the reserve on nodes that lack it and have room. The next call tries the others again.
    #[boxed]
    pub async fn put_reserve(&self, entropy: &dyn Entropy, copies: &mut Copies) {
        // Nothing below can make it smaller.
        let mut bytes = vec![0; RESERVE_BYTES];
        entropy.fill(&mut bytes);
        let object = [Bytes::from(bytes)];
        let (key, now) = (format!("{RESERVE}/{RESERVE_NAME}"), self.clock.now());
        let members = self.members();
        let lacking = members.iter().filter(|member| {
            let health = member.node.health();
            !copies.contains(&member.node.id()) && health.takes_puts(now) && health.admits(now)
        });
        let puts = lacking.map(|member| async {
            member.node.health().asked(Direction::Put, now);
            let put = cairn_model::timeout(&*self.clock, RESERVE_PATIENCE, member.node.put(&key, &object));
            (member.node.id(), matches!(put.await, Ok(Ok(()))))
        });
        let puts: Vec<_> = puts.collect();
        copies
            .extend(join_all(puts).await.into_iter().filter(|(_, is_there)| *is_there).map(|(node, _)| node));
    }

    /// Deletes the reserve from all nodes that answer.
    #[boxed]
    pub async fn delete_reserve(&self) {
        let mut copies: Copies = self.members().iter().map(|member| member.node.id()).collect();
        self.delete(&format!("{RESERVE}/{RESERVE_NAME}"), &mut copies, &mut Copies::new()).await;
    }

    /// The manifests of nodes that answer, the oldest first. An error when too few do.
    #[boxed]
    pub async fn manifests(&self) -> Result<BTreeMap<ManifestId, Copies>, PoolError> {
        let found = self.list(MANIFESTS, PATIENCE, ManifestId::parse).await?;
        Ok(found.into_iter().map(|(id, nodes)| (id, nodes.into_keys().collect())).collect())
    }

    /// The newest manifest of a catalog of a higher incarnation than that, if there is one: the site is not this one's any more. An error where nobody can tell: also when a newer version of this
    /// program put it (`NewerFormat`).
    #[boxed]
    pub async fn newest_above(&self, incarnation: u64) -> Result<Option<ManifestId>, PoolError> {
        let found = self.list(MANIFESTS, Duration::ZERO, ManifestId::parse).await?;
        for (id, nodes) in found.into_iter().rev().take_while(|(id, _)| id.incarnation > incarnation) {
            if self.open_manifest(id, &nodes.into_keys().collect()).await?.is_some() {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// The manifest, from one of the nodes that list it. `None`: what they have under that name is no manifest of this site, or is damaged on all of them. A name says nothing: anybody who can
    /// write to one node, or a node that lies, can make one up. What opens was sealed with the site's key. An error when none has it, and one of the nodes does not answer or has what says that a newer
    /// version of this program put it: then nobody knows. Such a one may have taken the site over, so it is not nothing, although nothing vouches for it.
    #[boxed]
    pub async fn open_manifest(
        &self,
        id: ManifestId,
        listed: &Copies,
    ) -> Result<Option<Manifest>, PoolError> {
        let now = self.clock.now();
        let mut members = self.members();
        members.retain(|member| listed.contains(&member.node.id()));
        members.sort_by_key(|member| !member.node.health().admits(now));
        let mut silent = None;
        for member in &members {
            let open = |object: &[u8]| self.key.open_manifest(id, object);
            match read_from(&member.node, &manifest_key(id), "a manifest of the record", open).await {
                Ok(manifest) => return Ok(Some(manifest)),
                Err(error) if is_no_object(&error) && !matches!(error, PoolError::NewerFormat { .. }) => {
                    tracing::warn!(%error, manifest = %id, "what has the name of a checkpoint is none, and is ignored");
                }
                Err(error) => silent = Some(worse(silent, error)),
            }
        }
        silent.map_or(Ok(None), Err)
    }

    /// All there is on nodes that answer. An error when too few do.
    #[boxed]
    pub async fn listing(&self) -> Result<RecordListing, PoolError> {
        let pieces = self.list(PIECES, PATIENCE, PieceName::parse).await?;
        Ok(RecordListing { manifests: self.manifests().await?, pieces })
    }

    /// The objects below `prefix`, by the last parts of their keys.
    async fn list<T: Ord>(
        &self,
        prefix: &str,
        patience: Duration,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<BTreeMap<T, BTreeMap<NodeId, u64>>, PoolError> {
        let members = self.members();
        let needed = listed(members.len(), self.pool.profile().tolerates());
        // Those that likely do not answer are asked when it cannot be done without them.
        let now = self.clock.now();
        let (mut asked, doubtful): (Vec<_>, Vec<_>) =
            members.iter().partition(|member| member.node.health().admits(now));
        if asked.len() < needed {
            asked.extend(doubtful);
        }
        let mut running = asked.len();
        let mut events: Events<'_, Vec<(String, u64)>> = FuturesUnordered::new();
        for member in asked {
            member.node.health().asked(Direction::Get, now);
            let node = Arc::clone(&member.node);
            events.push(Box::pin(async move { Event::Answer(node.id(), node.list(prefix).await) }));
        }
        let mut found: BTreeMap<T, BTreeMap<NodeId, u64>> = BTreeMap::new();
        let (mut answers, mut failed) = (0, None);
        while running > 0 {
            match events.next().await {
                Some(Event::Answer(node, answer)) => {
                    running -= 1;
                    match answer {
                        Ok(objects) => {
                            answers += 1;
                            for (key, length_bytes) in &objects {
                                let name = key.rsplit_once('/').and_then(|(_, name)| parse(name));
                                if let Some(name) = name {
                                    found.entry(name).or_default().insert(node, *length_bytes);
                                }
                            }
                        }
                        Err(error) => failed = Some(worse(failed, error)),
                    }
                    if answers == needed {
                        let sleep = self.clock.sleep(patience);
                        events.push(Box::pin(async {
                            sleep.await;
                            Event::Late
                        }));
                    }
                }
                Some(Event::Late) | None => break,
            }
        }
        if answers >= needed {
            return Ok(found);
        }
        Err(failed.unwrap_or_else(|| self.too_few("list", prefix)))
    }

    /// A manifest, from the first node that has it whole.
    #[boxed]
    pub async fn read_manifest(&self, id: ManifestId) -> Result<Manifest, PoolError> {
        self.read(&manifest_key(id), "a manifest of the record", |object| self.key.open_manifest(id, object))
            .await
    }

    /// A piece, from the first node that has it whole.
    #[boxed]
    pub async fn read_piece(&self, name: PieceName) -> Result<Piece, PoolError> {
        self.read(&piece_key(name), "a piece of the record", |object| self.key.open_piece(name, object)).await
    }

    /// Whether a piece is whole on enough nodes; an error says that nobody knows. Of each copy that is not, and was read, the node is added to `bad`. `turn` says where to begin:
    /// with growing numbers all copies are read in time.
    #[boxed]
    pub async fn check_piece(
        &self,
        name: PieceName,
        copies: &Copies,
        turn: usize,
        bad: &mut Copies,
    ) -> Result<bool, PoolError> {
        let members = self.members();
        let mut members: Vec<&Member> =
            members.iter().filter(|member| copies.contains(&member.node.id())).collect();
        if !members.is_empty() {
            let first = turn % members.len();
            members.rotate_left(first);
        }
        let now = self.clock.now();
        members.sort_by_key(|member| !member.node.health().admits(now));
        // Of what is durable and not everywhere, all.
        let needed = if self.is_everywhere(copies) { self.needed() } else { members.len().max(1) };
        let (mut whole, mut silent) = (0, None);
        for member in members {
            if whole >= needed {
                break;
            }
            let open = |object: &[u8]| self.key.open_piece(name, object);
            match read_from(&member.node, &piece_key(name), "a piece of the record", open).await {
                Ok(_) => whole += 1,
                // What this program's own manifest names is not of a newer format.
                Err(error) if is_no_object(&error) => {
                    tracing::warn!(%error, "a copy of a piece of the catalog's record is not good");
                    bad.insert(member.node.id());
                }
                Err(error) => silent = Some(error),
            }
        }
        match silent {
            _ if whole >= needed => Ok(true),
            Some(error) => Err(error),
            None => Ok(false),
        }
    }

    async fn read<T>(
        &self,
        key: &str,
        what: &str,
        open: impl Fn(&[u8]) -> Result<T, RecordError>,
    ) -> Result<T, PoolError> {
        let now = self.clock.now();
        let mut members = self.members();
        members.sort_by_key(|member| !member.node.health().admits(now));
        let mut failed = None;
        for member in &members {
            match read_from(&member.node, key, what, &open).await {
                Ok(read) => return Ok(read),
                Err(error) => failed = Some(worse(failed, error)),
            }
        }
        Err(failed.unwrap_or_else(|| self.too_few("get", key)))
    }
}

/// Which of two failures says more of what to do: no room before no answer, that before damage, and absence last.
pub(super) fn worse(one: Option<PoolError>, other: PoolError) -> PoolError {
    let rank = |error: &PoolError| match error {
        PoolError::OutOfSpace { .. } => 0,
        PoolError::NotFound { .. } => 3,
        error if error.is_of_object() => 2,
        _ => 1,
    };
    match one {
        Some(one) if rank(&one) <= rank(&other) => one,
        _ => other,
    }
}

/// Whether a node answered, and what it has is not what it should be: damaged, gone, or of a version that nothing vouches for.
fn is_no_object(error: &PoolError) -> bool {
    error.is_of_object() || matches!(error, PoolError::NotFound { .. } | PoolError::NewerFormat { .. })
}

/// Answers that make a list count.
fn listed(members: usize, tolerates: usize) -> usize {
    members.saturating_sub(tolerates).max(1)
}

pub(super) fn count(members: &[Member], copies: &Copies) -> usize {
    members.iter().filter(|member| copies.contains(&member.node.id())).count()
}

async fn read_from<T>(
    node: &DataNode,
    key: &str,
    what: &str,
    open: impl Fn(&[u8]) -> Result<T, RecordError>,
) -> Result<T, PoolError> {
    let (object, size) = node.get_suffix(key, OBJECT_BYTES_MAX).await?;
    let corrupt = |reason: String| PoolError::Corrupt {
        node: Arc::clone(node.name()),
        key: key.to_owned(),
        part: what.to_owned(),
        reason,
    };
    if object.len() as u64 != size {
        return Err(corrupt(format!("it has {size} bytes, at most {OBJECT_BYTES_MAX} are read")));
    }
    open(&object).map_err(|error| match error {
        RecordError::Damaged(damaged) => corrupt(damaged.to_string()),
        RecordError::Newer(found) => PoolError::NewerFormat {
            node: Arc::clone(node.name()),
            key: key.to_owned(),
            found: u64::from(found),
            known: u64::from(VERSION),
        },
    })
}

#[cfg(test)]
mod tests;
