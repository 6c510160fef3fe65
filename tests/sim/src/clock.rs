//! Time: one for the world, and what each host makes of it.

use cairn_model::{Clock, Monotonic, WallTime};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Wall time when the world begins, milliseconds since 1970.
const EPOCH_MILLIS: i64 = 1_800_000_000_000;

/// A host's wall clock: wrong by any amount, and it may jump.
#[derive(Debug, Default)]
pub(crate) struct WallDial(AtomicI64);

impl WallDial {
    pub(crate) fn new(wrong_by_millis: i64) -> Self {
        Self(AtomicI64::new(wrong_by_millis))
    }

    pub(crate) fn jump(&self, millis: i64) {
        self.0.fetch_add(millis, Ordering::Relaxed);
    }

    fn at(&self, world: Duration) -> WallTime {
        let world = i64::try_from(world.as_millis()).expect("the world is young");
        let millis = EPOCH_MILLIS + world + self.0.load(Ordering::Relaxed);
        WallTime::from_unix_millis(u64::try_from(millis).expect("after 1970"))
    }
}

/// The clock port of one process, on the virtual time of its runtime. To be made and asked inside it.
#[derive(Debug)]
pub(crate) struct VirtualClock {
    origin: Instant,
    /// The world's time at the origin.
    started: Duration,
    dial: Arc<WallDial>,
}

impl VirtualClock {
    pub(crate) fn starting_at(started: Duration, dial: Arc<WallDial>) -> Self {
        Self { origin: Instant::now(), started, dial }
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
        Monotonic::from_origin(self.origin.elapsed())
    }

    fn wall(&self) -> WallTime {
        self.dial.at(self.world())
    }

    #[expect(clippy::disallowed_methods, reason = "this implements the port")]
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep(duration))
    }
}
