//! Equal stacks of equal programs as one, with the processes that have them.

use std::collections::BTreeMap;

use hashbrown::HashMap;

use super::{
    groups::Key,
    index::{Index, Program},
    options::By,
};
use crate::profile::{Estimate, Frames, Growth, Heap, Profile, Rate, StackEntry, Trend};

/// Equal stacks of some processes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Merged<'a> {
    /// What they hold together; the process is the one whose stack came first.
    pub(super) entry: StackEntry,
    /// The program that they are of; `None` when nothing is known of the process.
    pub(super) program: Option<Program<'a>>,
    /// What their processes are put together by.
    pub(super) group: Key<'a>,
    /// Processes in which it holds something, and how many each stands for of those.
    pub(super) processes: BTreeMap<u32, u64>,
    /// Whether one of those was alive at the end.
    pub(super) lives: bool,
}

/// The stacks of a profile, merged where they are equal and so are programs and groups of the processes.
pub(super) fn merged<'a>(profile: &'a Profile, index: &Index<'a>, by: By) -> Vec<Merged<'a>> {
    type Place<'a> = (Key<'a>, Option<Program<'a>>, &'a Heap, &'a Frames);
    let mut places: HashMap<Place<'a>, usize> = HashMap::new();
    let mut all: Vec<Merged<'a>> = Vec::with_capacity(profile.stacks.len());
    for stack in &profile.stacks {
        let process = index.of_stack(stack);
        let program = process.map(|process| index.program(process));
        let group = process.map_or(Key::Process(stack.image), |process| Key::of(process, index, by));
        let holds = stack.values.outstanding_blocks > 0;
        let lives = holds && process.is_none_or(|process| process.ended.is_none());
        let next = all.len();
        let place = *places.entry((group, program, &stack.heap, &stack.frames)).or_insert(next);
        if place == next {
            let processes = holds.then_some((stack.image, stack.holders)).into_iter().collect();
            all.push(Merged { entry: stack.clone(), program, group, processes, lives });
        } else {
            all[place].absorb(stack);
            all[place].lives |= lives;
        }
    }
    all
}

impl Merged<'_> {
    /// How many processes hold something by it.
    pub(super) fn holders(&self) -> u64 {
        self.processes.values().sum()
    }

    fn absorb(&mut self, other: &StackEntry) {
        let entry = &mut self.entry;
        entry.growth = match (entry.values.outstanding_blocks, other.values.outstanding_blocks) {
            (_, 0) => entry.growth,
            (0, _) => other.growth,
            _ => together(entry.growth, other.growth),
        };
        if other.values.outstanding_blocks > 0 {
            if self.processes.is_empty() {
                // Who is named is one that holds something.
                (entry.pid, entry.image) = (other.pid, other.image);
            }
            let holders = self.processes.entry(other.image).or_default();
            *holders = (*holders).max(other.holders);
        }
        entry.values += other.values;
        entry.uncertain_bytes = entry.uncertain_bytes.saturating_add(other.uncertain_bytes);
        entry.oldest = entry.oldest.max(other.oldest);
        Estimate::absorb_into(&mut entry.estimate, other.estimate);
        entry.at_end = match (entry.at_end, other.at_end) {
            (Some(one), Some(two)) => Some((one.0.saturating_add(two.0), one.1.saturating_add(two.1))),
            (one, two) => one.or(two),
        };
    }
}

/// How two things change together: their errors do not depend on each other.
fn together(one: Option<Growth>, two: Option<Growth>) -> Option<Growth> {
    // A part of it says nothing of all.
    let (Some(one), Some(two)) = (one, two) else { return None };
    let rate = match (one.rate, two.rate) {
        (Some(one), Some(two)) => {
            Some(Rate { per_second: one.per_second + two.per_second, error: one.error.hypot(two.error) })
        }
        _ => None,
    };
    let either = |trend| one.trend == trend || two.trend == trend;
    let is_sure = |sign: f64| rate.is_some_and(|rate| sign * rate.per_second > 2.0 * rate.error);
    let trend = if either(Trend::Growing) && is_sure(1.0) {
        Trend::Growing
    } else if either(Trend::Shrinking) && is_sure(-1.0) {
        Trend::Shrinking
    } else if either(Trend::TooEarly) {
        Trend::TooEarly
    } else {
        Trend::Steady
    };
    Some(Growth { trend, rate })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        profile::{Process, Values},
        report::fixture,
    };

    #[test]
    fn equal_stacks_of_equal_programs_are_one() {
        let (one, profile) = (fixture::profile(), fixture::three_processes());
        let index = Index::new(&profile);
        let all = merged(&profile, &index, By::Program);
        assert_eq!(all.len(), 2 * one.stacks.len());
        for (merged, stack) in all.iter().zip(&one.stacks) {
            let holders: &[u32] = if stack.values.outstanding_blocks > 0 { &[4711, 5000] } else { &[] };
            assert!(merged.processes.keys().eq(holders) && merged.holders() == holders.len() as u64);
            assert_eq!(merged.lives, !holders.is_empty());
            assert_eq!(merged.entry.values.outstanding_bytes, 2 * stack.values.outstanding_bytes);
            assert_eq!(merged.entry.values.freed_blocks, 2 * stack.values.freed_blocks);
            assert_eq!(merged.entry.oldest, stack.oldest);
        }
        assert!(all[one.stacks.len()..].iter().all(|merged| merged.processes.keys().all(|pid| *pid == 5001)));
        let apart = merged(&profile, &index, By::Process);
        assert_eq!(apart.len(), profile.stacks.len());
        // The cgroups of the first two differ.
        assert_eq!(merged(&profile, &index, By::Cgroup).len(), profile.stacks.len());
        assert_eq!(merged(&profile, &index, By::Container).len(), profile.stacks.len());
        let mut sum = Values::default();
        all.iter().for_each(|merged| sum += merged.entry.values);
        assert_eq!(sum, profile.totals());
    }

    /// Two processes, one after the other, with one id.
    #[test]
    fn an_id_that_was_used_again_merges_nothing() {
        let mut profile = fixture::profile();
        let other = Process { image: 9, exe: "/usr/bin/other".to_owned(), ..profile.processes[0].clone() };
        profile.processes.push(other);
        profile.stacks.truncate(1);
        let stack = StackEntry { image: 9, ..profile.stacks[0].clone() };
        profile.stacks.push(stack);
        let index = Index::new(&profile);
        for by in [By::Program, By::Process] {
            let all = merged(&profile, &index, by);
            assert_eq!(all.len(), 2, "{by:?}");
            assert_eq!(all[0].entry, profile.stacks[0]);
        }
    }

    #[test]
    fn growth_of_several_has_their_error() {
        let growth = |trend, per_second, error| Some(Growth { trend, rate: Some(Rate { per_second, error }) });
        let check = |one, two, trend, per_second: f64, error: f64| {
            let both = together(one, two).unwrap();
            let rate = both.rate.unwrap();
            assert_eq!((both.trend, rate.per_second, rate.error), (trend, per_second, error));
        };
        let grows = growth(Trend::Growing, 100.0, 3.0);
        check(grows, growth(Trend::Steady, 1.0, 4.0), Trend::Growing, 101.0, 5.0);
        // What one loses the other gains.
        check(grows, growth(Trend::Shrinking, -99.0, 4.0), Trend::Steady, 1.0, 5.0);
        check(growth(Trend::Steady, 0.0, 3.0), growth(Trend::TooEarly, 1.0, 4.0), Trend::TooEarly, 1.0, 5.0);
        assert_eq!(together(None, grows), None);
    }
}
