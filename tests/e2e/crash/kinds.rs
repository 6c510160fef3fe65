//! Crashes of other kinds than SIGKILL.

use super::PLAN;
use anyhow::Result;
use system_tests::crash::{self, Kind, Plan, host::Host};
use system_tests::random::Random;

const QUICK: Plan = Plan { run_ms_max: 2000, ..PLAN };

#[test]
fn a_gateway_stopped_past_its_lease_goes_on_and_has_lost_nothing() -> Result<()> {
    let host = Host::new(QUICK.size())?.stopped_past_the_lease();
    let seed = Random::seed_from_environment()?;
    let summary = crash::run(host, Kind::Sigstop, 1, seed, QUICK)?;
    println!("seed {seed}: {summary:?}");
    Ok(())
}
