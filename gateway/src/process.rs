//! What this process does to itself at its start: nobody shall find keys in what it leaves behind.
//!
//! `PR_SET_DUMPABLE` off: no core dump, and no other process of the same user may read this one's memory (ptrace, `/proc/PID/mem`).
//! `RLIMIT_CORE` 0: no core dump of programs that this one starts either.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Set to `1`, leaves core dumps and debuggers as the system has them: for developers, whose keys guard nothing.
pub const ALLOW_VARIABLE: &str = "CAIRN_ALLOW_CORE_DUMPS";

/// Keeps this process's memory from being written to a file or read by another process. Before anything secret is read.
pub fn seal_memory() {
    if std::env::var_os(ALLOW_VARIABLE).is_some_and(|value| value == "1") {
        return;
    }
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    // What fails is told when there is a log; here there is none, and no reason not to go on.
    let limited = setrlimit(Resource::Core, none).is_ok();
    let hidden = set_dumpable_behavior(DumpableBehavior::NotDumpable).is_ok();
    if !(limited || hidden) {
        eprintln!("cairn: warning: this system does not let core dumps be switched off");
    }
}
