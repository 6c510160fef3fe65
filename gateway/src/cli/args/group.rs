//! `cairn group`, `cairn events`.

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum Group {
    /// Make a group of volumes that are snapshotted together
    ///
    /// At each run the volumes that match are found anew and cut at one instant: a write that was acknowledged before another one began, on
    /// whatever volumes, is in the snapshots if that other one is. Snapshots are named after the group and the time, such as
    /// daily-20261128T150000Z. With neither --every nor --cron the group runs only when told to, by `cairn group snap`.
    Create {
        #[arg(value_parser = group_name)]
        name: String,
        #[command(flatten)]
        policy: NewPolicy,
        /// Do not run its schedule until it is resumed
        #[arg(long)]
        paused: bool,
    },
    /// List the groups
    List,
    /// Show one group, its volumes, its next run and what became of the last ones
    Show {
        name: String,
        /// Runs to show
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
        runs: u32,
    },
    /// Change a group
    ///
    /// What is not named stays as it is. A changed schedule begins now. What --keep leaves to delete goes after the next run; locks that
    /// snapshots have stay as they are.
    Edit {
        name: String,
        #[command(flatten)]
        change: PolicyChange,
    },
    /// Run a group now, whatever its schedule says
    Snap { name: String },
    /// Delete a group
    ///
    /// Its snapshots stay and nothing deletes them by itself any more; those that are locked stay locked.
    Delete {
        name: String,
        /// Do not ask
        #[arg(long, short = 'y')]
        yes: bool,
    },
}

#[derive(Debug, Clone, Args)]
pub struct NewPolicy {
    /// Volumes, by name or by pattern: db-*, disk[0-9], {mail,web}.data. Quote patterns, or the shell may take them for files
    #[arg(long = "match", value_name = "GLOB", num_args = 1.., required = true)]
    pub matching: Vec<String>,
    /// Run every so often, such as 15m, 1h or 1d: in real time, at multiples of the period since 1970
    #[arg(long, value_name = "TIME", conflicts_with = "cron")]
    pub every: Option<String>,
    /// Run by a cron expression: minute, hour, day of the month, month, day of the week
    #[arg(long, value_name = "EXPRESSION")]
    pub cron: Option<String>,
    /// Begin scheduled runs only at these times of day, such as 22:00-06:00
    #[arg(long, value_name = "FROM-TO")]
    pub window: Option<String>,
    /// Time zone of --cron, --window and of the days, weeks and months of --keep
    #[arg(long, value_name = "NAME", default_value = "UTC")]
    pub timezone: String,
    /// What to keep of each volume: a number, or such as hourly:24,daily:7,weekly:4,monthly:12,yearly:3, or all
    #[arg(long, value_name = "RULES")]
    pub keep: String,
    /// Lock each snapshot for so long, such as 7d: nobody can delete it before, nor its volume
    #[arg(long, value_name = "TIME")]
    pub lock_for: Option<String>,
    /// What another site keeps of what is replicated to it; may be repeated
    #[arg(long, value_name = "SITE=RULES", value_parser = keep_at)]
    pub keep_at: Vec<(String, String)>,
}

#[derive(Debug, Clone, Args)]
#[expect(clippy::struct_excessive_bools, reason = "they are flags of a command line")]
pub struct PolicyChange {
    /// Volumes, by name or by pattern, instead of those there were
    #[arg(long = "match", value_name = "GLOB", num_args = 1..)]
    pub matching: Option<Vec<String>>,
    /// Run every so often
    #[arg(long, value_name = "TIME", conflicts_with_all = ["cron", "no_schedule"])]
    pub every: Option<String>,
    /// Run by a cron expression
    #[arg(long, value_name = "EXPRESSION", conflicts_with = "no_schedule")]
    pub cron: Option<String>,
    /// Run only when told to
    #[arg(long)]
    pub no_schedule: bool,
    /// Begin scheduled runs only at these times of day
    #[arg(long, value_name = "FROM-TO", conflicts_with_all = ["no_window", "no_schedule"])]
    pub window: Option<String>,
    /// Begin scheduled runs at any time of day
    #[arg(long)]
    pub no_window: bool,
    /// Time zone
    #[arg(long, value_name = "NAME")]
    pub timezone: Option<String>,
    /// What to keep of each volume
    #[arg(long, value_name = "RULES")]
    pub keep: Option<String>,
    /// Lock each snapshot from now on for so long
    #[arg(long, value_name = "TIME", conflicts_with = "no_lock")]
    pub lock_for: Option<String>,
    /// Lock no more snapshots
    #[arg(long)]
    pub no_lock: bool,
    /// What other sites keep, instead of what was said before; may be repeated
    #[arg(long, value_name = "SITE=RULES", value_parser = keep_at, conflicts_with = "no_keep_at")]
    pub keep_at: Vec<(String, String)>,
    /// Other sites keep nothing of it
    #[arg(long)]
    pub no_keep_at: bool,
    /// Stop running its schedule
    #[arg(long, conflicts_with = "resume")]
    pub pause: bool,
    /// Run its schedule again, from now on
    #[arg(long)]
    pub resume: bool,
}

/// Show what happened that somebody should know of
///
/// What protection groups ran, what failed and why, the newest first. Of each kind the last 500 are remembered.
#[derive(Debug, Args)]
pub struct Events {
    /// Events to show
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
}

fn group_name(text: &str) -> Result<String, cairn_metadata::InvalidName> {
    cairn_metadata::GroupName::new(text).map(|_| text.to_owned())
}

fn keep_at(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((site, rules)) if !site.is_empty() => Ok((site.to_owned(), rules.to_owned())),
        _ => Err("write a site and what it keeps, such as vault=daily:7".to_owned()),
    }
}
