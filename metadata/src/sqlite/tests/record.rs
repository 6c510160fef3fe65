//! A catalog made of another one's rows.

use super::FileStore;
use crate::conformance::{World, blocks, refusal};
use crate::sqlite::open::MIGRATIONS;
use crate::{
    Catalog, MapPoint, NodeChange, NodeState, PlacementChange, PoolSettings, RecordRows, RecordSource,
    RecordWriter, SqliteCatalog,
};
use cairn_model::{ErrorKind, Generation, NodeId, ObjectPlace, Placement, Profile, ShardPlace};
use sqlx::{Connection, SqliteConnection};

async fn recorded(catalog: &dyn Catalog) -> (u64, Vec<RecordRows>) {
    let mut reader = catalog.record().unwrap().read_record().await.unwrap();
    let mut pages = Vec::new();
    while let Some(page) = reader.next().await.unwrap() {
        pages.push(page);
    }
    (reader.schema(), pages)
}

/// A catalog with snapshots, a clone, a revert, deltas, a deleted volume and something doomed.
pub(super) async fn lived_in(store: &FileStore) -> (World, Vec<MapPoint>) {
    let world = World::new(store).await;
    let mut volume = world.held_volume("a").await;
    let snapshot = world.settled_snapshot(&mut volume, blocks(0, 40_000), "one").await;
    let clone = world.held_clone(snapshot.id, "b").await;
    world.commit(&mut volume, blocks(7, 9)).await;
    let mut reverted = world.held_volume("c").await;
    let before = world.settled_snapshot(&mut reverted, blocks(0, 100), "two").await;
    let reverted = world.reverted(reverted, before.id).await;
    let mut gone = world.held_volume("gone").await;
    world.commit(&mut gone, blocks(0, 10)).await;
    world.catalog.delete_volume(gone.volume, true, crate::conformance::at(9)).await.unwrap();
    for number in 0..200 {
        // More than are read at once.
        world.held_volume(&format!("many-{number}")).await;
    }
    spread(&world).await;
    let points = vec![volume.head(), snapshot.at, clone.head(), before.at, reverted.head()];
    (world, points)
}

/// Segments in shards on nodes of all states, one of which lacks some, one whose shard moved, and one that is doomed.
async fn spread(world: &World) {
    let catalog = &world.catalog;
    let nodes = world.more_nodes(5).await;
    let profile = Profile::ec(2, 2).unwrap();
    catalog.set_pool_settings(&PoolSettings { profile }).await.unwrap();
    let on = |nodes: [Option<NodeId>; 4]| {
        let place = |node: Option<NodeId>| node.map(|node| ShardPlace { node, tag: 0 });
        Placement::new(profile, nodes.map(place).to_vec()).unwrap()
    };
    let node = |at: usize| Some(nodes[at]);
    let mut held = world.held_volume("spread").await;
    world.commit_at(&mut held, blocks(0, 8), on([0, 1, 2, 3].map(node))).await;
    world.commit_at(&mut held, blocks(8, 8), on([node(0), None, node(2), None])).await;
    let moved = world.commit_at(&mut held, blocks(16, 8), on([3, 2, 1, 0].map(node))).await;
    let receipt = &moved.segments[0].receipt;
    let to = ObjectPlace { placement: on([4, 2, 1, 0].map(node)), ..receipt.place().clone() };
    let change = PlacementChange { segment: receipt.segment(), from: receipt.place().clone(), to };
    catalog.place_shards(&change).await.unwrap();
    let changes = [
        NodeChange { state: Some(NodeState::Draining), ..NodeChange::default() },
        NodeChange { capacity_bytes: Some(Some(5 << 40)), ..NodeChange::default() },
    ];
    for (node, change) in nodes.iter().zip(&changes) {
        catalog.update_node(*node, change).await.unwrap();
    }
}

async fn copied(catalog: &dyn Catalog, store: &FileStore) -> u64 {
    let (schema, pages) = recorded(catalog).await;
    let mut writer = RecordWriter::create(&store.path(), schema).await.unwrap();
    for page in &pages {
        writer.write(&page.head, &page.rows).await.unwrap();
    }
    writer.finish(7).await.unwrap()
}

#[tokio::test]
async fn a_catalog_made_of_all_rows_is_the_same() {
    let (store, other) = (FileStore::new().await, FileStore::new().await);
    let (world, points) = lived_in(&store).await;
    let rows = copied(&*world.catalog, &other).await;
    let copy = SqliteCatalog::open(&other.path()).await.unwrap();
    assert_eq!(copy.incarnation().await.unwrap(), 7);
    assert_eq!(copy.volumes().await.unwrap(), world.catalog.volumes().await.unwrap());
    assert_eq!(copy.totals().await.unwrap(), world.catalog.totals().await.unwrap());
    assert_eq!(copy.nodes().await.unwrap(), world.catalog.nodes().await.unwrap());
    assert_eq!(copy.pool_settings().await.unwrap(), world.catalog.pool_settings().await.unwrap());
    let usage = copy.node_usage().await.unwrap();
    assert!(usage.iter().filter(|node| node.shards > 0).count() >= 5, "{usage:?}");
    assert_eq!(usage, world.catalog.node_usage().await.unwrap());
    let degraded = copy.degraded_segments(None, 100).await.unwrap();
    assert_eq!((degraded.len(), copy.totals().await.unwrap().at_risk_segments), (1, 1));
    assert_eq!(degraded, world.catalog.degraded_segments(None, 100).await.unwrap());
    let places = copy.segment_places(None, 1000).await.unwrap();
    assert_eq!(places, world.catalog.segment_places(None, 1000).await.unwrap());
    let doomed = copy.doomed_objects(None, 1000).await.unwrap();
    assert!(!doomed.is_empty());
    assert_eq!(doomed, world.catalog.doomed_objects(None, 1000).await.unwrap());
    assert_eq!(copy.gateways().await.unwrap(), world.catalog.gateways().await.unwrap());
    for volume in world.catalog.volumes().await.unwrap() {
        let snapshots = copy.snapshots(volume.id).await.unwrap();
        assert_eq!(snapshots, world.catalog.snapshots(volume.id).await.unwrap());
        let deltas = copy.unfolded_deltas(volume.lineage).await.unwrap();
        assert_eq!(deltas, world.catalog.unfolded_deltas(volume.lineage).await.unwrap());
    }
    for at in points {
        let whole = blocks(0, 50_000);
        let shown = copy.leaf_versions(at, whole, 100).await.unwrap();
        assert_eq!(shown, world.catalog.leaf_versions(at, whole, 100).await.unwrap());
        for version in shown {
            let leaf = copy.leaf(at, version.index).await.unwrap();
            assert_eq!(leaf, world.catalog.leaf(at, version.index).await.unwrap());
        }
    }
    // And all the rest, but for what is another one's.
    let (mut one, mut two) = (recorded(&*world.catalog).await.1, recorded(&copy).await.1);
    assert_eq!(rows, one.iter().map(|page| page.rows.len() as u64).sum::<u64>());
    for pages in [&mut one, &mut two] {
        pages.retain(|page| !page.head.windows(11).any(|name| name == b"incarnation"));
    }
    assert_eq!(one, two);
}

#[tokio::test]
async fn a_number_of_a_checkpoint_is_given_once_and_is_no_change() {
    let store = FileStore::new().await;
    let world = World::new(&store).await;
    let before = world.catalog.record().unwrap().changes();
    for expected in 1..4 {
        let catalog = SqliteCatalog::open(&store.path()).await.unwrap();
        assert_eq!(catalog.next_checkpoint().await.unwrap(), expected);
        catalog.close().await;
    }
    assert_eq!(world.catalog.record().unwrap().next_checkpoint().await.unwrap(), 4);
    assert_eq!(world.catalog.record().unwrap().changes(), before);
}

#[tokio::test]
async fn what_a_checkpoint_has_among_the_doomed_is_remembered_and_not_recovered() {
    let (store, other) = (FileStore::new().await, FileStore::new().await);
    let (world, _) = lived_in(&store).await;
    let record = world.catalog.record().unwrap();
    let doomed = world.catalog.doomed_objects(None, 1000).await.unwrap();
    let through = doomed.last().unwrap().id;
    assert_eq!(
        (record.doomed_through().await.unwrap(), record.recorded_through().await.unwrap()),
        (through, 0)
    );
    let before = record.changes();
    record.recorded(through).await.unwrap();
    record.recorded(through - 1).await.unwrap();
    assert_eq!(record.recorded_through().await.unwrap(), through, "it never falls");
    assert_eq!(record.changes(), before, "and is no change");
    for object in &doomed {
        world.catalog.forget_doomed(object.id).await.unwrap();
    }
    assert_eq!(record.doomed_through().await.unwrap(), 0);
    // Another incarnation has no checkpoint yet.
    copied(&*world.catalog, &other).await;
    let copy = SqliteCatalog::open(&other.path()).await.unwrap();
    assert_eq!(copy.recorded_through().await.unwrap(), 0);
}

#[tokio::test]
async fn the_term_of_a_recovered_lease_is_raised_and_never_falls() {
    let store = FileStore::new().await;
    let world = World::new(&store).await;
    let held = world.held_volume("a").await;
    let catalog = SqliteCatalog::open(&store.path()).await.unwrap();
    let (volume, term) = (held.volume, Generation::new(2 << 32));
    catalog.raise_term(volume, world.gateway, held.lease.generation, term).await.unwrap();
    assert_eq!(catalog.volume(volume).await.unwrap().generation, term);
    let stale = catalog.raise_term(volume, world.gateway, held.lease.generation, term).await;
    assert_eq!(refusal(stale).0, ErrorKind::Fenced);
    assert!(catalog.raise_term(volume, world.gateway, term, Generation::new(7)).await.is_err());
    catalog.release_lease(volume, world.gateway, term).await.unwrap();
    let now = crate::conformance::at(9);
    let next = catalog.acquire_lease(volume, world.other, now, std::time::Duration::from_secs(9), None).await;
    assert_eq!(next.unwrap().generation, term.next());
}

#[tokio::test]
async fn what_is_read_is_of_the_moment_at_which_it_began() {
    let store = FileStore::new().await;
    let world = World::new(&store).await;
    world.held_volume("before").await;
    let mut reader = world.catalog.record().unwrap().read_record().await.unwrap();
    world.held_volume("after").await;
    let mut told = Vec::new();
    while let Some(page) = reader.next().await.unwrap() {
        told.extend(page.rows.concat());
    }
    let tells = |name: &[u8]| told.windows(name.len()).any(|window| window == name);
    assert!(tells(b"before") && !tells(b"after"));
}

#[tokio::test]
async fn changes_count_apart_from_batches() {
    let store = FileStore::new().await;
    let world = World::new(&store).await;
    let changes = || world.catalog.record().unwrap().changes();
    let mut volume = world.held_volume("a").await;
    let before = changes();
    world.commit(&mut volume, blocks(0, 10)).await;
    world.fold(&volume).await;
    assert_eq!((changes().rare, changes().batches), (before.rare, before.batches + 1));
    world.settled_snapshot(&mut volume, blocks(0, 10), "one").await;
    assert!(changes().rare > before.rare);
}

#[tokio::test]
async fn a_record_of_an_older_schema_is_brought_up_to_date() {
    let (store, other) = (FileStore::new().await, FileStore::new().await);
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(store.path()).create_if_missing(true);
    let mut old = SqliteConnection::connect_with(&options).await.unwrap();
    MIGRATIONS.run_to(8, &mut old).await.unwrap();
    for sql in [
        "INSERT INTO site VALUES (1, zeroblob(16), 'home', 77, 1)",
        "UPDATE totals SET logical_bytes = 0",
        "INSERT INTO gateways VALUES (x'05050505050505050505050505050505', 'first', 'dirty', 1, 0)",
    ] {
        sqlx::query(sql).execute(&mut old).await.unwrap();
    }
    old.close().await.unwrap();
    // Read by a program of then: this one would bring the file up to date first.
    let (head, row) = {
        let catalog = SqliteCatalog::open(&store.path()).await.unwrap();
        let pages = recorded(&catalog).await.1;
        let site = pages.iter().find(|page| page.head[2..6] == *b"site").unwrap().clone();
        (site.head, site.rows)
    };
    let mut writer = RecordWriter::create(&other.path(), 8).await.unwrap();
    writer.write(&head, &row).await.unwrap();
    let totals = crate::record::RecordTable {
        name: "totals".to_owned(),
        columns: [
            "singleton",
            "volumes",
            "segments",
            "segment_bytes",
            "containers",
            "logical_bytes",
            "container_bytes",
            "container_raw_bytes",
            "snapshots",
        ]
        .map(str::to_owned)
        .to_vec(),
    };
    let mut cells = vec![crate::record::Cell::Integer(1)];
    cells.resize(9, crate::record::Cell::Integer(0));
    writer.write(&totals.encode(), &[crate::record::encode_row(&cells)]).await.unwrap();
    writer.finish(2).await.unwrap();
    let catalog = SqliteCatalog::open(&other.path()).await.unwrap();
    assert_eq!(catalog.site().await.unwrap().name, "home");
    // The table came with a later schema.
    assert_eq!(catalog.incarnation().await.unwrap(), 1);
}

#[tokio::test]
async fn what_does_not_fit_is_refused() {
    let (store, other) = (FileStore::new().await, FileStore::new().await);
    let (world, _) = lived_in(&store).await;
    let (schema, pages) = recorded(&*world.catalog).await;
    assert_eq!(refusal(RecordWriter::create(&store.path(), schema).await).0, ErrorKind::Conflict);
    assert_eq!(refusal(RecordWriter::create(&other.path(), schema + 90).await).0, ErrorKind::Unsupported);
    let mut writer = RecordWriter::create(&other.path(), schema).await.unwrap();
    let deltas = pages.iter().find(|page| page.head[2..8] == *b"deltas").unwrap();
    writer.write(&deltas.head, &deltas.rows).await.unwrap();
    // The same again; a row cut short; another table's.
    assert_eq!(refusal(writer.write(&deltas.head, &deltas.rows).await).0, ErrorKind::Corrupt);
    let short = [&deltas.rows[0][..5]];
    assert_eq!(refusal(writer.write(&deltas.head, &short).await).0, ErrorKind::Corrupt);
    let other_head = crate::record::RecordTable { name: "deltas; --".to_owned(), columns: vec![] }.encode();
    assert_eq!(refusal(writer.write(&other_head, &deltas.rows).await).0, ErrorKind::Corrupt);
    // Deltas without their lineages.
    assert_eq!(refusal(writer.finish(2).await).0, ErrorKind::Corrupt);
}
