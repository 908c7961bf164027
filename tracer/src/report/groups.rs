//! Many processes in few lines: equal stacks of equal programs as one, and what each program holds.

use std::collections::BTreeSet;

use hashbrown::HashMap;

use crate::profile::{Frames, Growth, Heap, Profile, Rate, StackEntry, Target, Trend};

/// What stacks are told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The program: equal stacks of its processes are one.
    Program,
    /// The process.
    Process,
}

/// Equal stacks of some processes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Merged {
    /// What they hold together; the process is the one whose stack came first.
    pub(super) entry: StackEntry,
    /// Processes in which it holds something.
    pub(super) processes: BTreeSet<u32>,
}

/// A program and its processes.
#[derive(Debug)]
pub(super) struct Program<'a> {
    /// The first of its processes.
    pub(super) first: &'a Target,
    /// How many processes there are.
    pub(super) processes: usize,
    /// How many of them have ended.
    pub(super) ended: usize,
    /// Bytes and blocks that they hold together.
    pub(super) held: (u64, u64),
}

/// The stacks of a profile, merged where they are equal and so are the programs.
pub(super) fn stacks(profile: &Profile, by: By) -> Vec<Merged> {
    let mut places: HashMap<(Key<'_>, &Heap, &Frames), usize> = HashMap::new();
    let mut all: Vec<Merged> = Vec::with_capacity(profile.stacks.len());
    let programs = programs_by_pid(profile);
    for stack in &profile.stacks {
        let key = match (by, programs.get(&stack.pid)) {
            (By::Program, Some(program)) => Key::Program(program),
            _ => Key::Process(stack.pid),
        };
        let next = all.len();
        let place = *places.entry((key, &stack.heap, &stack.frames)).or_insert(next);
        if place == next {
            all.push(Merged { entry: stack.clone(), processes: holders(stack) });
        } else {
            all[place].absorb(stack);
        }
    }
    all
}

/// The programs of a profile, those that hold most first.
pub(super) fn programs(profile: &Profile) -> Vec<Program<'_>> {
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut all: Vec<Program<'_>> = Vec::new();
    for target in &profile.targets {
        let next = all.len();
        let place = *places.entry(program(target)).or_insert(next);
        if place == next {
            all.push(Program { first: target, processes: 0, ended: 0, held: (0, 0) });
        }
        all[place].processes += 1;
        all[place].ended += usize::from(target.ended.is_some());
    }
    let of = programs_by_pid(profile);
    for stack in &profile.stacks {
        let Some(place) = of.get(&stack.pid).and_then(|program| places.get(program)) else { continue };
        let held = &mut all[*place].held;
        held.0 = held.0.saturating_add(stack.values.outstanding_bytes);
        held.1 = held.1.saturating_add(stack.values.outstanding_blocks);
    }
    all.sort_by_key(|program| std::cmp::Reverse(program.held));
    all
}

#[derive(PartialEq, Eq, Hash)]
enum Key<'a> {
    Program(&'a str),
    Process(u32),
}

/// What makes two processes the same program: the executable, or the name where that is not known.
fn program(target: &Target) -> &str {
    if target.exe.is_empty() { &target.comm } else { &target.exe }
}

fn programs_by_pid(profile: &Profile) -> HashMap<u32, &str> {
    profile.targets.iter().map(|target| (target.pid, program(target))).collect()
}

fn holders(stack: &StackEntry) -> BTreeSet<u32> {
    (stack.values.outstanding_blocks > 0).then_some(stack.pid).into_iter().collect()
}

impl Merged {
    fn absorb(&mut self, other: &StackEntry) {
        let entry = &mut self.entry;
        entry.growth = match (entry.values.outstanding_blocks, other.values.outstanding_blocks) {
            (_, 0) => entry.growth,
            (0, _) => other.growth,
            _ => together(entry.growth, other.growth),
        };
        entry.values += other.values;
        entry.uncertain_bytes = entry.uncertain_bytes.saturating_add(other.uncertain_bytes);
        entry.oldest = entry.oldest.max(other.oldest);
        entry.at_end = match (entry.at_end, other.at_end) {
            (Some(one), Some(two)) => Some((one.0.saturating_add(two.0), one.1.saturating_add(two.1))),
            (one, two) => one.or(two),
        };
        self.processes.extend(holders(other));
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
    use crate::{profile::Values, report::fixture};

    /// Three processes, two of one program, each with the fixture's stacks.
    fn many() -> Profile {
        let one = fixture::profile();
        let mut profile = one.clone();
        for (pid, exe) in [(5000, "/usr/bin/leaky"), (5001, "/usr/bin/other")] {
            profile.targets.push(Target { pid, exe: exe.to_owned(), ..one.targets[0].clone() });
            profile.stacks.extend(one.stacks.iter().map(|stack| StackEntry { pid, ..stack.clone() }));
        }
        profile
    }

    #[test]
    fn equal_stacks_of_equal_programs_are_one() {
        let (one, profile) = (fixture::profile(), many());
        let merged = stacks(&profile, By::Program);
        assert_eq!(merged.len(), 2 * one.stacks.len());
        for (merged, stack) in merged.iter().zip(&one.stacks) {
            let holders: &[u32] = if stack.values.outstanding_blocks > 0 { &[4711, 5000] } else { &[] };
            assert_eq!(merged.processes, holders.iter().copied().collect());
            assert_eq!(merged.entry.values.outstanding_bytes, 2 * stack.values.outstanding_bytes);
            assert_eq!(merged.entry.values.freed_blocks, 2 * stack.values.freed_blocks);
            assert_eq!(merged.entry.oldest, stack.oldest);
        }
        assert!(merged[one.stacks.len()..].iter().all(|merged| merged.processes.iter().all(|pid| *pid == 5001)));
        let apart = stacks(&profile, By::Process);
        assert_eq!(apart.len(), profile.stacks.len());
        let mut sum = Values::default();
        merged.iter().for_each(|merged| sum += merged.entry.values);
        assert_eq!(sum, profile.totals());
    }

    #[test]
    fn programs_come_by_what_they_hold() {
        let mut profile = many();
        profile.targets[1].ended = Some(crate::profile::End { after: std::time::Duration::ZERO, signal: None });
        let programs = programs(&profile);
        let facts: Vec<_> = programs.iter().map(|one| (one.first.pid, one.processes, one.ended, one.held.0)).collect();
        let held = fixture::profile().totals().outstanding_bytes;
        assert_eq!(facts, [(4711, 2, 1, 2 * held), (5001, 1, 0, held)]);
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
