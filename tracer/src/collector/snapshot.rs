//! What is handed out to those who report: what all stacks hold at one moment.

use std::time::Duration;

use tracer_ebpf::Loss;

use crate::{
    event::{Image, Pid},
    heap::{Counters, Series, StackIndex},
    mapped::Owner,
    profile::{Estimate, MappedValues, UnwindTable, Values},
    trails::Sites,
};

/// What all stacks hold at one moment.
pub struct Snapshot {
    /// The moment, nanoseconds of CLOCK_MONOTONIC: when recording ended, once it has.
    pub at: u64,
    /// By stack, in no order.
    pub stacks: Vec<StackSnapshot>,
    /// What was mapped, by stack, in no order; `None` when that is not recorded.
    pub mapped: Option<Vec<MappedSnapshot>>,
    /// Changes of what was mapped, as many as were taken in.
    pub remappings: u64,
    /// Those that there was no room for.
    pub refused_remappings: u64,
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
    /// Images that are told together with others, of which nothing was recorded that should have been.
    pub unheard: u64,
    /// Events of images that were over before it could be seen whether they are wanted.
    pub undecided_events: u64,
    /// What stacks were unwound by.
    pub unwind_tables: Vec<UnwindTable>,
}

/// What one stack has mapped.
pub struct MappedSnapshot {
    /// The process.
    pub pid: Pid,
    /// Its image.
    pub image: Image,
    /// The stack within this trace, and what it has mapped.
    pub owner: Owner,
    /// Amounts.
    pub values: MappedValues,
    /// Age of the oldest of it.
    pub oldest: Option<Duration>,
    /// The stack's addresses.
    pub trail: Trail,
    /// One of [`tracer_ebpf::end`].
    pub end: u32,
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
    /// Bytes and blocks that it holds besides, younger than is asked for.
    pub younger: (u64, u64),
    /// Outstanding bytes that a lost free may have ended.
    pub uncertain_bytes: u64,
    /// Age of the oldest block.
    pub oldest: Option<Duration>,
    /// How what it holds was estimated; `None` where every block was recorded.
    pub estimate: Option<Estimate>,
    /// How many images hold something by it: several where they have ended and are told as one.
    pub holders: u64,
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
        self.younger.0 = self.younger.0.saturating_add(other.younger.0);
        self.younger.1 = self.younger.1.saturating_add(other.younger.1);
        self.uncertain_bytes = self.uncertain_bytes.saturating_add(other.uncertain_bytes);
        self.oldest = self.oldest.max(other.oldest);
        Estimate::absorb_into(&mut self.estimate, other.estimate);
        // They may be the same ones.
        self.holders = self.holders.max(other.holders);
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
