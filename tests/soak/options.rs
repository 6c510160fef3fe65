//! What the command line says.

use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::time::Duration;
use system_tests::settings;

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) duration: Duration,
    pub(crate) sample_every: Duration,
    /// SIGKILL and start again every few minutes.
    pub(crate) restarts: bool,
    /// The object store is stopped, or killed and started, now and then.
    pub(crate) outages: bool,
    /// How many bytes all loads may write in the whole run: nothing gives space in the pool back yet.
    pub(crate) pool_bytes: u64,
    pub(crate) out: PathBuf,
}

const GIB: u64 = 1 << 30;

impl Options {
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let (mut hours, mut pool_gib) = (1.0, 12);
        let (mut restarts, mut outages) = (false, true);
        let mut out = settings::target_folder().join("soak");
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--restarts" => restarts = true,
                "--no-outages" => outages = false,
                "--pool-gib" => pool_gib = value()?.parse().context("--pool-gib takes a whole number")?,
                "--out" => out = PathBuf::from(value()?),
                number => {
                    hours = number.parse().ok().with_context(|| {
                        format!("{number:?} is no number of hours and no option; see the head of tests/soak/main.rs")
                    })?;
                }
            }
        }
        if !(0.01..=1000.0).contains(&hours) || pool_gib == 0 {
            bail!("the hours are 0.01 to 1000, and the pool gets at least 1 GiB");
        }
        let duration = Duration::from_secs_f64(hours * 3600.0);
        let sample_every = Duration::from_secs(10).min(duration / 60);
        Ok(Self { duration, sample_every, restarts, outages, pool_bytes: pool_gib * GIB, out })
    }

    pub(crate) fn hours(&self) -> f64 {
        self.duration.as_secs_f64() / 3600.0
    }

    /// How many bytes a second all loads may write: the pool's share of the second, and never more than is good for
    /// a machine that does other things too.
    pub(crate) fn bytes_per_second(&self) -> u64 {
        const MOST: u64 = 3_600_000;
        (self.pool_bytes / self.duration.as_secs().max(1)).clamp(1, MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn a_longer_run_writes_more_slowly_and_not_more() -> Result<()> {
        let day = parse("24")?;
        assert!(day.bytes_per_second() * 24 * 3600 <= day.pool_bytes);
        assert!(parse("1")?.bytes_per_second() * 3600 <= parse("1")?.pool_bytes);
        Ok(())
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let error = parse("1 --restart").expect_err("there is no --restart").to_string();
        assert!(error.contains("--restart"), "{error}");
        assert!(parse("0").is_err());
        assert!(parse("1 --pool-gib").is_err());
    }
}
