//! Protection groups run when they are due, whatever the clock does, and keep and delete what their rules say.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "tests wait on the machine's own clock and spawn what they join"
)]

#[allow(dead_code, reason = "each test file uses a part of it")]
mod support;

use bytes::Bytes;
use cairn_engine::{Engine, EngineError};
use cairn_metadata::{
    Catalog, GroupMember, GroupName, GroupRow, GroupRunRow, MemberState, RunOutcome, SnapshotName,
};
use cairn_model::{
    BlockDevice, Clock, ErrorKind, GroupId, GroupRunId, Kinded, Monotonic, SnapshotId, SystemClock, WallTime,
    WriteFlags,
};
use cairn_policy::{Policy, PolicySpec};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use support::{MIB, Site, seize};

const HOUR: u64 = 3_600_000;
/// 2026-11-28 15:30:00 UTC.
const BEGIN: u64 = 1_795_879_800_000;

/// The machine's clock, with a wall clock that stands still until it is set.
#[derive(Debug)]
struct SetClock {
    machine: SystemClock,
    wall: AtomicU64,
}

impl Clock for SetClock {
    fn now(&self) -> Monotonic {
        self.machine.now()
    }

    fn wall(&self) -> WallTime {
        WallTime::from_unix_millis(self.wall.load(Ordering::Relaxed))
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.machine.sleep(duration)
    }
}

/// A site whose wall clock is set by hand, with volumes of 4 MiB.
struct World {
    site: Site,
    clock: Arc<SetClock>,
    catalog: Arc<dyn Catalog>,
}

impl World {
    async fn new(volumes: &[&str]) -> Self {
        let mut site = Site::on(Arc::new(object_store::memory::InMemory::new())).await;
        for volume in volumes {
            site.add_volume(volume, 4 * MIB).await;
        }
        let clock = Arc::new(SetClock { machine: SystemClock::new(), wall: AtomicU64::new(BEGIN) });
        site.ports.clock = Arc::clone(&clock) as Arc<dyn Clock>;
        let catalog = site.catalog().await;
        Self { site, clock, catalog }
    }

    fn now(&self) -> WallTime {
        self.clock.wall()
    }

    /// Sets the wall clock, and has groups looked at.
    fn set(&self, engine: &Engine, since_begin: u64) {
        self.clock.wall.store(BEGIN + since_begin, Ordering::Relaxed);
        engine.groups_changed();
    }

    async fn group(&self, engine: &Engine, name: &str, spec: PolicySpec) -> GroupRow {
        let now = self.now();
        let group = GroupRow {
            id: GroupId::fresh(&*self.site.ports.clock, &*self.site.ports.entropy),
            name: group_name(name),
            policy: Policy::new(&spec, now).unwrap().encode(),
            paused: false,
            created_at: now,
            handled_through: now,
        };
        self.catalog.create_group(&group).await.unwrap();
        engine.groups_changed();
        group
    }

    async fn runs(&self, group: &GroupRow) -> Vec<GroupRunRow> {
        self.catalog.group_runs(group.id, 1000).await.unwrap()
    }

    /// Waits until the group has so many runs and the last one has ended.
    async fn ran(&self, group: &GroupRow, count: usize) -> Vec<GroupRunRow> {
        for _ in 0..3000 {
            let runs = self.runs(group).await;
            assert!(runs.len() <= count, "one run too many: {:?}", runs[0]);
            if runs.len() == count && runs.iter().all(|run| run.ended.is_some()) {
                return runs;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} runs, not {count}", self.runs(group).await.len());
    }

    /// Fails if the group runs again although its schedule was looked at.
    async fn still_ran(&self, group: &GroupRow, count: usize) {
        tokio::time::sleep(Duration::from_millis(400)).await;
        self.ran(group, count).await;
    }

    async fn events(&self, kind: &str) -> Vec<String> {
        let events = self.catalog.events(1000).await.unwrap();
        events.into_iter().filter(|event| event.kind == kind).map(|event| event.text).collect()
    }
}

fn group_name(name: &str) -> GroupName {
    name.parse().unwrap()
}

fn hourly(patterns: &[&str], keep: &str) -> PolicySpec {
    PolicySpec {
        matching: patterns.iter().map(|&pattern| pattern.to_owned()).collect(),
        every: Some("1h".to_owned()),
        timezone: "UTC".to_owned(),
        keep: keep.to_owned(),
        ..PolicySpec::default()
    }
}

async fn names(engine: &Engine, volume: &str) -> Vec<String> {
    let snapshots = engine.snapshots(volume).await.unwrap();
    snapshots.into_iter().map(|snapshot| snapshot.name.to_string()).collect()
}

fn outcome(run: &GroupRunRow) -> RunOutcome {
    run.ended.unwrap().1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_runs_when_it_is_due_and_keeps_what_its_rules_say() {
    let world = World::new(&["db-1", "db-2", "web"]).await;
    let engine = world.site.start().await;
    let group = world.group(&engine, "hourly", hourly(&["db-*"], "2")).await;
    world.still_ran(&group, 0).await;
    for hour in 0..4 {
        world.set(&engine, HOUR / 2 + hour * HOUR + 1000);
        let runs = world.ran(&group, usize::try_from(hour).unwrap() + 1).await;
        assert_eq!((outcome(&runs[0]), runs[0].missed, runs[0].members.len()), (RunOutcome::Complete, 0, 2));
        assert_eq!(runs[0].planned.unwrap().unix_millis(), BEGIN + HOUR / 2 + hour * HOUR);
        engine.destage().await.unwrap();
    }
    // What was in the log alone when the last run pruned goes with the next one.
    engine.run_group(&group.name).await.unwrap();
    let expected = ["hourly-20261128T190001Z", "hourly-20261128T190001Z-2"];
    for volume in ["db-1", "db-2"] {
        assert_eq!(names(&engine, volume).await, expected);
    }
    assert!(names(&engine, "web").await.is_empty());
    // New volumes are matched at the next run.
    engine.create_volume(&world.site.new_volume("db-3", MIB)).await.unwrap();
    let run = engine.run_group(&group.name).await.unwrap();
    assert_eq!((run.members.len(), run.planned, outcome(&run)), (3, None, RunOutcome::Complete));
    assert_eq!(world.events("group-run").await.len(), 6);
    let counters = engine.status().groups;
    assert_eq!((counters.runs_complete, counters.missed, counters.prune_failures), (6, 0, 0));
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn instants_that_were_missed_are_caught_up_with_by_one_run() {
    let world = World::new(&["disk"]).await;
    let engine = world.site.start().await;
    let group = world.group(&engine, "g", hourly(&["disk"], "10")).await;
    engine.shutdown().await.unwrap();
    drop(engine);
    world.clock.wall.store(BEGIN + 5 * HOUR, Ordering::Relaxed);
    let engine = world.site.start().await;
    let runs = world.ran(&group, 1).await;
    assert_eq!((outcome(&runs[0]), runs[0].missed), (RunOutcome::Complete, 4));
    assert_eq!(names(&engine, "disk").await, ["g-20261128T203000Z"]);
    assert!(world.events("group-run").await[0].contains("4 earlier runs were missed"));
    world.still_ran(&group, 1).await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_back_runs_nothing_twice_and_silences_nothing() {
    let world = World::new(&["disk"]).await;
    let engine = world.site.start().await;
    let group = world.group(&engine, "g", hourly(&["disk"], "10")).await;
    world.set(&engine, HOUR / 2);
    world.ran(&group, 1).await;
    // A little: nothing happens until the time is reached again.
    world.set(&engine, HOUR / 2 - 60_000);
    world.still_ran(&group, 1).await;
    world.set(&engine, HOUR / 2 + 1000);
    world.still_ran(&group, 1).await;
    assert!(world.events("group-clock").await.is_empty());
    // More: it goes on from there, and the instant that ran is not run again.
    world.set(&engine, HOUR / 4);
    world.still_ran(&group, 1).await;
    let told = world.events("group-clock").await;
    assert!(told.len() == 1 && told[0].contains("the clock was set back"), "{told:?}");
    world.set(&engine, HOUR / 2 + 2000);
    world.still_ran(&group, 1).await;
    world.set(&engine, HOUR / 2 + HOUR);
    world.ran(&group, 2).await;
    // A year ahead and back: one run catches up, and the schedule goes on as if nothing had been.
    world.set(&engine, 365 * 24 * HOUR);
    let ahead = world.ran(&group, 3).await;
    assert!(ahead[0].missed > 8000, "{}", ahead[0].missed);
    world.set(&engine, HOUR / 2 + HOUR + 5000);
    world.still_ran(&group, 3).await;
    world.set(&engine, HOUR / 2 + 2 * HOUR);
    assert_eq!(outcome(&world.ran(&group, 4).await[0]), RunOutcome::Complete);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_cannot_have_a_snapshot_leaves_the_others_theirs() {
    let world = World::new(&["a", "b", "c"]).await;
    let engine = world.site.start().await;
    let group = world.group(&engine, "g", hourly(&["*"], "10")).await;
    // One has the name already.
    let taken: SnapshotName = "g-20261128T153000Z".parse().unwrap();
    engine.create_snapshot("b", &taken).await.unwrap();
    let run = engine.run_group(&group.name).await.unwrap();
    assert_eq!(outcome(&run), RunOutcome::Partial);
    let of = |run: &GroupRunRow, name: &str| {
        run.members.iter().find(|member| member.volume_name.as_str() == name).unwrap().clone()
    };
    assert_eq!([of(&run, "a").state, of(&run, "c").state], [MemberState::Taken; 2]);
    let failed = of(&run, "b");
    assert_eq!(failed.state, MemberState::Failed);
    assert!(failed.error.unwrap().contains("exists already"));
    // One is another gateway's.
    let volume = engine.volume("c").unwrap().id();
    seize(&world.site, volume, "thief").await;
    let lost = engine.volume("c").unwrap();
    for _ in 0..200 {
        if lost.status().condition != "serving" {
            break;
        }
        let _ = lost.write(0, Bytes::from(vec![1; 4096]), WriteFlags { fua: true }).await;
        engine.destage().await.ok();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.set(&engine, 1000);
    let run = engine.run_group(&group.name).await.unwrap();
    assert_eq!(outcome(&run), RunOutcome::Partial);
    assert_eq!([of(&run, "a").state, of(&run, "b").state], [MemberState::Taken; 2]);
    assert_eq!(of(&run, "c").state, MemberState::Failed);
    let told = world.events("group-run-partial").await;
    assert!(told[0].contains("2 of 3 snapshots taken; c: "), "{told:?}");
    engine.abandon().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_matches_nothing_says_so() {
    let world = World::new(&["disk"]).await;
    let engine = world.site.start().await;
    let group = world.group(&engine, "g", hourly(&["db-*"], "10")).await;
    world.set(&engine, HOUR);
    let runs = world.ran(&group, 1).await;
    assert_eq!(outcome(&runs[0]), RunOutcome::Nothing);
    assert_eq!(
        world.events("group-matches-nothing").await,
        ["ran and matched no volume: nothing is protected"]
    );
    assert_eq!(engine.status().groups.runs_nothing, 1);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_deletes_a_locked_snapshot_before_its_time() {
    let world = World::new(&["disk"]).await;
    let engine = world.site.start().await;
    let spec = PolicySpec { lock: Some("2h".to_owned()), every: None, ..hourly(&["disk"], "1") };
    let group = world.group(&engine, "g", spec).await;
    let first = engine.run_group(&group.name).await.unwrap().members[0].snapshot_name.clone();
    // In the log alone, and in the catalog.
    for _ in 0..2 {
        let listed = engine.snapshots("disk").await.unwrap();
        assert_eq!(listed[0].locked_until.unwrap().unix_millis(), BEGIN + 2 * HOUR);
        let refused = engine.delete_snapshot("disk", &first).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Conflict);
        assert!(refused.to_string().contains("is locked until 2026-11-28 17:30:00Z"), "{refused}");
        let refused = engine.delete_volume("disk", true).await.unwrap_err();
        assert!(refused.to_string().contains("is locked until"), "{refused}");
        engine.destage().await.unwrap();
    }
    // Retention leaves it alone, also when nothing else is left to delete, and so does the end of the group.
    let second = engine.run_group(&group.name).await.unwrap();
    assert_eq!((second.pruned, second.prune_error), (0, None));
    assert_eq!(names(&engine, "disk").await.len(), 2);
    engine.delete_group(&group.name).await.unwrap();
    assert!(engine.delete_snapshot("disk", &first).await.is_err());
    world.set(&engine, 2 * HOUR);
    engine.delete_snapshot("disk", &first).await.unwrap();
    engine.delete_volume("disk", true).await.unwrap();
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_groups_of_one_volume_prune_their_own() {
    let world = World::new(&["disk"]).await;
    let engine = world.site.start().await;
    let by_hand = |keep: &str| PolicySpec { every: None, ..hourly(&["disk"], keep) };
    let (few, many) =
        (world.group(&engine, "few", by_hand("1")).await, world.group(&engine, "many", by_hand("3")).await);
    engine.create_snapshot("disk", &"few-mine".parse().unwrap()).await.unwrap();
    for hour in 0..5 {
        world.set(&engine, hour * HOUR);
        for group in [&few, &many] {
            assert_eq!(outcome(&engine.run_group(&group.name).await.unwrap()), RunOutcome::Complete);
            engine.destage().await.unwrap();
        }
    }
    let expected = [
        "few-mine",
        "many-20261128T173000Z",
        "many-20261128T183000Z",
        "few-20261128T193000Z",
        "many-20261128T193000Z",
    ];
    assert_eq!(names(&engine, "disk").await, expected);
    // One that is read stays, is told of, and goes after the next run.
    let view = engine.open_snapshot("disk", &"few-20261128T193000Z".parse().unwrap()).await.unwrap();
    world.set(&engine, 5 * HOUR);
    let run = engine.run_group(&few.name).await.unwrap();
    assert!(run.prune_error.unwrap().contains("disk@few-20261128T193000Z could not be deleted"));
    assert_eq!(world.events("group-retention").await.len(), 1);
    drop(view);
    engine.destage().await.unwrap();
    world.set(&engine, 6 * HOUR);
    let run = engine.run_group(&few.name).await.unwrap();
    assert_eq!((run.pruned, run.prune_error), (2, None));
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_holds_schedules_back_and_nobody_else() {
    let world = World::new(&["disk"]).await;
    let engine = world.site.start().await;
    let spec = PolicySpec { window: Some("22:00-06:00".to_owned()), ..hourly(&["disk"], "10") };
    let group = world.group(&engine, "g", spec).await;
    world.set(&engine, 5 * HOUR);
    world.still_ran(&group, 0).await;
    engine.run_group(&group.name).await.unwrap();
    // 22:00 and on, while nothing ran; then it is noon, and what was missed waits for the evening.
    engine.shutdown().await.unwrap();
    drop(engine);
    world.clock.wall.store(BEGIN + 20 * HOUR, Ordering::Relaxed);
    let engine = world.site.start().await;
    world.still_ran(&group, 1).await;
    world.set(&engine, 30 * HOUR + HOUR / 2);
    let runs = world.ran(&group, 2).await;
    // 22:00 to 05:00 of the night before, and this 22:00.
    assert_eq!((runs[0].missed, runs[0].planned.unwrap().unix_millis()), (8, BEGIN + 30 * HOUR + HOUR / 2));
    engine.shutdown().await.unwrap();
}

/// The intent of a run of `disk` that began in a process which is gone.
async fn intent(world: &World, group: &GroupRow, snapshot: SnapshotId) -> GroupRunRow {
    let (clock, entropy) = (&*world.site.ports.clock, &*world.site.ports.entropy);
    let run = GroupRunRow {
        id: GroupRunId::fresh(clock, entropy),
        group: group.id,
        gateway: world.site.gateway,
        label: "20261128T160000Z".to_owned(),
        planned: Some(WallTime::from_unix_millis(BEGIN + HOUR / 2)),
        missed: 0,
        began_at: WallTime::from_unix_millis(BEGIN + HOUR / 2),
        ended: None,
        error: None,
        pruned: 0,
        prune_error: None,
        members: vec![GroupMember {
            volume: world.catalog.volume_by_name(&"disk".parse().unwrap()).await.unwrap().id,
            volume_name: "disk".parse().unwrap(),
            snapshot,
            snapshot_name: "g-20261128T160000Z".parse().unwrap(),
            state: MemberState::Planned,
            error: None,
        }],
    };
    let until = Some(WallTime::from_unix_millis(BEGIN + 100 * HOUR));
    world.catalog.begin_group_run(&run, until, run.began_at).await.unwrap();
    run
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_a_crash_ended_before_its_snapshots_is_told_of_and_run_again() {
    let world = World::new(&["disk"]).await;
    let engine = world.site.start().await;
    let group = world.group(&engine, "g", hourly(&["disk"], "10")).await;
    world.still_ran(&group, 0).await;
    engine.abandon().await;
    drop(engine);
    let fresh = SnapshotId::fresh(&*world.site.ports.clock, &*world.site.ports.entropy);
    let cut_short = intent(&world, &group, fresh).await;
    world.clock.wall.store(BEGIN + HOUR / 2 + 30_000, Ordering::Relaxed);
    let engine = world.site.start().await;
    let runs = world.ran(&group, 2).await;
    assert_eq!((runs[1].id, outcome(&runs[1])), (cut_short.id, RunOutcome::Failed));
    let reason = runs[1].members[0].error.as_deref().unwrap();
    assert_eq!(reason, "the gateway ended before its snapshot was taken");
    assert_eq!((outcome(&runs[0]), runs[0].planned), (RunOutcome::Complete, cut_short.planned));
    // Its lock is gone with it.
    let locks = world.catalog.snapshot_locks(runs[0].members[0].volume).await.unwrap();
    assert_eq!(locks, []);
    world.still_ran(&group, 2).await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_a_crash_ended_after_its_snapshots_is_complete() {
    let mut world = World::new(&["disk"]).await;
    world.site.config.batch_age = Duration::from_hours(1);
    let engine = world.site.start().await;
    let group = world.group(&engine, "g", hourly(&["disk"], "10")).await;
    world.still_ran(&group, 0).await;
    // In the log alone.
    let name: SnapshotName = "g-20261128T160000Z".parse().unwrap();
    let snapshot = engine.create_snapshot("disk", &name).await.unwrap();
    engine.abandon().await;
    drop(engine);
    intent(&world, &group, snapshot).await;
    world.clock.wall.store(BEGIN + HOUR / 2 + 30_000, Ordering::Relaxed);
    let engine = world.site.start().await;
    let runs = world.ran(&group, 1).await;
    assert_eq!((outcome(&runs[0]), runs[0].members[0].state), (RunOutcome::Complete, MemberState::Taken));
    assert!(engine.delete_snapshot("disk", &name).await.unwrap_err().to_string().contains("is locked"));
    // The instant is dealt with.
    world.still_ran(&group, 1).await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_without_schedules_runs_only_what_it_is_told_to() {
    let mut world = World::new(&["disk"]).await;
    world.site.config.run_schedules = false;
    let engine = world.site.start().await;
    let group = world.group(&engine, "g", hourly(&["disk"], "10")).await;
    world.set(&engine, 5 * HOUR);
    world.still_ran(&group, 0).await;
    engine.run_group(&group.name).await.unwrap();
    let unknown = engine.run_group(&group_name("none")).await.unwrap_err();
    assert!(
        matches!(&unknown, EngineError::Catalog(_)) && unknown.kind() == ErrorKind::NotFound,
        "{unknown}"
    );
    engine.shutdown().await.unwrap();
}

/// Counters: one is written to the first volume, and after that is acknowledged to the second.
async fn count_until(stop: Arc<AtomicBool>, engine: Arc<Engine>) {
    let (first, second) = (engine.volume("a").unwrap(), engine.volume("b").unwrap());
    let mut counter = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        counter += 1;
        for volume in [&first, &second] {
            let bytes = Bytes::from(counter.to_le_bytes().repeat(512));
            volume.write(0, bytes, WriteFlags::default()).await.unwrap();
        }
    }
}

async fn counter_of(engine: &Engine, volume: &str, snapshot: &SnapshotName) -> u64 {
    let view = engine.open_snapshot(volume, snapshot).await.unwrap();
    let bytes = view.read(0, 8).await.unwrap().to_vec();
    u64::from_le_bytes(bytes.try_into().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_cut_at_one_moment_of_dependent_writes() {
    let world = World::new(&["a", "b"]).await;
    let engine = world.site.start().await;
    let group = world.group(&engine, "g", PolicySpec { every: None, ..hourly(&["*"], "all") }).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(count_until(Arc::clone(&stop), Arc::clone(&engine)));
    let mut cuts = Vec::new();
    for _ in 0..120 {
        let run = engine.run_group(&group.name).await.unwrap();
        assert_eq!(outcome(&run), RunOutcome::Complete, "{run:?}");
        cuts.push(run.members[0].snapshot_name.clone());
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    let mut before = 0;
    for cut in &cuts {
        let (first, second) = (counter_of(&engine, "a", cut).await, counter_of(&engine, "b", cut).await);
        assert!(second <= first && first <= second + 1, "{cut}: {first} and then {second}");
        assert!(first >= before, "{cut}: {first} after {before}");
        before = first;
    }
    assert!(before > 0, "nothing was written: the test does not reach its point");
    engine.shutdown().await.unwrap();
}
