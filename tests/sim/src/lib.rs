//! The engine that ships, simulated: one seed is one schedule.
//!
//! Everything runs on one thread on virtual time: engines on one host or two, each with its log on a disk in memory that loses power, a
//! pool on a store that fails, a catalog in memory that fails, and guests on several volumes. A run is a row of *lives* of gateways'
//! processes; each ends in a crash somewhere, perhaps with a power cut, but for the last. Whenever a gateway gets a volume, the volume is read
//! whole and judged by the oracle of the system tests, at the granule of a sector; and no gateway may answer for a volume that is not its own.
//!
//! | module | idea |
//! |---|---|
//! | `world` | what outlives the processes: hosts, their disks and clocks, the row of lives |
//! | `site` | what the hosts share: catalog, pool, volumes |
//! | `process` | a runtime that gets its turns, is paused, is ended |
//! | `life` | one life: start, serve, end |
//! | `attachment` | a volume in a gateway's hands: taken, checked, used, lost |
//! | `guest`, `resizer` | who uses a volume, and how it is journaled |
//! | `keeper` | who takes snapshots and clones of a volume, deletes them and reverts |
//! | `steps` | a request as the engine makes it |
//! | `volume` | a volume as the oracle knows it |
//! | `tenure` | who has it, and what excuses a loss |
//! | `history` | what was asked of it and may be seen |
//! | `snapshots` | its snapshots as the oracle knows them |
//! | `clones` | volumes that come and go |
//! | `family` | what a volume and its clones have in common |
//! | `faults` | what goes wrong with the store and the catalog, by the seed's dice |
//! | `limits` | what a schedule may contain, and the reduction of a failing one |
//! | `store` | an object store that takes its time |
//! | `settings` | the sizes and habits of a seed |
//! | `stamp` | what guests write into a sector |
//! | `clock` | the world's time, and what hosts make of it |
//! | `report` | what a run did |
//! | `trace` | everything that happened, hashed, to tell two schedules apart |

mod attachment;
mod clock;
mod clones;
mod family;
mod faults;
mod guest;
mod history;
mod keeper;
mod life;
mod limits;
mod panics;
mod process;
mod report;
mod resizer;
mod settings;
mod site;
mod snapshots;
mod stamp;
mod steps;
mod store;
mod tenure;
mod trace;
mod volume;
mod world;

pub use limits::{run, run_and_reduce};
pub use report::{Counts, Report};
