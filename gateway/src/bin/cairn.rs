//! The `cairn` program.

use std::process::ExitCode;

/// Gives freed memory back to the system, which glibc's does not: `docs/decisions/0007-allocator.md`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cairn_gateway::cli::main()
}
