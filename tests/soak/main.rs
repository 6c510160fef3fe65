//! The long haul: everything at once on the released program with a real Ceph RGW, for hours, verified all the time, while
//! its memory, threads, file descriptors, log, catalog and pool are watched.
//!
//! `cargo run --release -p system-tests --bin soak -- [HOURS] [--restarts] [--no-outages] [--pool-gib N] [--out FOLDER]`
//!
//! It ends with status 0 when no check failed and nothing that must stay flat grew.
#![expect(clippy::disallowed_methods, reason = "a measurement from outside lives on the machine's own clock")]

mod drift;
mod ending;
mod fio;
mod images;
mod load;
mod metric;
mod options;
mod outages;
mod plot;
mod report;
mod sample;
#[cfg(test)]
mod self_check;
mod site;
mod stamps;
mod visitors;
mod volumes;

use anyhow::{Context, Result};
use load::Load;
use options::Options;
use site::Site;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use system_tests::object_store::Ceph;
use system_tests::random::Random;

fn main() -> Result<ExitCode> {
    let options = Options::parse(std::env::args().skip(1))?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("making the folder {}", options.out.display()))?;
    let seed = Random::seed_from_environment()?;
    eprintln!("soak: {:.2} h, CAIRN_E2E_SEED={seed}, results in {}", options.hours(), options.out.display());

    let mut ceph = Ceph::start()?;
    let site = Site::start(&ceph, &options)?;
    let mut random = Random::seeded(seed);
    let mut loads = loads(&site, &mut random, &options)?;
    let samples = run(&site, &mut ceph, &mut loads, &mut random, &options, &interrupted)?;
    // The store may be down when an outage was cut short.
    ceph.up()?;
    let end = ending::check(&site, &mut loads);
    if let Err(error) = end {
        site.fail("the end", &error);
    }
    let interrupted = interrupted.load(Ordering::SeqCst);
    let verdict = report::write(&site, &samples, &options, seed, interrupted)?;
    site.keep_log(&options.out)?;
    Ok(if verdict.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every kind of load, on volumes of its own, filled where that is needed for memory to reach its level early.
fn loads(site: &Site, random: &mut Random, options: &Options) -> Result<Vec<Box<dyn Load>>> {
    let short = Duration::from_mins(1).min(options.duration / 10);
    let long = Duration::from_mins(5).min(options.duration / 4);
    let (small, large) = (stamps::Shape::small(short), stamps::Shape::large(long));
    Ok(vec![
        Box::new(stamps::Stamps::new(site, small, random.word())?),
        Box::new(stamps::Stamps::new(site, large, random.word())?),
        Box::new(fio::Fio::new(site, random.word())?),
        Box::new(images::Images::new(site, random.word())?),
        Box::new(visitors::Visitors::new(site, random.word())?),
        Box::new(volumes::Volumes::new(random.word())),
    ])
}

/// Runs the loads, the disturbances and the watch side by side until the time is over.
fn run(
    site: &Site,
    ceph: &mut Ceph,
    loads: &mut [Box<dyn Load>],
    random: &mut Random,
    options: &Options,
    interrupted: &AtomicBool,
) -> Result<Vec<sample::Sample>> {
    let mut file = sample::Csv::create(&options.out.join("samples.csv"))?;
    let started = Instant::now();
    let mut samples = Vec::new();
    std::thread::scope(|scope| {
        for load in loads {
            scope.spawn(|| load::drive(&mut **load, site));
        }
        let (outage_seed, restart_seed) = (random.word(), random.word());
        if options.outages {
            scope.spawn(move || outages::interrupt_store(site, ceph, options, outage_seed));
        }
        if options.restarts {
            scope.spawn(move || outages::kill_gateway(site, options, restart_seed));
        }
        while !interrupted.load(Ordering::SeqCst)
            && !site.is_stopped()
            && started.elapsed() < options.duration
        {
            let due = started + options.sample_every * u32::try_from(samples.len()).unwrap_or(u32::MAX);
            if Instant::now() < due {
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
            match sample::take(site, started.elapsed()) {
                Ok(sample) => {
                    file.add(&sample);
                    report::progress(site, &sample, options);
                    samples.push(sample);
                }
                Err(error) => site.fail("the watch", &error),
            }
        }
        site.stop();
    });
    file.finish()?;
    Ok(samples)
}
