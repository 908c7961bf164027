//! What is handed out to those who report: what all stacks hold at one moment.

use std::{sync::Arc, time::Duration};

use hashbrown::HashMap;
use tracer_ebpf::Loss;

use super::{Collector, nanoseconds};
use crate::{
    clock::monotonic,
    event::{Image, Pid},
    heap::{Counters, Series, StackIndex},
    profile::{UnwindTable, Values},
    trails::Sites,
};

/// What all stacks hold at one moment.
pub struct Snapshot {
    /// By stack, in no order.
    pub stacks: Vec<StackSnapshot>,
    /// Stacks of sampled objects of Go programs, in no order.
    pub go_stacks: Vec<GoStack>,
    /// What went through the heap.
    pub counters: Counters,
    /// What was lost.
    pub loss: Loss,
    /// Stacks whose addresses were forgotten: they are one in each process. How many hold nothing, and how many something.
    pub folded: (u64, u64),
    /// Records that made no sense.
    pub unknown_records: u64,
    /// Images that were not followed from their beginning on because its record found the ring buffer full: how many, and for how long
    /// at most.
    pub late: (u64, Duration),
    /// What stacks were unwound by.
    pub unwind_tables: Vec<UnwindTable>,
}

/// The stack of sampled objects of a Go program; what they are is known elsewhere.
pub struct GoStack {
    /// The process.
    pub pid: Pid,
    /// Identifies the stack within this trace.
    pub stack: StackIndex,
    /// Its addresses.
    pub trail: Trail,
    /// One of [`tracer_ebpf::end`].
    pub end: u32,
}

/// What one stack holds.
pub struct StackSnapshot {
    /// The process.
    pub pid: Pid,
    /// Its image.
    pub image: Image,
    /// Identifies the stack within this trace.
    pub stack: StackIndex,
    /// Amounts.
    pub values: Values,
    /// Outstanding bytes that a lost free may have ended.
    pub uncertain_bytes: u64,
    /// Age of the oldest block.
    pub oldest: Option<Duration>,
    /// Bytes that it held in the course of time. `None` when it is not followed.
    pub held: Option<Series>,
    /// Its addresses.
    pub trail: Trail,
    /// One of [`tracer_ebpf::end`].
    pub end: u32,
}

impl StackSnapshot {
    /// Adds what another stack holds.
    pub fn absorb(&mut self, other: &Self) {
        self.values += other.values;
        self.uncertain_bytes = self.uncertain_bytes.saturating_add(other.uncertain_bytes);
        self.oldest = self.oldest.max(other.oldest);
        Series::absorb_into(&mut self.held, other.held.as_ref());
    }
}

/// The addresses of a stack, as far as they are known.
#[derive(Clone, Debug)]
pub enum Trail {
    /// Leaf first.
    Known(Sites),
    /// They were forgotten, for want of memory.
    Folded,
    /// The record was lost.
    Lost,
    /// There was no room for it.
    TableFull,
}

impl Collector {
    pub(super) fn snapshot(&mut self, min_age: Duration) -> Snapshot {
        let now = monotonic();
        self.keep_within_memory();
        let usage = self.heap.usage(now, nanoseconds(min_age));
        let times = self.history.times();
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
            let young = self.heap.values(usage.stack).outstanding_bytes.saturating_sub(usage.values.outstanding_bytes);
            let held = self.held(since, usage.stack, &times);
            let stack = StackSnapshot {
                pid,
                image,
                stack: usage.stack,
                values: usage.values,
                uncertain_bytes: usage.uncertain_bytes,
                oldest: usage.oldest.map(|oldest| Duration::from_nanos(now.saturating_sub(oldest))),
                held: held.map(|held| held.replacing(unknown.clone()).aged(young, self.min_age)),
                trail: self.places.trail(&self.heap, usage.stack),
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
        let this = &*self;
        let go_stacks = this.go.iter().flat_map(|((image, _), process)| {
            let (pid, _) = this.images.of(*image);
            process.stacks.iter().map(move |stack| {
                let (trail, end) = (this.places.trail(&this.heap, *stack), this.end(*stack));
                GoStack { pid, stack: *stack, trail, end }
            })
        });
        Snapshot {
            stacks,
            go_stacks: go_stacks.collect(),
            counters: self.heap.counters(),
            folded,
            loss: self.loss,
            unknown_records: self.unknown_records,
            late: self.late,
            unwind_tables: self.unwind_tables.clone(),
        }
    }

    fn end(&self, stack: StackIndex) -> u32 {
        self.places.trails.end(self.heap.stacks().first(stack), self.heap.stacks().end(stack))
    }

    /// What a stack held by blocks of the age that is of interest, from when there could be such: `since` is when its image began
    /// to be recorded.
    fn held(&self, since: u64, stack: StackIndex, times: &Arc<[f64]>) -> Option<Series> {
        self.history.series(stack.index(), times, since.saturating_add(self.min_age))
    }

    /// Frees of blocks from before: with a filter by size, they are mostly of blocks that were left out.
    fn unknown_frees(&self, image: Image) -> Option<Arc<[f32]>> {
        self.history.unknown_frees(image).filter(|_| self.all_sizes)
    }
}
