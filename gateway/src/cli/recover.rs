//! `cairn recover`.

use super::args::{Global, Recover};
use super::init::check_pool;
use super::output::{answer, warn};
use super::progress::telling;
use crate::config::KeyConfig;
use crate::directory::{Directory, DirectoryError, Role, State};
use crate::error::GatewayError;
use crate::human::shell_quoted;
use crate::site::{RecoverOptions, RecoveryProgress, RecoveryReport, recover};
use crate::units::format_size;
use cairn_model::{Ports, WallTime, utc};
use std::fmt::Write;
use std::path::Path;

/// Told before it begins: afterwards it would have to be done again.
const STOP_FIRST: &str = "the gateway of before must be stopped for good, if its host is still there: what it brings to the pool from now on will not be in the new catalog";

/// Problems told of one kind; `--json` tells all.
const TOLD_MAX: usize = 10;

pub(super) async fn run(global: &Global, asked: Recover) -> Result<(), GatewayError> {
    for url in &asked.pool {
        check_pool("--pool", url)?;
    }
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|source| GatewayError::File {
            action: "find",
            path: path.to_owned(),
            source,
        })
    };
    let passphrase_file = asked.passphrase_file.as_deref().map(absolute).transpose()?;
    let key = KeyConfig::File { path: absolute(&asked.key)?, passphrase_file };
    let directory = Directory::new(&global.dir)?;
    if directory.state()? != State::Fresh {
        return Err(DirectoryError::AlreadyInitialised { path: directory.path().to_owned() }.into());
    }
    directory.create()?;
    let _lock = directory.lock(Role::Command)?;
    let options = RecoverOptions { pool_urls: asked.pool, key };
    warn(&[STOP_FIRST.to_owned()])?;
    let ports = Ports::system();
    let progress = RecoveryProgress::default();
    let tell = || format!("recovering the catalog: {progress}");
    let report = telling(tell, Box::pin(recover(&directory, &options, &ports, &progress))).await?;
    answer(global.json, &report, |report| {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = describe(&mut text, report);
        text
    })
}

fn describe(text: &mut String, report: &RecoveryReport) -> std::fmt::Result {
    writeln!(text, "Site {} from {}", report.site, report.nodes.join(", "))?;
    if let Some(checkpoint) = &report.checkpoint {
        let at = utc(WallTime::from_unix_millis(checkpoint.taken_at_ms));
        writeln!(text, "checkpoint   {} of {at}, {} rows", checkpoint.id, checkpoint.rows)?;
    }
    writeln!(text, "since then   {} batches added", report.batches)?;
    writeln!(
        text,
        "found        {} volumes, {} snapshots, {} clones, {} groups, {} domains, {} segments",
        report.volumes.len(),
        report.snapshots,
        report.clones,
        report.groups.len(),
        report.domains.len(),
        report.segments
    )?;
    for volume in &report.volumes {
        let (name, size) = (&volume.name, format_size(volume.size_bytes));
        writeln!(
            text,
            "  {name} ({size}), {} snapshots, {} batches added",
            volume.snapshots, volume.batches
        )?;
    }
    if report.unused_segments > 0 {
        let size = format_size(report.unused_bytes);
        writeln!(text, "unused       {} segments, {size}: left in the pool", report.unused_segments)?;
    }
    if report.degraded_segments > 0 {
        writeln!(text, "degraded     {} segments lack shards, and can be read", report.degraded_segments)?;
    }
    if report.mended_segments > 0 {
        writeln!(text, "moved        {} segments have shards that were made since", report.mended_segments)?;
    }
    if report.rehomed_segments > 0 {
        writeln!(
            text,
            "found again  {} segments have what others held that are gone",
            report.rehomed_segments
        )?;
    }
    if report.returned_segments > 0 {
        writeln!(
            text,
            "returned     {} segments that were deleted are there again",
            report.returned_segments
        )?;
    }
    problems(text, report)?;
    next(text, report)
}

fn next(text: &mut String, report: &RecoveryReport) -> std::fmt::Result {
    let (path, directory) = (report.directory.display(), shell_quoted(&report.directory));
    if report.is_whole {
        writeln!(text, "\n{path} is ready. Nothing was written to the pool.")?;
        writeln!(text, "Next: make sure that the gateway of before is stopped for good, then")?;
        return writeln!(text, "  cairn serve --take-over --dir {directory}");
    }
    writeln!(text, "\n{path} lacks what is told above. Nothing was written to the pool.")?;
    writeln!(
        text,
        "Next: bring back what is missing, and recover again, into another directory. To lose it for good:"
    )?;
    writeln!(text, "make sure that the gateway of before is stopped for good, then")?;
    writeln!(text, "  cairn serve --take-over --accept-incomplete --dir {directory}")
}

fn problems(text: &mut String, report: &RecoveryReport) -> std::fmt::Result {
    let mut tell = |what: &str, problems: &[String]| -> std::fmt::Result {
        if problems.is_empty() {
            return Ok(());
        }
        writeln!(text, "{what} ({})", problems.len())?;
        for problem in problems.iter().take(TOLD_MAX) {
            writeln!(text, "  {problem}")?;
        }
        if problems.len() > TOLD_MAX {
            writeln!(text, "  and {} more; --json tells all", problems.len() - TOLD_MAX)?;
        }
        Ok(())
    };
    let problem =
        |volume: &crate::site::VolumeReport| Some(format!("{}: {}", volume.name, volume.problem.as_ref()?));
    let of_volumes: Vec<String> = report.volumes.iter().filter_map(problem).collect();
    tell("INCOMPLETE volumes", &of_volumes)?;
    tell(
        "MISSING segments, which the catalog names and of which too few shards are left",
        &report.missing_segments,
    )?;
    tell(
        "UNREACHABLE segments, which too few of the given nodes have and which may be whole with the others",
        &report.unreachable_segments,
    )?;
    tell("UNREADABLE segments", &report.unreadable_segments)?;
    tell("newer checkpoints that cannot be used", &report.unusable_checkpoints)?;
    tell(
        "gateways whose logs may have held acknowledged writes that were not in the pool: those are lost",
        &report.lost_logs,
    )?;
    tell("data nodes that were not given, and are kept as they were", &report.nodes_not_given)?;
    tell("warnings", &report.warnings)
}
