//! Crashes of all kinds, mixed.

use super::PLAN;
use anyhow::Result;
use system_tests::crash::{self, Kind, Plan, host::Host, mix};
use system_tests::random::Random;
use system_tests::settings;

const QUICK: Plan = Plan { run_ms_max: 2000, ..PLAN };

#[test]
fn no_mixture_of_crashes_breaks_a_promise() -> Result<()> {
    let (seed, rounds) = (Random::seed_from_environment()?, settings::mixed_crash_rounds()?);
    let table = mix::run(rounds, seed, QUICK)?;
    println!("seed {seed}\n{table}");
    assert_eq!(table.kinds().count(), Kind::ALL.len().min(usize::try_from(rounds)?));
    for (kind, done) in table.kinds() {
        assert!(done.writes > 0, "the writers did nothing under {kind}: {done:?}");
    }
    Ok(())
}

#[test]
fn a_gateway_stopped_past_its_lease_goes_on_and_has_lost_nothing() -> Result<()> {
    let host = Host::new(QUICK.size())?.stopped_past_the_lease();
    let seed = Random::seed_from_environment()?;
    let summary = crash::run(host, Kind::Sigstop, 1, seed, QUICK)?;
    println!("seed {seed}: {summary:?}");
    Ok(())
}
