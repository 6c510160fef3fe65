//! Site, keys, gateways, nodes, totals.

use super::{CatalogStore, World, at, blocks, key_row, node_row, refusal};
use crate::{FORMAT_VERSION, KeyRow, NodeChange, NodeRow, NodeState, NodeUsage, SiteRow, Totals, WalState};
use cairn_model::crypto::KeyId;
use cairn_model::{ErrorKind, GatewayId, NodeId, SiteId};

pub async fn a_site_is_created_once(store: &dyn CatalogStore) {
    let catalog = store.open().await;
    assert_eq!(refusal(catalog.site().await).0, ErrorKind::NotFound);

    let id = SiteId::from_bytes([5; 16]);
    let site = SiteRow { id, name: "home".to_owned(), created_at: at(42), format_version: FORMAT_VERSION };
    catalog.create_site(&site).await.unwrap();

    assert_eq!(catalog.site().await.unwrap(), site);
    assert_eq!(store.open().await.site().await.unwrap(), site);
    let other = SiteRow { id: SiteId::from_bytes([6; 16]), ..site.clone() };
    assert_eq!(refusal(catalog.create_site(&other).await).0, ErrorKind::Conflict);
    assert_eq!(catalog.site().await.unwrap(), site);
}

pub async fn a_key_is_kept_per_wrapping(store: &dyn CatalogStore) {
    let catalog = store.open().await;
    let key = |wrapped_by: u8, created_at: u64| KeyRow {
        created_at: at(created_at),
        ..key_row("data", wrapped_by)
    };
    catalog.put_key(&key(7, 20)).await.unwrap();
    catalog.put_key(&key(8, 10)).await.unwrap();

    assert_eq!(catalog.keys().await.unwrap(), [key(8, 10), key(7, 20)]);
    let replacement = KeyRow { wrapped: vec![0; 60], ..key(7, 20) };
    assert_eq!(refusal(catalog.put_key(&replacement).await).0, ErrorKind::Conflict);
    assert_eq!(catalog.keys().await.unwrap(), [key(8, 10), key(7, 20)]);
}

pub async fn replacing_keys_leaves_what_the_kept_key_wraps(store: &dyn CatalogStore) {
    let catalog = store.open().await;
    for key in [key_row("data", 7), key_row("data", 8), key_row("other", 7)] {
        catalog.put_key(&key).await.unwrap();
    }
    let again = KeyRow { wrapped: vec![0; 60], created_at: at(30), ..key_row("data", 8) };
    let replacements = [again.clone(), key_row("other", 8)];
    // Twice, as after a lost reply.
    for _ in 0..2 {
        catalog.replace_keys(&replacements, KeyId::from_bytes([8; 8])).await.unwrap();
        assert_eq!(store.open().await.keys().await.unwrap(), [key_row("other", 8), again.clone()]);
    }
    catalog.replace_keys(&[], KeyId::from_bytes([8; 8])).await.unwrap();
    assert_eq!(catalog.keys().await.unwrap().len(), 2);
}

pub async fn replacing_keys_loses_none(store: &dyn CatalogStore) {
    let catalog = store.open().await;
    let newer = KeyRow { key_id: KeyId::from_bytes([2; 8]), created_at: at(30), ..key_row("data", 7) };
    catalog.put_key(&key_row("data", 7)).await.unwrap();
    catalog.put_key(&newer).await.unwrap();
    let refused = refusal(catalog.replace_keys(&[key_row("data", 8)], KeyId::from_bytes([8; 8])).await);
    let message = "key 0202020202020202 of purpose data would be lost: it is not among the keys that replace the \
                   present ones: read the keys again and begin anew";
    assert_eq!(refused, (ErrorKind::Conflict, message.to_owned()));
    assert_eq!(catalog.keys().await.unwrap(), [key_row("data", 7), newer]);
}

pub async fn replacing_keys_takes_no_stray(store: &dyn CatalogStore) {
    let catalog = store.open().await;
    catalog.put_key(&key_row("data", 7)).await.unwrap();
    let rows = [key_row("data", 8), key_row("other", 7)];
    assert_eq!(refusal(catalog.replace_keys(&rows, KeyId::from_bytes([8; 8])).await).0, ErrorKind::Internal);
    assert_eq!(catalog.keys().await.unwrap(), [key_row("data", 7)]);
}

pub async fn a_gateway_begins_clean_and_keeps_what_its_log_is(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let row = world.catalog.gateway(world.gateway).await.unwrap();
    assert_eq!((row.name.as_str(), row.wal_state, row.created_at), ("first", WalState::Clean, at(1)));

    world.catalog.set_wal_state(world.gateway, WalState::Dirty).await.unwrap();
    world.catalog.register_gateway(world.gateway, "renamed", at(99)).await.unwrap();

    let world = world.reopened(store).await;
    let row = world.catalog.gateway(world.gateway).await.unwrap();
    assert_eq!((row.name.as_str(), row.wal_state, row.created_at), ("renamed", WalState::Dirty, at(1)));
    assert_eq!(world.catalog.gateway(world.other).await.unwrap().wal_state, WalState::Clean);
    world.catalog.set_wal_state(world.gateway, WalState::Clean).await.unwrap();
    assert_eq!(world.catalog.gateway(world.gateway).await.unwrap().wal_state, WalState::Clean);
}

pub async fn gateways_have_names_of_their_own(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let newcomer = GatewayId::from_bytes([77; 16]);
    let refused = refusal(world.catalog.register_gateway(newcomer, "first", at(2)).await);
    assert_eq!(
        refused,
        (ErrorKind::Conflict, "gateway first exists already: choose another name".to_owned())
    );
    let renamed = world.catalog.register_gateway(world.other, "first", at(2)).await;
    assert_eq!(refusal(renamed).0, ErrorKind::Conflict);
    let names: Vec<String> =
        world.catalog.gateways().await.unwrap().into_iter().map(|gateway| gateway.name).collect();
    assert_eq!(names, ["first", "second"]);
}

pub async fn an_unknown_gateway_is_not_found(store: &dyn CatalogStore) {
    let catalog = store.open().await;
    let unknown = GatewayId::from_bytes([77; 16]);
    assert_eq!(refusal(catalog.gateway(unknown).await).0, ErrorKind::NotFound);
    assert_eq!(refusal(catalog.set_wal_state(unknown, WalState::Dirty).await).0, ErrorKind::NotFound);
}

pub async fn a_node_lives_from_adding_to_removal(store: &dyn CatalogStore) {
    let catalog = store.open().await;
    let (beta, alpha) = (NodeId::from_bytes([1; 16]), NodeId::from_bytes([2; 16]));
    let mut row = node_row(beta, "beta");
    row.domain = None;
    catalog.add_node(&row).await.unwrap();
    catalog.add_node(&node_row(alpha, "alpha")).await.unwrap();

    assert_eq!(catalog.nodes().await.unwrap(), [node_row(alpha, "alpha"), row.clone()]);
    assert_eq!(catalog.node(beta).await.unwrap(), row);
    assert_eq!(catalog.node_by_name("beta").await.unwrap(), row);

    let draining = NodeChange { state: Some(NodeState::Draining), ..NodeChange::default() };
    catalog.update_node(beta, &draining).await.unwrap();
    row.state = NodeState::Draining;
    assert_eq!(catalog.node(beta).await.unwrap(), row);
    let everything = NodeChange {
        url: Some("s3://bucket".to_owned()),
        domain: Some(Some("rack-2".to_owned())),
        state: Some(NodeState::Failed),
        options: Some("{}".to_owned()),
        capacity_bytes: Some(Some(1 << 50)),
    };
    catalog.update_node(beta, &everything).await.unwrap();
    let changed = NodeRow {
        url: "s3://bucket".to_owned(),
        domain: Some("rack-2".to_owned()),
        state: NodeState::Failed,
        options: "{}".to_owned(),
        capacity_bytes: Some(1 << 50),
        ..row.clone()
    };
    assert_eq!(store.open().await.node(beta).await.unwrap(), changed);
    let unset = NodeChange { domain: Some(None), capacity_bytes: Some(None), ..NodeChange::default() };
    catalog.update_node(beta, &unset).await.unwrap();
    assert_eq!(catalog.node(beta).await.unwrap(), NodeRow { domain: None, capacity_bytes: None, ..changed });
    let usage = |node| NodeUsage { node, shards: 0, bytes: 0 };
    assert_eq!(catalog.node_usage().await.unwrap(), [usage(beta), usage(alpha)]);

    catalog.remove_node(beta, false).await.unwrap();
    assert_eq!(refusal(catalog.node(beta).await).0, ErrorKind::NotFound);
    assert_eq!(refusal(catalog.node_by_name("beta").await).0, ErrorKind::NotFound);
    assert_eq!(refusal(catalog.remove_node(beta, true).await).0, ErrorKind::NotFound);
    assert_eq!(refusal(catalog.update_node(beta, &NodeChange::default()).await).0, ErrorKind::NotFound);
    assert_eq!(catalog.nodes().await.unwrap(), [node_row(alpha, "alpha")]);
}

pub async fn nodes_have_names_of_their_own(store: &dyn CatalogStore) {
    let catalog = store.open().await;
    catalog.add_node(&node_row(NodeId::from_bytes([1; 16]), "disk")).await.unwrap();
    let namesake = refusal(catalog.add_node(&node_row(NodeId::from_bytes([2; 16]), "disk")).await);
    assert_eq!(namesake, (ErrorKind::Conflict, "node disk exists already: choose another name".to_owned()));
    let again = refusal(catalog.add_node(&node_row(NodeId::from_bytes([1; 16]), "other")).await);
    assert_eq!(again.0, ErrorKind::Conflict);
    assert_eq!(catalog.nodes().await.unwrap().len(), 1);
}

pub async fn a_node_that_holds_segments_stays(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    world.commit(&mut held, blocks(0, 8)).await;
    let refused = refusal(world.catalog.remove_node(world.node, false).await);
    let message = "node disk still holds segments: move them to other nodes with `cairn node drain disk` before removing it";
    assert_eq!(refused, (ErrorKind::Conflict, message.to_owned()));
    assert!(world.catalog.node(world.node).await.is_ok());
}

pub async fn totals_follow_every_change(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    assert_eq!(world.catalog.totals().await.unwrap(), Totals::default());
    let mut first = world.held_volume("a").await;
    let second = world.held_volume("b").await;
    world.commit(&mut first, blocks(0, 8)).await;
    let batch = world.commit(&mut first, blocks(0, 8)).await;
    world.catalog.commit_batch(&batch).await.unwrap();
    world.catalog.delete_volume(second.volume, false, super::at(5000)).await.unwrap();

    let expected = World::totals(1, 2);
    assert_eq!(world.catalog.totals().await.unwrap(), expected);
    let world = world.reopened(store).await;
    assert_eq!(world.catalog.totals().await.unwrap(), expected);
}
