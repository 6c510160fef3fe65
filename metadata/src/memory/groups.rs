//! Protection groups, their runs, locks and events.

use super::{Result, Tables, countable};
use crate::{
    CatalogError, EVENTS_MAX, EventRow, GROUP_RUNS_MAX, GroupChange, GroupName, GroupRow, GroupRunEnd,
    GroupRunRow, GroupSnapshot, MemberState,
};
use cairn_model::{GroupId, GroupRunId, SnapshotId, VolumeId, WallTime};
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct Groups {
    all: BTreeMap<GroupId, GroupRow>,
    /// In the order in which they began.
    runs: Vec<GroupRunRow>,
    locks: BTreeMap<SnapshotId, (VolumeId, WallTime)>,
    /// The oldest first.
    events: Vec<EventRow>,
}

impl Groups {
    pub(super) fn locked_until(&self, snapshot: SnapshotId) -> Option<WallTime> {
        self.locks.get(&snapshot).map(|(_, until)| *until)
    }

    /// A snapshot was deleted.
    pub(super) fn snapshot_gone(&mut self, snapshot: SnapshotId) {
        self.locks.remove(&snapshot);
        self.forget(|of, _| of == snapshot);
    }

    /// A volume was deleted with its snapshots.
    pub(super) fn volume_gone(&mut self, volume: VolumeId) {
        self.locks.retain(|_, (of, _)| *of != volume);
        self.forget(|_, of| of == volume);
    }

    fn forget(&mut self, is_gone: impl Fn(SnapshotId, VolumeId) -> bool) {
        for member in self.runs.iter_mut().flat_map(|run| &mut run.members) {
            if is_gone(member.snapshot, member.volume) && member.state.may_exist() {
                member.state = MemberState::Deleted;
            }
        }
    }

    fn check_none_under_way(&self, group: &GroupRow) -> Result<()> {
        match self.runs.iter().find(|run| run.group == group.id && run.ended.is_none()) {
            Some(run) => Err(CatalogError::RunUnderWay { name: group.name.to_string(), run: run.id }),
            None => Ok(()),
        }
    }

    fn known(&self, id: GroupId) -> Result<&GroupRow> {
        self.all.get(&id).ok_or_else(|| CatalogError::not_found("group", &id))
    }

    fn run_mut(&mut self, id: GroupRunId) -> Result<&mut GroupRunRow> {
        let found = self.runs.iter_mut().find(|run| run.id == id);
        found.ok_or_else(|| CatalogError::not_found("run", &id))
    }

    /// Forgets old runs of which nothing is left.
    fn forget_oldest(&mut self, group: GroupId) {
        let of_group = self.runs.iter().filter(|run| run.group == group).count();
        let mut old = of_group.saturating_sub(GROUP_RUNS_MAX as usize);
        self.runs.retain(|run| {
            if run.group != group || old == 0 {
                return true;
            }
            old -= 1;
            run.ended.is_none() || run.members.iter().any(|member| member.state.may_exist())
        });
    }

    fn insert_event(&mut self, event: &EventRow) {
        self.events.push(event.clone());
        let of_kind = self.events.iter().filter(|other| other.kind == event.kind).count();
        if of_kind > EVENTS_MAX as usize {
            let oldest = self.events.iter().position(|other| other.kind == event.kind);
            self.events.remove(oldest.expect("there are some"));
        }
    }
}

impl Tables {
    pub(super) fn create_group(&mut self, group: &GroupRow) -> Result<()> {
        if self.groups.all.values().any(|other| other.name == group.name) {
            return Err(CatalogError::NameTaken { what: "group", name: group.name.to_string() });
        }
        countable(group.created_at.unix_millis())?;
        countable(group.handled_through.unix_millis())?;
        if self.groups.all.contains_key(&group.id) {
            return Err(CatalogError::AlreadyExists { what: "group", id: group.id.to_string() });
        }
        self.groups.all.insert(group.id, group.clone());
        Ok(())
    }

    pub(super) fn all_groups(&self) -> Vec<GroupRow> {
        let mut rows: Vec<_> = self.groups.all.values().cloned().collect();
        rows.sort_by(|one, other| one.name.as_str().cmp(other.name.as_str()));
        rows
    }

    pub(super) fn group_by_name(&self, name: &GroupName) -> Result<GroupRow> {
        let found = self.groups.all.values().find(|group| group.name == *name);
        found.cloned().ok_or_else(|| CatalogError::not_found("group", name))
    }

    pub(super) fn update_group(&mut self, id: GroupId, change: &GroupChange) -> Result<()> {
        if let Some(through) = change.handled_through {
            countable(through.unix_millis())?;
        }
        let group = self.groups.all.get_mut(&id).ok_or_else(|| CatalogError::not_found("group", &id))?;
        let GroupChange { policy, paused, handled_through } = change;
        group.policy = policy.clone().unwrap_or_else(|| std::mem::take(&mut group.policy));
        group.paused = paused.unwrap_or(group.paused);
        group.handled_through = handled_through.unwrap_or(group.handled_through);
        Ok(())
    }

    pub(super) fn delete_group(&mut self, id: GroupId) -> Result<()> {
        self.groups.check_none_under_way(self.groups.known(id)?)?;
        self.groups.runs.retain(|run| run.group != id);
        self.groups.all.remove(&id);
        Ok(())
    }

    pub(super) fn begin_group_run(
        &mut self,
        run: &GroupRunRow,
        locked_until: Option<WallTime>,
        handled_through: WallTime,
    ) -> Result<()> {
        if self.groups.runs.iter().any(|other| other.id == run.id) {
            return Ok(());
        }
        let group = self.groups.known(run.group)?;
        self.groups.check_none_under_way(group)?;
        if self.groups.runs.iter().any(|other| other.group == run.group && other.label == run.label) {
            let name = format!("{}-{}", group.name, run.label);
            return Err(CatalogError::NameTaken { what: "run", name });
        }
        countable(handled_through.unix_millis())?;
        if let Some(until) = locked_until {
            countable(until.unix_millis())?;
            for member in run.members.iter().filter(|member| member.state == MemberState::Planned) {
                self.groups.locks.insert(member.snapshot, (member.volume, until));
            }
        }
        let mut run = run.clone();
        run.members.sort_by(|one, other| {
            (one.volume_name.as_str(), one.snapshot).cmp(&(other.volume_name.as_str(), other.snapshot))
        });
        if let Some(group) = self.groups.all.get_mut(&run.group) {
            group.handled_through = handled_through;
        }
        self.groups.runs.push(run);
        Ok(())
    }

    pub(super) fn end_group_run(&mut self, end: &GroupRunEnd, event: &EventRow) -> Result<()> {
        countable(end.at.unix_millis())?;
        let run = self.groups.run_mut(end.run)?;
        if run.ended.is_some() {
            return Ok(());
        }
        run.ended = Some((end.at, end.outcome));
        run.error.clone_from(&end.error);
        let group = run.group;
        for (snapshot, state, error) in &end.members {
            let planned = |member: &&mut crate::GroupMember| {
                member.snapshot == *snapshot && member.state == MemberState::Planned
            };
            if let Some(member) = run.members.iter_mut().find(planned) {
                member.state = *state;
                member.error.clone_from(error);
            }
        }
        for (snapshot, _, _) in end.members.iter().filter(|(_, state, _)| *state == MemberState::Failed) {
            self.groups.locks.remove(snapshot);
        }
        if let Some(through) = end.handled_through
            && let Some(group) = self.groups.all.get_mut(&group)
        {
            group.handled_through = through;
        }
        self.groups.insert_event(event);
        self.groups.forget_oldest(group);
        Ok(())
    }

    pub(super) fn record_pruning(&mut self, run: GroupRunId, pruned: u64, error: Option<&str>) -> Result<()> {
        countable(pruned)?;
        let run = self.groups.run_mut(run)?;
        (run.pruned, run.prune_error) = (pruned, error.map(str::to_owned));
        Ok(())
    }

    pub(super) fn last_group_runs(&self, group: GroupId, limit: u32) -> Vec<GroupRunRow> {
        let of_group = self.groups.runs.iter().rev().filter(|run| run.group == group);
        of_group.take(limit as usize).cloned().collect()
    }

    pub(super) fn unfinished_group_runs(&self) -> Vec<GroupRunRow> {
        self.groups.runs.iter().filter(|run| run.ended.is_none()).cloned().collect()
    }

    pub(super) fn group_snapshots(&self, group: GroupId) -> Vec<GroupSnapshot> {
        let runs = self.groups.runs.iter().filter(|run| run.group == group && run.ended.is_some());
        let members = runs.flat_map(|run| run.members.iter().map(move |member| (run, member)));
        let counted =
            members.filter(|(_, member)| matches!(member.state, MemberState::Taken | MemberState::Unknown));
        let snapshot = |(run, member): (&GroupRunRow, &crate::GroupMember)| {
            // By what they are called now; those in the log alone by what they will be.
            let volume = self.volumes.get(&member.volume).map(|volume| volume.row.name.clone());
            let taken = self.snapshots.get(&member.snapshot).map(|snapshot| snapshot.name.clone());
            GroupSnapshot {
                volume: member.volume,
                volume_name: volume.unwrap_or_else(|| member.volume_name.clone()),
                snapshot: member.snapshot,
                snapshot_name: taken.unwrap_or_else(|| member.snapshot_name.clone()),
                began_at: run.began_at,
                locked_until: self.groups.locked_until(member.snapshot),
            }
        };
        counted.map(snapshot).collect()
    }

    pub(super) fn forget_group_snapshot(&mut self, snapshot: SnapshotId) {
        if self.snapshots.contains_key(&snapshot) {
            return;
        }
        for member in self.groups.runs.iter_mut().flat_map(|run| &mut run.members) {
            if member.snapshot == snapshot
                && matches!(member.state, MemberState::Taken | MemberState::Unknown)
            {
                member.state = MemberState::Deleted;
            }
        }
    }

    pub(super) fn snapshot_locks(&self, volume: VolumeId) -> Vec<(SnapshotId, WallTime)> {
        let of_volume = self.groups.locks.iter().filter(|(_, (of, _))| *of == volume);
        of_volume.map(|(snapshot, (_, until))| (*snapshot, *until)).collect()
    }

    /// Fails when the snapshot of the volume is locked, or any of the volume's; also one that is in the log alone.
    pub(super) fn check_unlocked(
        &self,
        volume: VolumeId,
        snapshot: Option<SnapshotId>,
        now: WallTime,
    ) -> Result<()> {
        let locked = self.groups.locks.iter().filter(|(id, (of, until))| {
            *of == volume && *until > now && snapshot.is_none_or(|snapshot| snapshot == **id)
        });
        let Some((id, (_, until))) = locked.max_by_key(|(_, (_, until))| *until) else { return Ok(()) };
        // One in the log alone has its name from the run that it is to belong to.
        let mut members = self.groups.runs.iter().flat_map(|run| &run.members);
        let planned =
            members.find(|member| member.snapshot == *id).map(|member| member.snapshot_name.to_string());
        let taken = self.snapshots.get(id).map(|snapshot| snapshot.name.to_string());
        let name = taken.or(planned).unwrap_or_else(|| id.to_string());
        Err(CatalogError::Locked { name: format!("{}@{name}", self.live(volume)?.row.name), until: *until })
    }

    pub(super) fn add_event(&mut self, event: &EventRow) -> Result<()> {
        countable(event.at.unix_millis())?;
        self.groups.insert_event(event);
        Ok(())
    }

    pub(super) fn last_events(&self, limit: u32) -> Vec<EventRow> {
        self.groups.events.iter().rev().take(limit as usize).cloned().collect()
    }
}
