//! The server under attack: the gateway, or a peer when a check is to be proved.

use crate::crash::{End, Kind as CrashKind, Scene, Writers};
use crate::export::Export;
use crate::gateway::Gateway;
use crate::peer::{Kind, Lie, Peer};
use crate::process::Process;
use crate::random::Random;
use anyhow::{Result, bail};
use std::time::Duration;

const LITTLE_ROOM: &str = r#"
[wal]
capacity = "64MiB"
[memory]
write_buffer = "16MiB"
block_cache = "16MiB"
map_cache = "16MiB"
[destage]
batch_bytes = "1MiB"
batch_age = "100ms"
"#;

#[derive(Debug)]
pub enum Server {
    Cairn { gateway: Gateway, volume: String },
    Peer(Peer),
}

impl Server {
    /// The server that the end-to-end tests attack, with one fresh, empty export of `size` bytes: the gateway, unless
    /// `CAIRN_E2E_SERVER` names a peer (`nbdkit`, `qemu-nbd` or `honest`) to try the tests themselves.
    pub fn under_test(size: u64) -> Result<Self> {
        match std::env::var("CAIRN_E2E_SERVER").as_deref() {
            Err(_) | Ok("cairn") => Self::cairn(size),
            Ok("nbdkit") => Ok(Self::Peer(Peer::start(Kind::NbdkitFile, size)?)),
            Ok("qemu-nbd") => {
                Ok(Self::Peer(Peer::start(Kind::QemuNbd { cache: "writeback", aio: "threads" }, size)?))
            }
            Ok("honest") => Ok(Self::lying(Lie::Honest, size)?),
            Ok(other) => bail!("CAIRN_E2E_SERVER is {other:?}; it may be cairn, nbdkit, qemu-nbd or honest"),
        }
    }

    /// As [`Server::under_test`], with a gateway that has as little memory and log as it accepts and destages ten times a
    /// second: blocks move from buffer to log to pool while they are read and written.
    pub fn under_test_in_little_room(size: u64) -> Result<Self> {
        match std::env::var("CAIRN_E2E_SERVER").as_deref() {
            Err(_) | Ok("cairn") => {
                let mut gateway = Gateway::new()?;
                gateway.init_with_config(LITTLE_ROOM)?;
                gateway.start()?;
                Self::with_volume(gateway, size)
            }
            Ok(_) => Self::under_test(size),
        }
    }

    fn cairn(size: u64) -> Result<Self> {
        Self::with_volume(Gateway::start_fresh()?, size)
    }

    fn with_volume(gateway: Gateway, size: u64) -> Result<Self> {
        gateway.create_volume("vol", size)?;
        Ok(Self::Cairn { gateway, volume: "vol".to_owned() })
    }

    /// A peer that tells the lie in one of a thousand requests.
    pub fn lying(lie: Lie, size: u64) -> Result<Self> {
        Self::lying_one_in(1000, lie, size)
    }

    pub fn lying_one_in(one_in: u32, lie: Lie, size: u64) -> Result<Self> {
        Ok(Self::Peer(Peer::start(Kind::Lying(lie, one_in), size)?))
    }

    pub fn export(&self) -> Export {
        match self {
            Server::Cairn { gateway, volume } => gateway.export(volume),
            Server::Peer(peer) => peer.export(),
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        match self {
            Server::Cairn { gateway, .. } => gateway.kill(),
            Server::Peer(peer) => peer.kill(),
        }
    }

    /// SIGTERM, and wait until the server has ended in good order.
    pub fn stop(&mut self) -> Result<()> {
        match self {
            Server::Cairn { gateway, .. } => gateway.stop(),
            Server::Peer(peer) => peer.stop(),
        }
    }

    /// Starts the server again on what it left behind, and waits until it serves.
    pub fn restart(&mut self) -> Result<()> {
        self.start_without_waiting()?;
        self.wait_until_serving()
    }

    pub fn start_without_waiting(&mut self) -> Result<()> {
        match self {
            Server::Cairn { gateway, .. } => gateway.start_without_waiting(),
            Server::Peer(peer) => peer.start_without_waiting(),
        }
    }

    pub fn wait_until_serving(&mut self) -> Result<()> {
        match self {
            Server::Cairn { gateway, .. } => gateway.wait_until_serving(),
            Server::Peer(peer) => peer.wait_until_serving(),
        }
    }

    /// Starts the server and kills it before, while or shortly after it becomes ready.
    pub fn restart_and_kill_after(&mut self, delay: Duration) -> Result<()> {
        match self {
            Server::Cairn { gateway, .. } => {
                gateway.start_without_waiting()?;
                std::thread::sleep(delay);
                gateway.kill()
            }
            Server::Peer(peer) => {
                peer.restart()?;
                std::thread::sleep(delay);
                peer.kill()
            }
        }
    }

    pub fn process(&self) -> Result<&Process> {
        match self {
            Server::Cairn { gateway, .. } => gateway.process(),
            Server::Peer(peer) => peer.process(),
        }
    }

    /// The end of what the server said.
    pub fn said(&self) -> String {
        match self {
            Server::Cairn { gateway, .. } => gateway.said(),
            Server::Peer(peer) => peer.process().map(Process::said).unwrap_or_default(),
        }
    }
}

/// A server dies by SIGKILL. For a peer that keeps unflushed writes in its memory that is a power cut.
impl Scene for Server {
    fn export(&self) -> Export {
        self.export()
    }

    fn strike(&mut self, kind: CrashKind, writers: &Writers, random: &mut Random) -> Result<End> {
        match (kind, &self) {
            (CrashKind::Sigkill, _) | (CrashKind::PowerCut, Server::Peer(_)) => {}
            _ => bail!("no {kind} happens to a bare server"),
        }
        writers.work(random);
        writers.server_dies();
        self.kill()?;
        Ok(End::Dead)
    }

    fn recover(&mut self, random: &mut Random) -> Result<()> {
        if random.chance(4) {
            self.restart_and_kill_after(Duration::from_millis(random.below(400)))?;
        }
        self.restart()
    }

    fn said(&self) -> String {
        self.said()
    }
}
