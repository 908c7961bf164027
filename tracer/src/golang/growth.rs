//! Which groups of goroutines grow, and which of those leak: counts of several looks in, a trend out.
//!
//! A leak only grows, and waits for something that need not come. A pool of workers grows at first and then not any more,
//! what serves requests comes and goes, and what waits for the network is ended by the other side: neither is suspected.
//! No clock: the time is told.

use std::{hash::Hash, time::Duration};

use hashbrown::HashMap;

use super::State;

/// Looks without which nothing is said.
const LEAST_LOOKS: u64 = 3;
/// Looks that must have found more than any before.
const LEAST_RISES: u64 = 2;
/// Goroutines that a group must have grown by.
const LEAST_GROWTH: u64 = 8;
/// By how many goroutines a group that grows may shrink, or by which part of its growth: in the place where some wait for
/// ever, others may wait for a moment.
const NOISE: (u64, u64) = (2, 10);
/// Which part of the growth must be of about the last half of the time.
const RECENT: u64 = 8;
/// Nanoseconds before which there is no rate.
const SHORTEST: u64 = 1_000_000_000;
/// By which part of the time a new mark is later than the one before; and how many are kept: the first of so many is of less than half the
/// time (8/9 to the power of 7).
const MARK: u64 = 8;
const MARKS: usize = 8;
/// The least that counts as about the last half: a little less than that, for looks are never quite on time.
const HALF: (u64, u64) = (15, 32);
/// Most groups that are followed.
const MAX_SERIES: usize = 1 << 14;
/// Time between looks, at first and when tracing has lasted for a while.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];

/// How long to wait before the next look, when the last one took so long and there have been looks for `elapsed`: they
/// take less than a hundredth of the time.
pub fn pause(elapsed: Duration, took: Duration) -> Duration {
    (elapsed / 8).clamp(PAUSES[0], PAUSES[1]).max(took.saturating_mul(100))
}

/// How a group has grown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trend {
    /// Goroutines at the first look.
    pub first: u64,
    /// Goroutines at the last look.
    pub last: u64,
    /// Growth per second over about the last half of the time; `None` when that is too short to tell.
    pub per_second: Option<f64>,
    /// Whether it has only grown, for long enough to say so, and still does.
    pub only_grows: bool,
}

/// Whether goroutines in this state, which wait for `reason`, have to be taken for a leak.
pub fn suspected_leak(state: State, reason: &str, trend: Option<&Trend>) -> bool {
    match state {
        State::Leaked(_) => true,
        State::Waiting(_) => waits_for_others(reason) && trend.is_some_and(|trend| trend.only_grows),
        _ => false,
    }
}

/// Whether only other goroutines can end a wait.
fn waits_for_others(reason: &str) -> bool {
    let begins = ["chan receive", "chan send", "select", "sync.Mutex.", "sync.RWMutex."];
    let whole = ["semacquire", "sync.WaitGroup.Wait", "sync.Cond.Wait", "coroutine"];
    whole.contains(&reason) || begins.iter().any(|begin| reason.starts_with(begin))
}

/// Counts of one group.
#[derive(Clone, Copy, Debug, Default)]
struct Series {
    first: u64,
    last: u64,
    /// The most there ever were, and by how many it has once been less than the most before.
    peak: u64,
    drop: u64,
    /// Looks that found more than any before.
    rises: u64,
    /// Counts at the marks, the last one at the end.
    marks: [u64; MARKS],
    /// Number of the last look that it was told at.
    told: u64,
}

impl Series {
    /// Of a group that had so many goroutines at the first look.
    fn new(first: u64) -> Self {
        Self { first, peak: first, marks: [first; MARKS], ..Self::default() }
    }

    fn add(&mut self, count: u64) {
        self.rises += u64::from(count > self.peak);
        self.peak = self.peak.max(count);
        self.drop = self.drop.max(self.peak - count);
        self.last = count;
    }

    fn mark(&mut self) {
        self.marks.rotate_left(1);
        self.marks[MARKS - 1] = self.last;
    }

    /// `half`: the mark that about the last half begins with.
    fn only_grows(&self, looks: u64, half: usize) -> bool {
        let growth = self.last.saturating_sub(self.first);
        looks >= LEAST_LOOKS
            && growth >= LEAST_GROWTH
            && self.rises >= LEAST_RISES
            && self.drop <= NOISE.0.max(growth / NOISE.1)
            && self.last.saturating_sub(self.marks[half]) >= growth / RECENT
    }
}

/// Follows groups, each known by a key. Times are nanoseconds.
#[derive(Debug)]
pub struct Growth<K> {
    looks: u64,
    started: u64,
    last: u64,
    /// When the marks were set, the last one at the end: close enough to each other that one of them is of about half the time ago,
    /// whenever that is asked.
    marks: [u64; MARKS],
    series: HashMap<K, Series>,
    /// Of all groups together, also of those that are not followed.
    all: Series,
}

impl<K> Default for Growth<K> {
    fn default() -> Self {
        Self { looks: 0, started: 0, last: 0, marks: [0; MARKS], series: HashMap::new(), all: Series::default() }
    }
}

impl<K: Eq + Hash> Growth<K> {
    /// Takes the counts of a look at `now`. A group that is not among them has none; each is there once.
    pub fn look(&mut self, now: u64, counts: impl IntoIterator<Item = (K, u64)>) {
        if self.looks == 0 {
            (self.started, self.marks) = (now, [now; MARKS]);
        }
        self.looks += 1;
        self.last = now;
        let mut all = 0_u64;
        for (key, count) in counts {
            all = all.saturating_add(count);
            let known = self.series.len() < MAX_SERIES || self.series.contains_key(&key);
            if known {
                let first = if self.looks == 1 { count } else { 0 };
                let series = self.series.entry(key).or_insert_with(|| Series::new(first));
                series.add(count);
                series.told = self.looks;
            }
        }
        if self.looks == 1 {
            self.all = Series::new(all);
        }
        self.all.add(all);
        let [elapsed, marked] = [now, self.marks[MARKS - 1]].map(|at| at.saturating_sub(self.started));
        let mark = elapsed > marked && elapsed - marked >= marked / MARK;
        for series in self.series.values_mut() {
            if series.told != self.looks {
                series.add(0);
            }
            if mark {
                series.mark();
            }
        }
        if mark {
            self.all.mark();
            self.marks.rotate_left(1);
            self.marks[MARKS - 1] = now;
        }
        if self.series.len() >= MAX_SERIES {
            self.series.retain(|_, series| series.last > 0);
        }
    }

    /// How the group with this key has grown until the last look; `None` when it is not followed.
    pub fn trend(&self, key: &K) -> Option<Trend> {
        let series = self.series.get(key)?;
        Some(Trend {
            first: series.first,
            last: series.last,
            per_second: self.per_second(series),
            only_grows: series.only_grows(self.looks, self.half()),
        })
    }

    /// Growth of all groups together, goroutines per second over about the last half of the time; `None` when that is too short to tell.
    pub fn all_per_second(&self) -> Option<f64> {
        self.per_second(&self.all)
    }

    fn per_second(&self, series: &Series) -> Option<f64> {
        let half = self.half();
        let span = self.last.saturating_sub(self.marks[half]);
        let rate = || (series.last as f64 - series.marks[half] as f64) / (span as f64 / 1e9);
        (span >= SHORTEST).then(rate)
    }

    /// The mark that about the last half of the time begins with.
    fn half(&self) -> usize {
        let elapsed = self.last.saturating_sub(self.started);
        let least = (elapsed / HALF.1 * HALF.0).max(SHORTEST);
        self.marks.iter().rposition(|mark| self.last.saturating_sub(*mark) >= least).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Trend of a group that had these counts, one each second.
    fn trend(counts: &[u64]) -> Trend {
        let mut growth = Growth::default();
        for (second, count) in counts.iter().enumerate() {
            growth.look(second as u64 * SECOND, Some(((), *count)));
        }
        growth.trend(&()).unwrap()
    }

    fn only_grows(counts: impl IntoIterator<Item = u64>) -> bool {
        trend(&counts.into_iter().collect::<Vec<_>>()).only_grows
    }

    #[test]
    fn leaks_are_told_from_what_else_grows() {
        assert!(only_grows((0..9).map(|t| 100 * t)), "a leak");
        assert!(only_grows((0..60).map(|t| 5_000 + t / 5)), "a slow one");
        assert!(only_grows([0, 4, 8]), "three looks are enough");
        assert!(only_grows([3, 103, 200, 298, 401, 395, 500]), "others wait in the same place for a moment");
        assert!(only_grows([0, 50, 50, 50, 100, 100, 150]), "now and then");

        assert!(!only_grows([1_000; 20]), "a pool");
        assert!(!only_grows([0, 50, 100, 100, 100, 100, 100, 100, 100]), "a pool that was filled");
        assert!(!only_grows([3, 40, 7, 33, 21, 18, 41, 9]), "requests");
        assert!(!only_grows([0, 0, 0, 100, 100, 100]), "a single burst");
        assert!(!only_grows([10, 11, 12, 13, 14, 15, 16]), "too few");
        assert!(!only_grows([0, 100]), "two looks");
        assert!(!only_grows([500, 400, 300, 200]), "what shrinks");
        assert!(!only_grows([0, 100, 200, 300, 0, 400]), "what was gone once");
    }

    #[test]
    fn rates_are_those_of_the_last_half() {
        let filled = trend(&[0, 50, 100, 100, 100, 100, 100, 100, 100]);
        assert_eq!((filled.first, filled.last, filled.per_second), (0, 100, Some(0.0)));
        assert_eq!(trend(&(0..33).map(|t| 7 * t).collect::<Vec<_>>()).per_second, Some(7.0));
        assert_eq!(trend(&[40, 30, 20]).per_second, Some(-10.0));
        assert_eq!(trend(&[40]).per_second, None);
    }

    /// Whenever a trace ends.
    #[test]
    fn the_last_half_is_never_much_more_than_that() {
        for filled in [3, 7, 10, 16, 33, 100] {
            let mut growth = Growth::default();
            let (mut elapsed, mut late) = (Duration::ZERO, 0);
            while elapsed < Duration::from_secs(20 * filled) {
                let now = u64::try_from(elapsed.as_nanos()).unwrap();
                // One goroutine after the other comes to a pool, until it is full; others come for ever.
                let pool = (200 * now / (filled * SECOND)).min(200);
                growth.look(now, [("pool", pool), ("leak", 16 * now / SECOND)]);
                let begin = growth.marks[growth.half()];
                if elapsed >= Duration::from_secs(8) {
                    let share = (now - begin) as f64 / now as f64;
                    assert!((0.46..=0.625).contains(&share), "{share} of {elapsed:?}");
                }
                if now - now / 8 * 5 >= filled * SECOND && elapsed >= Duration::from_secs(8) {
                    let pool = growth.trend(&"pool").unwrap();
                    assert!(!pool.only_grows && pool.per_second == Some(0.0), "{filled} s, {elapsed:?}: {pool:?}");
                    let leak = growth.trend(&"leak").unwrap();
                    assert!(leak.only_grows, "{filled} s, {elapsed:?}: {leak:?}");
                    assert!(growth.all_per_second().is_some_and(|rate| rate < 16.5), "{filled} s, {elapsed:?}");
                }
                // No look is quite on time.
                late = (late + 7) % 40;
                elapsed += pause(elapsed, Duration::from_millis(1)) + Duration::from_millis(late);
            }
        }
    }

    #[test]
    fn the_rate_of_all_is_that_of_the_last_half_too() {
        let mut growth = Growth::default();
        assert_eq!(growth.all_per_second(), None);
        for t in 0..33_u64 {
            // Five hundred come at once, one a second all along, and others are elsewhere at each look.
            let burst = (t >= 6).then_some((100, 500));
            growth.look(t * SECOND, [(0, 50 + t), (200 + t, 7)].into_iter().chain(burst));
        }
        assert_eq!(growth.all_per_second(), Some(1.0));
    }

    #[test]
    fn what_appears_later_had_none_before() {
        let mut growth = Growth::default();
        for t in 0..5_u64 {
            growth.look(t * SECOND, (t >= 2).then_some(("late", 10 * t)));
        }
        let late = growth.trend(&"late").unwrap();
        assert_eq!((late.first, late.last, late.only_grows), (0, 40, true));
        assert_eq!(growth.trend(&"never"), None);
    }

    #[test]
    fn more_groups_than_are_followed_do_no_harm() {
        let mut growth = Growth::default();
        let many = MAX_SERIES as u64 + 100;
        for look in 0..3_u64 {
            growth.look(look * SECOND, (look * many..(look + 1) * many).map(|key| (key, 1)));
            assert!(growth.series.len() <= MAX_SERIES);
        }
        assert_eq!(growth.trend(&0), None, "the gone ones make place");
        assert!(growth.trend(&(2 * many)).is_some());
    }

    #[test]
    fn only_waits_for_other_goroutines_are_suspected() {
        let grows = Trend { first: 0, last: 100, per_second: Some(10.0), only_grows: true };
        let steady = Trend { only_grows: false, ..grows };
        let waits = |reason| suspected_leak(State::Waiting(1), reason, Some(&grows));
        for reason in [
            "chan receive",
            "chan receive (nil chan)",
            "chan send",
            "select",
            "select (no cases)",
            "semacquire",
            "sync.Mutex.Lock",
            "sync.RWMutex.RLock",
            "sync.RWMutex.Lock",
            "sync.WaitGroup.Wait",
            "sync.Cond.Wait",
            "coroutine",
        ] {
            assert!(waits(reason), "{reason}");
            assert!(!suspected_leak(State::Waiting(1), reason, Some(&steady)), "{reason}");
            assert!(!suspected_leak(State::Waiting(1), reason, None), "{reason}");
            assert!(suspected_leak(State::Leaked(1), reason, None), "{reason}");
        }
        for reason in ["IO wait", "sleep", "GC worker (idle)", "finalizer wait", "", "sync.Mutex"] {
            assert!(!waits(reason), "{reason}");
        }
        for state in [State::Runnable, State::Running, State::Syscall, State::Preempted] {
            assert!(!suspected_leak(state, "chan receive", Some(&grows)));
        }
    }

    #[test]
    fn looks_take_less_than_a_hundredth_of_the_time() {
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        assert_eq!(pause(s(0), ms(1)), s(1));
        assert_eq!(pause(s(24), ms(1)), s(3));
        assert_eq!(pause(s(3600), ms(1)), s(5));
        assert_eq!(pause(s(3600), ms(160)), s(16));
    }

    proptest! {
        /// Against all counts, looked at anew.
        #[test]
        fn agrees_with_the_whole_history(counts in prop::collection::vec(0..60_u64, 1..30)) {
            let seen = trend(&counts);
            let (first, last) = (counts[0], *counts.last().unwrap());
            prop_assert_eq!((seen.first, seen.last), (first, last));
            let growth = last.saturating_sub(first);
            let before = |at: usize| counts[..at].iter().copied().max().unwrap();
            let rises = (1..counts.len()).filter(|at| counts[*at] > before(*at)).count();
            let drop = (1..counts.len()).map(|at| before(at).saturating_sub(counts[at])).max().unwrap_or(0);
            if seen.only_grows {
                prop_assert!(counts.len() >= 3 && growth >= 8 && rises >= 2 && drop <= (growth / 10).max(2));
            }
            if drop > growth.max(20) / 10 {
                prop_assert!(!seen.only_grows);
            }
        }

        /// Whatever it began with, and whenever it is looked at.
        #[test]
        fn what_grows_all_the_time_is_seen(
            first in 0..100_000_u64, step in 4..1_000_u64, pauses in prop::collection::vec(SECOND..6 * SECOND, 2..40),
        ) {
            let mut growth = Growth::default();
            let (mut now, mut count) = (77, first);
            growth.look(now, [((), count)]);
            for pause in pauses {
                now += pause;
                count += step;
                growth.look(now, [((), count)]);
            }
            prop_assert!(growth.trend(&()).unwrap().only_grows);
        }

        /// The order in which groups are told, and the groups around it, change nothing.
        #[test]
        fn groups_do_not_change_each_other(
            series in prop::collection::vec(prop::collection::vec(0..50_u64, 12), 1..6),
        ) {
            let mut together = Growth::default();
            for look in 0..12 {
                let told = series.iter().enumerate().filter(|(_, counts)| counts[look] > 0);
                together.look(look as u64 * SECOND, told.map(|(key, counts)| (key, counts[look])));
            }
            for (key, counts) in series.iter().enumerate().filter(|(_, counts)| counts.iter().any(|count| *count > 0)) {
                prop_assert_eq!(together.trend(&key), Some(trend(counts)));
            }
        }
    }
}
