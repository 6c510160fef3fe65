//! Snapshots, clones, reverts and differences: what a snapshot shows is one moment of the write order, whatever comes after.

mod load;
mod many;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use system_tests::checks::{compare_files, make_source};
use system_tests::export::Export;
use system_tests::gateway::Gateway;
use system_tests::random::Random;
use system_tests::settings;
use system_tests::tool::{Finished, Tool};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;

fn cairn(gateway: &Gateway, arguments: &[&str]) -> Tool {
    gateway.command([]).args(arguments.iter().copied()).timeout(Duration::from_mins(5))
}

/// What a command answers in JSON.
fn answer(gateway: &Gateway, arguments: &[&str]) -> Result<Value> {
    let said = cairn(gateway, arguments).arg("--json").run()?.stdout;
    serde_json::from_str(&said).with_context(|| format!("{arguments:?} said {said:?}"))
}

/// The command ends with this status, in words that hold this one, and shows no inner workings.
fn assert_refused(gateway: &Gateway, arguments: &[&str], status: i32, word: &str) -> Result<()> {
    let refused = cairn(gateway, arguments).run_refused()?;
    assert_eq!(refused.status.code(), Some(status), "{}", refused.describe());
    assert!(refused.stderr.contains(word), "no {word:?} in {}", refused.describe());
    assert!(!refused.said().contains("panicked"), "{}", refused.describe());
    Ok(())
}

/// Runs a command that is refused while clients are there: the gateway notices a moment later that they have left.
fn once_clients_left(gateway: &Gateway, arguments: &[&str]) -> Result<()> {
    for _ in 0..100 {
        if cairn(gateway, arguments).finish()?.status.success() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    cairn(gateway, arguments).run().map(drop)
}

/// `VOLUME@NAME` of all snapshots.
fn listed(gateway: &Gateway) -> Result<Vec<String>> {
    let snapshots = answer(gateway, &["snapshot", "list"])?;
    let named = |snapshot: &Value| Some(snapshot["snapshot"].as_str()?.to_owned());
    snapshots.as_array().context("a list")?.iter().map(named).collect::<Option<_>>().context("names")
}

fn qemu_io(export: &Export, commands: &[&str]) -> Tool {
    let tool = Tool::new("qemu-io").args(["-f", "raw"]);
    commands.iter().fold(tool, |tool, command| tool.args(["-c", command])).arg(export.uri())
}

/// Everything that the export holds, as `nbdcopy` gets it.
fn copy(export: &Export, file: &Path) -> Result<Finished> {
    Tool::new("nbdcopy").arg(export.uri()).arg(file).timeout(Duration::from_mins(5)).run()
}

/// The export holds what the image does, for `nbdcopy` and for `qemu-img`.
fn assert_same(gateway: &Gateway, name: &str, image: &Path) -> Result<()> {
    let folder = TempDir::new()?;
    let file = folder.path().join("copy");
    copy(&gateway.export(name), &file)?;
    compare_files(image, &file).with_context(|| format!("{name} is not as it was"))?;
    Tool::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "raw"])
        .arg(image)
        .arg(gateway.export(name).uri())
        .timeout(Duration::from_mins(5))
        .run()
        .map(drop)
}

/// A volume `vol` with an image in it, and the image.
fn with_an_image(gateway: &Gateway, folder: &TempDir, seed: u64) -> Result<PathBuf> {
    let image = folder.path().join("image");
    make_source(&image, 64 * MIB, seed)?;
    gateway.create_volume("vol", 64 * MIB)?;
    let export = gateway.export("vol").uri();
    Tool::new("nbdcopy").arg("--flush").arg(&image).arg(export).timeout(Duration::from_mins(5)).run()?;
    Ok(image)
}

/// Writes at both ends and in the middle, on the volume and on its image alike.
fn change(gateway: &Gateway, volume: &str, image: &Path, pattern: u8) -> Result<()> {
    let export = gateway.export(volume);
    let writes: Vec<String> = [0, 20, 63]
        .iter()
        .map(|at| format!("write -P {pattern} {at}M 1M"))
        .chain(["flush".to_owned()])
        .collect();
    qemu_io(&export, &writes.iter().map(String::as_str).collect::<Vec<_>>()).run()?;
    let file = fs::File::options().write(true).open(image)?;
    for at in [0, 20, 63] {
        file.write_all_at(&vec![pattern; usize::try_from(MIB)?], at * MIB)?;
    }
    Ok(())
}

fn copy_of(image: &Path, name: &str) -> Result<PathBuf> {
    let copy = image.with_file_name(name);
    fs::copy(image, &copy)?;
    Ok(copy)
}

#[test]
fn a_snapshot_is_a_read_only_export_that_stays_as_it_was() -> Result<()> {
    let folder = TempDir::new()?;
    let mut gateway = Gateway::start_fresh()?;
    let image = with_an_image(&gateway, &folder, 1)?;
    let told = cairn(&gateway, &["snapshot", "create", "vol@one"]).run()?;
    assert!(told.stdout.contains("vol@one"), "{}", told.describe());
    let then = copy_of(&image, "then")?;
    change(&gateway, "vol", &image, 0x5a)?;
    assert_same(&gateway, "vol", &image)?;
    assert_same(&gateway, "vol@one", &then)?;
    let described = Tool::new("nbdinfo").arg("--json").arg(gateway.export("vol@one").uri()).run()?.stdout;
    let described: Value = serde_json::from_str(&described)?;
    let export = &described["exports"][0];
    assert_eq!((&export["is_read_only"], &export["export-size"]), (&json!(true), &json!(64 * MIB)));
    qemu_io(&gateway.export("vol@one"), &["write -P 1 0 4k"]).run_refused()?;
    let out = folder.path().join("out");
    gateway.export_volume("vol@one", &out)?;
    compare_files(&then, &out)?;
    gateway.stop()?;
    gateway.start()?;
    assert_same(&gateway, "vol", &image)?;
    assert_same(&gateway, "vol@one", &then)
}

#[test]
fn a_clone_is_a_volume_of_its_own_that_outlives_its_parent() -> Result<()> {
    let folder = TempDir::new()?;
    let mut gateway = Gateway::start_fresh()?;
    let image = with_an_image(&gateway, &folder, 2)?;
    cairn(&gateway, &["snapshot", "create", "vol@one"]).run()?;
    let then = copy_of(&image, "then")?;
    change(&gateway, "vol", &image, 1)?;
    cairn(&gateway, &["clone", "vol@one", "copy"]).run()?;
    assert_same(&gateway, "copy", &then)?;
    let cloned = copy_of(&then, "cloned")?;
    change(&gateway, "copy", &cloned, 2)?;
    for (name, image) in [("copy", &cloned), ("vol", &image), ("vol@one", &then)] {
        assert_same(&gateway, name, image)?;
    }
    // A clone of a clone, whose whole line of parents goes.
    cairn(&gateway, &["snapshot", "create", "copy@two"]).run()?;
    cairn(&gateway, &["clone", "copy@two", "grandchild"]).run()?;
    assert_refused(&gateway, &["volume", "delete", "vol"], 1, "--force")?;
    cairn(&gateway, &["volume", "delete", "vol", "--force", "--yes"]).run()?;
    assert_eq!(listed(&gateway)?, ["copy@two"]);
    gateway.stop()?;
    gateway.start()?;
    for name in ["copy", "copy@two", "grandchild"] {
        assert_same(&gateway, name, &cloned)?;
    }
    cairn(&gateway, &["volume", "delete", "copy", "--force", "--yes"]).run()?;
    gateway.kill()?;
    gateway.start()?;
    assert_same(&gateway, "grandchild", &cloned)
}

#[test]
fn a_revert_brings_a_snapshot_back_and_keeps_what_was_before() -> Result<()> {
    let folder = TempDir::new()?;
    let mut gateway = Gateway::start_fresh()?;
    let image = with_an_image(&gateway, &folder, 3)?;
    cairn(&gateway, &["snapshot", "create", "vol@one"]).run()?;
    let then = copy_of(&image, "then")?;
    change(&gateway, "vol", &image, 1)?;
    let mut client = gateway.export("vol").connect()?;
    client.read(0, BLOCK)?;
    assert_refused(&gateway, &["revert", "vol@one"], 1, "client connection")?;
    assert_eq!(listed(&gateway)?, ["vol@one"], "a refused revert takes no snapshot");
    assert_same(&gateway, "vol", &image)?;
    let reverted = answer(&gateway, &["revert", "vol@one", "--force", "--yes"])?;
    // Whoever has it open sees it change.
    assert_eq!(client.read(20 * MIB, BLOCK)?, fs::read(&then)?[20 << 20..][..BLOCK]);
    client.disconnect()?;
    let before = reverted["before"]["snapshot"].as_str().context("the snapshot before")?.to_owned();
    assert!(before.starts_with("vol@before-revert-"), "{before}");
    assert_same(&gateway, "vol", &then)?;
    assert_same(&gateway, &before, &image)?;
    let reverted = copy_of(&then, "reverted")?;
    change(&gateway, "vol", &reverted, 2)?;
    gateway.kill()?;
    gateway.start()?;
    for (name, image) in [("vol", &reverted), ("vol@one", &then), (&*before, &image)] {
        assert_same(&gateway, name, image)?;
    }
    // And the way back.
    once_clients_left(&gateway, &["revert", &before, "--yes"])?;
    assert_same(&gateway, "vol", &image)?;
    gateway.stop()
}

#[test]
fn a_snapshot_that_was_told_is_there_after_sigkill() -> Result<()> {
    let folder = TempDir::new()?;
    let mut gateway = Gateway::start_fresh()?;
    gateway.create_volume("vol", 8 * MIB)?;
    let mut names = Vec::new();
    for round in 0..settings::crash_rounds()? {
        let name = format!("vol@s{round}");
        let mut client = gateway.export("vol").connect()?;
        let mut bytes = vec![0; 3 << 20];
        Random::seeded(round.into()).fill(&mut bytes);
        // Not flushed: the snapshot makes it safe.
        client.write(u64::from(round) * 4096 % (4 * MIB), &bytes)?;
        let held = client.read(0, 8 << 20)?;
        client.abandon()?;
        cairn(&gateway, &["snapshot", "create", &name]).run()?;
        gateway.kill()?;
        fs::write(folder.path().join(&name), held)?;
        names.push(name);
        gateway.start()?;
        assert_eq!(listed(&gateway)?, names);
        qemu_io(&gateway.export("vol"), &["write -P 0x5a 0 1M"]).run()?;
        for name in &names {
            assert_same(&gateway, name, &folder.path().join(name))?;
        }
    }
    gateway.stop()
}

#[test]
fn a_deleted_snapshot_is_gone_and_nothing_else_is() -> Result<()> {
    let folder = TempDir::new()?;
    let mut gateway = Gateway::start_fresh()?;
    let image = with_an_image(&gateway, &folder, 4)?;
    let mut kept = Vec::new();
    for number in 1..=3 {
        cairn(&gateway, &["snapshot", "create", &format!("vol@s{number}")]).run()?;
        kept.push(copy_of(&image, &format!("s{number}"))?);
        change(&gateway, "vol", &image, number)?;
    }
    let mut reader = gateway.export("vol@s2").connect()?;
    reader.read(0, BLOCK)?;
    assert_refused(&gateway, &["snapshot", "delete", "vol@s2"], 1, "vol@s2")?;
    reader.disconnect()?;
    once_clients_left(&gateway, &["snapshot", "delete", "vol@s2", "--yes"])?;
    assert_refused(&gateway, &["snapshot", "delete", "vol@s2"], 1, "vol@s2")?;
    assert!(gateway.export("vol@s2").connect().is_err(), "a deleted snapshot is no export");
    for _ in 0..2 {
        assert_eq!(listed(&gateway)?, ["vol@s1", "vol@s3"]);
        for (name, image) in [("vol", &image), ("vol@s1", &kept[0]), ("vol@s3", &kept[2])] {
            assert_same(&gateway, name, image)?;
        }
        gateway.stop()?;
        gateway.start()?;
    }
    // Its name is free again.
    cairn(&gateway, &["snapshot", "create", "vol@s2"]).run()?;
    assert_same(&gateway, "vol@s2", &image)
}

#[test]
fn a_difference_is_what_was_overwritten() -> Result<()> {
    const SIZE: u64 = 256 * MIB;
    let gateway = Gateway::start_fresh()?;
    gateway.create_volume("vol", SIZE)?;
    let mut client = gateway.export("vol").connect()?;
    let mut random = Random::seeded(5);
    let mut bytes = vec![0; usize::try_from(MIB)?];
    for mebibyte in 0..16 {
        random.fill(&mut bytes);
        client.write(mebibyte * 16 * MIB, &bytes)?;
    }
    cairn(&gateway, &["snapshot", "create", "vol@a"]).run()?;
    // In a block, across the border of two leaves of the map, over data, into a hole, and at the very end.
    let data =
        [(5000, 100), (64 * MIB - 8192, 20_480), (80 * MIB, 65_536), (250 * MIB, 4096), (SIZE - 512, 512)];
    let zeros = [(16 * MIB, 8192), (160 * MIB + 4096, 4096)];
    for (at, length) in data {
        let mut bytes = vec![0; length];
        random.fill(&mut bytes);
        client.write(at, &bytes)?;
    }
    for (at, length) in zeros {
        client.write_zeroes(at, length)?;
    }
    cairn(&gateway, &["snapshot", "create", "vol@b"]).run()?;
    client.write(32 * MIB, &[9; BLOCK])?;
    let block = BLOCK as u64;
    let expected = |ranges: &[(u64, usize)], allocated: bool| {
        let blocks = |(at, length): &(u64, usize)| {
            let (start, end) = (at / block * block, (at + *length as u64).next_multiple_of(block));
            (start, end - start, allocated)
        };
        ranges.iter().map(blocks).collect::<Vec<_>>()
    };
    let mut ranges = [expected(&data, true), expected(&zeros, false)].concat();
    ranges.sort_unstable();
    let total: u64 = ranges.iter().map(|(_, length, _)| length).sum();
    let documents: Vec<_> = ranges
        .iter()
        .map(|(at, length, allocated)| json!({"offset_bytes": at, "length_bytes": length, "allocated": allocated}))
        .collect();
    let found = answer(&gateway, &["snapshot", "diff", "vol@a", "vol@b"])?;
    assert_eq!((&found["ranges"], &found["changed_bytes"]), (&json!(documents), &json!(total)));
    let said = cairn(&gateway, &["snapshot", "diff", "vol@a", "vol@b"]).run()?.stdout;
    assert!(said.contains("in 7 ranges") && said.contains("zeros") && said.contains("data"), "{said}");
    let none = answer(&gateway, &["snapshot", "diff", "vol@b", "vol@b"])?;
    assert_eq!((&none["ranges"], &none["changed_bytes"]), (&json!([]), &json!(0)));
    Ok(())
}

#[test]
fn what_makes_no_sense_is_refused_with_the_reason() -> Result<()> {
    let folder = TempDir::new()?;
    let raw = folder.path().join("small.raw");
    fs::write(&raw, vec![1; BLOCK])?;
    let raw = raw.to_string_lossy();
    let gateway = Gateway::start_fresh()?;
    for name in ["vol", "other"] {
        gateway.create_volume(name, MIB)?;
        cairn(&gateway, &["snapshot", "create", &format!("{name}@s")]).run()?;
    }
    for (arguments, status, word) in [
        (&["snapshot", "create", "vol@s"][..], 1, "exists"),
        (&["snapshot", "create", "none@s"], 1, "none"),
        (&["snapshot", "create", "vol@"], 2, "empty"),
        (&["snapshot", "create", "@s"], 2, "empty"),
        (&["snapshot", "create", "vol@a@b"], 2, "@"),
        (&["snapshot", "create", "vol@a b"], 2, "' '"),
        (&["snapshot", "create", "vol@-a"], 2, "'-'"),
        (&["snapshot", "create"], 2, "VOL"),
        (&["snapshot", "list", "none"], 1, "none"),
        (&["snapshot", "delete", "vol"], 2, "VOLUME@SNAPSHOT"),
        (&["snapshot", "delete", "vol@none"], 1, "vol@none"),
        (&["snapshot", "delete", "none@s"], 1, "none"),
        (&["snapshot", "diff", "vol@s", "other@s"], 2, "two volumes"),
        (&["snapshot", "diff", "vol@s", "vol@none"], 1, "vol@none"),
        (&["snapshot", "diff", "vol@s"], 2, "VOL@B"),
        (&["clone", "vol@none", "new"], 1, "vol@none"),
        (&["clone", "vol@s", "other"], 1, "other"),
        (&["clone", "vol@s", "a@b"], 2, "@"),
        (&["clone", "vol", "new"], 2, "VOLUME@SNAPSHOT"),
        (&["revert", "vol@none"], 1, "vol@none"),
        (&["revert", "vol"], 2, "VOLUME@SNAPSHOT"),
        (&["volume", "import", "vol@s", &raw], 2, "snapshot"),
        (&["volume", "export", "vol@none", "never.raw"], 1, "vol@none"),
        (&["volume", "delete", "vol"], 1, "--force"),
        (&["volume", "delete", "vol@s"], 1, "snapshot"),
    ] {
        assert_refused(&gateway, arguments, status, word)?;
    }
    cairn(&gateway, &["snapshot", "delete", "vol@s"]).run()?;
    assert_refused(&gateway, &["snapshot", "delete", "vol@s"], 1, "vol@s")?;
    for export in ["vol@s", "vol@", "@s", "none@s", "vol@s@t"] {
        assert!(gateway.export(export).connect().is_err(), "{export} is no export");
    }
    assert_eq!(listed(&gateway)?, ["other@s"]);
    Ok(())
}
