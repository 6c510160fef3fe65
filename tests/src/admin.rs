//! The admin API over its socket, without a program of ours between: a request is on its way at once, and may be so when the gateway is killed.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fmt;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// No answer takes longer.
const PATIENCE: Duration = Duration::from_mins(2);

/// Why a request did not succeed.
#[derive(Debug)]
pub enum Failed {
    /// It was answered, and nothing was done.
    Refused { status: u16, said: String },
    /// Nobody knows whether it was done.
    Unanswered(anyhow::Error),
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { status, said } => write!(f, "refused with {status}: {said}"),
            Self::Unanswered(error) => write!(f, "no answer: {error:#}"),
        }
    }
}

impl std::error::Error for Failed {}

/// Sends one request and waits for its answer.
pub fn ask(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Failed> {
    let (status, said) = exchange(socket, method, path, body)
        .map_err(|error| Failed::Unanswered(error.context(path.to_owned())))?;
    if status >= 300 {
        return Err(Failed::Refused { status, said: format!("{method} {path}: {said}") });
    }
    serde_json::from_str(&said).map_err(|error| Failed::Unanswered(anyhow::Error::new(error).context(said)))
}

/// The status and the body of the answer, which is whole.
fn exchange(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket).context("the admin API does not answer")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer ends in its head")?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .context("an answer without a status")?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok()).flatten()
    });
    let Some(length) = length else { bail!("an answer without a length: {head}") };
    ensure!(body.len() == length, "{} of {length} bytes of the answer", body.len());
    Ok((status, body.to_owned()))
}
