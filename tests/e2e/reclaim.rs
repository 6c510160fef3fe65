//! What nothing points at any more comes back to the pool, and nothing else goes.

mod kills;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;
use system_tests::checks::compare_files;
use system_tests::gateway::Gateway;
use system_tests::random::Random;
use system_tests::tool::Tool;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

/// Objects of batches that only discarded are no larger than this, and stay.
const TINY: u64 = 4096;

/// A gateway that takes nothing back unless it is asked to, and reads from the pool.
fn gateway_with(rest: &str) -> Result<Gateway> {
    let gateway = Gateway::new()?;
    let config = format!(
        "[memory]\nblock_cache = \"16MiB\"\n[flash]\nsize = \"0\"\n[reclaim]\ninterval = \"off\"\n{rest}"
    );
    gateway.init_with_config(&config)?;
    Ok(gateway)
}

fn started() -> Result<Gateway> {
    let mut gateway = gateway_with("")?;
    gateway.start()?;
    Ok(gateway)
}

fn cairn(gateway: &Gateway, arguments: &[&str]) -> Tool {
    gateway.command([]).args(arguments.iter().copied()).timeout(Duration::from_mins(5))
}

/// What a pass says that it did, or would do.
fn reclaim(gateway: &Gateway, options: &[&str]) -> Result<Value> {
    let said = cairn(gateway, &["reclaim", "--json"]).args(options.iter().copied()).run()?.stdout;
    serde_json::from_str(&said).with_context(|| format!("`cairn reclaim` said {said:?}"))
}

fn number(value: &Value, name: &str) -> Result<u64> {
    value[name].as_u64().with_context(|| format!("no {name} in {value}"))
}

/// The pool's objects and their lengths, by key. What the gateway keeps beside them is left out.
fn objects(gateway: &Gateway) -> Result<BTreeMap<String, u64>> {
    fn add(root: &Path, folder: &Path, found: &mut BTreeMap<String, u64>) -> Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            // What is deleted meanwhile is not there.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let key = path.strip_prefix(root)?.to_string_lossy().into_owned();
            if metadata.is_dir() && key != "staging" && key != "record" {
                add(root, &path, found)?;
            } else if metadata.is_file() && folder != root {
                found.insert(key, metadata.len());
            }
        }
        Ok(())
    }
    let (root, mut found) = (gateway.dir().join("pool"), BTreeMap::new());
    add(&root, &root, &mut found)?;
    Ok(found)
}

/// Bytes of the pool's objects that hold blocks.
fn pool_bytes(gateway: &Gateway) -> Result<u64> {
    Ok(objects(gateway)?.values().filter(|length| **length > TINY).sum())
}

/// Fills a new volume with noise, all of it in the pool; the same is in the file.
fn fill(gateway: &Gateway, volume: &str, file: &Path, seed: u64) -> Result<()> {
    let mut bytes = vec![0; usize::try_from(SIZE)?];
    Random::seeded(seed).fill(&mut bytes);
    fs::write(file, &bytes)?;
    gateway.create_volume(volume, SIZE)?;
    let uri = gateway.export(volume).uri();
    Tool::new("nbdcopy").arg("--flush").arg(file).arg(uri).timeout(Duration::from_mins(5)).run()?;
    gateway.destage()
}

/// Discards the whole volume, as `blkdiscard` does.
fn discard(gateway: &Gateway, volume: &str) -> Result<()> {
    let discard = format!("discard 0 {SIZE}");
    Tool::new("qemu-io")
        .args(["-f", "raw", "-d", "unmap", "-c", &discard, "-c", "flush"])
        .arg(gateway.export(volume).uri())
        .run()
        .map(drop)
}

fn assert_same(gateway: &Gateway, name: &str, file: &Path) -> Result<()> {
    let folder = TempDir::new()?;
    let copy = folder.path().join("copy");
    Tool::new("nbdcopy").arg(gateway.export(name).uri()).arg(&copy).timeout(Duration::from_mins(5)).run()?;
    compare_files(file, &copy).with_context(|| format!("{name} is not as it was"))
}

/// Deletes the snapshot: the gateway notices a moment late that its clients have left.
fn delete_snapshot(gateway: &Gateway, name: &str) -> Result<()> {
    let delete = || cairn(gateway, &["snapshot", "delete", name, "--yes"]);
    for _ in 0..100 {
        if delete().finish()?.status.success() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    delete().run().map(drop)
}

/// A dry run, which changes nothing, and then a pass that does what the dry run said.
fn dry_then_real(gateway: &Gateway) -> Result<Value> {
    let before = objects(gateway)?;
    let planned = reclaim(gateway, &["--dry-run"])?;
    ensure!(objects(gateway)? == before, "a dry run changed the pool");
    let done = reclaim(gateway, &[])?;
    for same in ["containers", "container_bytes"] {
        ensure!(done[same] == planned[same], "{done} is not what the dry run said: {planned}");
    }
    ensure!(planned["dry_run"] == true && done["dry_run"] == false, "{planned} {done}");
    Ok(done)
}

#[test]
fn what_was_discarded_comes_back_once_no_snapshot_shows_it() -> Result<()> {
    let folder = TempDir::new()?;
    let file = folder.path().join("noise");
    let mut gateway = started()?;
    fill(&gateway, "vol", &file, 1)?;
    let full = pool_bytes(&gateway)?;
    assert!(full > SIZE, "{full}");
    cairn(&gateway, &["snapshot", "create", "vol@one"]).run()?;
    discard(&gateway, "vol")?;
    gateway.destage()?;
    // Everything is in use, by the snapshot.
    let before = objects(&gateway)?;
    assert_eq!(number(&reclaim(&gateway, &["--dry-run"])?, "containers")?, 0);
    let nothing = reclaim(&gateway, &[])?;
    assert_eq!((number(&nothing, "containers")?, number(&nothing, "objects")?), (0, 0), "{nothing}");
    assert_eq!(objects(&gateway)?, before);
    assert_same(&gateway, "vol@one", &file)?;
    delete_snapshot(&gateway, "vol@one")?;
    let done = dry_then_real(&gateway)?;
    let left = pool_bytes(&gateway)?;
    assert!(left * 100 < full, "{left} of {full} bytes are still there after {done}");
    assert!(number(&done, "container_bytes")? > SIZE && number(&done, "object_bytes")? >= full - left);
    let status = gateway.status()?;
    assert_eq!(status["reclaim"]["total"]["object_bytes"], done["object_bytes"], "{status}");
    assert_eq!(number(&status["reclaim"], "passes")?, 2, "{status}");
    assert!(cairn(&gateway, &["reclaim"]).run()?.stdout.starts_with("Nothing to take back"));
    // And all of it goes on.
    fs::File::create(folder.path().join("zeros"))?.set_len(SIZE)?;
    assert_same(&gateway, "vol", &folder.path().join("zeros"))?;
    fill(&gateway, "again", &file, 1)?;
    gateway.stop()?;
    gateway.start()?;
    assert_same(&gateway, "again", &file)
}

#[test]
fn a_deleted_volume_comes_back_and_its_neighbour_stays() -> Result<()> {
    let folder = TempDir::new()?;
    let files = ["kept", "lost"].map(|name| folder.path().join(name));
    let mut gateway = started()?;
    fill(&gateway, "kept", &files[0], 1)?;
    let of_kept = pool_bytes(&gateway)?;
    fill(&gateway, "lost", &files[1], 2)?;
    let full = pool_bytes(&gateway)?;
    cairn(&gateway, &["volume", "delete", "lost", "--force", "--yes"]).run()?;
    dry_then_real(&gateway)?;
    let left = pool_bytes(&gateway)?;
    assert!(left < of_kept + full / 100, "{left} of {full} bytes are still there, {of_kept} are needed");
    assert_same(&gateway, "kept", &files[0])?;
    // The same by a command on its own.
    gateway.stop()?;
    cairn(&gateway, &["volume", "delete", "kept", "--yes"]).run()?;
    dry_then_real(&gateway)?;
    let left = pool_bytes(&gateway)?;
    assert!(left * 100 < full, "{left} of {full} bytes are still there");
    gateway.start()?;
    assert!(cairn(&gateway, &["reclaim"]).run()?.stdout.starts_with("Nothing to take back"));
    Ok(())
}

#[test]
fn what_lives_in_sparse_objects_is_written_together() -> Result<()> {
    let folder = TempDir::new()?;
    let file = folder.path().join("noise");
    let mut gateway = started()?;
    fill(&gateway, "vol", &file, 4)?;
    let full = pool_bytes(&gateway)?;
    let (mut bytes, mut random) = (fs::read(&file)?, Random::seeded(5));
    let mut client = gateway.export("vol").connect()?;
    // Half of it, in pieces that leave something living in every object.
    for at in (0..SIZE).step_by(usize::try_from(MIB)?) {
        let start = usize::try_from(at)?;
        let piece = &mut bytes[start..start + 512 * 1024];
        random.fill(piece);
        client.write(at, piece)?;
    }
    client.flush()?;
    client.disconnect()?;
    fs::write(&file, &bytes)?;
    gateway.destage()?;
    let sparse = pool_bytes(&gateway)?;
    assert!(sparse > full * 7 / 5, "{sparse} {full}");
    let done = dry_then_real(&gateway)?;
    let left = pool_bytes(&gateway)?;
    assert!(number(&done, "moved_containers")? > 0 && number(&done, "moved_bytes")? > MIB, "{done}");
    assert!(left < full * 5 / 4, "{left} of {sparse} bytes are still there, {full} are needed");
    assert_same(&gateway, "vol", &file)?;
    gateway.stop()?;
    gateway.start()?;
    assert_same(&gateway, "vol", &file)?;
    // What moved is shared as before.
    gateway.create_volume("copy", SIZE)?;
    Tool::new("nbdcopy")
        .arg("--flush")
        .arg(&file)
        .arg(gateway.export("copy").uri())
        .timeout(Duration::from_mins(5))
        .run()?;
    gateway.destage()?;
    let shared = pool_bytes(&gateway)?;
    assert!(shared < left + full / 10, "{shared} after a copy of what took {left}");
    assert_same(&gateway, "copy", &file)
}

#[test]
fn a_clone_keeps_what_it_shares_with_a_volume_that_is_gone() -> Result<()> {
    let folder = TempDir::new()?;
    let file = folder.path().join("noise");
    let mut gateway = started()?;
    fill(&gateway, "vol", &file, 3)?;
    let full = pool_bytes(&gateway)?;
    cairn(&gateway, &["snapshot", "create", "vol@one"]).run()?;
    cairn(&gateway, &["clone", "vol@one", "clone"]).run()?;
    cairn(&gateway, &["volume", "delete", "vol", "--force", "--yes"]).run()?;
    assert_eq!(number(&reclaim(&gateway, &[])?, "containers")?, 0);
    gateway.stop()?;
    gateway.start()?;
    assert_same(&gateway, "clone", &file)?;
    cairn(&gateway, &["volume", "delete", "clone", "--yes"]).run()?;
    reclaim(&gateway, &[])?;
    let left = pool_bytes(&gateway)?;
    assert!(left * 100 < full, "{left} of {full} bytes are still there");
    Ok(())
}
