//! Bad days of the program itself: wrong keys, wrong configuration, a second copy, lost or full folders.

use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use system_tests::gateway::Gateway;
use system_tests::nbd::wire;
use system_tests::random::Random;
use system_tests::tool::Tool;

const MIB: u64 = 1 << 20;

/// A gateway that was stopped in good order after a volume with some data was made.
fn stopped() -> Result<Gateway> {
    let mut gateway = Gateway::start_fresh()?;
    gateway.create_volume("vol", 64 * MIB)?;
    let mut client = gateway.export("vol").connect()?;
    client.write(0, &vec![7; 65_536])?;
    client.flush()?;
    client.disconnect()?;
    gateway.stop()?;
    Ok(gateway)
}

/// The program refuses to start, says why in words that hold one of these, and shows no inner workings.
fn assert_refused(gateway: &mut Gateway, words: &[&str]) -> Result<()> {
    let said = gateway.start_refused()?;
    let lower = said.to_lowercase();
    assert!(words.iter().any(|word| lower.contains(word)), "none of {words:?} in:\n{said}");
    assert!(!said.contains("panicked") && !said.contains("RUST_BACKTRACE"), "inner workings:\n{said}");
    Ok(())
}

fn assert_holds_its_data(gateway: &mut Gateway) -> Result<()> {
    gateway.start()?;
    assert_eq!(gateway.export("vol").connect()?.read(0, 65_536)?, vec![7; 65_536]);
    Ok(())
}

#[test]
fn sigterm_destages_and_ends_with_zero_and_the_data_is_there_again() -> Result<()> {
    let mut gateway = stopped()?;
    assert_holds_its_data(&mut gateway)
}

#[test]
fn up_prints_how_to_attach() -> Result<()> {
    let gateway = Gateway::start_fresh()?;
    let socket = gateway.socket().display().to_string();
    // The socket can be used a moment before the word about it is out.
    for _ in 0..100 {
        let said = gateway.said();
        if said.contains("disk0") && said.contains(&socket) {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    bail!("no attach command for {socket} in: {}", gateway.said())
}

#[test]
fn a_second_gateway_on_the_same_folder_is_refused() -> Result<()> {
    let gateway = Gateway::start_fresh()?;
    let second = gateway.command(["up", "--nbd", "unix:/tmp/cairn-never-bound.sock"]).run_refused()?;
    let said = second.said().to_lowercase();
    assert!(["already", "in use", "another", "locked"].iter().any(|word| said.contains(word)), "{said}");
    // The first one is not disturbed.
    gateway.export("disk0").connect()?.write(0, &[1; 4096])
}

#[test]
fn a_missing_key_is_an_error_and_never_a_fresh_key() -> Result<()> {
    let mut gateway = stopped()?;
    let (key, kept) = (gateway.dir().join("key"), gateway.dir().join("kept"));
    fs::rename(&key, &kept)?;
    assert_refused(&mut gateway, &["key"])?;
    assert!(!key.exists(), "a key was made up for a folder that has data");
    fs::rename(&kept, &key)?;
    assert_holds_its_data(&mut gateway)
}

#[test]
fn a_wrong_key_is_refused() -> Result<()> {
    let mut gateway = stopped()?;
    let other = stopped()?;
    let key = gateway.dir().join("key");
    let kept = fs::read(&key)?;
    fs::copy(other.dir().join("key"), &key)?;
    assert_refused(&mut gateway, &["key"])?;
    fs::write(&key, kept)?;
    assert_holds_its_data(&mut gateway)
}

#[test]
fn a_damaged_key_is_refused() -> Result<()> {
    let mut gateway = stopped()?;
    let key = gateway.dir().join("key");
    fs::write(&key, "short")?;
    assert_refused(&mut gateway, &["key"])
}

#[test]
fn a_key_that_others_may_read_is_refused() -> Result<()> {
    let mut gateway = stopped()?;
    let key = gateway.dir().join("key");
    assert_eq!(fs::metadata(&key)?.permissions().mode() & 0o777, 0o600, "the key is made private");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644))?;
    assert_refused(&mut gateway, &["key"])?;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
    assert_holds_its_data(&mut gateway)
}

/// Changes the catalog file behind everybody's back.
fn change_catalog(gateway: &Gateway, sql: &str) -> Result<()> {
    let change = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); c.commit(); c.close()";
    let catalog = gateway.dir().join("catalog.db");
    Tool::new("python3").args(["-c", change]).arg(&catalog).arg(sql).run().map(drop)
}

#[test]
fn a_folder_of_a_newer_program_is_refused_and_left_alone() -> Result<()> {
    let mut gateway = stopped()?;
    change_catalog(&gateway, "UPDATE site SET format_version = format_version + 1")?;
    let before = fs::read(gateway.dir().join("catalog.db"))?;
    assert_refused(&mut gateway, &["use a newer program"])?;
    assert_eq!(fs::read(gateway.dir().join("catalog.db"))?, before, "the catalog was changed");
    change_catalog(&gateway, "UPDATE site SET format_version = format_version - 1")?;
    assert_holds_its_data(&mut gateway)
}

fn with_config(gateway: &Gateway, addition: &str) -> Result<()> {
    let path = gateway.dir().join("cairn.toml");
    let config = fs::read_to_string(&path)?;
    fs::write(&path, format!("{addition}\n{config}"))?;
    Ok(())
}

#[test]
fn an_unknown_setting_is_refused_by_name() -> Result<()> {
    let mut gateway = stopped()?;
    with_config(&gateway, "colour_of_the_moon = \"blue\"")?;
    assert_refused(&mut gateway, &["colour_of_the_moon"])
}

#[test]
fn a_config_that_is_no_toml_is_refused_by_line() -> Result<()> {
    let mut gateway = stopped()?;
    with_config(&gateway, "this is = = no toml")?;
    assert_refused(&mut gateway, &["cairn.toml"])
}

#[test]
fn a_log_that_vanished_after_an_unclean_stop_is_refused() -> Result<()> {
    let mut gateway = Gateway::start_fresh()?;
    gateway.create_volume("vol", 64 * MIB)?;
    gateway.export("vol").connect()?.write(0, &vec![7; 65_536])?;
    gateway.kill()?;
    let (wal, kept) = (gateway.dir().join("wal"), gateway.dir().join("kept"));
    fs::rename(&wal, &kept)?;
    assert_refused(&mut gateway, &["wal", "log"])?;
    if wal.exists() {
        fs::remove_dir_all(&wal)?;
    }
    fs::rename(&kept, &wal)?;
    assert_holds_its_data(&mut gateway)
}

#[test]
fn a_log_that_vanished_after_a_clean_stop_is_made_anew() -> Result<()> {
    let mut gateway = stopped()?;
    fs::remove_dir_all(gateway.dir().join("wal"))?;
    assert_holds_its_data(&mut gateway)
}

/// A small file system in memory over a folder of the gateway; what was in the folder moves onto it.
struct SmallDisk {
    point: PathBuf,
}

impl SmallDisk {
    fn over(point: &Path, size: u64) -> Result<Self> {
        let aside = point.with_extension("aside");
        fs::rename(point, &aside)?;
        fs::create_dir(point)?;
        Tool::as_root("mount")
            .args(["-t", "tmpfs", "-o"])
            .arg(format!("size={size},mode=777"))
            .arg("none")
            .arg(point)
            .run()?;
        let disk = Self { point: point.to_owned() };
        Tool::new("cp").arg("-a").arg(aside.join(".")).arg(point).run()?;
        Ok(disk)
    }

    fn remount(&self, options: &str) -> Result<()> {
        Tool::as_root("mount").arg("-o").arg(format!("remount,{options}")).arg(&self.point).run().map(drop)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Tool::as_root("umount").arg("--lazy").arg(&self.point).run();
        if let Err(error) = unmounted {
            eprintln!("unmounting: {error:#}");
        }
    }
}

/// Writes random MiBs, which neither compress nor repeat, until one is refused; returns how many went in.
fn write_until_refused(gateway: &Gateway, mebibytes: u64) -> Result<(u64, u32)> {
    let mut client = gateway.export("vol").connect()?;
    for mebibyte in 0..mebibytes {
        match client.try_write(mebibyte * MIB, &random_mebibyte(mebibyte))? {
            0 => {}
            error => return Ok((mebibyte, error)),
        }
    }
    bail!("{mebibytes} MiB went into a pool that cannot hold them")
}

fn random_mebibyte(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(MIB).expect("fits")];
    Random::seeded(number).fill(&mut bytes);
    bytes
}

#[test]
fn a_full_pool_answers_no_space_and_goes_on_when_there_is_space() -> Result<()> {
    let mut gateway = Gateway::new()?;
    gateway.init_with_config("[wal]\ncapacity = \"256MiB\"\n")?;
    let disk = SmallDisk::over(&gateway.dir().join("pool"), 64 * MIB)?;
    gateway.start()?;
    gateway.create_volume("vol", 2048 * MIB)?;
    let (written, error) = write_until_refused(&gateway, 2047)?;
    assert_eq!(error, wire::ENOSPC, "after {written} MiB");
    // What was acknowledged is there, in the log if nowhere else.
    let mut client = gateway.export("vol").connect()?;
    for mebibyte in 0..written {
        let bytes = client.read(mebibyte * MIB, usize::try_from(MIB)?)?;
        assert!(
            bytes == random_mebibyte(mebibyte),
            "MiB {mebibyte} of {written} is wrong while the pool is full"
        );
    }
    disk.remount(&format!("size={}", 2048 * MIB))?;
    wait_until_writable(&gateway, written)?;
    gateway.stop()?;
    gateway.start()?;
    let mut client = gateway.export("vol").connect()?;
    for mebibyte in 0..=written {
        let bytes = client.read(mebibyte * MIB, usize::try_from(MIB)?)?;
        assert!(
            bytes == random_mebibyte(mebibyte),
            "MiB {mebibyte} of {written} is wrong after the pool had space"
        );
    }
    drop(client);
    gateway.stop()
}

fn wait_until_writable(gateway: &Gateway, mebibyte: u64) -> Result<()> {
    let mut client = gateway.export("vol").connect()?;
    for _ in 0..60 {
        if client.try_write(mebibyte * MIB, &random_mebibyte(mebibyte))? == 0 {
            return client.flush();
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    bail!("writes are still refused 30 s after the pool got space")
}

#[test]
fn a_read_only_pool_makes_writes_wait_or_fail_but_loses_nothing() -> Result<()> {
    let mut gateway = Gateway::start_fresh()?;
    gateway.create_volume("vol", 64 * MIB)?;
    gateway.stop()?;
    let disk = SmallDisk::over(&gateway.dir().join("pool"), 512 * MIB)?;
    gateway.start()?;
    disk.remount("ro")?;
    let mut client = gateway.export("vol").connect()?;
    for mebibyte in 0..16 {
        client.write(mebibyte * MIB, &random_mebibyte(mebibyte))?;
    }
    client.flush()?;
    client.disconnect()?;
    gateway.kill()?;
    disk.remount("rw")?;
    gateway.start()?;
    let mut client = gateway.export("vol").connect()?;
    for mebibyte in 0..16 {
        assert!(
            client.read(mebibyte * MIB, usize::try_from(MIB)?)? == random_mebibyte(mebibyte),
            "MiB {mebibyte}"
        );
    }
    drop(client);
    gateway.stop()
}

#[test]
fn a_disk_without_room_for_the_log_is_refused_with_the_reason() -> Result<()> {
    let mut gateway = stopped()?;
    let wal = gateway.dir().join("wal");
    fs::remove_dir_all(&wal)?;
    fs::create_dir(&wal)?;
    let _disk = SmallDisk::over(&wal, MIB)?;
    assert_refused(&mut gateway, &["space", "full", "room"])
}

#[test]
fn volumes_go_in_and_out_as_raw_and_qcow2() -> Result<()> {
    let mut gateway = Gateway::start_fresh()?;
    let folder = tempfile::tempdir()?;
    let (raw, qcow2, back) =
        (folder.path().join("a.raw"), folder.path().join("a.qcow2"), folder.path().join("b.raw"));
    system_tests::checks::make_source(&raw, 96 * MIB, 5)?;
    Tool::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&qcow2).run()?;
    gateway.import("from-raw", &raw)?;
    gateway.import("from-qcow2", &qcow2)?;
    for volume in ["from-raw", "from-qcow2"] {
        gateway.export_volume(volume, &back)?;
        system_tests::checks::compare_files(&raw, &back)?;
        fs::remove_file(&back)?;
        let out = folder.path().join("out.qcow2");
        gateway.export_volume(volume, &out)?;
        Tool::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&out).run()?;
        let compare = Tool::new("qemu-img").args(["compare", "-f", "raw", "-F", "qcow2"]).arg(&raw).arg(&out);
        compare.run()?;
        fs::remove_file(&out)?;
    }
    gateway.stop()
}

#[test]
fn listings_and_status_speak_json() -> Result<()> {
    let gateway = Gateway::start_fresh()?;
    gateway.create_volume("vol", 64 * MIB)?;
    let said = gateway.command(["volume", "list", "--json"]).run()?.stdout;
    let listing: serde_json::Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let volumes =
        listing.as_array().or_else(|| listing["volumes"].as_array()).context("a list of volumes")?;
    let found = volumes.iter().find(|volume| volume["name"] == "vol").context("the volume is listed")?;
    assert!(found.to_string().contains("67108864"), "its size is in bytes: {found}");
    gateway.status()?;
    Ok(())
}

#[test]
fn wrong_usage_ends_with_two_and_a_failure_with_one() -> Result<()> {
    let gateway = Gateway::start_fresh()?;
    let wrong = gateway.command(["volume", "create", "vol", "--no-such-flag"]).finish()?;
    assert_eq!(wrong.status.code(), Some(2), "{}", wrong.describe());
    let failed = gateway.command(["volume", "create", "disk0", "1GiB"]).finish()?;
    assert_eq!(failed.status.code(), Some(1), "{}", failed.describe());
    assert!(failed.stderr.contains("disk0"), "{}", failed.describe());
    Ok(())
}
