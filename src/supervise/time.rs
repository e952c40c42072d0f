//! Points in time, as the runtime's clock gives them, and pauses that grow.

use serde::{Deserialize, Serialize};
use std::ops::{Add, Sub};
use std::time::Duration;

/// The shortest delay of a backoff that has begun: `restart_delay = 0` must not become a spin.
const SHORTEST_BACKOFF: Duration = Duration::from_millis(10);

/// A point in time: nanoseconds of CLOCK_MONOTONIC, so that it keeps its meaning in a new manager of the same boot.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Time(u64);

impl Time {
    /// The clock's zero.
    pub const ZERO: Time = Time(0);

    /// A point that does not come.
    pub const NEVER: Time = Time(u64::MAX);

    /// The point that is `since_zero` after the clock's zero.
    pub fn from_monotonic(since_zero: Duration) -> Time {
        Time::ZERO + since_zero
    }

    /// Time since `earlier`, zero if that is later.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Time;

    /// Saturates: a deadline in 500 years is as good as none.
    fn add(self, duration: Duration) -> Time {
        Time(
            self.0
                .saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

impl Sub for Time {
    type Output = Duration;

    fn sub(self, earlier: Time) -> Duration {
        self.since(earlier)
    }
}

/// Delay before the restart after `attempt` restarts in a row: the first is at once, then doubling from `shortest`.
pub(super) fn backoff(attempt: u32, shortest: Duration, longest: Duration) -> Duration {
    let Some(doublings) = attempt.checked_sub(1) else {
        return Duration::ZERO;
    };
    let shortest = shortest.max(SHORTEST_BACKOFF);
    let factor = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
    shortest
        .checked_mul(factor)
        .unwrap_or(Duration::MAX)
        .min(longest.max(shortest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_at_once_and_the_others_double_up_to_the_longest() {
        let (shortest, longest) = (Duration::from_millis(100), Duration::from_secs(30));
        let delays: Vec<u128> = (0..12)
            .map(|attempt| backoff(attempt, shortest, longest).as_millis())
            .collect();
        assert_eq!(
            delays,
            [
                0, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000
            ]
        );
        assert_eq!(backoff(u32::MAX, shortest, longest), longest);
    }

    #[test]
    fn a_delay_of_zero_does_not_spin() {
        assert_eq!(backoff(1, Duration::ZERO, Duration::ZERO), SHORTEST_BACKOFF);
        assert!(backoff(10, Duration::ZERO, Duration::from_secs(1)) >= Duration::from_secs(1));
    }
}
