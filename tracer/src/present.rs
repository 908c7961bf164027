//! A snapshot of addresses to a [`Profile`] of names.

mod containers;
mod cut;
mod go;
mod mapped;
mod names;
mod native;
mod processes;
mod quality;
mod renewal;
mod same;

use std::{
    cmp::Reverse,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hashbrown::{HashMap, HashSet};

use self::{
    containers::ContainerNames,
    go::without_runtime,
    names::{Names, stand_in},
    processes::ByImage,
    renewal::{doubt_what_memory_does_not_show, doubt_what_replaces_others},
};
pub use self::{go::GoTrace, mapped::MappedFacts};
use crate::{
    collector::{Snapshot, StackSnapshot},
    event::{Image, Pid},
    go::heap::{HeapStack, HeapUsage},
    golang::Runtime,
    heap::{Series, StackIndex},
    profile::{
        Cost, Estimate, Filters, Frames, Growth, Heap, Kind, Mode, Process, Profile, StackEntry, Unexplained, Values,
        quality::{Sampling, Truncation},
    },
};

/// What is known of a trace besides its snapshot.
pub struct Trace {
    /// When it began.
    pub started: SystemTime,
    /// How long it has lasted.
    pub duration: Duration,
    /// The processes, with their heaps other than Go's.
    pub processes: Vec<Process>,
    /// Whether the processes were chosen by what they are: that some of them allocate nothing is no silence.
    pub selected: bool,
    /// What is left out because it was asked to, but for how much.
    pub filters: Filters,
    /// Mean of bytes between two allocations of C, C++ and Rust that are recorded; `None`: all are.
    pub sample: Option<u64>,
    /// Times that a process ran unseen; notes tell of each.
    pub unseen_spans: u64,
    /// Go heaps that are not seen, or not in full; notes tell of each.
    pub unseen_heaps: u64,
    /// What is known of mapped memory besides what was recorded of it.
    pub mapped: MappedFacts,
    /// What the reader should know.
    pub notes: Vec<String>,
    /// What it has cost so far.
    pub cost: Option<Cost>,
}

/// Makes profiles; remembers what it has named.
pub struct Presenter {
    names: Names,
    containers: ContainerNames,
}

impl Presenter {
    /// One that has named nothing yet, and keeps at most so many bytes of the files that names come from.
    pub fn within(memory: u64) -> Self {
        Self { names: Names::within(memory), containers: ContainerNames::default() }
    }

    /// Names the Go code of a process, whose executable is known to it as `exe`, by the tables of a runtime or plugin of it.
    pub fn know_go(&mut self, pid: Pid, runtime: Arc<Runtime>, exe: &str) {
        self.names.know_go(pid, runtime, exe);
    }

    /// The profile of a snapshot.
    pub fn profile(&mut self, trace: Trace, snapshot: Snapshot, go: Vec<GoTrace>) -> Profile {
        let snapshot = Snapshot { stacks: same::merged(snapshot.stacks), ..snapshot };
        self.names.look_up(snapshot.stacks.iter().map(|stack| (stack.stack, stack.pid, &stack.trail)));
        self.names.look_up(snapshot.go_stacks.iter().map(|stack| (stack.stack, stack.pid, &stack.trail)));
        let mapped = snapshot.mapped.iter().flatten();
        self.names.look_up(mapped.map(|stack| (stack.owner.stack, stack.pid, &stack.trail)));
        let by_image = ByImage::new(&trace.processes);
        let others_live = trace.processes.iter().any(|process| process.ended.is_none());
        let is_over = |image| by_image.place(image).is_some_and(|place| trace.processes[place].ended.is_some());
        let is_held = |image| !(others_live && is_over(image));
        let cut = cut::of(&snapshot, &go, is_held);
        let mut quality = quality::of(&snapshot, &go, &cut, is_held);
        let shown = go.iter().filter(|go| is_held(go.image));
        let mut estimates: Vec<(Sampling, u64)> = shown.filter_map(GoTrace::estimate).collect();
        let mut mode = go.iter().find(|go| is_held(go.image)).map_or(Mode::Exact, |go| go.seen().mode);
        // Of Go's it is not known.
        let younger = (!go.iter().any(|go| is_held(go.image))).then(|| quality::younger(&snapshot, is_held));
        quality.notes.splice(0..0, trace.notes);
        let problems = go.iter().filter(|go| go.heap.problem.is_some()).count() as u64;
        (quality.unseen_spans, quality.unseen_heaps) = (trace.unseen_spans, trace.unseen_heaps + problems);
        quality.notes.extend(cut::told_of_others(&snapshot, is_held));
        quality.notes.extend(quality::folded(snapshot.folded));
        let loss = snapshot.loss;
        let lost = (loss.allocs + loss.samples, loss.alloc_bytes.saturating_add(loss.sample_bytes));
        quality.notes.extend(quality::without_room(&snapshot, is_held));
        quality.notes.extend_from_slice(self.names.notes());
        quality.rewritten_files = self.names.rewritten();
        let Trace { started, duration, mut processes, selected, filters, sample, mapped, cost, .. } = trace;
        let filters = Filters { younger: younger.filter(|_| filters.min_age > Duration::ZERO), ..filters };
        let go_images: HashSet<u32> = go.iter().map(|go| go.image.0).collect();
        self.containers.name(&mut processes);
        for go in &go {
            if let Some(place) = by_image.place(go.image) {
                processes[place].heaps.push(go.seen());
            }
        }
        quality.uncollected_heaps += go::explain(&go, &mut processes, |image| by_image.place(image));
        let heard: HashSet<u32> = snapshot.stacks.iter().map(|stack| stack.image.0).collect();
        let mut stacks: Vec<StackEntry> = snapshot.stacks.into_iter().map(|stack| self.entry(stack)).collect();
        let cut_go = cut::of_samples(&snapshot.go_stacks);
        stacks.extend(go.into_iter().flat_map(|go| self.go_entries(go, &cut_go)));
        let mappings = snapshot
            .mapped
            .map(|all| mapped::mappings(all, &mapped, (&self.names, &processes), &go_images, others_live));
        for stack in &mut stacks {
            let Some(place) = by_image.place(Image(stack.image)) else { continue };
            // Whatever program it was when it allocated.
            (stack.pid, stack.image) = (processes[place].pid, processes[place].image);
            if processes[place].ended.is_some() {
                end_stack(stack, others_live);
            }
        }
        doubt_what_replaces_others(&mut stacks);
        doubt_what_memory_does_not_show(&mut stacks, sample.is_some(), duration.as_secs_f64(), |image| {
            let process = by_image.place(Image(image)).map(|place| &processes[place])?;
            process.memory.as_ref().map(|memory| memory.fresh)
        });
        stacks.sort_by_key(|stack| Reverse((stack.values.outstanding_bytes, stack.values.allocated_bytes)));
        if let Some(mean) = sample {
            let native = native::estimate(&mut processes, &by_image, &stacks, mean);
            mode = if native.is_empty() { mode } else { Mode::Sampled };
            quality.notes.extend(native::doubts(&native, lost));
            estimates.extend(native);
        }
        quality.sampling = quality::together(&estimates);
        quality.outstanding_bytes = stacks.iter().fold(0, |sum, s| s.values.outstanding_bytes.saturating_add(sum));
        quality.targets = processes.iter().map(|process| process.count).sum();

        let of_go: HashSet<u32> = stacks.iter().filter(|s| s.heap != Heap::Native).map(|stack| stack.image).collect();
        for process in &mut processes {
            // Sizes that nobody asks for are no silence, as long as there are frees.
            process.quality.silent = !heard.contains(&process.image) && !of_go.contains(&process.image);
        }
        for place in cut.into_iter().filter_map(|(image, _)| by_image.place(image)) {
            processes[place].quality.truncated_stacks += 1;
        }
        for stack in &stacks {
            let Some(place) = by_image.place(Image(stack.image)) else { continue };
            let uncertain = &mut processes[place].quality.uncertain_bytes;
            *uncertain = uncertain.saturating_add(stack.uncertain_bytes);
        }
        let others_are_heard = selected && processes.iter().any(|process| !process.quality.silent)
            || filters.leaves_out_sizes() && quality.recorded_events > 0;
        quality.silent_targets = if others_are_heard { 0 } else { processes::silent(&processes) };
        let memories = processes.iter().filter_map(|process| Some((process.memory.as_ref()?, process.count)));
        let unexplained = Unexplained::of(memories);
        (quality.unexplained_bytes, quality.fresh_bytes) = (unexplained.bytes, unexplained.fresh);
        quality.notes.extend(quality::scattered(&unexplained));
        let unwind_tables = snapshot.unwind_tables;
        let (kind, goroutines, modules) = (Kind::Heap, Vec::new(), self.names.modules());
        Profile {
            kind,
            started,
            duration,
            mode,
            filters,
            processes,
            stacks,
            mappings,
            goroutines,
            goroutine_growth: None,
            quality,
            cost,
            unwind_tables,
            modules,
        }
    }

    /// What a Go heap holds, stacks of the same frames made one: those of the runtime at the leaf are left out, as in Go's own
    /// profiles, and differ by the size of what was allocated.
    fn go_entries(&mut self, go: GoTrace, cut: &HashMap<StackIndex, Truncation>) -> Vec<StackEntry> {
        let kind = go.kind();
        let GoTrace { pid, image, heap, .. } = go;
        let mut entries: Vec<StackEntry> = Vec::with_capacity(heap.stacks.len());
        let mut places: HashMap<Frames, usize> = HashMap::new();
        let mut series: Vec<Option<Series>> = Vec::with_capacity(heap.stacks.len());
        for HeapUsage { stack, values, oldest, held } in heap.stacks {
            let truncated = match stack {
                HeapStack::Sampled(stack) => cut.get(&StackIndex::from_raw(stack)).copied(),
                // How deep the runtime looks is its own affair.
                HeapStack::Calls(_) => None,
            };
            let frames = match stack {
                HeapStack::Sampled(stack) => self.names.of(StackIndex::from_raw(stack)).map(without_runtime),
                HeapStack::Calls(calls) => self.names.of_calls(pid, calls),
            };
            let frames = frames.unwrap_or_else(|| stand_in("[stack lost]"));
            let next = entries.len();
            let place = *places.entry(frames.clone()).or_insert(next);
            if place == next {
                entries.push(StackEntry {
                    pid,
                    image: image.0,
                    heap: kind.clone(),
                    frames,
                    values,
                    uncertain_bytes: 0,
                    oldest,
                    estimate: None,
                    growth: None,
                    at_end: None,
                    holders: u64::from(values.outstanding_blocks > 0),
                    truncated,
                });
                series.push(held);
                continue;
            }
            let entry = &mut entries[place];
            entry.values += values;
            entry.oldest = entry.oldest.max(oldest);
            Series::absorb_into(&mut series[place], held.as_ref());
        }
        for (entry, held) in entries.iter_mut().zip(&series) {
            entry.growth = growth(held.as_ref(), &entry.values);
        }
        entries
    }

    fn entry(&self, stack: StackSnapshot) -> StackEntry {
        let frames = self.names.of_trail(stack.stack, &stack.trail);
        let growth = growth(stack.held.as_ref(), &stack.values);
        let truncated = cut::reason(&stack.trail, stack.end);
        let StackSnapshot { pid, image, values, uncertain_bytes, oldest, estimate, holders, .. } = stack;
        StackEntry {
            pid,
            image: image.0,
            heap: Heap::Native,
            frames,
            values,
            uncertain_bytes,
            oldest,
            estimate,
            growth,
            at_end: None,
            holders,
            truncated,
        }
    }
}

/// Takes what an ended process held out of what is outstanding and growing. Where none is left, what they did not free is what is
/// asked for, and stays.
fn end_stack(stack: &mut StackEntry, others_live: bool) {
    stack.growth = None;
    let values = &mut stack.values;
    if others_live && values.outstanding_blocks > 0 {
        stack.at_end = Some((values.outstanding_bytes, values.outstanding_blocks));
        (values.outstanding_bytes, values.outstanding_blocks) = (0, 0);
        (stack.uncertain_bytes, stack.oldest) = (0, None);
        stack.estimate = stack.estimate.map(|_| Estimate::default());
    }
}

/// How what is held now has grown.
fn growth(held: Option<&Series>, values: &Values) -> Option<Growth> {
    let block = values.outstanding_bytes as f64 / values.outstanding_blocks.max(1) as f64;
    held.map(|held| held.growth(block.max(1.0)))
}
