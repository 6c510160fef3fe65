//! Backups of what changed, as their operator and their programs see them: exports in place, dirty bitmaps over NBD, whose space it is.

use crate::support::{Home, noise, pause, same_content, sparse_file, taken, tool};
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A number below `limit` that depends on `seed` alone.
fn number(seed: u64, limit: u64) -> u64 {
    u64::from_le_bytes(noise(seed, 8).try_into().unwrap()) % limit
}

/// Writes noise and zeros over parts of an image.
fn change(image: &Path, seed: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(image).unwrap();
    let size = file.metadata().unwrap().len();
    for part in 0..8 {
        let seed = seed * 1000 + part;
        let length = 1 + number(seed, 300_000);
        let bytes = if part % 3 == 2 {
            vec![0; usize::try_from(length).unwrap()]
        } else {
            noise(seed, usize::try_from(length).unwrap())
        };
        file.write_all_at(&bytes, number(seed + 500, size - length)).unwrap();
    }
}

fn differences(home: &Home, from: &str, to: &str) -> Vec<(u64, u64)> {
    let told = home.run(&["snapshot", "diff", from, to, "--json"]).json();
    let range =
        |range: &Value| (range["offset_bytes"].as_u64().unwrap(), range["length_bytes"].as_u64().unwrap());
    merged(told["ranges"].as_array().unwrap().iter().map(range))
}

/// Offsets and lengths, with neighbours made one.
fn merged(ranges: impl Iterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (offset, length) in ranges {
        match merged.last_mut() {
            Some(last) if last.0 + last.1 == offset => last.1 += length,
            _ => merged.push((offset, length)),
        }
    }
    merged
}

#[test]
fn a_chain_of_exports_of_what_changed_is_the_same_as_whole_exports() {
    for running in [false, true] {
        let home = Home::ready();
        let image = home.folder().join("image.raw");
        sparse_file(&image, 24 * MIB, &[(0, &noise(1, 1 << 20)), (20 * MIB, &noise(2, 100_000))]);
        let gateway = running.then(|| home.serve());
        home.run(&["volume", "import", "disk", text(&image)]).ok();
        home.run(&["snapshot", "create", "disk@s0"]).ok();
        let (chain, whole) = (home.folder().join("chain.raw"), home.folder().join("whole.raw"));
        home.run(&["volume", "export", "disk@s0", text(&chain)]).ok();
        let mut written = 0;
        for round in 1..6_u64 {
            let size = match round {
                2 => Some(40 * MIB + 512),
                4 => Some(16 * MIB),
                _ => None,
            };
            if let Some(size) = size {
                home.run(&["volume", "resize", "disk", &size.to_string(), "--force"]).ok();
                std::fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(size).unwrap();
            }
            change(&image, round);
            home.run(&["volume", "import", "disk", text(&image), "--yes"]).ok();
            let (to, since) = (format!("disk@s{round}"), format!("s{}", round - 1));
            home.run(&["snapshot", "create", &to]).ok();
            home.run(&["volume", "export", &to, text(&whole), "--force"]).ok();
            assert!(same_content(&whole, &image), "the model is wrong");
            let before = home.folder().join("before.raw");
            std::fs::copy(&chain, &before).unwrap();

            let told = home.run(&["volume", "export", &to, text(&chain), "--since", &since, "--json"]).json();
            assert!(same_content(&whole, &chain), "{since} to {to}");
            let said = |name: &str| told[name].as_u64().unwrap();
            let differ: u64 = differences(&home, &format!("disk@{since}"), &to)
                .iter()
                .map(|(offset, length)| (offset + length).min(said("size_bytes")).saturating_sub(*offset))
                .sum();
            assert_eq!(said("data_bytes") + said("zero_bytes"), differ, "{told}");
            assert_eq!(
                (&told["since"], &told["volume"]),
                (&format!("disk@{since}").into(), &to.as_str().into())
            );
            assert!(taken(&chain) <= taken(&whole) + 64 * 4096, "{} bytes are taken", taken(&chain));
            written += differ;

            // Again changes nothing, and neither does one that was cut short anywhere.
            home.run(&["volume", "export", &to, text(&chain), "--since", &since]).ok();
            assert!(same_content(&whole, &chain));
            half(&before, &whole, number(round, said("size_bytes")));
            home.run(&["volume", "export", &to, text(&before), "--since", &since]).ok();
            assert!(same_content(&whole, &before), "{since} to {to}, after an interruption");
        }
        assert!(written > 0);
        let from = home.run(&["volume", "export", "disk@s0", text(&chain), "--since", "s5"]);
        assert!(from.ok().contains("brought from disk@s5 to disk@s0"), "the way back");
        home.run(&["volume", "export", "disk@s0", text(&whole), "--force"]).ok();
        assert!(same_content(&whole, &chain));
        drop(gateway);
    }
}

/// Makes `old` what an interrupted update leaves: the new size, and the new content up to `at`.
fn half(old: &Path, new: &Path, at: u64) {
    let bytes = std::fs::read(new).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(old).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    file.write_all_at(&bytes[..usize::try_from(at).unwrap()], 0).unwrap();
}

#[test]
fn after_an_interruption_only_the_same_two_snapshots_are_compared() {
    let home = Home::ready();
    let image = home.folder().join("image.raw");
    sparse_file(&image, 8 * MIB, &[(0, &noise(1, 100_000)), (6 * MIB, &noise(2, 100_000))]);
    let gateway = home.serve();
    home.run(&["volume", "import", "disk", text(&image)]).ok();
    home.run(&["snapshot", "create", "disk@a"]).ok();
    let file = home.folder().join("backup.raw");
    home.run(&["volume", "export", "disk@a", text(&file)]).ok();
    sparse_file(&image, 8 * MIB, &[(0, &noise(3, 100_000)), (6 * MIB, &noise(4, 100_000))]);
    home.run(&["volume", "import", "disk", text(&image), "--yes"]).ok();
    home.run(&["snapshot", "create", "disk@b"]).ok();
    home.run(&["revert", "disk@a", "--yes"]).ok();
    home.run(&["snapshot", "create", "disk@c"]).ok();
    assert_eq!(differences(&home, "disk@a", "disk@c"), []);
    let whole = |name: &str| {
        let path = home.folder().join(format!("{name}.raw"));
        home.run(&["volume", "export", &format!("disk@{name}"), text(&path)]).ok();
        path
    };
    let (a, b) = (whole("a"), whole("b"));
    let note = home.folder().join("backup.raw.cairn-update");
    let update = |since: &str, to: &str| {
        home.run(&["volume", "export", &format!("disk@{to}"), text(&file), "--since", since])
    };
    // Writes beyond 2 MiB end the process: it has written the first change and not the second.
    let interrupt = || {
        let script = "ulimit -f 4096; exec \"$0\" \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_cairn"), "volume", "export", "disk@b", text(&file)]);
        command.args(["--since", "a"]).env("CAIRN_DIR", home.directory()).current_dir(home.folder());
        let ended = command.stdin(Stdio::null()).output().unwrap();
        assert!(!ended.status.success(), "{ended:?}");
        assert!(!same_content(&file, &a) && !same_content(&file, &b), "it is a mixture");
        assert!(note.exists());
    };
    interrupt();
    let mixture = std::fs::read(&file).unwrap();
    for (since, to) in [("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")] {
        let told = update(since, to).failed();
        assert!(told.contains("from disk@a to disk@b was interrupted"), "{told}");
        assert!(told.contains("--since a") && told.contains("--force"), "{told}");
        assert!(std::fs::read(&file).unwrap() == mixture);
    }
    update("a", "b").ok();
    assert!(same_content(&file, &b) && !note.exists());
    update("b", "c").ok();
    assert!(same_content(&file, &a) && !note.exists());
    // A whole image in its place ends it as well.
    interrupt();
    home.run(&["volume", "export", "disk@c", text(&file), "--force"]).ok();
    assert!(same_content(&file, &a) && !note.exists());
    update("c", "b").ok();
    assert!(same_content(&file, &b) && !note.exists());
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_file_that_cannot_hold_the_earlier_snapshot_is_refused_and_left_alone() {
    let home = Home::ready();
    home.run(&["volume", "create", "disk", "8MiB"]).ok();
    home.run(&["snapshot", "create", "disk@a"]).ok();
    home.run(&["snapshot", "create", "disk@b"]).ok();
    let update = |file: &Path, more: &[&str]| {
        home.run(&[&["volume", "export", "disk@b", text(file), "--since", "a"], more].concat())
    };
    let missing = home.folder().join("missing.raw");
    let told = update(&missing, &[]).failed();
    assert!(told.contains("cairn volume export disk@a") && !missing.exists(), "{told}");
    let short = home.folder().join("short.raw");
    std::fs::write(&short, [7; 1000]).unwrap();
    let told = update(&short, &[]).failed();
    assert!(told.contains("has 1000 bytes, but disk@a has 8388608"), "{told}");
    assert_eq!(std::fs::read(&short).unwrap(), [7; 1000]);
    let qcow2 = home.folder().join("image.qcow2");
    home.run(&["volume", "export", "disk@a", text(&qcow2)]).ok();
    let before = std::fs::read(&qcow2).unwrap();
    assert!(update(&qcow2, &[]).failed().contains("is a qcow2 image"));
    assert!(update(&qcow2, &["--format", "qcow2"]).failed().contains("only raw images"));
    assert_eq!(std::fs::read(&qcow2).unwrap(), before);
    assert!(update(home.folder(), &[]).failed().contains("neither a regular file"));
    let raw = home.folder().join("a.raw");
    home.run(&["volume", "export", "disk@a", text(&raw)]).ok();
    assert!(update(&raw, &["--force"]).misused().contains("--force"));
    let told = home.run(&["volume", "export", "disk", text(&raw), "--since", "a"]).misused();
    assert!(told.contains("disk is a volume"), "{told}");
    let told = home.run(&["volume", "export", "disk@b", text(&raw), "--since", "none"]).failed();
    assert!(told.contains("no snapshot disk@none"), "{told}");
    assert!(update(&raw, &[]).ok().contains("0 B written"), "nothing changed");
}

/// What a client of the dirty bitmap of `since` is told has changed in `export`.
fn dirty_by_libnbd(uri: &str, since: &str) -> Vec<(u64, u64)> {
    let map = format!("--map=qemu:dirty-bitmap:{since}");
    let told: Value = serde_json::from_str(&tool("nbdinfo", &["--json", &map, uri])).unwrap();
    let dirty = told.as_array().unwrap().iter().filter(|extent| extent["type"] == 1);
    merged(dirty.map(|extent| (extent["offset"].as_u64().unwrap(), extent["length"].as_u64().unwrap())))
}

fn options(socket: &Path, export: &str, since: &str) -> String {
    format!(
        "driver=nbd,server.type=unix,server.path={},export={export},x-dirty-bitmap=qemu:dirty-bitmap:{since}",
        text(socket)
    )
}

/// QEMU reads the bit as that of a hole: what changed is what has no data.
fn dirty_by_qemu(socket: &Path, export: &str, since: &str) -> Vec<(u64, u64)> {
    let arguments = ["map", "--output=json", "--image-opts", &options(socket, export, since)];
    let told: Value = serde_json::from_str(&tool("qemu-img", &arguments)).unwrap();
    let dirty = told.as_array().unwrap().iter().filter(|extent| extent["data"] == false);
    merged(dirty.map(|extent| (extent["start"].as_u64().unwrap(), extent["length"].as_u64().unwrap())))
}

#[test]
fn backup_programs_are_told_what_changed_by_dirty_bitmaps() {
    let home = Home::ready();
    let image = home.folder().join("image.raw");
    sparse_file(&image, 200 * MIB, &[(0, &noise(1, 1 << 20)), (130 * MIB, &noise(2, 100_000))]);
    let gateway = home.serve();
    let socket = home.path("nbd.sock");
    let uri = |export: &str| format!("nbd+unix:///{export}?socket={}", text(&socket));
    home.run(&["volume", "import", "disk", text(&image)]).ok();
    for (seed, name) in [(1, "a"), (2, "b"), (3, "c")] {
        home.run(&["snapshot", "create", &format!("disk@{name}")]).ok();
        change(&image, seed);
        // In place of what is there: what is the same may be told as changed, by all alike.
        tool("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", text(&image), &uri("disk")]);
    }
    for (from, to) in [("a", "b"), ("a", "c"), ("b", "c")] {
        let exact = differences(&home, &format!("disk@{from}"), &format!("disk@{to}"));
        assert!(!exact.is_empty());
        let export = format!("disk@{to}");
        assert_eq!(dirty_by_libnbd(&uri(&export), from), exact, "{from} to {to}, libnbd");
        assert_eq!(dirty_by_qemu(&socket, &export, from), exact, "{from} to {to}, QEMU");
    }
    // Of a snapshot, those that are older; of the volume, all.
    let contexts = |export: &str| -> Vec<String> {
        let told: Value = serde_json::from_str(&tool("nbdinfo", &["--json", &uri(export)])).unwrap();
        let contexts = told["exports"][0]["contexts"].as_array().unwrap().iter();
        contexts
            .map(|context| context.as_str().unwrap().trim_start_matches("qemu:dirty-bitmap:").to_owned())
            .collect()
    };
    assert_eq!(contexts("disk@a"), ["base:allocation"]);
    assert_eq!(contexts("disk@b"), ["base:allocation", "a"]);
    assert_eq!(contexts("disk"), ["base:allocation", "a", "b", "c"]);
    // A volume under writes: a write that was answered is in the bitmap at once.
    tool("qemu-io", &["-f", "raw", "-c", "write -P 7 100M 64k", &uri("disk")]);
    for dirty in [dirty_by_libnbd(&uri("disk"), "c"), dirty_by_qemu(&socket, "disk", "c")] {
        let covers = |range: &(u64, u64)| range.0 <= 100 * MIB && 100 * MIB + 65_536 <= range.0 + range.1;
        assert!(dirty.iter().any(covers), "{dirty:?}");
    }

    // What is compared with is in use.
    let mut client = held(&socket, "disk@c", "a");
    let attachments = || {
        let listed = home.run(&["snapshot", "list", "disk", "--json"]).json();
        listed[0]["attachments"].clone()
    };
    for _ in 0..500 {
        if attachments() == 1 {
            break;
        }
        pause(Duration::from_millis(20));
    }
    assert_eq!(attachments(), 1);
    let told = home.run(&["snapshot", "delete", "disk@a"]).failed();
    assert!(told.contains("disk@a"), "{told}");
    drop(client.stdin.take());
    client.wait().unwrap();
    for _ in 0..500 {
        if attachments() == 0 {
            break;
        }
        pause(Duration::from_millis(20));
    }
    home.run(&["snapshot", "delete", "disk@a"]).ok();
    assert_eq!(contexts("disk"), ["base:allocation", "b", "c"]);
    assert_eq!(gateway.stop(), Some(0));
}

/// A client that compares `export` with `since` until its input ends.
fn held(socket: &Path, export: &str, since: &str) -> Child {
    let mut command = Command::new("qemu-io");
    command.args(["-r", "--image-opts", &options(socket, export, since)]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("qemu-io is needed by this test")
}

#[test]
fn snapshots_and_volumes_tell_whose_space_it_is() {
    let home = Home::ready();
    let image: PathBuf = home.folder().join("image.raw");
    sparse_file(&image, 8 * MIB, &[(0, &noise(1, 1 << 20))]);
    let gateway = home.serve();
    let uri = format!("nbd+unix:///disk?socket={}", text(&home.path("nbd.sock")));
    home.run(&["volume", "import", "disk", text(&image)]).ok();
    home.run(&["snapshot", "create", "disk@a"]).ok();
    let other = home.folder().join("other.raw");
    std::fs::write(&other, noise(9, 256 << 10)).unwrap();
    tool("qemu-io", &["-f", "raw", "-c", &format!("write -s {} 512k 256k", text(&other)), &uri]);
    home.run(&["snapshot", "create", "disk@b"]).ok();
    // Both maps are complete then.
    assert_eq!(differences(&home, "disk@a", "disk@b"), [(512 << 10, 256 << 10)]);
    let listed = home.run(&["snapshot", "list", "--space", "--json"]).json();
    let said = |at: usize, name: &str| listed[at]["space"][name].as_u64().unwrap();
    assert_eq!((said(0, "unique_bytes"), said(0, "shared_bytes")), (256 << 10, 768 << 10));
    assert!((128 << 10..320 << 10).contains(&said(0, "freed_bytes")), "{listed}");
    assert_eq!((said(1, "unique_bytes"), said(1, "freed_bytes")), (0, 0), "the volume shows it all");
    let table = home.run(&["snapshot", "list", "--space"]).ok();
    assert!(table.contains("UNIQUE") && table.contains("256 KiB") && table.contains("768 KiB"), "{table}");
    assert!(home.run(&["snapshot", "list", "--json"]).json()[0].get("space").is_none());
    assert!(!home.run(&["snapshot", "list"]).ok().contains("UNIQUE"));
    let shown = home.run(&["volume", "show", "disk", "--space", "--json"]).json();
    assert_eq!(
        (&shown["space"]["unique_bytes"], &shown["space"]["shared_bytes"]),
        (&0.into(), &(1 << 20).into())
    );
    let freed = shown["space"]["freed_bytes"].as_u64().unwrap();
    assert!((1200 << 10..1400 << 10).contains(&freed), "{shown}");
    assert!(
        home.run(&["volume", "show", "disk", "--space"]).ok().contains("if it is deleted with its snapshots")
    );
    // A clone keeps what it began as.
    home.run(&["clone", "disk@a", "copy"]).ok();
    let shown = home.run(&["snapshot", "list", "disk", "--space", "--json"]).json();
    assert_eq!(
        (&shown[0]["space"]["unique_bytes"], &shown[0]["space"]["freed_bytes"]),
        (&0.into(), &0.into())
    );
    let shown = home.run(&["volume", "show", "disk", "--space", "--json"]).json();
    let kept = freed - shown["space"]["freed_bytes"].as_u64().unwrap();
    assert!((900 << 10..1200 << 10).contains(&kept), "{shown}");
    assert_eq!(gateway.stop(), Some(0));
}
