//! What is stored already is not stored again, and the figures say so.

use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::time::Duration;
use system_tests::filesystem;
use system_tests::gateway::Gateway;
use system_tests::image::{self, Tree};
use system_tests::random::Random;
use system_tests::tool::Tool;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
const IMAGE_BYTES: u64 = 192 * MIB;
const TREE_BYTES: u64 = 96 * MIB;

fn number(value: &serde_json::Value, path: &str) -> Result<u64> {
    value.pointer(path).and_then(serde_json::Value::as_u64).with_context(|| format!("no {path} in {value}"))
}

fn stored(gateway: &Gateway) -> Result<u64> {
    number(&gateway.status()?, "/reduction/stored_bytes")
}

fn volume(gateway: &Gateway, name: &str) -> Result<serde_json::Value> {
    Ok(serde_json::from_str(&gateway.command(["volume", "show", name, "--json"]).run()?.stdout)?)
}

/// The volume holds what the image does.
fn assert_same(gateway: &Gateway, name: &str, image: &Path) -> Result<()> {
    Tool::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "raw"])
        .arg(image)
        .arg(gateway.export(name).uri())
        .timeout(Duration::from_mins(5))
        .run()
        .map(drop)
}

#[test]
fn a_second_copy_of_an_image_and_a_shifted_one_take_next_to_nothing() -> Result<()> {
    let folder = TempDir::new()?;
    let (image, shifted) = (folder.path().join("image"), folder.path().join("shifted"));
    image::make_disk_image(&image, IMAGE_BYTES, TREE_BYTES)?;
    let bytes = fs::read(&image)?;
    // One block in front moves every file by one block.
    fs::write(&shifted, [&[0x5a; BLOCK], &bytes[..bytes.len() - BLOCK]].concat())?;
    let gateway = Gateway::start_fresh()?;
    gateway.import("first", &image)?;
    let first = stored(&gateway)?;
    gateway.import("second", &image)?;
    let second = stored(&gateway)? - first;
    assert!(second * 100 < first * 2, "a second copy took {second} bytes, the first {first}");
    gateway.import("third", &shifted)?;
    let third = stored(&gateway)? - first - second;
    assert!(third * 100 < first * 5, "a copy one block further on took {third} bytes, the first {first}");
    for (name, image) in [("first", &image), ("second", &image), ("third", &shifted)] {
        assert_same(&gateway, name, image)?;
    }
    let usage = &volume(&gateway, "second")?["usage"];
    let (unique, shared) = (number(usage, "/unique_bytes")?, number(usage, "/shared_bytes")?);
    assert!(shared > 95 * MIB / 2 && unique * 50 < shared, "{usage}");
    Ok(())
}

/// Files whose content begins one block later than in `from`.
fn with_a_block_in_front(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            with_a_block_in_front(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::write(target, [&[0x5a; BLOCK], &fs::read(entry.path())?[..]].concat())?;
        }
    }
    Ok(())
}

/// A file system with the files of a folder in it.
fn image_of(folder: &Path, image: &Path) -> Result<()> {
    fs::File::create(image)?.set_len(2 * IMAGE_BYTES)?;
    let tool = Tool::as_root("mkfs.ext4").args(["-q", "-F", "-b", "4096", "-d"]).arg(folder).arg(image);
    tool.timeout(Duration::from_mins(5)).run()?;
    filesystem::Kind::Ext4.check(image)
}

#[test]
fn files_whose_content_has_moved_by_a_block_are_found() -> Result<()> {
    let folder = TempDir::new()?;
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("tree"))?;
    Tree::copy(&path("tree"), TREE_BYTES)?;
    with_a_block_in_front(&path("tree"), &path("moved"))?;
    for name in ["tree", "moved"] {
        image_of(&path(name), &path(&format!("{name}.image")))?;
    }
    let gateway = Gateway::start_fresh()?;
    gateway.import("tree", &path("tree.image"))?;
    gateway.import("moved", &path("moved.image"))?;
    let usage = &volume(&gateway, "moved")?["usage"];
    let (unique, shared) = (number(usage, "/unique_bytes")?, number(usage, "/shared_bytes")?);
    assert!(shared * 100 > (shared + unique) * 95, "{shared} bytes were found, {unique} were not");
    assert_same(&gateway, "moved", &path("moved.image"))
}

#[test]
fn the_index_survives_restarts_and_is_rebuilt_when_it_is_lost() -> Result<()> {
    let mut bytes = vec![0; 32 << 20];
    Random::seeded(1).fill(&mut bytes);
    let mut gateway = Gateway::start_fresh()?;
    let copy = |gateway: &Gateway, name: &str| -> Result<u64> {
        let before = stored(gateway)?;
        gateway.create_volume(name, 64 * MIB)?;
        let mut client = gateway.export(name).connect()?;
        for (offset, piece) in (0..).step_by(1 << 20).zip(bytes.chunks(1 << 20)) {
            client.write(offset, piece)?;
        }
        client.flush()?;
        client.disconnect()?;
        gateway.destage()?;
        Ok(stored(gateway)? - before)
    };
    let first = copy(&gateway, "first")?;
    assert!(first > 32 * MIB, "noise does not shrink: {first}");
    gateway.stop()?;
    gateway.start()?;
    assert!(copy(&gateway, "second")? < MIB, "known after a restart");
    gateway.kill()?;
    gateway.start()?;
    assert!(copy(&gateway, "third")? < MIB, "known after SIGKILL");
    gateway.stop()?;
    let index = gateway.dir().join("fingerprints");
    fs::remove_dir_all(&index)?;
    gateway.start()?;
    for _ in 0..600 {
        if number(&gateway.status()?, "/dedupe/index_containers")? >= 4 {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_millis(500));
    assert!(copy(&gateway, "fourth")? < MIB, "known after the index was lost and rebuilt");
    gateway.stop()?;
    // Not ours: it is left alone, and nothing is lost but reduction.
    fs::remove_dir_all(&index)?;
    fs::create_dir(&index)?;
    fs::write(index.join("precious"), "not an index")?;
    gateway.start()?;
    copy(&gateway, "fifth")?;
    assert_eq!(fs::read(index.join("precious"))?, b"not an index");
    let status = gateway.status()?;
    assert!(status["health"] == "attention" && status.to_string().contains("fingerprints"), "{status}");
    Ok(())
}

#[test]
fn volumes_of_two_domains_share_nothing() -> Result<()> {
    let gateway = Gateway::start_fresh()?;
    gateway.command(["domain", "create", "tenant"]).run()?;
    gateway.command(["domain", "create", "open", "--no-encryption"]).run()?;
    let mut bytes = vec![0; 8 << 20];
    Random::seeded(2).fill(&mut bytes);
    let mut before = stored(&gateway)?;
    for (name, domain) in [("a", "default"), ("b", "tenant"), ("c", "open")] {
        gateway.command(["volume", "create", name, "16MiB", "--domain", domain]).run()?;
        let mut client = gateway.export(name).connect()?;
        client.write(0, &bytes)?;
        client.flush()?;
        gateway.destage()?;
        let after = stored(&gateway)?;
        assert!(after - before > 8 * MIB, "{name} shares with another domain");
        before = after;
        assert_eq!(client.read(0, bytes.len())?, bytes);
    }
    let status = gateway.status()?;
    assert!(status.to_string().contains("not encrypted"), "status says what is not encrypted: {status}");
    Ok(())
}

#[test]
fn the_figures_of_a_volume_are_exact() -> Result<()> {
    let gateway = Gateway::start_fresh()?;
    gateway.create_volume("vol", 64 * MIB)?;
    let mut client = gateway.export("vol").connect()?;
    let mut noise = vec![0; 4 << 20];
    Random::seeded(3).fill(&mut noise);
    client.write(0, &noise)?;
    client.write(8 << 20, &noise)?;
    client.write(16 << 20, &vec![0; 1 << 20])?;
    client.write(24 << 20, &b"four".repeat(1 << 18))?;
    client.flush()?;
    gateway.destage()?;
    client.write_zeroes(0, 1 << 20)?;
    client.flush()?;
    gateway.destage()?;
    let usage = volume(&gateway, "vol")?["usage"].clone();
    let of = |name: &str| number(&usage, &format!("/{name}"));
    assert_eq!(
        of("written_bytes")?,
        of("zero_bytes")? + of("shared_bytes")? + of("unique_bytes")?,
        "{usage}"
    );
    assert_eq!((of("written_bytes")?, of("zero_bytes")?), (10 * MIB, MIB), "{usage}");
    // The repeated block is stored at least once, and at most once for each chunk that was being made.
    assert!((4 * MIB + 4096..=4 * MIB + 65_536).contains(&of("unique_bytes")?), "{usage}");
    for _ in 0..600 {
        let logical = number(&volume(&gateway, "vol")?, "/usage/logical_bytes")?;
        if logical == 8 * MIB {
            assert_eq!(number(&gateway.status()?, "/reduction/logical_bytes")?, 8 * MIB);
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("logical bytes are not exact half a minute after the last write: {usage}")
}
