//! Measures Cairn beside its peers in one run on one machine, round after round: A B A B. Writes a table and a plot.
//!
//! `cargo run --release -p system-tests --bin perf -- [--quick] [--rounds N] [--only NAME,NAME]
//! [--sustained KIND,KIND] [--out FOLDER]`
//!
//! `--sustained` leaves everything out but sustained sequential writing of `programs`, `noise` or `repeats`, for a look at that alone.
//!
//! It needs the release build of `cairn` and of the `cpu_limits` example, and the tools of `tests/install-tools.sh`.
//! Absolute figures belong to the machine and the moment; the ratios are what is compared.
#![expect(clippy::disallowed_methods, reason = "a measurement lives on the machine's own clock")]

mod contender;
mod fio;
mod floor;
mod plot;
mod report;
mod round;
mod sequential;

use anyhow::{Context, Result, bail};
use contender::Contender;
use report::CoreLimits;
use sequential::Kind;
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use system_tests::settings;
use system_tests::tool::Tool;

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    rounds: u32,
    /// Seconds of each random workload.
    seconds: u32,
    /// Seconds of the sustained sequential write.
    sustained_seconds: u32,
    /// The part of the volume that is worked on.
    area_bytes: u64,
    contenders: Vec<Contender>,
    out: PathBuf,
    quick: bool,
    /// What is written in sustained sequential writing.
    sustained: Vec<Kind>,
    /// Nothing else is run.
    only_sustained: bool,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            rounds: 3,
            seconds: 6,
            sustained_seconds: 60,
            area_bytes: 1 << 30,
            contenders: Contender::ALL.to_vec(),
            out: settings::workspace().join("docs"),
            quick: false,
            sustained: Kind::ALL.to_vec(),
            only_sustained: false,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--quick" => {
                    let area_bytes = 256 << 20;
                    options = Self {
                        rounds: 1,
                        seconds: 2,
                        sustained_seconds: 6,
                        area_bytes,
                        quick: true,
                        ..options
                    };
                }
                "--sustained" => {
                    options.sustained = value()?.split(',').map(Kind::parse).collect::<Result<_>>()?;
                    options.only_sustained = true;
                }
                "--rounds" => options.rounds = value()?.parse().context("--rounds takes a number")?,
                "--out" => options.out = PathBuf::from(value()?),
                "--only" => {
                    options.contenders = value()?.split(',').map(Contender::parse).collect::<Result<_>>()?;
                }
                other => bail!("unknown argument {other}; see the head of tests/perf/main.rs"),
            }
        }
        if options.rounds == 0 {
            bail!("--rounds must be at least 1");
        }
        Ok(options)
    }
}

fn core_limits() -> Result<CoreLimits> {
    let program = settings::target_folder().join("release/examples/cpu_limits");
    if !program.is_file() {
        bail!(
            "cpu_limits is missing; run `cargo build --release -p cairn-segment-writer --example cpu_limits`"
        );
    }
    let said = Tool::new(program).run()?.stdout;
    let report: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    CoreLimits::of(&report)
}

fn main() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    let limits = core_limits()?;
    let bare_writes = floor::log_and_pool(Duration::from_secs(u64::from(options.sustained_seconds) / 4))?;
    let mut results = report::Results::default();
    for number in 1..=options.rounds {
        for contender in &options.contenders {
            eprintln!("round {number} of {}: {}", options.rounds, contender.name());
            round::run(*contender, &options, &mut results)
                .with_context(|| format!("round {number}, {}", contender.name()))?;
        }
    }
    std::fs::create_dir_all(&options.out)?;
    let table = report::markdown(&results, &options, &limits, bare_writes)?;
    std::fs::write(options.out.join("performance.md"), &table)?;
    std::fs::write(options.out.join("performance.svg"), plot::svg(&results, &options))?;
    println!("{table}");
    Ok(())
}
