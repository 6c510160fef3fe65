//! The clock port on the runtime's virtual time.

use cairn_model::{Clock, Monotonic, WallTime};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::Instant;

/// Time of one life. To be made and asked inside its runtime.
#[derive(Debug)]
pub(crate) struct VirtualClock {
    origin: Instant,
    /// Wall time at the origin: lives follow one another.
    wall: WallTime,
}

impl VirtualClock {
    pub(crate) fn starting_at(wall: WallTime) -> Self {
        Self { origin: Instant::now(), wall }
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Monotonic {
        Monotonic::from_origin(self.origin.elapsed())
    }

    fn wall(&self) -> WallTime {
        let passed = u64::try_from(self.origin.elapsed().as_millis()).expect("a life is short");
        WallTime::from_unix_millis(self.wall.unix_millis() + passed)
    }

    #[expect(clippy::disallowed_methods, reason = "this implements the port")]
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep(duration))
    }
}
