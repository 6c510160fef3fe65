//! One block device offered over NBD on a Unix socket.

use crate::nbd::Client;
use anyhow::Result;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug)]
pub struct Export {
    pub socket: PathBuf,
    pub name: String,
}

impl Export {
    pub fn new(socket: &Path, name: &str) -> Self {
        Self { socket: socket.to_owned(), name: name.to_owned() }
    }

    /// The address that libnbd, QEMU and fio all understand.
    pub fn uri(&self) -> String {
        format!("nbd+unix:///{}?socket={}", self.name, self.socket.display())
    }

    /// A connection of the harness's own client.
    pub fn connect(&self) -> Result<Client> {
        Client::connect(self)
    }
}
