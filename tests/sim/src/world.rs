//! What outlives the gateways' processes, and the rows of their lives.

use crate::clock::WallDial;
use crate::life::{Life, Purpose};
use crate::limits::{Limits, Part};
use crate::process::Process;
use crate::report::{Counts, Report};
use crate::settings::{millis, pick};
use crate::site::SimSite;
use cairn_model::GatewayId;
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

/// A place where the processes of one gateway live, one after the other.
struct Host {
    gateway: GatewayId,
    disk: MemoryDisk,
    dial: Arc<WallDial>,
    dice: Dice,
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
    let lives = (world.hosts.len() as u64 + dice.below(5)).min(limits.lives);
    let done = world.troubled_lives(&dice, lives).and_then(|()| world.calm_lives(&dice));
    let last = world.site.trace.last();
    done.map_err(|finding| format!("seed {seed}: {finding}\nthe last events:\n{last}"))?;
    Ok(world.report())
}

impl World {
    fn new(dice: &Dice, limits: &Limits) -> Self {
        let second = dice.percent(50);
        let hosts = if second && limits.allow(Part::SecondHost) { 2 } else { 1 };
        let (site, gateways) = SimSite::new(dice, limits, hosts);
        let hosts = gateways.into_iter().map(|gateway| {
            let dice = Dice::new(dice.below(u64::MAX));
            let wrong = i64::try_from(dice.below(WRONG_WALL_MS_MAX)).expect("a few hours");
            let wrong = if dice.percent(50) { wrong } else { -wrong };
            // Some while after the others: it finds them at work.
            let until = millis(&dice, FIRST_START_MS_MAX);
            Host {
                gateway,
                disk: MemoryDisk::new(dice.below(u64::MAX)),
                dial: Arc::new(WallDial::new(if limits.allow(Part::WallClocks) { wrong } else { 0 })),
                dice,
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
        let Host { gateway, disk, dial, dice, state } = &mut self.hosts[host];
        let (seed, dial) = (dice.below(u64::MAX), Arc::clone(dial));
        let make = || Life::new(site, *gateway, disk.clone(), dial, now, seed, purpose);
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
        let Host { state, dice, disk, gateway, .. } = &mut self.hosts[host];
        let down = State::Down { until: now + pick(dice, &[Duration::ZERO, self.site.lease_ttl * 2]) };
        let (State::Up(process) | State::Paused { process, .. }) = std::mem::replace(state, down) else {
            unreachable!("only what runs can end")
        };
        let (purpose, sync_failed) = (process.life().purpose(), process.life().sync_failed());
        let found = process.end();
        if let Some(finding) = found.or(result.err()) {
            return Err(format!("life {lives}: {finding}"));
        }
        if sync_failed {
            self.site.excuse(*gateway, Promise::Flushed);
        }
        let (power_cut, keep) = (dice.percent(60), pick(dice, &[0, 20, 50, 90, 100]));
        let lost_disk = dice.percent(5);
        if purpose == Purpose::Crash && power_cut && limits.allow(Part::PowerCuts) {
            disk.lose_power(keep);
            self.site.excuse(*gateway, Promise::Flushed);
            self.counts.power_cuts += 1;
        }
        disk.restart();
        if purpose == Purpose::Crash && lost_disk && limits.allow(Part::LostDisks) {
            // The excuse comes when the gateway says that it has lost its log.
            *disk = MemoryDisk::new(dice.below(u64::MAX));
            self.counts.lost_disks += 1;
        }
        Ok(())
    }

    fn report(&self) -> Report {
        let (trace, volumes) = (&self.site.trace, &self.site.volumes);
        let counts = Counts {
            moves: volumes.iter().map(|volume| volume.moves()).sum(),
            requests: volumes.iter().map(|volume| volume.requests()).sum(),
            ..self.counts
        };
        Report { digest: trace.digest(), events: trace.events(), counts }
    }
}
