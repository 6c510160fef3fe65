//! Rounds of crashes under concurrent, flushing writers, judged by the [oracle](crate::oracle).
//!
//! A [`Scene`] is a place where a server lives and dies; it knows which [`Kind`]s of crash can happen there, and how. A
//! [`Trial`] is one volume in a scene, round by round: writers run, one crash happens, the server serves again, and
//! every block is judged by the promise that this kind of crash leaves standing. [`mix`] deals rounds of all kinds.

pub mod guest;
pub mod host;
mod kind;
pub mod mix;
mod scene;
mod stamped;
pub mod store;
mod trial;
mod writer;

pub use kind::Kind;
pub use scene::{End, Scene, Writers};
pub use stamped::{Stamped, Summary, Work, verdict};
pub use trial::{Plan, Trial};
pub use writer::Pace;

use crate::random::Random;
use anyhow::{Context, Result};

/// Runs rounds of one kind in a scene whose volume is empty. Fails with the violations of the first round that has any.
pub fn run(scene: impl Scene + 'static, kind: Kind, rounds: u32, seed: u64, plan: Plan) -> Result<Summary> {
    let mut trial = Trial::new(Box::new(scene), plan, Random::seeded(seed))?;
    let mut summary = Summary::default();
    for round in 0..rounds {
        let done = trial.round(kind).with_context(|| format!("round {round}, CAIRN_E2E_SEED={seed}"))?;
        summary.add(&done);
    }
    Ok(summary)
}
