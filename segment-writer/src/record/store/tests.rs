use super::super::PieceCutter;
use super::super::piece::tests::{GATEWAY, key};
use super::*;
use crate::pool::RequestPolicy;
use crate::record::ManifestPiece;
use cairn_model::{NodeId, Ports, SeededEntropy, WallTime};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt, path::Path};

fn store() -> (Arc<InMemory>, RecordStore) {
    let memory = Arc::new(InMemory::new());
    let dynamic: Arc<dyn ObjectStore> = Arc::clone(&memory) as _;
    let id = NodeId::from_bytes([1; 16]);
    let node = DataNode::with_store(id, "memory", dynamic, RequestPolicy::default(), Ports::system());
    (memory, RecordStore::new(Arc::new(Pool::single(node)), key()))
}

#[tokio::test]
async fn what_is_put_is_listed_read_and_deleted() {
    let (memory, store) = store();
    assert_eq!(store.listing().await.unwrap(), RecordListing::default());
    let mut cutter = PieceCutter::new(key(), 1, GATEWAY);
    assert!(cutter.push(b"head", &[b"row".to_vec()]).is_empty());
    let piece = cutter.finish().unwrap();
    let (mut of_piece, mut of_manifest) = (Copies::new(), Copies::new());
    store.put_piece(&piece, &mut of_piece).await.unwrap();
    let id = ManifestId { incarnation: 1, number: 5, gateway: GATEWAY };
    let named = ManifestPiece { name: piece.name, length_bytes: piece.length_bytes(), rows: 1 };
    let taken_at = WallTime::from_unix_millis(3);
    let manifest = Manifest { id, schema: 10, taken_at, pieces: vec![named] };
    store.put_manifest(&manifest, &SeededEntropy::new(1), &mut of_manifest).await.unwrap();
    let listing = store.listing().await.unwrap();
    assert_eq!(listing.manifests, [(id, of_manifest.clone())].into());
    let length = piece.length_bytes();
    let of_nodes = of_piece.iter().map(|node| (*node, length)).collect();
    assert_eq!(listing.pieces, [(piece.name, of_nodes)].into());
    assert!(store.is_durable(&of_manifest) && !store.is_durable(&Copies::new()));
    assert_eq!(store.newest_above(0).await.unwrap(), Some(id));
    assert_eq!(store.newest_above(1).await.unwrap(), None, "of the same catalog");
    assert_eq!(store.read_manifest(id).await.unwrap(), manifest);
    // A later name is nothing but a name, whatever is behind it.
    let lie = ManifestId { incarnation: 1 << 62, ..id };
    let object = memory.get(&Path::from(manifest_key(id))).await.unwrap().bytes().await.unwrap();
    let mut newer = object.to_vec();
    newer[8] = VERSION + 1;
    for lying in [Vec::new(), object.to_vec()] {
        memory.put(&Path::from(manifest_key(lie)), lying.into()).await.unwrap();
        assert_eq!(store.open_manifest(lie, &of_manifest).await.unwrap(), None);
        assert_eq!(store.newest_above(0).await.unwrap(), Some(id));
        assert_eq!(store.newest_above(1).await.unwrap(), None);
    }
    // What a newer version may have put is not: it may have taken the site over.
    memory.put(&Path::from(manifest_key(lie)), newer.into()).await.unwrap();
    for asked in
        [store.open_manifest(lie, &of_manifest).await.map(drop), store.newest_above(1).await.map(drop)]
    {
        assert!(matches!(asked, Err(PoolError::NewerFormat { found: 2, .. })), "{asked:?}");
    }
    assert_eq!(store.newest_above(lie.incarnation).await.unwrap(), None, "it is not looked at");
    memory.delete(&Path::from(manifest_key(lie))).await.unwrap();
    assert_eq!(store.read_piece(piece.name).await.unwrap().rows, [b"row"]);
    let mut away = Copies::new();
    store.delete_manifest(id, &mut of_manifest, &mut away).await;
    store.delete_piece(piece.name, &mut of_piece, &mut away).await;
    assert!(of_manifest.is_empty() && of_piece.is_empty() && away.is_empty());
    assert_eq!(store.listing().await.unwrap(), RecordListing::default());
}

#[tokio::test]
async fn damage_is_told_from_absence() {
    let (memory, store) = store();
    let name = PieceName::from_bytes([3; 32]);
    assert!(matches!(store.read_piece(name).await, Err(PoolError::NotFound { .. })));
    memory.put(&Path::from(piece_key(name)), vec![0; 100].into()).await.unwrap();
    assert!(matches!(store.read_piece(name).await, Err(PoolError::Corrupt { .. })));
    let (all, mut bad) = (Copies::from([NodeId::from_bytes([1; 16])]), Copies::new());
    assert!(!store.check_piece(name, &all, 5, &mut bad).await.unwrap());
    assert_eq!(bad, all);
    // What is no name of a piece is none.
    memory.put(&Path::from("record/pieces/x"), vec![0; 100].into()).await.unwrap();
    assert_eq!(store.listing().await.unwrap().pieces.len(), 1);
}

#[tokio::test]
async fn the_reserve_takes_room_until_it_is_needed() {
    let (memory, store) = store();
    let mut copies = store.reserves().await.unwrap();
    assert!(copies.is_empty());
    store.put_reserve(&SeededEntropy::new(1), &mut copies).await;
    assert_eq!((copies.len(), store.reserves().await.unwrap()), (1, copies.clone()));
    let object = memory.get(&Path::from("record/reserve/1")).await.unwrap();
    assert_eq!(object.meta.size, RESERVE_BYTES as u64);
    assert_eq!(store.listing().await.unwrap(), RecordListing::default());
    store.delete_reserve().await;
    assert!(store.reserves().await.unwrap().is_empty());
    store.delete_reserve().await;
}
