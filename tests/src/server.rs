//! The server under attack: the gateway, or a peer when a check is to be proved.

use crate::export::Export;
use crate::gateway::Gateway;
use crate::peer::{Kind, Lie, Peer};
use crate::process::Process;
use anyhow::{Result, bail};

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

    fn cairn(size: u64) -> Result<Self> {
        let gateway = Gateway::start_fresh()?;
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

    /// Starts the server again on what it left behind, and waits until it serves.
    pub fn restart(&mut self) -> Result<()> {
        match self {
            Server::Cairn { gateway, .. } => gateway.start(),
            Server::Peer(peer) => peer.restart(),
        }
    }

    /// Starts the server and kills it before, while or shortly after it becomes ready.
    pub fn restart_and_kill_after(&mut self, delay: std::time::Duration) -> Result<()> {
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
