//! What the admin API does with protection groups and events.

use super::Service;
use super::types::{
    Attention, CreateGroup, Event, Group, GroupDetail, GroupMember, GroupRun, LimitQuery, UpdateGroup,
};
use crate::error::GatewayError;
use crate::names::SEPARATOR;
use cairn_metadata::{CatalogError, GroupChange, GroupName, GroupRow, GroupRunRow, RunOutcome, VolumeRow};
use cairn_model::{ErrorKind, GroupId, WallTime, utc};
use cairn_policy::Policy;

/// Runs and events that are listed unless another number is asked for; and the highest.
const LISTED: u32 = 20;
const LISTED_MAX: u32 = 1000;

/// How late a scheduled run may be before it is worth a word, in milliseconds.
const LATE_MILLIS: u64 = 120_000;

type Result<T> = std::result::Result<T, GatewayError>;

impl Service {
    /// All groups in the order of their names.
    pub async fn groups(&self) -> Result<Vec<Group>> {
        let volumes = self.site.catalog.volumes().await?;
        let mut groups = Vec::new();
        for row in self.site.catalog.groups().await? {
            let last = self.site.catalog.group_runs(row.id, 1).await?;
            groups.push(self.describe_group(&row, &volumes, last.first()).await?);
        }
        Ok(groups)
    }

    /// A group and its last runs.
    pub async fn group(&self, name: &str, query: LimitQuery) -> Result<GroupDetail> {
        let row = self.group_row(name).await?;
        let volumes = self.site.catalog.volumes().await?;
        let limit = query.limit.unwrap_or(LISTED).clamp(1, LISTED_MAX);
        let runs = self.site.catalog.group_runs(row.id, limit).await?;
        let group = self.describe_group(&row, &volumes, runs.first()).await?;
        Ok(GroupDetail { group, runs: runs.iter().map(told).collect() })
    }

    pub async fn create_group(&self, asked: &CreateGroup) -> Result<GroupDetail> {
        let ports = &self.site.ports;
        let now = ports.clock.wall();
        let group = GroupRow {
            id: GroupId::fresh(&*ports.clock, &*ports.entropy),
            name: GroupName::new(asked.name.as_str())?,
            policy: Policy::new(&asked.policy, now)?.encode(),
            paused: asked.paused,
            created_at: now,
            // What was before it was made is none of its business.
            handled_through: now,
        };
        self.site.catalog.create_group(&group).await?;
        self.groups_changed();
        tracing::info!(group = asked.name, "protection group created");
        self.group(&asked.name, LimitQuery::default()).await
    }

    /// A changed schedule, and one that is resumed, begins now: no instant before is due.
    pub async fn update_group(&self, name: &str, change: &UpdateGroup) -> Result<GroupDetail> {
        // A run that is under way ends by the rules it has; none goes by the old ones once this is answered.
        let turn = match &self.engine {
            Some((engine, _)) => Some(engine.hold_groups().await?),
            None => None,
        };
        let row = self.group_row(name).await?;
        let now = self.site.ports.clock.wall();
        let policy = change.policy.as_ref().map(|spec| Policy::new(spec, now)).transpose()?;
        let schedule = |policy: &Policy| {
            let spec = policy.spec();
            (spec.every.clone(), spec.cron.clone(), spec.timezone.clone(), spec.window.clone())
        };
        let old = Policy::decode(&row.policy).ok().as_ref().map(schedule);
        let is_resumed = row.paused && change.paused == Some(false);
        let is_other = policy.as_ref().is_some_and(|new| old != Some(schedule(new)));
        let change = GroupChange {
            policy: policy.map(|policy| policy.encode()),
            paused: change.paused,
            handled_through: (is_resumed || is_other).then_some(now),
        };
        self.site.catalog.update_group(row.id, &change).await?;
        drop(turn);
        self.groups_changed();
        tracing::info!(group = name, "protection group changed");
        self.group(name, LimitQuery::default()).await
    }

    pub async fn delete_group(&self, name: &str) -> Result<()> {
        let row = self.group_row(name).await?;
        self.engine()?.delete_group(&row.name).await?;
        tracing::info!(group = name, "protection group deleted");
        Ok(())
    }

    /// Runs a group now.
    pub async fn snap_group(&self, name: &str) -> Result<GroupRun> {
        let row = self.group_row(name).await?;
        Ok(told(&self.engine()?.run_group(&row.name).await?))
    }

    /// The last events, the newest first.
    pub async fn events(&self, query: LimitQuery) -> Result<Vec<Event>> {
        let limit = query.limit.unwrap_or(LISTED).clamp(1, LISTED_MAX);
        let events = self.site.catalog.events(limit).await?;
        let event = |event: cairn_metadata::EventRow| Event {
            at_ms: event.at.unix_millis(),
            kind: event.kind,
            subject: event.subject,
            text: event.text,
        };
        Ok(events.into_iter().map(event).collect())
    }

    async fn group_row(&self, name: &str) -> Result<GroupRow> {
        match self.site.catalog.group_by_name(&GroupName::new(name)?).await {
            Err(CatalogError::NotFound { .. }) => Err(GatewayError::refused(
                ErrorKind::NotFound,
                format!("there is no group named {name}"),
                "`cairn group list` shows those there are",
            )),
            found => Ok(found?),
        }
    }

    fn groups_changed(&self) {
        if let Some((engine, _)) = &self.engine {
            engine.groups_changed();
        }
    }

    async fn describe_group(
        &self,
        row: &GroupRow,
        volumes: &[VolumeRow],
        last: Option<&GroupRunRow>,
    ) -> Result<Group> {
        let snapshots = self.site.catalog.group_snapshots(row.id).await?.len() as u64;
        let mut group = Group {
            name: row.name.to_string(),
            id: row.id.to_string(),
            policy: None,
            paused: row.paused,
            created_at_ms: row.created_at.unix_millis(),
            state: "ok".to_owned(),
            problem: None,
            next_run_at_ms: None,
            volumes: Vec::new(),
            snapshots,
            last_run: last.map(told),
        };
        let policy = match Policy::decode(&row.policy) {
            Ok(policy) => policy,
            Err(error) => {
                "unreadable".clone_into(&mut group.state);
                group.problem = Some(error.to_string());
                return Ok(group);
            }
        };
        let names = volumes.iter().map(|volume| volume.name.as_str());
        group.volumes = names.filter(|name| policy.matches(name)).map(str::to_owned).collect();
        let timetable = policy.timetable().filter(|_| !row.paused);
        let next = timetable.and_then(|timetable| timetable.next_after(row.handled_through));
        group.next_run_at_ms = next.map(WallTime::unix_millis);
        let now = self.site.ports.clock.wall();
        let is_open = timetable.is_some_and(|timetable| timetable.is_open(now));
        let late = next.filter(|next| {
            self.serving.is_some()
                && is_open
                && now.unix_millis() > next.unix_millis().saturating_add(LATE_MILLIS)
        });
        let (state, problem) = judge(row, last, group.volumes.is_empty(), late);
        state.clone_into(&mut group.state);
        group.problem = problem;
        group.policy = Some(policy.spec().clone());
        Ok(group)
    }
}

/// The state of a group, and what is wrong with it: the worst first.
fn judge(
    row: &GroupRow,
    last: Option<&GroupRunRow>,
    matches_nothing: bool,
    late: Option<WallTime>,
) -> (&'static str, Option<String>) {
    if row.paused {
        return ("paused", None);
    }
    let ended = last.and_then(|run| Some((run, run.ended?.1)));
    if let Some((run, RunOutcome::Failed | RunOutcome::Partial)) = ended {
        return ("failing", Some(reason(run)));
    }
    if let Some(late) = late {
        return ("late", Some(format!("its run of {} has not begun", utc(late))));
    }
    if matches_nothing {
        return ("empty", Some("it matches no volume: nothing is protected".to_owned()));
    }
    let retention = ended.and_then(|(run, _)| run.prune_error.clone());
    match retention {
        Some(error) => ("failing", Some(format!("retention: {error}"))),
        None => ("ok", None),
    }
}

/// Why a run is not complete.
fn reason(run: &GroupRunRow) -> String {
    let failed = run.members.iter().filter(|member| member.error.is_some());
    let mut reasons = failed
        .map(|member| format!("{}: {}", member.volume_name, member.error.as_deref().unwrap_or_default()));
    let first =
        reasons.next().or_else(|| run.error.clone()).unwrap_or_else(|| "no reason was given".to_owned());
    let more = reasons.count();
    let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
    format!("its run {} left out {first}{more}", run.label)
}

/// What of groups needs attention.
pub(super) fn attention(groups: &[Group]) -> impl Iterator<Item = Attention> {
    groups.iter().filter_map(|group| {
        let problem = group.problem.as_ref()?;
        let next = match group.state.as_str() {
            "empty" => format!("change what it matches with `cairn group edit {} --match`", group.name),
            "unreadable" => "use the program that wrote it, or a newer one".to_owned(),
            _ => format!("see `cairn group show {}`", group.name),
        };
        let what = format!("protection group {}: {problem}", group.name);
        Some(Attention { severity: "warning".to_owned(), what, next })
    })
}

fn told(run: &GroupRunRow) -> GroupRun {
    let member = |member: &cairn_metadata::GroupMember| GroupMember {
        volume: member.volume_name.to_string(),
        snapshot: format!("{}{SEPARATOR}{}", member.volume_name, member.snapshot_name),
        state: member.state.name().to_owned(),
        error: member.error.clone(),
    };
    GroupRun {
        id: run.id.to_string(),
        label: run.label.clone(),
        planned_at_ms: run.planned.map(WallTime::unix_millis),
        missed: run.missed,
        began_at_ms: run.began_at.unix_millis(),
        ended_at_ms: run.ended.map(|(at, _)| at.unix_millis()),
        outcome: run.ended.map_or("running", |(_, outcome)| outcome.name()).to_owned(),
        error: run.error.clone(),
        pruned: run.pruned,
        prune_error: run.prune_error.clone(),
        members: run.members.iter().map(member).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_metadata::{GroupMember as MemberRow, MemberState};
    use cairn_model::{GatewayId, GroupRunId, SnapshotId, VolumeId};

    fn row(paused: bool) -> GroupRow {
        GroupRow {
            id: GroupId::from_bytes([1; 16]),
            name: GroupName::new("g").unwrap(),
            policy: String::new(),
            paused,
            created_at: WallTime::default(),
            handled_through: WallTime::default(),
        }
    }

    fn run(ended: Option<RunOutcome>, errors: &[&str]) -> GroupRunRow {
        let member = |error: &&str| MemberRow {
            volume: VolumeId::from_bytes([2; 16]),
            volume_name: "v".parse().unwrap(),
            snapshot: SnapshotId::from_bytes([3; 16]),
            snapshot_name: "g-x".parse().unwrap(),
            state: MemberState::Failed,
            error: Some((*error).to_owned()),
        };
        GroupRunRow {
            id: GroupRunId::from_bytes([4; 16]),
            group: GroupId::from_bytes([1; 16]),
            gateway: GatewayId::from_bytes([5; 16]),
            label: "x".to_owned(),
            planned: None,
            missed: 0,
            began_at: WallTime::default(),
            ended: ended.map(|outcome| (WallTime::default(), outcome)),
            error: None,
            pruned: 0,
            prune_error: None,
            members: errors.iter().map(member).collect(),
        }
    }

    #[test]
    fn the_worst_of_a_group_is_its_state() {
        let late = Some(WallTime::from_unix_millis(1_795_879_800_000));
        let complete = run(Some(RunOutcome::Complete), &[]);
        let unpruned = GroupRunRow { prune_error: Some("it is read".to_owned()), ..complete.clone() };
        let partial = run(Some(RunOutcome::Partial), &["fenced", "late", "lost"]);
        for (paused, last, is_empty, late, state, problem) in [
            (false, None, false, None, "ok", None),
            (false, Some(&complete), false, None, "ok", None),
            (false, Some(&run(None, &[])), false, None, "ok", None),
            (true, Some(&partial), true, late, "paused", None),
            (false, Some(&partial), true, late, "failing", Some("its run x left out v: fenced (and 2 more)")),
            (
                false,
                Some(&complete),
                true,
                late,
                "late",
                Some("its run of 2026-11-28 15:30:00Z has not begun"),
            ),
            (false, Some(&unpruned), true, None, "empty", Some("it matches no volume: nothing is protected")),
            (false, Some(&unpruned), false, None, "failing", Some("retention: it is read")),
        ] {
            assert_eq!(judge(&row(paused), last, is_empty, late), (state, problem.map(str::to_owned)));
        }
    }
}
