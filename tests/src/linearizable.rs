//! Linearizability under restarts: many clients read and write the same few blocks while the server is killed or stopped
//! and comes back, and all of it together must be explained by one order.
//!
//! **Each block is an atomic register.** An operation on it takes effect at one point between the moment it is sent and the
//! moment its answer is read. A request of several blocks is one operation on each; registers are independent and
//! linearizability is local, so each block is judged alone (Herlihy and Wing, 1990; Horn and Kroening, "Faster
//! Linearizability Checking via P-Compositionality", 2015). Every write puts its own number into the block
//! ([`stamp`](crate::oracle::stamp)), a zeroing puts zeroes; a block that is torn or another's is a violation on its own.
//!
//! **The history goes on across restarts.** SIGKILL and SIGTERM both keep everything acknowledged, because the kernel
//! outlives the process, and nothing that was read may be gone either.
//!
//! **A write without an answer** may have taken effect or not: its connection was given up, or the process died. It may take
//! effect as long as that process lives, but not later: the next process has nothing of it but the log, which is what it
//! was at the death. So its end is the moment between the two lives. A value that appears, or disappears, after
//! the new process has given its first answer is a violation.

pub mod history;
pub mod minimal;
pub mod register;
