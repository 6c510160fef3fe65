//! Rows of schemas before 3: what they do not say, and the one time that it is summed up.
//!
//! A leaf's blocks and a container's plaintext are NULL in such rows; they are taken from the blob whenever they are needed, so no row is
//! rewritten. A blob that cannot be read counts as nothing, here and there alike: it must not keep everything else from being opened.
//!
//! Crash cases: `totals.logical_bytes` is NULL until the transaction that makes the sums, so it happens once, at whichever opening comes
//! that far.

use super::columns::Columns;
use super::versions::key_of;
use super::{Result, failed, usage};
use crate::{LeafIndex, LeafVersion, MapLeaf};
use cairn_model::{BLOCK_SIZE, LineageId, VolumeId, varint};
use sqlx::{Connection, SqliteConnection};

const DOING: &str = "summing up an older catalog";
/// Container rows read at once, each with a directory of up to some 50 KiB.
const CONTAINERS_AT_ONCE: i64 = 64;

/// Blocks that a version maps, as its bytes say.
pub(super) async fn blocks_of(change: &mut SqliteConnection, version: &LeafVersion) -> Result<u64> {
    let (lineage, leaf, commit) = key_of(version)?;
    let sql = "SELECT data FROM leaves WHERE lineage = $1 AND leaf = $2 AND commit_seq = $3";
    let data: Vec<u8> = sqlx::query_scalar(sql)
        .bind(lineage)
        .bind(leaf)
        .bind(commit)
        .fetch_one(change)
        .await
        .map_err(failed(DOING))?;
    Ok(leaf_blocks(version.index, &data))
}

fn leaf_blocks(index: LeafIndex, data: &[u8]) -> u64 {
    MapLeaf::decode(index, data).as_ref().map_or(0, MapLeaf::blocks)
}

/// Plaintext of the container that `directory` describes. Containers of those schemas have version 1 (docs/format.md).
pub(super) fn raw_bytes(directory: &[u8]) -> u64 {
    fn blocks(mut bytes: &[u8]) -> Option<u64> {
        let (1, rest) = bytes.split_first()? else { return None };
        bytes = rest;
        let chunks = varint::take(&mut bytes)?;
        let mut blocks = 0;
        for _ in 0..chunks {
            let (shape, rest) = bytes.split_first()?;
            bytes = rest;
            blocks += u64::from(shape & 0xf) + 1;
            if shape >> 4 != 0 {
                varint::take(&mut bytes)?;
            }
        }
        bytes.is_empty().then_some(blocks)
    }
    blocks(directory).unwrap_or(0) * u64::from(BLOCK_SIZE)
}

/// Makes the sums over rows of older schemas, unless they are made.
pub(super) async fn sum_up(writer: &mut SqliteConnection) -> Result<()> {
    let sql = "SELECT logical_bytes IS NOT NULL FROM totals";
    if sqlx::query_scalar(sql).fetch_one(&mut *writer).await.map_err(failed(DOING))? {
        return Ok(());
    }
    let mut change = writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed(DOING))?;
    // Another process may have been faster.
    if sqlx::query_scalar(sql).fetch_one(&mut *change).await.map_err(failed(DOING))? {
        return Ok(());
    }
    let plaintext = sum_of_containers(&mut change).await?;
    sqlx::query("UPDATE totals SET logical_bytes = 0, container_raw_bytes = container_raw_bytes + $1")
        .bind(plaintext)
        .execute(&mut *change)
        .await
        .map_err(failed(DOING))?;
    let volumes = sqlx::query("SELECT id, lineage FROM volumes WHERE deleted = 0")
        .fetch_all(&mut *change)
        .await
        .map_err(failed(DOING))?;
    for row in &volumes {
        let columns = Columns::new(row, "volume");
        let volume = columns.identity("id", VolumeId::from_bytes)?;
        let lineage = columns.identity("lineage", LineageId::from_bytes)?;
        let blocks = usage::mapped_blocks(&mut change, lineage).await?;
        usage::change(&mut change, volume, blocks, 0).await?;
    }
    change.commit().await.map_err(failed(DOING))
}

async fn sum_of_containers(change: &mut SqliteConnection) -> Result<i64> {
    let mut after: Vec<u8> = Vec::new();
    let mut bytes = 0;
    loop {
        let sql =
            "SELECT id, directory FROM containers WHERE id > $1 AND raw_bytes IS NULL ORDER BY id LIMIT $2";
        let rows = sqlx::query(sql)
            .bind(after)
            .bind(CONTAINERS_AT_ONCE)
            .fetch_all(&mut *change)
            .await
            .map_err(failed(DOING))?;
        let Some(last) = rows.last() else { return super::columns::int(bytes) };
        after = Columns::new(last, "container").get("id")?;
        for row in &rows {
            bytes += raw_bytes(Columns::new(row, "container").get("directory")?);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_version_1_says_what_its_chunks_unpack_to() {
        // Three chunks: 1 block as it is; 8 blocks in 300 bytes; 16 blocks in 5 bytes.
        let directory = [1, 3, 0x00, 0x17, 0xac, 0x02, 0x1f, 0x05];
        assert_eq!(raw_bytes(&directory), 25 * 4096);
        assert_eq!(raw_bytes(&[1, 0]), 0);
    }

    #[test]
    fn a_damaged_directory_counts_as_nothing() {
        for directory in [&b""[..], b"directory", &[1, 3, 0], &[1, 1, 0, 0], &[2, 1, 0], &[1, 1, 0x17, 0x80]]
        {
            assert_eq!(raw_bytes(directory), 0, "{directory:?}");
        }
    }
}
