//! `cairn status`: health first, then space.

use super::access::{Need, with_access};
use super::args::Global;
use super::output::answer;
use super::volume::listing;
use crate::admin::types::{Heal, PoolTotals, Reclaim, Status};
use crate::error::GatewayError;
use crate::human::{counted, shell_quoted};
use crate::units::{format_duration, format_size, format_time};
use cairn_model::WallTime;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

pub(super) async fn run(global: &Global) -> Result<(), GatewayError> {
    let status = with_access(global, Need::Tell, async |access| access.client.status().await).await?;
    answer(global.json, &status, human)
}

fn human(status: &Status) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_human(&mut text, status);
    text
}

fn write_reduction(text: &mut String, status: &Status) -> std::fmt::Result {
    let reduction = &status.reduction;
    let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}x"));
    writeln!(
        text,
        "data     {} in volumes, {} distinct (dedupe {}), {} stored (compression {})",
        format_size(reduction.logical_bytes),
        format_size(reduction.unique_bytes),
        ratio(reduction.dedupe_ratio),
        format_size(reduction.stored_bytes),
        ratio(reduction.compression_ratio)
    )?;
    if let Some(dedupe) = &status.dedupe {
        let containers = counted(dedupe.index_containers, "container");
        writeln!(text, "index    {containers} in {}", format_size(dedupe.index_bytes))?;
    }
    let Some(flash) = &status.flash else { return Ok(()) };
    let reads = flash.hits + flash.misses;
    writeln!(
        text,
        "flash    {} of {} used, {} of {} served, {} damaged",
        format_size(flash.used_bytes),
        format_size(flash.capacity_bytes),
        flash.hits,
        counted(reads, "read"),
        flash.damaged
    )
}

fn write_reclaim(text: &mut String, reclaim: &Reclaim) -> std::fmt::Result {
    let Some(last) = reclaim.last_at_ms else {
        return writeln!(text, "reclaim  nothing taken back, no pass since the start");
    };
    let objects = counted(reclaim.total.objects, "object");
    let moved = match reclaim.total.moved_bytes {
        0 => String::new(),
        bytes => format!(", {} written anew for it", format_size(bytes)),
    };
    writeln!(
        text,
        "reclaim  {} in {objects} taken back by {} since the start{moved}, the last at {}",
        format_size(reclaim.total.object_bytes),
        if reclaim.passes == 1 { "1 pass".to_owned() } else { format!("{} passes", reclaim.passes) },
        format_time(WallTime::from_unix_millis(last))
    )
}

fn protection(pool: &PoolTotals) -> String {
    match (pool.degraded_segments, pool.at_risk_segments) {
        (0, _) => "every segment has all its shards".to_owned(),
        (degraded, 0) => format!("{} with a shard missing", counted(degraded, "segment")),
        (degraded, at_risk) => {
            format!(
                "{} with a shard missing, {at_risk} of them with none to spare",
                counted(degraded, "segment")
            )
        }
    }
}

fn write_heal(text: &mut String, heal: &Heal) -> std::fmt::Result {
    if let Some(work) = &heal.work {
        let eta = work.eta_seconds.map_or_else(String::new, |seconds| {
            format!(", about {} to go", format_duration(Duration::from_secs(seconds)))
        });
        writeln!(
            text,
            "heal     {}: {} of {}, {} put{eta}",
            work.kind,
            work.segments_done,
            counted(work.segments_total, "segment"),
            format_size(work.bytes)
        )?;
    }
    let healed = &heal.total;
    if healed.shards > 0 {
        let shards = counted(healed.shards, "shard");
        writeln!(text, "healed   {shards} of {} made since the start", format_size(healed.bytes))?;
    }
    Ok(())
}

fn write_human(text: &mut String, status: &Status) -> std::fmt::Result {
    if status.attention.is_empty() {
        writeln!(text, "health   ok")?;
    }
    for entry in &status.attention {
        writeln!(text, "{:<8} {}", entry.severity, entry.what)?;
        writeln!(text, "         next: {}", entry.next)?;
    }
    let gateway = &status.gateway;
    match (gateway.process, gateway.uptime_seconds) {
        (Some(process), Some(uptime)) => {
            let uptime = format_duration(Duration::from_secs(uptime));
            let connections = counted(gateway.nbd_connections.unwrap_or(0), "connection");
            writeln!(text, "gateway  serving for {uptime} (process {process}), {connections}")?;
            writeln!(text, "nbd      {}", gateway.nbd.join(", "))?;
        }
        _ => writeln!(
            text,
            "gateway  stopped; start it with: cairn serve --dir {}",
            shell_quoted(Path::new(&gateway.directory))
        )?,
    }
    let wal = &status.wal;
    let capacity = format_size(wal.capacity_bytes);
    match wal.used_bytes {
        Some(used) => writeln!(
            text,
            "wal      {} of {capacity} used, {} waiting for the pool",
            format_size(used),
            format_size(status.destage.backlog_bytes)
        )?,
        None => writeln!(
            text,
            "wal      {capacity}, {}",
            if wal.dirty { "holds writes that are not in the pool" } else { "everything is in the pool" }
        )?,
    }
    writeln!(text, "cpu      {}", super::cpu::described(&status.cpu))?;
    let pool = &status.pool;
    let nodes: Vec<String> = pool.nodes.iter().map(|node| format!("{} at {}", node.name, node.url)).collect();
    let segments = counted(pool.segments, "segment");
    writeln!(text, "pool     {} in {segments}, on {}", format_size(pool.segment_bytes), nodes.join(", "))?;
    if pool.nodes.len() > 1 {
        writeln!(text, "         protected by {}, {}", pool.profile, protection(pool))?;
    }
    if gateway.process.is_some() {
        writeln!(
            text,
            "         {} put in {}, {} read in {}, {} deleted",
            format_size(pool.put_bytes),
            counted(pool.puts, "request"),
            format_size(pool.get_bytes),
            counted(pool.gets, "request"),
            counted(pool.deletes, "object")
        )?;
        write_reclaim(text, &status.reclaim)?;
        write_heal(text, &status.heal)?;
    }
    write_reduction(text, status)?;
    let (snapshots, groups) =
        (counted(status.snapshots, "snapshot"), counted(status.groups, "protection group"));
    writeln!(text, "volumes  {}, with {snapshots}, {groups}", status.volumes.len())?;
    writeln!(text)?;
    text.push_str(&listing(&status.volumes));
    Ok(())
}
