//! Rounds of loss on six real servers: two endpoints of a Ceph RGW are killed, their buckets emptied, and started again, while fio writes and verifies.
//!
//! `cargo run --release -p system-tests --bin pool-rounds -- [ROUNDS] [--replica] [--folders] [--known-mib N]`
//!
//! It ends with status 0 when no guest saw an error or a wrong byte, and the pool was whole again after every round.
use anyhow::{Context, Result, bail};
use std::time::Duration;
use system_tests::pool::{Buckets, Folders, Nodes, PoolSite, Rounds};
use system_tests::random::Random;

const NODES: usize = 6;

#[derive(Debug, PartialEq, Eq)]
struct Options {
    rounds: u32,
    profile: &'static str,
    /// Directories instead of servers.
    folders: bool,
    known_mib: u64,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self { rounds: 20, profile: "ec:4+2", folders: false, known_mib: 128 };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--replica" => options.profile = "replica:3",
                "--folders" => options.folders = true,
                "--known-mib" => {
                    let value = arguments.next().context("--known-mib needs a value")?;
                    options.known_mib = value.parse().context("--known-mib takes a whole number")?;
                }
                number => {
                    options.rounds = number.parse().ok().with_context(|| {
                        format!("{number:?} is no number of rounds and no option; see the head of tests/rounds/main.rs")
                    })?;
                }
            }
        }
        if options.rounds == 0 || options.known_mib == 0 {
            bail!("there is at least one round, and at least 1 MiB to read");
        }
        Ok(options)
    }
}

fn main() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    let seed = Random::seed_from_environment()?;
    println!("{} rounds under {}, CAIRN_E2E_SEED={seed}", options.rounds, options.profile);
    if options.folders {
        let folders = Folders::new()?;
        let urls: Vec<_> = (1..=NODES).map(|number| folders.url(&format!("n{number}"))).collect();
        run(&options, seed, folders, &urls, Vec::new())
    } else {
        let buckets = Buckets::start(NODES)?;
        let urls: Vec<_> = (0..NODES)
            .map(|number| buckets.url(number, &format!("n{}", number + 1)))
            .collect::<Result<_>>()?;
        let credentials = buckets.ceph.credentials();
        run(&options, seed, buckets, &urls, credentials)
    }
}

fn run(
    options: &Options,
    seed: u64,
    mut nodes: impl Nodes,
    urls: &[String],
    environment: Vec<(String, String)>,
) -> Result<()> {
    let mut site = PoolSite::start_for_long(environment)?;
    for (number, url) in (1..).zip(urls) {
        site.add_node(&format!("n{number}"), url, &["--create-bucket"])?;
    }
    site.set_profile(options.profile)?;
    let rounds = Rounds {
        count: options.rounds,
        nodes: NODES,
        known_bytes: options.known_mib << 20,
        down: Duration::from_secs(10),
        patience: Duration::from_mins(10),
        flips: true,
        seed,
    };
    let outcome = rounds.run(&mut site, &mut nodes, |told| println!("{told}"));
    match outcome {
        Ok(summary) => {
            println!("{summary}");
            site.gateway.stop()
        }
        Err(error) => Err(error.context(format!("the gateway said last:\n{}", site.gateway.said()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() -> Result<()> {
        assert_eq!(
            parse("3 --replica")?,
            Options { rounds: 3, profile: "replica:3", folders: false, known_mib: 128 }
        );
        let error = parse("--replicas").expect_err("there is no --replicas").to_string();
        assert!(error.contains("--replicas"), "{error}");
        assert!(parse("0").is_err() && parse("--known-mib").is_err());
        Ok(())
    }
}
