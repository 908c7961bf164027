//! Keeping what tracing costs within what was asked for: where it costs too much, probes are there in windows of time only.

use std::time::{Duration, Instant};

use crate::{profile::Cost, report::duration};

/// Shortest time that probes are there.
const WINDOW: Duration = Duration::from_millis(500);
/// Longest time that they are away: with windows so far apart nothing is found.
const LONGEST: Duration = Duration::from_secs(300);
/// What is idle is taken to use so much of a processor.
const IDLE: f64 = 0.25;
/// What tracer itself needs of a processor with and without probes, which is not counted.
const OWN: f64 = 0.005;
/// What was not spent is kept for so much use of a processor: a quiet night does not pay for a busy day.
const KEPT: Duration = Duration::from_secs(60);

/// What tracer itself needs to begin, which is not counted: files are read, and tables made of them.
const START: Duration = Duration::from_millis(500);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Stay,
    /// Probes are to be taken off.
    Close,
    /// They are to be put again.
    Open,
    /// It cannot be done for so little.
    Stop,
}

/// What tracing may cost, and what is done to keep to that.
pub(super) struct Budget {
    /// Of what processes would use without.
    share: f64,
    pub(super) is_open: bool,
    /// When that began, and what had been spent by then.
    since: Instant,
    spent: Duration,
    /// What a window has cost.
    window: Duration,
    /// How often probes were taken off, and for how long they were there before the present window.
    pub(super) closed: u64,
    open: Duration,
    /// When that was looked at last, and how many hits there had been: those that are taken off may go on for a while.
    looked: (Instant, u64),
    /// What might have been spent and was not, for too long.
    forgone: Duration,
    stopped: bool,
}

impl Budget {
    pub(super) fn new(share: f64, now: Instant) -> Self {
        let none = Duration::ZERO;
        let (spent, window, open, forgone) = (none, none, none, none);
        let (closed, looked, stopped) = (0, (now, 0), false);
        Self { share, is_open: true, since: now, spent, window, closed, open, looked, forgone, stopped }
    }

    /// What is to be done when tracing has cost so much in so much time. `is_ready`: those that were taken off are off.
    pub(super) fn step(&mut self, now: Instant, cost: &Cost, elapsed: Duration, is_ready: bool) -> Step {
        let spent = cost.bounded() + cost.own.saturating_sub(START + elapsed.mul_f64(OWN));
        let without = cost.processes.saturating_sub(cost.probes).max(elapsed.mul_f64(IDLE));
        let allowed = without.mul_f64(self.share);
        self.forgone = self.forgone.max(allowed.saturating_sub(spent + KEPT.mul_f64(self.share)));
        let allowed = allowed.saturating_sub(self.forgone);
        let passed = now.saturating_duration_since(self.since);
        let (looked, hits) = std::mem::replace(&mut self.looked, (now, cost.hits));
        if !self.is_open && cost.hits > hits {
            self.open += now.saturating_duration_since(looked);
        }
        let step = match self.is_open {
            true if passed >= WINDOW && spent > allowed => {
                let cost = spent.saturating_sub(self.spent);
                self.window = cost.mul_f64((WINDOW.as_secs_f64() / passed.as_secs_f64()).min(1.0));
                self.open += passed;
                self.closed += 1;
                Step::Close
            }
            false if is_ready && spent + self.window <= allowed => Step::Open,
            false if passed >= LONGEST => Step::Stop,
            _ => return Step::Stay,
        };
        (self.is_open, self.since, self.spent) = (step == Step::Open, now, spent);
        self.stopped = step == Step::Stop;
        step
    }

    /// What the reader of a report should know of a trace that has lasted so long and cost so much, as far as that is known.
    pub(super) fn notes(&self, now: Instant, elapsed: Duration, cost: Option<&Cost>) -> Vec<String> {
        let passed = if self.is_open { now.saturating_duration_since(self.since) } else { Duration::ZERO };
        // As it was given: 7 % is no share of binary digits.
        let percent = (100.0 * self.share * 1e9).round() / 1e9;
        let windows = (self.closed > 0).then(|| {
            format!(
                "to cost no more than {percent}%, probes were there for {}: what was allocated between is not recorded, \
                 and what was recorded before may have been freed there",
                part(self.open + passed, elapsed)
            )
        });
        // As the cost itself is told, so that the two are not at odds.
        let told = cost.and_then(Cost::share).map(|share| (1000.0 * share).round() / 10.0);
        let more = told.filter(|told| *told > percent).map(|told| {
            format!(
                "tracing has cost about {told:.1}%, more than the {percent}% of --max-overhead: that is a share of a quarter of a processor where \
                 processes use less, the first half second is always traced, and tracer's own start is not counted"
            )
        });
        let go = cost.is_some_and(|cost| cost.go > Duration::ZERO).then(|| {
            "probes in Go runtimes, by which Go heaps are sampled, are always there: --max-overhead does not bound what they cost"
                .to_owned()
        });
        let stopped = self.stopped.then(|| {
            format!(
                "tracing has stopped: windows of {} would be more than {} apart to cost no more than {percent}%; a larger \
                 --max-overhead lets it go on, a larger --sample makes them closer",
                duration(WINDOW),
                duration(LONGEST)
            )
        });
        windows.into_iter().chain(more).chain(go).chain(stopped).collect()
    }
}

/// A part of a time in words, with as many digits as it takes to tell it from the whole.
fn part(part: Duration, whole: Duration) -> String {
    let milliseconds = |time: Duration| format!("{}.{:03}s", time.as_secs(), time.subsec_millis());
    for words in [duration, milliseconds] {
        if part < whole && words(part) != words(whole) {
            return format!("{} of {} only", words(part), words(whole));
        }
    }
    format!("all of {} but the last moment", duration(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_told_from_the_whole() {
        let of = |there, all| part(Duration::from_micros(there), Duration::from_micros(all));
        assert_eq!(of(700_000, 20_000_000), "0.7s of 20.0s only");
        assert_eq!(of(700_000, 712_000), "0.700s of 0.712s only");
        assert_eq!(of(3_599_600_000, 3_600_000_000), "3599.600s of 3600.000s only");
        assert_eq!(of(700_000, 700_400), "all of 0.7s but the last moment");
        assert_eq!(of(780_000, 700_000), "all of 0.7s but the last moment");
    }

    #[test]
    fn what_has_cost_more_than_the_bound_is_told_why() {
        let begin = Instant::now();
        let notes = |probes, processes| {
            let elapsed = Duration::from_secs(10);
            Budget::new(0.05, begin).notes(begin + elapsed, elapsed, Some(&cost(probes, processes)))
        };
        let more = notes(100, 1100);
        assert!(
            more.len() == 1
                && more[0].starts_with("tracing has cost about 10.0%, more than the 5% of --max-overhead: ")
        );
        assert!(notes(50, 1050).is_empty() && notes(50, 100).is_empty(), "as much, and too little to tell");
    }

    fn cost(probes: u64, processes: u64) -> Cost {
        Cost {
            hits: 1,
            go: Duration::ZERO,
            probes: Duration::from_millis(probes),
            own: Duration::ZERO,
            processes: Duration::from_millis(processes),
        }
    }

    /// A process that uses a processor, which probes slow down to a half.
    #[test]
    fn windows_are_so_far_apart_that_the_share_is_kept() {
        let begin = Instant::now();
        let mut budget = Budget::new(0.05, begin);
        let (mut probes, mut windows) = (0, 0);
        for beat in 1..=3000 {
            let (now, elapsed) = (begin + Duration::from_millis(200 * beat), Duration::from_millis(200 * beat));
            probes += if budget.is_open { 100 } else { 0 };
            match budget.step(now, &cost(probes, 200 * beat), elapsed, true) {
                Step::Open => windows += 1,
                Step::Stop => panic!("it can be kept"),
                Step::Close | Step::Stay => {}
            }
        }
        let share = probes as f64 / (600_000 - probes) as f64;
        assert!(share <= 0.0505 && share > 0.045, "{share}");
        assert!(windows >= 50 && budget.closed.abs_diff(windows) <= 1, "{windows} {}", budget.closed);
        assert!(
            budget.notes(begin, Duration::from_secs(600), None)[0]
                .starts_with("to cost no more than 5%, probes were there for ")
        );
    }

    #[test]
    fn what_costs_little_is_traced_all_the_time() {
        let begin = Instant::now();
        let mut budget = Budget::new(0.05, begin);
        for beat in 1..=100 {
            let elapsed = Duration::from_millis(200 * beat);
            // An idle process, and tracer's own needs.
            assert_eq!(budget.step(begin + elapsed, &cost(2 * beat, beat), elapsed, true), Step::Stay);
        }
        assert!(budget.notes(begin, Duration::from_secs(20), None).is_empty());
    }

    #[test]
    fn a_share_is_told_as_it_was_given() {
        let begin = Instant::now();
        for percent in [7.0, 0.1, 12.5, 29.0, 100.0] {
            let budget = Budget { closed: 1, ..Budget::new(percent / 100.0, begin) };
            let notes = budget.notes(begin, Duration::from_secs(1), None);
            assert!(notes[0].starts_with(&format!("to cost no more than {percent}%, ")), "{}", notes[0]);
        }
    }

    #[test]
    fn a_quiet_night_does_not_pay_for_a_busy_day() {
        let (begin, night) = (Instant::now(), 8 * 3600 * 5);
        let mut budget = Budget::new(0.05, begin);
        let mut step = |beat: u64, probes| {
            let elapsed = Duration::from_millis(200 * beat);
            budget.step(begin + elapsed, &cost(probes, 200 * beat.saturating_sub(night)), elapsed, true)
        };
        assert!((1..=night).all(|beat| step(beat, 0) == Step::Stay));
        // A hundred milliseconds of two.
        let closed = (1..).find(|beat| step(night + beat, 100 * beat) == Step::Close);
        assert!(closed.is_some_and(|beats| beats < 60), "within seconds: {closed:?}");
    }

    #[test]
    fn a_start_is_not_counted() {
        let begin = Instant::now();
        let elapsed = Duration::from_secs(1);
        let of = |own| {
            let cost = Cost { own: Duration::from_millis(own), ..cost(1, 100) };
            Budget::new(0.05, begin).step(begin + elapsed, &cost, elapsed, true)
        };
        assert_eq!((of(500), of(1000)), (Step::Stay, Step::Close));
    }

    #[test]
    fn what_costs_too_much_stops() {
        let begin = Instant::now();
        let mut budget = Budget::new(0.001, begin);
        let mut steps = Vec::new();
        for beat in 1..=2000 {
            let elapsed = Duration::from_millis(200 * beat);
            let step = budget.step(begin + elapsed, &cost(600_000, 600_000 + 200 * beat), elapsed, true);
            if step != Step::Stay {
                steps.push(step);
            }
        }
        assert_eq!(steps[..2], [Step::Close, Step::Stop]);
        assert_eq!(budget.notes(begin, Duration::from_secs(20), None).len(), 2);
    }
}
