//! The kinds of crash, and what each leaves no excuse for losing.

use crate::oracle::verdict::Promise;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SIGKILL of the gateway.
    Sigkill,
    /// SIGSTOP, for a moment or past the lease; then SIGCONT, or SIGKILL while it is stopped.
    Sigstop,
    /// The object store is killed or frozen and comes back; the gateway may be killed meanwhile.
    StoreAway,
    /// The file system of the gateway's folder, with log and catalog, is full to the last block, and has room again.
    DiskFull,
    /// The same for the file system that holds the pool.
    PoolFull,
    /// The power of the machine that the gateway runs on is cut.
    PowerCut,
}

impl Kind {
    pub const ALL: [Kind; 6] =
        [Kind::Sigkill, Kind::Sigstop, Kind::StoreAway, Kind::DiskFull, Kind::PoolFull, Kind::PowerCut];

    pub fn promise(self) -> Promise {
        match self {
            Kind::PowerCut => Promise::Flushed,
            // The kernel outlives the process.
            Kind::Sigkill | Kind::Sigstop | Kind::StoreAway | Kind::DiskFull | Kind::PoolFull => {
                Promise::Acknowledged
            }
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::Sigkill => "SIGKILL",
            Kind::Sigstop => "SIGSTOP",
            Kind::StoreAway => "store away",
            Kind::DiskFull => "disk full",
            Kind::PoolFull => "pool full",
            Kind::PowerCut => "power cut",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}
