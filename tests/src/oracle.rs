//! The oracle of the crash tests: what a volume may hold after a crash, given what was sent and what was answered.
//!
//! The writers journal every request with two moments of one clock: just before it is sent and just after its answer
//! is read. "A before B" means that A was answered before B was sent; only then does the protocol order the two. The
//! true moments lie inside the recorded ones, so every order derived here is a true order.
//!
//! After a crash the verdict asks, of every block and of the whole:
//! 1. **Not torn, not misplaced**: a block holds one whole stamp, its own.
//! 2. **Flushed is there**: no block holds a value older than a write that was flushed (or FUA).
//! 3. **Acknowledged is there**: the same for acknowledged writes, when only the process died.
//! 4. **One prefix**: there is an order of the writes, true to "before", of which some prefix gives exactly this volume.

pub mod journal;
mod prefix;
pub mod stamp;
pub mod verdict;
