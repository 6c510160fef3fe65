//! The NBD project's own test client, replaying its recorded transaction logs.

use crate::export::Export;
use crate::settings::built_tool;
use crate::tool::Tool;
use anyhow::Result;
use std::time::Duration;

/// The size that the logs were made for.
pub const SIZE: u64 = 50 * 1024 * 1024;

/// Replays a log on a fresh, empty export: what it reads must be what it wrote.
pub fn replays(export: &Export, log: &str) -> Result<()> {
    Tool::new(built_tool("nbd-tester-client")?)
        .args(["-N", &export.name, "-i", "-t"])
        .arg(built_tool(log)?)
        .arg("-u")
        .arg(export.socket()?)
        .timeout(Duration::from_mins(4))
        .run()
        .map(drop)
}
