//! A gateway on this machine: its folder on one small file system, its pool on another. Needs root for the mounts.

use super::{End, Kind, Scene, Writers};
use crate::export::Export;
use crate::gateway::Gateway;
use crate::loop_disk::LoopDisk;
use crate::random::Random;
use anyhow::{Result, bail};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const GIB: u64 = 1 << 30;
/// The gateway's `lease_ttl`, which is no setting.
const LEASE: Duration = Duration::from_secs(30);

/// For small volumes and short rounds.
pub(super) const QUICK_CONFIG: &str = "[wal]\ncapacity = \"128MiB\"\n[destage]\nbatch_bytes = \"4MiB\"\nbatch_age = \"300ms\"\n\
     [memory]\nwrite_buffer = \"32MiB\"\nblock_cache = \"64MiB\"\nmap_cache = \"16MiB\"\n";

/// Drops the gateway before the disks that it lives on.
#[derive(Debug)]
pub struct Host {
    gateway: Gateway,
    folder: LoopDisk,
    pool: LoopDisk,
    always_past_the_lease: bool,
    disk_is_full: bool,
}

impl Host {
    /// A gateway that serves an empty volume of `size` bytes. The log is small and batches are quick, so that a round
    /// of seconds sees many destages and a full log.
    pub fn new(size: u64) -> Result<Self> {
        let (folder, pool) = (LoopDisk::new(4 * GIB)?, LoopDisk::new(8 * GIB)?);
        let mut gateway = Gateway::new_in(&folder.path().join("d"))?;
        let pool_url = format!("[pool]\nurl = \"file://{}\"\n", pool.path().join("pool").display());
        gateway.init_with_config(&format!("{QUICK_CONFIG}{pool_url}"))?;
        gateway.start()?;
        gateway.create_volume("vol", size)?;
        Ok(Self { gateway, folder, pool, always_past_the_lease: false, disk_is_full: false })
    }

    /// Every SIGSTOP outlasts the lease.
    #[must_use]
    pub fn stopped_past_the_lease(mut self) -> Self {
        self.always_past_the_lease = true;
        self
    }

    fn kill(&mut self, writers: &Writers) -> Result<End> {
        writers.server_dies();
        self.gateway.kill()?;
        Ok(End::Dead)
    }

    /// Half of those that live through it are killed all the same.
    fn kill_or_leave(&mut self, writers: &Writers, random: &mut Random) -> Result<End> {
        if random.chance(2) { self.kill(writers) } else { Ok(End::Alive) }
    }

    fn stop_and_go_on(&mut self, writers: &Writers, random: &mut Random) -> Result<End> {
        self.gateway.pause()?;
        let stopped = if self.always_past_the_lease || random.chance(10) {
            LEASE + Duration::from_millis(1000 + random.below(3000))
        } else {
            Duration::from_millis(random.below(2000))
        };
        std::thread::sleep(stopped);
        self.refuses_a_second_gateway()?;
        if random.chance(3) {
            return self.kill(writers);
        }
        self.gateway.resume()?;
        writers.make_progress()?;
        writers.work(random);
        self.kill_or_leave(writers, random)
    }

    /// A gateway that stands still is not dead: nobody may take its folder.
    fn refuses_a_second_gateway(&self) -> Result<()> {
        let socket = self.gateway.dir().join("second.sock");
        let address = format!("unix:{}", socket.display());
        let said = self.gateway.command(["up", "--nbd", &address]).run_refused()?.said();
        if !said.contains("already") && !said.contains("in use") {
            bail!("a second gateway on the folder of a stopped one was refused for another reason:\n{said}");
        }
        Ok(())
    }

    fn fill_and_free(&mut self, kind: Kind, writers: &Writers, random: &mut Random) -> Result<End> {
        let disk = if kind == Kind::DiskFull { &self.folder } else { &self.pool };
        let (dies, long) = (random.chance(2), Duration::from_millis(300 + random.below(4000)));
        writers.may_lack_space();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| -> Result<()> {
            let filler = scope.spawn(|| disk.keep_full(&stop));
            std::thread::sleep(long);
            let killed = if dies {
                writers.server_dies();
                self.gateway.kill()
            } else {
                Ok(())
            };
            stop.store(true, Ordering::SeqCst);
            filler.join().expect("the filler panicked")?;
            killed
        })?;
        if dies {
            self.disk_is_full = true;
            return Ok(End::Dead);
        }
        disk.free()?;
        writers.make_progress()?;
        self.kill_or_leave(writers, random)
    }
}

impl Scene for Host {
    fn export(&self) -> Export {
        self.gateway.export("vol")
    }

    fn strike(&mut self, kind: Kind, writers: &Writers, random: &mut Random) -> Result<End> {
        writers.work(random);
        match kind {
            Kind::Sigkill => self.kill(writers),
            Kind::Sigstop => self.stop_and_go_on(writers, random),
            Kind::DiskFull | Kind::PoolFull => self.fill_and_free(kind, writers, random),
            Kind::StoreAway | Kind::PowerCut => {
                bail!("no {kind} happens to a gateway on a host with a folder")
            }
        }
    }

    fn recover(&mut self, random: &mut Random) -> Result<()> {
        if self.disk_is_full {
            // It may serve or give up, but must lose nothing by trying.
            if random.chance(2) && self.gateway.start_or_give_up()? {
                std::thread::sleep(Duration::from_millis(random.below(1000)));
                self.gateway.kill()?;
            }
            self.folder.free()?;
            self.pool.free()?;
            self.disk_is_full = false;
        } else if random.chance(4) {
            self.gateway.start_without_waiting()?;
            std::thread::sleep(Duration::from_millis(random.below(400)));
            self.gateway.kill()?;
        }
        self.gateway.start()
    }

    fn said(&self) -> String {
        self.gateway.said()
    }
}
