//! What a command prints.

use crate::error::GatewayError;
use serde::Serialize;
use std::io::{self, Write};

/// Prints `text`. A reader that went away, as `head` does, is no error.
pub(super) fn print(text: &str) -> Result<(), GatewayError> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(source) => Err(GatewayError::System { action: "write to standard output", source }),
        Ok(()) => Ok(()),
    }
}

/// Prints warnings on standard error, where they spoil no output.
pub(super) fn warn(warnings: &[String]) -> Result<(), GatewayError> {
    let mut output = io::stderr().lock();
    for warning in warnings {
        match writeln!(output, "warning: {warning}") {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(source) => return Err(GatewayError::System { action: "write to standard error", source }),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Prints `value` as JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), GatewayError> {
    let text = serde_json::to_string_pretty(value).expect("answers are plain data");
    print(&format!("{text}\n"))
}

/// Prints `value` as JSON if that was asked for, else what `human` makes of it.
pub(super) fn answer<T: Serialize>(
    json: bool,
    value: &T,
    human: impl FnOnce(&T) -> String,
) -> Result<(), GatewayError> {
    if json { print_json(value) } else { print(&human(value)) }
}
