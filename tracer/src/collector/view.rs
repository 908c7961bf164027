//! What is known at one moment, and the snapshot that it makes: on the thread of whoever asks, while the collector goes on.

use std::{sync::Arc, time::Duration};

use hashbrown::{HashMap, HashSet};

use super::{
    images::KnownImages,
    places::KnownPlaces,
    snapshot::{GoStack, MappedSnapshot, Snapshot, StackSnapshot, Trail},
};
use crate::{
    event::Image,
    heap::{HeapView, History, Series, StackIndex, StackUsage},
    mapped::{Mapped, MappedUsage},
};

/// All that is known at one moment. To make it takes the collector as long as there are parts of it to be shared; what becomes of it is the
/// affair of whoever has it.
pub struct View {
    /// With all that need not be looked at.
    pub(super) snapshot: Snapshot,
    pub(super) heap: HeapView,
    pub(super) mapped: Option<Mapped>,
    pub(super) history: History,
    pub(super) images: KnownImages,
    pub(super) places: KnownPlaces,
    /// Stacks of Go's sampled objects.
    pub(super) go: Vec<(Image, StackIndex)>,
    /// Least age of blocks whose growth was followed, and of those that are of interest, nanoseconds.
    pub(super) followed_age: u64,
    pub(super) min_age: u64,
    /// Whether blocks of all sizes are recorded.
    pub(super) all_sizes: bool,
    /// Mean of bytes between two that are recorded; `None`: all are.
    pub(super) sample: Option<u64>,
    /// Who counts those that look.
    pub(super) _looking: Arc<()>,
}

impl View {
    /// When that was, nanoseconds of CLOCK_MONOTONIC: when recording ended, once it has.
    pub fn at(&self) -> u64 {
        self.snapshot.at
    }

    /// Images that are told together with others, of which nothing was recorded that should have been.
    pub fn unheard(&self) -> u64 {
        self.snapshot.unheard
    }

    /// The images of which something was recorded.
    pub fn heard(&self) -> HashSet<Image> {
        let images: HashSet<Image> = self.heap.used().map(|stack| self.heap.stacks().image(stack)).collect();
        images.into_iter().filter(|image| self.images.is_wanted(*image)).collect()
    }

    /// What all stacks hold.
    pub fn snapshot(mut self) -> Snapshot {
        let (stacks, folded) = self.stacks();
        let go_stacks = self.go.iter().map(|(image, stack)| {
            let (trail, end) = self.trail(*stack);
            GoStack { pid: self.images.of(*image).0, stack: *stack, trail, end }
        });
        let go_stacks = go_stacks.collect();
        let mapped = self.mapped.as_ref().map(|mapped| self.mapped_by_stack(mapped));
        Snapshot { stacks, go_stacks, mapped, folded, ..self.snapshot }
    }

    /// What each holds, and how many of those whose places were forgotten hold nothing, and something.
    fn stacks(&mut self) -> (Vec<StackSnapshot>, (u64, u64)) {
        let (now, images) = (self.snapshot.at, &self.images);
        let usage = self.heap.usage_at(|image| images.until(image, now), self.min_age);
        let times = self.history.times();
        // Of what is that young, what was recorded can be there.
        let young = self.history.recorded_between(now.saturating_sub(self.followed_age), now);
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
            let held = self.held(since, &usage, &times);
            let (trail, end) = self.trail(usage.stack);
            let stack = StackSnapshot {
                pid,
                image,
                stack: usage.stack,
                values: usage.values,
                younger: usage.younger,
                uncertain_bytes: usage.uncertain_bytes,
                holders: usage.holders,
                estimate: usage.estimate,
                oldest: usage.oldest.map(Duration::from_nanos),
                held: held.map(|held| held.replacing(unknown.clone()).aged(usage.younger.0, young)),
                trail,
                end,
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
        (stacks, folded)
    }

    fn mapped_by_stack(&self, mapped: &Mapped) -> Vec<MappedSnapshot> {
        let now = self.snapshot.at;
        let wanted = mapped.usage().into_iter().filter(|usage| self.images.is_wanted(usage.image));
        let snapshots = wanted.map(|MappedUsage { image, owner, values, oldest }| {
            let (trail, end) = self.trail(owner.stack);
            let oldest =
                oldest.map(|oldest| Duration::from_nanos(self.images.until(image, now).saturating_sub(oldest)));
            MappedSnapshot { pid: self.images.of(image).0, image, owner, values, oldest, trail, end }
        });
        snapshots.collect()
    }

    /// The places of a stack, and how it ended.
    fn trail(&self, stack: StackIndex) -> (Trail, u32) {
        let stacks = self.heap.stacks();
        (self.places.trail(stacks, stack), self.places.end(stacks, stack))
    }

    /// What a stack held by blocks of the age that is of interest, from when there could be such: `since` is when its image began
    /// to be recorded.
    fn held(&self, since: u64, usage: &StackUsage, times: &Arc<[f64]>) -> Option<Series> {
        let held = self.history.series(usage.stack.index(), times, since.saturating_add(self.followed_age))?;
        let Some(mean) = self.sample else { return Some(held) };
        let samples = usage.estimate.map_or(0, |estimate| estimate.samples);
        Some(held.of_samples(samples, usage.values.outstanding_bytes, mean))
    }

    /// Frees of blocks from before: with a filter by size, they are mostly of blocks that were left out.
    fn unknown_frees(&self, image: Image) -> Option<Arc<[f32]>> {
        self.history.unknown_frees(image).filter(|_| self.all_sizes)
    }
}
