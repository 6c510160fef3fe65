//! One block device offered over NBD, on a Unix socket or on a loopback port.

use crate::nbd::Client;
use anyhow::{Result, bail};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

#[derive(Clone, Debug)]
pub struct Export {
    pub address: Address,
    pub name: String,
}

impl Export {
    pub fn new(socket: &Path, name: &str) -> Self {
        Self { address: Address::Unix(socket.to_owned()), name: name.to_owned() }
    }

    pub fn on_port(port: u16, name: &str) -> Self {
        Self { address: Address::Tcp(SocketAddr::from(([127, 0, 0, 1], port))), name: name.to_owned() }
    }

    /// The address that libnbd, QEMU and fio all understand.
    pub fn uri(&self) -> String {
        match &self.address {
            Address::Unix(socket) => format!("nbd+unix:///{}?socket={}", self.name, socket.display()),
            Address::Tcp(address) => format!("nbd://{address}/{}", self.name),
        }
    }

    /// For tools that want the bare socket.
    pub fn socket(&self) -> Result<&Path> {
        match &self.address {
            Address::Unix(socket) => Ok(socket),
            Address::Tcp(address) => bail!("the export is on {address}, not on a Unix socket"),
        }
    }

    /// A connection of the harness's own client.
    pub fn connect(&self) -> Result<Client> {
        Client::connect(self)
    }
}
