//! What the rounds look like, and what they did.

use crate::oracle::stamp::BLOCK;
use std::time::Duration;

/// What the rounds look like.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How often the server is ended and started again.
    pub restarts: u32,
    /// One end in how many is SIGTERM, the others are SIGKILL; 0 for none.
    pub orderly_one_in: u64,
    pub volume_blocks: u64,
    /// The blocks that all clients share, side by side at a random place of the volume.
    pub hot_blocks: usize,
    /// Each life of the server has this many clients at least and at most, each with 1 to `depth_max` requests in flight,
    /// in a third of the lives one: few at once make the verdict sharper, many stress the server.
    pub connections: (u64, u64),
    pub depth_max: usize,
    /// One write in five has 1 to this many blocks, the others have one.
    pub write_blocks_max: usize,
    /// After one in how many requests a client leaves its connection.
    pub abandon_one_in: u64,
    /// The longest time from when the server serves to its end.
    pub run_ms_max: u64,
    pub seed: u64,
}

impl Plan {
    pub fn size(&self) -> u64 {
        self.volume_blocks * BLOCK as u64
    }
}

/// What the rounds did, for the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Reads and writes, one for each block of a request.
    pub operations: usize,
    pub flushes: u64,
    /// Writes that were never answered.
    pub unanswered: u64,
    /// Connections that a client left while the server lived.
    pub abandoned: u64,
    pub kills: u32,
    /// Of them before the server was seen to serve.
    pub kills_at_start: u32,
    pub stops: u32,
    /// The most operations that were under way on one block at a time.
    pub concurrency_max: usize,
    /// How long the verdict took, all in all.
    pub judging: Duration,
}
