//! One volume through crash after crash.

use super::stamped::{Stamped, Summary, Work, verdict};
use super::{End, Kind, Scene, Writers};
use crate::oracle::stamp::{BLOCK, Seen};
use crate::random::Random;
use anyhow::{Result, anyhow};
use std::fmt;

/// What the writers of a round look like.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub blocks: u64,
    /// Each round has 1 to this many connections, each with 1 to `depth_max` requests in flight: many requests at
    /// once stress the server, few at once leave it less freedom and so make the verdict sharper.
    pub connections_max: u64,
    pub depth_max: u64,
    /// Writes are 1 to this many blocks, and must be there whole or not at all.
    pub write_blocks_max: u64,
    /// The longest time the writers run before the crash.
    pub run_ms_max: u64,
}

impl Plan {
    pub fn size(&self) -> u64 {
        self.blocks * BLOCK as u64
    }
}

/// A scene, its volume, and what its blocks held after the last round.
pub struct Trial {
    scene: Box<dyn Scene>,
    plan: Plan,
    volume: Stamped,
    base: Vec<Seen>,
    random: Random,
}

impl fmt::Debug for Trial {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Trial").field("volume", &self.volume).finish_non_exhaustive()
    }
}

impl Trial {
    /// A trial in a scene that serves, with a volume that is empty and at least `plan.size()` long.
    pub fn new(scene: Box<dyn Scene>, plan: Plan, mut random: Random) -> Result<Self> {
        let volume = Stamped::new(random.word(), plan.blocks, plan.write_blocks_max);
        let base = vec![Seen::Zero; usize::try_from(plan.blocks)?];
        Ok(Self { scene, plan, volume, base, random })
    }

    /// Lets one crash happen under writers, and judges what is there afterwards.
    pub fn round(&mut self, kind: Kind) -> Result<Summary> {
        self.try_round(kind)
            .map_err(|error| anyhow!("{kind}: {error:#}\nthe server said:\n{}", self.scene.said()))
    }

    fn try_round(&mut self, kind: Kind) -> Result<Summary> {
        let Self { scene, plan, volume, base, random } = self;
        let work = Work { depth: usize::try_from(1 + random.below(plan.depth_max))?, pace: None };
        let connections = 1 + random.below(plan.connections_max);
        let clients = (0..connections).map(|_| scene.export().connect()).collect::<Result<_>>()?;
        let told = Writers::new(plan.run_ms_max);
        let (journal, summary, end) =
            volume.write(clients, work, &told, std::mem::take(base), random, |random| {
                scene.strike(kind, &told, random)
            })?;
        if end == End::Dead {
            scene.recover(random)?;
        }
        *base = verdict(&journal, volume.read_back(&scene.export())?, kind.promise())?;
        Ok(Summary { rounds: 1, ..summary })
    }
}
