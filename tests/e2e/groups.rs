//! Protection groups under dependent writes and SIGKILL: every run cut its volumes at one moment, or took nothing, and says which.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use system_tests::export::Export;
use system_tests::gateway::Gateway;
use system_tests::random::Random;
use system_tests::tool::Tool;

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;

/// In the order in which they are written.
const VOLUMES: [&str; 2] = ["one", "two"];

/// Lives with many cuts, and lives of one cut that is cut short.
const LONG_LIVES: usize = 5;
const SHORT_LIVES: usize = 25;
/// If none of those hit a run.
const SHORT_LIVES_MAX: usize = 150;
const CUTS: usize = 22;

fn cairn(gateway: &Gateway, arguments: &[&str]) -> Tool {
    gateway.command([]).args(arguments.iter().copied()).timeout(Duration::from_mins(2))
}

/// What a command answers in JSON.
fn answer(gateway: &Gateway, arguments: &[&str]) -> Result<Value> {
    let said = cairn(gateway, arguments).arg("--json").run()?.stdout;
    serde_json::from_str(&said).with_context(|| format!("{arguments:?} said {said:?}"))
}

/// A counter that is written to the first volume, and once that is acknowledged to the second.
#[derive(Default)]
struct Counter {
    /// The last one that was sent to anybody.
    sent: AtomicU64,
    /// The last one that both have acknowledged.
    done: AtomicU64,
}

impl Counter {
    /// Counts until it is over. Before that, nothing may fail.
    fn run(&self, exports: &[Export; 2], over: &AtomicBool) -> Result<()> {
        match self.count(exports, over) {
            Err(_) if over.load(Ordering::SeqCst) => Ok(()),
            counted => counted,
        }
    }

    fn count(&self, exports: &[Export; 2], over: &AtomicBool) -> Result<()> {
        let mut clients = [exports[0].connect()?, exports[1].connect()?];
        while !over.load(Ordering::SeqCst) {
            let next = self.sent.fetch_add(1, Ordering::SeqCst) + 1;
            for client in &mut clients {
                client.write(0, &next.to_le_bytes().repeat(BLOCK / 8))?;
            }
            self.done.store(next, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// What a run that was answered must show at least, and at most, by the end of its snapshots' names.
type Bounds = BTreeMap<String, (u64, u64)>;

/// Asks for a run without a client of ours between, which would take longer than the run.
fn ask_for_a_run(gateway: &Gateway) -> Result<UnixStream> {
    let socket = gateway.dir().join("admin.sock");
    // It may still be the one of the gateway before.
    let connected = (0..500).find_map(|_| {
        UnixStream::connect(&socket).inspect_err(|_| std::thread::sleep(Duration::from_millis(10))).ok()
    });
    let mut stream = connected.context("the admin API does not answer")?;
    let request = "POST /v1/groups/pair/snap HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                   content-length: 4\r\nconnection: close\r\n\r\nnull";
    stream.write_all(request.as_bytes())?;
    Ok(stream)
}

/// Kills the gateway in a run, after a part of the time, in thousandths, that the run before took.
fn kill_in_a_run(gateway: &mut Gateway, over: &AtomicBool, part: u32) -> Result<()> {
    let asked = Instant::now();
    let mut answer = String::new();
    ask_for_a_run(gateway)?.read_to_string(&mut answer)?;
    ensure!(answer.contains("\"complete\""), "{answer}");
    let took = asked.elapsed();
    let _stream = ask_for_a_run(gateway)?;
    std::thread::sleep(took * part / 1000);
    over.store(true, Ordering::SeqCst);
    gateway.kill()
}

/// Runs the group again and again. The last time of a life the gateway is killed meanwhile.
fn life(gateway: &mut Gateway, counter: &Counter, bounds: &mut Bounds, cuts: usize, part: u32) -> Result<()> {
    let over = AtomicBool::new(false);
    let exports = VOLUMES.map(|volume| gateway.export(volume));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| counter.run(&exports, &over));
        let cut = (0..cuts).try_for_each(|_| {
            let least = counter.done.load(Ordering::SeqCst);
            let run = answer(gateway, &["group", "snap", "pair"])?;
            ensure!(run["outcome"] == "complete", "{run}");
            let label = run["label"].as_str().context("a label")?.to_owned();
            bounds.insert(label, (least, counter.sent.load(Ordering::SeqCst)));
            Ok(())
        });
        let killed = kill_in_a_run(gateway, &over, part);
        over.store(true, Ordering::SeqCst);
        writer.join().expect("the writer does not panic")?;
        cut.and(killed)
    })
}

/// Runs that a kill cut short and that were ended by a later start.
fn cut_short(gateway: &Gateway) -> Result<usize> {
    let shown = answer(gateway, &["group", "show", "pair", "--runs", "1000"])?;
    let runs = shown["runs"].as_array().context("runs")?;
    Ok(runs.iter().filter(|run| !run["error"].is_null()).count())
}

/// The counter that a snapshot shows.
fn counter_of(gateway: &Gateway, snapshot: &str) -> Result<u64> {
    let mut client = gateway.export(snapshot).connect().with_context(|| snapshot.to_owned())?;
    let bytes = client.read(0, BLOCK)?;
    client.disconnect()?;
    let (first, _) = bytes.split_first_chunk::<8>().context("a block")?;
    ensure!(bytes == first.repeat(BLOCK / 8), "{snapshot} holds a torn block");
    Ok(u64::from_le_bytes(*first))
}

/// `VOLUME@NAME` of all snapshots.
fn listed(gateway: &Gateway) -> Result<BTreeSet<String>> {
    let snapshots = answer(gateway, &["snapshot", "list"])?;
    let named = |snapshot: &Value| Some(snapshot["snapshot"].as_str()?.to_owned());
    snapshots.as_array().context("a list")?.iter().map(named).collect::<Option<_>>().context("names")
}

/// A run is all or nothing, says so, and shows one moment. Returns what its first volume shows.
fn check_run(
    gateway: &Gateway,
    run: &Value,
    there: &BTreeSet<String>,
    bounds: &Bounds,
) -> Result<Option<u64>> {
    let label = run["label"].as_str().context("a label")?;
    let outcome = run["outcome"].as_str().context("an outcome")?;
    let members = run["members"].as_array().context("members")?;
    ensure!(members.len() == VOLUMES.len(), "{run}");
    let state = if outcome == "complete" { "taken" } else { "failed" };
    ensure!(["complete", "failed"].contains(&outcome), "neither all nor nothing: {run}");
    for member in members {
        let snapshot = member["snapshot"].as_str().context("a name")?;
        ensure!(member["state"] == state, "{run}");
        ensure!(there.contains(snapshot) == (state == "taken"), "{snapshot} is not as told: {run}");
    }
    if state == "failed" {
        ensure!(!bounds.contains_key(label), "a run that was answered is lost: {run}");
        return Ok(None);
    }
    let [first, second] = VOLUMES.map(|volume| counter_of(gateway, &format!("{volume}@pair-{label}")));
    let (first, second) = (first?, second?);
    ensure!(
        second <= first,
        "{label}: the second volume shows {second}, the first, written before it, {first}"
    );
    if let Some((least, most)) = bounds.get(label) {
        ensure!(second >= *least, "{label}: {second} where {least} was acknowledged before");
        ensure!(first <= *most, "{label}: {first} where {most} was not sent before it ended");
    }
    Ok(Some(first))
}

#[test]
fn groups_cut_at_one_moment_under_dependent_writes_and_sigkill() -> Result<()> {
    let seed = Random::seed_from_environment()?;
    rounds(seed).with_context(|| format!("CAIRN_E2E_SEED={seed}"))
}

fn rounds(seed: u64) -> Result<()> {
    let mut random = Random::seeded(seed);
    let mut gateway = Gateway::new()?;
    gateway.init_with_config(
        "[memory]\nblock_cache = \"16MiB\"\n[flash]\nsize = \"0\"\n[destage]\nbatch_bytes = \"2MiB\"\nbatch_age = \"100ms\"\n",
    )?;
    gateway.start()?;
    for volume in VOLUMES {
        gateway.create_volume(volume, 8 * MIB)?;
    }
    let create = ["group", "create", "pair", "--match", "one", "two", "--keep", "all", "--lock-for", "1h"];
    cairn(&gateway, &create).run()?;
    let (counter, mut bounds) = (Counter::default(), Bounds::new());
    for number in 0..LONG_LIVES + SHORT_LIVES_MAX {
        if number >= LONG_LIVES + SHORT_LIVES && cut_short(&gateway)? > 0 {
            break;
        }
        let cuts = if number < LONG_LIVES { CUTS } else { 0 };
        let part = u32::try_from(random.below(1000))?;
        life(&mut gateway, &counter, &mut bounds, cuts, part)?;
        gateway.start()?;
    }
    ensure!(bounds.len() >= 100, "{} cuts: the test does not reach its point", bounds.len());

    // What the kills left is ended at the latest by the next run.
    cairn(&gateway, &["group", "snap", "pair"]).run()?;
    let shown = answer(&gateway, &["group", "show", "pair", "--runs", "1000"])?;
    let runs = shown["runs"].as_array().context("runs")?;
    ensure!(runs.len() > bounds.len(), "{} runs for {} answers", runs.len(), bounds.len());
    ensure!(cut_short(&gateway)? > 0, "no run was cut short: the test does not reach its point");
    let there = listed(&gateway)?;
    let mut before = 0;
    let mut snapshots = 0;
    for run in runs.iter().rev() {
        if let Some(shows) = check_run(&gateway, run, &there, &bounds)? {
            ensure!(shows >= before, "{run} shows {shows}, after {before}");
            before = shows;
            snapshots += VOLUMES.len();
        }
    }
    ensure!(there.len() == snapshots, "{} snapshots, {snapshots} of them the group's", there.len());
    for snapshot in &there {
        let refused = cairn(&gateway, &["snapshot", "delete", snapshot, "--yes"]).run_refused()?;
        ensure!(refused.stderr.contains("is locked until"), "{}", refused.describe());
    }
    let refused = cairn(&gateway, &["volume", "delete", "one", "--yes", "--force"]).run_refused()?;
    ensure!(refused.stderr.contains("is locked until"), "{}", refused.describe());
    gateway.stop()
}
