//! Protection groups, locks and events as their operator sees them.

use crate::support::{Home, pause};
use serde_json::{Value, json};
use std::time::Duration;

/// `VOLUME@NAME` of all snapshots.
fn listed(home: &Home) -> Vec<String> {
    let snapshots = home.run(&["snapshot", "list", "--json"]).json();
    let named = |snapshot: &Value| snapshot["snapshot"].as_str().unwrap().to_owned();
    snapshots.as_array().unwrap().iter().map(named).collect()
}

fn with_volumes(names: &[&str]) -> Home {
    let home = Home::ready();
    for name in names {
        home.run(&["volume", "create", name, "16MiB"]).ok();
    }
    home
}

/// What `cairn group show` says in JSON, once it is so.
#[track_caller]
fn shown_once(home: &Home, name: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let mut shown = Value::Null;
    for _ in 0..600 {
        shown = home.run(&["group", "show", name, "--json"]).json();
        if is_so(&shown) {
            return shown;
        }
        pause(Duration::from_millis(50));
    }
    panic!("it never is: {shown}");
}

fn make_nightly(home: &Home) {
    let made = home.run(&[
        "group",
        "create",
        "nightly",
        "--match",
        "db-*",
        "mail",
        "--cron",
        "30 3 * * *",
        "--window",
        "03:00-05:00",
        "--timezone",
        "europe/berlin",
        "--keep",
        "5,daily:7,weekly:4",
        "--keep-at",
        "vault=monthly:12",
        "--json",
    ]);
    let made = made.json();
    let policy = json!({
        "match": ["db-*", "mail"], "cron": "30 3 * * *", "window": "03:00-05:00", "timezone": "Europe/Berlin",
        "keep": "last:5,daily:7,weekly:4", "remote": [{"site": "vault", "keep": "monthly:12"}],
    });
    assert_eq!((&made["policy"], &made["state"]), (&policy, &"ok".into()));
    assert_eq!(made["volumes"], json!(["db-1", "db-2"]));
    assert!(made["next_run_at_ms"].as_u64().unwrap() > made["created_at_ms"].as_u64().unwrap());
    let told = home.run(&["group", "show", "nightly"]).ok();
    for word in ["db-* mail", "cron 30 3 * * *, 03:00-05:00 Europe/Berlin", "at vault", "db-1, db-2"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    let again = home.run(&["group", "create", "nightly", "--match", "x", "--keep", "1"]).failed();
    assert!(again.contains("group nightly exists already"), "{again}");
}

fn edit_nightly(home: &Home) {
    let edited = home.run(&[
        "group",
        "edit",
        "nightly",
        "--every",
        "90m",
        "--no-window",
        "--keep",
        "2",
        "--pause",
        "--json",
    ]);
    let edited = edited.json();
    assert_eq!((&edited["policy"]["every"], &edited["policy"]["keep"]), (&"90m".into(), &"last:2".into()));
    assert_eq!((&edited["policy"]["window"], &edited["policy"]["cron"]), (&Value::Null, &Value::Null));
    assert_eq!((&edited["state"], &edited["next_run_at_ms"]), (&"paused".into(), &Value::Null));
    assert_eq!(
        edited["policy"]["remote"],
        json!([{"site": "vault", "keep": "monthly:12"}]),
        "what is not named stays"
    );
    home.run(&["group", "edit", "nightly", "--resume", "--no-keep-at"]).ok();
    let groups = home.run(&["group", "list", "--json"]).json();
    assert_eq!((&groups[0]["name"], &groups[0]["paused"]), (&"nightly".into(), &false.into()));
    assert!(home.run(&["group", "list"]).ok().contains("every 90m"));
    assert_eq!(home.run(&["status", "--json"]).json()["groups"], 1);
}

#[test]
fn groups_are_administered_the_same_way_with_and_without_a_gateway() {
    for running in [false, true] {
        let home = with_volumes(&["db-1", "db-2", "web"]);
        let gateway = running.then(|| home.serve());
        assert!(home.run(&["group", "list"]).ok().starts_with("No groups."));
        make_nightly(&home);

        assert_eq!(home.run(&["group", "snap", "nightly"]).ok().lines().count(), 2);
        let run = home.run(&["group", "snap", "nightly", "--json"]).json();
        assert_eq!((&run["outcome"], &run["missed"]), (&"complete".into(), &0.into()));
        assert_eq!(listed(&home).len(), 4);
        assert!(listed(&home).iter().all(|name| name.contains("@nightly-2")), "{:?}", listed(&home));
        let shown = home.run(&["group", "show", "nightly", "--json"]).json();
        assert_eq!((shown["runs"].as_array().unwrap().len(), &shown["snapshots"]), (2, &4.into()));

        edit_nightly(&home);

        let events = home.run(&["events", "--json"]).json();
        assert_eq!(
            (&events[0]["kind"], &events[0]["subject"]),
            (&"group-run".into(), &"group nightly".into())
        );
        assert!(home.run(&["events", "--limit", "1"]).ok().contains("2 of 2 snapshots taken"));
        let told = home.run(&["group", "delete", "nightly", "--yes"]).ok();
        assert!(told.contains("its snapshots stay"), "{told}");
        assert!(home.run(&["group", "show", "nightly"]).failed().contains("no group named nightly"));
        assert_eq!(listed(&home).len(), 4);
        if let Some(gateway) = gateway {
            assert_eq!(gateway.stop(), Some(0));
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused_and_says_what_to_write() {
    let home = with_volumes(&["db"]);
    let create = |more: &[&str]| home.run(&[&["group", "create", "g", "--match", "db"][..], more].concat());
    for (more, word) in [
        (&["--keep", "0"][..], "does not say what to keep"),
        (&["--keep", "often:3"], "hourly:24,daily:7"),
        (&["--keep", "1", "--every", "5s"], "too often"),
        (&["--keep", "1", "--every", "soon"], "15m"),
        (&["--keep", "1", "--cron", "61 * * * *"], "cannot be used"),
        (&["--keep", "1", "--cron", "0 0 30 2 *"], "never due"),
        (&["--keep", "1", "--window", "22:00-06:00"], "--window"),
        (&["--keep", "1", "--every", "1h", "--window", "late"], "22:00-06:00"),
        (&["--keep", "1", "--timezone", "Mars"], "no time zone Mars"),
        (&["--keep", "1", "--lock-for", "1y"], "7d"),
        (&["--keep", "1", "--keep-at", "vault=x"], "does not say what to keep"),
    ] {
        let told = create(more).failed();
        assert!(told.contains(word), "{more:?}: {told}");
    }
    for more in [
        &["--every", "1h"][..],
        &["--keep", "1", "--every", "1h", "--cron", "@daily"],
        &["--keep", "1", "--keep-at", "x"],
    ] {
        create(more).misused();
    }
    let told = home.run(&["group", "create", "g", "--match", "a/b", "--keep", "1"]).failed();
    assert!(told.contains("no volume's name has '/'"), "{told}");
    home.run(&["group", "create", "-x", "--match", "a", "--keep", "1"]).misused();
    home.run(&["group", "create", "g@x", "--match", "a", "--keep", "1"]).misused();
    for arguments in
        [&["group", "snap", "none"][..], &["group", "edit", "none", "--pause"], &["group", "delete", "none"]]
    {
        assert!(home.run(arguments).failed().contains("no group named none"));
    }
    assert_eq!(home.run(&["group", "list", "--json"]).json(), json!([]));
    assert_eq!(home.run(&["events", "--json"]).json(), json!([]));
}

#[test]
fn a_group_that_protects_nothing_is_told_of_everywhere() {
    let home = with_volumes(&["web"]);
    let gateway = home.serve();
    home.run(&["group", "create", "g", "--match", "db-*", "--keep", "1"]).ok();
    assert!(home.run(&["group", "snap", "g"]).failed().contains("matches no volume"));
    let shown = home.run(&["group", "show", "g", "--json"]).json();
    assert_eq!((&shown["state"], &shown["runs"][0]["outcome"]), (&"empty".into(), &"nothing".into()));
    let status = home.run(&["status", "--json"]).json();
    let attention = status["attention"].as_array().unwrap();
    assert!(
        attention
            .iter()
            .any(|entry| entry["what"].as_str().unwrap().contains("group g: it matches no volume"))
    );
    assert_eq!(home.run(&["events", "--json"]).json()[0]["kind"], "group-matches-nothing");
    // A volume that comes is matched without a word more.
    home.run(&["volume", "create", "db-1", "1MiB"]).ok();
    home.run(&["group", "snap", "g"]).ok();
    assert_eq!(home.run(&["group", "show", "g", "--json"]).json()["state"], "ok");
    assert_eq!(home.run(&["status", "--json"]).json()["health"], "ok");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_locked_snapshot_cannot_be_deleted_by_any_command() {
    let home = with_volumes(&["a"]);
    home.run(&["group", "create", "safe", "--match", "a", "--keep", "1", "--lock-for", "1d"]).ok();
    for running in [false, true] {
        let gateway = running.then(|| home.serve());
        home.run(&["group", "snap", "safe"]).ok();
        let snapshots = home.run(&["snapshot", "list", "--json"]).json();
        let (name, until) =
            (snapshots[0]["snapshot"].as_str().unwrap(), snapshots[0]["locked_until_ms"].as_u64());
        assert_eq!(until.unwrap() - snapshots[0]["created_at_ms"].as_u64().unwrap(), 86_400_000);
        assert!(home.run(&["snapshot", "list"]).ok().contains("LOCKED UNTIL"));
        for arguments in
            [&["snapshot", "delete", name, "--yes"][..], &["volume", "delete", "a", "--yes", "--force"]]
        {
            let told = home.run(arguments).failed();
            assert!(told.contains("is locked until 2") && told.contains("--force"), "{told}");
        }
        home.run(&["revert", name, "--yes", "--force"]).ok();
        if let Some(gateway) = gateway {
            assert_eq!(gateway.stop(), Some(0));
        }
    }
    home.run(&["group", "delete", "safe", "--yes"]).ok();
    let name = &listed(&home)[0];
    assert!(home.run(&["snapshot", "delete", name, "--yes"]).failed().contains("is locked until"));
    assert_eq!(listed(&home).iter().filter(|name| name.contains("@safe-")).count(), 2);
}

#[test]
fn several_volumes_are_snapshotted_together_or_not_at_all() {
    for running in [false, true] {
        let home = with_volumes(&["a", "b", "c"]);
        let gateway = running.then(|| home.serve());
        let told = home.run(&["snapshot", "create", "a", "b@own", "c", "--name", "all"]).ok();
        assert_eq!(told.lines().count(), 3, "{told}");
        assert_eq!(listed(&home), ["a@all", "b@own", "c@all"]);
        let taken = home.run(&["snapshot", "create", "a", "b", "--json"]).json();
        let names: Vec<_> =
            taken.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
        assert!(names.len() == 2 && names[0] == names[1] && names[0].starts_with("auto-2"), "{names:?}");
        assert_eq!(taken[0]["created_at_ms"], taken[1]["created_at_ms"]);
        let before = listed(&home);
        for (arguments, word) in [
            (&["snapshot", "create", "a@new", "c@all"][..], "c@all exists already"),
            (&["snapshot", "create", "a@new", "none@new"], "no volume named none"),
            (&["snapshot", "create", "a@new", "a@newer"], "named twice"),
        ] {
            let told = home.run(arguments).failed();
            assert!(told.contains(word), "{told}");
        }
        assert_eq!(listed(&home), before, "all of them or none");
        assert_eq!(home.run(&["snapshot", "create", "a", "--name", "x", "--json"]).json()["snapshot"], "a@x");
        if let Some(gateway) = gateway {
            assert_eq!(gateway.stop(), Some(0));
        }
    }
}

#[test]
fn a_schedule_runs_prunes_and_goes_on_after_sigkill() {
    let home = with_volumes(&["a", "b"]);
    let gateway = home.serve();
    home.run(&["group", "create", "often", "--match", "?", "--every", "10s", "--keep", "1"]).ok();
    let is_complete = |shown: &Value| shown["runs"][0]["outcome"] == "complete";
    let first = shown_once(&home, "often", is_complete);
    assert_eq!(first["runs"][0]["members"].as_array().unwrap().len(), 2);
    let planned = |shown: &Value| shown["runs"][0]["planned_at_ms"].as_u64().unwrap();
    assert_eq!(planned(&first) % 10_000, 0);
    gateway.kill();
    let gateway = home.serve();
    let next = shown_once(&home, "often", |shown| is_complete(shown) && planned(shown) > planned(&first));
    assert!(next["runs"].as_array().unwrap().iter().all(|run| run["outcome"] == "complete"), "{next}");
    home.run(&["group", "edit", "often", "--pause"]).ok();
    // The pool has the first one's snapshots by the time of a later run.
    shown_once(&home, "often", |_| {
        home.run(&["group", "snap", "often"]).ok();
        listed(&home).len() <= 4
    });
    assert_eq!(gateway.stop(), Some(0));
}
