//! Who is measured, and how each is started on fresh storage.

use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::time::Duration;
use system_tests::export::Export;
use system_tests::gateway::Gateway;
use system_tests::peer::{Kind, Peer};
use system_tests::process::Process;
use system_tests::tool::Tool;
use tempfile::TempDir;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contender {
    Cairn,
    QemuNbd,
    NbdkitFile,
    NbdkitMemory,
    Disk,
}

impl Contender {
    pub(crate) const ALL: [Self; 5] =
        [Self::Cairn, Self::QemuNbd, Self::NbdkitFile, Self::NbdkitMemory, Self::Disk];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cairn => "cairn",
            Self::QemuNbd => "qemu-nbd",
            Self::NbdkitFile => "nbdkit-file",
            Self::NbdkitMemory => "nbdkit-memory",
            Self::Disk => "disk",
        }
    }

    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::Cairn => "`cairn up`, embedded defaults, pool in a local directory",
            Self::QemuNbd => "`qemu-nbd --cache=writeback --aio=threads` on a raw file",
            Self::NbdkitFile => "`nbdkit file` on a raw file, no flush of its own",
            Self::NbdkitMemory => {
                "`nbdkit memory`: the protocol and nothing else, loses everything at its end"
            }
            Self::Disk => {
                "fio on a file of the same disk that was written before, O_DIRECT, no server: the floor"
            }
        }
    }

    pub(crate) fn parse(name: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|contender| contender.name() == name) {
            Some(contender) => Ok(contender),
            None => bail!("unknown contender {name}; there are {}", Self::ALL.map(Self::name).join(", ")),
        }
    }
}

/// A contender at work.
pub(crate) enum Running {
    Cairn(Gateway),
    Peer(Peer),
    Disk { file: PathBuf, _folder: TempDir },
}

/// Counters of Cairn's pool.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PoolCounters {
    pub(crate) puts: f64,
    pub(crate) put_bytes: f64,
    pub(crate) gets: f64,
}

const VOLUME: &str = "bench";

/// The least that a gateway takes: what is read from flash must not come from memory.
const SMALL_MEMORY: &str = "[memory]\nblock_cache = \"16MiB\"\n";

fn set_configuration(gateway: &Gateway, text: &str) -> Result<()> {
    Ok(std::fs::write(gateway.dir().join("cairn.toml"), text)?)
}

impl Running {
    pub(crate) fn start(contender: Contender, size: u64) -> Result<Self> {
        let peer = |kind| Ok(Self::Peer(Peer::start(kind, size)?));
        match contender {
            Contender::Cairn => {
                let gateway = Gateway::start_fresh()?;
                gateway.create_volume(VOLUME, size)?;
                Ok(Self::Cairn(gateway))
            }
            Contender::QemuNbd => peer(Kind::QemuNbd { cache: "writeback", aio: "threads" }),
            Contender::NbdkitFile => peer(Kind::NbdkitFile),
            Contender::NbdkitMemory => peer(Kind::NbdkitMemory),
            Contender::Disk => {
                let folder = TempDir::new()?;
                let file = folder.path().join("disk");
                std::fs::File::create(&file)?.set_len(size)?;
                Ok(Self::Disk { file, _folder: folder })
            }
        }
    }

    pub(crate) fn export(&self) -> Option<Export> {
        match self {
            Self::Cairn(gateway) => Some(gateway.export(VOLUME)),
            Self::Peer(peer) => Some(peer.export()),
            Self::Disk { .. } => None,
        }
    }

    /// fio's engine and target.
    pub(crate) fn fio_target(&self) -> Vec<String> {
        match self {
            Self::Disk { file, .. } => {
                vec![
                    "--ioengine=libaio".into(),
                    "--direct=1".into(),
                    format!("--filename={}", file.display()),
                ]
            }
            Self::Cairn(_) | Self::Peer(_) => {
                let uri = self.export().expect("a server has an export").uri();
                vec!["--ioengine=nbd".into(), format!("--uri={uri}")]
            }
        }
    }

    /// fio's word for a flush: its nbd engine knows only `fsync`, a file needs only `fdatasync`.
    pub(crate) fn fio_flush(&self) -> &'static str {
        match self {
            Self::Disk { .. } => "fdatasync",
            Self::Cairn(_) | Self::Peer(_) => "fsync",
        }
    }

    fn process(&self) -> Result<Option<&Process>> {
        match self {
            Self::Cairn(gateway) => gateway.process().map(Some),
            Self::Peer(peer) => peer.process().map(Some),
            Self::Disk { .. } => Ok(None),
        }
    }

    /// Processor time of the server so far; nothing for the bare disk.
    pub(crate) fn cpu_seconds(&self) -> Result<Option<f64>> {
        self.process()?.map(Process::cpu_seconds).transpose()
    }

    /// Waits until everything written has reached the place where it stays.
    pub(crate) fn settle(&self) -> Result<()> {
        match self {
            Self::Cairn(gateway) => gateway.destage(),
            Self::Peer(peer) => peer.export().connect()?.flush(),
            Self::Disk { file, .. } => Ok(std::fs::File::open(file)?.sync_all()?),
        }
    }

    pub(crate) fn pool(&self) -> Result<Option<PoolCounters>> {
        let Self::Cairn(gateway) = self else { return Ok(None) };
        let status = gateway.status()?;
        let number = |field: &str| {
            status["pool"][field]
                .as_f64()
                .with_context(|| format!("status has no number pool.{field}: {status}"))
        };
        Ok(Some(PoolCounters {
            puts: number("put_requests")?,
            put_bytes: number("put_bytes")?,
            gets: number("get_requests")?,
        }))
    }

    /// Stops and starts the server with hardly any memory of its own, so that what it reads comes from its flash, or from the kernel's
    /// caches, which everybody keeps.
    pub(crate) fn restart_with_flash(&mut self) -> Result<()> {
        self.stop()?;
        if let Self::Cairn(gateway) = self {
            set_configuration(gateway, SMALL_MEMORY)?;
        }
        self.start_again()
    }

    /// Stops and starts the server, and makes everybody forget what they have in memory and on flash.
    pub(crate) fn restart_cold(&mut self) -> Result<()> {
        self.stop()?;
        if let Self::Cairn(gateway) = self {
            set_configuration(gateway, "")?;
            let flash = gateway.dir().join("flash");
            if flash.exists() {
                std::fs::remove_dir_all(flash)?;
            }
        }
        Tool::new("sync").timeout(Duration::from_mins(5)).run()?;
        Tool::as_root("sysctl").args(["-q", "-w", "vm.drop_caches=3"]).run()?;
        self.start_again()
    }

    fn stop(&mut self) -> Result<()> {
        match self {
            Self::Cairn(gateway) => gateway.stop(),
            Self::Peer(peer) => peer.kill(),
            Self::Disk { .. } => Ok(()),
        }
    }

    fn start_again(&mut self) -> Result<()> {
        match self {
            Self::Cairn(gateway) => gateway.start(),
            Self::Peer(peer) => peer.restart(),
            Self::Disk { .. } => Ok(()),
        }
    }
}
