//! Logs go to standard error, for people or as JSON lines.

use crate::config::{LogConfig, LogFormat};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Names the variable that overrides `log.level`.
pub const LEVEL_VARIABLE: &str = "CAIRN_LOG";

/// Starts logging for the rest of the process. A second call changes nothing.
pub fn start(config: &LogConfig) {
    let level = std::env::var(LEVEL_VARIABLE).ok().filter(|level| !level.is_empty());
    let filter = level
        .as_deref()
        .and_then(|level| EnvFilter::try_new(level).ok())
        .unwrap_or_else(|| EnvFilter::new(quietly(&config.level)));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Fails only when logging was started before, as in a test.
    let _ = match config.format {
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).try_init(),
        LogFormat::Human => builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
}

/// The filter `level`, in which libraries that tell of their every step tell of their errors only, unless it names them.
fn quietly(level: &str) -> String {
    if level == "off" {
        return level.to_owned();
    }
    let chatty = ["fjall", "lsm_tree", "foyer", "foyer_memory", "foyer_storage"]
        .map(|library| format!("{library}=error"));
    format!("{},{level}", chatty.join(","))
}

/// Logging for commands that do one thing and end: warnings only, unless asked for more.
pub fn start_for_command() {
    start(&LogConfig { format: LogFormat::Human, level: "warn".to_owned() });
}
