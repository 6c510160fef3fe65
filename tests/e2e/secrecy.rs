//! Nothing readable leaves the process.

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use system_tests::gateway::Gateway;
use system_tests::random::Random;

const MARKER: &[u8] = b"PLAINTEXT-MARKER-7f3a91c4";
const BLOCK: usize = 4096;

/// Every file below a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(kind) = entry.file_type() else { continue };
        match kind {
            kind if kind.is_dir() => found.extend(files(&entry.path())?),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    Ok(found)
}

/// The files below a folder that hold one of these, and which.
fn holders(folder: &Path, secrets: &[&[u8]]) -> Result<Vec<String>> {
    let mut holders = Vec::new();
    for file in files(folder)? {
        // Some come and go.
        let Ok(bytes) = fs::read(&file) else { continue };
        for secret in secrets {
            if memchr::memmem::find(&bytes, secret).is_some() {
                holders.push(format!("{}: {}", file.display(), String::from_utf8_lossy(secret)));
            }
        }
    }
    Ok(holders)
}

/// Writes markers alone, in text and in noise.
fn write_markers(gateway: &Gateway) -> Result<()> {
    let mut client = gateway.export("vol").connect()?;
    let mut random = Random::seeded(4);
    for number in 0..256_u64 {
        let mut block = vec![b' '; BLOCK];
        match number % 3 {
            0 => random.fill(&mut block),
            1 => block = MARKER.repeat(BLOCK / MARKER.len() + 1)[..BLOCK].to_vec(),
            _ => {}
        }
        let at = random.index(BLOCK - MARKER.len());
        block[at..at + MARKER.len()].copy_from_slice(MARKER);
        client.write(number * 2 * BLOCK as u64, &block)?;
    }
    client.flush()
}

#[test]
fn markers_and_keys_are_in_no_file_no_log_and_no_core() -> Result<()> {
    let mut gateway = Gateway::new()?;
    gateway.command(["init"]).run()?;
    gateway.start()?;
    gateway.create_volume("vol", 64 << 20)?;
    write_markers(&gateway)?;
    let key = fs::read_to_string(gateway.dir().join("key"))?;
    let digits = key.lines().nth(1).context("the key file has its digits in line 2")?.to_owned();
    let raw = hex::decode(&digits)?;
    let secrets: [&[u8]; 3] = [MARKER, &raw, digits.as_bytes()];
    let elsewhere = |gateway: &Gateway| -> Result<Vec<String>> {
        let mut found = holders(&gateway.dir(), &secrets)?;
        found.retain(|holder| !holder.starts_with(&*gateway.dir().join("key").to_string_lossy()));
        let log = fs::read(gateway.log())?;
        if secrets.iter().any(|secret| memchr::memmem::find(&log, secret).is_some()) {
            found.push("the log".to_owned());
        }
        Ok(found)
    };
    assert_eq!(elsewhere(&gateway)?, Vec::<String>::new(), "with everything in the log");
    gateway.destage()?;
    gateway.kill()?;
    gateway.start()?;
    let read = gateway.export("vol").connect()?.read(0, 256 * 2 * BLOCK)?;
    assert!(memchr::memmem::find(&read, MARKER).is_some(), "the search finds what is there");
    assert_eq!(elsewhere(&gateway)?, Vec::<String>::new(), "with everything in the pool and on flash");
    no_core(&mut gateway)
}

/// A signal that dumps core, without a limit, leaves none.
fn no_core(gateway: &mut Gateway) -> Result<()> {
    let process = gateway.process()?;
    let id = process.id();
    let pid = rustix::process::Pid::from_raw(i32::try_from(id)?).context("a process has an id")?;
    let unlimited = rustix::process::Rlimit { current: None, maximum: None };
    // Whatever the program has set for itself: what keeps a core away must not be this limit alone.
    match rustix::process::prlimit(Some(pid), rustix::process::Resource::Core, unlimited) {
        // The program's own limit stands, and nobody here may raise it.
        Ok(_) | Err(rustix::io::Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let folder = fs::read_link(format!("/proc/{id}/cwd"))?;
    process.signal(Signal::ABORT)?;
    for _ in 0..200 {
        if !Path::new(&format!("/proc/{id}/fd")).exists() || fs::read_dir(format!("/proc/{id}/fd")).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    gateway.kill()?;
    let cores: Vec<_> = fs::read_dir(&folder)?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| name == "core" || name.starts_with("core."))
        .collect();
    if !cores.is_empty() {
        bail!("a core was dumped in {}: {cores:?}", folder.display());
    }
    Ok(())
}
