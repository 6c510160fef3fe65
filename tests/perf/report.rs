//! Medians, ratios, and the Markdown page.

use crate::Options;
use crate::contender::Contender;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Row {
    Write1,
    Write32,
    Read1,
    Read32,
    WriteFlush1,
    WriteFlush1Every32,
    WriteFlush32,
    WriteFlush32Every32,
    QemuImgWrite,
    QemuImgRead,
    SequentialWrite,
    SequentialNoise,
    SequentialRepeats,
    SequentialRead,
    ScatteredRead,
    FlashRead1,
    FlashRead32,
    ColdFirstRead,
    ColdRead1,
    ColdSequentialRead,
}

impl Row {
    pub(crate) const ALL: [Self; 20] = [
        Self::Write1,
        Self::Write32,
        Self::Read1,
        Self::Read32,
        Self::WriteFlush1,
        Self::WriteFlush1Every32,
        Self::WriteFlush32,
        Self::WriteFlush32Every32,
        Self::QemuImgWrite,
        Self::QemuImgRead,
        Self::SequentialWrite,
        Self::SequentialNoise,
        Self::SequentialRepeats,
        Self::SequentialRead,
        Self::ScatteredRead,
        Self::FlashRead1,
        Self::FlashRead32,
        Self::ColdFirstRead,
        Self::ColdRead1,
        Self::ColdSequentialRead,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Write1 => "4 KiB random write, QD1",
            Self::Write32 => "4 KiB random write, QD32",
            Self::Read1 => "4 KiB random read, QD1, warm",
            Self::Read32 => "4 KiB random read, QD32, warm",
            Self::WriteFlush1 => "4 KiB random write + flush each, QD1",
            Self::WriteFlush1Every32 => "4 KiB random write, flush every 32, QD1",
            Self::WriteFlush32 => "4 KiB random write + flush each, QD32",
            Self::WriteFlush32Every32 => "4 KiB random write, flush every 32, QD32",
            Self::QemuImgWrite => "qemu-img bench, 4 KiB write, depth 32",
            Self::QemuImgRead => "qemu-img bench, 4 KiB read, depth 32",
            Self::SequentialWrite => "1 MiB sequential write, programs",
            Self::SequentialNoise => "1 MiB sequential write, noise",
            Self::SequentialRepeats => "1 MiB sequential write, repeats",
            Self::FlashRead1 => "4 KiB random read, QD1, from flash",
            Self::FlashRead32 => "4 KiB random read, QD32, from flash",
            Self::ScatteredRead => "1 MiB sequential read, after random writes",
            Self::SequentialRead => "1 MiB sequential read, warm",
            Self::ColdFirstRead => "first 4 KiB read after a restart",
            Self::ColdRead1 => "4 KiB random read, QD1, cold",
            Self::ColdSequentialRead => "1 MiB sequential read, cold",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::SequentialWrite
            | Self::SequentialNoise
            | Self::SequentialRepeats
            | Self::SequentialRead
            | Self::ScatteredRead
            | Self::ColdSequentialRead => "MB/s",
            Self::ColdFirstRead => "ms",
            _ => "op/s",
        }
    }

    fn less_is_better(self) -> bool {
        self == Self::ColdFirstRead
    }
}

/// What one core can do, in MB/s, from the segment writer's own measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CoreLimits {
    /// Programs, compressed and sealed.
    compress_and_seal: f64,
    /// Noise, fingerprinted and sealed.
    hash_and_seal: f64,
}

impl CoreLimits {
    /// From the report of `cpu_limits`.
    pub(crate) fn of(report: &Value) -> Result<Self> {
        let limit = |what: &str| {
            let rate = report.pointer(&format!("/{what}/mb_per_s")).and_then(Value::as_f64);
            rate.with_context(|| format!("cpu_limits reports no {what}.mb_per_s: {report}"))
        };
        Ok(Self {
            compress_and_seal: limit("compress_and_seal")?,
            hash_and_seal: limit("fingerprint_and_seal_random_data")?,
        })
    }
}

/// What Cairn asks of its pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) puts_per_gib: f64,
    pub(crate) bytes_put_per_byte: f64,
}

/// Every sample of every round.
#[derive(Default)]
pub(crate) struct Results {
    samples: BTreeMap<(Row, Contender), Vec<f64>>,
    cpu: BTreeMap<(Row, Contender), Vec<f64>>,
    costs: BTreeMap<Row, Vec<Cost>>,
    pool_reads: BTreeMap<Row, Vec<f64>>,
}

impl Results {
    pub(crate) fn add(&mut self, contender: Contender, row: Row, value: f64) {
        eprintln!("  {:<44} {value:>12.1} {}", row.name(), row.unit());
        self.samples.entry((row, contender)).or_default().push(value);
    }

    pub(crate) fn add_cpu(&mut self, contender: Contender, row: Row, seconds_per_gib: f64) {
        self.cpu.entry((row, contender)).or_default().push(seconds_per_gib);
    }

    pub(crate) fn add_cost(&mut self, row: Row, cost: Cost) {
        self.costs.entry(row).or_default().push(cost);
    }

    /// Requests to Cairn's pool for each read of a guest.
    pub(crate) fn add_pool_reads(&mut self, row: Row, per_read: f64) {
        self.pool_reads.entry(row).or_default().push(per_read);
    }

    fn median(&self, contender: Contender, row: Row) -> Option<f64> {
        self.samples.get(&(row, contender)).map(|samples| median(samples))
    }

    /// How many times as good as `qemu-nbd` on a raw file.
    pub(crate) fn ratio(&self, contender: Contender, row: Row) -> Option<f64> {
        let (ours, theirs) = (self.median(contender, row)?, self.median(Contender::QemuNbd, row)?);
        Some(if row.less_is_better() { theirs / ours } else { ours / theirs })
    }
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

/// A figure with as many digits as it deserves.
fn figure(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// `bare_writes` is what [`crate::floor::log_and_pool`] says, in MB/s.
pub(crate) fn markdown(
    results: &Results,
    options: &Options,
    limits: &CoreLimits,
    bare_writes: f64,
) -> Result<String> {
    let mut page = String::from(
        "# Performance\n\nMade by `just bench`, which overwrites this page. Everything was measured in one run on one machine, the \
         contenders in turn, round after round; figures are medians, and in brackets how many times as good as `qemu-nbd`. \
         The absolute figures belong to that machine; only the ratios travel.\n\n",
    );
    if options.quick {
        page.push_str(
            "**This was a quick run: short workloads, good for finding mistakes, not for quoting.**\n\n",
        );
    }
    write!(
        page,
        "Machine: {}. {} rounds, {} s for each random workload, {} MiB worked on, {} s of sustained writing.\n\n",
        machine()?,
        options.rounds,
        options.seconds,
        options.area_bytes >> 20,
        options.sustained_seconds
    )?;
    page.push_str("![Ratios to qemu-nbd](performance.svg)\n\n");
    speeds(&mut page, results, options)?;
    targets(&mut page, results, limits, bare_writes)?;
    costs(&mut page, results, options)?;
    method(&mut page, options)?;
    Ok(page)
}

fn machine() -> Result<String> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map(|(_, name)| name);
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let version: String = kernel.trim().chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    Ok(format!(
        "{}, {cores} cores shared with the load generator, Linux {version}",
        model.unwrap_or("unknown processor").trim()
    ))
}

fn speeds(page: &mut String, results: &Results, options: &Options) -> Result<()> {
    page.push_str("## Speed\n\n| workload | unit |");
    for contender in &options.contenders {
        write!(page, " {} |", contender.name())?;
    }
    page.push_str("\n|---|---|");
    page.push_str(&"---:|".repeat(options.contenders.len()));
    page.push('\n');
    for row in Row::ALL {
        write!(page, "| {} | {} |", row.name(), row.unit())?;
        for contender in &options.contenders {
            match (results.median(*contender, row), results.ratio(*contender, row)) {
                (Some(value), Some(ratio)) => write!(page, " {} ({}) |", figure(value), figure(ratio))?,
                (Some(value), None) => write!(page, " {} |", figure(value))?,
                (None, _) => page.push_str(" – |"),
            }
        }
        page.push('\n');
    }
    page.push('\n');
    Ok(())
}

/// What we want to reach, as ratios.
fn targets(page: &mut String, results: &Results, limits: &CoreLimits, bare_writes: f64) -> Result<()> {
    let CoreLimits { compress_and_seal: compress, hash_and_seal: hash } = *limits;
    let of = |row, limit: f64| results.median(Contender::Cairn, row).map(|rate| rate / limit);
    let ratio = |row| results.ratio(Contender::Cairn, row);
    let lines = [
        ("4 KiB random write QD32, of qemu-nbd", ratio(Row::Write32), 1.0),
        ("4 KiB random read QD32 from RAM, of qemu-nbd", ratio(Row::Read32), 1.0),
        ("4 KiB write + flush QD1, of qemu-nbd", ratio(Row::WriteFlush1), 1.2),
        ("4 KiB random read QD32 from flash, of qemu-nbd", ratio(Row::FlashRead32), 0.5),
        (
            "sequential write of programs, of one core's compress + seal",
            of(Row::SequentialWrite, compress),
            0.5,
        ),
        ("sequential write of noise, of one core's hash + seal", of(Row::SequentialNoise, hash), 0.6),
    ];
    page.push_str("## Targets\n\n| what | target | measured | |\n|---|---:|---:|---|\n");
    for (what, target, measured) in lines.map(|(what, measured, target)| (what, target, measured)) {
        let Some(measured) = measured else { continue };
        let verdict = if measured >= target { "met" } else { "**missed**" };
        writeln!(page, "| {what} | {target:.1} | {measured:.2} | {verdict} |")?;
    }
    writeln!(
        page,
        "\nOne core compresses and seals {compress:.0} MB/s of programs, and hashes and seals {hash:.0} MB/s of noise (`cpu_limits`).\n"
    )?;
    writeln!(
        page,
        "A program that does nothing but write, each byte to a log and, in synced objects of 8 MiB, to a pool on the same disk, \
         gets {bare_writes:.0} MB/s from this disk (`tests/perf/floor.rs`)."
    )?;
    if let Some(noise) = results.median(Contender::Cairn, Row::SequentialNoise) {
        writeln!(page, "Cairn writes noise at {:.2} of that.", noise / bare_writes)?;
    }
    page.push('\n');
    Ok(())
}

fn costs(page: &mut String, results: &Results, options: &Options) -> Result<()> {
    page.push_str("## Cost\n\nProcessor seconds of the server for each GiB moved.\n\n| workload |");
    let servers: Vec<Contender> =
        options.contenders.iter().copied().filter(|contender| *contender != Contender::Disk).collect();
    for contender in &servers {
        write!(page, " {} |", contender.name())?;
    }
    page.push_str("\n|---|");
    page.push_str(&"---:|".repeat(servers.len()));
    page.push('\n');
    for row in [
        Row::Write32,
        Row::Read32,
        Row::FlashRead32,
        Row::SequentialWrite,
        Row::SequentialNoise,
        Row::SequentialRepeats,
        Row::SequentialRead,
        Row::ScatteredRead,
        Row::ColdSequentialRead,
    ] {
        write!(page, "| {} |", row.name())?;
        for contender in &servers {
            match results.cpu.get(&(row, *contender)) {
                Some(samples) => write!(page, " {} |", figure(median(samples)))?,
                None => page.push_str(" – |"),
            }
        }
        page.push('\n');
    }
    page.push('\n');
    pool_costs(page, results)
}

fn pool_costs(page: &mut String, results: &Results) -> Result<()> {
    if results.costs.is_empty() {
        return Ok(());
    }
    page.push_str(
        "What Cairn asks of its pool.\n\n| workload | puts per GiB | bytes put per byte | gets per read |\n|---|---:|---:|---:|\n",
    );
    for row in Row::ALL {
        if let Some(costs) = results.costs.get(&row) {
            let of = |pick: fn(&Cost) -> f64| figure(median(&costs.iter().map(pick).collect::<Vec<_>>()));
            let (puts, bytes) = (of(|cost| cost.puts_per_gib), of(|cost| cost.bytes_put_per_byte));
            writeln!(page, "| {} | {puts} | {bytes} | – |", row.name())?;
        }
        if let Some(reads) = results.pool_reads.get(&row) {
            writeln!(page, "| {} | – | – | {:.3} |", row.name(), median(reads))?;
        }
    }
    page.push('\n');
    Ok(())
}

fn method(page: &mut String, options: &Options) -> Result<()> {
    page.push_str("## Method\n\n");
    for contender in &options.contenders {
        writeln!(page, "- **{}**: {}.", contender.name(), contender.description())?;
    }
    page.push_str(
        "\nEvery round gives every contender fresh storage on the same disk, fills the area, reads it once, and runs the workloads in one \
         order: reads, writes, `qemu-img bench`, reads from flash, cold reads, sustained writing. Servers are reached over a Unix socket by \
         fio's nbd engine. Between write workloads everything is flushed, and Cairn's log is brought to the pool.\n\n\
         Sequential writing goes on round and round over 8 GiB, eight requests in flight; the clock stops when everything is flushed and, \
         for Cairn, in the pool. *Programs* are the content of `/usr/bin`, every block made unique. *Noise* is random, every block unique: \
         nothing to compress, nothing to share. *Repeats* are 64 MiB of `/usr/bin` again and again at other addresses, after the first \
         time, which is not counted. Noise and repeats are written for a third of the time.\n\n\
         From flash means that the area was read once, then the server was restarted, Cairn with 16 MiB of block cache; the kernel's caches \
         are kept, with all of the area in them for those who use them. Cold means that the server was restarted, Cairn's flash was emptied and the kernel's caches were dropped. `nbdkit memory` has nothing to \
         restart with.\n",
    );
    Ok(())
}
