//! The loads on servers of which it is known whether they lie: honest ones pass, lying ones are caught, by the same functions
//! that run against the gateway.

use crate::fio::Job;
use crate::images::Carrier;
use crate::stamps::{Shape, Stamps};
use crate::visitors::Visits;
use crate::volumes::Sparse;
use crate::{fio, images, visitors};
use anyhow::{Result, bail};
use std::time::{Duration, Instant};
use system_tests::checks::make_source;
use system_tests::peer::Lie;
use system_tests::random::Random;
use system_tests::server::Server;

const MIB: u64 = 1 << 20;
/// How seldom the servers lie: an image is a few dozen writes, a round of stamps thousands.
const ONE_IN: u32 = 10;

/// A check passes on an honest server and fails on a lying one, with words that say why.
fn assert_catches(lie: Lie, size: u64, words: &[&str], check: impl Fn(&Server) -> Result<()>) -> Result<()> {
    check(&Server::lying(Lie::Honest, size)?)?;
    let lying = Server::lying_one_in(ONE_IN, lie, size)?;
    let Err(error) = check(&lying) else { bail!("{lie:?} was not noticed") };
    let found = format!("{error:#}");
    assert!(words.iter().any(|word| found.contains(word)), "{lie:?}: {found}");
    Ok(())
}

fn rounds_of_stamps(server: &Server) -> Result<()> {
    let shape = Shape { blocks: 4096, ..Shape::small(Duration::from_secs(2)) };
    let mut stamps = Stamps::on(server.export(), shape, 7)?;
    for _ in 0..4 {
        let started = Instant::now();
        let is_over = || started.elapsed() > shape.round;
        let summary = stamps.write_and_judge(8 * MIB, is_over, &|what| what(0))?;
        assert!(summary.writes > 0 && summary.reads > 0, "the writers did nothing: {summary:?}");
    }
    Ok(())
}

#[test]
fn stamps_find_a_dropped_write() -> Result<()> {
    let words = ["the acknowledged write", "the flushed write", "missing the acknowledged", "no prefix"];
    assert_catches(Lie::DropsWrites, 16 * MIB, &words, rounds_of_stamps)
}

#[test]
fn stamps_find_a_shifted_write() -> Result<()> {
    assert_catches(Lie::ShiftsWrites, 16 * MIB, &["holds the bytes of block"], rounds_of_stamps)
}

#[test]
fn stamps_find_a_stale_read() -> Result<()> {
    let words = ["a read of block", "the acknowledged write", "the flushed write", "no prefix"];
    assert_catches(Lie::ReadsStale, 16 * MIB, &words, rounds_of_stamps)
}

#[test]
fn fio_finds_a_dropped_write() -> Result<()> {
    for job in [Job::Random4k, Job::MixedSizes, Job::Later] {
        assert_catches(Lie::DropsWrites, 8 * MIB, &["verify", "magic"], |server| {
            fio::check(job, &server.export(), 8 * MIB)
        })?;
    }
    Ok(())
}

#[test]
fn fio_finds_half_a_trim() -> Result<()> {
    assert_catches(Lie::HalfTrims, 8 * MIB, &["verify"], |server| {
        fio::check(Job::Trims, &server.export(), 8 * MIB)
    })
}

#[test]
fn images_find_a_dropped_write() -> Result<()> {
    for carrier in [Carrier::QemuImg, Carrier::NbdCopy] {
        assert_catches(Lie::DropsWrites, 64 * MIB, &["mismatch", "differ"], |server| {
            let folder = tempfile::tempdir()?;
            let (source, back) = (folder.path().join("source"), folder.path().join("back"));
            make_source(&source, 64 * MIB, 11)?;
            images::carry(carrier, &server.export(), &source, &back)
        })?;
    }
    Ok(())
}

fn visits(server: &Server) -> Result<()> {
    let mut visits = Visits::new(server.export(), 3)?;
    for _ in 0..20 {
        for _ in 0..16 {
            visits.visit()?;
        }
        visits.judge_all()?;
    }
    Ok(())
}

#[test]
fn visitors_find_a_dropped_write() -> Result<()> {
    assert_catches(Lie::DropsWrites, visitors::SIZE, &["instead of the acknowledged"], visits)
}

#[test]
fn visitors_find_a_shifted_write() -> Result<()> {
    assert_catches(
        Lie::ShiftsWrites,
        visitors::SIZE,
        &["holds the bytes of block", "parts of two writes"],
        visits,
    )
}

#[test]
fn sparse_volumes_find_a_dropped_write_and_a_stray_one() -> Result<()> {
    let check = |server: &Server| {
        let mut random = Random::seeded(5);
        let mut volume = Sparse::new("sparse".to_owned(), 77, 16 * MIB / 4096);
        for _ in 0..10 {
            volume.scatter(&server.export(), 0, &mut random)?;
            volume.check(&server.export(), &mut random)?;
        }
        Ok(())
    };
    assert_catches(Lie::DropsWrites, 16 * MIB, &["holds Zero, not", "not Write"], check)?;
    assert_catches(Lie::ShiftsWrites, 16 * MIB, &["holds Zero, not", "holds the bytes of block"], check)
}

#[test]
fn a_sparse_volume_finds_what_shines_through_from_before() -> Result<()> {
    let server = Server::lying(Lie::Honest, 16 * MIB)?;
    let mut random = Random::seeded(5);
    let mut before = Sparse::new("name".to_owned(), 77, 16 * MIB / 4096);
    before.scatter(&server.export(), 0, &mut random)?;
    let after = Sparse::new("name".to_owned(), 78, 16 * MIB / 4096);
    let found: Vec<_> = (0..20).filter_map(|_| after.check(&server.export(), &mut random).err()).collect();
    assert!(!found.is_empty(), "the data of the volume that had the name before was not noticed");
    Ok(())
}
