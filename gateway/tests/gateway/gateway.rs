//! A gateway as its operator sees it: started, watched, administered, stopped, killed and started again.

use crate::support::{Home, SMALL, noise, pause, same_content, sparse_file, taken, tool};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An image with `seed`'s noise at its beginning and holes behind.
fn image(home: &Home, seed: u64) -> std::path::PathBuf {
    let path = home.folder().join(format!("{seed}.raw"));
    sparse_file(&path, 32 << 20, &[(0, &noise(seed, 1 << 20)), (20 << 20, &noise(seed + 1, 100_000))]);
    path
}

/// Fails unless `volume` exports as `image`.
#[track_caller]
fn assert_exports_as(home: &Home, volume: &str, image: &Path) {
    let out = home.folder().join(format!("{volume}.out"));
    home.run(&["volume", "export", volume, text(&out), "--force"]).ok();
    assert!(same_content(image, &out), "volume {volume} is not {}", image.display());
}

#[test]
fn up_makes_everything_on_its_first_run_and_says_how_to_use_it() {
    let home = Home::fresh();
    let gateway = home.start(&["up"]);
    let mut said = String::new();
    for _ in 0..100 {
        said = std::fs::read_to_string(home.folder().join("gateway.out")).unwrap();
        if said.contains("Ctrl-C") {
            break;
        }
        pause(Duration::from_millis(50));
    }
    for part in [
        "disk0 (10 GiB)",
        "nbd://127.0.0.1:",
        "nbd+unix:///disk0?socket=",
        "nbd-client 127.0.0.1 ",
        "qemu-img info",
        "Keep a copy",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let uri = said.split_whitespace().find(|word| word.starts_with("nbd://")).unwrap();
    let info = tool("qemu-img", &["info", uri]);
    assert!(info.contains("10 GiB"), "{info}");
    for name in ["catalog.db", "wal", "pool", "key", "cairn.toml", "format", "admin.sock", "nbd.sock"] {
        assert!(home.path(name).exists(), "{name}");
    }
    assert_eq!(std::fs::metadata(home.path("key")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(gateway.stop(), Some(0));
    assert!(!home.path("admin.sock").exists() && !home.path("nbd.sock").exists());
}

#[test]
fn up_serves_what_an_earlier_run_made() {
    let home = Home::ready();
    home.run(&["volume", "create", "mine", "1GiB"]).ok();
    let gateway = home.start(&["up", "--json"]);
    let volumes = home.run(&["volume", "list", "--json"]).json();
    assert_eq!(volumes[0]["name"], "mine");
    assert_eq!(volumes.as_array().unwrap().len(), 1);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn up_keeps_the_data_where_it_is_told_and_not_in_two_places() {
    let home = Home::fresh();
    let url = |name: &str| format!("file://{}", home.folder().join(name).display());
    assert_eq!(home.start(&["up", "--pool", &url("one")]).stop(), Some(0));
    assert_eq!(home.start(&["up", "--pool", &url("two")]).stop(), Some(0));
    home.run(&["volume", "import", "a", text(&image(&home, 1))]).ok();
    assert!(home.folder().join("two/segments").exists());
    assert_eq!(home.start(&["up", "--pool", &url("two")]).stop(), Some(0));
    assert!(home.run(&["up", "--pool", &url("three")]).failed().contains("cannot take its place"));
}

#[test]
fn up_listens_where_it_is_told() {
    let home = Home::ready();
    let gateway = home.start(&["up", "--nbd", "unix:other.sock", "--nbd", "127.0.0.1:0"]);
    assert!(home.folder().join("other.sock").exists());
    assert!(!home.path("nbd.sock").exists());
    let status = home.run(&["status", "--json"]).json();
    assert_eq!(status["gateway"]["nbd"].as_array().unwrap().len(), 2);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn volumes_are_administered_the_same_way_with_and_without_a_gateway() {
    for running in [false, true] {
        let home = Home::ready();
        let gateway = running.then(|| home.serve());
        let made = home
            .run(&["volume", "create", "a", "1.5GiB", "--durability", "always", "--no-compress", "--json"])
            .json();
        assert_eq!((&made["size_bytes"], &made["durability"]), (&(3u64 << 29).into(), &"always".into()));
        assert_eq!((&made["compress"], &made["dedupe"]), (&false.into(), &true.into()));
        assert!(home.run(&["volume", "create", "a", "1G"]).failed().contains("exists already"));
        assert!(home.run(&["volume", "create", "a b", "1G"]).misused().contains("' '"));
        assert!(home.run(&["volume", "create", "odd", "1000"]).misused().contains("multiple of 512"));
        assert!(home.run(&["volume", "create", "huge", "65T"]).misused().contains("64TiB"));
        home.run(&["volume", "rename", "a", "b"]).ok();
        assert!(home.run(&["volume", "show", "a"]).failed().contains("no volume named a"));
        assert!(home.run(&["volume", "resize", "b", "1G"]).failed().contains("--force"));
        home.run(&["volume", "resize", "b", "1G", "--force"]).ok();
        home.run(&["volume", "resize", "b", "2G"]).ok();
        assert_eq!(home.run(&["volume", "show", "b", "--json"]).json()["size_bytes"], 2u64 << 30);
        home.run(&["volume", "delete", "b"]).ok();
        assert!(home.run(&["volume", "delete", "b"]).failed().contains("no volume named b"));
        assert_eq!(home.run(&["volume", "list", "--json"]).json(), serde_json::json!([]));
        if let Some(gateway) = gateway {
            assert_eq!(gateway.stop(), Some(0));
        }
    }
}

#[test]
fn images_go_in_and_come_out_bit_identical_with_and_without_a_gateway() {
    for running in [false, true] {
        let home = Home::ready();
        let gateway = running.then(|| home.serve());
        let raw = image(&home, 1);
        let qcow2 = home.folder().join("image.qcow2");
        tool("qemu-img", &["convert", "-c", "-O", "qcow2", text(&raw), text(&qcow2)]);
        let told = home.run(&["volume", "import", "a", text(&raw), "--json"]).json();
        assert_eq!((&told["created"], &told["size_bytes"]), (&true.into(), &(32u64 << 20).into()));
        assert!(told["data_bytes"].as_u64().unwrap() < 2 << 20, "{told}");
        home.run(&["volume", "import", "b", text(&qcow2)]).ok();
        assert_exports_as(&home, "a", &raw);
        assert_exports_as(&home, "b", &raw);
        assert!(taken(&home.folder().join("a.out")) < 2 << 20);
        let out = home.folder().join("out.qcow2");
        home.run(&["volume", "export", "a", text(&out)]).ok();
        tool("qemu-img", &["check", text(&out)]);
        tool("qemu-img", &["compare", text(&raw), text(&out)]);
        assert!(home.run(&["volume", "export", "a", text(&out)]).failed().contains("--force"));
        if let Some(gateway) = gateway {
            assert_eq!(gateway.stop(), Some(0));
        }
    }
}

#[test]
fn an_image_replaces_everything_that_a_volume_held() {
    let home = Home::ready();
    let (first, second) = (image(&home, 1), home.folder().join("second.raw"));
    sparse_file(&second, 8 << 20, &[(4 << 20, &noise(9, 1 << 20))]);
    home.run(&["volume", "import", "a", text(&first)]).ok();
    home.run(&["volume", "import", "a", text(&second)]).ok();
    let expected = home.folder().join("expected.raw");
    sparse_file(&expected, 32 << 20, &[(4 << 20, &noise(9, 1 << 20))]);
    assert_exports_as(&home, "a", &expected);
}

#[test]
fn an_image_larger_than_its_volume_is_refused_and_changes_nothing() {
    let home = Home::ready();
    home.run(&["volume", "create", "small", "1MiB"]).ok();
    let told = home.run(&["volume", "import", "small", text(&image(&home, 1))]).failed();
    assert!(told.contains("resize small 33554432"), "{told}");
}

#[test]
fn a_damaged_image_leaves_no_volume_behind() {
    let home = Home::ready();
    let (raw, whole) = (home.folder().join("run.raw"), home.folder().join("run.qcow2"));
    std::fs::write(&raw, noise(1, 8 << 20)).unwrap();
    tool("qemu-img", &["convert", "-O", "qcow2", text(&raw), text(&whole)]);
    let bytes = std::fs::read(&whole).unwrap();
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let at = |offset: u64| usize::try_from(offset).unwrap();
    let l1 = at(number(40));
    let l2 = at(number(l1) & 0x00ff_ffff_ffff_fe00);
    let first = at(number(l2) & 0x00ff_ffff_ffff_fe00);
    for (part, length) in [
        ("the header", 60),
        ("the L1 table", l1 + 4),
        ("an L2 table", l2 + 100),
        ("the middle of a run", first + (4 << 20)),
        ("the last cluster", first + (8 << 20) - 1),
    ] {
        let cut = home.folder().join("cut.qcow2");
        std::fs::write(&cut, &bytes[..length]).unwrap();
        let said = home.run(&["volume", "import", "a", text(&cut)]).failed();
        assert!(said.contains("cut short"), "{part}: {said}");
        assert_eq!(home.run(&["volume", "list", "--json"]).json(), serde_json::json!([]), "{part}");
    }
}

#[test]
fn an_interrupted_import_leaves_no_volume_and_an_interrupted_export_no_file() {
    let home = Home::ready();
    let gateway = home.serve();
    let raw = home.folder().join("big.raw");
    sparse_file(&raw, 1 << 30, &[(0, &noise(1, 256 << 20))]);
    let interrupt = |arguments: &[&str], begun: &dyn Fn() -> bool| {
        let mut command = home.command(arguments);
        let child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
        while !begun() {
            pause(Duration::from_millis(5));
        }
        let process = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("interrupted"), "{told}");
    };
    let made = || !home.run(&["volume", "list", "--json"]).json().as_array().unwrap().is_empty();
    interrupt(&["volume", "import", "a", text(&raw)], &made);
    assert!(!made());
    home.run(&["volume", "import", "a", text(&raw)]).ok();
    let (out, partial) = (home.folder().join("out.raw"), home.folder().join(".out.raw.partial"));
    interrupt(&["volume", "export", "a", text(&out)], &|| partial.exists());
    assert!(!out.exists() && !partial.exists());
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn an_imported_image_is_in_the_pool_when_the_command_returns() {
    let home = Home::ready();
    let raw = image(&home, 1);
    let gateway = home.serve();
    home.run(&["volume", "import", "a", text(&raw)]).ok();
    let status = home.run(&["status", "--json"]).json();
    assert_eq!((&status["wal"]["dirty"], &status["destage"]["backlog_bytes"]), (&false.into(), &0.into()));
    assert!(status["pool"]["put_bytes"].as_u64().unwrap() > 1 << 20, "{status}");
    gateway.kill();
    std::fs::remove_dir_all(home.path("wal")).unwrap();
    let gateway = home.serve();
    assert_exports_as(&home, "a", &raw);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn what_was_flushed_survives_sigkill() {
    let home = Home::ready();
    home.run(&["volume", "create", "a", "64MiB"]).ok();
    let gateway = home.serve();
    let uri = format!("nbd+unix:///a?socket={}", text(&home.path("nbd.sock")));
    tool("qemu-io", &["-f", "raw", "-c", "write -P 7 1M 2M", "-c", "flush", &uri]);
    gateway.kill();
    let gateway = home.serve();
    tool("qemu-io", &["-f", "raw", "-c", "read -P 7 1M 2M", "-c", "read -P 0 0 1M", &uri]);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_first_run_killed_at_any_moment_is_completed_by_the_next() {
    for milliseconds in [1, 5, 10, 20, 40, 60, 80, 100, 150, 200] {
        let home = Home::fresh();
        let mut first = home.command(&["up"]).stdout(std::process::Stdio::null()).spawn().unwrap();
        pause(Duration::from_millis(milliseconds));
        first.kill().unwrap();
        first.wait().unwrap();
        let gateway = home.start(&["up"]);
        let volumes = home.run(&["volume", "list", "--json"]).json();
        assert_eq!(volumes.as_array().unwrap().len(), 1, "{volumes}");
        assert_eq!(gateway.stop(), Some(0));
    }
}

#[test]
fn a_lost_log_that_held_writes_is_refused_until_its_loss_is_accepted() {
    let home = Home::ready();
    home.run(&["volume", "create", "a", "64MiB"]).ok();
    let gateway = home.serve();
    let uri = format!("nbd+unix:///a?socket={}", text(&home.path("nbd.sock")));
    tool("qemu-io", &["-f", "raw", "-c", "write -P 7 0 1M", "-c", "flush", &uri]);
    gateway.kill();
    std::fs::remove_dir_all(home.path("wal")).unwrap();
    let status = home.run(&["status"]).ok();
    assert!(status.starts_with("error    the write-ahead log") && status.contains("is missing"), "{status}");
    let told = home.run(&["serve"]).failed();
    assert!(told.contains("write-ahead log") && told.contains("--accept-lost-wal"), "{told}");
    assert!(!home.path("wal").exists(), "a refusal makes no log in the place of the one that is lost");
    std::fs::create_dir(home.path("wal")).unwrap();
    assert!(home.run(&["status"]).ok().contains("is missing"));
    assert_eq!(home.run(&["serve"]).failed(), told);
    assert_eq!(std::fs::read_dir(home.path("wal")).unwrap().count(), 0);
    let gateway = home.start(&["serve", "--accept-lost-wal"]);
    assert!(gateway.log().contains("lost"), "{}", gateway.log());
    tool("qemu-io", &["-f", "raw", "-c", "read -P 0 0 1M", &uri]);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn the_service_manager_is_told_when_every_export_can_be_used_and_when_it_ends() {
    let home = Home::ready();
    home.run(&["volume", "create", "a", "64MiB"]).ok();
    let path = home.folder().join("notify.sock");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let heard = || {
        let mut message = [0; 4096];
        let length = manager.recv(&mut message).expect("the gateway says something");
        String::from_utf8(message[..length].to_vec()).unwrap()
    };
    let mut gateway = home.command(&["serve"]).env("NOTIFY_SOCKET", &path).spawn().unwrap();
    while !heard().contains("READY=1") {}
    let uri = format!("nbd+unix:///a?socket={}", text(&home.path("nbd.sock")));
    tool("qemu-img", &["info", &uri]);
    home.run(&["volume", "show", "a"]).ok();
    let process = rustix::process::Pid::from_child(&gateway);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    while !heard().contains("STOPPING=1") {}
    assert_eq!(gateway.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_gateway_on_the_same_directory_is_refused() {
    let home = Home::ready();
    let gateway = home.serve();
    for command in ["serve", "up"] {
        let told = home.run(&[command]).failed();
        assert!(told.contains(&format!("process {}", gateway.process())), "{told}");
    }
    assert!(home.run(&["init"]).failed().contains("already"));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_gateway_that_was_killed_is_waited_for_until_the_kernel_lets_go_of_its_lock() {
    let home = Home::ready();
    home.serve().kill();
    // The lock of a process that no longer answers, which is not gone yet.
    let lock = std::fs::OpenOptions::new().read(true).write(true).open(home.path("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let gateway = std::thread::scope(|scope| {
        scope.spawn(|| {
            pause(Duration::from_millis(700));
            drop(lock);
        });
        home.start(&["serve"])
    });
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_volume_in_use_is_only_deleted_or_replaced_by_force() {
    let home = Home::ready();
    home.run(&["volume", "create", "a", "64MiB"]).ok();
    let gateway = home.serve();
    let uri = format!("nbd+unix:///a?socket={}", text(&home.path("nbd.sock")));
    let mut client = std::process::Command::new("qemu-io");
    client.args(["-f", "raw", &uri]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    let mut client = client.spawn().expect("qemu-io is needed by this test");
    for _ in 0..200 {
        if home.run(&["volume", "show", "a", "--json"]).json()["attachments"] == 1 {
            break;
        }
        pause(Duration::from_millis(20));
    }
    let told = home.run(&["volume", "delete", "a"]).failed();
    assert!(told.contains("1 client connection") && told.contains("--force"), "{told}");
    let told = home.run(&["volume", "import", "a", text(&image(&home, 1))]).failed();
    assert!(told.contains("1 client connection") && told.contains("--force"), "{told}");
    home.run(&["volume", "delete", "a", "--force"]).ok();
    drop(client.stdin.take());
    client.wait().unwrap();
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn status_tells_health_first_and_all_documented_numbers() {
    let home = Home::ready();
    home.run(&["volume", "create", "a", "64MiB"]).ok();
    assert!(home.run(&["status"]).ok().starts_with("health   ok\ngateway  stopped"));
    let gateway = home.serve();
    assert!(home.run(&["status"]).ok().starts_with("health   ok\ngateway  serving"));
    let status = home.run(&["status", "--json"]).json();
    assert_eq!((&status["state"], &status["health"]), (&"serving".into(), &"ok".into()));
    for pointer in [
        "/pool/puts",
        "/pool/put_bytes",
        "/pool/gets",
        "/pool/get_bytes",
        "/pool/segments",
        "/wal/used_bytes",
        "/wal/capacity_bytes",
        "/destage/backlog_bytes",
        "/gateway/process",
        "/memory/block_cache_bytes",
    ] {
        assert!(status.pointer(pointer).is_some_and(serde_json::Value::is_u64), "{pointer}: {status}");
    }
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn the_cpu_budget_changes_until_the_gateway_ends() {
    let home = Home::with_config(&format!("{SMALL}[cpu]\nbudget = \"insane\"\n"));
    home.run(&["init"]).ok();
    assert_eq!(home.run(&["cpu"]).ok(), "budget insane\n");
    let refused = home.run(&["cpu", "unlimited"]).failed();
    assert!(refused.contains("no gateway runs") && refused.contains("budget = \"unlimited\""), "{refused}");
    let gateway = home.serve();
    assert!(home.run(&["cpu"]).ok().starts_with("budget insane: "));
    let changed = home.run(&["cpu", "unlimited"]).ok();
    assert!(
        changed.starts_with("budget unlimited: ") && changed.contains("until the gateway ends"),
        "{changed}"
    );
    assert_eq!(home.run(&["cpu", "--json"]).json()["budget"], "unlimited");
    assert!(home.run(&["status"]).ok().contains("\ncpu      budget unlimited: "));
    assert_eq!(gateway.stop(), Some(0));
    let gateway = home.serve();
    assert_eq!(home.run(&["cpu", "--json"]).json()["budget"], "insane");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_bad_key_file_is_a_clear_error_each_time() {
    let home = Home::ready();
    let (key, aside) = (home.path("key"), home.folder().join("key"));
    std::fs::copy(&key, &aside).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(home.run(&["serve"]).failed().contains("chmod 600"));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&key, "cairn-key-1\nzz\n").unwrap();
    assert!(home.run(&["serve"]).failed().contains("not a Cairn key"));
    std::fs::remove_file(&key).unwrap();
    assert!(home.run(&["serve"]).failed().contains("is missing"));
    std::fs::copy(Home::ready().path("key"), &key).unwrap();
    assert!(home.run(&["serve"]).failed().contains("not the key of this site"));
    std::fs::copy(&aside, &key).unwrap();
    assert_eq!(home.serve().stop(), Some(0));
}

#[test]
fn a_directory_that_is_not_ours_or_newer_is_refused() {
    let home = Home::ready();
    std::fs::write(home.path("format"), "cairn-directory 2\n").unwrap();
    for command in [&["serve"][..], &["up"], &["init"], &["status"], &["volume", "list"]] {
        assert!(home.run(command).failed().contains("newer version"), "{command:?}");
    }
    let home = Home::fresh();
    assert!(home.run(&["serve"]).failed().contains("no Cairn directory"));
    std::fs::write(home.path("letter.txt"), "dear").unwrap();
    for command in ["up", "init"] {
        assert!(home.run(&[command]).failed().contains("letter.txt"));
    }
    assert_eq!(std::fs::read_dir(home.directory()).unwrap().count(), 2);
}

#[test]
fn a_bad_configuration_is_refused_before_anything_happens() {
    let home = Home::with_config("[wal]\ncapacty = \"1GiB\"\n");
    assert!(home.run(&["init"]).failed().contains("`capacty`"));
    let home = Home::ready();
    std::fs::write(home.path("cairn.toml"), "[destage]\nbatch_age = \"never\"\n").unwrap();
    assert!(home.run(&["serve"]).failed().contains("`destage.batch_age`"));
    assert!(!home.path("wal").exists());
}

#[test]
fn a_catalog_of_a_later_version_is_refused_plainly() {
    let told = Home::fresh().run(&["init", "--catalog", "postgres://host/db"]).misused();
    assert!(told.contains("PostgreSQL, which this version does not have"), "{told}");
    let home = Home::with_config(SMALL);
    std::fs::remove_file(home.path("cairn.toml")).unwrap();
    home.run(&["init", "--catalog", "sqlite:elsewhere.db"]).ok();
    assert!(home.path("elsewhere.db").exists());
    home.run(&["status"]).ok();
}

#[test]
fn one_line_in_the_configuration_moves_a_site_without_data_elsewhere() {
    let home = Home::ready();
    let line = format!("{SMALL}[pool]\nurl = \"file://{}\"\n", home.folder().join("elsewhere").display());
    std::fs::write(home.path("cairn.toml"), &line).unwrap();
    home.run(&["volume", "import", "a", text(&image(&home, 1))]).ok();
    assert!(home.folder().join("elsewhere/segments").exists());
    std::fs::write(home.path("cairn.toml"), line.replace("elsewhere", "third")).unwrap();
    assert!(home.run(&["serve"]).failed().contains("cannot take its place"));
    std::fs::write(home.path("cairn.toml"), line).unwrap();
    assert_exports_as(&home, "a", &image(&home, 1));
}

#[test]
fn a_moved_directory_finds_its_embedded_pool() {
    let home = Home::ready();
    let raw = image(&home, 1);
    home.run(&["volume", "import", "a", text(&raw)]).ok();
    let moved = home.folder().join("moved");
    std::fs::rename(home.directory(), &moved).unwrap();
    let out = home.folder().join("out.raw");
    home.run(&["--dir", text(&moved), "volume", "export", "a", text(&out)]).ok();
    assert!(same_content(&raw, &out));
}

#[test]
fn an_s3_node_without_credentials_says_which_are_missing() {
    let home = Home::fresh();
    let mut command = home.command(&["init", "--pool", "s3://bucket?endpoint=http://127.0.0.1:1"]);
    let output =
        command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY").output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("AWS_ACCESS_KEY_ID"), "{told}");
}

#[test]
fn an_address_in_use_is_named_and_the_directory_stays_usable() {
    let home = Home::ready();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let told = home.run(&["serve", "--nbd", &address]).failed();
    assert!(told.contains(&address) && told.contains("in use"), "{told}");
    drop(taken);
    assert_eq!(home.serve().stop(), Some(0));
}

#[test]
fn what_the_gateway_makes_is_for_its_owner_only() {
    let home = Home::ready();
    let gateway = home.serve();
    for name in ["key", "catalog.db", "wal", "pool", "format", "gateway", "lock", "admin.sock"] {
        let mode = std::fs::symlink_metadata(home.path(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o007, 0, "{name} has mode {mode:o}");
    }
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn tls_files_that_cannot_be_used_are_named() {
    let home =
        Home::with_config(&SMALL.replace("[wal]", "tls = { cert = \"no.pem\", key = \"no.key\" }\n[wal]"));
    home.run(&["init"]).ok();
    assert!(home.run(&["serve"]).failed().contains("no.pem"));
}

#[test]
fn json_logs_are_one_object_a_line() {
    let home = Home::with_config(&format!("{SMALL}[log]\nformat = \"json\"\n"));
    home.run(&["init"]).ok();
    let gateway = home.serve();
    let log = gateway.log();
    assert_eq!(gateway.stop(), Some(0));
    assert!(!log.is_empty());
    for line in log.lines() {
        let entry: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(entry["level"].is_string(), "{line}");
    }
}
