//! Crashes at random moments under concurrent flushing writers.

mod kinds;
mod power;
mod verify_state;

use anyhow::Result;
use system_tests::crash::{self, Kind, Plan};
use system_tests::peer::Lie;
use system_tests::random::Random;
use system_tests::server::Server;
use system_tests::settings;

const PLAN: Plan =
    Plan { blocks: 16_384, connections_max: 4, depth_max: 16, write_blocks_max: 16, run_ms_max: 3000 };

#[test]
fn sigkill_loses_nothing_acknowledged_tears_no_block_and_leaves_a_prefix() -> Result<()> {
    let seed = Random::seed_from_environment()?;
    let server = Server::under_test(PLAN.size())?;
    let summary = crash::run(server, Kind::Sigkill, settings::crash_rounds()?, seed, PLAN)?;
    println!("seed {seed}: {summary:?}");
    assert!(summary.writes > 0 && summary.flushes > 0, "the writers did nothing: {summary:?}");
    Ok(())
}

mod self_check {
    use super::*;

    const NOTHING: &str = "nothing found";

    /// Runs the rounds on a lying server and demands that they find one of these.
    fn assert_found(lie: Lie, kind: Kind, expected: &[&str]) -> Result<()> {
        // A buffered write of several pages may be cut between two by the kill, so an honest file is only honest
        // about single blocks.
        let rounds = if expected == [NOTHING] { 6 } else { 100 };
        let short = Plan { blocks: 4096, run_ms_max: 1500, write_blocks_max: 1, ..PLAN };
        let plan = Plan { connections_max: 2, depth_max: 2, ..short };
        let server = Server::lying(lie, plan.size())?;
        let found = match crash::run(server, kind, rounds, Random::seed_from_environment()?, plan) {
            Ok(summary) => format!("{NOTHING}: {summary:?}"),
            Err(error) => format!("{error:#}"),
        };
        assert!(expected.iter().any(|words| found.contains(words)), "{lie:?}: {found}");
        Ok(())
    }

    #[test]
    fn an_honest_server_is_acquitted() -> Result<()> {
        assert_found(Lie::Honest, Kind::Sigkill, &[NOTHING])
    }

    #[test]
    fn losing_what_was_not_flushed_is_allowed_when_power_is_cut() -> Result<()> {
        assert_found(Lie::LosesUnflushed, Kind::PowerCut, &[NOTHING])
    }

    #[test]
    fn a_server_that_ignores_flush_is_caught() -> Result<()> {
        assert_found(Lie::IgnoresFlush, Kind::PowerCut, &["the flushed write"])
    }

    #[test]
    fn a_server_that_holds_acknowledged_writes_in_its_memory_is_caught() -> Result<()> {
        assert_found(Lie::LosesUnflushed, Kind::Sigkill, &["the acknowledged write"])
    }

    #[test]
    fn a_server_that_tears_blocks_is_caught() -> Result<()> {
        assert_found(Lie::TearsWrites, Kind::PowerCut, &["torn: "])
    }

    #[test]
    fn a_server_that_persists_out_of_order_is_caught() -> Result<()> {
        assert_found(Lie::Reorders, Kind::PowerCut, &["no prefix of the write order"])
    }

    #[test]
    fn a_server_that_drops_a_write_in_a_thousand_is_caught() -> Result<()> {
        assert_found(
            Lie::DropsWrites,
            Kind::PowerCut,
            &["missing the acknowledged", "the flushed write", "no prefix"],
        )
    }

    #[test]
    fn a_server_that_shifts_a_write_in_a_thousand_is_caught() -> Result<()> {
        assert_found(Lie::ShiftsWrites, Kind::PowerCut, &["holds the bytes of block"])
    }

    #[test]
    fn a_server_that_reads_stale_blocks_is_caught() -> Result<()> {
        assert_found(Lie::ReadsStale, Kind::PowerCut, &["a read of block", "the flushed write", "no prefix"])
    }
}
