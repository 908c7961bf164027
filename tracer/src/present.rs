//! A snapshot of addresses to a [`Profile`] of names.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hashbrown::HashMap;

use crate::{
    collector::{Site, Snapshot, StackSnapshot, Trail},
    heap::StackIndex,
    profile::{Frame, Frames, Kind, Mode, Profile, StackEntry, Target},
    quality::{Quality, Truncation},
    symbolize::{Query, Symbolizer},
};

/// What is known of a trace besides its snapshot.
pub struct Trace {
    /// When it began.
    pub started: SystemTime,
    /// How long it has lasted.
    pub duration: Duration,
    /// The processes.
    pub targets: Vec<Target>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// Names stacks; remembers those it has named.
pub struct Presenter {
    symbolizer: Symbolizer,
    named: HashMap<StackIndex, Frames>,
}

impl Presenter {
    /// One that has named nothing yet.
    pub fn new() -> Self {
        Self { symbolizer: Symbolizer::new(), named: HashMap::new() }
    }

    /// The profile of a snapshot.
    pub fn profile(&mut self, trace: Trace, snapshot: Snapshot) -> Profile {
        self.name_new_stacks(&snapshot.stacks);
        let quality = quality(&trace, &snapshot);
        let mut stacks: Vec<StackEntry> = merged(snapshot.stacks).into_iter().map(|stack| self.entry(stack)).collect();
        stacks.sort_by_key(|stack| std::cmp::Reverse((stack.values.outstanding_bytes, stack.values.allocated_bytes)));
        let Trace { started, duration, targets, notes: _ } = trace;
        let unwind_tables = snapshot.unwind_tables;
        let modules = self.symbolizer.modules();
        let (kind, mode, goroutines) = (Kind::Heap, Mode::Exact, Vec::new());
        Profile { kind, started, duration, mode, targets, stacks, goroutines, quality, unwind_tables, modules }
    }

    fn name_new_stacks(&mut self, stacks: &[StackSnapshot]) {
        let new: Vec<(StackIndex, u32, &Arc<[Site]>)> = stacks
            .iter()
            .filter_map(|stack| match &stack.trail {
                Trail::Known(sites) if !self.named.contains_key(&stack.stack) => Some((stack.stack, stack.pid, sites)),
                _ => None,
            })
            .collect();
        let queries: Vec<Query<'_>> = new
            .iter()
            .flat_map(|(_, pid, sites)| {
                sites.iter().map(|site| Query { pid: *pid, addr: site.addr, place: &site.place })
            })
            .collect();
        let mut answers = self.symbolizer.resolve(&queries).into_iter();
        for (stack, _, sites) in new {
            let mut frames: Vec<Arc<[Frame]>> = answers.by_ref().take(sites.len()).collect();
            frames.reverse();
            self.named.insert(stack, frames.into_iter().collect());
        }
    }

    fn entry(&self, stack: StackSnapshot) -> StackEntry {
        let named = self.named.get(&stack.stack);
        let frames = match stack.trail {
            Trail::TableFull => stand_in("[stack table full]"),
            Trail::Lost => stand_in("[stack lost]"),
            Trail::Known(_) => named.cloned().unwrap_or_else(|| stand_in("[unknown]")),
        };
        let StackSnapshot { pid, values, uncertain_bytes, oldest, growth, .. } = stack;
        StackEntry { pid, frames, values, uncertain_bytes, oldest, growth }
    }
}

impl Default for Presenter {
    fn default() -> Self {
        Self::new()
    }
}

/// Stacks with those made one that differ only in what was cut off.
fn merged(stacks: Vec<StackSnapshot>) -> Vec<StackSnapshot> {
    let mut places: HashMap<(u32, Vec<(u64, usize)>), usize> = HashMap::new();
    let mut all: Vec<StackSnapshot> = Vec::with_capacity(stacks.len());
    for stack in stacks {
        let key = match &stack.trail {
            Trail::Known(sites) => sites.iter().map(|site| (site.addr, site.place.owner())).collect(),
            Trail::Lost => vec![(u64::MAX, 0)],
            Trail::TableFull => vec![(u64::MAX - 1, 0)],
        };
        let next = all.len();
        match *places.entry((stack.pid, key)).or_insert(next) {
            place if place == next => all.push(stack),
            place => all[place].absorb(&stack),
        }
    }
    all
}

/// A stack that stands for what is not known.
fn stand_in(name: &str) -> Frames {
    vec![Frame { function: Some(name.to_owned()), ..Frame::default() }].into()
}

fn quality(trace: &Trace, snapshot: &Snapshot) -> Quality {
    let loss = &snapshot.loss;
    let unknown = snapshot.stacks.iter().filter(|stack| !matches!(stack.trail, Trail::Known(_)));
    let truncated = truncated(&snapshot.stacks);
    let reasons: Vec<String> =
        truncated.iter().map(|(reason, count)| format!("{count} of the cut stacks: {}", reason.words())).collect();
    Quality {
        lost_allocs: loss.allocs,
        lost_frees: loss.frees,
        unmatched_frees: snapshot.counters.unmatched_frees,
        missed_frees: snapshot.counters.missed_frees,
        truncated,
        uncertain_bytes: snapshot.stacks.iter().map(|stack| stack.uncertain_bytes).fold(0, u64::saturating_add),
        unknown_stack_bytes: unknown.map(|stack| stack.values.outstanding_bytes).fold(0, u64::saturating_add),
        untracked_calls: loss.threads_full + loss.calls_too_deep,
        unknown_records: snapshot.unknown_records,
        recorded_events: snapshot.counters.events,
        notes: trace.notes.iter().cloned().chain(reasons).collect(),
    }
}

/// How many stacks that hold something end before the thread's root, by the reason that the BPF side gave.
fn truncated(stacks: &[StackSnapshot]) -> BTreeMap<Truncation, u64> {
    let mut counts = BTreeMap::new();
    for stack in stacks.iter().filter(|stack| stack.values.outstanding_blocks > 0) {
        if let (Trail::Known(_), Some(reason)) = (&stack.trail, Truncation::of(stack.end)) {
            *counts.entry(reason).or_default() += 1;
        }
    }
    counts
}
