//! Of protection groups and events.

use cairn_policy::PolicySpec;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateGroup {
    pub name: String,
    pub policy: PolicySpec,
    /// Its schedule does not run until it is resumed.
    #[serde(default)]
    pub paused: bool,
}

/// What is absent stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateGroup {
    /// The whole of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicySpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub name: String,
    pub id: String,
    /// Absent when it cannot be read; `problem` says why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicySpec>,
    pub paused: bool,
    /// Milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    /// `ok`, `paused`, `late`, `failing`, `empty` or `unreadable`.
    pub state: String,
    /// What is wrong, when something is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The next instant of its schedule; one that is past is due. Absent when it runs only when told to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_run_at_ms: Option<u64>,
    /// Volumes that match now.
    pub volumes: Vec<String>,
    /// Snapshots that its runs took and that are there.
    pub snapshots: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run: Option<GroupRun>,
}

/// A group with its latest runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupDetail {
    #[serde(flatten)]
    pub group: Group,
    /// The newest first.
    pub runs: Vec<GroupRun>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRun {
    pub id: String,
    /// What its snapshots' names end with.
    pub label: String,
    /// The instant of the schedule; absent when somebody asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned_at_ms: Option<u64>,
    /// Instants before that one that had no run.
    pub missed: u64,
    pub began_at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at_ms: Option<u64>,
    /// `complete`, `partial`, `failed`, `nothing`, or `running`.
    pub outcome: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Snapshots that retention deleted after it.
    pub pruned: u64,
    /// What kept retention from deleting more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prune_error: Option<String>,
    pub members: Vec<GroupMember>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMember {
    /// As it was called then.
    pub volume: String,
    /// `VOLUME@NAME`, by that name.
    pub snapshot: String,
    /// `planned`, `taken`, `failed`, `unknown` or `deleted`.
    pub state: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How many of a list, the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitQuery {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Such as `group-run-failed`.
    pub kind: String,
    /// What it happened to, such as `group daily`.
    pub subject: String,
    pub text: String,
}
