//! Making a snapshot of what the collector has.

use std::{sync::Arc, time::Duration};

use hashbrown::HashMap;

use super::{
    Collector,
    images::Images,
    intake::GoHeap,
    nanoseconds,
    places::Places,
    snapshot::{GoStack, MappedSnapshot, Snapshot, StackSnapshot, Trail},
};
use crate::{
    clock::monotonic,
    event::Image,
    heap::{Heap, History, Series, StackIndex, StackUsage},
    mapped::{Mapped, MappedUsage},
};

impl Collector {
    /// What is held now. With millions of blocks it takes a while to look at them all; what is recorded meanwhile is taken out of the buffer, to
    /// be taken in afterwards.
    pub(super) fn snapshot(&mut self, min_age: Duration) -> Snapshot {
        // What is recorded no more grows no older.
        let now = self.stopped.unwrap_or_else(monotonic);
        self.keep_within_memory();
        let Self { events, heap, mapped, history, images, places, go, .. } = self;
        let look = Look {
            heap,
            mapped,
            history,
            images,
            places,
            go,
            records_mapped: self.records_mapped,
            min_age: self.min_age,
            all_sizes: self.all_sizes,
            sample: self.sample,
        };
        let Seen { stacks, go_stacks, mapped: of_mappings, folded } = events.put_aside_during(|| look.at(now, min_age));
        Snapshot {
            at: now,
            stacks,
            go_stacks,
            mapped: of_mappings,
            remappings: self.mapped.changes(),
            refused_remappings: self.mapped.refused(),
            counters: self.heap.counters(),
            folded,
            loss: self.loss,
            unknown_records: self.unknown_records,
            late: self.late,
            unheard: self.unheard,
            undecided_events: self.undecided_events,
            unwind_tables: self.unwind_tables.clone(),
        }
    }
}

/// What is looked at for a snapshot: all that does not change while records are only taken out of the buffer.
struct Look<'a> {
    heap: &'a Heap,
    mapped: &'a Mapped,
    history: &'a History,
    images: &'a Images,
    places: &'a Places,
    go: &'a HashMap<(Image, u8), GoHeap>,
    records_mapped: bool,
    min_age: u64,
    all_sizes: bool,
    sample: Option<u64>,
}

/// What such a look has shown: parts of a [`Snapshot`].
struct Seen {
    stacks: Vec<StackSnapshot>,
    go_stacks: Vec<GoStack>,
    mapped: Option<Vec<MappedSnapshot>>,
    folded: (u64, u64),
}

impl Look<'_> {
    fn at(&self, now: u64, min_age: Duration) -> Seen {
        let usage = self.heap.usage_at(|image| self.images.until(image, now), nanoseconds(min_age));
        let times = self.history.times();
        // Of what is that young, what was recorded can be there.
        let young = self.history.recorded_between(now.saturating_sub(self.min_age), now);
        let mut unknown_frees: HashMap<Image, Option<Arc<[f32]>>> = HashMap::new();
        let mut stacks: Vec<StackSnapshot> = Vec::new();
        let mut others: HashMap<Image, usize> = HashMap::new();
        let mut folded = (0, 0);
        for usage in usage {
            let image = self.heap.stacks().image(usage.stack);
            if !self.images.is_wanted(image) {
                continue;
            }
            let (pid, since) = self.images.of(image);
            let unknown = unknown_frees.entry(image).or_insert_with(|| self.unknown_frees(image));
            let all = self.heap.values(usage.stack);
            let younger = (
                all.outstanding_bytes.saturating_sub(usage.values.outstanding_bytes),
                all.outstanding_blocks.saturating_sub(usage.values.outstanding_blocks),
            );
            let held = self.held(since, &usage, &times);
            let stack = StackSnapshot {
                pid,
                image,
                stack: usage.stack,
                values: usage.values,
                younger,
                uncertain_bytes: usage.uncertain_bytes,
                holders: usage.holders,
                estimate: usage.estimate,
                oldest: usage.oldest.map(Duration::from_nanos),
                held: held.map(|held| held.replacing(unknown.clone()).aged(younger.0, young)),
                trail: self.places.trail(self.heap, usage.stack),
                end: self.end(usage.stack),
            };
            if !matches!(stack.trail, Trail::Folded) {
                stacks.push(stack);
                continue;
            }
            let count = if stack.values.outstanding_blocks == 0 { &mut folded.0 } else { &mut folded.1 };
            *count += 1;
            match others.get(&stack.image) {
                Some(one) => stacks[*one].absorb(&stack),
                None => {
                    others.insert(stack.image, stacks.len());
                    stacks.push(stack);
                }
            }
        }
        let go_stacks = self.go.iter().flat_map(|((image, _), process)| {
            let (pid, _) = self.images.of(*image);
            process.stacks.iter().map(move |stack| {
                let (trail, end) = (self.places.trail(self.heap, *stack), self.end(*stack));
                GoStack { pid, stack: *stack, trail, end }
            })
        });
        let go_stacks = go_stacks.collect();
        Seen { stacks, go_stacks, mapped: self.records_mapped.then(|| self.mapped_by_stack(now)), folded }
    }

    fn mapped_by_stack(&self, now: u64) -> Vec<MappedSnapshot> {
        let wanted = self.mapped.usage().into_iter().filter(|usage| self.images.is_wanted(usage.image));
        let snapshots = wanted.map(|MappedUsage { image, owner, values, oldest }| MappedSnapshot {
            pid: self.images.of(image).0,
            image,
            owner,
            values,
            oldest: oldest.map(|oldest| Duration::from_nanos(self.images.until(image, now).saturating_sub(oldest))),
            trail: self.places.trail(self.heap, owner.stack),
            end: self.end(owner.stack),
        });
        snapshots.collect()
    }

    fn end(&self, stack: StackIndex) -> u32 {
        self.places.trails.end(self.heap.stacks().first(stack), self.heap.stacks().end(stack))
    }

    /// What a stack held by blocks of the age that is of interest, from when there could be such: `since` is when its image began
    /// to be recorded.
    fn held(&self, since: u64, usage: &StackUsage, times: &Arc<[f64]>) -> Option<Series> {
        let held = self.history.series(usage.stack.index(), times, since.saturating_add(self.min_age))?;
        let Some(mean) = self.sample else { return Some(held) };
        let samples = usage.estimate.map_or(0, |estimate| estimate.samples);
        Some(held.of_samples(samples, usage.values.outstanding_bytes, mean))
    }

    /// Frees of blocks from before: with a filter by size, they are mostly of blocks that were left out.
    fn unknown_frees(&self, image: Image) -> Option<Arc<[f32]>> {
        self.history.unknown_frees(image).filter(|_| self.all_sizes)
    }
}
