//! How long a test may take, and from which seed it starts.

use std::env;
use std::time::{Duration, Instant, SystemTime};

/// The seed of a run that nobody asked to be long: the same each time.
const SEED: u64 = 0x6c67_7565_7374;

/// A test's time and seed.
pub struct Budget {
    end: Instant,
    seed: u64,
}

impl Budget {
    /// `seconds` from now and a fixed seed; or, when `LGUEST_ORACLE_SECONDS` is set, as many as it
    /// says, and a new seed each time. `LGUEST_ORACLE_SEED` sets the seed in either case.
    #[must_use]
    pub fn new(seconds: u64) -> Self {
        let number = |name| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let asked = number("LGUEST_ORACLE_SECONDS");
        let fresh = || {
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            since.map_or(SEED, |since| since.as_secs())
        };
        let seed = number("LGUEST_ORACLE_SEED");
        let seed = seed.unwrap_or_else(|| if asked.is_some() { fresh() } else { SEED });
        let duration = Duration::from_secs(asked.unwrap_or(seconds));
        Self { end: Instant::now() + duration, seed }
    }

    /// Whether there is time left.
    #[must_use]
    pub fn lasts(&self) -> bool {
        Instant::now() < self.end
    }

    /// Where random numbers start: to be printed with every failure.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }
}
