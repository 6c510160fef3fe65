//! Protection groups as the catalog holds them: groups, their runs, the snapshots of those; and events.
//!
//! A run is written twice: before its snapshots are taken, with their identities and locks, and when it is known what became of them. What
//! lies between is an intent, which whoever starts next settles.

use crate::{GroupName, SnapshotName, VolumeName};
use cairn_model::{GatewayId, GroupId, GroupRunId, SnapshotId, VolumeId, WallTime};

/// Runs of a group that are remembered, beside those whose snapshots are still there.
pub const GROUP_RUNS_MAX: u32 = 200;
/// Events of a kind that are remembered.
pub const EVENTS_MAX: u32 = 500;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupRow {
    pub id: GroupId,
    pub name: GroupName,
    /// Read and written by whoever runs groups.
    pub policy: String,
    /// Its schedule does not run.
    pub paused: bool,
    pub created_at: WallTime,
    /// Instants of its schedule up to this one are dealt with.
    pub handled_through: WallTime,
}

/// What of a group is to be other than it is; what is absent stays, whoever changes it meanwhile.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GroupChange {
    pub policy: Option<String>,
    pub paused: Option<bool>,
    pub handled_through: Option<WallTime>,
}

/// What became of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunOutcome {
    /// Every member has its snapshot.
    Complete,
    /// Some have.
    Partial,
    /// None has.
    Failed,
    /// There was no member.
    Nothing,
}

impl RunOutcome {
    /// Stable name, as the catalog and the admin API have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Partial => "partial",
            Self::Failed => "failed",
            Self::Nothing => "nothing",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Complete, Self::Partial, Self::Failed, Self::Nothing].into_iter().find(|o| o.name() == name)
    }
}

/// What became of a member of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemberState {
    /// Its snapshot is to be taken, or was.
    Planned,
    /// Its snapshot is in the log or in the catalog.
    Taken,
    /// It has no snapshot.
    Failed,
    /// Whether it has one nobody can tell from here.
    Unknown,
    /// Its snapshot was deleted since.
    Deleted,
}

impl MemberState {
    /// Stable name, as the catalog and the admin API have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Taken => "taken",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Deleted => "deleted",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        let all = [Self::Planned, Self::Taken, Self::Failed, Self::Unknown, Self::Deleted];
        all.into_iter().find(|state| state.name() == name)
    }

    /// There may be a snapshot that is this run's.
    pub const fn may_exist(self) -> bool {
        matches!(self, Self::Planned | Self::Taken | Self::Unknown)
    }
}

/// A volume of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupMember {
    pub volume: VolumeId,
    /// As it was called then.
    pub volume_name: VolumeName,
    /// The snapshot's identity, which it has before it is taken.
    pub snapshot: SnapshotId,
    pub snapshot_name: SnapshotName,
    pub state: MemberState,
    /// Why it has no snapshot.
    pub error: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupRunRow {
    pub id: GroupRunId,
    pub group: GroupId,
    pub gateway: GatewayId,
    /// What its snapshots' names end with; no other run of the group that is remembered has it.
    pub label: String,
    /// The instant of the schedule; `None`: somebody asked for it.
    pub planned: Option<WallTime>,
    /// Instants before that one that had no run.
    pub missed: u64,
    pub began_at: WallTime,
    /// When and how it ended; `None`: it has not.
    pub ended: Option<(WallTime, RunOutcome)>,
    pub error: Option<String>,
    /// Snapshots that retention deleted after it.
    pub pruned: u64,
    /// What kept retention from deleting more.
    pub prune_error: Option<String>,
    pub members: Vec<GroupMember>,
}

/// How a run ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupRunEnd {
    pub run: GroupRunId,
    pub at: WallTime,
    pub outcome: RunOutcome,
    pub error: Option<String>,
    /// What became of those that were planned: all of them. The locks of those that failed go.
    pub members: Vec<(SnapshotId, MemberState, Option<String>)>,
    /// What the group has dealt with, if that is other than what the run began with: an instant may be due again.
    pub handled_through: Option<WallTime>,
}

/// A snapshot of a group that is there, as far as the catalog knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupSnapshot {
    pub volume: VolumeId,
    pub volume_name: VolumeName,
    pub snapshot: SnapshotId,
    pub snapshot_name: SnapshotName,
    /// When its run began.
    pub began_at: WallTime,
    pub locked_until: Option<WallTime>,
}

/// Something that people should know of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventRow {
    pub at: WallTime,
    /// Stable, such as `group-run-failed`.
    pub kind: String,
    /// What it happened to, such as `group daily`.
    pub subject: String,
    pub text: String,
}
