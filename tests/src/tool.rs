//! Runs a command-line tool to its end, with a timeout, and reports everything it said when it fails.

use anyhow::{Context, Result, bail};
use std::ffi::{OsStr, OsString};
use std::io::{Read, Seek};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A tool that has ended.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
    line: String,
}

/// A tool and its arguments.
#[derive(Debug)]
pub struct Tool {
    command: Command,
    timeout: Duration,
    line: String,
    input: Option<Vec<u8>>,
}

impl Tool {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref();
        Self {
            command: Command::new(program),
            timeout: Duration::from_mins(2),
            line: program.to_string_lossy().into_owned(),
            input: None,
        }
    }

    /// A tool that needs root: it goes through `sudo -n` unless we are root already.
    pub fn as_root(program: &str) -> Self {
        if rustix::process::geteuid().is_root() {
            Self::new(program)
        } else {
            Self::new("sudo").arg("-n").arg(program)
        }
    }

    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.line.push(' ');
        self.line.push_str(&argument.as_ref().to_string_lossy());
        self.command.arg(argument);
        self
    }

    #[must_use]
    pub fn args<A: Into<OsString>>(self, arguments: impl IntoIterator<Item = A>) -> Self {
        arguments.into_iter().fold(self, |tool, argument| tool.arg(argument.into()))
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    #[must_use]
    pub fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Bytes for the tool's standard input; without them it reads nothing.
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = Some(input.into());
        self
    }

    /// Runs to the end; any exit status is an answer.
    pub fn finish(mut self) -> Result<Finished> {
        let mut out = tempfile::tempfile()?;
        let mut err = tempfile::tempfile()?;
        let input = match self.input.take() {
            Some(bytes) => {
                let mut file = tempfile::tempfile()?;
                std::io::Write::write_all(&mut file, &bytes)?;
                file.rewind()?;
                Stdio::from(file)
            }
            None => Stdio::null(),
        };
        let started = Instant::now();
        let child = self.command.stdin(input).stdout(out.try_clone()?).stderr(err.try_clone()?).spawn();
        let mut child = child.map_err(|error| missing(&self.line, error))?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if started.elapsed() > self.timeout {
                child.kill()?;
                child.wait()?;
                bail!(
                    "`{}` did not end within {} s\n{}{}",
                    self.line,
                    self.timeout.as_secs(),
                    text_of(&mut out)?,
                    text_of(&mut err)?
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let took = started.elapsed();
        Ok(Finished { status, stdout: text_of(&mut out)?, stderr: text_of(&mut err)?, took, line: self.line })
    }

    /// Runs to the end; an exit status other than 0 is an error that holds everything the tool said.
    pub fn run(self) -> Result<Finished> {
        let finished = self.finish()?;
        if !finished.status.success() {
            bail!("{}", finished.describe());
        }
        Ok(finished)
    }

    /// Runs to the end; success is an error. For what must be refused.
    pub fn run_refused(self) -> Result<Finished> {
        let finished = self.finish()?;
        if finished.status.success() {
            bail!("succeeded, but should have been refused: {}", finished.describe());
        }
        Ok(finished)
    }
}

impl Finished {
    pub fn describe(&self) -> String {
        format!("`{}` ended with {}\n{}{}", self.line, self.status, tail(&self.stdout), tail(&self.stderr))
    }

    /// Everything the tool said, for people.
    pub fn said(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

fn missing(line: &str, error: std::io::Error) -> anyhow::Error {
    let program = line.split(' ').next().unwrap_or(line);
    if error.kind() == std::io::ErrorKind::NotFound {
        anyhow::anyhow!("{program} is missing; run tests/install-tools.sh")
    } else {
        anyhow::Error::new(error).context(format!("starting `{line}`"))
    }
}

fn text_of(file: &mut std::fs::File) -> Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).context("reading what the tool said")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The end of a text, where the reason stands.
pub fn tail(text: &str) -> &str {
    const KEPT: usize = 4000;
    match text.len().checked_sub(KEPT) {
        Some(start) => &text[text.ceil_char_boundary(start)..],
        None => text,
    }
}
