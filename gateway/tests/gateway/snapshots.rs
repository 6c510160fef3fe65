//! Snapshots, clones, reverts and differences as their operator sees them.

use crate::support::{Home, noise, pause, same_content, sparse_file, tool};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An image with `seed`'s noise at its beginning and at 20 MiB, and holes elsewhere.
fn image(home: &Home, seed: u64) -> PathBuf {
    let path = home.folder().join(format!("{seed}.raw"));
    sparse_file(&path, 32 << 20, &[(0, &noise(seed, 1 << 20)), (20 << 20, &noise(seed + 1, 100_000))]);
    path
}

/// Fails unless the volume, or the snapshot, exports as `image`.
#[track_caller]
fn assert_exports_as(home: &Home, name: &str, image: &Path) {
    let out = home.folder().join(format!("{name}.out"));
    home.run(&["volume", "export", name, text(&out), "--force"]).ok();
    assert!(same_content(image, &out), "{name} is not {}", image.display());
}

/// `VOLUME@NAME` of all snapshots.
fn listed(home: &Home) -> Vec<String> {
    let snapshots = home.run(&["snapshot", "list", "--json"]).json();
    let named = |snapshot: &Value| snapshot["snapshot"].as_str().unwrap().to_owned();
    snapshots.as_array().unwrap().iter().map(named).collect()
}

/// A client that has an export open for reading, until it is dropped.
struct Client(Child);

impl Client {
    fn of(home: &Home, export: &str) -> Self {
        let uri = format!("nbd+unix:///{export}?socket={}", text(&home.path("nbd.sock")));
        let mut command = Command::new("qemu-io");
        command.args(["-r", "-f", "raw", &uri]).stdin(Stdio::piped()).stdout(Stdio::null());
        Self(command.spawn().expect("qemu-io is needed by this test"))
    }

    fn leave(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until that many clients have what the command shows open.
#[track_caller]
fn wait_for_clients(count: u64, attachments: impl Fn() -> Value) {
    for _ in 0..500 {
        if attachments() == count {
            return;
        }
        pause(Duration::from_millis(20));
    }
    panic!("{count} clients were expected, not {}", attachments());
}

#[test]
fn snapshots_are_administered_the_same_way_with_and_without_a_gateway() {
    for running in [false, true] {
        let home = Home::ready();
        home.run(&["volume", "create", "a", "64MiB"]).ok();
        home.run(&["volume", "create", "b", "64MiB"]).ok();
        let gateway = running.then(|| home.serve());
        assert!(home.run(&["snapshot", "list"]).ok().starts_with("No snapshots."));
        let made = home.run(&["snapshot", "create", "a@one", "--json"]).json();
        assert_eq!(
            (&made["snapshot"], &made["volume"], &made["name"]),
            (&"a@one".into(), &"a".into(), &"one".into())
        );
        assert_eq!((&made["size_bytes"], &made["clones"]), (&(64u64 << 20).into(), &0.into()));
        assert!(["logged", "committed", "settled"].contains(&made["state"].as_str().unwrap()), "{made}");
        assert!(home.run(&["snapshot", "create", "b@one"]).ok().contains("b@one taken: 64 MiB"));
        let automatic: Vec<String> = (0..3)
            .map(|_| {
                let made = home.run(&["snapshot", "create", "a", "--json"]).json();
                made["snapshot"].as_str().unwrap().to_owned()
            })
            .collect();
        assert!(
            automatic.iter().all(|name| name.starts_with("a@auto-2") && name.contains('T')),
            "{automatic:?}"
        );
        assert_eq!(listed(&home), ["a@one", &automatic[0], &automatic[1], &automatic[2], "b@one"]);
        let of_b = home.run(&["snapshot", "list", "b"]).ok();
        assert!(of_b.starts_with("SNAPSHOT") && of_b.contains("b@one") && !of_b.contains("a@one"), "{of_b}");
        assert_eq!(home.run(&["volume", "show", "a", "--json"]).json()["snapshots"], 4);
        assert_eq!(home.run(&["status", "--json"]).json()["snapshots"], 5);
        assert!(home.run(&["status"]).ok().contains("volumes  2, with 5 snapshots"));
        assert!(home.run(&["snapshot", "create", "a@one"]).failed().contains("a@one exists already"));
        let told = home.run(&["volume", "delete", "a"]).failed();
        assert!(told.contains("snapshots (4)") && told.contains("--force"), "{told}");
        assert!(home.run(&["snapshot", "delete", "a@one"]).ok().contains("a@one deleted"));
        assert!(home.run(&["snapshot", "delete", "a@one"]).failed().contains("no snapshot a@one"));
        assert_eq!(listed(&home).len(), 4);
        home.run(&["volume", "delete", "a", "--force"]).ok();
        assert_eq!(listed(&home), ["b@one"]);
        if let Some(gateway) = gateway {
            assert_eq!(gateway.stop(), Some(0));
        }
        assert_eq!(listed(&home), ["b@one"], "also without a gateway");
    }
}

#[test]
fn what_cannot_be_is_refused_and_says_why() {
    let home = Home::ready();
    home.run(&["volume", "create", "a", "1MiB"]).ok();
    let gateway = home.serve();
    home.run(&["snapshot", "create", "a@one"]).ok();
    let raw = home.folder().join("small.raw");
    std::fs::write(&raw, noise(1, 4096)).unwrap();
    let out = home.folder().join("out.raw");
    for (arguments, word) in [
        (&["snapshot", "create", "none@x"][..], "no volume named none"),
        (&["snapshot", "list", "none"], "no volume named none"),
        (&["snapshot", "delete", "a@none"], "no snapshot a@none"),
        (&["snapshot", "delete", "none@x"], "no volume named none"),
        (&["snapshot", "diff", "a@one", "a@none"], "no snapshot a@none"),
        (&["clone", "a@none", "c"], "no snapshot a@none"),
        (&["clone", "a@one", "a"], "a exists already"),
        (&["revert", "a@none"], "no snapshot a@none"),
        (&["revert", "none@one"], "no volume named none"),
        (&["volume", "export", "a@none", text(&out)], "no snapshot a@none"),
        (&["volume", "show", "a@one"], "names a snapshot"),
        (&["volume", "delete", "a@one"], "names a snapshot"),
        (&["volume", "resize", "a@one", "2MiB"], "names a snapshot"),
    ] {
        let told = home.run(arguments).failed();
        assert!(told.contains(word), "{arguments:?}: {told}");
    }
    assert!(home.run(&["volume", "import", "a@one", text(&raw)]).misused().contains("cannot be written"));
    assert!(!out.exists());
    assert_eq!(listed(&home), ["a@one"], "none of them did anything");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_snapshot_is_exported_cloned_compared_and_reverted_to() {
    for running in [false, true] {
        let home = Home::ready();
        let (first, second) = (image(&home, 1), image(&home, 11));
        home.run(&["volume", "import", "a", text(&first)]).ok();
        let gateway = running.then(|| home.serve());
        home.run(&["snapshot", "create", "a@one"]).ok();
        home.run(&["volume", "import", "a", text(&second)]).ok();
        assert_exports_as(&home, "a@one", &first);
        let out = home.folder().join("one.qcow2");
        assert!(
            home.run(&["volume", "export", "a@one", text(&out)]).ok().starts_with("Snapshot a@one exported")
        );
        tool("qemu-img", &["compare", text(&first), text(&out)]);
        let clone = home.run(&["clone", "a@one", "c", "--json"]).json();
        assert_eq!((&clone["name"], &clone["size_bytes"]), (&"c".into(), &(32u64 << 20).into()));
        let reverted = home.run(&["revert", "a@one", "--json"]).json();
        assert_eq!((&reverted["volume"]["name"], &reverted["volume"]["snapshots"]), (&"a".into(), &2.into()));
        let before = reverted["before"]["snapshot"].as_str().unwrap().to_owned();
        assert!(before.starts_with("a@before-revert-2"), "{before}");
        assert_exports_as(&home, "a", &first);
        assert_exports_as(&home, &before, &second);
        assert_exports_as(&home, "c", &first);
        let changed = home.run(&["snapshot", "diff", "a@one", &before, "--json"]).json();
        let ranges = json!([
            {"offset_bytes": 0, "length_bytes": 1 << 20, "allocated": true},
            {"offset_bytes": 20 << 20, "length_bytes": 102_400, "allocated": true},
        ]);
        assert_eq!(
            (&changed["ranges"], &changed["changed_bytes"]),
            (&ranges, &((1u64 << 20) + 102_400).into())
        );
        assert_eq!((&changed["volume"], &changed["from"]), (&"a".into(), &"one".into()));
        let told = home.run(&["snapshot", "diff", "a@one", &before]).ok();
        assert!(told.contains("in 2 ranges") && told.contains("20971520   102400  data"), "{told}");
        assert!(home.run(&["snapshot", "diff", "a@one", "a@one"]).ok().contains("nothing changed"));
        home.run(&["volume", "delete", "a", "--force"]).ok();
        assert_exports_as(&home, "c", &first);
        if let Some(gateway) = gateway {
            assert_eq!(gateway.stop(), Some(0));
        }
        assert_exports_as(&home, "c", &first);
    }
}

#[test]
fn two_reverts_in_a_row_keep_two_ways_back() {
    let home = Home::ready();
    home.run(&["volume", "create", "a", "1MiB"]).ok();
    let gateway = home.serve();
    home.run(&["snapshot", "create", "a@one"]).ok();
    home.run(&["volume", "resize", "a", "2MiB"]).ok();
    let told = home.run(&["revert", "a@one"]).ok();
    assert!(
        told.starts_with("Volume a reverted to a@one: 1 MiB. As it was before it is in a@before-revert-"),
        "{told}"
    );
    home.run(&["revert", "a@one", "--yes"]).ok();
    assert_eq!(listed(&home).len(), 3);
    assert_eq!(home.run(&["volume", "show", "a", "--json"]).json()["size_bytes"], 1 << 20);
    let snapshots = home.run(&["snapshot", "list", "a", "--json"]).json();
    let sizes: Vec<_> = snapshots.as_array().unwrap().iter().map(|one| one["size_bytes"].clone()).collect();
    assert_eq!(sizes, [json!(1 << 20), json!(2 << 20), json!(1 << 20)]);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn clients_of_a_snapshot_are_counted_apart_from_those_of_its_volume() {
    let home = Home::ready();
    home.run(&["volume", "create", "a", "1MiB"]).ok();
    let gateway = home.serve();
    home.run(&["snapshot", "create", "a@one"]).ok();
    home.run(&["snapshot", "create", "a@two"]).ok();
    let of_snapshot = || home.run(&["snapshot", "list", "a", "--json"]).json()[0]["attachments"].clone();
    let of_volume = || home.run(&["volume", "show", "a", "--json"]).json()["attachments"].clone();
    let reader = Client::of(&home, "a@one");
    wait_for_clients(1, of_snapshot);
    assert_eq!(of_volume(), 0, "a client of a snapshot is none of the volume");
    assert!(home.run(&["snapshot", "delete", "a@one"]).failed().contains("a@one is being read"));
    home.run(&["snapshot", "delete", "a@two"]).ok();
    home.run(&["revert", "a@one"]).ok();
    reader.leave();
    wait_for_clients(0, of_snapshot);
    let client = Client::of(&home, "a");
    wait_for_clients(1, of_volume);
    let told = home.run(&["revert", "a@one"]).failed();
    assert!(told.contains("1 client connection") && told.contains("--force"), "{told}");
    home.run(&["revert", "a@one", "--force"]).ok();
    client.leave();
    home.run(&["snapshot", "delete", "a@one"]).ok();
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_snapshot_that_was_told_survives_sigkill() {
    let home = Home::ready();
    home.run(&["volume", "create", "a", "64MiB"]).ok();
    let gateway = home.serve();
    let uri = |name: &str| format!("nbd+unix:///{name}?socket={}", text(&home.path("nbd.sock")));
    tool("qemu-io", &["-f", "raw", "-c", "write -P 7 1M 2M", &uri("a")]);
    home.run(&["snapshot", "create", "a@one"]).ok();
    gateway.kill();
    let gateway = home.serve();
    assert_eq!(listed(&home), ["a@one"]);
    tool("qemu-io", &["-f", "raw", "-c", "write -P 8 0 4M", &uri("a")]);
    tool("qemu-io", &["-r", "-f", "raw", "-c", "read -P 7 1M 2M", "-c", "read -P 0 0 1M", &uri("a@one")]);
    assert_eq!(gateway.stop(), Some(0));
}
