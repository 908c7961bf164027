//! A snapshot of addresses to a [`Profile`] of names.

use std::{
    collections::BTreeMap,
    hash::{Hash, Hasher},
    sync::Arc,
    time::{Duration, SystemTime},
};

use hashbrown::{HashMap, HashSet};

use crate::{
    collector::{Snapshot, StackSnapshot, Trail},
    event::{Image, Pid},
    go_heap::{HeapSnapshot, HeapStack, HeapUsage, Way},
    golang::{Runtime, Symbols, heap},
    heap::{Series, StackIndex},
    process::address_space::{Location, Place},
    profile::{self, Frame, Frames, Growth, Kind, Mode, Profile, SeenHeap, StackEntry, Target, Values},
    quality::{Collections, Quality, Sampling, Truncation},
    renewal::doubt_what_replaces_others,
    symbolize::{Query, Symbolizer},
    trails::{Site, Sites},
};

/// What is known of a trace besides its snapshot.
pub struct Trace {
    /// When it began.
    pub started: SystemTime,
    /// How long it has lasted.
    pub duration: Duration,
    /// The processes, with their heaps other than Go's.
    pub targets: Vec<Target>,
    /// The image of each.
    pub images: Vec<Image>,
    /// Whether the processes were chosen by what they are: that some of them allocate nothing is no silence.
    pub selected: bool,
    /// Whether only allocations of some sizes are recorded.
    pub filtered: bool,
    /// Times that a process ran unseen; notes tell of each.
    pub unseen_spans: u64,
    /// Go heaps that are not seen, or not in full; notes tell of each.
    pub unseen_heaps: u64,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// The heap of a Go process at one moment.
pub struct GoTrace {
    /// The process.
    pub pid: Pid,
    /// The library whose runtime it is of; `None` for that of the executable.
    pub library: Option<Arc<str>>,
    /// How it was seen.
    pub way: Way,
    /// What it holds.
    pub heap: HeapSnapshot,
}

impl GoTrace {
    /// Bytes that are held.
    pub fn held(&self) -> u64 {
        let stacks = self.heap.stacks.iter();
        stacks.map(|stack| stack.values.outstanding_bytes).fold(0, u64::saturating_add)
    }

    /// How the heap was seen.
    fn seen(&self) -> SeenHeap {
        let mode = match self.way {
            Way::Sampled => Mode::Sampled,
            Way::Buckets(_) => Mode::GoBuckets,
        };
        let sampling = self.heap.sampling.as_ref().map(|sampling| Sampling {
            mean_bytes: sampling.mean_bytes,
            samples: sampling.samples,
            relative_error: sampling.relative_error,
        });
        SeenHeap { heap: self.kind(), mode, sampling }
    }

    /// Which heap it is.
    fn kind(&self) -> profile::Heap {
        self.library.clone().map_or(profile::Heap::Go, profile::Heap::GoLibrary)
    }

    /// It in words: hostile text.
    fn name(&self) -> String {
        match &self.library {
            Some(library) => format!("the Go heap of {library} in process {}", self.pid),
            None => format!("the Go heap of process {}", self.pid),
        }
    }
}

/// Names stacks; remembers those it has named.
pub struct Presenter {
    symbolizer: Symbolizer,
    named: HashMap<StackIndex, Frames>,
    /// Stacks of the profiles that Go runtimes keep.
    named_calls: HashMap<(Pid, Arc<[u64]>), Frames>,
    /// Names of Go code, by process.
    go: HashMap<Pid, Symbols<Arc<Runtime>>>,
}

impl Presenter {
    /// One that has named nothing yet, and keeps at most so many bytes of the files that names come from.
    pub fn within(memory: u64) -> Self {
        Self {
            symbolizer: Symbolizer::within(memory),
            named: HashMap::new(),
            named_calls: HashMap::new(),
            go: HashMap::new(),
        }
    }

    /// Names the Go code of a process, whose executable is known to it as `exe`, by the tables of a runtime or plugin of it.
    pub fn know_go(&mut self, pid: Pid, runtime: Arc<Runtime>, exe: &str) {
        let library = runtime.library().cloned();
        let module = library.as_deref().unwrap_or(exe);
        match self.go.get_mut(&pid) {
            Some(known) if library.is_some() => known.add(runtime, module),
            // Another program than before, if any.
            _ => drop(self.go.insert(pid, Symbols::of_returns(runtime, module))),
        }
    }

    /// The profile of a snapshot.
    pub fn profile(&mut self, trace: Trace, snapshot: Snapshot, go: Vec<GoTrace>) -> Profile {
        let native = snapshot.stacks.iter().map(|stack| (stack.stack, stack.pid, &stack.trail));
        self.name_new_stacks(native.collect());
        let sampled = snapshot.go_stacks.iter().map(|stack| (stack.stack, stack.pid, &stack.trail));
        self.name_new_stacks(sampled.collect());
        let mut quality = quality(&trace, &snapshot, &go);
        quality.notes.extend(folded(snapshot.folded));
        quality.notes.extend_from_slice(self.symbolizer.notes());
        let Trace { started, duration, mut targets, images, selected, filtered, .. } = trace;
        for target in &mut targets {
            target.heaps.extend(go.iter().filter(|go| go.pid == target.pid).map(GoTrace::seen));
        }
        let mode = go.first().map_or(Mode::Exact, |go| go.seen().mode);
        let snapshots = merged(snapshot.stacks);
        let heard: HashSet<Image> = snapshots.iter().map(|stack| stack.image).collect();
        let ended = targets.iter().zip(&images).filter(|(target, _)| target.ended.is_some()).map(|(_, image)| *image);
        let ended: HashSet<Image> = ended.collect();
        let others_live = ended.len() < targets.len();
        let entry = |stack: StackSnapshot| {
            let is_over = ended.contains(&stack.image);
            let mut entry = self.entry(stack);
            if is_over {
                end_stack(&mut entry, others_live);
            }
            entry
        };
        let mut stacks: Vec<StackEntry> = snapshots.into_iter().map(entry).collect();
        for go in go {
            let is_over = targets.iter().any(|target| target.pid == go.pid && target.ended.is_some());
            let mut entries = self.go_entries(go);
            if is_over {
                entries.iter_mut().for_each(|entry| end_stack(entry, others_live));
            }
            stacks.extend(entries);
        }
        doubt_what_replaces_others(&mut stacks);
        stacks.sort_by_key(|stack| std::cmp::Reverse((stack.values.outstanding_bytes, stack.values.allocated_bytes)));
        quality.outstanding_bytes = stacks.iter().fold(0, |sum, s| s.values.outstanding_bytes.saturating_add(sum));
        quality.targets = targets.len() as u64;
        // Sizes that nobody asks for are no silence, as long as there are frees.
        let is_silent = |target: &Target, image: &Image| {
            !heard.contains(image) && stacks.iter().all(|stack| stack.pid != target.pid || !is_of_go(&stack.heap))
        };
        // A process that was started may have nothing to allocate, and so may one that only starts others.
        let loud = targets.iter().zip(&images).filter(|(target, image)| !is_silent(target, image));
        let loud = with_ancestors(loud.map(|(target, _)| target.pid).collect(), &targets);
        let silent = |target: &&Target| {
            let others_are_heard = selected && !loud.is_empty() || filtered && quality.recorded_events > 0;
            target.parent.is_none() && !loud.contains(&target.pid) && !others_are_heard
        };
        let memories = targets.iter().filter_map(|target| target.memory.as_ref());
        for memory in memories.filter(|memory| !memory.is_explained()) {
            quality.unexplained_bytes = quality.unexplained_bytes.saturating_add(memory.unexplained);
            quality.fresh_bytes = quality.fresh_bytes.saturating_add(memory.fresh);
        }
        quality.silent_targets = targets.iter().filter(silent).count() as u64;
        let unwind_tables = snapshot.unwind_tables;
        let mut modules = self.symbolizer.modules();
        for module in self.go.values().flat_map(Symbols::described) {
            // The symbolizer may know it by its parts in C.
            if !modules.contains(&module) {
                modules.push(module);
            }
        }
        let (kind, goroutines) = (Kind::Heap, Vec::new());
        Profile { kind, started, duration, mode, targets, stacks, goroutines, quality, unwind_tables, modules }
    }

    /// What a Go heap holds, stacks of the same frames made one: those of the runtime at the leaf are left out, as in Go's own
    /// profiles, and differ by the size of what was allocated.
    fn go_entries(&mut self, go: GoTrace) -> Vec<StackEntry> {
        let kind = go.kind();
        let GoTrace { pid, heap, .. } = go;
        let mut entries: Vec<StackEntry> = Vec::with_capacity(heap.stacks.len());
        let mut places: HashMap<Frames, usize> = HashMap::new();
        let mut series: Vec<Option<Series>> = Vec::with_capacity(heap.stacks.len());
        for HeapUsage { stack, values, oldest, held } in heap.stacks {
            let frames = match stack {
                HeapStack::Sampled(stack) => self.named.get(&StackIndex::from_raw(stack)).map(without_runtime),
                HeapStack::Calls(calls) => self.named_calls(pid, calls),
            };
            let frames = frames.unwrap_or_else(|| stand_in("[stack lost]"));
            let next = entries.len();
            let place = *places.entry(frames.clone()).or_insert(next);
            if place == next {
                entries.push(StackEntry {
                    pid,
                    heap: kind.clone(),
                    frames,
                    values,
                    uncertain_bytes: 0,
                    oldest,
                    growth: None,
                    at_end: None,
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

    /// Frames of addresses each of which stands for one function.
    fn named_calls(&mut self, pid: Pid, calls: Arc<[u64]>) -> Option<Frames> {
        let symbols = self.go.get_mut(&pid)?;
        let named = self.named_calls.entry((pid, calls)).or_insert_with_key(|(_, calls)| {
            let frames = calls.iter().rev().filter_map(|call| symbols.innermost(*call));
            let frames = frames.filter(|frame| frame.function.as_deref() != Some("runtime.goexit"));
            without_runtime(&frames.map(|frame| Arc::from([Frame { inlined: false, ..frame }])).collect())
        });
        Some(named.clone())
    }

    fn name_new_stacks(&mut self, stacks: Vec<(StackIndex, Pid, &Trail)>) {
        let Self { symbolizer, named, go, .. } = self;
        let new: Vec<(StackIndex, Pid, &Sites)> = stacks
            .into_iter()
            .filter_map(|(stack, pid, trail)| match trail {
                Trail::Known(sites) if !named.contains_key(&stack) || sites.iter().any(|site| site.is_pending()) => {
                    Some((stack, pid, sites))
                }
                _ => None,
            })
            .collect();
        // Stacks share their places: each is asked for once.
        let mut asked: HashMap<(Pid, *const Site), usize> = HashMap::new();
        let mut queries: Vec<Query<'_>> = Vec::new();
        for (_, pid, sites) in &new {
            for site in sites.iter().filter(|site| call_in_go(go, *pid, site).is_none()) {
                let next = queries.len();
                if *asked.entry((*pid, Arc::as_ptr(site))).or_insert(next) == next {
                    queries.push(Query { pid: *pid, addr: site.addr, place: &site.place });
                }
            }
        }
        let answers = symbolizer.resolve(&queries);
        for (stack, pid, sites) in new {
            let mut frames: Vec<Arc<[Frame]>> = Vec::with_capacity(sites.len());
            // Go code is named in one go: whether a frame is shown may depend on what it calls.
            let in_go: Vec<Option<u64>> = sites.iter().map(|site| call_in_go(go, pid, site)).collect();
            let mut begin = 0;
            for calls in in_go.chunk_by(|a, b| a.is_some() == b.is_some()) {
                let part = &sites[begin..begin + calls.len()];
                begin += calls.len();
                let calls: Vec<u64> = calls.iter().copied().flatten().collect();
                match go.get_mut(&pid).filter(|_| !calls.is_empty()) {
                    Some(symbols) => frames.extend(symbols.part(&calls)),
                    None => {
                        frames.extend(part.iter().map(|site| Arc::clone(&answers[asked[&(pid, Arc::as_ptr(site))]])))
                    }
                }
            }
            frames.reverse();
            named.insert(stack, frames.into_iter().collect());
        }
    }

    fn entry(&self, stack: StackSnapshot) -> StackEntry {
        let named = self.named.get(&stack.stack);
        let frames = match stack.trail {
            Trail::TableFull => stand_in("[stack table full]"),
            Trail::Lost => stand_in("[stack lost]"),
            Trail::Folded => stand_in("[other stacks]"),
            Trail::Known(_) => named.cloned().unwrap_or_else(|| stand_in("[unknown]")),
        };
        let growth = growth(stack.held.as_ref(), &stack.values);
        let StackSnapshot { pid, values, uncertain_bytes, oldest, .. } = stack;
        StackEntry { pid, heap: profile::Heap::Native, frames, values, uncertain_bytes, oldest, growth, at_end: None }
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
    }
}

/// These processes and those that have started them, and so on.
fn with_ancestors(pids: Vec<Pid>, targets: &[Target]) -> HashSet<Pid> {
    let parents: HashMap<Pid, Pid> = targets.iter().filter_map(|target| Some((target.pid, target.parent?))).collect();
    let mut all = HashSet::new();
    for pid in pids {
        let mut next = Some(pid);
        while let Some(pid) = next.filter(|pid| all.insert(*pid)) {
            next = parents.get(&pid).copied();
        }
    }
    all
}

fn is_of_go(heap: &profile::Heap) -> bool {
    !matches!(heap, profile::Heap::Native)
}

/// Stacks with those made one that differ only in what was cut off.
fn merged(stacks: Vec<StackSnapshot>) -> Vec<StackSnapshot> {
    // Equal places are one: how they ended tells stacks apart.
    let mut places: HashMap<(Image, Key), usize> = HashMap::new();
    let mut all: Vec<StackSnapshot> = Vec::with_capacity(stacks.len());
    for stack in stacks {
        let key = match &stack.trail {
            Trail::Known(sites) => Key::Known(Arc::clone(sites)),
            Trail::Lost => Key::Lost,
            Trail::TableFull => Key::TableFull,
            Trail::Folded => Key::Folded,
        };
        let next = all.len();
        match *places.entry((stack.image, key)).or_insert(next) {
            place if place == next => all.push(stack),
            place => all[place].absorb(&stack),
        }
    }
    all
}

/// What the reader should know of stacks that became one: how many hold nothing, and how many something.
fn folded((empty, holding): (u64, u64)) -> Option<String> {
    (empty + holding > 0).then(|| {
        format!(
            "{} stacks are shown as one, [other stacks] ({holding} of them hold something): tracer's memory is bounded \
             (--max-memory)",
            empty + holding
        )
    })
}

/// What tells stacks apart.
enum Key {
    Known(Sites),
    Lost,
    TableFull,
    Folded,
}

impl Key {
    fn places(&self) -> impl Iterator<Item = *const Site> {
        let sites: &[Arc<Site>] = if let Self::Known(sites) = self { sites } else { &[] };
        sites.iter().map(Arc::as_ptr)
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other) && self.places().eq(other.places())
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self).hash(state);
        self.places().for_each(|place| place.hash(state));
    }
}

/// How what is held now has grown.
fn growth(held: Option<&Series>, values: &Values) -> Option<Growth> {
    let block = values.outstanding_bytes as f64 / values.outstanding_blocks.max(1) as f64;
    held.map(|held| held.growth(block.max(1.0)))
}

/// The address in its process of the call that returns to a site in Go code; `None` for other code.
fn call_in_go(go: &HashMap<Pid, Symbols<Arc<Runtime>>>, pid: Pid, site: &Site) -> Option<u64> {
    let symbols = go.get(&pid)?;
    match &site.place {
        Place::File(Location { module, offset }) => symbols.address(module.contents()?, offset.checked_sub(1)?),
        _ => None,
    }
}

/// A stack without the functions of the Go runtime at its leaf, which allocate on behalf of the program; a stack of nothing
/// else stays as it is (as `writeHeapProto` of runtime/pprof does).
fn without_runtime(frames: &Frames) -> Frames {
    let is_runtime = |frame: &Frame| {
        let function = frame.function.as_deref().unwrap_or_default();
        function.starts_with("runtime.") || function.starts_with("internal/runtime/")
    };
    let addresses: Vec<Arc<[Frame]>> = frames.addresses().cloned().collect();
    let own = addresses.iter().rposition(|address| !address.iter().all(is_runtime));
    match own {
        Some(last) => addresses.into_iter().take(last + 1).collect(),
        None => frames.clone(),
    }
}

/// A stack that stands for what is not known.
fn stand_in(name: &str) -> Frames {
    vec![Frame { function: Some(name.to_owned()), ..Frame::default() }].into()
}

fn quality(trace: &Trace, snapshot: &Snapshot, go: &[GoTrace]) -> Quality {
    let loss = &snapshot.loss;
    let unknown = snapshot.stacks.iter().filter(|stack| !matches!(stack.trail, Trail::Known(_)));
    let truncated = truncated(snapshot, go);
    let reasons: Vec<String> =
        truncated.iter().map(|(reason, count)| format!("{count} of the cut stacks: {}", reason.words())).collect();
    let sampling: Vec<&heap::Sampling> = go.iter().filter_map(|go| go.heap.sampling.as_ref()).collect();
    let problems = go.iter().filter_map(|go| {
        let problem = go.heap.problem.as_ref()?;
        Some(format!("{} could not be followed to the end: {problem}", go.name()))
    });
    let missed = go.iter().filter_map(|go| {
        let heap::Sampling { missed_cycles: missed, cycles, .. } = *go.heap.sampling.as_ref()?;
        (missed > 0).then(|| {
            format!(
                "{missed} of {cycles} garbage collections of {} were not looked at in full: objects that ended then may still \
                 be shown",
                go.name()
            )
        })
    });
    let few = go.iter().filter_map(few_samples);
    let collections = go.iter().filter_map(|go| {
        let (at_begin, at_end) = go.heap.collections.seen?;
        let (pid, library, own_profile) = (go.pid, go.library.clone(), go.way != Way::Sampled);
        Some(Collections { pid, library, at_begin, at_end, own_profile })
    });
    let collections: Vec<Collections> = collections.collect();
    let sum = |field: fn(&heap::Sampling) -> u64| sampling.iter().map(|sampling| field(sampling)).sum();
    Quality {
        sampling: together(&sampling, go),
        missed_cycles: sum(|sampling| sampling.missed_cycles),
        cycles: collections.iter().map(Collections::while_traced).sum(),
        collections,
        uncollected_heaps: go.iter().filter(|go| !go.heap.collections.collected).count() as u64,
        undecided_samples: sum(|sampling| sampling.undecided),
        unresolved_samples: loss.unresolved + sum(|sampling| sampling.misplaced),
        lost_allocs: loss.allocs,
        refused_allocs: snapshot.counters.refused_blocks,
        lost_frees: loss.frees,
        lost_moments: loss.moments,
        unfollowed_processes: loss.processes,
        inherited_frees: snapshot.counters.inherited_frees,
        unmatched_frees: snapshot.counters.unmatched_frees,
        missed_frees: snapshot.counters.missed_frees,
        truncated,
        uncertain_bytes: snapshot.stacks.iter().map(|stack| stack.uncertain_bytes).fold(0, u64::saturating_add),
        unknown_stack_bytes: unknown.map(|stack| stack.values.outstanding_bytes).fold(0, u64::saturating_add),
        untracked_calls: loss.threads_full + loss.outcomes_unseen,
        unknown_records: snapshot.unknown_records + sum(|sampling| sampling.senseless),
        unexplained_bytes: 0,
        fresh_bytes: 0,
        unseen_spans: trace.unseen_spans,
        unseen_heaps: trace.unseen_heaps,
        silent_targets: 0,
        targets: 0,
        recorded_events: snapshot.counters.events,
        outstanding_bytes: 0,
        notes: trace.notes.iter().cloned().chain(problems).chain(missed).chain(few).chain(reasons).collect(),
    }
}

/// Samples that a report should have: a standard error of all bytes of some tenth.
const ENOUGH_SAMPLES: u64 = 100;

/// What to do where so few samples are held that the numbers are hardly better than guesses.
fn few_samples(go: &GoTrace) -> Option<String> {
    let heap::Sampling { mean_bytes, samples, .. } = *go.heap.sampling.as_ref()?;
    if go.way != Way::Sampled || samples == 0 || samples >= ENOUGH_SAMPLES || mean_bytes <= 1 {
        return None;
    }
    // The largest power of two that gives enough.
    let wanted: u64 = 1 << (mean_bytes * samples / ENOUGH_SAMPLES).max(1).ilog2();
    let size = if wanted < 1024 { format!("{wanted}B") } else { format!("{}KiB", wanted / 1024) };
    let would = samples * mean_bytes / wanted;
    Some(format!("{} is told by few samples ({samples}): --sample={size} would give about {would}", go.name()))
}

/// How good the estimates of several processes are together.
fn together(sampling: &[&heap::Sampling], go: &[GoTrace]) -> Option<Sampling> {
    let mean_bytes = sampling.first()?.mean_bytes;
    let held = |heap: &HeapSnapshot| heap.stacks.iter().map(|stack| stack.values.outstanding_bytes).sum::<u64>() as f64;
    let (mut sum, mut variance) = (0.0, 0.0);
    for heap in go.iter().map(|go| &go.heap) {
        let Some(sampling) = &heap.sampling else { continue };
        sum += held(heap);
        variance += (sampling.relative_error * held(heap)).powi(2);
    }
    let relative_error = if sum > 0.0 { variance.sqrt() / sum } else { 0.0 };
    Some(Sampling { mean_bytes, samples: sampling.iter().map(|sampling| sampling.samples).sum(), relative_error })
}

/// How many stacks that hold something end before the thread's root, by the reason that the BPF side gave.
fn truncated(snapshot: &Snapshot, go: &[GoTrace]) -> BTreeMap<Truncation, u64> {
    let native = snapshot.stacks.iter().filter(|stack| stack.values.outstanding_blocks > 0);
    let native = native.map(|stack| (&stack.trail, stack.end));
    let held: HashSet<StackIndex> = go
        .iter()
        .flat_map(|go| &go.heap.stacks)
        .filter(|usage| usage.values.outstanding_blocks > 0)
        .filter_map(|usage| match usage.stack {
            HeapStack::Sampled(stack) => Some(StackIndex::from_raw(stack)),
            HeapStack::Calls(_) => None,
        })
        .collect();
    let sampled = snapshot.go_stacks.iter().filter(|stack| held.contains(&stack.stack));
    let sampled = sampled.map(|stack| (&stack.trail, stack.end));
    let mut counts = BTreeMap::new();
    for (trail, end) in native.chain(sampled) {
        if let (Trail::Known(_), Some(reason)) = (trail, Truncation::of(end)) {
            *counts.entry(reason).or_default() += 1;
        }
    }
    counts
}
