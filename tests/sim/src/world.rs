//! What outlives the gateways' processes, and the rows of their lives.

use crate::clock::{HostClocks, PACE};
use crate::life::{Life, Machine, Purpose};
use crate::limits::{Limits, Part};
use crate::process::Process;
use crate::report::{Counts, Report};
use crate::settings::{millis, pick};
use crate::site::SimSite;
use cairn_fingerprints::FingerprintIndex;
use cairn_flash::SealedCache;
use cairn_flash::testing::{MemoryFlash, Outliving};
use cairn_model::{GatewayId, SeededEntropy};
use cairn_wal::testing::{Dice, MemoryDisk};
use std::sync::Arc;
use std::time::Duration;
use system_tests::oracle::verdict::Promise;

/// Longest turn of a process, milliseconds.
const TURN_MS_MAX: u64 = 20;
const FIRST_START_MS_MAX: u64 = 1000;
/// Turns between two pauses of a process, about: alone, and with another that waits for its lease to end.
const TURNS_PER_PAUSE: [u64; 2] = [500, 120];
/// A calm life ends by itself before this.
const CALM_LIFE_MAX: Duration = Duration::from_hours(2);
/// No host's wall clock is further from the truth when the world begins.
const WRONG_WALL_MS_MAX: u64 = 7_200_000;
/// Clocks of two hosts drift apart by a sixth: less than the fifth that a lease's margin allows for.
const PACES: [u32; 2] = [PACE * 92 / 100, PACE * 108 / 100];
/// Of a hundred lives on each of two hosts: one is away from the catalog, with a slow clock, while the other waits for its leases.
const CATALOG_OUTAGES: [u64; 2] = [60, 10];
/// Syncs after which the log has to notice that a write of before is damaged: later frames say that it was durable.
const SYNCS_BEFORE_DAMAGE: u64 = 4;

/// A place where the processes of one gateway live, one after the other.
struct Host {
    gateway: GatewayId,
    disk: MemoryDisk,
    index: Arc<FingerprintIndex>,
    flash: Option<Arc<dyn SealedCache>>,
    clocks: Arc<HostClocks>,
    dice: Dice,
    /// The disk is a new one, was found lying by a power cut, or has flipped bits: the log may be gone or call itself damaged.
    log_may_be_damaged: bool,
    catalog_outages: u64,
    state: State,
}

enum State {
    Down { until: Duration },
    Up(Box<Process>),
    Paused { process: Box<Process>, until: Duration },
}

struct World {
    site: Arc<SimSite>,
    hosts: Vec<Host>,
    now: Duration,
    counts: Counts,
}

/// Runs the schedule of `seed`, without what the limits forbid.
pub(crate) fn run_within(seed: u64, limits: &Limits) -> Result<Report, String> {
    crate::panics::watch();
    let dice = Dice::new(seed);
    let mut world = World::new(&dice, limits);
    let lives = (2 * world.hosts.len() as u64 - 1 + dice.below(5)).min(limits.lives);
    let done = world.troubled_lives(&dice, lives).and_then(|()| world.calm_lives(&dice));
    let last = world.site.trace.last();
    done.map_err(|finding| format!("seed {seed}: {finding}\nthe last events:\n{last}"))?;
    Ok(world.report())
}

/// The flash of a host, empty: it outlives the processes that use it, loses chunks and returns damaged ones.
fn flash(dice: &Dice) -> Option<Arc<dyn SealedCache>> {
    let (is_there, faulty) = (dice.percent(60), dice.percent(50));
    let entropy = Arc::new(SeededEntropy::new(dice.below(u64::MAX)));
    let capacity = pick(dice, &[64 << 10, 16 << 20]);
    let percent = if faulty { 20 } else { 0 };
    let flash = MemoryFlash::new(capacity).with_damage_max(u64::MAX).with_seeded_faults(entropy, percent);
    is_there.then(|| Arc::new(Outliving(Arc::new(flash))) as _)
}

/// An empty index that soon forgets, or one that does not.
fn index(dice: &Dice) -> Arc<FingerprintIndex> {
    Arc::new(FingerprintIndex::in_memory(pick(dice, &[32 << 10, 16 << 20])))
}

impl World {
    fn new(dice: &Dice, limits: &Limits) -> Self {
        let second = dice.percent(60);
        let hosts = if second && limits.allow(Part::SecondHost) { 2 } else { 1 };
        let (site, gateways) = SimSite::new(dice, limits, hosts);
        let (drift, slow) = (dice.percent(60), dice.below(2));
        let hosts = (slow..).zip(gateways).map(|(number, gateway)| {
            let dice = Dice::new(dice.below(u64::MAX));
            let wrong = i64::try_from(dice.below(WRONG_WALL_MS_MAX)).expect("a few hours");
            let wrong = if dice.percent(50) { wrong } else { -wrong };
            let is_fast = usize::from(number % 2 == 0);
            let pace = if drift { PACES[is_fast] } else { PACE };
            // Some while after the others: it finds them at work.
            let until = millis(&dice, FIRST_START_MS_MAX);
            Host {
                gateway,
                disk: MemoryDisk::new(dice.below(u64::MAX)),
                index: index(&dice),
                flash: flash(&dice),
                clocks: Arc::new(HostClocks::new(
                    if limits.allow(Part::WallClocks) { wrong } else { 0 },
                    if limits.allow(Part::SlowClocks) { pace } else { PACE },
                )),
                dice,
                log_may_be_damaged: false,
                catalog_outages: if second { CATALOG_OUTAGES[is_fast] } else { 25 },
                state: State::Down { until },
            }
        });
        let hosts = hosts.collect();
        let site = Arc::new(site);
        Self { site, hosts, now: Duration::ZERO, counts: Counts::default() }
    }

    /// Starts so many processes, each when its host is free, and runs them until all have ended.
    fn troubled_lives(&mut self, dice: &Dice, lives: u64) -> Result<(), String> {
        loop {
            for host in 0..self.hosts.len() {
                if self.counts.lives < lives && self.is_down(host) {
                    self.start(host, Purpose::Crash);
                }
            }
            let is_over = self.hosts.iter().all(|host| matches!(host.state, State::Down { .. }));
            if is_over && self.counts.lives >= lives {
                return Ok(());
            }
            self.now += Duration::from_millis(1 + dice.below(TURN_MS_MAX));
            for host in 0..self.hosts.len() {
                self.take_turn(host)?;
            }
        }
    }

    /// A life that ends in order, and one that only looks; on another host, if there is one.
    fn calm_lives(&mut self, dice: &Dice) -> Result<(), String> {
        let first = usize::try_from(dice.below(self.hosts.len() as u64)).expect("few hosts");
        for (host, purpose) in [(first, Purpose::Order), (self.hosts.len() - 1 - first, Purpose::CheckOnly)] {
            self.now += Duration::from_millis(100);
            self.start(host, purpose);
            self.now += CALM_LIFE_MAX;
            self.take_turn(host)?;
            assert!(matches!(self.hosts[host].state, State::Down { .. }), "a calm life has an end");
        }
        Ok(())
    }

    fn is_down(&self, host: usize) -> bool {
        matches!(self.hosts[host].state, State::Down { until } if self.now >= until)
    }

    fn start(&mut self, host: usize, purpose: Purpose) {
        self.counts.lives += 1;
        let (site, now) = (Arc::clone(&self.site), self.now);
        let Host { gateway, disk, index, flash, clocks, dice, log_may_be_damaged, catalog_outages, state } =
            &mut self.hosts[host];
        let (seed, clocks) = (dice.below(u64::MAX), Arc::clone(clocks));
        let on = Machine {
            gateway: *gateway,
            disk: disk.clone(),
            index: Arc::clone(index),
            flash: flash.clone(),
            clocks,
            catalog_outages: *catalog_outages,
            log_may_be_damaged: *log_may_be_damaged,
        };
        let make = || Life::new(site, on, now, seed, purpose);
        *state = State::Up(Box::new(Process::start(make)));
    }

    /// Runs what runs on the host until now.
    fn take_turn(&mut self, host: usize) -> Result<(), String> {
        let (now, site) = (self.now, Arc::clone(&self.site));
        let Host { state, dice, .. } = &mut self.hosts[host];
        match state {
            State::Down { .. } => Ok(()),
            State::Up(process) => match process.run_until(now) {
                Some(result) => self.ended(host, result),
                None if dice.below(TURNS_PER_PAUSE[usize::from(site.is_contended)]) == 0
                    && site.limits.allow(Part::Pauses) =>
                {
                    self.counts.pauses += 1;
                    let until = now + site.terms(dice, 4);
                    site.trace.note(now, &format!("host {host}"), &format_args!("paused until {until:?}"));
                    let State::Up(process) = std::mem::replace(state, State::Down { until }) else {
                        unreachable!("looked at before")
                    };
                    *state = State::Paused { process, until };
                    Ok(())
                }
                None => Ok(()),
            },
            // Killed in its sleep.
            State::Paused { .. } if dice.below(2000) == 0 => self.ended(host, Ok(())),
            State::Paused { until, .. } if now < *until => Ok(()),
            State::Paused { until, .. } => {
                let until = *until;
                let State::Paused { mut process, .. } = std::mem::replace(state, State::Down { until })
                else {
                    unreachable!("looked at before")
                };
                process.wake_up_at(now);
                *state = State::Up(process);
                Ok(())
            }
        }
    }

    /// The process is gone: what its end did to the host.
    fn ended(&mut self, host: usize, result: Result<(), String>) -> Result<(), String> {
        let (now, lives, limits) = (self.now, self.counts.lives, self.site.limits.clone());
        let Host { state, dice, disk, index: known, flash: held, gateway, log_may_be_damaged, .. } =
            &mut self.hosts[host];
        let down = State::Down { until: now + pick(dice, &[Duration::ZERO, self.site.lease_ttl * 2]) };
        let (State::Up(process) | State::Paused { process, .. }) = std::mem::replace(state, down) else {
            unreachable!("only what runs can end")
        };
        let life = process.life();
        let (purpose, sync_failed) = (life.purpose(), life.sync_failed());
        if life.has_started() {
            *log_may_be_damaged = false;
        }
        let found = process.end();
        if let Some(finding) = found.or(result.err()) {
            return Err(format!("life {lives}: {finding}"));
        }
        self.site.process_ended(*gateway);
        // What was not written to the device after all.
        let lost = if disk.has_lied() { Promise::Destaged } else { Promise::Flushed };
        if sync_failed {
            *log_may_be_damaged |= disk.has_lied();
            self.site.excuse(*gateway, lost);
        }
        let (power_cut, keep) = (dice.percent(60), pick(dice, &[0, 20, 50, 90, 100]));
        let (lost_disk, flipped_bit) = (dice.percent(5), dice.percent(15));
        let is_troubled = purpose == Purpose::Crash;
        if is_troubled && power_cut && limits.allow(Part::PowerCuts) {
            *log_may_be_damaged |= disk.has_lied();
            disk.lose_power(keep);
            self.site.excuse(*gateway, lost);
            self.counts.power_cuts += 1;
        }
        disk.restart();
        // Both are local and may be lost at any time; what they say need not be true any more.
        if dice.percent(30) {
            *known = index(dice);
        }
        if dice.percent(20) {
            *held = flash(dice);
        }
        if is_troubled && flipped_bit && limits.allow(Part::BitFlips) {
            // No excuse: the log says that it is damaged, or nothing is missing.
            if let Some(bit) = disk.flip_a_bit(SYNCS_BEFORE_DAMAGE) {
                self.site.trace.note(now, &format!("host {host}"), &bit);
                *log_may_be_damaged = true;
                self.counts.flipped_bits += 1;
            }
        }
        if is_troubled && lost_disk && limits.allow(Part::LostDisks) {
            // The excuse comes when the gateway says that it has lost its log.
            *disk = MemoryDisk::new(dice.below(u64::MAX));
            *log_may_be_damaged = true;
            self.counts.lost_disks += 1;
        }
        Ok(())
    }

    fn report(&self) -> Report {
        let (trace, volumes) = (&self.site.trace, self.site.volumes());
        let counts = Counts {
            moves: volumes.iter().map(|volume| volume.moves()).sum(),
            requests: volumes.iter().map(|volume| volume.requests()).sum(),
            clones: volumes.iter().filter(|volume| volume.is_clone).count() as u64,
            snapshots: volumes.iter().map(|volume| volume.snapshots.lock().counts()).sum(),
            ..self.counts
        };
        Report { digest: trace.digest(), events: trace.events(), counts }
    }
}
