//! One contender's round: fresh storage, every workload in the same order.

use crate::Options;
use crate::contender::{Contender, Running};
use crate::fio::{Done, Job, qemu_img_bench};
use crate::report::{Cost, Results, Row};
use crate::sequential::{self, Kind, Source, Until};
use anyhow::Result;
use std::time::{Duration, Instant};

const GIB: f64 = 1_073_741_824.0;
/// The sequential write goes round over this much.
const SEQUENTIAL_AREA: u64 = 8 << 30;

const fn job(mode: &'static str, depth: u32, flush_every: u32) -> Job {
    Job { mode, block_bytes: 4096, depth, flush_every }
}

const RANDOM_WRITES: [(Row, Job); 6] = [
    (Row::Write1, job("randwrite", 1, 0)),
    (Row::Write32, job("randwrite", 32, 0)),
    (Row::WriteFlush1, job("randwrite", 1, 1)),
    (Row::WriteFlush1Every32, job("randwrite", 1, 32)),
    (Row::WriteFlush32, job("randwrite", 32, 1)),
    (Row::WriteFlush32Every32, job("randwrite", 32, 32)),
];

const RANDOM_READS: [(Row, Job); 2] =
    [(Row::Read1, job("randread", 1, 0)), (Row::Read32, job("randread", 32, 0))];

const FLASH_READS: [(Row, Job); 2] =
    [(Row::FlashRead1, job("randread", 1, 0)), (Row::FlashRead32, job("randread", 32, 0))];

const SEQUENTIAL_READ: Job = Job { mode: "read", block_bytes: 1 << 20, depth: 8, flush_every: 0 };

struct Round<'a> {
    contender: Contender,
    options: &'a Options,
    results: &'a mut Results,
    running: Running,
}

pub(crate) fn run(contender: Contender, options: &Options, results: &mut Results) -> Result<()> {
    let mut programs = Source::new(Kind::Programs)?;
    let running = Running::start(contender, SEQUENTIAL_AREA)?;
    let mut round = Round { contender, options, results, running };
    round.write(&mut programs, Until::Bytes(options.area_bytes), options.area_bytes)?;
    round.running.settle()?;
    if !options.only_sustained {
        round.everything_but_sustained()?;
    }
    options.sustained.iter().try_for_each(|&kind| round.sustained(kind, &mut programs))
}

impl Round<'_> {
    fn everything_but_sustained(&mut self) -> Result<()> {
        // One pass warms every cache that wants to be warm.
        SEQUENTIAL_READ.run(&self.running, self.options.area_bytes, 0)?;
        self.sequential_read(Row::SequentialRead)?;
        self.random()?;
        self.sequential_read(Row::ScatteredRead)?;
        self.qemu_img()?;
        self.running.settle()?;
        self.flash()?;
        self.cold()
    }

    fn write(&self, source: &mut Source, until: Until, area: u64) -> Result<u64> {
        match &self.running {
            Running::Disk { file, .. } => sequential::write_file(file, source, area, until),
            Running::Cairn(_) | Running::Peer(_) => {
                let export = self.running.export().expect("a server has an export");
                sequential::write_export(&export, source, area, until)
            }
        }
    }

    fn measure(&mut self, row: Row, job: Job) -> Result<Done> {
        let before = self.running.cpu_seconds()?;
        let done = job.run(&self.running, self.options.area_bytes, self.options.seconds)?;
        self.results.add(self.contender, row, done.operations_per_second);
        if let (Some(before), Some(after)) = (before, self.running.cpu_seconds()?) {
            self.results.add_cpu(self.contender, row, (after - before) / (done.bytes / GIB));
        }
        Ok(done)
    }

    fn random(&mut self) -> Result<()> {
        for (row, job) in RANDOM_READS {
            self.measure(row, job)?;
        }
        for (row, job) in RANDOM_WRITES {
            self.measure(row, job)?;
            // What one workload leaves to destage or write back is not the next one's burden.
            self.running.settle()?;
        }
        Ok(())
    }

    fn sequential_read(&mut self, row: Row) -> Result<()> {
        let before = self.running.cpu_seconds()?;
        let done = SEQUENTIAL_READ.run(&self.running, self.options.area_bytes, 0)?;
        self.results.add(self.contender, row, done.bytes / done.seconds / 1e6);
        if let (Some(before), Some(after)) = (before, self.running.cpu_seconds()?) {
            self.results.add_cpu(self.contender, row, (after - before) / (done.bytes / GIB));
        }
        Ok(())
    }

    fn qemu_img(&mut self) -> Result<()> {
        let Some(export) = self.running.export() else { return Ok(()) };
        let requests = if self.options.quick { 20_000 } else { 100_000 };
        self.results.add(self.contender, Row::QemuImgRead, qemu_img_bench(&export, false, requests)?);
        self.results.add(self.contender, Row::QemuImgWrite, qemu_img_bench(&export, true, requests)?);
        Ok(())
    }

    /// Random reads after a restart, of what was read before it. The server's memory is cold, its flash and the kernel's caches are not.
    fn flash(&mut self) -> Result<()> {
        if self.contender == Contender::NbdkitMemory {
            return Ok(());
        }
        SEQUENTIAL_READ.run(&self.running, self.options.area_bytes, 0)?;
        self.running.restart_with_flash()?;
        for (row, job) in FLASH_READS {
            let before = self.running.pool()?;
            let done = self.measure(row, job)?;
            if let (Some(before), Some(after)) = (before, self.running.pool()?) {
                self.results.add_pool_reads(row, (after.gets - before.gets) / done.operations);
            }
        }
        Ok(())
    }

    fn cold(&mut self) -> Result<()> {
        if self.contender == Contender::NbdkitMemory {
            // It has nothing to come back with.
            return Ok(());
        }
        self.running.restart_cold()?;
        if let Some(export) = self.running.export() {
            let mut client = export.connect()?;
            let started = Instant::now();
            client.read(self.options.area_bytes / 2, 4096)?;
            self.results.add(self.contender, Row::ColdFirstRead, started.elapsed().as_secs_f64() * 1e3);
            client.disconnect()?;
        }
        self.measure(Row::ColdRead1, job("randread", 1, 0))?;
        self.running.restart_cold()?;
        self.sequential_read(Row::ColdSequentialRead)
    }

    fn sustained(&mut self, kind: Kind, programs: &mut Source) -> Result<()> {
        let whole = Duration::from_secs(self.options.sustained_seconds.into());
        match kind {
            Kind::Programs => self.sustained_write(Row::SequentialWrite, programs, whole),
            Kind::Noise => self.sustained_write(Row::SequentialNoise, &mut Source::new(kind)?, whole / 3),
            Kind::Repeats => {
                let mut repeats = Source::new(kind)?;
                // The first copy is everybody's; the clock is for the others.
                self.write(&mut repeats, Until::Bytes(Source::ROUND_BYTES), SEQUENTIAL_AREA)?;
                self.running.settle()?;
                self.sustained_write(Row::SequentialRepeats, &mut repeats, whole / 3)
            }
        }
    }

    /// Writes for a while, and counts the time until everything is where it stays.
    fn sustained_write(&mut self, row: Row, source: &mut Source, time: Duration) -> Result<()> {
        let (cpu, pool) = (self.running.cpu_seconds()?, self.running.pool()?);
        let started = Instant::now();
        let bytes = self.write(source, Until::Elapsed(time), SEQUENTIAL_AREA)?;
        self.running.settle()?;
        let seconds = started.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no 53 bits")]
        let bytes = bytes as f64;
        self.results.add(self.contender, row, bytes / seconds / 1e6);
        if let (Some(before), Some(after)) = (cpu, self.running.cpu_seconds()?) {
            self.results.add_cpu(self.contender, row, (after - before) / (bytes / GIB));
        }
        if let (Some(before), Some(after)) = (pool, self.running.pool()?) {
            self.results.add_cost(
                row,
                Cost {
                    puts_per_gib: (after.puts - before.puts) / (bytes / GIB),
                    bytes_put_per_byte: (after.put_bytes - before.put_bytes) / bytes,
                },
            );
        }
        Ok(())
    }
}
