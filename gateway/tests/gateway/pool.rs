//! Several data nodes and a profile, as their operator sees them.

use crate::support::{Home, SMALL, noise, same_content, sparse_file};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn url(home: &Home, name: &str) -> String {
    format!("file://{}", home.folder().join(name).display())
}

fn image(home: &Home, seed: u64) -> PathBuf {
    let path = home.folder().join(format!("{seed}.raw"));
    sparse_file(&path, 32 << 20, &[(0, &noise(seed, 9 << 20)), (20 << 20, &noise(seed + 1, 100_000))]);
    path
}

#[track_caller]
fn assert_exports_as(home: &Home, volume: &str, image: &Path) {
    let out = home.folder().join(format!("{volume}.out"));
    home.run(&["volume", "export", volume, text(&out), "--force"]).ok();
    assert!(same_content(image, &out), "volume {volume} is not {}", image.display());
}

/// A site on nodes of these names, with a profile.
fn site_on(names: &[&str], profile: &str) -> Home {
    let home = Home::ready();
    for name in names {
        home.run(&["node", "add", name, &url(&home, name)]).ok();
    }
    home.run(&["pool", "profile", profile]).ok();
    home
}

fn nodes(home: &Home) -> Vec<Value> {
    home.run(&["node", "list", "--json"]).json().as_array().unwrap().clone()
}

#[test]
fn the_first_node_takes_the_embedded_ones_place_until_there_is_data() {
    let home = Home::ready();
    let told = home.run(&["node", "add", "big", &url(&home, "big"), "--json"]).json();
    assert_eq!((&told["node"]["name"], &told["replaced"]), (&"big".into(), &"local".into()));
    assert!(home.run(&["node", "add", "big", &url(&home, "other")]).failed().contains("already"));
    assert!(
        home.run(&["node", "add", "twin", &url(&home, "big")]).failed().contains("is data node big already")
    );
    home.run(&["volume", "import", "a", text(&image(&home, 1))]).ok();
    assert!(home.folder().join("big/segments").exists());
    let told = home.run(&["node", "add", "late", &url(&home, "late"), "--json"]).json();
    assert_eq!((&told["node"]["name"], &told["replaced"]), (&"late".into(), &Value::Null));
    assert_eq!(nodes(&home).len(), 2);
    assert_exports_as(&home, "a", &image(&home, 1));
}

#[test]
fn a_profile_needs_its_nodes_and_says_so() {
    let home = site_on(&["a", "b"], "replica:2");
    for (profile, told) in [("ec:2+1", "needs 3 data nodes"), ("replica:3", "there are 2")] {
        assert!(home.run(&["pool", "profile", profile]).failed().contains(told), "{profile}");
    }
    for profile in ["raid6", "ec:1+1", "replica:1"] {
        assert!(
            home.run(&["pool", "profile", profile]).misused().contains("is no protection profile"),
            "{profile}"
        );
    }
    for command in [&["node", "drain", "a"][..], &["node", "remove", "a"]] {
        assert!(home.run(command).failed().contains("replica:2 needs 2 nodes"), "{command:?}");
    }
    assert!(home.run(&["node", "drain", "z"]).failed().contains("no data node named z"));
    let pool = home.run(&["pool", "profile", "--json"]).json();
    assert_eq!(
        (&pool["profile"], &pool["tolerates"], &pool["active_nodes"]),
        (&"replica:2".into(), &1.into(), &2.into())
    );
    home.run(&["node", "edit", "a", "--domain", "rack1", "--capacity", "2T"]).ok();
    let node = home.run(&["node", "show", "a", "--json"]).json();
    assert_eq!((&node["domain"], &node["capacity_bytes"]), (&"rack1".into(), &(2u64 << 40).into()));
    home.run(&["node", "edit", "a", "--domain", "", "--capacity", "0"]).ok();
    assert_eq!(home.run(&["node", "show", "a", "--json"]).json()["domain"], Value::Null);
    let told = home.run(&["node", "edit", "a", "--url", &url(&home, "b")]).failed();
    assert!(told.contains("is data node"), "{told}");
}

#[test]
fn data_is_spread_and_read_without_a_node() {
    let home = site_on(&["a", "b", "c"], "ec:2+1");
    home.run(&["volume", "import", "v", text(&image(&home, 1))]).ok();
    let shards: Vec<u64> = nodes(&home).iter().map(|node| node["shards"].as_u64().unwrap()).collect();
    assert!(
        shards[0] > 0 && shards.iter().all(|count| *count == shards[0]),
        "each node has one of each: {shards:?}"
    );
    for lost in ["a", "b", "c"] {
        let (place, away) = (home.folder().join(lost), home.folder().join("away"));
        std::fs::rename(&place, &away).unwrap();
        assert_exports_as(&home, "v", &image(&home, 1));
        std::fs::rename(&away, &place).unwrap();
    }
    // Another node in its place is not believed.
    let (place, away) = (home.folder().join("a"), home.folder().join("away"));
    std::fs::rename(&place, &away).unwrap();
    std::fs::create_dir(&place).unwrap();
    assert_exports_as(&home, "v", &image(&home, 1));
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0, "nothing is written to what is no node");
}

#[test]
fn nodes_come_and_go_while_the_gateway_serves() {
    // Nothing that matters here is moved in the meantime.
    let home = Home::with_config(&format!("{SMALL}[heal]\nbandwidth = \"1MiB\"\n"));
    home.run(&["init"]).ok();
    let gateway = home.serve();
    for name in ["a", "b", "c"] {
        home.run(&["node", "add", name, &url(&home, name), "--domain", name]).ok();
    }
    home.run(&["pool", "profile", "replica:3"]).ok();
    home.run(&["volume", "import", "v", text(&image(&home, 1))]).ok();
    for node in nodes(&home) {
        assert!(
            node["shards"].as_u64().unwrap() > 0 && node["health"]["puts"].as_u64().unwrap() > 0,
            "{node}"
        );
    }
    let told = home.run(&["node", "remove", "a"]).failed();
    assert!(told.contains("replica:3 needs 3 nodes"), "{told}");
    home.run(&["node", "add", "d", &url(&home, "d")]).ok();
    let told = home.run(&["node", "remove", "a"]).failed();
    assert!(told.contains("still holds segments"), "{told}");
    assert_eq!(gateway.stop(), Some(0));
    assert_exports_as(&home, "v", &image(&home, 1));
}
