//! What a profile leaves out because it was asked to.

use std::time::Duration;

/// Which blocks a profile is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filters {
    /// How long blocks must have been held to count as outstanding.
    pub min_age: Duration,
    /// Smallest and largest allocation that is recorded, bytes, inclusive.
    pub sizes: (u64, u64),
    /// Bytes and blocks that are held and younger than `min_age`; `None` where that is not known.
    pub younger: Option<(u64, u64)>,
}

impl Default for Filters {
    fn default() -> Self {
        Self { min_age: Duration::ZERO, sizes: (0, u64::MAX), younger: None }
    }
}

impl Filters {
    /// Whether allocations of some sizes are not recorded.
    pub fn leaves_out_sizes(&self) -> bool {
        self.sizes != (0, u64::MAX)
    }
}
