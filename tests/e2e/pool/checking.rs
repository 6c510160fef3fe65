//! `cairn fsck`: what happened to nodes, and what a gateway left that was killed, is found and mended while guests write.

use super::{BYTES, MIB, PATIENCE, Pool};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::time::Duration;
use system_tests::pool::wait_until;
use system_tests::random::Random;
use system_tests::settings;

/// What a check said; its exit status must be this.
fn fsck(pool: &Pool, more: &[&str], code: i32) -> Result<Value> {
    let finished = pool.site.cairn(&["fsck", "--json"]).args(more.iter().copied()).finish()?;
    ensure!(finished.status.code() == Some(code), "not {code}: {}", finished.describe());
    serde_json::from_str(&finished.stdout).with_context(|| finished.describe())
}

fn count(found: &Value, path: &str) -> Result<u64> {
    found.pointer(path).and_then(Value::as_u64).with_context(|| format!("no {path} in {found}"))
}

fn kinds(found: &Value) -> Vec<String> {
    let problems = found["problems"].as_array().into_iter().flatten();
    problems.map(|problem| problem["kind"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_pool_of_six_is_clean_and_its_missing_shards_are_made_anew() -> Result<()> {
    let mut pool = Pool::start(6, "ec:4+2")?;
    let known = pool.fill("vol", BYTES)?;
    let clean = fsck(&pool, &[], 0)?;
    assert_eq!(count(&clean, "/shards")?, 6 * pool.site.pool()?.segments);
    let mut struck = 0;
    for name in ["n2", "n5"] {
        for (key, length) in pool.folders.shards(name)?.into_iter().take(2) {
            let path = pool.folders.path(name).join(&key);
            if struck % 2 == 0 {
                fs::remove_file(path)?;
            } else {
                fs::OpenOptions::new().write(true).open(path)?.set_len(length - 1)?;
            }
            struck += 1;
        }
    }
    let found = fsck(&pool, &[], 4)?;
    ensure!(kinds(&found).iter().all(|kind| kind == "missing-shard" || kind == "wrong-shard"), "{found}");
    assert_eq!((count(&found, "/problem_count")?, count(&found, "/lost_count")?), (struck, 0));
    let mended = fsck(&pool, &["--repair", "--yes"], 0)?;
    // A check makes healing look at nodes that lacked something: it may have been first.
    if count(&mended, "/problem_count")? > 0 {
        let (given_up, right) =
            (count(&mended, "/repaired/shards")?, count(&mended, "/repaired/shards_right")?);
        assert_eq!(given_up + right, count(&mended, "/problem_count")?, "{mended}");
    }
    pool.site.wait_until_whole(PATIENCE)?;
    wait_until("nothing is wrong any more", PATIENCE, || Ok(fsck(&pool, &[], 0).is_ok()))?;
    for name in ["n1", "n3"] {
        pool.folders.take_away(name)?;
    }
    let away = fsck(&pool, &[], 8)?;
    assert_eq!((count(&away, "/problem_count")?, count(&away, "/lost_count")?), (0, 0), "{away}");
    pool.verify_cold(&known)
}

#[test]
fn what_killed_gateways_leave_is_swept_under_load() -> Result<()> {
    let seed = Random::seed_from_environment()?;
    println!("CAIRN_E2E_SEED={seed}");
    let mut random = Random::seeded(seed);
    let mut pool = Pool::start(6, "ec:4+2")?;
    let mut known = pool.fill("vol", 32 * MIB)?;
    for round in 0..settings::crash_rounds()? {
        known.write_some(8, &mut random)?;
        std::thread::sleep(Duration::from_millis(random.below(400)));
        pool.site.restart().with_context(|| format!("start {round}"))?;
        // Beside what the log still holds and guests that write.
        known.write_some(4, &mut random)?;
        let finished = pool.site.cairn(&["fsck", "--repair", "--yes", "--json"]).finish()?;
        ensure!(finished.status.success(), "round {round}: {}", finished.describe());
        let found: Value = serde_json::from_str(&finished.stdout)?;
        ensure!(kinds(&found).iter().all(|kind| kind == "orphan"), "round {round}: {found}");
        println!("round {round}: {} orphans", count(&found, "/orphans")?);
        known.verify_some(50, &mut random).with_context(|| format!("after round {round}"))?;
    }
    pool.site.gateway.destage()?;
    pool.verify_cold(&known)?;
    fsck(&pool, &["--repair", "--yes"], 0)?;
    wait_until("nothing is left that nothing names", PATIENCE, || pool.is_exact())?;
    fsck(&pool, &[], 0)?;
    pool.verify_cold(&known)
}

#[test]
fn objects_of_others_are_left_alone() -> Result<()> {
    let pool = Pool::start(3, "replica:2")?;
    let known = pool.fill("vol", 4 * MIB)?;
    let folder = pool.folders.path("n1").join("segments/07");
    fs::create_dir_all(&folder)?;
    let (key, _) =
        pool.folders.shards("n1")?.into_iter().max_by_key(|(_, length)| *length).context("n1 is empty")?;
    let mut foreign = fs::read(pool.folders.path("n1").join(key))?;
    foreign[32..48].fill(9);
    foreign[48..64].fill(7);
    let name = "07".repeat(16);
    fs::write(folder.join(&name), foreign)?;
    fs::write(folder.join("notes.txt"), "mine")?;
    let found = fsck(&pool, &["--repair", "--yes"], 4)?;
    assert_eq!(kinds(&found), ["foreign-object", "foreign-object"], "{found}");
    ensure!(folder.join(&name).exists() && folder.join("notes.txt").exists(), "somebody deleted them");
    known.verify()
}
