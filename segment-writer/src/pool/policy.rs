//! How long a request may take and how often it is repeated.

use cairn_model::Entropy;
use std::time::Duration;

/// Limits of requests to a data node. There is one retry policy: the clients' own are switched off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestPolicy {
    /// One attempt of a put.
    pub put_attempt_timeout: Duration,
    /// One attempt of a get.
    pub get_attempt_timeout: Duration,
    /// No further attempt of a put begins after this.
    pub put_give_up: Duration,
    /// No further attempt of a get begins after this.
    pub get_give_up: Duration,
    /// Pause before the second attempt; doubles from there.
    pub backoff_first: Duration,
    pub backoff_max: Duration,
}

impl Default for RequestPolicy {
    fn default() -> Self {
        Self {
            put_attempt_timeout: Duration::from_mins(1),
            get_attempt_timeout: Duration::from_secs(15),
            put_give_up: Duration::from_mins(1),
            get_give_up: Duration::from_secs(30),
            backoff_first: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
        }
    }
}

impl RequestPolicy {
    /// The pause after failed attempt number `attempt` (from 0): between half and all of the doubled first pause, so
    /// that many waiters do not come back at the same instant.
    pub(crate) fn backoff(&self, attempt: u32, entropy: &dyn Entropy) -> Duration {
        let full = self.backoff_first.saturating_mul(1 << attempt.min(16)).min(self.backoff_max);
        let mut random = [0; 2];
        entropy.fill(&mut random);
        full / 2 + full / 2 * u32::from(u16::from_le_bytes(random)) / u32::from(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::SeededEntropy;

    #[test]
    fn pauses_double_up_to_the_limit_and_vary() {
        let policy = RequestPolicy {
            backoff_first: Duration::from_millis(100),
            backoff_max: Duration::from_secs(1),
            ..RequestPolicy::default()
        };
        let entropy = SeededEntropy::new(1);
        for (attempt, full_ms) in [(0, 100), (1, 200), (2, 400), (3, 800), (4, 1000), (60, 1000)] {
            let pauses: Vec<_> = (0..50).map(|_| policy.backoff(attempt, &entropy)).collect();
            assert!(pauses.iter().all(|pause| *pause >= Duration::from_millis(full_ms / 2)));
            assert!(pauses.iter().all(|pause| *pause <= Duration::from_millis(full_ms)));
            assert!(pauses.iter().min() < pauses.iter().max());
        }
    }
}
