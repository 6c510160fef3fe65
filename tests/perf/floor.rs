//! What the disk gives to a program that does what Cairn does to make data durable, and nothing else: every byte is written twice, once
//! to a log and once to a pool. With embedded defaults both are on one disk, so that this is a measure of theirs beside the processor's.

use anyhow::{Context, Result};
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
/// What direct I/O aligns memory to.
const PAGE: usize = 4096;
/// MiB of the log, which is written round and round.
const LOG: u64 = 1024;
/// MiB of an object of the pool.
const OBJECT: u64 = 8;
/// Objects that are written at a time, as `uploads` are by default.
const WRITERS: u64 = 4;
/// MiB that the log and the pool may be apart.
const APART: u64 = 256;

/// How many MiB are in each.
#[derive(Default)]
struct Written {
    log: u64,
    pool: u64,
}

struct Floor {
    written: Mutex<Written>,
    changed: Condvar,
    ends: Instant,
}

impl Floor {
    fn is_over(&self) -> bool {
        Instant::now() >= self.ends
    }

    fn wait_while(&self, too_far: impl Fn(&Written) -> bool) {
        let mut written = self.written.lock().expect("no thread panics with it");
        while too_far(&written) && !self.is_over() {
            let pause = Duration::from_millis(20);
            written = self.changed.wait_timeout(written, pause).expect("no thread panics with it").0;
        }
    }

    fn add(&self, add: impl FnOnce(&mut Written)) {
        add(&mut self.written.lock().expect("no thread panics with it"));
        self.changed.notify_all();
    }

    fn log(&self, file: &File, bytes: &[u8]) -> Result<()> {
        let mut at = 0;
        while !self.is_over() {
            self.wait_while(|written| written.log > written.pool + APART);
            file.write_all_at(bytes, at % LOG * MIB as u64)?;
            at += 1;
            self.add(|written| written.log += 1);
        }
        Ok(())
    }

    fn pool(&self, folder: &Path, writer: u64, bytes: &[u8]) -> Result<()> {
        let mut object = 0;
        while !self.is_over() {
            self.wait_while(|written| written.pool > written.log + APART);
            let staged = folder.join(format!("{writer}.staged"));
            let file = direct(&staged)?;
            for at in 0..OBJECT {
                file.write_all_at(bytes, at * MIB as u64)?;
            }
            file.sync_all()?;
            std::fs::rename(&staged, folder.join(format!("{writer}-{object}")))?;
            File::open(folder)?.sync_all()?;
            object += 1;
            self.add(|written| written.pool += OBJECT);
        }
        Ok(())
    }
}

/// Opens a file for direct I/O, as Cairn does where the file system can.
fn direct(path: &Path) -> Result<File> {
    let flag = i32::try_from(OFlags::DIRECT.bits()).context("open flags fit an int")?;
    let open = |flags| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).custom_flags(flags).open(path)
    };
    let cannot = Some(rustix::io::Errno::INVAL.raw_os_error());
    match open(flag) {
        Err(error) if error.raw_os_error() == cannot => open(0),
        opened => opened,
    }
    .with_context(|| format!("opening {}", path.display()))
}

/// MB of data in a second that reach both.
pub(crate) fn log_and_pool(time: Duration) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let mut storage = vec![0; MIB + PAGE];
    let start = storage.as_ptr().align_offset(PAGE);
    let bytes = &mut storage[start..start + MIB];
    getrandom::fill(bytes).context("no random bytes")?;
    let bytes = &*bytes;
    let log = direct(&folder.path().join("log"))?;
    for at in 0..LOG {
        log.write_all_at(bytes, at * MIB as u64)?;
    }
    log.sync_all()?;
    let started = Instant::now();
    let floor = Floor { written: Mutex::default(), changed: Condvar::new(), ends: started + time };
    let (floor, path) = (&floor, folder.path());
    thread::scope(|scope| {
        let mut threads = vec![scope.spawn(|| floor.log(&log, bytes))];
        threads.extend((0..WRITERS).map(|writer| scope.spawn(move || floor.pool(path, writer, bytes))));
        threads.into_iter().try_for_each(|thread| thread.join().expect("a thread of the floor panicked"))
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let written = floor.written.lock().expect("no thread panics with it");
    #[expect(clippy::cast_precision_loss, reason = "a rate needs no 53 bits")]
    let mib = written.log.min(written.pool) as f64;
    Ok(mib * 1.048_576 / seconds)
}
