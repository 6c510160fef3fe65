//! fio writes, reads back and verifies every block, through its nbd engine.

use crate::export::Export;
use crate::tool::Tool;
use anyhow::{Result, bail};
use std::path::Path;
use std::time::Duration;

fn fio(export: &Export, size: u64) -> Tool {
    Tool::new("fio")
        .args(["--name=verify", "--ioengine=nbd", "--thread", "--group_reporting"])
        .args([
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_dump=0",
            "--verify_state_save=0",
            "--randrepeat=0",
        ])
        .arg(format!("--uri={}", export.uri()))
        .arg(format!("--size={size}"))
        .timeout(Duration::from_mins(10))
}

/// Random 4 KiB writes, 32 in flight, each verified.
pub fn verifies_random_4k(export: &Export, size: u64) -> Result<()> {
    fio(export, size).args(["--rw=randwrite", "--bs=4k", "--iodepth=32", "--do_verify=1"]).run().map(drop)
}

/// The same with at most so many bytes written, and as many read, a second.
pub fn verifies_random_4k_slowly(export: &Export, size: u64, bytes_per_second: u64) -> Result<()> {
    let rate = format!("--rate={bytes_per_second}");
    fio(export, size)
        .args(["--rw=randwrite", "--bs=4k", "--iodepth=32", "--do_verify=1", &rate])
        .run()
        .map(drop)
}

/// Random writes of 512 bytes to 64 KiB at any sector, with flushes between.
pub fn verifies_mixed_sizes(export: &Export, size: u64) -> Result<()> {
    fio(export, size)
        .args(["--rw=randwrite", "--bsrange=512-64k", "--iodepth=16", "--fsync=64", "--do_verify=1"])
        .args(["--norandommap", "--serialize_overlap=1", "--verify_backlog=256"])
        .run()
        .map(drop)
}

/// Fills the export, trims the first half block by block in random order: that half then reads as zeroes, and the
/// other half as it was. (fio's own mixed trim modes do not keep a trim and a write of one block apart.)
pub fn verifies_trims(export: &Export, size: u64) -> Result<()> {
    let half = size / 2;
    let job = |length: u64| fio(export, length).args(["--bs=4k", "--iodepth=16"]);
    job(size).args(["--rw=randwrite", "--do_verify=1"]).run()?;
    job(half).args(["--rw=randtrim", "--do_verify=0"]).run()?;
    job(half).args(["--rw=read", "--verify=pattern", "--verify_pattern=0x00"]).run()?;
    job(half).args(["--rw=read"]).arg(format!("--offset={half}")).run().map(drop)
}

/// Writes every 4 KiB block once, in random order, for [`verifies_random_reads`].
pub fn fills_4k(export: &Export, size: u64) -> Result<()> {
    fio(export, size)
        .args(["--rw=randwrite", "--bs=4k", "--iodepth=32", "--do_verify=0", "--end_fsync=1"])
        .run()
        .map(drop)
}

/// Reads every 4 KiB block of what [`fills_4k`] wrote, once, in random order, 32 in flight, each verified.
pub fn verifies_random_reads(export: &Export, size: u64) -> Result<()> {
    fio(export, size).args(["--rw=randread", "--bs=4k", "--iodepth=32"]).run().map(drop)
}

/// The first half of a check that something happens in between: writes without reading.
pub fn writes_only(export: &Export, size: u64, seed: u32) -> Result<()> {
    fio(export, size)
        .args(["--rw=randwrite", "--bs=8k", "--iodepth=32", "--do_verify=0", "--end_fsync=1"])
        .arg(format!("--randseed={seed}"))
        .run()
        .map(drop)
}

/// Writes until fio itself, after `seconds`, notes which writes were answered and then runs `crash`.
pub fn writes_until_crash(export: &Export, size: u64, seconds: u32, crash: &str, notes: &Path) -> Result<()> {
    let finished = fio_with_notes(export, size, notes)
        .args(["--do_verify=0", "--verify_state_save=1", "--fsync=512"])
        .arg(format!("--trigger-timeout={seconds}"))
        .arg(format!("--trigger={crash}"))
        .finish()?;
    // However fio takes the loss of its disk: what it noted counts.
    if !notes.join("local-verify-0-verify.state").is_file() {
        bail!("fio noted nothing: {}", finished.describe());
    }
    Ok(())
}

/// Reads and verifies what fio's notes say was answered.
pub fn verifies_notes(export: &Export, size: u64, notes: &Path) -> Result<()> {
    fio_with_notes(export, size, notes)
        .args(["--verify_only=1", "--verify_state_load=1", "--verify_state_save=0"])
        .run()
        .map(drop)
}

fn fio_with_notes(export: &Export, size: u64, notes: &Path) -> Tool {
    Tool::new("fio")
        .args(["--name=verify", "--ioengine=nbd", "--thread", "--rw=randwrite", "--bs=4k", "--iodepth=16"])
        .args(["--verify=crc32c", "--verify_fatal=1", "--verify_dump=0", "--randseed=11"])
        .arg(format!("--aux-path={}", notes.display()))
        .arg(format!("--uri={}", export.uri()))
        .arg(format!("--size={size}"))
}

/// The second half: reads everything that `writes_only` wrote with this seed and verifies it.
pub fn verifies_only(export: &Export, size: u64, seed: u32) -> Result<()> {
    fio(export, size)
        .args(["--rw=randwrite", "--bs=8k", "--iodepth=32", "--verify_only=1"])
        .arg(format!("--randseed={seed}"))
        .run()
        .map(drop)
}
