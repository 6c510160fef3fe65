//! The engine that ships, simulated: one seed is one schedule.
//!
//! Everything runs on one thread on virtual time: the engine, its log on a disk in memory that loses power, its
//! pool on a store that fails, its catalog in memory that fails, and guests on several volumes. A run is a row of *lives*
//! of the gateway's process; each ends in a crash somewhere, perhaps with a power cut, but for the last. After every
//! start the volumes are read whole and judged by the oracle of the system tests, at the granule of a sector.
//!
//! | module | idea |
//! |---|---|
//! | [`world`] | what outlives the process, and the row of lives |
//! | `life` | one life: start, judge, guests, end |
//! | `guest` | what a guest does, and how it is journaled |
//! | `volume` | a volume as the oracle knows it |
//! | `faults` | what goes wrong with the store and the catalog, by the seed's dice |
//! | `store` | an object store that takes its time |
//! | `settings` | the sizes and habits of a seed |
//! | `stamp` | what guests write into a sector |
//! | `trace` | everything that happened, hashed, to tell two schedules apart |

mod clock;
mod faults;
mod guest;
mod life;
mod panics;
mod settings;
mod stamp;
mod store;
mod trace;
mod volume;
pub mod world;

pub use world::{Report, run};
