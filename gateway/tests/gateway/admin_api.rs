//! The admin API as a program without our client sees it.

use crate::support::exposition::Page;
use crate::support::{Gateway, Home, SMALL, noise};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

/// Sends one request; status and body of the answer.
fn exchange(
    mut stream: impl Read + Write,
    host: &str,
    head: &str,
    kind: &str,
    body: &[u8],
) -> (u16, Vec<u8>) {
    let length = body.len();
    let request = format!(
        "{head} HTTP/1.1\r\nhost: {host}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    // A refused body may not be read to its end.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("the answer has a head");
    let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
    (status, answer[end + 4..].to_vec())
}

struct Api {
    home: Home,
    _gateway: Gateway,
}

impl Api {
    fn new() -> Self {
        let home = Home::ready();
        let gateway = home.serve();
        Self { home, _gateway: gateway }
    }

    fn raw(&self, head: &str, kind: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let stream = UnixStream::connect(self.home.path("admin.sock")).unwrap();
        exchange(stream, "localhost", head, kind, body)
    }

    fn json(&self, head: &str, body: &Value) -> (u16, Value) {
        let (status, answer) = self.raw(head, "application/json", body.to_string().as_bytes());
        (
            status,
            serde_json::from_slice(&answer)
                .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&answer))),
        )
    }

    /// Creates volume `a` of 1 MiB.
    fn with_volume() -> Self {
        let api = Self::new();
        let (status, volume) = api.json("POST /v1/volumes", &json!({"name": "a", "size_bytes": 1 << 20}));
        assert_eq!((status, &volume["state"]), (201, &json!("serving")));
        api
    }
}

#[test]
fn a_volume_is_made_written_read_mapped_and_deleted() {
    let api = Api::with_volume();
    let bytes = noise(1, 10_000);
    assert_eq!(api.raw("PUT /v1/volumes/a/data?offset=5000", "application/octet-stream", &bytes).0, 200);
    assert_eq!(api.raw("GET /v1/volumes/a/data?offset=5000&length=10000", "", &[]), (200, bytes));
    let (_, map) = api.json("GET /v1/volumes/a/allocation?offset=0&length=1048576", &json!({}));
    let expected = json!([
        {"offset": 0, "length": 4096, "allocated": false},
        {"offset": 4096, "length": 12288, "allocated": true},
        {"offset": 16384, "length": 1_032_192, "allocated": false},
    ]);
    assert_eq!(map, expected);
    assert_eq!(api.json("POST /v1/volumes/a/zeroes", &json!({"offset": 0, "length": 1 << 20})).0, 200);
    assert_eq!(api.raw("GET /v1/volumes/a/data?offset=5000&length=10000", "", &[]).1, vec![0; 10_000]);
    assert_eq!(api.json("POST /v1/volumes/a/flush", &json!(null)), (200, json!(null)));
    assert_eq!(api.json("POST /v1/destage", &json!(null)), (200, json!(null)));
    assert_eq!(api.json("DELETE /v1/volumes/a", &json!(null)), (200, json!(null)));
    assert_eq!(api.json("GET /v1/volumes", &json!(null)), (200, json!([])));
}

#[test]
fn a_snapshot_is_taken_read_compared_cloned_reverted_to_and_deleted() {
    let api = Api::with_volume();
    let (first, second) = (noise(1, 8192), noise(2, 4096));
    let put = |offset: u64, bytes: &[u8]| {
        let head = format!("PUT /v1/volumes/a/data?offset={offset}");
        assert_eq!(api.raw(&head, "application/octet-stream", bytes).0, 200);
    };
    let get = |name: &str| api.raw(&format!("GET /v1/volumes/{name}/data?offset=0&length=8192"), "", &[]);
    put(0, &first);
    let (status, one) = api.json("POST /v1/volumes/a/snapshots", &json!({"name": "one"}));
    assert_eq!((status, &one["snapshot"], &one["size_bytes"]), (201, &json!("a@one"), &json!(1 << 20)));
    put(4096, &second);
    assert_eq!(api.json("POST /v1/volumes/a/zeroes", &json!({"offset": 0, "length": 4096})).0, 200);
    let (status, auto) = api.json("POST /v1/volumes/a/snapshots", &json!({}));
    let auto = auto["name"].as_str().unwrap_or_else(|| panic!("{status} {auto}")).to_owned();
    assert!(status == 201 && auto.starts_with("auto-"), "{auto}");
    // As it is and as a careful client writes it.
    assert_eq!(get("a@one"), (200, first.clone()));
    assert_eq!(get("a%40one"), (200, first.clone()));
    let now = [&[0; 4096][..], &second].concat();
    assert_eq!(get("a"), (200, now.clone()));
    let (_, map) = api.json("GET /v1/volumes/a@one/allocation?offset=0&length=1048576", &json!(null));
    let expected = json!([
        {"offset": 0, "length": 8192, "allocated": true},
        {"offset": 8192, "length": 1_040_384, "allocated": false},
    ]);
    assert_eq!(map, expected);
    let diff =
        |query: &str| api.json(&format!("GET /v1/volumes/a/diff?from=one&to={auto}{query}"), &json!(null));
    let ranges = json!([
        {"offset_bytes": 0, "length_bytes": 4096, "allocated": false},
        {"offset_bytes": 4096, "length_bytes": 4096, "allocated": true},
    ]);
    assert_eq!(diff("").1, json!({"size_bytes": 1 << 20, "ranges": ranges}));
    assert_eq!(diff("&start=4096&limit=1").1["ranges"], json!([ranges[1]]));
    assert_eq!(diff("&start=18446744073709551615").1["ranges"], json!([]));
    let (status, clone) = api.json("POST /v1/volumes/a/snapshots/one/clone", &json!({"name": "c"}));
    assert_eq!((status, &clone["name"], &clone["state"]), (201, &json!("c"), &json!("serving")));
    assert_eq!(get("c"), (200, first.clone()));
    assert_eq!(api.json("GET /v1/volumes/a/snapshots/one", &json!(null)).1["clones"], 1);
    let (status, reverted) = api.json("POST /v1/volumes/a/snapshots/one/revert", &json!({"force": false}));
    assert_eq!((status, &reverted["volume"]["snapshots"]), (200, &json!(3)), "{reverted}");
    let before = reverted["before"]["snapshot"].as_str().unwrap();
    assert_eq!((get("a"), get(before)), ((200, first), (200, now)));
    assert_eq!(api.json("GET /v1/snapshots", &json!(null)).1.as_array().unwrap().len(), 3);
    assert_eq!(api.json("DELETE /v1/volumes/a/snapshots/one", &json!(null)), (200, json!(null)));
    let left = api.json("GET /v1/volumes/a/snapshots", &json!(null)).1;
    assert_eq!((left.as_array().unwrap().len(), &left[0]["name"]), (2, &json!(auto)));
    let page = api.raw("GET /metrics", "", &[]).1;
    let page = Page::parse(std::str::from_utf8(&page).unwrap());
    assert_eq!(page.whole("cairn_snapshots"), 2);
    assert_eq!(page.whole("cairn_volume_snapshots{volume=\"a\"}"), 2);
    assert_eq!(api.json("DELETE /v1/volumes/a", &json!(null)).1["error"]["kind"], "conflict");
    assert_eq!(api.json("DELETE /v1/volumes/a?force=true", &json!(null)).0, 200);
    assert_eq!(api.json("GET /v1/snapshots", &json!(null)), (200, json!([])));
}

#[test]
fn every_refusal_of_a_snapshot_says_its_kind_and_why() {
    let api = Api::with_volume();
    assert_eq!(api.json("POST /v1/volumes/a/snapshots", &json!({"name": "s"})).0, 201);
    for (head, body, status, kind) in [
        ("GET /v1/volumes/b/snapshots", json!(null), 404, "not_found"),
        ("GET /v1/volumes/a@s", json!(null), 400, "unsupported"),
        ("GET /v1/volumes/a@s/snapshots", json!(null), 400, "unsupported"),
        ("DELETE /v1/volumes/a@s", json!(null), 400, "unsupported"),
        ("PATCH /v1/volumes/a@s", json!({"size_bytes": 512}), 400, "unsupported"),
        ("POST /v1/volumes", json!({"name": "a@s", "size_bytes": 512}), 400, "unsupported"),
        ("POST /v1/volumes/a/snapshots", json!({"name": "s"}), 409, "conflict"),
        ("POST /v1/volumes/a/snapshots", json!({"name": "a@s"}), 400, "unsupported"),
        ("POST /v1/volumes/a/snapshots", json!({"name": ""}), 400, "unsupported"),
        ("POST /v1/volumes/a/snapshots", json!({"colour": 1}), 400, "unsupported"),
        ("POST /v1/volumes/b/snapshots", json!({"name": "s"}), 404, "not_found"),
        ("GET /v1/volumes/a/snapshots/none", json!(null), 404, "not_found"),
        ("GET /v1/volumes/a/snapshots/%ff", json!(null), 400, "unsupported"),
        ("PUT /v1/volumes/a/snapshots/s", json!(null), 400, "unsupported"),
        ("DELETE /v1/volumes/a/snapshots/none", json!(null), 404, "not_found"),
        ("DELETE /v1/volumes/a/snapshots/x@y", json!(null), 400, "unsupported"),
        ("POST /v1/volumes/a/snapshots/none/clone", json!({"name": "c"}), 404, "not_found"),
        ("POST /v1/volumes/a/snapshots/s/clone", json!({"name": "a"}), 409, "conflict"),
        ("POST /v1/volumes/a/snapshots/s/clone", json!({"name": "c@d"}), 400, "unsupported"),
        ("POST /v1/volumes/a/snapshots/s/clone", json!({}), 400, "unsupported"),
        ("POST /v1/volumes/a/snapshots/none/revert", json!({}), 404, "not_found"),
        ("POST /v1/volumes/b/snapshots/s/revert", json!({}), 404, "not_found"),
        ("GET /v1/volumes/a/diff?from=s&to=none", json!(null), 404, "not_found"),
        ("GET /v1/volumes/a/diff?from=s", json!(null), 400, "unsupported"),
        ("GET /v1/volumes/a/diff?from=s&to=s&start=-1", json!(null), 400, "unsupported"),
        ("GET /v1/volumes/a@none/data?offset=0&length=1", json!(null), 404, "not_found"),
        ("GET /v1/volumes/b@s/data?offset=0&length=1", json!(null), 404, "not_found"),
        ("GET /v1/volumes/a@/data?offset=0&length=1", json!(null), 400, "unsupported"),
        ("GET /v1/volumes/a@s@t/data?offset=0&length=1", json!(null), 400, "unsupported"),
        ("GET /v1/volumes/a@s/data?offset=1048576&length=1", json!(null), 400, "out_of_range"),
        ("POST /v1/volumes/a@s/zeroes", json!({"offset": 0, "length": 4096}), 403, "read_only"),
    ] {
        let (found, answer) = api.json(head, &body);
        assert_eq!((found, &answer["error"]["kind"]), (status, &json!(kind)), "{head} {body}: {answer}");
        assert!(answer["error"]["message"].as_str().is_some_and(|text| !text.is_empty()), "{head}: {answer}");
    }
    let piece = api.raw("PUT /v1/volumes/a@s/data?offset=0", "application/octet-stream", &[1; 4096]);
    assert_eq!(piece.0, 403);
    assert_eq!(api.json("GET /v1/snapshots", &json!(null)).1.as_array().unwrap().len(), 1);
}

#[test]
fn what_nothing_points_at_is_told_and_taken_back() {
    let api = Api::with_volume();
    let bytes = noise(3, 1 << 20);
    assert_eq!(api.raw("PUT /v1/volumes/a/data?offset=0", "application/octet-stream", &bytes).0, 200);
    assert_eq!(api.json("POST /v1/destage", &json!(null)).0, 200);
    let reclaim = |dry_run: bool| {
        let (status, answer) = api.json("POST /v1/reclaim", &json!({ "dry_run": dry_run }));
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let nothing = json!({"dry_run": false, "containers": 0, "container_bytes": 0, "moved_containers": 0, "moved_bytes": 0, "objects": 0, "object_bytes": 0});
    assert_eq!(reclaim(false), nothing);
    assert_eq!(api.json("POST /v1/volumes/a/zeroes", &json!({"offset": 0, "length": 1 << 20})).0, 200);
    // What is on its way to the pool counts.
    let planned = reclaim(true);
    assert_eq!((&planned["dry_run"], &planned["objects"]), (&json!(true), &json!(0)));
    assert!(planned["container_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{planned}");
    let done = reclaim(false);
    assert_eq!(
        (&done["containers"], &done["container_bytes"]),
        (&planned["containers"], &planned["container_bytes"])
    );
    assert_eq!(reclaim(true)["containers"], 0);
    assert_eq!(api.json("POST /v1/reclaim", &json!({})), (200, nothing));
    assert_eq!(api.raw("GET /v1/volumes/a/data?offset=0&length=1048576", "", &[]), (200, vec![0; 1 << 20]));
    let page = api.raw("GET /metrics", "", &[]).1;
    let page = Page::parse(std::str::from_utf8(&page).unwrap());
    assert_eq!(page.whole("cairn_reclaim_passes_total"), 3);
    assert_eq!(json!(page.whole("cairn_reclaimed_bytes_total")), done["object_bytes"]);
    assert_eq!(json!(page.whole("cairn_reclaimed_objects_total")), done["objects"]);
    // Beside them, what older checkpoints had.
    let deletes = page.whole("cairn_segment_deletes_total{node=\"local\"}");
    assert!(deletes >= done["objects"].as_u64().unwrap(), "{deletes} {done}");
    assert!(page.whole("cairn_segment_delete_requests_total{node=\"local\"}") >= 1);
    let status = api.json("GET /v1/status", &json!(null)).1;
    assert_eq!(status["reclaim"]["total"]["objects"], done["objects"]);
    for wrong in [json!({"dry_run": "yes"}), json!({"force": true})] {
        let (status, answer) = api.json("POST /v1/reclaim", &wrong);
        assert_eq!((status, &answer["error"]["kind"]), (400, &json!("unsupported")), "{answer}");
    }
    assert_eq!(api.json("GET /v1/reclaim", &json!(null)).0, 400);
}

#[test]
fn every_refusal_says_its_kind_and_why() {
    let api = Api::with_volume();
    for (head, body, status, kind) in [
        ("GET /v1/volumes/b", json!(null), 404, "not_found"),
        ("GET /v1/nodes/b", json!(null), 404, "not_found"),
        ("GET /v1/volumes/%ff", json!(null), 400, "unsupported"),
        ("POST /v1/volumes/%ff/flush", json!(null), 400, "unsupported"),
        ("GET /v2/status", json!(null), 404, "not_found"),
        ("PUT /v1/status", json!(null), 400, "unsupported"),
        ("POST /v1/volumes", json!({"name": "a", "size_bytes": 512}), 409, "conflict"),
        ("POST /v1/volumes", json!({"name": "b", "size_bytes": 513}), 400, "unsupported"),
        ("POST /v1/volumes", json!({"name": "b", "size_bytes": 512, "colour": 1}), 400, "unsupported"),
        ("POST /v1/volumes", json!({"name": "b"}), 400, "unsupported"),
        ("POST /v1/volumes", json!({"name": "b", "size_bytes": -1}), 400, "unsupported"),
        ("POST /v1/volumes", json!({"name": "../b", "size_bytes": 512}), 400, "unsupported"),
        ("PATCH /v1/volumes/a", json!({"size_bytes": 512}), 409, "conflict"),
        ("GET /v1/volumes/a/data?offset=1048576&length=1", json!(null), 400, "out_of_range"),
        ("GET /v1/volumes/a/data?offset=18446744073709551615&length=2", json!(null), 400, "out_of_range"),
        ("GET /v1/volumes/a/data?offset=0&length=8388609", json!(null), 400, "unsupported"),
        ("GET /v1/volumes/a/data?offset=-1&length=1", json!(null), 400, "unsupported"),
        ("GET /v1/volumes/a/data", json!(null), 400, "unsupported"),
        ("POST /v1/volumes/a/zeroes", json!({"offset": 1, "length": 1 << 20}), 400, "out_of_range"),
        ("POST /v1/nodes", json!({"name": "local", "url": "file:///x"}), 409, "conflict"),
        ("POST /v1/domains", json!({"name": "default"}), 409, "conflict"),
        ("POST /v1/domains", json!({"name": "a/b"}), 400, "unsupported"),
        ("POST /v1/domains", json!({"name": "a", "encryption": "rot13"}), 400, "unsupported"),
        ("GET /v1/domains/none", json!(null), 404, "not_found"),
        ("DELETE /v1/domains/none", json!(null), 404, "not_found"),
        ("DELETE /v1/domains/default", json!(null), 409, "conflict"),
        ("POST /v1/key/replace", json!({"sealed": "zz"}), 400, "unsupported"),
        ("POST /v1/key/replace", json!({"sealed": "00"}), 409, "conflict"),
        ("POST /v1/key/replace", json!({"sealed": "a7".repeat(80)}), 409, "conflict"),
    ] {
        let (found, answer) = api.json(head, &body);
        assert_eq!((found, &answer["error"]["kind"]), (status, &json!(kind)), "{head} {body}: {answer}");
        assert!(answer["error"]["message"].as_str().is_some_and(|text| !text.is_empty()), "{head}: {answer}");
    }
}

#[test]
fn a_request_that_is_too_long_or_no_json_is_refused() {
    let api = Api::with_volume();
    let long = vec![b' '; 100_000];
    assert_eq!(api.raw("POST /v1/volumes", "application/json", &long).0, 400);
    assert_eq!(api.raw("POST /v1/volumes", "application/json", b"{").0, 400);
    assert_eq!(api.raw("POST /v1/volumes", "text/plain", b"{}").0, 400);
    let piece = vec![1; (8 << 20) + 1];
    assert_eq!(api.raw("PUT /v1/volumes/a/data?offset=0", "application/octet-stream", &piece).0, 400);
    assert_eq!(api.json("GET /v1/health", &json!(null)).1["health"], "ok");
}

#[test]
fn the_cpu_budget_is_told_and_changed() {
    let api = Api::new();
    let cores = std::thread::available_parallelism().unwrap().get();
    let normal = json!({"budget": "normal", "threads": (cores / 5).max(1), "cores": cores, "raised": false});
    assert_eq!(api.json("GET /v1/cpu", &json!(null)), (200, normal));
    let all = json!({"budget": "unlimited", "threads": cores, "cores": cores, "raised": false});
    assert_eq!(api.json("PUT /v1/cpu", &json!({"budget": "unlimited"})), (200, all.clone()));
    assert_eq!(api.json("GET /v1/status", &json!(null)).1["cpu"], all);
    for wrong in [json!({"budget": "all"}), json!({}), json!({"budget": "normal", "threads": 9})] {
        let (status, answer) = api.json("PUT /v1/cpu", &wrong);
        assert_eq!((status, &answer["error"]["kind"]), (400, &json!("unsupported")), "{answer}");
    }
    assert_eq!(api.json("GET /v1/cpu", &json!(null)).1, all);
}

#[test]
fn metrics_are_what_a_scraper_takes() {
    let api = Api::with_volume();
    let bytes = noise(2, 1 << 20);
    assert_eq!(api.raw("PUT /v1/volumes/a/data?offset=0", "application/octet-stream", &bytes).0, 200);
    assert_eq!(api.json("POST /v1/destage", &json!(null)).0, 200);
    let (status, text) = api.raw("GET /metrics", "", &[]);
    assert_eq!(status, 200);
    let page = Page::parse(std::str::from_utf8(&text).unwrap());
    assert!(page.families.len() > 40, "{page:?}");
    let whole = 1 << 20;
    assert_eq!(page.whole("cairn_volume_size_bytes{volume=\"a\"}"), whole);
    assert_eq!(page.whole("cairn_volume_serving{volume=\"a\"}"), 1);
    assert_eq!(page.whole("cairn_destaged_bytes_total"), whole);
    assert!(page.whole("cairn_segment_put_bytes_total{node=\"local\"}") >= whole);
    assert_eq!(page.whole("cairn_destage_backlog_bytes"), 0);
    assert_eq!(page.whole("cairn_attention{severity=\"error\"}"), 0);
    assert_eq!(page.whole("cairn_cpu_budget{budget=\"normal\"}"), 1);
    assert_eq!(page.whole("cairn_cpu_budget{budget=\"insane\"}"), 0);
    let (_, status) = api.json("GET /v1/status", &json!(null));
    assert_eq!(page.whole("cairn_wal_capacity_bytes"), status["wal"]["capacity_bytes"].as_u64().unwrap());
}

#[test]
fn on_tcp_only_this_host_is_answered() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let home = Home::with_config(&SMALL.replace("[wal]", &format!("admin = \"{free}\"\n[wal]")));
    home.run(&["init"]).ok();
    let gateway = home.serve();
    let metrics = exchange(TcpStream::connect(free).unwrap(), "localhost", "GET /metrics", "", &[]);
    assert!(metrics.0 == 200 && metrics.1.starts_with(b"# HELP cairn_"));
    for (host, status) in [("localhost", 200), (&*free.to_string(), 200), ("evil.example", 403), ("", 403)] {
        let stream = TcpStream::connect(free).unwrap();
        assert_eq!(exchange(stream, host, "GET /v1/health", "", &[]).0, status, "{host}");
    }
    // Every user of this host reaches it: the keys are told of and not changed.
    for (head, status) in [("GET /v1/key", 200), ("POST /v1/key/replace", 404), ("POST /v1/key/publish", 404)]
    {
        let stream = TcpStream::connect(free).unwrap();
        assert_eq!(exchange(stream, "localhost", head, "application/json", b"{}").0, status, "{head}");
    }
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_group_is_made_changed_run_and_deleted() {
    let api = Api::new();
    for name in ["a", "b"] {
        api.json("POST /v1/volumes", &json!({"name": name, "size_bytes": 1 << 20}));
    }
    assert_eq!(api.json("GET /v1/groups", &json!(null)), (200, json!([])));
    let policy = json!({"match": ["?"], "every": "60m", "keep": "3", "lock": "1h"});
    let (status, made) = api.json("POST /v1/groups", &json!({"name": "g", "policy": policy}));
    let plain = json!({"match": ["?"], "every": "1h", "timezone": "UTC", "keep": "last:3", "lock": "1h"});
    assert_eq!((status, &made["policy"], &made["runs"]), (201, &plain, &json!([])), "{made}");
    for (name, policy) in [
        ("g", policy.clone()),
        ("h", json!({"match": [], "keep": "3"})),
        ("h", json!({"match": ["?"]})),
        ("h", json!({"match": ["?"], "keep": "3", "often": true})),
        ("g/h", policy),
    ] {
        let (status, refused) = api.json("POST /v1/groups", &json!({"name": name, "policy": policy}));
        assert!(status >= 400 && refused["error"]["message"].is_string(), "{name} {policy}: {refused}");
    }
    let (status, run) = api.json("POST /v1/groups/g/snap", &json!(null));
    assert_eq!(
        (status, &run["outcome"], run["members"].as_array().unwrap().len()),
        (200, &json!("complete"), 2)
    );
    let until = &api.json("GET /v1/volumes/a/snapshots", &json!(null)).1[0]["locked_until_ms"];
    assert_eq!(until.as_u64().unwrap(), run["began_at_ms"].as_u64().unwrap() + 3_600_000);
    assert_eq!(api.json("DELETE /v1/volumes/a?force=true", &json!(null)).0, 409);
    let (status, changed) = api.json("PATCH /v1/groups/g", &json!({"paused": true}));
    assert_eq!((status, &changed["state"], &changed["policy"]), (200, &json!("paused"), &plain));
    let shown = api.json("GET /v1/groups/g?limit=1", &json!(null)).1;
    assert_eq!((&shown["runs"][0], &shown["last_run"], &shown["snapshots"]), (&run, &run, &json!(2)));
    assert_eq!(api.json("GET /v1/events?limit=1", &json!(null)).1[0]["kind"], "group-run");
    let page = api.raw("GET /metrics", "", &[]).1;
    let page = Page::parse(std::str::from_utf8(&page).unwrap());
    assert_eq!((page.whole("cairn_groups"), page.whole("cairn_group_runs_complete_total")), (1, 1));
    assert_eq!(api.json("DELETE /v1/groups/g", &json!(null)), (200, json!(null)));
    for gone in ["GET /v1/groups/g", "DELETE /v1/groups/g", "POST /v1/groups/g/snap"] {
        assert_eq!(api.json(gone, &json!(null)).1["error"]["kind"], "not_found", "{gone}");
    }

    let wanted = json!({"snapshots": [{"volume": "a", "name": "x"}, {"volume": "b"}]});
    let (status, taken) = api.json("POST /v1/snapshots", &wanted);
    assert_eq!((status, &taken[0]["snapshot"], &taken[1]["volume"]), (201, &json!("a@x"), &json!("b")));
    assert_eq!(api.json("POST /v1/snapshots", &wanted).0, 409);
    assert_eq!(api.json("POST /v1/snapshots", &json!({"snapshots": []})).1["error"]["kind"], "unsupported");
}
