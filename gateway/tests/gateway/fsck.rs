//! Checking a site, as its operator sees it.

use crate::support::{Home, SMALL, noise, same_content, sparse_file};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A home with a volume of 4 MiB of noise.
fn home() -> (Home, PathBuf) {
    let home = Home::with_config(&format!("{SMALL}[reclaim]\ninterval = \"off\"\n"));
    home.run(&["init"]).ok();
    let image = home.folder().join("disk.raw");
    sparse_file(&image, 8 << 20, &[(1 << 20, &noise(1, 4 << 20))]);
    home.run(&["volume", "import", "disk", text(&image)]).ok();
    (home, image)
}

/// Everything in the pool and its length.
fn pool(home: &Home) -> BTreeMap<PathBuf, u64> {
    fn below(folder: &Path, found: &mut BTreeMap<PathBuf, u64>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => below(&entry.path(), found),
                Ok(metadata) => drop(found.insert(entry.path(), metadata.len())),
                Err(_) => {}
            }
        }
    }
    let mut found = BTreeMap::new();
    below(&home.path("pool"), &mut found);
    found
}

/// The largest segment.
fn segment(home: &Home) -> PathBuf {
    let of_segments = pool(home).into_iter().filter(|(path, _)| text(path).contains("/segments/"));
    of_segments.max_by_key(|(_, length)| *length).unwrap().0
}

/// A copy of a segment under an identity of its own: what a put leaves that was never committed.
fn plant_orphan(home: &Home) -> PathBuf {
    let mut object = std::fs::read(segment(home)).unwrap();
    object[48..64].fill(7);
    let path = home.path("pool").join("segments/07").join("07".repeat(16));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, object).unwrap();
    path
}

/// The JSON that a command printed, whatever its exit status, which must be this.
#[track_caller]
fn checked(home: &Home, arguments: &[&str], code: i32) -> Value {
    let said = home.run(arguments);
    assert_eq!(said.code, Some(code), "{said:?}");
    serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

#[test]
fn a_sound_site_is_clean_with_and_without_a_gateway_and_nothing_changes() {
    let (home, _) = home();
    let before = (pool(&home), std::fs::read(home.path("catalog.db")).unwrap());
    let told = home.run(&["fsck"]).ok();
    assert!(told.starts_with("Checked ") && told.contains("Everything is as it should be"), "{told}");
    let found = checked(&home, &["fsck", "--json"], 0);
    assert_eq!(
        (&found["problem_count"], &found["lost_count"], &found["plan"]),
        (&json!(0), &json!(0), &Value::Null)
    );
    assert!(found["segments"].as_u64() > Some(0) && found["shards"] == found["segments"], "{found}");
    assert!(home.run(&["fsck", "--repair", "--yes"]).ok().contains("Everything is as it should be"));
    let objects = before.0.keys().filter(|path| text(path).contains("/segments/")).count();
    assert_eq!(found["objects"].as_u64(), Some(objects as u64));
    let gateway = home.serve();
    assert!(home.run(&["fsck"]).ok().contains("Everything is as it should be"));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_check_without_a_gateway_writes_nothing() {
    let (home, _) = home();
    plant_orphan(&home);
    let before = (pool(&home), std::fs::read(home.path("catalog.db")).unwrap());
    checked(&home, &["fsck", "--json"], 4);
    assert_eq!(before, (pool(&home), std::fs::read(home.path("catalog.db")).unwrap()));
}

#[test]
fn an_orphan_is_told_planned_and_deleted_when_that_is_confirmed() {
    for running in [false, true] {
        let (home, image) = home();
        let orphan = plant_orphan(&home);
        let gateway = running.then(|| home.serve());
        let said = home.run(&["fsck"]);
        assert_eq!(said.code, Some(4), "{said:?}");
        assert!(
            said.stdout.contains(&"07".repeat(16)) && said.stdout.contains("nothing names it"),
            "{said:?}"
        );
        assert!(said.stderr.contains("1 problem") && said.stderr.contains("--repair"), "{said:?}");
        // Nobody is there to be asked, so nothing is looked at.
        for arguments in [&["fsck", "--repair"][..], &["fsck", "--repair", "--json"]] {
            let refused = home.run(arguments);
            assert_eq!((refused.code, &*refused.stdout), (Some(2), ""), "{refused:?}");
            assert!(refused.stderr.contains("--repair --yes"), "{refused:?}");
        }
        let found = checked(&home, &["fsck", "--json"], 4);
        let size = std::fs::metadata(&orphan).unwrap().len();
        assert_eq!(
            (&found["plan"]["delete"], &found["plan"]["delete_bytes"]),
            (&json!(1), &json!(size)),
            "{found}"
        );
        assert_eq!((&found["plan"]["recount"], &found["plan"]["heal"]), (&json!(0), &json!(0)), "{found}");
        assert!(orphan.exists());
        assert!(home.run(&["fsck", "--yes"]).misused().contains("--repair"));
        let done = checked(&home, &["fsck", "--repair", "--yes", "--json"], 0);
        assert_eq!(done["repaired"]["orphans"], json!(1), "{done}");
        assert_eq!(done["repaired"]["deleted"], json!(true), "{done}");
        assert!(!orphan.exists());
        assert!(home.run(&["fsck"]).ok().contains("Everything is as it should be"));
        let out = home.folder().join("out.raw");
        home.run(&["volume", "export", "disk", text(&out)]).ok();
        assert!(same_content(&image, &out));
        drop(gateway);
    }
}

#[test]
fn what_is_lost_is_told_by_volume_and_bytes_and_is_not_mended() {
    let (home, _) = home();
    std::fs::remove_file(segment(&home)).unwrap();
    let found = checked(&home, &["fsck", "--json"], 4);
    assert_eq!(found["problems"][0]["kind"], json!("missing-shard"), "{found}");
    assert!(found["lost"][0]["volume"] == json!("disk") && found["lost_bytes"].as_u64() > Some(0), "{found}");
    let said = home.run(&["fsck", "--repair", "--yes"]);
    assert_eq!(said.code, Some(4), "{said:?}");
    assert!(said.stdout.contains("LOST") && said.stdout.contains("disk bytes"), "{said:?}");
}

#[test]
fn a_node_that_is_away_is_told_as_not_checked() {
    let home = Home::ready();
    for name in ["a", "b", "c"] {
        home.run(&["node", "add", name, &format!("file://{}", home.folder().join(name).display())]).ok();
    }
    home.run(&["pool", "profile", "ec:2+1"]).ok();
    let image = home.folder().join("disk.raw");
    sparse_file(&image, 8 << 20, &[(0, &noise(1, 2 << 20))]);
    home.run(&["volume", "import", "disk", text(&image)]).ok();
    home.run(&["fsck"]).ok();
    std::fs::rename(home.folder().join("b"), home.folder().join("away")).unwrap();
    let found = checked(&home, &["fsck", "--json"], 8);
    assert_eq!((&found["problem_count"], &found["lost_count"]), (&json!(0), &json!(0)), "{found}");
    assert!(found["unchecked"][0].as_str().unwrap().contains("data node b"), "{found}");
    std::fs::rename(home.folder().join("away"), home.folder().join("b")).unwrap();
    home.run(&["fsck"]).ok();
}

#[test]
fn a_damaged_file_of_the_catalog_is_told_and_the_rest_is_checked() {
    use std::os::unix::fs::FileExt;
    let (home, _) = home();
    plant_orphan(&home);
    let file = std::fs::File::options().write(true).open(home.path("catalog.db")).unwrap();
    // The header of the file says that five pages are free, and there are none (https://www.sqlite.org/fileformat.html, 1.3).
    file.write_all_at(&[0, 0, 0, 0, 0, 0, 0, 5], 32).unwrap();
    drop(file);
    let found = checked(&home, &["fsck", "--json"], 4);
    let problems = found["problems"].as_array().unwrap();
    let of_kind = |kind: &str| problems.iter().filter(|problem| problem["kind"] == json!(kind)).count();
    assert!(of_kind("catalog-file") >= 1 && of_kind("orphan") == 1, "{found}");
    assert!(
        problems.iter().all(|problem| problem.get("remedy").is_none()),
        "nobody knows what is named: {found}"
    );
    assert!(found["segments"].as_u64() > Some(0) && found["map_rows"].as_u64() > Some(0), "{found}");
    assert_eq!((&found["plan"], &found["orphans"]), (&Value::Null, &json!(0)), "{found}");
}
