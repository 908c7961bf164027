//! How fast each stack's outstanding bytes grow, over roughly the last half of the trace.
//!
//! Warm-up is not a leak: a rate since the beginning would show every cache that was once filled. So two marks follow
//! the trace, each set when its age has doubled, and the rate is taken from the older one.

/// Nanoseconds before which there is no rate.
const SHORTEST: u64 = 1_000_000_000;

struct Mark {
    time: u64,
    /// Outstanding bytes by stack index.
    bytes: Vec<u64>,
}

/// Remembers outstanding bytes at two earlier moments.
pub struct Growth {
    started: u64,
    older: Mark,
    newer: Mark,
}

impl Growth {
    /// Begins at `now` with nothing outstanding. Times are nanoseconds.
    pub fn new(now: u64) -> Self {
        Self::since(now, Vec::new())
    }

    /// Begins at `now`, when each stack held as much already.
    pub fn since(now: u64, bytes: Vec<u64>) -> Self {
        let mark = |bytes| Mark { time: now, bytes };
        Self { started: now, older: mark(bytes.clone()), newer: mark(bytes) }
    }

    /// Whether it is time for a mark.
    pub fn is_due(&self, now: u64) -> bool {
        let since_mark = now.saturating_sub(self.newer.time);
        since_mark >= SHORTEST && since_mark >= self.newer.time - self.started
    }

    /// Sets a mark if it is time for one; `outstanding` is read only then. Call it about once a second.
    pub fn tick<I: Iterator<Item = u64>>(&mut self, now: u64, outstanding: impl FnOnce() -> I) {
        if self.is_due(now) {
            let mark = Mark { time: now, bytes: outstanding().collect() };
            self.older = std::mem::replace(&mut self.newer, mark);
        }
    }

    /// Bytes per second by which the stack with this index has grown, if the trace is long enough to tell.
    pub fn rate(&self, index: usize, outstanding: u64, now: u64) -> Option<f64> {
        let span = now.saturating_sub(self.older.time);
        if span < SHORTEST {
            return None;
        }
        let before = self.older.bytes.get(index).copied().unwrap_or(0);
        Some((outstanding as f64 - before as f64) / (span as f64 / 1e9))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn warm_up_is_forgotten_and_a_leak_is_not() {
        let mut growth = Growth::new(0);
        let cache = |t: u64| t.min(3) * 1000;
        let leak = |t: u64| t * 10;
        for t in 1..=32 {
            growth.tick(t * SECOND, || [cache(t), leak(t)].into_iter());
        }
        assert_eq!(growth.rate(0, cache(32), 32 * SECOND), Some(0.0));
        assert_eq!(growth.rate(1, leak(32), 32 * SECOND), Some(10.0));
    }

    #[test]
    fn nothing_is_said_in_the_first_second() {
        assert_eq!(Growth::new(5).rate(0, 100, SECOND), None);
        assert_eq!(Growth::new(0).rate(0, 100, 2 * SECOND), Some(50.0));
    }
}
