//! The released program on a real Ceph RGW.
#![expect(clippy::disallowed_methods, reason = "tests from outside live on the machine's own clock")]

mod pool;

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use system_tests::checks::compare_files;
use system_tests::export::Export;
use system_tests::filesystem::{Disk, Kind};
use system_tests::gateway::Gateway;
use system_tests::image;
use system_tests::object_store::Ceph;
use system_tests::random::Random;
use system_tests::tool::Tool;

const MIB: u64 = 1 << 20;

fn gateway_on(ceph: &Ceph, bucket: &str) -> Result<Gateway> {
    let gateway = Gateway::new_with(ceph.credentials())?;
    gateway.command(["init", "--create-bucket", "--pool", &ceph.node_url(bucket)?]).run()?;
    Ok(gateway)
}

fn number(gateway: &Gateway, path: &str) -> Result<u64> {
    let status = gateway.status()?;
    status.pointer(path).and_then(serde_json::Value::as_u64).with_context(|| format!("no {path} in {status}"))
}

/// A disk image of more than a gibibyte, made from this machine's own Debian tree.
fn debian_image(file: &Path) -> Result<()> {
    image::make_disk_image(file, 2048 * MIB, 1200 * MIB)
}

#[test]
fn a_debian_image_outlives_the_gateway_and_its_log() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (image, back) = (folder.path().join("debian.raw"), folder.path().join("back.raw"));
    debian_image(&image)?;
    let ceph = Ceph::start()?;
    let mut gateway = gateway_on(&ceph, "debian")?;
    gateway.start()?;
    gateway.import("debian", &image)?;
    gateway.destage()?;
    let stored = number(&gateway, "/pool/segment_bytes")?;
    assert!(stored > 100 * MIB, "only {stored} bytes are in the pool");

    gateway.stop()?;
    std::fs::remove_dir_all(gateway.dir().join("wal"))?;
    gateway.start()?;
    gateway.kill()?;
    gateway.start()?;
    gateway.export_volume("debian", &back)?;
    compare_files(&image, &back)?;
    let disk = Disk::attach(&gateway.export("debian"))?;
    Kind::Ext4.check(disk.device())?;
    disk.detach()?;
    gateway.stop()
}

#[test]
fn a_debian_image_survives_sigkill_right_after_the_import() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (image, back) = (folder.path().join("debian.raw"), folder.path().join("back.raw"));
    image::make_disk_image(&image, 768 * MIB, 400 * MIB)?;
    let ceph = Ceph::start()?;
    let mut gateway = gateway_on(&ceph, "killed")?;
    gateway.start()?;
    gateway.create_volume("copied", 768 * MIB)?;
    Tool::new("nbdcopy")
        .args(["--flush", "--requests=64"])
        .arg(&image)
        .arg(gateway.export("copied").uri())
        .timeout(Duration::from_mins(5))
        .run()?;
    gateway.kill()?;
    gateway.start()?;
    gateway.export_volume("copied", &back)?;
    compare_files(&image, &back)?;
    gateway.stop()
}

/// Writes numbered blocks over and over until told to stop; no answer may be an error, however long it takes.
fn write_until(export: &Export, blocks: u64, stop: &AtomicBool, written: &AtomicU64) -> Result<()> {
    let mut client = export.connect()?;
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        client.write(number % blocks * 65_536, &content(number))?;
        number += 1;
        if number % 16 == 0 {
            client.flush()?;
        }
        written.store(number, Ordering::SeqCst);
    }
    client.flush()?;
    client.disconnect()
}

/// 64 KiB that neither compress nor repeat.
fn content(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; 65_536];
    Random::seeded(number).fill(&mut bytes);
    bytes
}

fn verify(export: &Export, blocks: u64, written: u64) -> Result<()> {
    let mut client = export.connect()?;
    for block in 0..blocks.min(written) {
        let last = (written - 1 - block) / blocks * blocks + block;
        if client.read(block * 65_536, 65_536)? != content(last) {
            bail!("block {block} does not hold write {last} of {written}");
        }
    }
    client.disconnect()
}

#[test]
fn a_store_that_is_down_for_a_while_costs_no_error_and_no_write() -> Result<()> {
    const BLOCKS: u64 = 4096;
    let mut ceph = Ceph::start()?;
    let mut gateway = gateway_on(&ceph, "outage")?;
    gateway.start()?;
    gateway.create_volume("vol", BLOCKS * 65_536)?;
    let export = gateway.export("vol");
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(|| write_until(&export, BLOCKS, &stop, &written));
        let mut outage = || -> Result<()> {
            for seconds in [5, 20] {
                std::thread::sleep(Duration::from_secs(5));
                ceph.kill_gateway()?;
                let before = written.load(Ordering::SeqCst);
                std::thread::sleep(Duration::from_secs(seconds));
                let during = written.load(Ordering::SeqCst) - before;
                assert!(
                    during > 0,
                    "no write was acknowledged while the store was down, with room in the log"
                );
                ceph.up()?;
            }
            std::thread::sleep(Duration::from_secs(5));
            Ok(())
        };
        let outcome = outage();
        stop.store(true, Ordering::SeqCst);
        writer.join().expect("the writer panicked").context("the writer, during an outage")?;
        outcome
    })?;
    let written = written.load(Ordering::SeqCst);
    verify(&export, BLOCKS, written)?;
    gateway.destage()?;
    gateway.stop()?;
    std::fs::remove_dir_all(gateway.dir().join("wal"))?;
    gateway.start()?;
    verify(&gateway.export("vol"), BLOCKS, written)?;
    gateway.stop()
}

#[test]
fn a_gateway_killed_while_the_store_is_down_keeps_what_was_acknowledged() -> Result<()> {
    const BLOCKS: u64 = 1024;
    let mut ceph = Ceph::start()?;
    let mut gateway = gateway_on(&ceph, "both")?;
    gateway.start()?;
    gateway.create_volume("vol", BLOCKS * 65_536)?;
    ceph.kill_gateway()?;
    let mut client = gateway.export("vol").connect()?;
    for number in 0..BLOCKS {
        client.write(number * 65_536, &content(number))?;
    }
    client.flush()?;
    gateway.kill()?;
    ceph.up()?;
    gateway.start()?;
    verify(&gateway.export("vol"), BLOCKS, BLOCKS)?;
    gateway.stop()
}

#[test]
fn an_idle_gateway_sends_the_store_nothing() -> Result<()> {
    let ceph = Ceph::start()?;
    let mut gateway = gateway_on(&ceph, "idle")?;
    gateway.start()?;
    gateway.create_volume("vol", 64 * MIB)?;
    gateway.export("vol").connect()?.write(0, &content(1))?;
    gateway.destage()?;
    let requests = |gateway: &Gateway| -> Result<u64> {
        Ok(number(gateway, "/pool/put_requests")? + number(gateway, "/pool/get_requests")?)
    };
    // What was made is recorded in the pool, once.
    let is_recorded = |gateway: &Gateway| -> Result<bool> {
        Ok(gateway.status()?.pointer("/record/waits").and_then(serde_json::Value::as_bool) == Some(false))
    };
    let deadline = std::time::Instant::now() + Duration::from_mins(1);
    while !is_recorded(&gateway)? {
        anyhow::ensure!(std::time::Instant::now() < deadline, "no checkpoint within a minute");
        std::thread::sleep(Duration::from_millis(100));
    }
    // Once, a minute after the start, the reserve is looked for and made; and an idle node is asked every minute whether it is there. Of these spans one has neither.
    let mut counts = vec![requests(&gateway)?];
    for _ in 0..4 {
        std::thread::sleep(Duration::from_secs(12));
        counts.push(requests(&gateway)?);
    }
    let is_one_quiet = counts.windows(2).any(|pair| pair[0] == pair[1]);
    assert!(is_one_quiet, "requests cost money even when nothing happens: {counts:?}");
    let made = counts[counts.len() - 1] - counts[0];
    assert!(made <= 6, "{made} requests of an idle gateway: {counts:?}");
    gateway.stop()
}
