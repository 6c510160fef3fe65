//! What the pool has of records, and what of that is not needed any more.

use crate::error::EngineError;
use cairn_model::{GatewayId, Monotonic, NodeId};
use cairn_segment_writer::{Copies, Manifest, ManifestId, PieceName, PoolError, RecordStore, SealedPiece};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A manifest that is in the pool, by its name.
#[derive(Debug)]
pub(super) struct KnownManifest {
    pub(super) copies: Copies,
    pub(super) content: Content,
}

/// What is behind the name of a manifest.
#[derive(Debug)]
pub(super) enum Content {
    /// What it names, and how long that is. It opened, so the site's own gateway put it.
    Pieces(BTreeMap<PieceName, u64>),
    /// Nothing that counts: it is damaged on every node that has it, or was never a manifest. It says nothing of who has the site, and nothing is kept for it.
    Nothing,
    /// It could not be read: nobody knows.
    Unknown(Arc<PoolError>),
}

impl KnownManifest {
    /// What the nodes have of it that list it.
    pub(super) async fn open(store: &RecordStore, id: ManifestId, copies: Copies) -> Self {
        let content = match store.open_manifest(id, &copies).await {
            Ok(Some(manifest)) => Content::Pieces(pieces_of(&manifest)),
            Ok(None) => Content::Nothing,
            Err(error) => Content::Unknown(Arc::new(error)),
        };
        Self { copies, content }
    }

    fn pieces(&self) -> Option<&BTreeMap<PieceName, u64>> {
        match &self.content {
            Content::Pieces(pieces) => Some(pieces),
            Content::Nothing | Content::Unknown(_) => None,
        }
    }
}

/// What the pool has of records, as far as the nodes answered.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) found_at: Monotonic,
    pub(super) manifests: BTreeMap<ManifestId, KnownManifest>,
    /// The last one that this gateway put.
    pub(super) taken: Option<ManifestId>,
    pub(super) pieces: BTreeMap<PieceName, Copies>,
    /// Where pieces may be that were to be deleted, or that nothing names, and how long what is there is; 0: nobody knows.
    leftovers: BTreeMap<PieceName, BTreeMap<NodeId, u64>>,
}

/// The catalog of this gateway.
#[derive(Debug)]
pub(super) struct Ours {
    pub(super) incarnation: u64,
    /// The last number that it gave to a checkpoint.
    pub(super) begun: u64,
    /// All that it ever knew, this one among them.
    pub(super) gateways: BTreeSet<GatewayId>,
}

impl Ours {
    /// Whether the catalog may go on where the pool has this manifest. A number is durable in the catalog before anything of its checkpoint is put: where the pool has a higher one, the
    /// catalog is an older copy of itself. Where the pool has one of the same incarnation by a gateway that the catalog never knew, another catalog was made of the same checkpoint, since each
    /// recovery makes a gateway of its own. Of two that take over at the same time, each puts its manifest before it looks for others: one of them at least sees the other's, and ends
    /// before it serves anything. It takes its manifest away then. Where it cannot, it says on which nodes, and the one that went on is held up here until somebody deletes it there or recovers again: it
    /// serves, and takes no checkpoints, so nothing is deleted from the pool, and what no batch tells is not recovered.
    pub(super) fn check(&self, id: ManifestId) -> Result<(), EngineError> {
        if id.incarnation > self.incarnation {
            return Err(EngineError::Superseded(id));
        }
        let is_ours = id.number <= self.begun && self.gateways.contains(&id.gateway);
        if id.incarnation == self.incarnation && !is_ours {
            return Err(EngineError::OlderCatalog(id));
        }
        Ok(())
    }
}

pub(super) fn pieces_of(manifest: &Manifest) -> BTreeMap<PieceName, u64> {
    manifest.pieces.iter().map(|piece| (piece.name, piece.length_bytes)).collect()
}

impl Known {
    pub(super) async fn find(store: &RecordStore, now: Monotonic) -> Result<Self, EngineError> {
        let listing = store.listing().await?;
        let mut manifests = BTreeMap::new();
        for (id, copies) in listing.manifests {
            manifests.insert(id, KnownManifest::open(store, id, copies).await);
        }
        let mut lengths = BTreeMap::new();
        for pieces in manifests.values().filter_map(KnownManifest::pieces) {
            lengths.extend(pieces);
        }
        let mut known = Self {
            found_at: now,
            manifests,
            taken: None,
            pieces: BTreeMap::new(),
            leftovers: BTreeMap::new(),
        };
        for (name, nodes) in listing.pieces {
            // One that was cut short is put again; of one that nothing names nobody knows how long it should be before it is at hand (`copies_of`).
            let is_whole = |(_, length): &(_, u64)| lengths.get(&name) == Some(length);
            let (whole, other): (BTreeMap<_, _>, _) = nodes.into_iter().partition(&is_whole);
            known.pieces.insert(name, whole.into_keys().collect());
            known.leftovers.insert(name, other);
        }
        Ok(known)
    }

    /// Fails when the catalog is not that of the site any more, and when nobody can tell.
    pub(super) fn check(&self, ours: &Ours) -> Result<(), EngineError> {
        self.manifests.iter().rev().try_for_each(|(id, manifest)| match &manifest.content {
            Content::Pieces(_) => ours.check(*id),
            Content::Nothing => Ok(()),
            Content::Unknown(error) => ours.check(*id).map_err(|_| EngineError::Pool(Arc::clone(error))),
        })
    }

    /// The nodes that have a piece. What a checkpoint put that did not come to its end is among them: its name tells its content, and its length that it is all there.
    pub(super) fn copies_of(&self, piece: &SealedPiece) -> Copies {
        let mut copies = self.pieces.get(&piece.name).cloned().unwrap_or_default();
        let left = self.leftovers.get(&piece.name).into_iter().flatten();
        copies.extend(left.filter(|(_, length)| **length == piece.length_bytes()).map(|(node, _)| *node));
        copies
    }

    /// These nodes have the piece.
    pub(super) fn brought(&mut self, name: PieceName, copies: Copies) {
        self.pieces.insert(name, copies);
    }

    pub(super) fn is_durable(&self, store: &RecordStore, manifest: &KnownManifest) -> bool {
        let has = |name| self.pieces.get(&name).is_some_and(|copies| store.is_durable(copies));
        store.is_durable(&manifest.copies)
            && manifest.pieces().is_some_and(|pieces| pieces.keys().copied().all(has))
    }

    /// The nodes that have all of the checkpoint that was put last. `None`: each of its objects is on more nodes than may be lost.
    pub(super) fn taken_on(&self, store: &RecordStore) -> Option<Copies> {
        self.on(store, self.manifests.get(&self.taken?)?)
    }

    /// The same for any.
    fn on(&self, store: &RecordStore, manifest: &KnownManifest) -> Option<Copies> {
        let none = Copies::new();
        let of_pieces = manifest.pieces().into_iter().flat_map(BTreeMap::keys);
        let of_pieces = of_pieces.map(|name| self.pieces.get(name).unwrap_or(&none));
        let all: Vec<&Copies> = of_pieces.chain([&manifest.copies]).collect();
        if all.iter().all(|copies| store.is_everywhere(copies)) {
            return None;
        }
        Some(all.iter().fold(manifest.copies.clone(), |on, copies| &on & *copies))
    }

    /// The manifest with which a recovery begins, or the oldest with which it may where none is durable. `None`: there is none.
    pub(super) fn to_recover_from(&self, store: &RecordStore) -> Option<ManifestId> {
        let counts =
            |(_, manifest): &(&ManifestId, &KnownManifest)| !matches!(manifest.content, Content::Nothing);
        let oldest = || self.manifests.iter().find(counts).map(|(id, _)| *id);
        self.newest(store).map(|(id, _)| id).or_else(oldest)
    }

    /// The newest durable manifest and what it names.
    fn newest(&self, store: &RecordStore) -> Option<(ManifestId, &BTreeMap<PieceName, u64>)> {
        let newest = self.manifests.iter().rev().find(|(_, manifest)| self.is_durable(store, manifest));
        newest.and_then(|(id, manifest)| Some((*id, manifest.pieces()?)))
    }

    /// What the newest durable manifest is made of, and where that is.
    pub(super) fn newest_pieces(
        &self,
        store: &RecordStore,
    ) -> Option<(ManifestId, Vec<(PieceName, Copies)>)> {
        let (id, pieces) = self.newest(store)?;
        Some((id, pieces.keys().map(|name| (*name, self.pieces[name].clone())).collect()))
    }

    /// These copies of a piece are not good: the next checkpoint that needs it puts it there again.
    pub(super) fn lack(&mut self, name: PieceName, bad: &Copies) {
        if let Some(copies) = self.pieces.get_mut(&name) {
            copies.retain(|node| !bad.contains(node));
        }
        if let Some(left) = self.leftovers.get_mut(&name) {
            left.retain(|node, _| !bad.contains(node));
        }
    }

    /// Whether a piece is needed, and that node does not have it.
    pub(super) fn lacks(&self, name: PieceName, node: NodeId) -> bool {
        self.pieces.get(&name).is_some_and(|copies| !copies.contains(&node))
    }

    /// The manifest cannot be read by anybody.
    pub(super) fn lose(&mut self, id: ManifestId) {
        if let Some(manifest) = self.manifests.get_mut(&id) {
            manifest.content = Content::Nothing;
        }
    }

    /// Whether all that the newest durable manifest names can be read, from as many nodes as it takes.
    pub(super) async fn is_newest_whole(&self, store: &RecordStore) -> Result<bool, EngineError> {
        let Some((id, pieces)) = self.newest(store) else { return Ok(false) };
        store.read_manifest(id).await?;
        for name in pieces.keys() {
            if !store.check_piece(*name, &self.pieces[name], 0, &mut Copies::new()).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Deletes what is not needed any more, beside so many durable manifests and those that are newer. What cannot be deleted is garbage for the next time.
    pub(super) async fn tidy(&mut self, store: &RecordStore, kept: usize) {
        let durable = self.manifests.iter().rev().filter(|(_, manifest)| self.is_durable(store, manifest));
        let Some((oldest_kept, _)) = durable.take(kept).last() else { return };
        let oldest_kept = *oldest_kept;
        // Nodes that lack the newest one keep what they have: should the others be lost, it is what there is.
        let newest = self.newest(store).and_then(|(id, _)| self.manifests.get(&id));
        let on = newest.and_then(|newest| self.on(store, newest));
        let mut away = on.map(|on| store.lacking(&on)).unwrap_or_default();
        for (id, manifest) in self.manifests.range_mut(..oldest_kept) {
            store.delete_manifest(*id, &mut manifest.copies, &mut away).await;
        }
        self.manifests.retain(|id, manifest| *id >= oldest_kept || !manifest.copies.is_empty());
        let mut needed = BTreeSet::new();
        for (_, manifest) in self.manifests.range(oldest_kept..) {
            match &manifest.content {
                Content::Pieces(named) => needed.extend(named.keys().copied()),
                Content::Nothing => {}
                // What it needs is not known: nothing is garbage until it is gone.
                Content::Unknown(_) => return,
            }
        }
        for (name, copies) in self.pieces.extract_if(.., |name, _| !needed.contains(name)) {
            self.leftovers.entry(name).or_default().extend(copies.into_iter().map(|node| (node, 0)));
        }
        for (name, copies) in &mut self.leftovers {
            // Needed again: it is put again where it may be gone.
            let has = self.pieces.get(name);
            copies.retain(|node, _| has.is_none_or(|has| !has.contains(node)));
            if has.is_none() {
                let mut left: Copies = copies.keys().copied().collect();
                store.delete_piece(*name, &mut left, &mut away).await;
                // It may be gone where the answer was lost.
                *copies = left.into_iter().map(|node| (node, 0)).collect();
            }
        }
        self.leftovers.retain(|_, copies| !copies.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::crypto::{Encryption, SecretKey};
    use cairn_model::{Clock, DomainId, ErrorKind, Kinded, Ports, SiteId, SystemClock};
    use cairn_segment_writer::{DataNode, Domain, Member, Pool, PoolSettings, RecordKey, RequestPolicy};
    use object_store::memory::InMemory;

    #[test]
    fn a_catalog_goes_on_from_its_own_checkpoints_and_those_before_it_alone() {
        let (own, former) = (GatewayId::from_bytes([1; 16]), GatewayId::from_bytes([2; 16]));
        let ours = |begun| Ours { incarnation: 2, begun, gateways: [own, former].into() };
        let id = |incarnation, number| ManifestId { incarnation, number, gateway: own };
        assert!(ours(7).check(id(2, 7)).is_ok(), "its own");
        assert!(ours(7).check(id(2, 5)).is_ok(), "those begun after it failed");
        assert!(ours(7).check(ManifestId { gateway: former, ..id(2, 5) }).is_ok(), "of the host of before");
        let other = GatewayId::from_bytes([3; 16]);
        assert!(ours(0).check(ManifestId { gateway: other, ..id(1, 900) }).is_ok(), "it was made of that");
        assert!(matches!(ours(7).check(id(2, 8)), Err(EngineError::OlderCatalog(_))));
        assert!(matches!(ours(0).check(id(2, 1)), Err(EngineError::OlderCatalog(_))), "it is a copy");
        let rival = ManifestId { gateway: other, ..id(2, 1) };
        assert!(matches!(ours(7).check(rival), Err(EngineError::OlderCatalog(_))), "made of the same");
        let superseded = ours(7).check(ManifestId { gateway: other, ..id(3, 1) }).unwrap_err();
        assert!(matches!(superseded, EngineError::Superseded(_)));
        assert_eq!(superseded.kind(), ErrorKind::Fenced);
    }

    fn node(number: u8) -> NodeId {
        NodeId::from_bytes([number; 16])
    }

    /// Three nodes, all of which have to have a checkpoint.
    fn store() -> RecordStore {
        let ports = Ports::system();
        let member = |number| {
            let (memory, policy) = (Arc::new(InMemory::new()), RequestPolicy::default());
            Member::new(DataNode::with_store(node(number), "memory", memory, policy, ports.clone()))
        };
        let settings = PoolSettings { profile: "replica:3".parse().unwrap(), ..PoolSettings::default() };
        let pool = Pool::new((1..=3).map(member).collect(), settings, ports.clone());
        let (key, encryption) = (SecretKey::from_bytes([1; 32]), Encryption::Aes256Gcm);
        let domain = Domain::new(DomainId::DEFAULT, key, encryption);
        RecordStore::new(Arc::new(pool), RecordKey::new(&domain, SiteId::from_bytes([1; 16])))
    }

    fn known(manifests: Vec<(u64, u8, Content)>) -> Known {
        let gateway = GatewayId::from_bytes([1; 16]);
        let manifests = manifests.into_iter().map(|(number, on, content)| {
            let copies = (1..=on).map(node).collect();
            (ManifestId { incarnation: 1, number, gateway }, KnownManifest { copies, content })
        });
        Known {
            found_at: SystemClock::new().now(),
            manifests: manifests.collect(),
            taken: None,
            pieces: BTreeMap::new(),
            leftovers: BTreeMap::new(),
        }
    }

    #[test]
    fn a_recovery_begins_with_the_newest_durable_checkpoint_or_may_with_the_oldest() {
        let store = store();
        let name = PieceName::from_bytes([7; 32]);
        let pieces = || Content::Pieces([(name, 10)].into());
        let unknown = || Content::Unknown(Arc::new(PoolError::UnknownNode { node: node(1) }));
        let number = |known: &Known| known.to_recover_from(&store).map(|id| id.number);
        assert_eq!(number(&known(Vec::new())), None);
        assert_eq!(number(&known(vec![(1, 3, Content::Nothing)])), None, "that is no manifest");
        let mut some = known(vec![
            (1, 3, Content::Nothing),
            (2, 3, unknown()),
            (3, 3, pieces()),
            (4, 3, pieces()),
            (5, 2, pieces()),
            (6, 3, unknown()),
        ]);
        assert_eq!(number(&some), Some(2), "the piece is nowhere: whichever it is, it is none before that");
        some.pieces.insert(name, [node(1), node(2)].into());
        assert_eq!(number(&some), Some(2), "nor is it on enough nodes");
        some.pieces.insert(name, [node(1), node(2), node(3)].into());
        assert_eq!(number(&some), Some(4), "the one after it is not on enough nodes");
    }
}
