//! A program that prints the master key: the way to a KMS, a TPM or whatever else keeps it.
//!
//! It is run without a shell, with this process's environment and standard error, and nothing on its standard input. What it prints is the
//! text of a key file (version 1) or 64 hexadecimal digits. Nothing it prints is ever repeated.

use super::file::{self, KEY_FILE_BYTES_MAX, from_digits};
use super::{KeyError, KeyFile, Origin};
use cairn_model::Clock;
use cairn_model::crypto::SecretKey;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use zeroize::Zeroizing;

/// How long it may take: a hardware token may want to be touched.
pub const TIME_MAX: Duration = Duration::from_mins(1);

/// Runs the program and takes the key that it prints.
pub async fn run(
    program: &str,
    arguments: &[String],
    time_max: Duration,
    clock: &dyn Clock,
) -> Result<SecretKey, KeyError> {
    let failed =
        |problem: &str| KeyError::CommandFailed { program: program.to_owned(), problem: problem.to_owned() };
    let start = |source| KeyError::CommandStart { program: program.to_owned(), source };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let exchange = cairn_model::timeout(clock, time_max, output(&mut child)).await;
    let (bytes, status) = if let Ok(done) = exchange {
        done.map_err(start)?
    } else {
        let seconds = time_max.as_secs();
        return Err(KeyError::CommandTimeout { program: program.to_owned(), seconds });
    };
    let Some(status) = status else {
        return Err(failed("it printed more than a key"));
    };
    if !status.success() {
        // "exit status: 3" or "signal: 9 (SIGKILL)".
        return Err(failed(&status.to_string()));
    }
    parse(&bytes, program)
}

/// What it printed and how it ended; no end when it printed too much.
async fn output(child: &mut Child) -> io::Result<(Zeroizing<Vec<u8>>, Option<ExitStatus>)> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_FILE_BYTES_MAX + 2));
    let stdout = child.stdout.take().expect("its output was asked for");
    stdout.take(KEY_FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).await?;
    if bytes.len() > KEY_FILE_BYTES_MAX {
        return Ok((bytes, None));
    }
    let status = child.wait().await?;
    Ok((bytes, Some(status)))
}

fn parse(bytes: &[u8], program: &str) -> Result<SecretKey, KeyError> {
    let origin = Origin::Command(program.to_owned());
    let malformed = |problem| KeyError::Malformed { origin: origin.clone(), problem };
    if bytes.trim_ascii().is_empty() {
        return Err(malformed("it printed nothing"));
    }
    let digits = std::str::from_utf8(bytes.trim_ascii_end()).ok();
    if let Some(key) = digits.and_then(from_digits) {
        return Ok(key);
    }
    match file::parse(bytes, &origin)? {
        KeyFile::Plain(key) => Ok(key),
        KeyFile::Sealed(_) => Err(malformed("what it printed needs a passphrase")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::SystemClock;

    async fn shell(script: &str) -> Result<SecretKey, KeyError> {
        let arguments = ["-c".to_owned(), script.to_owned()];
        run("sh", &arguments, Duration::from_secs(20), &SystemClock::new()).await
    }

    fn text() -> (SecretKey, String) {
        let key = SecretKey::from_bytes([0x5c; 32]);
        (key.clone(), KeyFile::Plain(key).text().to_string())
    }

    #[tokio::test]
    async fn a_key_file_or_its_digits_are_taken() {
        let (key, text) = text();
        for printed in [text, hex::encode(key.expose()), hex::encode_upper(key.expose()) + "\n"] {
            let taken = shell(&format!("printf '%s' '{printed}'")).await.unwrap();
            assert_eq!(taken.expose(), key.expose());
        }
    }

    #[tokio::test]
    async fn arguments_reach_the_program_as_they_are() {
        let digits = "ab".repeat(32);
        let arguments = ["%s\n".to_owned(), digits.clone()];
        let key = run("printf", &arguments, TIME_MAX, &SystemClock::new()).await.unwrap();
        assert_eq!(hex::encode(key.expose()), digits);
    }

    #[tokio::test]
    async fn what_is_no_key_is_refused_without_repeating_it() {
        let digits = "ab".repeat(32);
        for printed in
            [String::new(), digits[1..].to_owned(), format!("{digits}\n{digits}"), format!("x{digits}")]
        {
            let refused = shell(&format!("printf '%s' '{printed}'")).await.unwrap_err();
            assert!(matches!(refused, KeyError::Malformed { .. }), "{refused}");
            assert!(!refused.to_string().contains("abab"), "{refused}");
        }
    }

    #[tokio::test]
    async fn a_failure_names_the_exit_code() {
        let refused = shell("exit 3").await.unwrap_err().to_string();
        assert!(refused.contains("exit status: 3"), "{refused}");
        let refused = shell(&format!("echo {}; exit 4", "ab".repeat(32))).await.unwrap_err().to_string();
        assert!(refused.contains("exit status: 4"), "{refused}");
        let refused = shell("kill -9 $$").await.unwrap_err().to_string();
        assert!(refused.contains("signal: 9"), "{refused}");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_told_apart() {
        let refused = run("/nonexistent/key", &[], TIME_MAX, &SystemClock::new()).await.unwrap_err();
        assert!(matches!(refused, KeyError::CommandStart { .. }), "{refused}");
    }

    #[tokio::test]
    async fn a_program_that_prints_without_end_is_stopped() {
        let refused = shell("while :; do echo 0123456789abcdef; done").await.unwrap_err();
        assert!(matches!(&refused, KeyError::CommandFailed { problem, .. } if problem.contains("more than")));
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_stopped() {
        let arguments = ["60".to_owned()];
        let refused = run("sleep", &arguments, Duration::from_millis(50), &SystemClock::new()).await;
        assert!(matches!(refused, Err(KeyError::CommandTimeout { .. })), "{refused:?}");
    }
}
