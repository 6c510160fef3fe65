//! `cairn snapshot`, `cairn clone`, `cairn revert`.

use super::access::{Access, Need, with_access};
use super::args::{CloneSnapshot, Global, Revert, Snapshot as Command};
use super::output::{answer, print, print_json, warn};
use super::progress::Bar;
use super::volume::kept;
use crate::admin::types::{
    ChangedRange, CloneSnapshot as NewClone, CreateSnapshot, CreateSnapshots, RevertVolume, Snapshot,
    SnapshotWanted,
};
use crate::error::GatewayError;
use crate::human::{Align, Table, ask, can_ask, counted};
use crate::names::{SnapshotOf, VolumeOrSnapshot};
use crate::transfer::Observer;
use crate::units::{format_size, format_time};
use cairn_model::{ErrorKind, WallTime};
use serde::Serialize;
use std::fmt::Write;

pub(super) async fn run(global: &Global, command: Command) -> Result<(), GatewayError> {
    match command {
        Command::Create { snapshots, name } => create(global, snapshots, name).await,
        Command::List { volume, space } => list(global, volume.as_deref(), space).await,
        Command::Delete { snapshot, yes } => delete(global, &snapshot, yes).await,
        Command::Diff { from, to } => diff(global, &from, &to).await,
    }
}

/// Of one volume, or of several at one moment.
async fn create(
    global: &Global,
    snapshots: Vec<VolumeOrSnapshot>,
    name: Option<String>,
) -> Result<(), GatewayError> {
    let wanted = |one: VolumeOrSnapshot| SnapshotWanted {
        volume: one.volume.to_string(),
        name: one.snapshot.map(|name| name.to_string()).or_else(|| name.clone()),
    };
    let snapshots: Vec<SnapshotWanted> = snapshots.into_iter().map(wanted).collect();
    let told =
        |taken: &Snapshot| format!("Snapshot {} taken: {}.\n", taken.snapshot, format_size(taken.size_bytes));
    if let [only] = &snapshots[..] {
        let new = CreateSnapshot { name: only.name.clone() };
        let taken = with_access(global, Need::Engine, async |access| {
            access.client.create_snapshot(&only.volume, &new).await
        })
        .await?;
        return answer(global.json, &taken, told);
    }
    let new = CreateSnapshots { snapshots };
    let taken =
        with_access(global, Need::Engine, async |access| access.client.create_snapshots(&new).await).await?;
    answer(global.json, &taken, |taken| taken.iter().map(told).collect())
}

async fn list(global: &Global, volume: Option<&str>, space: bool) -> Result<(), GatewayError> {
    let (snapshots, may_be_more) = with_access(global, Need::Tell, async |access| {
        let client = &access.client;
        let snapshots = match volume {
            Some(volume) => client.snapshots(volume, space).await?,
            None => client.all_snapshots(space).await?,
        };
        let may_be_more = !client.is_remote() && client.status().await?.wal.dirty;
        Ok((snapshots, may_be_more))
    })
    .await?;
    if may_be_more {
        let hidden = "the write-ahead log holds what the catalog does not, the latest snapshots perhaps: \
            start the gateway to see them";
        warn(&[hidden.to_owned()])?;
    }
    answer(global.json, &snapshots, |snapshots| listing(snapshots, space))
}

fn listing(snapshots: &[Snapshot], space: bool) -> String {
    if snapshots.is_empty() {
        return "No snapshots. Take one with: cairn snapshot create VOLUME\n".to_owned();
    }
    let mut columns = vec![
        ("SNAPSHOT", Align::Left),
        ("CREATED", Align::Left),
        ("SIZE", Align::Right),
        ("HOLDS", Align::Right),
    ];
    if space {
        columns.extend([("UNIQUE", Align::Right), ("SHARED", Align::Right), ("FREED", Align::Right)]);
    }
    columns.extend([("STATE", Align::Left), ("CLONES", Align::Right), ("LOCKED UNTIL", Align::Left)]);
    let mut table = Table::new(&columns);
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), format_size);
    for snapshot in snapshots {
        let mut row = vec![
            snapshot.snapshot.clone(),
            format_time(WallTime::from_unix_millis(snapshot.created_at_ms)),
            format_size(snapshot.size_bytes),
            size(snapshot.logical_bytes),
        ];
        if space {
            let told = snapshot.space.as_ref();
            row.extend([
                size(told.map(|space| space.unique_bytes)),
                size(told.map(|space| space.shared_bytes)),
                size(told.map(|space| space.freed_bytes)),
            ]);
        }
        let locked = snapshot.locked_until_ms.map(|at| format_time(WallTime::from_unix_millis(at)));
        row.extend([snapshot.state.clone(), snapshot.clones.to_string(), locked.unwrap_or_default()]);
        table.row(row);
    }
    table.to_string()
}

async fn delete(global: &Global, snapshot: &SnapshotOf, yes: bool) -> Result<(), GatewayError> {
    with_access(global, Need::Engine, async |access| {
        if !yes && can_ask() {
            let taken = time_of(access, snapshot).await?;
            if !ask(&format!("Delete snapshot {snapshot} of {taken}?")) {
                return Err(GatewayError::Refused {
                    kind: ErrorKind::Conflict,
                    what: format!("snapshot {snapshot} was left as it is"),
                    next: None,
                });
            }
        }
        access.client.delete_snapshot(snapshot).await
    })
    .await?;
    if global.json {
        return print_json(&serde_json::json!({ "deleted": snapshot.to_string() }));
    }
    print(&format!("Snapshot {snapshot} deleted.\n"))
}

/// When it was taken, for people.
async fn time_of(access: &Access, snapshot: &SnapshotOf) -> Result<String, GatewayError> {
    let found = access.client.snapshot(snapshot).await?;
    Ok(format_time(WallTime::from_unix_millis(found.created_at_ms)))
}

/// What two snapshots of a volume differ in; `docs/cli.md` documents it.
#[derive(Debug, Serialize)]
struct Differences {
    volume: String,
    from: String,
    to: String,
    changed_bytes: u64,
    ranges: Vec<ChangedRange>,
}

async fn diff(global: &Global, from: &SnapshotOf, to: &SnapshotOf) -> Result<(), GatewayError> {
    if from.volume != to.volume {
        return Err(GatewayError::Usage {
            what: format!("{from} and {to} are snapshots of two volumes"),
            next: Some("compare two snapshots of one volume; `cairn snapshot list` shows them".to_owned()),
        });
    }
    let ranges = with_access(global, Need::Engine, async |access| {
        let bar = Bar::new("compare");
        let ranges = changed_ranges(access, from, to, &bar).await;
        bar.finish();
        ranges
    })
    .await?;
    let differences = Differences {
        volume: from.volume.to_string(),
        from: from.snapshot.to_string(),
        to: to.snapshot.to_string(),
        changed_bytes: ranges.iter().map(|range| range.length_bytes).sum(),
        ranges,
    };
    answer(global.json, &differences, |differences| described(from, to, differences))
}

/// All of them, page by page.
async fn changed_ranges(
    access: &Access,
    from: &SnapshotOf,
    to: &SnapshotOf,
    observer: &dyn Observer,
) -> Result<Vec<ChangedRange>, GatewayError> {
    let mut ranges = Vec::new();
    let mut start = 0;
    loop {
        let part =
            access.client.difference(from.volume.as_str(), &from.snapshot, &to.snapshot, start).await?;
        observer.total(part.size_bytes);
        for range in part.ranges {
            append(&mut ranges, range);
        }
        let Some(next) = part.next_offset_bytes else { return Ok(ranges) };
        observer.advance(next - start);
        start = next;
    }
}

/// Appends a range, to the last one if that is where it goes on.
fn append(ranges: &mut Vec<ChangedRange>, next: ChangedRange) {
    match ranges.last_mut() {
        Some(last)
            if last.offset_bytes + last.length_bytes == next.offset_bytes
                && last.allocated == next.allocated =>
        {
            last.length_bytes += next.length_bytes;
        }
        _ => ranges.push(next),
    }
}

fn described(from: &SnapshotOf, to: &SnapshotOf, differences: &Differences) -> String {
    if differences.ranges.is_empty() {
        return format!("From {from} to {to} nothing changed.\n");
    }
    let mut table = Table::new(&[("OFFSET", Align::Right), ("LENGTH", Align::Right), ("NOW", Align::Left)]);
    for range in &differences.ranges {
        table.row(vec![
            range.offset_bytes.to_string(),
            range.length_bytes.to_string(),
            if range.allocated { "data" } else { "zeros" }.to_owned(),
        ]);
    }
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "From {from} to {to} {} ({} bytes) changed, in {}.\n\n{table}",
        format_size(differences.changed_bytes),
        differences.changed_bytes,
        counted(differences.ranges.len() as u64, "range")
    );
    text
}

pub(super) async fn clone(global: &Global, asked: &CloneSnapshot) -> Result<(), GatewayError> {
    let new = NewClone { name: asked.name.clone() };
    let volume = with_access(global, Need::Engine, async |access| {
        access.client.clone_snapshot(&asked.snapshot, &new).await
    })
    .await?;
    answer(global.json, &volume, |volume| {
        format!(
            "Volume {} created from {}: {}.\n",
            volume.name,
            asked.snapshot,
            format_size(volume.size_bytes)
        )
    })
}

pub(super) async fn revert(global: &Global, asked: &Revert) -> Result<(), GatewayError> {
    let (to, volume) = (&asked.snapshot, &asked.snapshot.volume);
    let reverted = with_access(global, Need::Engine, async |access| {
        if !asked.yes && can_ask() {
            let taken = time_of(access, to).await?;
            let question = format!(
                "Make volume {volume} what {to} of {taken} shows? As it is now it is kept in a snapshot."
            );
            if !ask(&question) {
                return Err(kept(volume.as_str()));
            }
        }
        access.client.revert_volume(to, RevertVolume { force: asked.force }).await
    })
    .await?;
    answer(global.json, &reverted, |reverted| {
        format!(
            "Volume {} reverted to {to}: {}. As it was before it is in {}.\n",
            reverted.volume.name,
            format_size(reverted.volume.size_bytes),
            reverted.before.snapshot
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_two_pages_cut_are_one() {
        let range =
            |offset_bytes, length_bytes, allocated| ChangedRange { offset_bytes, length_bytes, allocated };
        let mut ranges = Vec::new();
        for next in [range(0, 4096, true), range(4096, 4096, true), range(8192, 4096, false)] {
            append(&mut ranges, next);
        }
        assert_eq!(ranges, [range(0, 8192, true), range(8192, 4096, false)]);
    }
}
