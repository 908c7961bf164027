//! Which processes grow: two readings compared. Pure.

use std::cmp::Reverse;

use super::reading::{Id, Reading, Sample};

/// What processes are ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Growth of anonymous memory.
    Growth,
    /// Resident memory.
    Resident,
}

/// A process, and by how much it has grown.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranked {
    /// As it is now.
    pub sample: Sample,
    /// `None` for one that was not there at the reading before.
    pub growth: Option<Growth>,
}

/// By how much anonymous memory, resident or swapped out, has grown between two looks at one process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// Bytes; negative when it has shrunk.
    pub bytes: i64,
    /// Seconds between the looks.
    pub seconds: f64,
}

impl Growth {
    /// Bytes per second; 0 where no time has passed.
    pub fn per_second(self) -> f64 {
        if self.seconds > 0.0 { self.bytes as f64 / self.seconds } else { 0.0 }
    }
}

impl Ranked {
    /// Bytes per second; 0 when they are not known.
    pub fn per_second(&self) -> f64 {
        self.growth.map_or(0.0, Growth::per_second)
    }
}

/// All processes of `now`, the first in the order first; at most `top` of them.
pub fn rank(before: &Reading, now: &Reading, sort: Sort, top: usize) -> Vec<Ranked> {
    let ranked = |sample: &Sample| Ranked { growth: growth(before, sample), sample: sample.clone() };
    let mut all: Vec<Ranked> = now.processes.values().map(ranked).collect();
    let by_pid = |one: &Ranked| (Reverse(one.sample.resident), one.sample.id.pid);
    all.sort_by(|a, b| {
        let order = match sort {
            Sort::Growth => b.per_second().total_cmp(&a.per_second()),
            Sort::Resident => b.sample.resident.cmp(&a.sample.resident),
        };
        order.then_with(|| by_pid(a).cmp(&by_pid(b)))
    });
    all.truncate(top);
    all
}

/// The growth of the same process, not of one with the same id.
fn growth(before: &Reading, now: &Sample) -> Option<Growth> {
    let then = before.processes.get(&now.id)?;
    let seconds = now.at.saturating_duration_since(then.at).as_secs_f64();
    Some(Growth { bytes: difference(now.own(), then.own()), seconds })
}

/// Bytes by which each process has changed, those too that have come or gone.
pub fn changes<'a>(before: &'a Reading, now: &'a Reading) -> impl Iterator<Item = (Id, i64)> + 'a {
    let own = |reading: &Reading, id: &Id| reading.processes.get(id).map_or(0, Sample::own);
    let gone = before.processes.keys().filter(|id| !now.processes.contains_key(*id));
    let all = now.processes.keys().chain(gone);
    all.map(move |id| (*id, difference(own(now, id), own(before, id)))).filter(|(_, change)| *change != 0)
}

fn difference(now: u64, then: u64) -> i64 {
    i64::try_from(i128::from(now) - i128::from(then)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::top::reading::Machine;

    /// A reading `seconds` after `begin` with processes of (pid, start time, anonymous, swapped), all in KiB.
    fn reading(begin: Instant, seconds: u64, processes: &[(u32, u64, u64, u64)]) -> Reading {
        let at = begin + Duration::from_secs(seconds);
        let sample = |(pid, start_time, anonymous, swapped): (u32, u64, u64, u64)| {
            let id = Id { pid, start_time };
            let (anonymous, swapped) = (anonymous << 10, swapped << 10);
            let sample = Sample { id, comm: format!("p{pid}"), at, resident: anonymous, anonymous, swapped, faults: 0 };
            (id, sample)
        };
        let processes = processes.iter().copied().map(sample).collect();
        Reading { at, processes, kernel_threads: 0, machine: Machine::default() }
    }

    #[track_caller]
    fn check(
        sort: Sort,
        before: &[(u32, u64, u64, u64)],
        now: &[(u32, u64, u64, u64)],
        expected: &[(u32, Option<i64>)],
    ) {
        let begin = Instant::now();
        let ranked = rank(&reading(begin, 0, before), &reading(begin, 2, now), sort, 3);
        let found: Vec<(u32, Option<i64>)> =
            ranked.iter().map(|one| (one.sample.id.pid, one.growth.map(|growth| growth.bytes >> 10))).collect();
        assert_eq!(found, expected);
        for growth in ranked.iter().filter_map(|one| one.growth) {
            assert_eq!(growth.per_second(), growth.bytes as f64 / 2.0);
        }
    }

    #[test]
    fn what_grows_most_comes_first() {
        let before = [(1, 1, 100, 0), (2, 1, 50, 0), (3, 1, 10, 0), (4, 1, 9, 0)];
        let now = [(1, 1, 90, 0), (2, 1, 58, 0), (3, 1, 30, 0), (4, 1, 9, 0)];
        check(Sort::Growth, &before, &now, &[(3, Some(20)), (2, Some(8)), (4, Some(0))]);
        check(Sort::Resident, &before, &now, &[(1, Some(-10)), (2, Some(8)), (3, Some(20))]);
    }

    #[test]
    fn a_reused_id_and_a_new_process_are_no_growth() {
        let before = [(1, 1, 10, 0), (2, 1, 10, 0)];
        let now = [(1, 7, 5000, 0), (2, 1, 11, 0), (3, 1, 6000, 0)];
        check(Sort::Growth, &before, &now, &[(2, Some(1)), (3, None), (1, None)]);
    }

    #[test]
    fn what_is_swapped_out_is_still_there() {
        check(
            Sort::Growth,
            &[(1, 1, 100, 0), (2, 1, 5, 5)],
            &[(1, 1, 20, 84), (2, 1, 9, 0)],
            &[(1, Some(4)), (2, Some(-1))],
        );
    }

    #[test]
    fn groups_gain_by_those_that_come_and_lose_by_those_that_go() {
        let begin = Instant::now();
        let before = reading(begin, 0, &[(1, 1, 10, 0), (2, 1, 30, 0), (3, 1, 7, 0)]);
        let now = reading(begin, 1, &[(1, 1, 15, 0), (3, 1, 7, 0), (4, 9, 2, 1)]);
        let mut changes: Vec<(u32, i64)> = changes(&before, &now).map(|(id, change)| (id.pid, change >> 10)).collect();
        changes.sort_unstable();
        assert_eq!(changes, [(1, 5), (2, -30), (4, 3)]);
    }
}
