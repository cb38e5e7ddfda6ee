//! How long a test goes on, and from which seed it starts.
//!
//! A run that nobody asked to be long is the same everywhere: a fixed seed and a fixed number of
//! rounds, however fast the machine. A long one, for `LGUEST_ORACLE_SECONDS`, is meant to find
//! something new.

use std::env;
use std::time::{Duration, Instant, SystemTime};

/// The seed of a run that nobody asked to be long.
const SEED: u64 = 0x6c67_7565_7374;

/// A test's length and seed.
pub struct Budget {
    limit: Limit,
    seed: u64,
}

enum Limit {
    Rounds(u64),
    Until(Instant),
}

impl Budget {
    /// `rounds` and a fixed seed; or, when `LGUEST_ORACLE_SECONDS` is set, as many seconds as it says, and a
    /// new seed each time. `LGUEST_ORACLE_SEED` sets the seed in either case.
    #[must_use]
    pub fn new(rounds: u64) -> Self {
        let until = |seconds| Limit::Until(Instant::now() + Duration::from_secs(seconds));
        let limit = seconds().map_or(Limit::Rounds(rounds), until);
        Self { limit, seed: seed() }
    }

    /// Whether there is to be another round after `done` of them. There is always a first.
    #[must_use]
    pub fn lasts(&self, done: u64) -> bool {
        match self.limit {
            Limit::Rounds(rounds) => done < rounds,
            Limit::Until(end) => done == 0 || Instant::now() < end,
        }
    }

    /// Where random numbers start: to be printed with every failure.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }
}

/// The seed alone, for a test whose length is its own.
#[must_use]
pub fn seed() -> u64 {
    let fresh = || {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(SEED, |since| since.as_secs())
    };
    let default = || if seconds().is_some() { fresh() } else { SEED };
    number("LGUEST_ORACLE_SEED").unwrap_or_else(default)
}

fn seconds() -> Option<u64> {
    number("LGUEST_ORACLE_SECONDS")
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}
