//! `cairn snapshot`, `cairn clone`, `cairn revert`.

use super::{snapshot_name, volume_name};
use crate::names::{SnapshotOf, VolumeOrSnapshot};
use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// Take a snapshot of a volume, or of several at one moment
    ///
    /// Instant whatever the volume's size, also under writes: the snapshot holds every write that was acknowledged before, and nothing after
    /// the moment at which it is taken. When the command returns it survives what a flushed write survives. Without a name it gets one that
    /// tells the time, such as auto-20261128T153000Z.
    ///
    /// Of several volumes all get theirs at one instant, or none does: a write that was acknowledged before another one began, on whatever volumes,
    /// is in the snapshots if that other one is. Those without a name of their own get the one of --name, or else one that tells the time.
    Create {
        #[arg(value_name = "VOL[@NAME]", required = true)]
        snapshots: Vec<VolumeOrSnapshot>,
        /// Name of the snapshots that have none of their own
        #[arg(long, value_name = "NAME", value_parser = snapshot_name)]
        name: Option<String>,
    },
    /// List the snapshots of a volume, or of all
    ///
    /// HOLDS is what the snapshot's map holds, shared with the volume and with other snapshots or not. STATE is `logged` (in the log),
    /// `committed` (in the catalog) or `settled` (its map is complete and can be read): all of them survive alike, and what needs the map
    /// waits for it. CLONES counts volumes that began as the snapshot, also by a revert to it.
    List {
        #[arg(value_name = "VOL", value_parser = volume_name)]
        volume: Option<String>,
        /// Tell whose space it is, which takes a while where there are many
        ///
        /// UNIQUE is what of HOLDS only this snapshot shows, SHARED the rest. FREED is what its deletion would leave as garbage in the pool, for
        /// reclaim to take back; equal data elsewhere makes it less. Of several snapshots together it is more than the sum: what two of them
        /// share is unique to none.
        #[arg(long)]
        space: bool,
    },
    /// Delete a snapshot
    ///
    /// Refused while somebody has it open. Clones of it live on. What nothing else shows comes back to the pool with the next pass of reclaim:
    /// by itself, or with `cairn reclaim` now.
    Delete {
        #[arg(value_name = "VOL@NAME")]
        snapshot: SnapshotOf,
        /// Do not ask
        #[arg(long, short = 'y')]
        yes: bool,
    },
    /// Show what changed from one snapshot of a volume to another
    ///
    /// By their maps alone, in whole blocks of 4 KiB, so that no data is read. Blocks that were written again with what they held may be among
    /// them. `data`: the second one has data there; `zeros`: it reads as zeros there.
    Diff {
        /// Snapshot to begin from
        #[arg(value_name = "VOL@A")]
        from: SnapshotOf,
        /// Snapshot to compare with it, of the same volume
        #[arg(value_name = "VOL@B")]
        to: SnapshotOf,
    },
}

/// Make a volume that begins as a snapshot
///
/// Nothing is copied, whatever the size: the two share what they have in common. Of a snapshot that is `settled` it is made at once; of a
/// fresh one when what was written before is in the pool. The new volume is writable and independent; the snapshot and its volume may be
/// deleted.
#[derive(Debug, Args)]
pub struct CloneSnapshot {
    #[arg(value_name = "VOL@SNAP")]
    pub snapshot: SnapshotOf,
    /// Name of the new volume
    #[arg(value_name = "NEW", value_parser = volume_name)]
    pub name: String,
}

/// Make a volume what a snapshot of it shows
///
/// Its content and its size. Before that, a snapshot of the volume as it is, named before-revert- and the time, keeps the way back
/// open. Later snapshots stay. Disconnect the volume's clients first: they would see their disk change under them.
#[derive(Debug, Args)]
pub struct Revert {
    #[arg(value_name = "VOL@SNAP")]
    pub snapshot: SnapshotOf,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub yes: bool,
    /// Revert it even while clients have it open
    #[arg(long)]
    pub force: bool,
}
