//! Sustained sequential writing of data that fio cannot make. Its clock stops at the last reply, not when everything is where it stays;
//! of its buffers only the incompressible ones (`refill_buffers`) are like anything real, and they cost the generator a core that
//! the server needs; its `dedupe_percentage` repeats single requests in random order, which is nothing like a second copy of an image.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};
use system_tests::export::Export;
use system_tests::nbd::{Client, Command};

const REQUEST: usize = 1 << 20;
const DEPTH: usize = 8;
const SOURCE_BYTES: usize = 64 << 20;

/// What a stream is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The content of `/usr/bin`, every block made unique: it compresses as programs do and never repeats.
    Programs,
    /// Random bytes, every block made unique: nothing to compress, nothing to share.
    Noise,
    /// The content of `/usr/bin` as it is, again and again at other addresses: all but the first round of it was seen before.
    Repeats,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Programs, Self::Noise, Self::Repeats];

    const fn name(self) -> &'static str {
        match self {
            Self::Programs => "programs",
            Self::Noise => "noise",
            Self::Repeats => "repeats",
        }
    }

    pub(crate) fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).with_context(|| format!("no kind {name:?}"))
    }
}

/// Bytes kept in memory.
pub(crate) struct Source {
    bytes: Vec<u8>,
    /// Unique in each block; nothing when blocks are to repeat.
    stamp: Option<u64>,
}

impl Source {
    pub(crate) fn new(kind: Kind) -> Result<Self> {
        Ok(match kind {
            Kind::Programs => Self { bytes: programs()?, stamp: Some(0) },
            Kind::Noise => Self { bytes: noise()?, stamp: Some(0) },
            Kind::Repeats => Self { bytes: programs()?, stamp: None },
        })
    }

    /// After so many bytes a source begins again.
    pub(crate) const ROUND_BYTES: u64 = SOURCE_BYTES as u64;

    /// The next MiB, each of its blocks changed, unless they are to repeat, so that none was ever written before.
    fn next(&mut self, at: usize) -> &[u8] {
        let start = at % (SOURCE_BYTES / REQUEST) * REQUEST;
        let bytes = &mut self.bytes[start..start + REQUEST];
        if let Some(stamp) = &mut self.stamp {
            for block in bytes.chunks_exact_mut(4096) {
                *stamp += 1;
                block[..8].copy_from_slice(&stamp.to_le_bytes());
            }
        }
        bytes
    }
}

fn noise() -> Result<Vec<u8>> {
    let mut bytes = vec![0; SOURCE_BYTES];
    getrandom::fill(&mut bytes).context("no random bytes")?;
    Ok(bytes)
}

fn programs() -> Result<Vec<u8>> {
    let mut files: Vec<_> =
        std::fs::read_dir("/usr/bin")?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    let mut bytes = Vec::with_capacity(SOURCE_BYTES);
    for file in files.iter().filter(|file| file.is_file()) {
        let room = SOURCE_BYTES - bytes.len();
        File::open(file)?.take(room as u64).read_to_end(&mut bytes)?;
    }
    if bytes.len() < SOURCE_BYTES {
        bail!("/usr/bin holds only {} bytes, {SOURCE_BYTES} are needed", bytes.len());
    }
    Ok(bytes)
}

/// How long to go on.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    Bytes(u64),
    Elapsed(Duration),
}

impl Until {
    fn is_reached(self, bytes: u64, started: Instant) -> bool {
        match self {
            Until::Bytes(limit) => bytes >= limit,
            Until::Elapsed(limit) => started.elapsed() >= limit,
        }
    }
}

/// Writes round and round over the first `area` bytes of an export; returns the bytes written.
pub(crate) fn write_export(export: &Export, source: &mut Source, area: u64, until: Until) -> Result<u64> {
    let mut client = export.connect()?;
    let started = Instant::now();
    let (mut sent, mut in_flight) = (0_usize, 0);
    let requests = usize::try_from(area)? / REQUEST;
    while !until.is_reached((sent * REQUEST) as u64, started) {
        if in_flight == DEPTH {
            receive(&mut client)?;
            in_flight -= 1;
        }
        let offset = (sent % requests * REQUEST) as u64;
        client.send(Command::Write, 0, offset, REQUEST, source.next(sent))?;
        sent += 1;
        in_flight += 1;
    }
    for _ in 0..in_flight {
        receive(&mut client)?;
    }
    client.flush()?;
    client.disconnect()?;
    Ok((sent * REQUEST) as u64)
}

fn receive(client: &mut Client) -> Result<()> {
    let reply = client.receive()?;
    if reply.error != 0 {
        bail!("a write was answered with errno {}", reply.error);
    }
    Ok(())
}

/// The same on a plain file.
pub(crate) fn write_file(
    file: &std::path::Path,
    source: &mut Source,
    area: u64,
    until: Until,
) -> Result<u64> {
    let file = File::options().write(true).open(file).context("opening the disk file")?;
    let started = Instant::now();
    let mut written = 0_usize;
    let requests = usize::try_from(area)? / REQUEST;
    while !until.is_reached((written * REQUEST) as u64, started) {
        file.write_all_at(source.next(written), (written % requests * REQUEST) as u64)?;
        written += 1;
    }
    file.sync_data()?;
    Ok((written * REQUEST) as u64)
}
