//! A log of several files as a gateway would have written it, then damage, then recovery.
//!
//! What must hold: recovery ends; the records it yields are consecutive and each is the one that was sealed under its number;
//! everything is there that an undamaged frame or header says was durable, from the first record that nobody freed, or recovery
//! says that the log is corrupt; without damage every record is there.

use super::bytes::record;
use crate::input::Input;
use crate::{Seeds, lie};
use cairn_model::Lsn;
use cairn_wal::fuzzing::{BuiltFile, FilePlan, FramePlan, build_file, identity, key};
use cairn_wal::testing::{MemoryDisk, ports};
use cairn_wal::{Disk, Record, Wal, WalConfig, WalError};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

const PAGE: usize = 4096;

/// In the setup: headers as early versions wrote them, which do not say whose they are.
const EARLY: u8 = 4;

/// A log as it was written.
struct Log {
    plans: Vec<FilePlan>,
    files: Vec<BuiltFile>,
    records: BTreeMap<u64, Record>,
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let setup = input.byte();
    let log = write(&mut input, setup);
    let mut files: Vec<Vec<u8>> = log.files.iter().map(|file| file.bytes.clone()).collect();
    let mut damaged = false;
    while !input.is_empty() {
        damage(&mut input, &log, &mut files);
        damaged = true;
    }
    let recovered = recover(&log, &files, setup & 0x80 != 0);
    let mut records = match recovered {
        Err(error) => {
            assert!(damaged, "a sound log is refused: {error}");
            return;
        }
        Ok(records) => records,
    };
    if lie::told()
        && let Some((lsn, _)) = records.last_mut()
    {
        *lsn = lsn.next();
    }
    check(&log, &files, &records, damaged);
}

fn check(log: &Log, files: &[Vec<u8>], records: &[(Lsn, Record)], damaged: bool) {
    for pair in records.windows(2) {
        assert_eq!(pair[0].0.next(), pair[1].0, "recovered records are consecutive");
    }
    for (lsn, record) in records {
        assert_eq!(log.records.get(&lsn.get()), Some(record), "record {lsn} is not what was written");
    }
    let written = log.records.len() as u64;
    let claims = || log.plans.iter().zip(&log.files).zip(files);
    let freed = log.plans.iter().flat_map(|plan| plan.frames.iter().map(|frame| frame.freed_through));
    let freed = freed.chain(log.plans.iter().map(|plan| plan.freed_through)).max().unwrap_or(0);
    let mut durable = 0;
    for ((plan, built), now) in claims() {
        let sound = |place: Range<usize>| now.get(place.clone()) == Some(&built.bytes[place]);
        // The header of another file in the place of its own: it says so. Early ones do not, and their whole file is lost.
        let replaced = log
            .files
            .iter()
            .any(|other| other.name != built.name && now.get(..PAGE) == Some(&other.bytes[..PAGE]));
        if replaced {
            assert!(!plan.says_number, "{} has the header of another file", built.name);
            continue;
        }
        if sound(0..PAGE) {
            durable = durable.max(plan.synced_through);
        }
        for (frame, place) in plan.frames.iter().zip(&built.frames) {
            if sound(place.clone()) {
                durable = durable.max(frame.synced_through);
            }
        }
    }
    let wanted = if damaged { durable } else { written };
    if wanted > freed {
        let first = records.first().map_or(u64::MAX, |(lsn, _)| lsn.get());
        let last = records.last().map_or(0, |(lsn, _)| lsn.get());
        assert!(first <= freed + 1, "recovery begins at {first}; only {freed} were freed");
        assert!(last >= wanted, "recovery ends at {last}; {wanted} were durable");
    }
}

/// Files that follow one another, claims that are true when they are made.
fn write(input: &mut Input<'_>, setup: u8) -> Log {
    let count = 1 + usize::from(setup & 3);
    let (mut plans, mut records) = (Vec::new(), BTreeMap::new());
    let (mut lsn, mut freed) = (1, 0);
    for file in 0..count {
        // Whatever came before a file was durable before its header was.
        let mut synced = lsn - 1;
        let mut plan = FilePlan {
            number: u32::try_from(file).unwrap(),
            says_number: setup & EARLY == 0,
            epoch: 1 + file as u64,
            previous_epoch: file as u64,
            first_lsn: lsn,
            synced_through: synced,
            freed_through: freed,
            frames: Vec::new(),
            pages_free: usize::from(input.below(4)),
        };
        for _ in 0..input.below(4) {
            let shape = input.byte();
            if shape & 0x10 != 0 {
                synced = lsn - 1;
            }
            if shape & 0x20 != 0 {
                freed = (lsn - 1).min(freed + u64::from(shape >> 6));
            }
            let mut frame =
                FramePlan { records: Vec::new(), synced_through: synced, freed_through: freed, last: false };
            for position in 0..=(shape & 3) {
                let blocks = usize::from(shape & 0x0c == 0x0c && position == 0);
                let made = record(lsn, blocks);
                records.insert(lsn, made.clone());
                frame.records.push(made);
                lsn += 1;
            }
            plan.frames.push(frame);
        }
        if file + 1 < count && setup & 0x40 != 0 {
            let last =
                FramePlan { records: Vec::new(), synced_through: synced, freed_through: freed, last: true };
            plan.frames.push(last);
        }
        plans.push(plan);
    }
    let files = plans.iter().map(build_file).collect();
    Log { plans, files, records }
}

/// A flipped byte, a lost page, a page in the place of another, an end that is gone, a file that is gone.
fn damage(input: &mut Input<'_>, log: &Log, files: &mut [Vec<u8>]) {
    let kind = input.byte();
    let file = usize::from(kind >> 4) % files.len();
    let pages = files[file].len() / PAGE;
    if pages == 0 {
        return;
    }
    let page = usize::from(input.byte()) % pages * PAGE;
    match kind & 7 {
        0..=2 => {
            let at = page + usize::from(input.number::<u16>()) % PAGE;
            files[file][at] ^= input.byte().max(1);
        }
        3 => {
            // In the first sector, where headers are.
            let at = page + usize::from(input.byte());
            files[file][at] ^= input.byte().max(1);
        }
        4 => files[file][page..page + PAGE].fill(0),
        5 => {
            let from = usize::from(input.byte()) % files.len();
            let source = log.files[from].bytes.len() / PAGE;
            let start = usize::from(input.byte()) % source * PAGE;
            let copied = log.files[from].bytes[start..start + PAGE].to_vec();
            files[file][page..page + PAGE].copy_from_slice(&copied);
        }
        6 => files[file].truncate(page + usize::from(input.number::<u16>()) % PAGE),
        _ => files[file][page..page + 512].fill(0),
    }
}

fn recover(log: &Log, files: &[Vec<u8>], to_the_end: bool) -> Result<Vec<(Lsn, Record)>, WalError> {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    }
    let work = async {
        let disk = MemoryDisk::new(1).at_once();
        for (built, bytes) in log.files.iter().zip(files) {
            disk.create(&built.name).await.unwrap();
            disk.tamper(&built.name, |contents| contents.clone_from(bytes));
        }
        let config = WalConfig {
            capacity_bytes: 8 << 20,
            file_bytes: 4 << 20,
            readers: 1,
            create: false,
            ..WalConfig::default()
        };
        let (ports, spawn) = ports(1);
        let opened = Wal::open(config, identity(), &key(), Arc::new(disk), ports).await;
        let mut records = Vec::new();
        let outcome = async {
            let mut recovery = opened?;
            while let Some(next) = recovery.next().await? {
                records.extend(next);
            }
            // A new file is begun on what was read.
            if to_the_end { recovery.finish().await.map(Some) } else { Ok(None) }
        }
        .await;
        spawn.kill().await;
        outcome.map(|_| records)
    };
    RUNTIME.with(|runtime| runtime.block_on(work))
}

pub(crate) fn seeds() -> Seeds {
    let sound: &[(&str, &[u8])] = &[
        ("one-file", &[0, 1, 3, 0x01, 0x12, 0x0d]),
        ("two-files", &[1, 0, 2, 0x11, 0x12, 2, 1, 0x1f]),
        ("three-files-ended", &[0x42, 0, 1, 0x11, 0, 2, 0x32, 0x71, 1, 3, 0x11, 0x12, 0x13]),
        ("freed", &[0x41, 0, 3, 0x13, 0xf3, 0xf3, 1, 2, 0xf1, 0x11]),
        ("finished", &[0x81, 0, 2, 0x11, 0x12, 2, 1, 0x1f]),
    ];
    let damages: &[(&str, &[u8])] = &[
        ("sound", &[]),
        ("flipped", &[0x10, 1, 70, 0, 1]),
        ("header", &[0x03, 0, 60, 1]),
        ("lost-page", &[0x14, 1]),
        ("lost-header", &[0x14, 0]),
        ("misplaced", &[0x15, 1, 0, 1]),
        ("cut", &[0x16, 1, 0, 0]),
    ];
    let mut seeds = Seeds::new();
    for (name, log) in sound {
        for (kind, damage) in damages {
            seeds.push((format!("{name}-{kind}"), [*log, *damage].concat()));
        }
    }
    seeds
}
