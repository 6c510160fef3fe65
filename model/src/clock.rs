//! The port to time.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// A point of the monotonic clock: time since the clock was made. Never goes back, and goes on while the machine sleeps, as other machines'
/// clocks do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Monotonic(Duration);

impl Monotonic {
    pub const fn from_origin(since_origin: Duration) -> Self {
        Self(since_origin)
    }

    pub const fn since_origin(self) -> Duration {
        self.0
    }

    /// Zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

/// Wall-clock time: milliseconds since the Unix epoch. May jump; never decides who owns anything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct WallTime(u64);

impl WallTime {
    pub const fn from_unix_millis(millis: u64) -> Self {
        Self(millis)
    }

    pub const fn unix_millis(self) -> u64 {
        self.0
    }
}

/// Time as the components see it.
pub trait Clock: Send + Sync + fmt::Debug {
    fn now(&self) -> Monotonic;
    fn wall(&self) -> WallTime;
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// A wait outlived its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("timed out")]
pub struct Elapsed;

/// Runs `future` for at most `limit` of `clock`'s time; cancels it (drops it) after that.
pub async fn timeout<F: Future>(clock: &dyn Clock, limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    let sleep = clock.sleep(limit);
    tokio::select! {
        biased;
        output = future => Ok(output),
        () = sleep => Err(Elapsed),
    }
}

/// The operating system's clocks and tokio's timer.
#[derive(Debug)]
pub struct SystemClock {
    /// Since the machine's boot.
    origin: Duration,
}

impl SystemClock {
    pub fn new() -> Self {
        Self { origin: since_boot() }
    }
}

/// `CLOCK_BOOTTIME`: a lease ends while the machine is suspended, which `CLOCK_MONOTONIC` would not notice.
fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(
        u64::try_from(time.tv_sec).expect("the clock began at zero"),
        u32::try_from(time.tv_nsec).expect("less than a second"),
    )
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Monotonic {
        Monotonic(since_boot().saturating_sub(self.origin))
    }

    #[expect(clippy::disallowed_methods, reason = "this is the port's production implementation")]
    fn wall(&self) -> WallTime {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        WallTime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    #[expect(clippy::disallowed_methods, reason = "this is the port's production implementation")]
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep(duration))
    }
}
