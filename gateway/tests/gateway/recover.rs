//! A site whose catalog and log are gone, made again from its pool and its key.

use crate::support::{Gateway, Home, noise, pause, same_content, sparse_file};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SIZE: u64 = 4 << 20;
/// No batch waits long.
const QUICK: &str = "[gateway]\nnbd = [\"unix:nbd.sock\"]\n[wal]\ncapacity = \"64MiB\"\n[destage]\nbatch_age = \"200ms\"\n\
                     [reclaim]\ninterval = \"off\"\n";

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The content of a volume after its `round`th import.
fn image(home: &Home, volume: usize, round: usize) -> PathBuf {
    let path = home.folder().join(format!("{volume}-{round}.raw"));
    let seed = (volume * 100 + round) as u64;
    let common = noise(volume as u64, 60_000);
    sparse_file(
        &path,
        SIZE,
        &[(0, &common), (1 << 20, &noise(seed, 100_000)), (3 << 20, &noise(seed + 50, 5000))],
    );
    path
}

#[track_caller]
fn assert_exports_as(home: &Home, name: &str, image: &Path) {
    let out = home.folder().join(format!("{name}.out"));
    home.run(&["volume", "export", name, text(&out), "--force"]).ok();
    assert!(same_content(image, &out), "{name} is not {}", image.display());
    std::fs::remove_file(out).unwrap();
}

/// Waits until nothing is in the log alone, and a checkpoint has all but batches.
#[track_caller]
fn settle(home: &Home) {
    let mut tenths = 0;
    loop {
        let status = home.run(&["status", "--json"]).json();
        let is_destaged =
            status["destage"]["backlog_bytes"] == 0 && status["destage"]["batches_in_flight"] == 0;
        if is_destaged && status["record"]["waits"] == false {
            return;
        }
        // The next one rests for twenty times as long as the last one took, which on a busy machine is long.
        let rest_ms = 30 * status["record"]["took_ms"].as_u64().unwrap_or(0);
        assert!(tenths < 600 + rest_ms / 100, "no checkpoint was taken: {status}");
        tenths += 1;
        pause(Duration::from_millis(100));
    }
}

fn url(path: &Path) -> String {
    format!("file://{}", text(path))
}

/// What a disaster leaves: the pool and a copy of the key.
fn lose(home: &Home, gateway: Gateway) -> (String, PathBuf) {
    gateway.kill();
    for name in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
        std::fs::remove_file(home.path(name)).unwrap();
    }
    std::fs::remove_dir_all(home.path("wal")).unwrap();
    let key = home.folder().join("key");
    std::fs::copy(home.path("key"), &key).unwrap();
    (url(&home.path("pool")), key)
}

fn recovered(nodes: &[String], key: &Path) -> (Home, Value) {
    let home = Home::with_config(QUICK);
    let mut command = vec!["recover", "--key", text(key), "--json"];
    command.extend(nodes.iter().flat_map(|node| ["--pool", node.as_str()]));
    let report = home.run(&command).json();
    (home, report)
}

/// Fails unless nothing is missing.
#[track_caller]
fn assert_whole(report: &Value) {
    for problems in [
        "missing_segments",
        "unreachable_segments",
        "unreadable_segments",
        "unusable_checkpoints",
        "warnings",
    ] {
        assert_eq!(report[problems], serde_json::json!([]), "{report}");
    }
    let volumes = report["volumes"].as_array().unwrap();
    assert!(volumes.iter().all(|volume| volume["problem"].is_null()), "{report}");
    // Of 20 volumes, 6 each; of 10 of them two were deleted. The revert took one more.
    assert_eq!((report["snapshots"].as_u64(), report["clones"].as_u64()), (Some(101), Some(5)), "{report}");
    assert!(report["batches"].as_u64().unwrap() > 0, "the last writes are in no checkpoint: {report}");
}

/// Names and lengths of all objects of the pool, with the time of their last change.
fn objects(folder: &Path) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(objects(&path));
        } else {
            let metadata = std::fs::metadata(&path).unwrap();
            found.push((path, metadata.len(), metadata.modified().unwrap()));
        }
    }
    found.sort();
    found
}

const LISTS: [&str; 3] = ["volume", "snapshot", "group"];
const VOLUMES: usize = 20;
const ROUNDS: usize = 6;

/// A site's life: volumes written again and again, with a snapshot each time; snapshots deleted and their space taken back; clones, a revert, a group; and in the end writes
/// that no checkpoint has.
fn live(home: &Home) {
    for round in 0..ROUNDS {
        for volume in 0..VOLUMES {
            let name = format!("v{volume}");
            home.run(&["volume", "import", &name, text(&image(home, volume, round)), "-y"]).ok();
        }
        let wanted: Vec<String> = (0..VOLUMES).map(|volume| format!("v{volume}@s{round}")).collect();
        let names: Vec<&str> = wanted.iter().map(String::as_str).collect();
        home.run(&[&["snapshot", "create"][..], &names].concat()).ok();
        if round == 2 {
            // Something dies: segments go, and what lives in sparse ones moves.
            for volume in 0..10 {
                home.run(&["snapshot", "delete", &format!("v{volume}@s0"), "-y"]).ok();
                home.run(&["snapshot", "delete", &format!("v{volume}@s1"), "-y"]).ok();
            }
            let report = home.run(&["reclaim", "--json"]).json();
            assert!(report["objects"].as_u64().unwrap() > 0, "{report}");
        }
    }
    for volume in 0..5 {
        home.run(&["clone", &format!("v{volume}@s3"), &format!("c{volume}")]).ok();
        home.run(&["volume", "import", &format!("c{volume}"), text(&image(home, 50 + volume, 0)), "-y"]).ok();
    }
    home.run(&["revert", "v19@s2", "-y"]).ok();
    home.run(&["group", "create", "nightly", "--match", "v*", "--keep", "7"]).ok();
    settle(home);
    for volume in 10..15 {
        home.run(&["volume", "import", &format!("v{volume}"), text(&image(home, volume, 7)), "-y"]).ok();
    }
}

/// Fails unless everything shows what it showed in [`live`].
fn assert_alive(other: &Home, home: &Home) {
    for volume in 0..VOLUMES {
        let head = match volume {
            10..15 => 7,
            19 => 2,
            _ => ROUNDS - 1,
        };
        assert_exports_as(other, &format!("v{volume}"), &image(home, volume, head));
        for round in if volume < 10 { 2..ROUNDS } else { 0..ROUNDS } {
            assert_exports_as(other, &format!("v{volume}@s{round}"), &image(home, volume, round));
        }
    }
    for volume in 0..5 {
        assert_exports_as(other, &format!("c{volume}"), &image(home, 50 + volume, 0));
    }
}

/// What a list tells, without what changes by itself.
fn told(home: &Home, list: &str) -> Vec<String> {
    let rows = home.run(&[list, "list", "--json"]).json();
    let key = if list == "snapshot" { "snapshot" } else { "name" };
    rows.as_array().unwrap().iter().map(|row| row[key].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_site_is_whole_again_without_its_catalog_and_its_log() {
    let home = Home::with_config(QUICK);
    home.run(&["init"]).ok();
    let gateway = home.serve();
    live(&home);
    let lists = LISTS.map(|list| told(&home, list));
    let (pool, key) = lose(&home, gateway);
    let before = objects(&home.path("pool"));

    let pool = [pool];
    let (other, report) = recovered(&pool, &key);
    assert_eq!(objects(&home.path("pool")), before, "a recovery writes nothing to the pool");
    assert_whole(&report);

    let refused = other.run(&["serve"]).failed();
    assert!(refused.contains("--take-over"), "{refused}");
    let (late, _) = recovered(&pool, &key);
    let gateway = other.start(&["serve", "--take-over"]);
    // What was recovered at the same time and comes second would throw the site back.
    let refused = late.run(&["serve", "--take-over"]).failed();
    assert!(refused.contains("has gone on") && refused.contains("cairn recover"), "{refused}");
    let refused = late.run(&["serve"]).failed();
    assert!(refused.contains("--take-over"), "it is what it was: {refused}");
    assert_eq!(LISTS.map(|list| told(&other, list)), lists);
    assert_alive(&other, &home);

    // It is a site as any other: it is written, it reclaims, and it is recovered again.
    other.run(&["volume", "import", "v3", text(&image(&home, 3, 8)), "-y"]).ok();
    other.run(&["snapshot", "delete", "v3@s4", "-y"]).ok();
    other.run(&["reclaim"]).ok();
    settle(&other);
    gateway.kill();
    std::fs::remove_file(other.path("catalog.db")).unwrap();
    let (third, report) = recovered(&pool, &key);
    assert_eq!(report["incarnation"], 3, "{report}");
    let _gateway = third.start(&["serve", "--take-over"]);
    assert_exports_as(&third, "v3", &image(&home, 3, 8));
    assert_exports_as(&third, "v3@s3", &image(&home, 3, 3));
    assert_exports_as(&third, "v12", &image(&home, 12, 7));
}

const NODES: [&str; 6] = ["n1", "n2", "n3", "n4", "n5", "n6"];

/// A site like that of one node, in shards on six nodes of which any two may be lost.
#[test]
fn a_site_is_whole_again_without_two_of_its_six_nodes() {
    let home = Home::with_config(QUICK);
    home.run(&["init"]).ok();
    let place = |name: &str| home.folder().join(name);
    for name in NODES {
        home.run(&["node", "add", name, &url(&place(name)), "--capacity", "1T"]).ok();
    }
    home.run(&["pool", "profile", "ec:4+2"]).ok();
    let gateway = home.serve();
    live(&home);
    let lists = LISTS.map(|list| told(&home, list));
    let (_, key) = lose(&home, gateway);
    let away = |name: &str| place(&format!("{name}-away"));
    for name in &NODES[..2] {
        std::fs::rename(place(name), away(name)).unwrap();
    }
    let all = || NODES.map(|name| if place(name).exists() { objects(&place(name)) } else { Vec::new() });
    let before = all();

    let left: Vec<String> = NODES[2..].iter().map(|name| url(&place(name))).collect();
    let (other, report) = recovered(&left, &key);
    assert_eq!(all(), before, "a recovery writes nothing to the pool");
    assert_whole(&report);
    assert_eq!(report["nodes_not_given"].as_array().unwrap().len(), 2, "{report}");

    let gateway = other.start(&["serve", "--take-over"]);
    assert_eq!(LISTS.map(|list| told(&other, list)), lists);
    assert_alive(&other, &home);
    let nodes = other.run(&["node", "list", "--json"]).json();
    let names: Vec<&str> =
        nodes.as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect();
    assert_eq!(names, NODES, "also those that were not given");
    assert!(nodes.as_array().unwrap().iter().all(|node| node["capacity_bytes"] == 1u64 << 40), "{nodes}");
    assert_eq!(other.run(&["pool", "profile", "--json"]).json()["profile"], "ec:4+2");

    // They come back, and it is a site as any other.
    for name in &NODES[..2] {
        std::fs::rename(away(name), place(name)).unwrap();
    }
    other.run(&["volume", "import", "v3", text(&image(&home, 3, 8)), "-y"]).ok();
    other.run(&["snapshot", "delete", "v3@s4", "-y"]).ok();
    other.run(&["reclaim"]).ok();
    settle(&other);
    gateway.kill();
    std::fs::remove_file(other.path("catalog.db")).unwrap();
    let every: Vec<String> = NODES.iter().map(|name| url(&place(name))).collect();
    let (third, report) = recovered(&every, &key);
    assert_eq!((&report["incarnation"], &report["nodes_not_given"]), (&3.into(), &serde_json::json!([])));
    let _gateway = third.start(&["serve", "--take-over"]);
    assert_exports_as(&third, "v3", &image(&home, 3, 8));
    assert_exports_as(&third, "v3@s3", &image(&home, 3, 3));
    assert_exports_as(&third, "v12", &image(&home, 12, 7));

    // What three nodes cannot tell is told as that.
    let few: Vec<String> = NODES[3..].iter().map(|name| url(&place(name))).collect();
    let (_, report) = recovered(&few, &key);
    assert_eq!(report["missing_segments"], serde_json::json!([]), "{report}");
    assert!(!report["unreachable_segments"].as_array().unwrap().is_empty(), "{report}");
    assert!(
        report["warnings"][0].as_str().unwrap().contains("3 data nodes of the site were not given"),
        "{report}"
    );
    let twice = Home::with_config(QUICK);
    let refused = twice.run(&["recover", "--key", text(&key), "--pool", &few[0], "--pool", &few[0]]).failed();
    assert!(refused.contains("same data node"), "{refused}");
}

/// Every segment and every checkpoint has a copy on each of the two: with one of them lost, the other one is enough for both.
#[test]
fn a_site_is_whole_again_without_one_of_its_two_nodes() {
    let home = Home::with_config(QUICK);
    home.run(&["init"]).ok();
    let place = |name: &str| home.folder().join(name);
    for name in &NODES[..2] {
        home.run(&["node", "add", name, &url(&place(name))]).ok();
    }
    home.run(&["pool", "profile", "replica:2"]).ok();
    let gateway = home.serve();
    home.run(&["volume", "import", "v0", text(&image(&home, 0, 0)), "-y"]).ok();
    home.run(&["snapshot", "create", "v0@s0"]).ok();
    home.run(&["volume", "import", "v0", text(&image(&home, 0, 1)), "-y"]).ok();
    settle(&home);
    let (_, key) = lose(&home, gateway);
    std::fs::rename(place("n1"), place("n1-away")).unwrap();

    let left = [url(&place("n2"))];
    let (other, report) = recovered(&left, &key);
    assert_eq!(report["nodes_not_given"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(report["missing_segments"], serde_json::json!([]), "{report}");
    assert_eq!(report["is_whole"], true, "{report}");
    let (late, _) = recovered(&left, &key);
    let gateway = other.start(&["serve", "--take-over"]);
    assert_exports_as(&other, "v0", &image(&home, 0, 1));
    assert_exports_as(&other, "v0@s0", &image(&home, 0, 0));
    // It took the site over: what else was recovered is refused.
    let refused = late.run(&["serve", "--take-over"]).failed();
    assert!(refused.contains("has gone on"), "{refused}");
    gateway.kill();
    let refused = late.run(&["serve", "--take-over"]).failed();
    assert!(refused.contains("has gone on"), "{refused}");
    let (third, report) = recovered(&left, &key);
    assert_eq!(report["incarnation"], 3, "{report}");
    let _gateway = third.start(&["serve", "--take-over"]);
    assert_exports_as(&third, "v0", &image(&home, 0, 1));
}

#[test]
fn what_the_gateway_of_before_wrote_after_a_recovery_is_not_lost_unnoticed() {
    let home = Home::with_config(QUICK);
    home.run(&["init"]).ok();
    let gateway = home.serve();
    home.run(&["volume", "import", "v0", text(&image(&home, 0, 0)), "-y"]).ok();
    settle(&home);
    let (pool, key) = ([url(&home.path("pool"))], home.path("key"));
    let (early, report) = recovered(&pool, &key);
    assert_eq!(report["is_whole"], true, "{report}");
    // It was to be stopped, and is not.
    home.run(&["volume", "import", "v0", text(&image(&home, 0, 1)), "-y"]).ok();
    settle(&home);
    gateway.kill();
    let refused = early.run(&["serve", "--take-over"]).failed();
    assert!(refused.contains("has other segments") && refused.contains("cairn recover"), "{refused}");
    let (late, _) = recovered(&pool, &key);
    let _gateway = late.start(&["serve", "--take-over"]);
    assert_exports_as(&late, "v0", &image(&home, 0, 1));
}

/// The newest checkpoint is gone, and the one before names segments from which everything was moved.
#[test]
fn what_was_moved_since_the_checkpoint_is_found_where_it_is() {
    let home = Home::with_config(QUICK);
    home.run(&["init"]).ok();
    let gateway = home.serve();
    for (name, seed) in [("v1", 1), ("v2", 2), ("v3", 3)] {
        home.run(&["volume", "import", name, text(&image(&home, seed, 1)), "-y"]).ok();
    }
    settle(&home);
    // Half of each is dead, in the checkpoint too.
    for (name, seed) in [("v1", 1), ("v2", 2), ("v3", 3)] {
        home.run(&["volume", "import", name, text(&image(&home, seed, 2)), "-y"]).ok();
    }
    settle(&home);
    let record = home.path("pool/record");
    let before = objects(&record);
    let kept = home.folder().join("record");
    copy_folder(&record, &kept);
    let segments = || -> std::collections::BTreeSet<PathBuf> {
        objects(&home.path("pool/segments")).into_iter().map(|(path, ..)| path).collect()
    };
    let of_checkpoint = segments();
    let report = home.run(&["reclaim", "--json"]).json();
    assert!(
        report["moved_bytes"].as_u64().unwrap() > 0 && report["objects"].as_u64().unwrap() > 0,
        "{report}"
    );
    settle(&home);
    assert!(objects(&record) != before, "a checkpoint knew it before anything was deleted");
    assert!(!of_checkpoint.is_subset(&segments()), "nothing that it names is gone");
    let (pool, key) = lose(&home, gateway);
    std::fs::remove_dir_all(&record).unwrap();
    copy_folder(&kept, &record);

    let (other, report) = recovered(std::slice::from_ref(&pool), &key);
    assert_eq!(report["missing_segments"], serde_json::json!([]), "{report}");
    assert!(report["rehomed_segments"].as_u64().unwrap() > 0, "{report}");
    // Changes of the checkpoint that are not folded point at what was overwritten since and left out: that is told.
    for warning in report["warnings"].as_array().unwrap() {
        assert!(warning.as_str().unwrap().contains("may be overwritten since"), "{report}");
    }
    let gateway = other.start(&["serve", "--take-over", "--accept-incomplete"]);
    for (name, seed) in [("v1", 1), ("v2", 2), ("v3", 3)] {
        assert_exports_as(&other, name, &image(&home, seed, 2));
    }
    // Folded, nothing points at what was left out.
    other.run(&["reclaim"]).ok();
    let found = other.run(&["fsck", "--json"]).json();
    assert_eq!((&found["problem_count"], &found["lost_count"]), (&0.into(), &0.into()), "{found}");
    gateway.kill();
    let _gateway = other.serve();
    assert_exports_as(&other, "v2", &image(&home, 2, 2));
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn what_cannot_be_recovered_is_refused_and_leaves_the_pool_alone() {
    let home = Home::with_config(QUICK);
    home.run(&["init"]).ok();
    let gateway = home.serve();
    home.run(&["volume", "import", "disk", text(&image(&home, 1, 1)), "-y"]).ok();
    home.run(&["snapshot", "create", "disk@s"]).ok();
    settle(&home);
    let (pool, key) = lose(&home, gateway);
    // The wrong key.
    let stranger = Home::ready();
    let other = Home::with_config(QUICK);
    let wrong = other.run(&["recover", "--pool", &pool, "--key", text(&stranger.path("key"))]).failed();
    assert!(wrong.contains("key"), "{wrong}");
    // A directory that is in use.
    let taken = stranger.run(&["recover", "--pool", &pool, "--key", text(&key)]).failed();
    assert!(taken.contains("already"), "{taken}");
    // A configuration that names what another gateway has.
    for (section, name) in [("catalog]\nurl = \"sqlite:", "catalog.db"), ("key]\npath = \"", "key")] {
        let before = std::fs::read(stranger.path(name)).unwrap();
        let config = format!("[{section}{}\"\n{QUICK}", text(&stranger.path(name)));
        let other = Home::with_config(&config);
        let refused = other.run(&["recover", "--pool", &pool, "--key", text(&key)]).failed();
        assert!(refused.contains("is there already"), "{refused}");
        assert_eq!(std::fs::read(stranger.path(name)).unwrap(), before);
        assert!(!other.path("recovering").exists(), "it is as it was");
    }
    // A segment that is gone is told, and the rest is there for whoever wants that.
    let segment = objects(&home.path("pool").join("segments"))[0].0.clone();
    std::fs::remove_file(&segment).unwrap();
    let (lacking, report) = recovered(std::slice::from_ref(&pool), &key);
    let gone = segment.file_name().unwrap().to_str().unwrap();
    assert_eq!(report["missing_segments"], serde_json::json!([gone]), "{report}");
    assert_eq!(report["is_whole"], false, "{report}");
    let told = Home::with_config(QUICK);
    let answer = told.run(&["recover", "--pool", &pool, "--key", text(&key)]).ok();
    assert!(answer.contains("MISSING") && answer.contains("--take-over --accept-incomplete"), "{answer}");
    let refused = lacking.run(&["serve", "--take-over"]).failed();
    assert!(refused.contains("1 segments that are MISSING"), "{refused}");
    assert!(refused.contains("--accept-incomplete"), "{refused}");
    lacking.start(&["serve", "--take-over", "--accept-incomplete"]).kill();
    assert!(!lacking.path("not-taken-over").exists());
    // A damaged piece costs the checkpoints that need it.
    for (path, _, _) in objects(&home.path("pool").join("record/pieces")) {
        std::fs::write(path, b"damaged").unwrap();
    }
    let fourth = Home::with_config(QUICK);
    let refused = fourth.run(&["recover", "--pool", &pool, "--key", text(&key)]).failed();
    assert!(refused.contains("no checkpoint") && refused.contains("damaged"), "{refused}");
    let unfinished = fourth.run(&["serve"]).failed();
    assert!(unfinished.contains("recovering"), "{unfinished}");
}
