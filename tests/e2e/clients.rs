//! What libnbd, QEMU, the NBD project's tester and fio see.

use anyhow::Result;
use system_tests::checks::{fio, libnbd, nbd_tester, qemu};
use system_tests::server::Server;
use system_tests::settings::scale;

const MIB: u64 = 1 << 20;

fn script(script: &str, size: u64) -> Result<()> {
    let server = Server::under_test(size)?;
    libnbd::runs_script(&server.export(), size, script)
}

#[test]
fn nbdinfo_sees_the_size_and_every_ability() -> Result<()> {
    let server = Server::under_test(300 * MIB)?;
    libnbd::describes_itself(&server.export(), 300 * MIB)
}

#[test]
fn nbdinfo_lists_the_export() -> Result<()> {
    let server = Server::under_test(MIB)?;
    libnbd::is_listed(&server.export())
}

#[test]
fn nbdcopy_gets_back_what_it_put_in() -> Result<()> {
    let size = 256 * MIB * scale()?;
    let server = Server::under_test(size)?;
    libnbd::copies_both_ways(&server.export(), size, 256 << 10)
}

#[test]
fn nbdcopy_gets_back_what_it_put_in_by_small_requests() -> Result<()> {
    let size = 64 * MIB * scale()?;
    let server = Server::under_test(size)?;
    libnbd::copies_both_ways(&server.export(), size, 4096)
}

#[test]
fn the_option_phase_lets_a_client_look_around_be_refused_and_go_on() -> Result<()> {
    script(include_str!("nbdsh/options.py"), 64 * MIB)
}

#[test]
fn requests_out_of_bounds_are_refused_and_the_connection_goes_on() -> Result<()> {
    script(include_str!("nbdsh/bounds.py"), 64 * MIB)
}

#[test]
fn an_export_that_ends_within_a_block_has_exact_bounds() -> Result<()> {
    script(include_str!("nbdsh/bounds.py"), 64 * MIB + 512)
}

#[test]
fn every_request_flag_does_what_it_says() -> Result<()> {
    script(include_str!("nbdsh/flags.py"), 64 * MIB)
}

#[test]
fn structured_reads_cover_the_request_once() -> Result<()> {
    script(include_str!("nbdsh/structured.py"), 64 * MIB)
}

#[test]
fn block_status_tells_data_from_holes() -> Result<()> {
    script(include_str!("nbdsh/block_status.py"), 64 * MIB)
}

#[test]
fn sixty_four_requests_in_flight_are_all_answered_right() -> Result<()> {
    script(include_str!("nbdsh/in_flight.py"), 64 * MIB)
}

#[test]
fn several_connections_are_one_disk() -> Result<()> {
    script(include_str!("nbdsh/multi_conn.py"), 64 * MIB)
}

#[test]
fn qemu_img_converts_both_ways_and_finds_no_difference() -> Result<()> {
    let size = 256 * MIB * scale()?;
    let server = Server::under_test(size)?;
    qemu::converts_and_compares(&server.export(), size)?;
    qemu::compare_sees_a_difference(&server.export(), size)
}

#[test]
fn qemu_img_maps_data_and_holes() -> Result<()> {
    let server = Server::under_test(64 * MIB)?;
    qemu::maps_data_and_holes(&server.export(), 64 * MIB)
}

#[test]
fn qemu_img_benches_without_an_error() -> Result<()> {
    let server = Server::under_test(256 * MIB)?;
    qemu::benches(&server.export())
}

#[test]
fn qcow2_lives_on_the_export_and_checks_clean() -> Result<()> {
    let server = Server::under_test(1024 * MIB)?;
    qemu::carries_qcow2(&server.export())
}

#[test]
fn nbd_tester_client_finds_the_integrity_run_right() -> Result<()> {
    let server = Server::under_test(nbd_tester::SIZE)?;
    nbd_tester::replays(&server.export(), "integrity-test.tr")
}

#[test]
fn nbd_tester_client_finds_the_huge_integrity_run_right() -> Result<()> {
    let server = Server::under_test(nbd_tester::SIZE)?;
    nbd_tester::replays(&server.export(), "integrityhuge-test.tr")
}

#[test]
fn fio_verifies_random_4k_writes_at_depth_32() -> Result<()> {
    let size = 256 * MIB * scale()?;
    let server = Server::under_test(size)?;
    fio::verifies_random_4k(&server.export(), size)
}

#[test]
fn fio_verifies_mixed_sizes_at_any_sector() -> Result<()> {
    let size = 128 * MIB * scale()?;
    let server = Server::under_test(size)?;
    fio::verifies_mixed_sizes(&server.export(), size)
}

#[test]
fn fio_verifies_that_trims_zero_what_they_name_and_nothing_else() -> Result<()> {
    let size = 128 * MIB * scale()?;
    let server = Server::under_test(size)?;
    fio::verifies_trims(&server.export(), size)
}

#[test]
fn fio_verifies_after_reconnecting_and_after_a_kill() -> Result<()> {
    let size = 256 * MIB * scale()?;
    let mut server = Server::under_test(size)?;
    fio::writes_only(&server.export(), size, 7)?;
    fio::verifies_only(&server.export(), size, 7)?;
    server.kill()?;
    server.restart()?;
    fio::verifies_only(&server.export(), size, 7)
}

mod self_check {
    use super::*;
    use system_tests::peer::Lie;

    const SIZE: u64 = 64 * MIB;
    /// fio ends a failed verification with EILSEQ, whatever it found.
    const FIO_VERIFY: &[&str] = &["err=84"];

    /// Runs the check on a lying server and demands that it fails with one of these words.
    fn assert_caught(
        one_in: u32,
        lie: Lie,
        words: &[&str],
        check: impl FnOnce(&Server) -> Result<()>,
    ) -> Result<()> {
        let server = Server::lying_one_in(one_in, lie, SIZE)?;
        let found = match check(&server) {
            Ok(()) => "nothing".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        assert!(words.iter().any(|word| found.contains(word)), "{lie:?}: {found}");
        Ok(())
    }

    fn copies(server: &Server) -> Result<()> {
        libnbd::copies_both_ways(&server.export(), SIZE, 4096)
    }

    fn verifies(server: &Server) -> Result<()> {
        fio::verifies_random_4k(&server.export(), SIZE)
    }

    #[test]
    fn nbdcopy_and_fio_acquit_an_honest_server() -> Result<()> {
        let server = Server::lying(Lie::Honest, SIZE)?;
        copies(&server)?;
        verifies(&server)
    }

    #[test]
    fn nbdcopy_catches_dropped_and_shifted_blocks() -> Result<()> {
        for lie in [Lie::DropsWrites, Lie::ShiftsWrites] {
            assert_caught(1000, lie, &[" differ: "], copies)?;
        }
        Ok(())
    }

    #[test]
    fn fio_catches_dropped_shifted_and_stale_blocks() -> Result<()> {
        for lie in [Lie::DropsWrites, Lie::ShiftsWrites, Lie::ReadsStale] {
            assert_caught(1000, lie, FIO_VERIFY, verifies)?;
        }
        Ok(())
    }

    #[test]
    fn fio_catches_a_trim_that_stops_halfway() -> Result<()> {
        let check = |server: &Server| fio::verifies_trims(&server.export(), SIZE);
        assert_caught(1, Lie::HalfTrims, FIO_VERIFY, check)
    }

    #[test]
    fn fio_catches_writes_that_a_kill_destroys_after_a_flush() -> Result<()> {
        let mut server = Server::lying(Lie::IgnoresFlush, SIZE)?;
        fio::writes_only(&server.export(), SIZE, 7)?;
        server.kill()?;
        server.restart()?;
        assert!(fio::verifies_only(&server.export(), SIZE, 7).is_err(), "a lost flush was not noticed");
        Ok(())
    }

    #[test]
    fn nbd_tester_client_catches_dropped_writes() -> Result<()> {
        // Its log reads little of what it writes: one lost write in a thousand is below its sight.
        let check = |server: &Server| nbd_tester::replays(&server.export(), "integrity-test.tr");
        assert_caught(20, Lie::DropsWrites, &["Bad reply data"], check)
    }
}
