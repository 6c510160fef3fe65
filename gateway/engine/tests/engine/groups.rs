//! Protection groups run when they are due, whatever the clock does, and keep and delete what their rules say.

#![expect(
    clippy::disallowed_methods,
    reason = "tests wait on the machine's own clock and spawn what they join"
)]

use crate::support::{MIB, Site, seize};
use bytes::Bytes;
use cairn_engine::{Engine, EngineError, SnapshotStatus};
use cairn_metadata::{
    Catalog, EventRow, GroupChange, GroupMember, GroupName, GroupRow, GroupRunEnd, GroupRunRow, MemberState,
    RunOutcome, SnapshotName,
};
use cairn_model::{
    BlockDevice, Clock, ErrorKind, GroupId, GroupRunId, Kinded, Monotonic, SnapshotId, SystemClock, WallTime,
    WriteFlags,
};
use cairn_policy::{Policy, PolicySpec};
use cairn_segment_writer::RequestPolicy;
use cairn_segment_writer::testing::{Fault, FaultStore};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

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
        Self::on(Site::on(Arc::new(object_store::memory::InMemory::new())).await, volumes).await
    }

    /// With a pool that is away while the flag is set: segments cannot be written.
    async fn with_switch(volumes: &[&str]) -> (Self, Arc<AtomicBool>) {
        let away = Arc::new(AtomicBool::new(false));
        let is_away = Arc::clone(&away);
        let store = FaultStore::new(Arc::new(object_store::memory::InMemory::new()), move |request| {
            (request.key.contains("segments") && is_away.load(Ordering::Relaxed)).then_some(Fault::Connection)
        });
        let mut site = Site::on(Arc::new(store)).await;
        site.policy = RequestPolicy {
            put_give_up: Duration::from_secs(1),
            backoff_first: Duration::from_millis(5),
            backoff_max: Duration::from_millis(50),
            ..RequestPolicy::default()
        };
        (Self::on(site, volumes).await, away)
    }

    async fn on(mut site: Site, volumes: &[&str]) -> Self {
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

    /// Waits until the group has so many runs, of which the last one is under way.
    async fn waits(&self, group: &GroupRow, count: usize) {
        for _ in 0..1000 {
            if self.runs(group).await.len() == count {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let runs = self.runs(group).await;
        assert_eq!((runs.len(), runs[0].ended), (count, None), "it waits");
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
    let mut world = World::new(&["db-1", "db-2", "web"]).await;
    world.site.config.batch_age = Duration::from_hours(1);
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
    // What is in the log alone when a run prunes does not count, so there may be one more.
    engine.run_group(&group.name).await.unwrap();
    let expected = ["hourly-20261128T190001Z", "hourly-20261128T190001Z-2"];
    for volume in ["db-1", "db-2"] {
        let left = names(&engine, volume).await;
        assert!(left.len() <= 3 && left.ends_with(&expected.map(str::to_owned)), "{left:?}");
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
        let by_name = engine.snapshot("disk", &first).await.unwrap();
        // It may have been committed, or settled, in between.
        let (phase, logical_bytes) = (listed[0].phase, listed[0].logical_bytes);
        let by_name = SnapshotStatus { phase, logical_bytes, ..by_name };
        assert_eq!(by_name, listed[0], "by its name as in the list");
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
    // One more of each, where the last one was in the log alone when its run pruned.
    let left = names(&engine, "disk").await;
    let of = |group: &str| left.iter().filter_map(|name| name.strip_prefix(group)).collect::<Vec<_>>();
    let (few_left, many_left) = (of("few-2026"), of("many-2026"));
    assert!(left.iter().any(|name| name == "few-mine"), "{left:?}");
    assert!(few_left.len() <= 2 && few_left.ends_with(&["1128T193000Z"]), "{left:?}");
    let last = ["1128T173000Z", "1128T183000Z", "1128T193000Z"];
    assert!(many_left.len() <= 4 && many_left.ends_with(&last), "{left:?}");
    // One that is read stays, is told of, and goes when it is read no more.
    let view = engine.open_snapshot("disk", &"few-20261128T193000Z".parse().unwrap()).await.unwrap();
    for hour in [5, 6] {
        engine.destage().await.unwrap();
        world.set(&engine, hour * HOUR);
        engine.run_group(&few.name).await.unwrap();
    }
    let run = &world.runs(&few).await[0];
    let told = run.prune_error.clone().unwrap();
    assert!(told.contains("disk@few-20261128T193000Z could not be deleted"), "{told}");
    assert!(!world.events("group-retention").await.is_empty());
    drop(view);
    engine.destage().await.unwrap();
    world.set(&engine, 7 * HOUR);
    let run = engine.run_group(&few.name).await.unwrap();
    assert!(run.pruned >= 1 && run.prune_error.is_none(), "{run:?}");
    engine.shutdown().await.unwrap();
}

async fn write(engine: &Engine, volume: &str) {
    let volume = engine.volume(volume).unwrap();
    volume.write(0, Bytes::from(vec![7; 4096]), WriteFlags::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_durable_is_deleted_for_what_may_not_be_there() {
    let (world, away) = World::with_switch(&["disk"]).await;
    let engine = world.site.start().await;
    let group = world.group(&engine, "g", PolicySpec { every: None, ..hourly(&["disk"], "1") }).await;
    let first = engine.run_group(&group.name).await.unwrap().members[0].snapshot;
    engine.destage().await.unwrap();
    // Three that are in the log alone; then one of which nobody knows whether it was taken.
    away.store(true, Ordering::Relaxed);
    for hour in 1..=3 {
        write(&engine, "disk").await;
        world.set(&engine, hour * HOUR);
        let run = engine.run_group(&group.name).await.unwrap();
        assert_eq!((outcome(&run), run.pruned, run.prune_error), (RunOutcome::Complete, 0, None));
    }
    let fresh = SnapshotId::fresh(&*world.site.ports.clock, &*world.site.ports.entropy);
    let run = intent(&world, &group, fresh).await;
    let end = GroupRunEnd {
        run: run.id,
        at: world.now(),
        outcome: RunOutcome::Failed,
        error: None,
        members: vec![(fresh, MemberState::Unknown, Some("late".to_owned()))],
        handled_through: None,
    };
    let told = EventRow {
        at: world.now(),
        kind: "test".to_owned(),
        subject: "group g".to_owned(),
        text: String::new(),
    };
    world.catalog.end_group_run(&end, &told).await.unwrap();
    world.set(&engine, 4 * HOUR);
    engine.run_group(&group.name).await.unwrap();
    let volume = engine.volume("disk").unwrap().id();
    let committed = world.catalog.snapshots(volume).await.unwrap();
    assert_eq!(committed.iter().map(|row| row.id).collect::<Vec<_>>(), [first]);
    assert_eq!(names(&engine, "disk").await.len(), 5);
    // The pool is back: what it has now counts, and what is not there does not.
    away.store(false, Ordering::Relaxed);
    engine.destage().await.unwrap();
    world.set(&engine, 5 * HOUR);
    let run = engine.run_group(&group.name).await.unwrap();
    assert!(run.pruned >= 4 && run.prune_error.is_none(), "{run:?}");
    // Whether the last one was in the catalog then or not.
    let left = names(&engine, "disk").await;
    assert!(left.len() <= 2 && left.last().unwrap() == "g-20261128T203000Z", "{left:?}");
    engine.shutdown().await.unwrap();
}

/// Takes the pool away, and has somebody hold the turn of administration until it is back: a run begins and waits.
async fn occupy(engine: &Arc<Engine>, away: &AtomicBool) -> tokio::task::JoinHandle<Result<(), EngineError>> {
    away.store(true, Ordering::Relaxed);
    write(engine, "other").await;
    engine.create_snapshot("other", &"mine".parse().unwrap()).await.unwrap();
    let engine = Arc::clone(engine);
    let deleting = tokio::spawn(async move { engine.delete_volume("other", false).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    deleting
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_by_what_its_group_says_when_it_comes_to_it() {
    let (mut world, away) = World::with_switch(&["disk", "other"]).await;
    world.site.config.read_deadline = Duration::from_secs(20);
    let engine = world.site.start().await;
    let one = world.group(&engine, "one", hourly(&["disk"], "all")).await;
    let two = world.group(&engine, "two", hourly(&["disk"], "1")).await;
    for _ in 0..3 {
        engine.run_group(&one.name).await.unwrap();
    }
    engine.destage().await.unwrap();
    let keep = |keep: &str| GroupChange {
        policy: Some(Policy::new(&hourly(&["disk"], keep), world.now()).unwrap().encode()),
        ..GroupChange::default()
    };
    world.catalog.update_group(one.id, &keep("1")).await.unwrap();
    let deleting = occupy(&engine, &away).await;
    world.set(&engine, HOUR / 2);
    world.waits(&one, 4).await;
    world.catalog.update_group(one.id, &keep("all")).await.unwrap();
    let change = GroupChange { paused: Some(true), ..GroupChange::default() };
    world.catalog.update_group(two.id, &change).await.unwrap();
    away.store(false, Ordering::Relaxed);
    assert!(deleting.await.unwrap().is_err(), "it has a snapshot");
    let runs = world.ran(&one, 4).await;
    assert_eq!((outcome(&runs[0]), runs[0].pruned), (RunOutcome::Complete, 0));
    world.still_ran(&two, 0).await;
    assert_eq!(names(&engine, "disk").await.len(), 4);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_ends_begins_no_run_and_prunes_no_more() {
    let (mut world, away) = World::with_switch(&["disk", "other"]).await;
    world.site.config.read_deadline = Duration::from_secs(20);
    let engine = world.site.start().await;
    let one = world.group(&engine, "one", hourly(&["disk"], "all")).await;
    let two = world.group(&engine, "two", hourly(&["disk"], "1")).await;
    for _ in 0..3 {
        engine.run_group(&one.name).await.unwrap();
    }
    engine.destage().await.unwrap();
    let fewer = Policy::new(&hourly(&["disk"], "1"), world.now()).unwrap().encode();
    let change = GroupChange { policy: Some(fewer), ..GroupChange::default() };
    world.catalog.update_group(one.id, &change).await.unwrap();
    let deleting = occupy(&engine, &away).await;
    world.set(&engine, HOUR / 2);
    world.waits(&one, 4).await;
    let ending = tokio::spawn({
        let engine = Arc::clone(&engine);
        async move { engine.shutdown().await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    away.store(false, Ordering::Relaxed);
    assert!(deleting.await.unwrap().is_err(), "it has a snapshot");
    ending.await.unwrap().unwrap();
    let runs = world.runs(&one).await;
    assert_eq!((outcome(&runs[0]), runs[0].pruned), (RunOutcome::Complete, 0));
    assert!(world.runs(&two).await.is_empty());
    let disk = runs[0].members[0].volume;
    assert_eq!(world.catalog.snapshots(disk).await.unwrap().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_read_keeps_none_of_the_others() {
    let mut world = World::new(&["disk"]).await;
    world.site.config.batch_age = Duration::from_hours(1);
    let engine = world.site.start().await;
    let group = world.group(&engine, "g", PolicySpec { every: None, ..hourly(&["disk"], "all") }).await;
    for hour in 0..6 {
        world.set(&engine, hour * HOUR);
        engine.run_group(&group.name).await.unwrap();
    }
    engine.destage().await.unwrap();
    let view = engine.open_snapshot("disk", &"g-20261128T163000Z".parse().unwrap()).await.unwrap();
    let fewer = Policy::new(&PolicySpec { every: None, ..hourly(&["disk"], "2") }, world.now()).unwrap();
    let change = GroupChange { policy: Some(fewer.encode()), ..GroupChange::default() };
    world.catalog.update_group(group.id, &change).await.unwrap();
    world.set(&engine, 6 * HOUR);
    let run = engine.run_group(&group.name).await.unwrap();
    // And one more if the last one was in the catalog then.
    assert!((3..=4).contains(&run.pruned), "{}", run.pruned);
    assert!(run.prune_error.unwrap().starts_with("disk@g-20261128T163000Z could not be deleted: "));
    drop(view);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_gateway_has_is_told_of_once_with_what_is_left() {
    let mut world = World::new(&["disk", "mine"]).await;
    world.site.config.batch_age = Duration::from_hours(1);
    let engine = world.site.start().await;
    let group = world.group(&engine, "g", PolicySpec { every: None, ..hourly(&["*"], "all") }).await;
    for hour in 0..6 {
        world.set(&engine, hour * HOUR);
        engine.run_group(&group.name).await.unwrap();
    }
    engine.shutdown().await.unwrap();
    drop(engine);
    let other = world.site.another_gateway("other").await;
    let volume = world.catalog.volume_by_name(&"disk".parse().unwrap()).await.unwrap().id;
    world.catalog.acquire_lease(volume, other, world.now(), Duration::from_hours(1), None).await.unwrap();
    let fewer = Policy::new(&PolicySpec { every: None, ..hourly(&["*"], "2") }, world.now()).unwrap();
    let change = GroupChange { policy: Some(fewer.encode()), ..GroupChange::default() };
    world.catalog.update_group(group.id, &change).await.unwrap();
    let engine = world.site.start().await;
    let run = engine.run_group(&group.name).await.unwrap();
    assert!(outcome(&run) == RunOutcome::Partial && (4..=5).contains(&run.pruned), "{run:?}");
    let told = run.prune_error.unwrap();
    assert!(told.contains("does not serve volume disk") && told.ends_with("(and 3 more are left)"), "{told}");
    assert_eq!(engine.status().groups.prune_failures, 1);
    engine.abandon().await;
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
