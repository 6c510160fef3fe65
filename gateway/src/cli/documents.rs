//! Documents that are generated from the command line itself: completions and manual pages.

use super::args::Cli;
use super::output::print;
use crate::error::GatewayError;
use clap::CommandFactory;
use clap_complete::Shell;
use std::path::Path;

pub(super) fn completions(shell: Shell) -> Result<(), GatewayError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "cairn", &mut script);
    print(&String::from_utf8_lossy(&script))
}

pub(super) fn manual(directory: &Path) -> Result<(), GatewayError> {
    let failed =
        |source| GatewayError::File { action: "write manual pages into", path: directory.to_owned(), source };
    std::fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), directory).map_err(failed)
}
