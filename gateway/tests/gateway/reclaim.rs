//! What nothing points at any more comes back to the pool, as its operator sees it.

use crate::support::{Home, SMALL, noise, pause, same_content, sparse_file};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Of batches that only discarded there are tiny objects, which stay.
const TINY: u64 = 4096;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A home where nothing is taken back unless it is asked for, or every so often.
fn home(interval: &str) -> Home {
    let home = Home::with_config(&format!("{SMALL}[reclaim]\ninterval = \"{interval}\"\n"));
    home.run(&["init"]).ok();
    home
}

/// An image of 8 MiB with 4 MiB of `seed`'s noise.
fn image(home: &Home, seed: u64) -> PathBuf {
    let path = home.folder().join(format!("{seed}.raw"));
    sparse_file(&path, 8 << 20, &[(1 << 20, &noise(seed, 4 << 20))]);
    path
}

/// Bytes of the segments that hold data.
fn pool_bytes(home: &Home) -> u64 {
    fn bytes_below(folder: &Path) -> u64 {
        // What is deleted meanwhile is not there.
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .map(|entry| match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
                Ok(metadata) if metadata.len() > TINY => metadata.len(),
                _ => 0,
            })
            .sum()
    }
    bytes_below(&home.path("pool").join("segments"))
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("no {name} in {value}"))
}

#[track_caller]
fn assert_exports_as(home: &Home, name: &str, image: &Path) {
    let out = home.folder().join(format!("{name}.out"));
    home.run(&["volume", "export", name, text(&out), "--force"]).ok();
    assert!(same_content(image, &out), "{name} is not {}", image.display());
}

#[test]
fn a_deleted_volume_comes_back_with_and_without_a_gateway() {
    for running in [false, true] {
        let home = home("off");
        let (kept, lost) = (image(&home, 1), image(&home, 2));
        home.run(&["volume", "import", "kept", text(&kept)]).ok();
        home.run(&["volume", "import", "lost", text(&lost)]).ok();
        let gateway = running.then(|| home.serve());
        assert!(home.run(&["reclaim"]).ok().starts_with("Nothing to take back"));
        home.run(&["volume", "delete", "lost"]).ok();
        let full = pool_bytes(&home);
        assert!(full > 8 << 20, "{full}");
        let planned = home.run(&["reclaim", "--dry-run", "--json"]).json();
        assert_eq!((&planned["dry_run"], &planned["objects"]), (&json!(true), &json!(0)));
        assert!(number(&planned, "container_bytes") > 4 << 20, "{planned}");
        let told = home.run(&["reclaim", "--dry-run"]).ok();
        assert!(told.starts_with("Nothing points at ") && told.contains("`cairn reclaim` would"), "{told}");
        assert_eq!(pool_bytes(&home), full, "a dry run changes nothing");
        let done = home.run(&["reclaim", "--json"]).json();
        assert_eq!(done["dry_run"], json!(false));
        for same in ["containers", "container_bytes"] {
            assert_eq!(done[same], planned[same], "{done} {planned}");
        }
        assert!(number(&done, "objects") > 0 && number(&done, "object_bytes") > 4 << 20, "{done}");
        let left = pool_bytes(&home);
        assert!((4 << 20..5 << 20).contains(&left), "{left} of {full}");
        assert!(home.run(&["reclaim"]).ok().starts_with("Nothing to take back"));
        assert_exports_as(&home, "kept", &kept);
        // What is gone is not shared with.
        home.run(&["volume", "import", "again", text(&lost)]).ok();
        assert_exports_as(&home, "again", &lost);
        for name in ["kept", "again"] {
            home.run(&["volume", "delete", name]).ok();
        }
        let told = home.run(&["reclaim"]).ok();
        assert!(told.starts_with("Took back ") && told.contains("from the pool."), "{told}");
        assert_eq!(pool_bytes(&home), 0);
        if let Some(gateway) = gateway {
            assert_eq!(gateway.stop(), Some(0));
        }
    }
}

#[test]
fn what_was_just_overwritten_counts_and_what_a_snapshot_shows_does_not() {
    let home = home("off");
    let (first, second) = (image(&home, 1), image(&home, 2));
    home.run(&["volume", "import", "a", text(&first)]).ok();
    let gateway = home.serve();
    home.run(&["snapshot", "create", "a@one"]).ok();
    home.run(&["volume", "import", "a", text(&second)]).ok();
    let nothing = home.run(&["reclaim", "--json"]).json();
    let expected = json!({"dry_run": false, "containers": 0, "container_bytes": 0, "moved_containers": 0, "moved_bytes": 0, "objects": 0, "object_bytes": 0});
    assert_eq!(nothing, expected);
    assert_exports_as(&home, "a@one", &first);
    home.run(&["snapshot", "delete", "a@one"]).ok();
    let done = home.run(&["reclaim", "--json"]).json();
    assert!(number(&done, "object_bytes") > 4 << 20, "{done}");
    assert_exports_as(&home, "a", &second);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn the_status_tells_what_came_back() {
    let home = home("off");
    home.run(&["volume", "import", "a", text(&image(&home, 1))]).ok();
    let stopped = home.run(&["status", "--json"]).json();
    assert_eq!(number(&stopped["reclaim"], "passes"), 0);
    assert!(!home.run(&["status"]).ok().contains("\nreclaim "), "nothing was counted without a gateway");
    let gateway = home.serve();
    let before = home.run(&["status", "--json"]).json()["reclaim"].clone();
    assert_eq!((number(&before, "passes"), before.get("last_at_ms")), (0, None));
    assert!(home.run(&["status"]).ok().contains("\nreclaim  nothing taken back, no pass since the start\n"));
    home.run(&["volume", "delete", "a"]).ok();
    home.run(&["reclaim", "--dry-run"]).ok();
    assert_eq!(home.run(&["status", "--json"]).json()["reclaim"], before, "a dry run is no pass");
    let mut done = home.run(&["reclaim", "--json"]).json();
    done.as_object_mut().unwrap().remove("dry_run");
    let status = home.run(&["status", "--json"]).json();
    assert_eq!((number(&status["reclaim"], "passes"), &status["reclaim"]["total"]), (1, &done));
    assert!(number(&status["reclaim"], "last_at_ms") > 1_700_000_000_000, "{status}");
    let look = &status["reclaim"]["last_look"];
    assert!(number(look, "object_bytes") >= number(&done, "object_bytes"), "{status}");
    assert_eq!(number(look, "live_bytes"), 0, "the volume was all there was");
    // Beside them, what older checkpoints had.
    assert!(number(&status["pool"], "deletes") >= number(&done, "objects"), "{status}");
    assert_eq!(status["pool"]["nodes"][0]["health"]["deletes"], status["pool"]["deletes"]);
    assert!(number(&status["pool"], "delete_requests") >= number(&done, "objects"), "{status}");
    let told = home.run(&["status"]).ok();
    assert!(told.contains("\nreclaim  4") && told.contains(" taken back by 1 pass since"), "{told}");
    assert!(home.run(&["node", "show", "local"]).ok().contains("\ndeletes  "));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn it_runs_by_itself() {
    let home = home("1s");
    home.run(&["volume", "import", "a", text(&image(&home, 1))]).ok();
    let gateway = home.serve();
    home.run(&["volume", "delete", "a"]).ok();
    for _ in 0..600 {
        let status = home.run(&["status", "--json"]).json();
        // A pass is told of when it has ended.
        if pool_bytes(&home) == 0 && number(&status["reclaim"]["total"], "container_bytes") > 4 << 20 {
            assert_eq!(gateway.stop(), Some(0));
            return;
        }
        pause(Duration::from_millis(50));
    }
    panic!("{} bytes are still in the pool: {}", pool_bytes(&home), gateway.log());
}

#[test]
fn an_interval_that_cannot_be_is_refused() {
    for (interval, word) in [("10", "not a duration"), ("100ms", "at least 1s"), ("1000h", "30 days")] {
        let home = Home::with_config(&format!("{SMALL}[reclaim]\ninterval = \"{interval}\"\n"));
        let told = home.run(&["init"]).failed();
        assert!(told.contains("`reclaim.interval`") && told.contains(word), "{interval}: {told}");
    }
}
