//! Rows of maps, page by page.

use super::super::columns::{Columns, KEYS_AT_ONCE, KeyListQuery, filled_up};
use super::super::versions::index_of;
use super::super::{Result, SqliteCatalog, failed};
use super::{
    CheckedContainer, DOING, container_of, container_rows, sound_container, sound_delta, sound_leaf,
};
use crate::check::{MapKind, MapRow, MapRows, MissingChanges};
use crate::{LEAVES_MAX, MapLeaf};
use cairn_model::{CommitSeq, ContainerId, DomainId, LineageId, MapDelta, MapOp, MapTarget};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

/// Rows with blobs read at once.
const BLOBS_AT_ONCE: i64 = 16;
/// Containers of a page with which it ends. A row may point at some more by itself.
const CONTAINERS_MAX: usize = 1024;

const _: () = assert!(LEAVES_MAX == 1_048_576, "sound_leaf has it");

pub(super) async fn last(catalog: &SqliteCatalog, kind: MapKind) -> Result<i64> {
    let sql = match kind {
        MapKind::Leaves => "SELECT coalesce(max(rowid), 0) FROM leaves",
        MapKind::Deltas => "SELECT coalesce(max(rowid), 0) FROM deltas",
    };
    sqlx::query_scalar(sql).fetch_one(&catalog.readers).await.map_err(failed(DOING))
}

pub(super) async fn rows(
    catalog: &SqliteCatalog,
    kind: MapKind,
    (after, through): (i64, i64),
    is_known: &(dyn Fn(ContainerId) -> bool + Sync),
    take: &mut (dyn FnMut(Vec<CheckedContainer>) + Send),
) -> Result<MapRows> {
    let sql = match kind {
        MapKind::Leaves => {
            concat!(
                "SELECT m.rowid AS number, m.lineage, m.leaf, m.commit_seq, m.blocks, m.data FROM leaves m \
                 WHERE m.rowid > $1 AND m.rowid <= $2 AND ",
                sound_leaf!(),
                " ORDER BY m.rowid LIMIT $3"
            )
        }
        MapKind::Deltas => {
            concat!(
                "SELECT m.rowid AS number, m.lineage, m.commit_seq, m.delta AS data FROM deltas m \
                 WHERE m.rowid > $1 AND m.rowid <= $2 AND ",
                sound_delta!(),
                " ORDER BY m.rowid LIMIT $3"
            )
        }
    };
    // One state of the catalog for the rows and what they point at.
    let mut look = catalog.readers.begin().await.map_err(failed(DOING))?;
    let query = sqlx::query(sql).bind(after).bind(through).bind(BLOBS_AT_ONCE);
    let found = query.fetch_all(&mut *look).await.map_err(failed(DOING))?;
    let mut page = MapRows::default();
    let mut wanted: BTreeSet<ContainerId> = BTreeSet::new();
    for row in &found {
        page.last = Some(Columns::new(row, "map").get("number")?);
        let row = row_of(kind, row)?;
        for op in row.content.iter().flatten() {
            if let MapTarget::Chunk(target) = op.target
                && !is_known(target.chunk.container)
            {
                wanted.insert(target.chunk.container);
            }
        }
        page.rows.push(row);
        if wanted.len() >= CONTAINERS_MAX {
            break;
        }
    }
    containers(&mut look, &wanted.into_iter().collect::<Vec<_>>(), take).await?;
    Ok(page)
}

fn row_of(kind: MapKind, row: &SqliteRow) -> Result<MapRow> {
    let columns = Columns::new(row, "map");
    let lineage = columns.identity("lineage", LineageId::from_bytes)?;
    let commit = CommitSeq::new(columns.number("commit_seq")?);
    let data: &[u8] = columns.get("data")?;
    Ok(match kind {
        MapKind::Leaves => {
            let index = index_of(&columns)?;
            let blocks = match columns.get::<Option<i64>>("blocks")? {
                Some(_) => Some(columns.number("blocks")?),
                None => None,
            };
            let content = MapLeaf::decode(index, data).map_err(|error| error.to_string()).map(|leaf| {
                let mut ops = Vec::with_capacity(leaf.runs());
                leaf.lookup(index.range(), |range, target| {
                    if target != MapTarget::Hole {
                        ops.push(MapOp { range, target });
                    }
                });
                ops
            });
            MapRow { lineage, commit, leaf: Some(index), blocks, content }
        }
        MapKind::Deltas => {
            let content = MapDelta::decode(data).map_err(|error| error.to_string()).map(|delta| delta.ops);
            MapRow { lineage, commit, leaf: None, blocks: None, content }
        }
    })
}

async fn containers(
    look: &mut SqliteConnection,
    wanted: &[ContainerId],
    take: &mut (dyn FnMut(Vec<CheckedContainer>) + Send),
) -> Result<()> {
    static CONTAINERS: LazyLock<KeyListQuery> =
        LazyLock::new(|| KeyListQuery::new(container_rows!("c.id IN ({keys})"), 1));
    for keys in wanted.chunks(KEYS_AT_ONCE) {
        let (sql, length) = KeyListQuery::for_length(&CONTAINERS, keys.len());
        let mut query = sqlx::query(sql);
        for id in filled_up(keys, length) {
            query = query.bind(id.as_bytes().to_vec());
        }
        let rows = query.fetch_all(&mut *look).await.map_err(failed(DOING))?;
        take(rows.iter().map(container_of).collect::<Result<_>>()?);
    }
    Ok(())
}

/// A commit writes a delta, and a fold forgets those that are in the leaves: the others are there. Of a lineage that is no head any more some may be purged.
pub(super) async fn missing_changes(catalog: &SqliteCatalog) -> Result<Vec<MissingChanges>> {
    let sql = "SELECT v.name, n.id AS lineage, n.last_commit - n.folded_through - (SELECT count(*) FROM deltas d \
               WHERE d.lineage = n.id AND d.commit_seq > n.folded_through AND d.commit_seq <= n.last_commit) AS missing \
               FROM volumes v JOIN lineages n ON n.id = v.lineage WHERE v.deleted = 0 AND length(n.id) = 16 \
               ORDER BY v.name";
    let rows = sqlx::query(sql).fetch_all(&catalog.readers).await.map_err(failed(DOING))?;
    let mut found = Vec::new();
    for row in &rows {
        let columns = Columns::new(row, "volume");
        let count: i64 = columns.get("missing")?;
        if count == 0 {
            continue;
        }
        let name: &str = columns.get("name")?;
        found.push(MissingChanges {
            volume: name.parse().map_err(|_| columns.bad("name", name))?,
            lineage: columns.identity("lineage", LineageId::from_bytes)?,
            count: count.unsigned_abs(),
        });
    }
    Ok(found)
}

/// Of volumes, of their snapshots' lineages, and of those that branch off from them or that they branched off from: a clone is of its parent's domain.
pub(super) async fn domains(catalog: &SqliteCatalog) -> Result<BTreeMap<LineageId, DomainId>> {
    let mut look = catalog.readers.begin().await.map_err(failed(DOING))?;
    let sql = "SELECT lineage, domain FROM volumes UNION SELECT s.lineage, v.domain FROM snapshots s JOIN volumes v ON v.id = s.volume \
               WHERE length(s.lineage) = 16";
    let rows = sqlx::query(sql).fetch_all(&mut *look).await.map_err(failed(DOING))?;
    let mut domains = BTreeMap::new();
    for row in &rows {
        let columns = Columns::new(row, "lineage");
        let domain = columns.identity("domain", DomainId::from_bytes)?;
        domains.insert(columns.identity("lineage", LineageId::from_bytes)?, domain);
    }
    let sql = "SELECT id, parent FROM lineages WHERE parent IS NOT NULL AND length(id) = 16 AND length(parent) = 16";
    let rows = sqlx::query(sql).fetch_all(&mut *look).await.map_err(failed(DOING))?;
    let mut pairs = Vec::with_capacity(rows.len());
    for row in &rows {
        let columns = Columns::new(row, "lineage");
        pairs.push((
            columns.identity("id", LineageId::from_bytes)?,
            columns.identity("parent", LineageId::from_bytes)?,
        ));
    }
    loop {
        let before = domains.len();
        for (child, parent) in &pairs {
            match (domains.get(child).copied(), domains.get(parent).copied()) {
                (Some(domain), None) => drop(domains.insert(*parent, domain)),
                (None, Some(domain)) => drop(domains.insert(*child, domain)),
                _ => {}
            }
        }
        if domains.len() == before {
            return Ok(domains);
        }
    }
}
