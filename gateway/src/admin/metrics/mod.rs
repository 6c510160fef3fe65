//! What the gateway tells a monitoring system: one line here for each family, from the same counters as the status.

mod exposition;

use super::types::{Attention, Node, NodeHealth, Status};
use cairn_engine::{CpuBudget, EngineStatus, VolumeStatus};
use exposition::{CONTENT_TYPE, Exposition, Number};

/// The answer of `GET /metrics`.
#[derive(Debug)]
pub struct Metrics {
    pub content_type: &'static str,
    pub text: String,
}

pub(super) fn metrics(status: &Status, engine: Option<&EngineStatus>) -> Metrics {
    let mut page = Exposition::default();
    gateway(&mut page, status);
    if let Some(engine) = engine {
        log_and_destage(&mut page, engine);
        reclaim(&mut page, engine);
        page.counter("checkpoints_total", "Checkpoints of the catalog taken.", engine.record.taken);
        groups(&mut page, engine);
        cpu_and_memory(&mut page, engine);
        volumes(&mut page, &engine.volumes);
        page.gauge("volumes_not_served", "Volumes that could not be opened.", engine.not_served.len() as u64);
    }
    attachments(&mut page, status);
    pool(&mut page, status);
    nodes(&mut page, &status.pool.nodes);
    Metrics { content_type: CONTENT_TYPE, text: page.into_text() }
}

fn gateway(page: &mut Exposition, status: &Status) {
    let labels = [
        ("version", &*status.version),
        ("site", &*status.site.name),
        ("site_id", &*status.site.id),
        ("gateway_id", &*status.gateway.id),
    ];
    page.labelled("build_info", "The program, its site and its gateway.", [(&labels[..], Number::Whole(1))]);
    page.gauge(
        "uptime_seconds",
        "Time since the gateway started.",
        status.gateway.uptime_seconds.unwrap_or(0),
    );
    page.gauge(
        "nbd_connections",
        "Clients that have a volume open.",
        status.gateway.nbd_connections.unwrap_or(0),
    );
    let count = |severity: &str| {
        let is_meant = |entry: &&Attention| entry.severity == severity;
        Number::Whole(status.attention.iter().filter(is_meant).count() as u64)
    };
    page.labelled(
        "attention",
        "Things that somebody should do something about; `cairn status` says which.",
        [(&[("severity", "error")][..], count("error")), (&[("severity", "warning")][..], count("warning"))],
    );
}

fn log_and_destage(page: &mut Exposition, engine: &EngineStatus) {
    let (wal, destage) = (&engine.wal, &engine.destage);
    page.gauge("wal_capacity_bytes", "Size of the write-ahead log.", wal.capacity_bytes);
    page.gauge("wal_used_bytes", "Part of the write-ahead log in use.", wal.used_bytes);
    page.gauge("wal_dirty", "Whether the log holds writes that the pool does not.", wal.dirty);
    page.gauge("wal_poisoned", "Whether the log takes no more writes.", wal.poisoned.is_some());
    page.gauge("destage_backlog_bytes", "Written and not in the pool yet.", destage.backlog_bytes);
    page.gauge("destage_batches_in_flight", "Batches on their way.", destage.batches_in_flight);
    page.gauge("destage_failing", "Whether something keeps writes from the pool.", destage.problem.is_some());
    page.counter("destage_batches_total", "Batches committed.", destage.batches_committed);
    page.counter(
        "destaged_bytes_total",
        "Guests' bytes in committed batches.",
        destage.reduction.written_bytes,
    );
    reduction(page, engine);
    page.gauge("pool_full", "Whether the pool has no space left.", destage.pool_full);
}

fn reduction(page: &mut Exposition, engine: &EngineStatus) {
    let flow = engine.destage.reduction;
    page.counter("destaged_zero_bytes_total", "Of them, zeros that became holes.", flow.zero_bytes);
    page.counter(
        "destaged_shared_bytes_total",
        "Of them, blocks that were stored already.",
        flow.shared_bytes,
    );
    page.counter("destaged_unique_bytes_total", "Of them, blocks that were stored.", flow.unique_bytes);
    page.counter("destaged_stored_bytes_total", "What those took, compressed and sealed.", flow.stored_bytes);
    let (dedupe, index) = (&engine.dedupe, &engine.dedupe.index);
    page.gauge("dedupe_index_containers", "Containers that the index knows.", index.containers);
    page.gauge("dedupe_index_bytes", "Disk of the index.", index.disk_bytes);
    page.gauge("dedupe_index_in_memory", "Whether the index has no disk.", index.in_memory_only.is_some());
    page.counter("dedupe_hits_total", "Look-ups that found a block.", index.hits);
    page.counter("dedupe_misses_total", "Look-ups that did not.", index.misses);
    page.counter("dedupe_damaged_total", "Records of the index that were damaged.", index.damaged);
    page.counter("dedupe_collisions_total", "Blocks of one fingerprint that differ.", dedupe.collisions);
    page.counter(
        "dedupe_refused_batches_total",
        "Batches packed again without the index.",
        dedupe.refused_batches,
    );
    let Some(flash) = &engine.flash else { return };
    page.gauge("flash_capacity_bytes", "Size of the flash cache.", flash.capacity_bytes);
    page.gauge("flash_used_bytes", "Part of it that holds chunks.", flash.used_bytes);
    page.gauge("flash_retired", "Whether it is not used any more.", flash.retired.is_some());
    page.gauge(
        "flash_shortfall_bytes",
        "What it lacks of the working set.",
        flash.shortfall_bytes.unwrap_or(0),
    );
    page.counter("flash_hits_total", "Reads that it served.", flash.hits);
    page.counter("flash_misses_total", "Reads that it did not.", flash.misses);
    page.counter("flash_inserted_bytes_total", "Bytes of chunks written to it.", flash.inserted_bytes);
    page.counter("flash_dropped_total", "Chunks not written for lack of room or bandwidth.", flash.dropped);
    page.counter("flash_rejected_total", "Chunks kept out in favour of others.", flash.rejected);
    page.counter("flash_damaged_total", "Damage found on it.", flash.damaged);
    page.counter("flash_io_errors_total", "Failures of its device.", flash.io_errors);
}

fn reclaim(page: &mut Exposition, engine: &EngineStatus) {
    let reclaim = &engine.reclaim;
    page.counter("reclaim_passes_total", "Searches for what nothing points at.", reclaim.passes);
    page.counter("reclaimed_objects_total", "Objects that they deleted.", reclaim.total.objects);
    page.counter("reclaimed_bytes_total", "Bytes of those.", reclaim.total.object_bytes);
    page.counter(
        "reclaim_moved_bytes_total",
        "Bytes that they wrote to the pool for what was left of sparse segments.",
        reclaim.total.moved_bytes,
    );
}

fn groups(page: &mut Exposition, engine: &EngineStatus) {
    let groups = &engine.groups;
    page.counter(
        "group_runs_complete_total",
        "Runs of groups in which all volumes were snapshotted.",
        groups.runs_complete,
    );
    page.counter("group_runs_partial_total", "Runs in which some were.", groups.runs_partial);
    page.counter("group_runs_failed_total", "Runs in which none was.", groups.runs_failed);
    page.counter("group_runs_nothing_total", "Runs that matched no volume.", groups.runs_nothing);
    page.counter(
        "group_runs_missed_total",
        "Instants of schedules that had no run of their own.",
        groups.missed,
    );
    page.counter("group_snapshots_pruned_total", "Snapshots that retention deleted.", groups.pruned);
    page.counter("group_prune_failures_total", "Snapshots that it could not delete.", groups.prune_failures);
}

fn cpu_and_memory(page: &mut Exposition, engine: &EngineStatus) {
    let cpu = engine.cpu;
    let budgets = CpuBudget::ALL.map(|budget| ([("budget", budget.name())], budget == cpu.budget));
    page.labelled(
        "cpu_budget",
        "1 for the CPU budget that is chosen.",
        budgets.iter().map(|(labels, is_chosen)| (&labels[..], Number::from(*is_chosen))),
    );
    page.gauge(
        "cpu_budget_raised",
        "Whether all cores work: the log is nearly full, or somebody waits until everything is in the pool.",
        cpu.raised,
    );
    page.gauge("cpu_cores", "Cores that the budget is a share of.", cpu.cores);
    page.gauge("compute_threads", "Threads that hash, compress and seal.", cpu.threads);
    page.gauge("block_cache_bytes", "Decoded data in memory.", engine.block_cache_bytes);
    page.gauge("map_cache_bytes", "Maps of volumes in memory.", engine.map_cache_bytes);
}

fn volumes(page: &mut Exposition, volumes: &[VolumeStatus]) {
    let mut per = page.per("volume", volumes, |volume| &volume.name);
    per.gauge("volume_size_bytes", "Size that guests see.", |volume| volume.size_bytes);
    per.gauge("volume_serving", "Whether it is served.", |volume| volume.condition == "serving");
    per.gauge("volume_read_only", "Whether writes are refused.", |volume| volume.read_only);
    per.gauge("volume_generation", "Term of its ownership.", |volume| volume.generation);
    per.gauge("volume_last_write", "Position of the last write in its order.", |volume| volume.last_write);
    per.gauge("volume_unfolded_pieces", "Map changes not folded yet.", |volume| volume.unfolded_pieces);
}

fn attachments(page: &mut Exposition, status: &Status) {
    page.gauge("snapshots", "Snapshots of all volumes.", status.snapshots);
    page.gauge("groups", "Protection groups.", status.groups);
    let mut per = page.per("volume", &status.volumes, |volume| &volume.name);
    per.info("volume_info", "The volume's identity.", |volume| {
        vec![("id", &*volume.id), ("durability", &*volume.durability)]
    });
    per.gauge("volume_logical_bytes", "Blocks that hold data.", |volume| volume.usage.logical_bytes);
    per.gauge("volume_written_bytes", "Brought to the pool since it was made.", |volume| {
        volume.usage.written_bytes
    });
    per.gauge("volume_shared_bytes", "Of them, stored already.", |volume| volume.usage.shared_bytes);
    per.gauge("volume_unique_bytes", "Of them, stored.", |volume| volume.usage.unique_bytes);
    per.gauge("volume_stored_bytes", "What those took.", |volume| volume.usage.stored_bytes);
    per.gauge("volume_snapshots", "Snapshots that it has.", |volume| volume.snapshots);
    per.gauge_of_some("volume_attachments", "Connections that have the volume itself open.", |volume| {
        volume.attachments
    });
}

fn pool(page: &mut Exposition, status: &Status) {
    page.gauge("pool_segments", "Objects in the pool.", status.pool.segments);
    page.gauge("pool_segment_bytes", "Their bytes.", status.pool.segment_bytes);
    page.gauge("logical_bytes", "Blocks that hold data, of all volumes.", status.reduction.logical_bytes);
    page.gauge("unique_bytes", "Plaintext of what the pool holds.", status.reduction.unique_bytes);
    page.gauge("stored_bytes", "The same compressed and sealed.", status.reduction.stored_bytes);
}

fn nodes(page: &mut Exposition, nodes: &[Node]) {
    let mut per = page.per("node", nodes, |node| &node.name);
    per.info("node_info", "The data node and where it is.", |node| {
        vec![("id", &*node.id), ("url", &*node.url), ("state", &*node.state)]
    });
    let mut per = page.per("node", nodes, |node| &node.name);
    per.gauge("node_shards", "Shards of segments that it holds.", |node| node.shards);
    per.gauge("node_used_bytes", "What they take.", |node| node.used_bytes);
    let seen: Vec<(&str, &NodeHealth)> =
        nodes.iter().filter_map(|node| Some((&*node.name, node.health.as_ref()?))).collect();
    let mut per = page.per("node", &seen, |(name, _)| name);
    per.gauge("node_failing", "Whether its latest request failed.", |(_, health)| health.failing);
    per.counter("node_retries_total", "Requests repeated.", |(_, health)| health.retries);
    per.counter("node_errors_total", "Requests given up.", |(_, health)| health.errors);
    per.counter("node_damaged_total", "Chunks and shards that failed verification.", |(_, health)| {
        health.damaged
    });
    per.counter("segment_puts_total", "Puts that succeeded.", |(_, health)| health.puts);
    per.counter("segment_put_requests_total", "Puts tried.", |(_, health)| health.put_requests);
    per.counter("segment_put_bytes_total", "Bytes put.", |(_, health)| health.put_bytes);
    per.counter("segment_gets_total", "Gets that succeeded.", |(_, health)| health.gets);
    per.counter("segment_get_requests_total", "Gets tried.", |(_, health)| health.get_requests);
    per.counter("segment_get_bytes_total", "Bytes got.", |(_, health)| health.get_bytes);
    per.counter("segment_deletes_total", "Deletes that succeeded.", |(_, health)| health.deletes);
    per.counter("segment_delete_requests_total", "Deletes tried.", |(_, health)| health.delete_requests);
}
