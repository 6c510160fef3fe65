//! Protection groups: their rows, their runs from intent to end, and what is remembered.

use super::{CatalogStore, Held, World, at, blocks, refusal};
use crate::{
    EVENTS_MAX, EventRow, GROUP_RUNS_MAX, GroupChange, GroupMember, GroupName, GroupRow, GroupRunEnd,
    GroupRunRow, MemberState, NewSnapshot, RunOutcome,
};
use cairn_model::{ErrorKind, GroupId, GroupRunId, SnapshotId, WallTime};

pub(super) fn event(text: &str) -> EventRow {
    EventRow { at: at(9), kind: "run".to_owned(), subject: "group g".to_owned(), text: text.to_owned() }
}

pub(super) fn new_group(world: &World, name: &str) -> GroupRow {
    GroupRow {
        id: GroupId::from_bytes(world.identity()),
        name: GroupName::new(name).unwrap(),
        policy: "{\"a\":1}".to_owned(),
        paused: false,
        created_at: at(5),
        handled_through: at(6),
    }
}

pub(super) async fn group(world: &World, name: &str) -> GroupRow {
    let group = new_group(world, name);
    world.catalog.create_group(&group).await.unwrap();
    group
}

/// A run that is to take `snapshots`, of the volumes that they are with.
pub(super) fn run(
    world: &World,
    group: &GroupRow,
    label: &str,
    snapshots: &[(&Held, &NewSnapshot)],
) -> GroupRunRow {
    let member = |(held, snapshot): &(&Held, &NewSnapshot)| GroupMember {
        volume: held.volume,
        volume_name: "as-it-was-called".parse().unwrap(),
        snapshot: snapshot.id,
        snapshot_name: snapshot.name.clone(),
        state: MemberState::Planned,
        error: None,
    };
    GroupRunRow {
        id: GroupRunId::from_bytes(world.identity()),
        group: group.id,
        gateway: world.gateway,
        label: label.to_owned(),
        planned: Some(at(100)),
        missed: 3,
        began_at: at(101),
        ended: None,
        error: None,
        pruned: 0,
        prune_error: None,
        members: snapshots.iter().map(member).collect(),
    }
}

/// The end of a run in which every member came to `state`.
pub(super) fn ended(run: &GroupRunRow, outcome: RunOutcome, state: MemberState) -> GroupRunEnd {
    let error = (state == MemberState::Failed).then(|| "it was fenced".to_owned());
    let member = |member: &GroupMember| (member.snapshot, state, error.clone());
    GroupRunEnd {
        run: run.id,
        at: at(110),
        outcome,
        error: error.clone(),
        members: run.members.iter().map(member).collect(),
        handled_through: None,
    }
}

async fn runs(world: &World, group: &GroupRow) -> Vec<GroupRunRow> {
    world.catalog.group_runs(group.id, 1000).await.unwrap()
}

async fn counted(world: &World, group: &GroupRow) -> Vec<SnapshotId> {
    let snapshots = world.catalog.group_snapshots(group.id).await.unwrap();
    snapshots.into_iter().map(|snapshot| snapshot.snapshot).collect()
}

pub async fn a_group_comes_back_and_changes(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (b, a) = (group(&world, "b").await, group(&world, "a").await);
    assert_eq!(world.catalog.groups().await.unwrap(), [a.clone(), b.clone()]);
    // Each by itself, and nothing else with it.
    let nothing = GroupChange::default;
    let catalog = &world.catalog;
    catalog.update_group(a.id, &GroupChange { policy: Some("{}".to_owned()), ..nothing() }).await.unwrap();
    let mut changed = GroupRow { policy: "{}".to_owned(), ..a.clone() };
    assert_eq!(catalog.group_by_name(&a.name).await.unwrap(), changed);
    catalog.update_group(a.id, &GroupChange { paused: Some(true), ..nothing() }).await.unwrap();
    changed.paused = true;
    assert_eq!(catalog.group_by_name(&a.name).await.unwrap(), changed);
    let through = Some(at(1000));
    catalog.update_group(a.id, &GroupChange { handled_through: through, ..nothing() }).await.unwrap();
    changed.handled_through = at(1000);
    catalog.update_group(a.id, &nothing()).await.unwrap();
    let world = world.reopened(store).await;
    assert_eq!(world.catalog.group_by_name(&a.name).await.unwrap(), changed);
    assert_eq!(world.catalog.group_by_name(&b.name).await.unwrap(), b);

    let namesake = refusal(world.catalog.create_group(&new_group(&world, "a")).await);
    assert_eq!(namesake, (ErrorKind::Conflict, "group a exists already: choose another name".to_owned()));
    let twin = GroupRow { name: GroupName::new("c").unwrap(), ..a.clone() };
    assert_eq!(refusal(world.catalog.create_group(&twin).await).0, ErrorKind::Conflict);

    world.catalog.delete_group(a.id).await.unwrap();
    assert_eq!(world.catalog.groups().await.unwrap(), [b]);
    assert_eq!(refusal(world.catalog.update_group(a.id, &nothing()).await).0, ErrorKind::NotFound);
    assert_eq!(refusal(world.catalog.delete_group(a.id).await).0, ErrorKind::NotFound);
    let unknown = refusal(world.catalog.group_by_name(&a.name).await);
    assert_eq!(unknown, (ErrorKind::NotFound, "there is no group a".to_owned()));
    world.catalog.create_group(&a).await.unwrap();
}

pub async fn a_run_is_an_intent_until_it_ends(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (held, group) = (world.held_volume("a").await, group(&world, "g").await);
    let (first, second) = (world.new_snapshot("s-1"), world.new_snapshot("s-2"));
    let begun = run(&world, &group, "one", &[(&held, &first), (&held, &second)]);
    // As often as the reply is lost.
    for _ in 0..2 {
        world.catalog.begin_group_run(&begun, None, at(100)).await.unwrap();
    }
    let world = world.reopened(store).await;
    assert_eq!(world.catalog.group_by_name(&group.name).await.unwrap().handled_through, at(100));
    assert_eq!(world.catalog.unfinished_group_runs().await.unwrap(), std::slice::from_ref(&begun));
    assert_eq!(runs(&world, &group).await, std::slice::from_ref(&begun));
    // Nothing of it is counted on before it has ended.
    assert_eq!(counted(&world, &group).await, []);

    let mut end = ended(&begun, RunOutcome::Partial, MemberState::Taken);
    end.members[1] = (second.id, MemberState::Failed, Some("no".to_owned()));
    end.handled_through = Some(at(99));
    for round in 0..2 {
        world.catalog.end_group_run(&end, &event("one ended")).await.unwrap();
        // Only the first time counts.
        end.outcome = RunOutcome::Failed;
        end.handled_through = Some(at(round));
    }
    let found = runs(&world, &group).await;
    assert_eq!(found[0].ended, Some((at(110), RunOutcome::Partial)));
    let members: Vec<_> =
        found[0].members.iter().map(|m| (m.snapshot, m.state, m.error.as_deref())).collect();
    assert_eq!(members, [(first.id, MemberState::Taken, None), (second.id, MemberState::Failed, Some("no"))]);
    assert_eq!(world.catalog.unfinished_group_runs().await.unwrap(), []);
    assert_eq!(world.catalog.group_by_name(&group.name).await.unwrap().handled_through, at(99));
    assert_eq!(world.catalog.events(10).await.unwrap(), [event("one ended")]);
    let counted = world.catalog.group_snapshots(group.id).await.unwrap();
    assert_eq!((counted.len(), counted[0].snapshot, counted[0].began_at), (1, first.id, at(101)));
    // By the name that the volume has now.
    assert_eq!((counted[0].volume_name.as_str(), counted[0].snapshot_name.as_str()), ("a", "s-1"));

    world.catalog.record_pruning(begun.id, 7, Some("in use")).await.unwrap();
    let pruned = &runs(&world, &group).await[0];
    assert_eq!((pruned.pruned, pruned.prune_error.as_deref()), (7, Some("in use")));
    let unknown = GroupRunId::from_bytes(world.identity());
    assert_eq!(refusal(world.catalog.record_pruning(unknown, 0, None).await).0, ErrorKind::NotFound);
    let unknown = GroupRunEnd { run: unknown, ..end };
    assert_eq!(refusal(world.catalog.end_group_run(&unknown, &event("x")).await).0, ErrorKind::NotFound);
}

pub async fn runs_of_a_group_do_not_overlap(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (one, other) = (group(&world, "one").await, group(&world, "other").await);
    let first = run(&world, &one, "x", &[]);
    world.catalog.begin_group_run(&first, None, at(100)).await.unwrap();
    let second = run(&world, &one, "y", &[]);
    let refused = refusal(world.catalog.begin_group_run(&second, None, at(200)).await);
    let message = format!("run {} of group one has not ended yet: try again in a moment", first.id);
    assert_eq!(refused, (ErrorKind::Conflict, message));
    assert_eq!(refusal(world.catalog.delete_group(one.id).await).0, ErrorKind::Conflict);
    assert_eq!(world.catalog.group_by_name(&one.name).await.unwrap().handled_through, at(100));
    // Another group's is nobody's business.
    world.catalog.begin_group_run(&run(&world, &other, "x", &[]), None, at(100)).await.unwrap();

    let end = ended(&first, RunOutcome::Nothing, MemberState::Taken);
    world.catalog.end_group_run(&end, &event("x")).await.unwrap();
    let again = run(&world, &one, "x", &[]);
    let refused = refusal(world.catalog.begin_group_run(&again, None, at(200)).await);
    assert_eq!(refused, (ErrorKind::Conflict, "run one-x exists already: choose another name".to_owned()));
    world.catalog.begin_group_run(&second, None, at(200)).await.unwrap();
    let of_nothing = GroupRunRow { group: GroupId::from_bytes(world.identity()), ..again };
    assert_eq!(
        refusal(world.catalog.begin_group_run(&of_nothing, None, at(200)).await).0,
        ErrorKind::NotFound
    );
}

pub async fn a_group_counts_on_its_own_snapshots_until_they_are_gone(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (mut held, mut doomed) = (world.held_volume("a").await, world.held_volume("b").await);
    let (one, other) = (group(&world, "one").await, group(&world, "other").await);
    let mut taken = Vec::new();
    for (number, group) in [&one, &other, &one].into_iter().enumerate() {
        let snapshots =
            [world.new_snapshot(&format!("s{number}")), world.new_snapshot(&format!("t{number}"))];
        let begun =
            run(&world, group, &number.to_string(), &[(&held, &snapshots[0]), (&doomed, &snapshots[1])]);
        world.catalog.begin_group_run(&begun, None, at(100)).await.unwrap();
        world.commit_with(&mut held, blocks(0, 4), &snapshots[..1]).await;
        world.commit_with(&mut doomed, blocks(0, 4), &snapshots[1..]).await;
        let state = if number == 2 { MemberState::Unknown } else { MemberState::Taken };
        let end = ended(&begun, RunOutcome::Complete, state);
        world.catalog.end_group_run(&end, &event("ran")).await.unwrap();
        taken.push(snapshots.map(|snapshot| snapshot.id));
    }
    assert_eq!(counted(&world, &one).await, [taken[0], taken[2]].concat());
    assert_eq!(counted(&world, &other).await, taken[1]);
    // Whoever deletes it, it is counted on no more; with a volume all of it.
    world.delete_snapshot(taken[0][0]).await.unwrap();
    assert_eq!(counted(&world, &one).await, [taken[0][1], taken[2][0], taken[2][1]]);
    world.catalog.delete_volume(doomed.volume, true, at(5000)).await.unwrap();
    assert_eq!(counted(&world, &one).await, [taken[2][0]]);
    assert_eq!(counted(&world, &other).await, [taken[1][0]]);
    // Only one that is not there can be forgotten.
    world.catalog.forget_group_snapshot(taken[2][0]).await.unwrap();
    assert_eq!(counted(&world, &one).await, [taken[2][0]]);
    let never = world.new_snapshot("never");
    let begun = run(&world, &one, "never", &[(&held, &never)]);
    world.catalog.begin_group_run(&begun, None, at(100)).await.unwrap();
    let end = ended(&begun, RunOutcome::Partial, MemberState::Unknown);
    world.catalog.end_group_run(&end, &event("ran")).await.unwrap();
    assert_eq!(counted(&world, &one).await, [taken[2][0], never.id]);
    world.catalog.forget_group_snapshot(never.id).await.unwrap();
    assert_eq!(counted(&world, &one).await, [taken[2][0]]);
    // The group goes, its snapshots stay.
    world.catalog.delete_group(one.id).await.unwrap();
    assert_eq!(counted(&world, &one).await, []);
    assert_eq!(runs(&world, &one).await, []);
    world.catalog.snapshot(taken[2][0]).await.unwrap();
}

pub async fn what_is_deleted_while_its_run_ends_stays_deleted(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let group = group(&world, "g").await;
    let snapshot = world.new_snapshot("s");
    let begun = run(&world, &group, "one", &[(&held, &snapshot)]);
    world.catalog.begin_group_run(&begun, None, at(100)).await.unwrap();
    world.commit_with(&mut held, blocks(0, 4), std::slice::from_ref(&snapshot)).await;
    world.delete_snapshot(snapshot.id).await.unwrap();
    let end = ended(&begun, RunOutcome::Complete, MemberState::Taken);
    world.catalog.end_group_run(&end, &event("ran")).await.unwrap();
    assert_eq!(counted(&world, &group).await, []);
    assert_eq!(runs(&world, &group).await[0].members[0].state, MemberState::Deleted);
}

pub async fn old_runs_are_forgotten_unless_something_of_them_is_left(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (held, group, other) =
        (world.held_volume("a").await, group(&world, "g").await, group(&world, "other").await);
    let snapshot = world.new_snapshot("kept");
    let kept = run(&world, &group, "kept", &[(&held, &snapshot)]);
    world.catalog.begin_group_run(&kept, None, at(100)).await.unwrap();
    world
        .catalog
        .end_group_run(&ended(&kept, RunOutcome::Complete, MemberState::Taken), &event("kept"))
        .await
        .unwrap();
    let of_other = run(&world, &other, "x", &[]);
    world.catalog.begin_group_run(&of_other, None, at(100)).await.unwrap();
    for number in 0..GROUP_RUNS_MAX + 5 {
        let empty = run(&world, &group, &number.to_string(), &[]);
        world.catalog.begin_group_run(&empty, None, at(100)).await.unwrap();
        let end = ended(&empty, RunOutcome::Nothing, MemberState::Taken);
        world.catalog.end_group_run(&end, &event("empty")).await.unwrap();
    }
    let left = runs(&world, &group).await;
    let most = GROUP_RUNS_MAX as usize;
    assert_eq!(left.len(), most + 1);
    assert_eq!((left[0].label.as_str(), left[most - 1].label.as_str()), ("204", "5"));
    assert_eq!(left[most].label, "kept");
    assert_eq!(runs(&world, &other).await.len(), 1);
    assert_eq!(world.catalog.group_runs(group.id, 3).await.unwrap(), left[..3]);
    assert_eq!(counted(&world, &group).await, [snapshot.id]);
}

pub async fn events_are_remembered_up_to_a_number_of_each_kind(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let rare = EventRow { kind: "rare".to_owned(), ..event("rare") };
    world.catalog.add_event(&rare).await.unwrap();
    for number in 0..EVENTS_MAX + 3 {
        let event = EventRow {
            at: WallTime::from_unix_millis(1000 - u64::from(number % 7)),
            ..event(&number.to_string())
        };
        world.catalog.add_event(&event).await.unwrap();
    }
    let world = world.reopened(store).await;
    let events = world.catalog.events(10_000).await.unwrap();
    let most = EVENTS_MAX as usize;
    assert_eq!(events.len(), most + 1);
    assert_eq!((events[0].text.as_str(), events[most - 1].text.as_str()), ("502", "3"));
    assert_eq!(events[most], rare);
    assert_eq!(world.catalog.events(2).await.unwrap(), events[..2]);
}
