//! What is said of thousands of simulated heaps: nothing grows that does not, and rates are within their errors.

use super::*;
use crate::profile::Rate;

const SECOND: f64 = 1e9;
/// Heaps of each kind.
const RUNS: u64 = 120;

/// Random numbers that are the same in every run (splitmix64, by Vigna).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Between the two, each as likely.
    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// Between the two, each order of magnitude as likely.
    fn order(&mut self, low: f64, high: f64) -> f64 {
        self.between(low.ln(), high.ln()).exp()
    }

    /// The time until something that happens all this time on average.
    fn wait(&mut self, mean: f64) -> f64 {
        -mean * self.between(0.0, 1.0).ln()
    }
}

/// Blocks that come and go: time in seconds, and bytes.
type Changes = Vec<(f64, f64)>;

/// A history of `seconds` of such a heap, by looks as often as the collector takes them.
fn history(mut changes: Changes, seconds: f64, random: &mut Random) -> History {
    changes.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut changes = changes.into_iter().peekable();
    let mut history = History::new(77);
    let (mut held, mut time) = (0.0, 0.0);
    while time < seconds {
        while let Some((_, bytes)) = changes.next_if(|(at, _)| *at <= time) {
            held += bytes;
        }
        let now = 77 + (time * SECOND) as u64;
        if history.is_due(now) {
            history.look(now, [held as u64].into_iter(), std::iter::empty());
            history.rest(now, 0);
        }
        time += random.between(0.0095, 0.0115);
    }
    history
}

fn growth(changes: Changes, seconds: f64, random: &mut Random) -> Growth {
    let history = history(changes, seconds, random);
    history.series(0, &history.times(), 0).unwrap().growth(1.0)
}

/// How many of many heaps grow in the words of the report, and of how many the rate is right.
fn simulate(mut heap: impl FnMut(&mut Random, f64) -> (Changes, f64)) -> (u64, u64) {
    let (mut grow, mut right) = (0, 0);
    for run in 0..RUNS {
        let mut random = Random(run);
        let seconds = [1.0, 2.0, 5.0][run as usize % 3];
        let (changes, rate) = heap(&mut random, seconds);
        let growth = growth(changes, seconds, &mut random);
        grow += u64::from(growth.trend == Trend::Growing);
        assert_ne!(growth.trend, Trend::Shrinking, "run {run}");
        right +=
            u64::from(growth.rate.is_some_and(|Rate { per_second, error }| (per_second - rate).abs() <= 2.0 * error));
    }
    (grow, right)
}

#[track_caller]
fn leaks(mut heap: impl FnMut(&mut Random, f64) -> (Changes, f64)) {
    let (grow, right) = simulate(&mut heap);
    assert!(right * 100 >= 95 * RUNS, "the rate of {right} of {RUNS} is within two errors");
    assert!(grow * 100 >= 90 * RUNS, "{grow} of {RUNS} are said to grow");
}

#[track_caller]
fn does_not_grow(mut heap: impl FnMut(&mut Random, f64) -> Changes) {
    let (grow, _) = simulate(|random, seconds| (heap(random, seconds), 0.0));
    assert!(grow * 100 <= RUNS, "{grow} of {RUNS} are said to grow");
}

/// Blocks of 100 bytes, so many a second, each at its own time.
fn leak(random: &mut Random, per_second: f64, seconds: f64) -> Changes {
    let mut changes = Changes::new();
    let mut time = random.wait(1.0 / per_second);
    while time < seconds {
        changes.push((time, 100.0));
        time += random.wait(1.0 / per_second);
    }
    changes
}

/// Blocks of 100 bytes that live for `life` seconds on average; there are `number` of them. `full`: from the beginning on.
fn churn(random: &mut Random, number: f64, life: f64, seconds: f64, full: bool) -> Changes {
    let mut changes = leak(random, number / life, seconds);
    changes.extend((0..number as usize * usize::from(full)).map(|_| (0.0, 100.0)));
    let ends: Changes = changes.iter().map(|(time, bytes)| (time + random.wait(life), -bytes)).collect();
    changes.extend(ends);
    changes
}

/// What fills over a time and is emptied at once, over and over.
fn sawtooth(random: &mut Random, period: f64, bytes: f64, seconds: f64) -> Changes {
    const STEPS: usize = 40;
    let mut changes = Changes::new();
    let mut begin = -random.between(0.0, period);
    while begin < seconds {
        for step in 0..STEPS {
            let time = begin + period * step as f64 / STEPS as f64;
            // What is from before the trace is not known.
            if time > 0.0 {
                changes.extend([(time, bytes / STEPS as f64), (begin + period, -bytes / STEPS as f64)]);
            }
        }
        begin += period;
    }
    changes
}

#[test]
fn leaks_grow_at_their_rate() {
    leaks(|random, seconds| {
        let begin = random.between(0.0, 0.001);
        ((0..(1000.0 * seconds) as u64).map(|ms| (begin + ms as f64 / 1000.0, 1000.0)).collect(), 1e6)
    });
    leaks(|random, seconds| {
        let rate = random.order(50.0, 2000.0) / seconds;
        (leak(random, rate, seconds), 100.0 * rate)
    });
    leaks(|random, seconds| {
        let rate = random.order(12.0, 100.0) / seconds;
        let begin = random.between(0.0, 1.0 / rate);
        let times = (0..).map(|nth| begin + f64::from(nth) / rate).take_while(|time| *time < seconds);
        (times.map(|time| (time, 100.0)).collect(), 100.0 * rate)
    });
    leaks(|random, seconds| {
        let rate = random.order(100.0, 2000.0) / seconds;
        let sized = leak(random, rate, seconds).into_iter().map(|(time, mean)| (time, random.wait(mean))).collect();
        (sized, 100.0 * rate)
    });
}

#[test]
fn leaks_grow_at_their_rate_whatever_else_there_is() {
    // What was set up at the beginning.
    leaks(|random, seconds| {
        let rate = random.order(200.0, 2000.0) / seconds;
        let mut changes = leak(random, rate, seconds);
        changes.push((random.between(0.0, 0.02 * seconds), 100.0 * rate * seconds * random.order(0.1, 10.0)));
        (changes, 100.0 * rate)
    });
    leaks(|random, seconds| {
        let rate = random.order(500.0, 2000.0) / seconds;
        let mut changes = leak(random, rate, seconds);
        let life = random.order(0.005, 0.05) * seconds;
        changes.extend(churn(random, 20.0, life, seconds, true));
        (changes, 100.0 * rate)
    });
    leaks(|random, seconds| {
        let rate = random.order(200.0, 2000.0) / seconds;
        let mut changes = leak(random, rate, seconds);
        let (period, bytes) = (random.order(0.02, seconds / 6.0), rate * seconds * 100.0 * random.between(0.01, 0.08));
        changes.extend(sawtooth(random, period, bytes, seconds));
        (changes, 100.0 * rate)
    });
}

#[test]
fn what_is_held_does_not_grow() {
    does_not_grow(|random, seconds| vec![(random.between(0.0, 0.9 * seconds), 1e6)]);
    does_not_grow(|random, seconds| (0..4).map(|_| (random.between(0.0, seconds), 1e6)).collect());
    does_not_grow(|random, seconds| {
        let ready = random.between(0.0, 0.3) * seconds;
        (0..500).map(|_| (random.between(0.0, ready), 100.0)).collect()
    });
}

#[test]
fn what_comes_and_goes_does_not_grow() {
    does_not_grow(|random, seconds| {
        let period = random.order(0.005, seconds / 6.0);
        sawtooth(random, period, 1e6, seconds)
    });
    does_not_grow(|random, seconds| {
        let period = random.between(seconds / 6.0, seconds / 2.0);
        sawtooth(random, period, 1e6, seconds)
    });
    // Bursts, each of which is worked off.
    does_not_grow(|random, seconds| {
        let period = random.order(0.01, seconds / 2.0);
        let mut changes = Changes::new();
        let mut burst = random.between(0.0, period);
        while burst < seconds {
            changes.extend((0..40).map(|_| (burst, 100.0)));
            changes.extend((0..40).map(|nth| (burst + period * (f64::from(nth) + 0.5) / 40.0, -100.0)));
            burst += period;
        }
        changes
    });
    does_not_grow(|random, seconds| {
        let (number, life) = (random.order(10.0, 300.0), random.order(0.01, 0.5) * seconds);
        churn(random, number, life, seconds, true)
    });
    // One as likely as the other, which leads far away at times.
    does_not_grow(|random, seconds| {
        let mut changes = vec![(0.0, 1e6)];
        changes.extend((0..500).map(|_| {
            let sign = if random.next().is_multiple_of(2) { 1.0 } else { -1.0 };
            (random.between(0.0, seconds), 1000.0 * sign)
        }));
        changes
    });
}

#[test]
fn what_was_filled_does_not_grow_any_more() {
    does_not_grow(|random, seconds| {
        let full = random.between(0.05, 0.8) * seconds;
        (0..500).map(|nth| (full * f64::from(nth) / 500.0, 100.0)).collect()
    });
    // One for another, from then on.
    does_not_grow(|random, seconds| {
        let full = random.between(0.1, 0.7) * seconds;
        let mut changes = Changes::new();
        let mut time = 0.0;
        while time < seconds {
            changes.extend([(time, 100.0), (time + full, -100.0)]);
            time += full / 300.0 * random.between(0.5, 1.5);
        }
        changes
    });
    does_not_grow(|random, seconds| {
        let life = random.order(0.01, 0.2) * seconds;
        churn(random, 200.0, life, seconds, false)
    });
}

#[test]
fn a_leak_that_begins_later_grows_at_its_own_rate() {
    let later = |seconds: f64, from: f64| {
        let changes = (0..1000).map(|nth| (from + (seconds - from) * f64::from(nth) / 1000.0, 100.0)).collect();
        growth(changes, seconds, &mut Random(1))
    };
    for from in [1.0, 2.5, 4.0] {
        let growth = later(10.0, from);
        let rate = growth.rate.unwrap();
        assert_eq!(growth.trend, Trend::Growing, "from {from} s on");
        assert!((rate.per_second - 100_000.0 / (10.0 - from)).abs() <= 2.0 * rate.error, "{rate:?} from {from} s on");
    }
}

#[test]
fn what_is_given_back_shrinks() {
    let mut changes: Changes = (0..1000).map(|nth| (0.001 * f64::from(nth), 100.0)).collect();
    changes.extend((0..900).map(|nth| (1.0 + 0.01 * f64::from(nth), -100.0)));
    let Growth { trend, rate } = growth(changes, 10.0, &mut Random(1));
    let rate = rate.unwrap();
    assert_eq!(trend, Trend::Shrinking);
    assert!((rate.per_second + 10_000.0).abs() <= 2.0 * rate.error && rate.error < 1_000.0, "{rate:?}");
}

#[test]
fn it_is_too_early_at_first_and_with_few_looks() {
    let mut random = Random(1);
    let leaking = leak(&mut random, 1000.0, 10.0);
    for (seconds, trend) in [(0.1, Trend::TooEarly), (0.4, Trend::TooEarly), (0.9, Trend::Growing)] {
        assert_eq!(growth(leaking.clone(), seconds, &mut random).trend, trend, "{seconds} s");
    }
    let mut history = History::new(0);
    for second in 0..4 {
        history.look(second * 1_000_000_000, [second * 1000].into_iter(), std::iter::empty());
    }
    let times = history.times();
    assert_eq!(history.series(0, &times, 0).unwrap().growth(1.0), Growth { trend: Trend::TooEarly, rate: None });
}

#[test]
fn a_trace_of_any_length_takes_the_same_room() {
    let mut random = Random(7);
    let mut changes: Changes = leak(&mut random, 10.0, 600.0);
    changes.push((0.0, 1e6));
    let history = history(changes, 600.0, &mut random);
    assert!(history.slots.len() <= SLOTS && history.seen().count() > SLOTS / 2 - 2);
    let series = history.series(0, &history.times(), 0).unwrap();
    // Means over slots of a line are on the line.
    for (time, value) in series.times.iter().zip(&series.values) {
        assert!((f64::from(*value) - 1e6 - 1000.0 * time).abs() < 0.02 * 1e6, "{value} at {time} s");
    }
    let rate = series.growth(1.0).rate.unwrap();
    assert!((rate.per_second - 1000.0).abs() <= 2.0 * rate.error, "{rate:?}");
}

#[test]
fn rows_of_what_holds_nothing_any_more_are_used_again() {
    let mut history = History::new(0);
    let (width, none) = (FIRST_WIDTH, std::iter::empty);
    history.look(0, [5, 5, 0].into_iter(), none());
    assert_eq!((history.rows.len(), history.free.len()), (2, 0));
    for slot in 1..=64 {
        history.look(slot * width, [0, 5, 0].into_iter(), none());
    }
    // What it once held is in the mean of the first slot.
    assert_eq!(history.free.len(), 0);
    let mut history = History::new(0);
    history.look(0, [0, 5].into_iter(), none());
    history.look(SLOTS as u64 * width, [0, 5, 7].into_iter(), none());
    assert_eq!(history.series(0, &history.times(), 0).unwrap().values.as_ref(), [0.0, 0.0]);
    assert_eq!(history.series(2, &history.times(), 0).unwrap().values.as_ref(), [0.0, 7.0]);
}

/// Two stacks, and what is said of both together.
#[test]
fn what_moves_from_one_stack_to_another_does_not_grow() {
    let mut history = History::new(0);
    for look in 0..100 {
        let now = look * 100_000_000;
        history.look(now, [look * 1000, 100_000 - look * 1000].into_iter(), std::iter::empty());
    }
    let times = history.times();
    let mut one = history.series(0, &times, 0);
    let other = history.series(1, &times, 0);
    assert_eq!(one.as_ref().unwrap().growth(1.0).trend, Trend::Growing);
    Series::absorb_into(&mut one, other.as_ref());
    assert_eq!(one.as_ref().unwrap().growth(1.0).trend, Trend::Steady);
    Series::absorb_into(&mut one, None);
    assert_eq!(one, None, "what is not followed is not steady");
}

#[test]
fn what_may_replace_what_was_there_before_is_not_said_to_grow() {
    // 1,000 blocks of 100 bytes a second, and frees of blocks from before.
    let seen = |frees: u64| {
        let mut history = History::new(0);
        for look in 0..100 {
            let now = look * 100_000_000;
            history.look(
                now,
                [10_000 * look].into_iter(),
                [(Image(5), frees * look / 10), (Image(6), 1000 * look)].into_iter(),
            );
        }
        let times = history.times();
        let series = history.series(0, &times, 0).unwrap();
        series.replacing(history.unknown_frees(Image(5))).growth(100.0).trend
    };
    assert_eq!(seen(0), Trend::Growing);
    assert_eq!(seen(500), Trend::Growing);
    assert_eq!(seen(1000), Trend::TooEarly);
}

/// Ten seconds of 10,000 bytes a second.
fn steady() -> Series {
    let mut history = History::new(0);
    for look in 0..100 {
        history.look(look * 100_000_000, [look * 1000].into_iter(), std::iter::empty());
    }
    history.series(0, &history.times(), 0).unwrap()
}

/// Of blocks that are two seconds old.
#[test]
fn what_has_no_young_blocks_does_not_grow_any_more() {
    let series = steady();
    let trend = |young: u64, block: f64| series.clone().aged(young, 2_000_000_000).growth(block).trend;
    assert_eq!(trend(20_000, 100.0), Trend::Growing);
    assert_eq!(trend(6_000, 100.0), Trend::Growing);
    assert_eq!(trend(4_000, 100.0), Trend::Steady);
    assert_eq!(trend(0, 8_000.0), Trend::Growing, "too few to be missed");
}

#[test]
fn samples_that_are_few_have_the_error_of_samples() {
    let series = steady();
    let error = |grain: f64| series.clone().sampled(grain).growth(1.0).rate.unwrap().error;
    assert!(error(0.0) < 100.0, "{}", error(0.0));
    // 100 of them: a tenth.
    assert!((900.0..1200.0).contains(&error(1000.0)), "{}", error(1000.0));
    assert_eq!(series.clone().sampled(20_000.0).growth(1.0).trend, Trend::TooEarly, "five samples");
    let none = Series { values: series.values.iter().map(|_| 0.0).collect(), ..series };
    assert!(none.sampled(1000.0).growth(1.0).rate.unwrap().error >= 100.0, "one may have been missed");
}

/// A leak of 1,000 bytes a second, of which is recorded what comes in one of twenty seconds.
#[test]
fn what_is_recorded_now_and_then_grows_by_what_it_grows_then() {
    let mut random = Random(8);
    let mut history = History::new(0);
    let (mut held, mut is_away) = (0.0, false);
    let step = 0.01;
    for step_number in 0..20_000 {
        let (time, away) = (f64::from(step_number) * step, step_number / 100 % 20 != 0);
        let now = (time * SECOND) as u64;
        if away != is_away {
            if away {
                history.pause(now)
            } else {
                history.resume(now)
            }
            is_away = away;
        }
        held += if away { 0.0 } else { 1000.0 * step };
        if history.is_due(now) {
            history.look(now, [held as u64].into_iter(), std::iter::empty());
            history.rest(now, (random.next() % 1000) * 1000);
        }
    }
    let times = history.times();
    let growth = history.series(0, &times, 0).unwrap().growth(1.0);
    let rate = growth.rate.unwrap();
    assert!((rate.per_second - 1000.0).abs() < 2.0 * rate.error.max(5.0), "{growth:?}");
    assert_eq!(growth.trend, Trend::Growing, "{growth:?}");
    // What began in a time that was not recorded begins when recording goes on.
    let recorded = |seconds: f64| history.recorded((seconds * SECOND) as u64) as f64 / SECOND;
    assert_eq!(
        (recorded(0.5), recorded(1.0), recorded(15.0), recorded(20.0), recorded(20.5)),
        (0.5, 1.0, 1.0, 1.0, 1.5)
    );
}
