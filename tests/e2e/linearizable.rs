//! Many clients on a few hot blocks, while the server is killed, stopped and started again: one order explains it all.

use anyhow::{Context, Result};
use system_tests::gateway::Gateway;
use system_tests::linearizable::{self, Plan, Summary};
use system_tests::peer::Lie;
use system_tests::random::Random;
use system_tests::server::Server;
use system_tests::settings;
use system_tests::tool::Tool;

fn plan() -> Result<Plan> {
    Ok(Plan {
        restarts: settings::crash_rounds()?,
        orderly_one_in: 4,
        volume_blocks: 65_536,
        hot_blocks: 64,
        connections: (4, 8),
        depth_max: 16,
        write_blocks_max: 8,
        abandon_one_in: 2000,
        run_ms_max: 1500,
        seed: Random::seed_from_environment()?,
    })
}

fn attack(server: &mut Server, plan: Plan) -> Result<()> {
    let summary = linearizable::run(server, plan)?;
    println!("seed {}: {summary:?}", plan.seed);
    assert!(summary.operations > 0 && summary.flushes > 0, "the clients did nothing: {summary:?}");
    assert!(summary.concurrency_max > 1, "no two operations met: {summary:?}");
    Ok(())
}

#[test]
fn reads_and_writes_across_restarts_have_one_order() -> Result<()> {
    let plan = plan()?;
    attack(&mut Server::under_test(plan.size())?, plan)
}

#[test]
fn reads_and_writes_across_restarts_have_one_order_while_the_gateway_destages_all_the_time() -> Result<()> {
    let plan = plan()?;
    let mut server = Server::under_test_in_little_room(plan.size())?;
    attack(&mut server, plan)?;
    if let Server::Cairn { gateway, .. } = &server {
        let batches = batches(gateway)?;
        println!("{batches} batches");
        assert!(batches > u64::from(plan.restarts), "it hardly destaged: {batches} batches");
    }
    Ok(())
}

/// Batches that were committed over all lives of the gateway. Segments would not tell: reclaim takes back those of which nothing is left.
fn batches(gateway: &Gateway) -> Result<u64> {
    let script = "import sqlite3, sys; c = sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True); \
        print(c.execute('SELECT sum(batches) FROM gateways').fetchone()[0])";
    let said = Tool::new("python3").args(["-c", script]).arg(gateway.dir().join("catalog.db")).run()?.stdout;
    said.trim().parse().with_context(|| format!("{said:?} is no number of batches"))
}

mod self_check {
    use super::*;

    /// How often a lie is told, and how many lives the rounds have to find it. Only SIGKILL ends them: some lies leave a
    /// connection waiting, which an orderly end would wait for.
    fn run(lie: Lie, one_in: u32, restarts: u32) -> Result<Summary> {
        let plan = Plan { restarts, orderly_one_in: 0, volume_blocks: 4096, run_ms_max: 600, ..plan()? };
        let mut server = Server::lying_one_in(one_in, lie, plan.size())?;
        linearizable::run(&mut server, plan)
    }

    fn assert_found(lie: Lie, one_in: u32, expected: &[&str]) {
        match run(lie, one_in, 32) {
            Ok(summary) => panic!("{lie:?} was not found: {summary:?}"),
            Err(error) => {
                let said = format!("{error:#}");
                println!("{said}");
                assert!(expected.iter().any(|words| said.contains(words)), "{lie:?}: {said}");
            }
        }
    }

    const NO_ORDER: &str = "is not linearizable";

    #[test]
    fn an_honest_server_is_acquitted() -> Result<()> {
        let summary = run(Lie::Honest, 1000, 4)?;
        println!("{summary:?}");
        assert!(summary.operations > 1000 && summary.unanswered > 0, "{summary:?}");
        Ok(())
    }

    #[test]
    fn a_server_that_reads_stale_blocks_is_caught() {
        assert_found(Lie::ReadsStale, 1000, &[NO_ORDER]);
    }

    #[test]
    fn a_server_that_drops_a_write_in_a_thousand_is_caught() {
        assert_found(Lie::DropsWrites, 1000, &[NO_ORDER]);
    }

    #[test]
    fn a_server_that_zeroes_half_of_what_it_should_is_caught() {
        assert_found(Lie::HalfTrims, 1000, &["torn: ", NO_ORDER]);
    }

    #[test]
    fn a_server_that_shifts_a_write_in_a_thousand_is_caught() {
        assert_found(Lie::ShiftsWrites, 1000, &["holds the bytes of block", NO_ORDER]);
    }

    #[test]
    fn a_server_that_tears_blocks_is_caught() {
        assert_found(Lie::TearsWrites, 1000, &["torn: ", NO_ORDER]);
    }

    #[test]
    fn a_server_that_holds_acknowledged_writes_in_its_memory_is_caught() {
        assert_found(Lie::LosesUnflushed, 1000, &[NO_ORDER]);
    }

    #[test]
    fn a_server_that_lets_writes_wait_while_others_pass_is_caught() {
        assert_found(Lie::Reorders, 1000, &[NO_ORDER]);
    }

    #[test]
    fn a_server_that_answers_a_write_before_others_can_see_it_is_caught() {
        assert_found(Lie::AnswersEarly, 200, &[NO_ORDER]);
    }

    #[test]
    fn a_server_that_shows_a_write_that_it_may_still_lose_is_caught() {
        assert_found(Lie::ShowsEarly, 30, &[NO_ORDER]);
    }

    #[test]
    fn a_server_that_brings_an_unanswered_write_back_after_a_restart_is_caught() {
        assert_found(Lie::RevivesWrites, 100, &[NO_ORDER]);
    }
}
