//! SplitMix64: small, fast, and the same on every machine.

use std::time::Duration;

/// Everything random of a run comes from one of these, so that its seed is the whole run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        // Neighbouring seeds must not have neighbouring beginnings.
        let mut random = Random(seed.wrapping_mul(0xD134_2543_DE82_EF95) ^ 0x5851_F42D_4C95_7F2D);
        random.next();
        random
    }

    /// Another one, whose numbers do not depend on how many are taken from this one later.
    pub fn fork(&mut self) -> Random {
        Random::new(self.next())
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from 0 to `end`, without it.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// Some milliseconds below `end`; a fifth of them are none at all, so that things happen at the same time.
    pub fn millis(&mut self, end: u64) -> Duration {
        if self.chance(20) {
            return Duration::ZERO;
        }
        Duration::from_micros(self.below(end * 1000))
    }
}
