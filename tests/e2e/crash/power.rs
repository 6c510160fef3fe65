//! What the rounds of power cuts stand on: a drive that loses what it may, and rounds that notice lost flushes.

use super::PLAN;
use anyhow::Result;
use system_tests::crash::{self, Kind, Plan, guest::Guest};
use system_tests::guest::{Drive, Flushes};
use system_tests::random::Random;

mod self_check {
    use super::*;

    const BLOCK: usize = 4096;
    const BLOCKS: u64 = 256;

    #[test]
    fn the_drive_keeps_what_was_flushed_and_any_part_of_the_rest() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut drive = Drive::new(folder.path(), 2 * BLOCKS * BLOCK as u64)?;
        drive.power_on(50, Flushes::ReachTheMedium, Random::seed_from_environment()?)?;
        let mut client = drive.export().connect()?;
        for block in 0..2 * BLOCKS {
            client.write(block * BLOCK as u64, &[1; BLOCK])?;
            if block + 1 == BLOCKS {
                client.flush()?;
            }
        }
        drive.cut_power()?;
        drive.power_on(50, Flushes::ReachTheMedium, 0)?;
        let mut client = drive.export().connect()?;
        let half = usize::try_from(BLOCKS)? * BLOCK;
        assert!(client.read(0, half)?.iter().all(|byte| *byte == 1), "flushed bytes are lost");
        let rest = client.read(half as u64, half)?;
        let whole =
            |value: u8| rest.chunks(BLOCK).filter(|block| block.iter().all(|byte| *byte == value)).count();
        let (kept, lost) = (whole(1), whole(0));
        assert!(
            kept > 0 && lost > 0 && kept + lost < rest.len() / BLOCK,
            "{kept} kept, {lost} lost, none torn"
        );
        Ok(())
    }

    #[test]
    fn a_gateway_whose_flushes_do_not_reach_the_medium_is_caught() -> Result<()> {
        let plan = Plan { run_ms_max: 4000, ..PLAN };
        let guest = Guest::new(plan.size(), Flushes::AreLost)?;
        let found = crash::run(guest, Kind::PowerCut, 5, Random::seed_from_environment()?, plan);
        let found =
            found.map_or_else(|error| format!("{error:#}"), |summary| format!("nothing: {summary:?}"));
        assert!(found.contains("the flushed write"), "{found}");
        Ok(())
    }
}
