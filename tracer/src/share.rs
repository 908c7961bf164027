//! How much of a processor may be taken by what goes on for as long as a trace does. Pure.

use std::time::{Duration, Instant};

/// Time of a processor, of which so much comes in each second, and that is kept for a while where it is not needed.
#[derive(Debug)]
pub struct Share {
    /// One part of so many.
    share: u32,
    most: Duration,
    left: Duration,
    /// What was spent beyond what was there.
    owed: Duration,
    since: Instant,
}

impl Share {
    /// One of `1 / share` of a processor, of which at most `most` is kept; it begins with that.
    pub fn new(share: u32, most: Duration, now: Instant) -> Self {
        Self { share, most, left: most, owed: Duration::ZERO, since: now }
    }

    /// Whether there is something left.
    pub fn has_some(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.since) / self.share;
        self.since = self.since.max(now);
        let paid = self.owed.min(earned);
        self.owed -= paid;
        self.left = (self.left + (earned - paid)).min(self.most);
        self.left > Duration::ZERO
    }

    /// So much was used.
    pub fn spend(&mut self, used: Duration) {
        self.owed += used.saturating_sub(self.left);
        self.left = self.left.saturating_sub(used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARE: u32 = 100;
    const MOST: Duration = Duration::from_millis(10);

    #[test]
    fn what_is_not_needed_is_kept_for_a_while_only() {
        let now = Instant::now();
        let mut share = Share::new(SHARE, MOST, now);
        let later = now + Duration::from_secs(3_600);
        assert!(share.has_some(later));
        share.spend(MOST);
        assert!(!share.has_some(later));
        // A debt is paid first.
        share.spend(MOST);
        assert!(!share.has_some(later + MOST * SHARE));
        assert!(share.has_some(later + MOST * SHARE + Duration::from_micros(SHARE.into())));
    }
}
