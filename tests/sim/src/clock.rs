//! Time: one for the world, and what each host makes of it.

use cairn_model::{Clock, Monotonic, WallTime};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// A clock that is right.
pub(crate) const PACE: u32 = 1000;
/// Wall time when the world begins, milliseconds since 1970.
const EPOCH_MILLIS: i64 = 1_800_000_000_000;

/// A host's clocks: the wall clock is wrong by any amount and may jump; the monotonic one runs a little fast or slow.
#[derive(Debug)]
pub(crate) struct HostClocks {
    wall_wrong_by: AtomicI64,
    /// Monotonic milliseconds in a second of the world.
    pace: u32,
}

impl HostClocks {
    pub(crate) fn new(wall_wrong_by_millis: i64, pace: u32) -> Self {
        Self { wall_wrong_by: AtomicI64::new(wall_wrong_by_millis), pace }
    }

    pub(crate) fn jump(&self, millis: i64) {
        self.wall_wrong_by.fetch_add(millis, Ordering::Relaxed);
    }

    fn wall(&self, world: Duration) -> WallTime {
        let world = i64::try_from(world.as_millis()).expect("the world is young");
        let millis = EPOCH_MILLIS + world + self.wall_wrong_by.load(Ordering::Relaxed);
        WallTime::from_unix_millis(u64::try_from(millis).expect("after 1970"))
    }
}

/// The clock port of one process, on the virtual time of its runtime. To be made and asked inside it.
#[derive(Debug)]
pub(crate) struct VirtualClock {
    origin: Instant,
    /// The world's time at the origin.
    started: Duration,
    host: Arc<HostClocks>,
}

impl VirtualClock {
    pub(crate) fn starting_at(started: Duration, host: Arc<HostClocks>) -> Self {
        Self { origin: Instant::now(), started, host }
    }

    /// The runtime's moment of a time of the world.
    pub(crate) fn moment(&self, world: Duration) -> Instant {
        self.origin + world.saturating_sub(self.started)
    }

    /// The world's time.
    pub(crate) fn world(&self) -> Duration {
        self.started + self.origin.elapsed()
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Monotonic {
        Monotonic::from_origin(self.origin.elapsed() * self.host.pace / PACE)
    }

    fn wall(&self) -> WallTime {
        self.host.wall(self.world())
    }

    #[expect(clippy::disallowed_methods, reason = "this implements the port")]
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep(duration.saturating_mul(PACE) / self.host.pace))
    }
}
