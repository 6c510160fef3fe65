//! Nodes and profiles by commands: what they say, and what they refuse.

use super::{BYTES, MIB, Pool};
use anyhow::{Context, Result, ensure};
use system_tests::gateway::Gateway;
use system_tests::pool::{Folders, PoolFigures, PoolSite};

#[test]
fn one_node_becomes_six_and_each_holds_its_part() -> Result<()> {
    let site = PoolSite::start(Vec::new(), "")?;
    assert_eq!(site.names()?, ["local"]);
    let folders = Folders::new()?;
    for number in 1..=6 {
        let (name, rack) = (format!("n{number}"), format!("rack{}", number.min(5)));
        site.add_node(&name, &folders.url(&name), &["--domain", &rack, "--capacity", "10GiB"])?;
    }
    // The first one took the place of the one that held nothing.
    assert_eq!(site.names()?, ["n1", "n2", "n3", "n4", "n5", "n6"]);
    assert_eq!((site.pool()?.profile, site.pool()?.tolerates), ("single".to_owned(), 0));
    site.set_profile("ec:4+2")?;
    let names = site.names()?;
    let pool = Pool { site, folders, names };
    let known = pool.fill("vol", BYTES)?;
    let figures = pool.site.pool()?;
    let expected = PoolFigures {
        profile: "ec:4+2".to_owned(),
        shards: 6,
        tolerates: 2,
        active_nodes: 6,
        domains: 5,
        segments: figures.segments,
        degraded_segments: 0,
        at_risk_segments: 0,
    };
    assert_eq!(figures, expected);
    assert!(figures.segments >= 4, "{figures:?}");
    pool.assert_exact()?;
    let nodes = pool.site.nodes()?;
    for node in &nodes {
        assert_eq!(
            (node.shards, &*node.state, node.capacity_bytes),
            (figures.segments, "active", Some(10 << 30)),
            "{node:?}"
        );
        // A quarter of the data each: noise does not compress.
        assert!((BYTES / 4..BYTES / 4 + MIB).contains(&node.used_bytes), "{node:?}");
        assert!(node.health.is_some() && node.url == pool.folders.url(&node.name), "{node:?}");
        let on_disk: u64 = pool.folders.shards(&node.name)?.values().sum();
        assert!(
            on_disk >= node.used_bytes && on_disk < node.used_bytes + node.used_bytes / 50,
            "{on_disk} {node:?}"
        );
    }
    assert_eq!(nodes[5].domain.as_deref(), Some("rack5"));
    // In words: two nodes share a rack, and a segment has six shards.
    let told = pool.site.cairn(&["pool", "profile"]).run()?.stdout;
    for said in ["ec:4+2", "2 nodes may be lost", "domains   5"] {
        assert!(told.contains(said), "{told}");
    }
    let listed = pool.site.cairn(&["node", "list"]).run()?.stdout;
    assert!(nodes.iter().all(|node| listed.contains(&node.url)), "{listed}");
    assert!(listed.contains("LATENCY") && listed.contains(" ms "), "{listed}");
    assert_eq!(pool.site.attention()?, Vec::<String>::new());
    assert_eq!(pool.site.number("/pool/segments")?, figures.segments);
    known.verify()?;
    // The same without a gateway.
    let mut pool = pool;
    pool.site.gateway.stop()?;
    assert_eq!(pool.site.pool()?, figures);
    assert!(pool.site.nodes()?.iter().all(|node| node.shards == figures.segments && node.health.is_none()));
    pool.site.gateway.start()?;
    known.verify()
}

#[test]
fn what_holds_data_stays_beside_what_is_added() -> Result<()> {
    let mut pool =
        Pool { site: PoolSite::start(Vec::new(), "")?, folders: Folders::new()?, names: Vec::new() };
    let known = pool.fill("vol", MIB)?;
    pool.add_one()?;
    assert_eq!(pool.site.names()?, ["local", "n1"]);
    pool.verify_cold(&known)
}

#[test]
fn what_would_leave_too_few_nodes_is_refused_with_the_numbers() -> Result<()> {
    let mut pool = Pool::start(5, "replica:3")?;
    let site = &pool.site;
    site.refuses(&["pool", "profile", "ec:4+2"], &["ec:4+2", "6", "5", "node add"])?;
    assert_eq!(site.pool()?.profile, "replica:3");
    site.set_profile("ec:3+2")?;
    for (command, arguments) in [("drained", ["node", "drain", "n1"]), ("removed", ["node", "remove", "n1"])]
    {
        site.refuses(&arguments, &["n1", command, "ec:3+2", "5", "4"])?;
    }
    assert_eq!(site.node("n1")?.state, "active");
    pool.add_one()?;
    pool.site.cairn(&["node", "drain", "n1"]).run()?;
    assert_eq!(pool.site.node("n1")?.state, "draining");
    pool.site.refuses(&["node", "drain", "n2"], &["n2", "ec:3+2"])?;
    pool.site.refuses(&["pool", "profile", "ec:4+2"], &["6", "5"])?;
    pool.site.cairn(&["node", "activate", "n1"]).run()?;
    pool.site.set_profile("ec:4+2")
}

#[test]
fn a_node_that_holds_data_is_not_removed() -> Result<()> {
    let mut pool = Pool::start(3, "replica:2")?;
    let known = pool.fill("vol", BYTES)?;
    let held = pool.site.node("n1")?.shards;
    assert!(held > 0);
    pool.site.refuses(&["node", "remove", "n1"], &["n1", "node drain"])?;
    // By force it is; then what it held is missing, and the last copies of something are not to be had for it.
    pool.site.cairn(&["node", "remove", "n1", "--force"]).run()?;
    assert_eq!(pool.site.names()?, ["n2", "n3"]);
    pool.site.refuses(&["node", "remove", "n2", "--force"], &["n2"])?;
    pool.verify_cold(&known)
}

#[test]
fn names_places_and_profiles_that_mean_nothing_are_refused_by_name() -> Result<()> {
    let mut pool = Pool::start(2, "replica:2")?;
    let known = pool.fill("vol", MIB)?;
    let (site, folders) = (&pool.site, &pool.folders);
    site.refuses(&["node", "add", "n1", &folders.url("n3")], &["n1", "name"])?;
    site.refuses(&["node", "add", "n3", &folders.url("n1")], &[&*folders.url("n1"), "n1"])?;
    assert!(!folders.path("n3").join("cairn-node.json").exists(), "what is refused leaves no marker");
    for arguments in [
        ["node", "show", "n9"],
        ["node", "drain", "n9"],
        ["node", "remove", "n9"],
        ["node", "activate", "n9"],
    ] {
        site.refuses(&arguments, &["n9", "node list"])?;
    }
    site.refuses(&["node", "fail", "n9", "--yes"], &["n9"])?;
    for profile in ["raid6", "replica:1", "ec:4+0", "ec:30+3", "ec:4"] {
        let refused = site.cairn(&["pool", "profile", profile]).run_refused()?;
        ensure!(
            refused.status.code() == Some(2) && refused.stderr.contains(profile),
            "{}",
            refused.describe()
        );
    }
    for (name, url) in
        [("n/3", folders.url("n3")), ("n3", "n3".to_owned()), ("n3", "ftp://host/x".to_owned())]
    {
        let refused = site.cairn(&["node", "add", name, &url]).run_refused()?;
        ensure!(refused.status.code() == Some(2), "{name} {url}: {}", refused.describe());
    }
    assert_eq!(site.names()?, ["n1", "n2"]);
    pool.verify_cold(&known)
}

#[test]
fn what_is_not_empty_or_is_another_sites_is_no_node() -> Result<()> {
    let other = Pool::start(1, "single")?;
    let theirs = other.fill("vol", MIB)?;
    let before = other.folders.shards("n1")?;
    let pool = Pool::start(2, "replica:2")?;
    pool.site.refuses(&["node", "add", "n3", &other.folders.url("n1")], &["site"])?;
    std::fs::create_dir(pool.folders.path("full"))?;
    std::fs::write(pool.folders.path("full").join("letter.txt"), "not a segment")?;
    pool.site.refuses(&["node", "add", "n3", &pool.folders.url("full")], &["letter.txt"])?;
    // A node of ours is where it is: another name or place does not make it another one.
    pool.site.refuses(&["node", "edit", "n1", "--url", &pool.folders.url("n2")], &["n2"])?;
    assert_eq!(pool.site.names()?, ["n1", "n2"]);
    assert_eq!(other.folders.shards("n1")?, before);
    let mut other = other;
    other.verify_cold(&theirs)
}

#[test]
fn a_node_moves_to_another_place_by_its_url() -> Result<()> {
    let mut pool = Pool::start(3, "replica:2")?;
    let known = pool.fill("vol", BYTES)?;
    std::fs::rename(pool.folders.path("n2"), pool.folders.path("moved"))?;
    pool.site
        .cairn(&["node", "edit", "n2", "--url", &pool.folders.url("moved"), "--domain", "cellar"])
        .run()?;
    let node = pool.site.node("n2")?;
    assert_eq!((node.url, node.domain), (pool.folders.url("moved"), Some("cellar".to_owned())));
    // Each alone has to serve what only it and the one that is away have.
    for away in ["n1", "n3"] {
        pool.folders.take_away(away)?;
        pool.verify_cold(&known).with_context(|| format!("without {away}"))?;
        pool.folders.bring_back(away)?;
    }
    Ok(())
}

#[test]
fn an_old_site_with_one_node_is_what_it_was() -> Result<()> {
    let mut gateway = Gateway::start_fresh()?;
    gateway.create_volume("vol", 16 * MIB)?;
    gateway.export("vol").connect()?.write(0, &[7; 8192])?;
    gateway.destage()?;
    let said = gateway.command(["pool", "profile", "--json"]).run()?.stdout;
    let figures: PoolFigures = serde_json::from_str(&said)?;
    assert_eq!(
        (&*figures.profile, figures.shards, figures.tolerates, figures.active_nodes),
        ("single", 1, 0, 1)
    );
    gateway.stop()?;
    gateway.start()?;
    assert_eq!(gateway.export("vol").connect()?.read(0, 8192)?, [7; 8192]);
    gateway.stop()
}
