//! Waiting for what does not answer, within a bound: a pool or a catalog that is away for a moment is no error to a guest.

use crate::error::EngineError;
use cairn_model::{Clock, ErrorKind, Kinded};
use std::future::Future;
use std::time::Duration;

/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// Attempts again while the answer is [`ErrorKind::Unavailable`], until `limit` has passed; then the last such
/// answer, or `silence` when there was none.
pub(crate) async fn patiently<T, E, F>(
    clock: &dyn Clock,
    limit: Duration,
    waiting: &'static str,
    silence: EngineError,
    mut attempt: impl FnMut() -> F,
) -> Result<T, EngineError>
where
    E: Into<EngineError>,
    F: Future<Output = Result<T, E>>,
{
    let mut last = silence;
    let mut is_first = true;
    let attempts = async {
        loop {
            match attempt().await.map_err(Into::into) {
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    if std::mem::take(&mut is_first) {
                        tracing::warn!(%error, waiting);
                    }
                    last = error;
                    clock.sleep(PAUSE).await;
                }
                done => return done,
            }
        }
    };
    match cairn_model::timeout(clock, limit, attempts).await {
        Ok(done) => done,
        Err(cairn_model::Elapsed) => Err(last),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::SystemClock;
    use std::sync::atomic::{AtomicU32, Ordering};

    const LIMIT: Duration = Duration::from_secs(5);

    async fn after_failures(failures: u32, error: EngineError, limit: Duration) -> Result<u32, EngineError> {
        let attempts = AtomicU32::new(0);
        patiently(&SystemClock::new(), limit, "a test waits", EngineError::Stopped, || async {
            let attempt = attempts.fetch_add(1, Ordering::Relaxed);
            if attempt < failures { Err(error.clone()) } else { Ok(attempt) }
        })
        .await
    }

    #[tokio::test]
    async fn silence_is_waited_out() {
        assert_eq!(after_failures(2, EngineError::PoolSilent(1), LIMIT).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn other_errors_come_at_once() {
        let refused = after_failures(1, EngineError::PoolFull, LIMIT).await;
        assert!(matches!(refused, Err(EngineError::PoolFull)));
    }

    #[tokio::test]
    async fn silence_is_told_as_such() {
        let limit = Duration::from_millis(20);
        let clock = SystemClock::new();
        let silent = patiently(&clock, limit, "a test waits", EngineError::PoolSilent(3), || {
            std::future::pending::<Result<(), EngineError>>()
        });
        assert!(matches!(silent.await, Err(EngineError::PoolSilent(3))));
    }

    #[tokio::test]
    async fn the_last_answer_comes_when_patience_ends() {
        let silent = after_failures(u32::MAX, EngineError::PoolSilent(7), Duration::from_millis(20)).await;
        assert!(matches!(silent, Err(EngineError::PoolSilent(7))));
    }
}
