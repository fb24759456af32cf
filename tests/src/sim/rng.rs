//! Chance that is the same for the same seed, in streams that do not disturb each other.

/// What a draw is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    Faults,
    Setup,
    Network,
    Store,
    Postgres,
    Keeper,
    Clients,
    Aims,
    Wishes,
    Pace,
}

impl Stream {
    pub const ALL: [Stream; 10] = [
        Stream::Faults,
        Stream::Setup,
        Stream::Network,
        Stream::Store,
        Stream::Postgres,
        Stream::Keeper,
        Stream::Clients,
        Stream::Aims,
        Stream::Wishes,
        Stream::Pace,
    ];
    pub const COUNT: usize = Self::ALL.len();
}

/// SplitMix64: small, fast, and good enough to choose among schedules.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// Returns the beginning of `stream` for `seed`.
    pub fn of(seed: u64, stream: Stream) -> Self {
        let mut rng = Self(seed ^ (stream as u64 + 1).wrapping_mul(0xA076_1D64_78BD_642F));
        rng.next();
        rng
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Returns a number from `least` to `most`, both included.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most.max(least) - least + 1)
    }

    /// Returns true in `percent` of all draws.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    /// Returns one of `items`, which are not empty.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[(self.next() % items.len() as u64) as usize]
    }
}
