//! How long the collector waits for records: those that cannot wait wake it. Pure.

use std::time::{Duration, Instant};

/// Where some have come of late.
const USUAL: Duration = Duration::from_millis(10);
/// Where none have for so long.
const CALM: Duration = Duration::from_millis(100);
const CALM_PATIENCE: Duration = Duration::from_millis(30);

/// How long it waits.
pub(super) struct Patience {
    /// When a record came last.
    last: Instant,
    calm: Duration,
}

impl Patience {
    /// Before any has come. `room_lasts`: how long it takes all processors to fill the buffer; half of it is never waited for.
    pub(super) fn new(room_lasts: Duration, now: Instant) -> Self {
        Self { last: now, calm: CALM_PATIENCE.min(room_lasts / 2).max(USUAL) }
    }

    /// How long to wait now. `has_come`: a record has, or whatever may come is to be heard of as soon as can be.
    pub(super) fn next(&mut self, has_come: bool, now: Instant) -> Duration {
        if has_come {
            self.last = now;
        }
        if now.saturating_duration_since(self.last) < CALM { USUAL } else { self.calm }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_where_nothing_has_come_for_a_while() {
        let begun = Instant::now();
        let mut patience = Patience::new(Duration::from_secs(1), begun);
        let mut after = |ms, has_come| patience.next(has_come, begun + Duration::from_millis(ms));
        assert_eq!([after(0, false), after(99, false), after(100, false)], [USUAL, USUAL, CALM_PATIENCE]);
        assert_eq!([after(150, true), after(249, false), after(250, false)], [USUAL, USUAL, CALM_PATIENCE]);
    }

    #[test]
    fn no_longer_than_half_of_the_buffer_lasts() {
        let begun = Instant::now();
        for (room, wanted) in [(50, 25), (30, 15), (2, 10)] {
            let mut patience = Patience::new(Duration::from_millis(room), begun);
            assert_eq!(patience.next(false, begun + CALM), Duration::from_millis(wanted), "{room} ms");
        }
    }
}
