//! What a protection group wants: which volumes, when, how long to keep what it takes. Pure: no clock, no I/O.
//!
//! | module | idea |
//! |---|---|
//! | `policy` | the whole, as text that is stored and shown, and checked as types |
//! | `matching` | volumes by name and by pattern |
//! | `span` | lengths of time such as `15m` and `7d` |
//! | `zone` | civil time in a zone, and back: daylight saving is decided here, once |
//! | `schedule` | instants at which a group is due, and those it missed |
//! | `window` | the part of a day in which scheduled runs may begin |
//! | `keep` | which snapshots stay |

mod keep;
mod matching;
mod policy;
mod schedule;
mod span;
mod window;
mod zone;

pub use keep::Keep;
pub use matching::Matching;
pub use policy::{Policy, PolicyError, PolicySpec, RemoteKeep, RemoteSpec};
pub use schedule::{Due, MISSED_MAX, Timetable, When};
pub use span::Span;
pub use window::Window;
pub use zone::Zone;
