//! Whether something grows, how fast, and how sure that is: a few points in time in, a [`Growth`] out.
//!
//! What is held is mostly not a line with noise on it: blocks come and go, and each of them moves all that follows. So the
//! error of the slope comes from how far the series strays from it over several points, as of a random walk, and not from
//! how far single points lie off it, which would be too small by far. What fills and empties over and over strays as far as
//! it grows, and so does not grow; what was filled once and then stays does not grow any more, which its last points say, if they are as
//! many as on any step of its way; and
//! what grows more and more slowly may come to an end, as a cache does that is filled with what is not in it yet.

use crate::profile::{Growth, Rate, Trend};

/// Fewest points, and shortest time in seconds, that say anything: a Go heap that grows is collected ever more rarely.
const LEAST_POINTS: usize = 5;
const LEAST_SECONDS: f64 = 0.5;
/// With fewer points than these there are no parts, and the error is as much larger as they are fewer.
const ENOUGH_POINTS: usize = 8;
/// How many times as far as it has ever fallen back what grows must have risen, where it has fallen to less than half, too:
/// what empties itself may do so again.
const FALLS: f64 = 3.0;
const EMPTYINGS: f64 = 15.0;
/// Steps that are expected in the part at the end that must have some of the growth, and how much of it.
const LAST_STEPS: f64 = 3.0;
const LAST_SHARE: f64 = 0.25;
/// What slows down in its second half to less than this part of its first one, by so many errors, may come to an end.
const SLOWS: Slowing = Slowing { to: 0.6, errors: 2.5 };
/// The same of what has gone another way before: that was faster, most likely.
const SLOWS_ON: Slowing = Slowing { to: 0.75, errors: 2.0 };
/// A shorter part is taken where its error is so much smaller: the whole is not of one piece.
const OF_ONE_PIECE: f64 = 3.0;
/// A step up is one by this share of all that it has risen; and what has come to an end has rested since the last one for so many times as
/// long as between any two.
const STEP: f64 = 0.05;
/// What has fallen back by this share of all that it has risen does not only rise.
const FALLS_BACK: f64 = 0.1;
/// What has risen by less than this share of what is held is a trifle.
const WORTH_A_WORD: f64 = 0.01;
const RESTS: f64 = 1.5;
/// The moment of a look is not known better than this, seconds.
const MOMENT: f64 = 0.01;
/// What an error that is estimated from few points is multiplied by, so that twice of it holds in 95 of 100 cases.
const FEW: f64 = 1.3;

/// How what is held changes. `times` are seconds, rising, and `values` what was held then; `grain` is what one sample
/// stands for where it is estimated by samples, else 0.
pub(super) fn trend(times: &[f64], values: &[f64], grain: f64) -> Growth {
    let points = times.len().min(values.len());
    let (times, values) = (&times[..points], &values[..points]);
    let seconds = |times: &[f64]| times.last().zip(times.first()).map_or(0.0, |(last, first)| last - first);
    if points < LEAST_POINTS || seconds(times) < LEAST_SECONDS {
        return Growth { trend: Trend::TooEarly, rate: None };
    }
    let mut fit = Fit::new(times, values, grain);
    let mut from = 0;
    for shorter in [points / 4, points / 2] {
        let (times, values) = (&times[shorter..], &values[shorter..]);
        if times.len() >= ENOUGH_POINTS && seconds(times) >= LEAST_SECONDS {
            let other = Fit::new(times, values, grain);
            if other.error * OF_ONE_PIECE < fit.error {
                (fit, from) = (other, shorter);
            }
        }
    }
    let rate = Rate { per_second: fit.slope, error: fit.error };
    let change = fit.slope * seconds(&times[from..]);
    let (back, direction) = if change > 0.0 {
        (largest_fall(values), Trend::Growing)
    } else {
        (largest_rise(&values[from..]), Trend::Shrinking)
    };
    let goes_on = change != 0.0 && goes_on(&times[from..], &values[from..], fit.slope);
    let slowing = if from > 0 { SLOWS_ON } else { SLOWS };
    let slows_down = fit.slows_down(&times[from..], &values[from..], slowing);
    let errors = if fit.error > 0.0 { fit.slope.abs() / fit.error } else { f64::INFINITY };
    // What only ever rises may go on, however unevenly it has: until it has rested for longer than before.
    let risen = values[points - 1] - values[0];
    let rises = risen > WORTH_A_WORD * values[points - 1] && largest_fall(values).furthest < FALLS_BACK * risen;
    let may_rise = rises && !rests(times, values);
    let trend = match errors {
        _ if !goes_on && may_rise => Trend::TooEarly,
        _ if !goes_on => Trend::Steady,
        Rate::CERTAIN.. if change.abs() > back.outweighed_by && !slows_down => direction,
        Rate::DOUBTFUL.. if change.abs() > back.furthest => Trend::TooEarly,
        _ if may_rise => Trend::TooEarly,
        _ => Trend::Steady,
    };
    Growth { trend, rate: Some(rate) }
}

/// How much slower the second half of a change is than the first.
#[derive(Clone, Copy)]
struct Slowing {
    to: f64,
    errors: f64,
}

/// A line through points by least squares.
struct Fit {
    slope: f64,
    error: f64,
}

impl Fit {
    fn new(times: &[f64], values: &[f64], grain: f64) -> Self {
        let points = times.len();
        let slope = slope(times, values);
        let seconds = times[points - 1] - times[0];
        // Variance per second, by how far the series strays within a part of it.
        let strays = |lag: usize| {
            let (mut sum, mut time) = (0.0, 0.0);
            for (from, to) in (0..).zip(lag..points) {
                let passed = times[to] - times[from];
                sum += (values[to] - values[from] - slope * passed).powi(2);
                time += passed;
            }
            // The slope is fitted to the same points.
            sum / time * points as f64 / (points - lag) as f64
        };
        let lags = [points / 8, points / 4].map(|lag| strays(lag.max(1)));
        let variance = lags[0].max(lags[1]);
        let moves =
            if grain > 0.0 { values.windows(2).map(|pair| (pair[1] - pair[0]).abs()).sum::<f64>() } else { 0.0 };
        let few = FEW * ENOUGH_POINTS as f64 / points.min(ENOUGH_POINTS) as f64;
        let walk = few * few * 1.2 * variance / seconds;
        // Nothing seen is not nothing: one may have been missed.
        let sampled = grain * moves.max(grain) / seconds.powi(2);
        let moment = (slope * MOMENT / seconds).powi(2);
        Self { slope, error: (walk.max(sampled) + moment).sqrt() }
    }

    /// Whether the same points say that it comes to an end.
    fn slows_down(&self, times: &[f64], values: &[f64], slowing: Slowing) -> bool {
        let middle = times.len() / 2;
        let first = slope(&times[..middle], &values[..middle]) * self.slope.signum();
        let second = slope(&times[middle..], &values[middle..]) * self.slope.signum();
        second < slowing.to * first && first - second > slowing.errors * self.error
    }
}

fn slope(times: &[f64], values: &[f64]) -> f64 {
    let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len() as f64;
    let (time, value) = (mean(times), mean(values));
    let spread: f64 = times.iter().map(|at| (at - time).powi(2)).sum();
    let common: f64 = times.iter().zip(values).map(|(at, held)| (at - time) * (held - value)).sum();
    common / spread
}

/// Whether there is some of the change in the last part, in which some of its steps are to be expected.
fn goes_on(times: &[f64], values: &[f64], slope: f64) -> bool {
    let steps = || values.windows(2).map(|pair| pair[1] - pair[0]);
    let (sum, squares) = (steps().sum::<f64>(), steps().map(|step| step * step).sum::<f64>());
    // As many of equal size stray as far.
    let number = sum * sum / squares;
    let last = times.len() - 1;
    let part = (LAST_STEPS * last as f64 / number).ceil();
    if part.is_nan() || part > last as f64 {
        return false;
    }
    let from = last - part as usize;
    let expected = slope * (times[last] - times[from]);
    (values[last] - values[from]) / expected >= LAST_SHARE
}

/// Whether something that has risen has rested since for longer than between two steps of its way up.
fn rests(times: &[f64], values: &[f64]) -> bool {
    let (least, most) = values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| (least.min(*value), most.max(*value)));
    let step = STEP * (most - least);
    let (mut highest, mut last, mut longest) = (values[0], None, 0.0_f64);
    for (time, value) in times.iter().zip(values) {
        if value - highest > step {
            longest = longest.max(last.map_or(0.0, |last| time - last));
            (highest, last) = (*value, Some(*time));
        }
    }
    last.is_none_or(|last| times[times.len() - 1] - last >= RESTS * longest)
}

/// How far something has gone back on its way.
struct Back {
    furthest: f64,
    /// How far it must have come in all to say that it goes on.
    outweighed_by: f64,
}

fn largest_fall(values: &[f64]) -> Back {
    let mut most = f64::NEG_INFINITY;
    let mut back = Back { furthest: 0.0, outweighed_by: 0.0 };
    for value in values {
        most = most.max(*value);
        let fall = most - value;
        back.furthest = back.furthest.max(fall);
        back.outweighed_by = back.outweighed_by.max(fall * if fall > most / 2.0 { EMPTYINGS } else { FALLS });
    }
    back
}

fn largest_rise(values: &[f64]) -> Back {
    let mut least = f64::INFINITY;
    let rises = values.iter().map(|value| {
        least = least.min(*value);
        value - least
    });
    let furthest = rises.fold(0.0, f64::max);
    Back { furthest, outweighed_by: FALLS * furthest }
}

#[cfg(test)]
mod tests;
