//! Equal stacks of equal programs as one, with the processes that have them.

use std::collections::BTreeMap;

use hashbrown::HashMap;

use super::{
    escape::shorten,
    frames::LONGEST_NAME,
    groups::Key,
    index::{Index, Program},
    name,
    numbers::number,
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
    /// How what each of its stacks holds changes.
    growths: Vec<Option<Growth>>,
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
            let growths = holds.then_some(stack.growth).into_iter().collect();
            all.push(Merged { entry: stack.clone(), program, group, processes, lives, growths });
        } else {
            all[place].absorb(stack);
            all[place].lives |= lives;
        }
    }
    for merged in &mut all {
        merged.entry.growth = match merged.growths[..] {
            [] => merged.entry.growth,
            [only] => only,
            ref several => together(several),
        };
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
        if other.values.outstanding_blocks > 0 {
            if self.processes.is_empty() {
                // Who is named is one that holds something.
                (entry.pid, entry.image) = (other.pid, other.image);
            }
            let holders = self.processes.entry(other.image).or_default();
            *holders = (*holders).max(other.holders);
            self.growths.push(other.growth);
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

/// Whose a stack is that so many processes have something by, the first of them with this id and image; `None` in a profile of one process.
pub(super) fn whose(
    (profile, index): (&Profile, &Index<'_>),
    (pid, image): (u32, u32),
    holders: u64,
    program: Option<&Program<'_>>,
    group: &Key<'_>,
) -> Option<String> {
    if profile.processes.len() == 1 {
        return None;
    }
    let place = group.place().map_or_else(String::new, |place| format!(" in {}", shorten(place, LONGEST_NAME)));
    let process = index.of_image(image);
    Some(match (holders, program) {
        (many @ 2.., Some(program)) => {
            format!("{} processes of {}{place}", number(many), shorten(index.name_of(*program), LONGEST_NAME))
        }
        // It may be any of those.
        (_, Some(program)) if process.is_some_and(|process| process.count > 1) => {
            format!("a process of {}{place}", shorten(index.name_of(*program), LONGEST_NAME))
        }
        _ => format!("process {} (pid {pid}){place}", shorten(name::process(process, pid), LONGEST_NAME)),
    })
}

/// How several things change together: their errors do not depend on each other.
fn together(all: &[Option<Growth>]) -> Option<Growth> {
    // A part of it says nothing of all.
    let all: Vec<Growth> = all.iter().copied().collect::<Option<_>>()?;
    // What is new has no rate yet; the others have.
    let rates = all.iter().filter_map(|growth| Some((growth.trend, growth.rate?)));
    let sum = rates.fold(None, |sum: Option<Rate>, (trend, rate)| {
        let sum = sum.unwrap_or(Rate { per_second: 0.0, error: 0.0 });
        // A slope of what stays is that of something that has come to its end, unless it may be chance: that of many shows.
        let is_over = trend == Trend::Steady && [1.0, -1.0].iter().any(|sign| rate.is_beyond(Rate::DOUBTFUL, *sign));
        let per_second = if is_over { 0.0 } else { rate.per_second };
        Some(Rate { per_second: sum.per_second + per_second, error: sum.error.hypot(rate.error) })
    });
    let some = |trend| all.iter().any(|growth| growth.trend == trend);
    let (grows, shrinks) = (some(Trend::Growing), some(Trend::Shrinking));
    let is_beyond = |errors, sign| sum.is_some_and(|sum: Rate| sum.is_beyond(errors, sign));
    let trend = if grows && is_beyond(Rate::CERTAIN, 1.0) {
        Trend::Growing
    } else if shrinks && is_beyond(Rate::CERTAIN, -1.0) {
        Trend::Shrinking
    } else if some(Trend::TooEarly)
        // One of them does for sure, whatever the others hide.
        || grows && (!shrinks || is_beyond(Rate::DOUBTFUL, 1.0))
        // All together do, though none of them for sure.
        || is_beyond(Rate::CERTAIN, 1.0)
        || is_beyond(Rate::CERTAIN, -1.0)
    {
        Trend::TooEarly
    } else {
        Trend::Steady
    };
    Some(Growth { trend, rate: sum })
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
            let both = together(&[one, two]).unwrap();
            let rate = both.rate.unwrap();
            assert_eq!((both.trend, rate.per_second, rate.error), (trend, per_second, error));
        };
        let grows = growth(Trend::Growing, 100.0, 3.0);
        check(grows, growth(Trend::Steady, 1.0, 4.0), Trend::Growing, 101.0, 5.0);
        // What one loses the other gains.
        check(grows, growth(Trend::Shrinking, -99.0, 4.0), Trend::Steady, 1.0, 5.0);
        check(growth(Trend::Steady, 0.0, 3.0), growth(Trend::TooEarly, 1.0, 4.0), Trend::TooEarly, 1.0, 5.0);
        assert_eq!(together(&[None, grows]), None);
        // What is said of one is said from as many errors of several.
        check(grows, growth(Trend::Steady, 90.0, 40.0), Trend::TooEarly, 100.0, 3.0_f64.hypot(40.0));
        check(grows, growth(Trend::Shrinking, -88.0, 4.0), Trend::TooEarly, 12.0, 5.0);
    }

    /// What has come to its end in each is no growth of all; what may be chance in each is doubtful in many.
    #[test]
    fn many_that_stay_do_not_grow_together() {
        let some = |per_second| Some(Growth { trend: Trend::Steady, rate: Some(Rate { per_second, error: 1.0 }) });
        let doubtful = together(&[some(1.9); 100]).unwrap();
        assert_eq!((doubtful.trend, doubtful.rate.unwrap().error.round()), (Trend::TooEarly, 10.0));
        assert_eq!(together(&[some(0.2); 100]).unwrap().trend, Trend::Steady);
        let young = Some(Growth { trend: Trend::TooEarly, rate: None });
        let grows = Some(Growth { trend: Trend::Growing, rate: Some(Rate { per_second: 9.0, error: 1.0 }) });
        assert_eq!(together(&[young, grows]).unwrap().trend, Trend::Growing, "one that is new hides none");
        let steady = some(2.5);
        let small = Some(Growth { trend: Trend::Growing, rate: Some(Rate { per_second: 4.0, error: 1.0 }) });
        let mut all = vec![steady; 100];
        assert_eq!(together(&all).map(|growth| growth.trend), Some(Trend::Steady));
        all.push(small);
        let both = together(&all).unwrap();
        assert_eq!((both.trend, both.rate.unwrap().per_second), (Trend::TooEarly, 4.0));
        all.reverse();
        assert_eq!(together(&all).unwrap().trend, both.trend, "in whatever order");
    }
}
