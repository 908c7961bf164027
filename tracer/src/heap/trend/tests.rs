//! Lines, steps and what is left of them.

use super::*;

/// Of a value each second.
fn trend_of(values: impl IntoIterator<Item = f64>) -> Growth {
    let values: Vec<f64> = values.into_iter().collect();
    let times: Vec<f64> = (0..values.len()).map(|second| second as f64).collect();
    trend(&times, &values, 0.0)
}

#[test]
fn a_line_has_no_error_but_that_of_its_moments() {
    let growth = trend_of((0..20).map(|second| 50.0 + 3.0 * f64::from(second)));
    let rate = growth.rate.unwrap();
    assert_eq!(growth.trend, Trend::Growing);
    assert!((rate.per_second - 3.0).abs() < 1e-9);
    assert!((rate.error - 3.0 * MOMENT / 19.0).abs() < 1e-6, "{}", rate.error);
}

#[test]
fn what_stays_is_steady() {
    assert_eq!(trend_of([1e9; 20]), Growth { trend: Trend::Steady, rate: Some(Rate { per_second: 0.0, error: 0.0 }) });
    assert_eq!(trend_of([0.0; 20]).trend, Trend::Steady);
}

#[test]
fn steps_grow_once_there_are_enough_of_them() {
    let steps = |every: usize, points: usize| trend_of((0..points).map(|second| (second / every) as f64)).trend;
    assert_eq!(steps(16, 32), Trend::Steady, "one step");
    assert_eq!(steps(12, 31), Trend::TooEarly, "and a second one");
    assert_eq!(steps(2, 32), Trend::Growing);
    assert_eq!(steps(1, 32), Trend::Growing);
}

/// By a leak that began late, goes on in bursts, or was stopped for a while.
#[test]
fn what_has_only_ever_risen_is_not_steady_before_it_rests() {
    let of = |held: &dyn Fn(f64) -> f64| trend_of((0..32).map(|second| held(f64::from(second)))).trend;
    assert_eq!(of(&|second| (second - 24.0).max(0.0)), Trend::TooEarly);
    assert_eq!(of(&|second| (second / 7.0).floor()), Trend::TooEarly);
    assert_eq!(of(&|second| (second / 8.0).floor() * 2.0 + (second % 8.0).min(2.0)), Trend::TooEarly);
    assert_eq!(of(&|second| second.min(12.0) + (second - 22.0).max(0.0)), Trend::TooEarly);
    // Next to nothing of what is held.
    assert_eq!(of(&|second| 1e6 + (second / 12.0).floor()), Trend::Steady);
    // A cache that has been filled.
    assert_eq!(of(&|second| second.min(8.0)), Trend::Steady);
    assert_eq!(of(&|second| if second < 12.0 { 0.0 } else { 1.0 }), Trend::Steady);
}

#[test]
fn what_was_emptied_may_be_emptied_again() {
    // Emptied after 8 of 32 seconds; and the same with a fall that leaves most.
    let emptied = trend_of((0..32).map(|second| f64::from(if second < 8 { second } else { second - 8 })));
    assert_eq!(emptied.trend, Trend::TooEarly);
    let fallen = trend_of((0..32).map(|second| 100.0 + f64::from(if second < 8 { second } else { second - 4 })));
    assert_eq!(fallen.trend, Trend::Growing);
}

/// As a cache that is filled at random with what is not in it yet: in the end nothing comes.
#[test]
fn what_slows_down_may_come_to_an_end() {
    let filled = |lives: f64| trend_of((0..32).map(|second| 1.0 - (-f64::from(second) / lives).exp())).trend;
    assert_eq!(filled(16.0), Trend::TooEarly);
    assert_eq!(filled(10.0), Trend::TooEarly, "also where the first part is left out");
    assert_eq!(filled(1000.0), Trend::Growing);
    // Not what was only at the beginning.
    let at_once = trend_of((0..32).map(|second| f64::from(if second < 2 { second * 100 } else { 200 + second })));
    assert_eq!(at_once.trend, Trend::Growing);
}

#[test]
fn numbers_that_cannot_be_do_no_harm() {
    for odd in [f64::NAN, f64::INFINITY, -f64::INFINITY, f64::MAX] {
        let growth = trend_of((0..20).map(|second| if second == 5 { odd } else { f64::from(second) }));
        assert_ne!(growth.trend, Trend::Growing, "{odd}");
    }
    assert_eq!(trend(&[0.0; 20], &[1.0; 20], 0.0).trend, Trend::TooEarly);
    assert_eq!(trend(&[], &[1.0], 0.0).trend, Trend::TooEarly);
}
