//! The heap of each traced process, from events: which blocks are outstanding, and what each stack holds.
//!
//! Plain values: no I/O, no clock (times come with the events), no thread. The rules of truth that concern one process
//! live here and in the BPF programs; CONTRIBUTING.md lists the test of each.

mod blocks;
mod footprint;
mod history;
mod process;
mod stacks;
mod trend;
mod young;

use std::ops::Range;

use hashbrown::HashMap;

use self::{blocks::Block, process::ProcessHeap, young::Young};
pub use self::{
    history::{History, REPLACED, Series},
    stacks::{MAX_STACKS, StackIndex, StackKind, Stacks},
};
use crate::{
    event::{Event, Origin, Pid},
    profile::Values,
};

/// All heaps of one trace.
pub struct Heap {
    processes: HashMap<Pid, ProcessHeap>,
    stacks: Stacks,
    usage: Vec<Values>,
    room: Room,
    /// What is held by blocks that are too young to be of interest, if some are.
    young: Option<Young>,
    /// Blocks at least this old when frees were lost without a trace may have been freed.
    uncertain_until: Option<u64>,
    counters: Counters,
}

/// What went through the heap, and what did not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Events taken in.
    pub events: u64,
    /// Frees of blocks that were not known.
    pub unmatched_frees: u64,
    /// Blocks whose address was handed out again without a free.
    pub missed_frees: u64,
    /// Blocks that there was no room for.
    pub refused_blocks: u64,
}

/// How many blocks there are, and may be.
struct Room {
    taken: u64,
    most: u64,
}

/// What one stack holds at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StackUsage {
    /// Which stack.
    pub stack: StackIndex,
    /// Its amounts.
    pub values: Values,
    /// Outstanding bytes that a lost free may have ended.
    pub uncertain_bytes: u64,
    /// Time of its oldest outstanding block, nanoseconds of CLOCK_MONOTONIC.
    pub oldest: Option<u64>,
}

impl Heap {
    /// An empty heap that keeps at most `max_stacks` distinct stacks.
    pub fn new(max_stacks: usize) -> Self {
        Self {
            processes: HashMap::new(),
            stacks: Stacks::new(max_stacks),
            usage: Vec::new(),
            room: Room { taken: 0, most: u64::MAX },
            young: None,
            uncertain_until: None,
            counters: Counters::default(),
        }
    }

    /// The same, with room for so many outstanding blocks at a time. What is allocated beyond them is counted, not recorded.
    pub fn with_room(max_stacks: usize, max_blocks: u64) -> Self {
        Self { room: Room { taken: 0, most: max_blocks }, ..Self::new(max_stacks) }
    }

    /// The same, to be asked what is held by blocks of at least this age (nanoseconds) at any time.
    pub fn with_min_age(self, min_age: u64) -> Self {
        Self { young: (min_age > 0).then(|| Young::new(min_age)), ..self }
    }

    /// Takes one event in.
    #[inline]
    pub fn apply(&mut self, origin: Origin, event: Event<'_>) {
        self.counters.events += 1;
        let process =
            self.processes.entry(origin.pid).or_insert_with(|| ProcessHeap::new(origin.pid, origin.generation));
        let Self { stacks, usage, room, young, counters, .. } = self;
        let mut books = Books { stacks, usage, room, young, counters };
        if process.generation() != origin.generation {
            // The exec itself may have been lost; its records cannot be mixed up all the same.
            process.reset(origin.generation, &mut books);
        }
        match event {
            Event::Alloc(block) => process.alloc(origin.tid, block, &mut books),
            Event::Free(addr) => process.free(origin.tid, addr, &mut books),
            Event::ReallocTake(addr) => process.take(origin.tid, origin.slot, addr, &mut books),
            Event::ReallocDone(block) => process.realloc_done(origin.tid, origin.slot, block, &mut books),
            Event::ReallocFailed(_) => process.put_back(origin.tid, origin.slot, &mut books),
            Event::ReallocFreed(_) => process.realloc_freed(origin.tid, origin.slot, &mut books),
            Event::Stack { id, frames, end } => books.stacks.define(origin.pid, id, frames, end),
            // A generation that was already taken over above: nothing is left to drop. Objects of Go are kept elsewhere.
            Event::Exec { .. } | Event::GoSample(_) => {}
            Event::ThreadExit { .. } => process.thread_exit(origin.tid, &mut books),
        }
    }

    /// A free that was lost at `time`, found in the set of lost frees. All events from before that time must have been
    /// applied.
    pub fn apply_lost_free(&mut self, pid: Pid, generation: u8, addr: u64, time: u64) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.generation() == generation {
            let Self { stacks, usage, room, young, counters, .. } = self;
            let mut books = Books { stacks, usage, room, young, counters };
            process.lost_free(addr, time, &mut books);
        }
    }

    /// Frees were lost, up to `time`, and not even their addresses are known: all blocks from before are uncertain.
    pub fn frees_lost_without_trace(&mut self, time: u64) {
        self.uncertain_until = self.uncertain_until.max(Some(time));
    }

    /// What every stack holds, in no order. Blocks younger than `min_age` nanoseconds at `now` are left out of the
    /// outstanding amounts.
    pub fn usage(&self, now: u64, min_age: u64) -> Vec<StackUsage> {
        let mut all: Vec<StackUsage> = self
            .usage
            .iter()
            .enumerate()
            .map(|(index, values)| StackUsage {
                stack: StackIndex::new(index),
                values: Values { outstanding_bytes: 0, outstanding_blocks: 0, ..*values },
                uncertain_bytes: 0,
                oldest: None,
            })
            .collect();
        let youngest = now.saturating_sub(min_age);
        for process in self.processes.values() {
            process.for_each_block(|block, ambiguous| {
                if min_age > 0 && block.time > youngest {
                    return;
                }
                let Some(usage) = all.get_mut(block.stack.index()) else { return };
                usage.values.outstanding_bytes = usage.values.outstanding_bytes.saturating_add(block.size);
                usage.values.outstanding_blocks += 1;
                usage.oldest = Some(usage.oldest.map_or(block.time, |oldest| oldest.min(block.time)));
                if ambiguous || self.uncertain_until.is_some_and(|until| block.time <= until) {
                    usage.uncertain_bytes = usage.uncertain_bytes.saturating_add(block.size);
                }
            });
        }
        all.retain(|usage| usage.values.allocated_blocks > 0);
        all
    }

    /// Bytes of all outstanding blocks of a process.
    pub fn held(&self, pid: Pid) -> u64 {
        self.processes.get(&pid).map_or(0, ProcessHeap::held)
    }

    /// How many bytes of each of these parts of a process's memory its blocks have been in, outstanding or not, to 64 KiB.
    pub fn covered(&self, pid: Pid, ranges: &[Range<u64>]) -> Vec<u64> {
        let process = self.processes.get(&pid);
        ranges.iter().map(|range| process.map_or(0, |process| process.covered(range))).collect()
    }

    /// How many blocks are outstanding.
    pub fn blocks(&self) -> u64 {
        self.room.taken
    }

    /// Forgets the addresses of a stack that are kept elsewhere from now on.
    pub fn placed(&mut self, stack: StackIndex) {
        self.stacks.placed(stack);
    }

    /// Forgets the addresses of a stack, which keeps its amounts: [`StackKind::Folded`].
    pub fn fold(&mut self, stack: StackIndex) {
        self.stacks.fold(stack);
    }

    /// Amounts of a stack, of blocks of every age.
    pub fn values(&self, stack: StackIndex) -> Values {
        self.usage.get(stack.index()).copied().unwrap_or_default()
    }

    /// Takes a look at what is held at `now`, for growth: by blocks of the age that the heap was made with.
    pub fn look(&mut self, now: u64, history: &mut History) {
        let unknown = self.processes.iter().map(|(pid, process)| (*pid, process.unknown_frees()));
        match &mut self.young {
            None => history.look(now, self.usage.iter().map(|values| values.outstanding_bytes), unknown),
            Some(young) => {
                let mut held: Vec<u64> = self.usage.iter().map(|values| values.outstanding_bytes).collect();
                young.subtract_from(&mut held, now);
                history.look(now, held.into_iter(), unknown);
            }
        }
    }

    /// Index of the stack with this id, known already or not.
    pub fn intern(&mut self, pid: Pid, id: u64) -> StackIndex {
        self.stacks.intern(pid, id)
    }

    /// The stacks.
    pub fn stacks(&self) -> &Stacks {
        &self.stacks
    }

    /// What went through.
    pub fn counters(&self) -> Counters {
        self.counters
    }
}

/// The parts of the heap that all processes share.
struct Books<'a> {
    stacks: &'a mut Stacks,
    usage: &'a mut Vec<Values>,
    room: &'a mut Room,
    young: &'a mut Option<Young>,
    counters: &'a mut Counters,
}

impl Books<'_> {
    #[inline]
    fn usage(&mut self, stack: StackIndex) -> &mut Values {
        let index = stack.index();
        if index >= self.usage.len() {
            self.usage.resize(index + 1, Values::default());
        }
        &mut self.usage[index]
    }

    /// Whether there is room for another block.
    #[inline]
    fn has_room(&self) -> bool {
        self.room.taken < self.room.most
    }

    #[inline]
    fn begin(&mut self, block: &Block) {
        self.room.taken += 1;
        let size = block.size;
        let usage = self.usage(block.stack);
        // An allocator of the target's own may claim to have given more than there is.
        usage.outstanding_bytes = usage.outstanding_bytes.saturating_add(size);
        usage.outstanding_blocks += 1;
        usage.allocated_bytes = usage.allocated_bytes.saturating_add(size);
        usage.allocated_blocks += 1;
        if let Some(young) = self.young {
            young.begin(block);
        }
    }

    #[inline]
    fn end(&mut self, block: &Block) {
        self.room.taken -= 1;
        let usage = self.usage(block.stack);
        usage.outstanding_bytes = usage.outstanding_bytes.saturating_sub(block.size);
        usage.outstanding_blocks -= 1;
        usage.freed_blocks += 1;
        if let Some(young) = self.young {
            young.end(block);
        }
    }
}

#[cfg(test)]
mod tests;
