//! The heap of one image: the rules by which its events begin and end blocks.

use std::{ops::Range, sync::Arc};

use hashbrown::{HashMap, HashSet};

use super::{
    blocks::{Block, Blocks, Shared, TICK},
    books::{Books, Counters},
    footprint::Footprint,
    last_frees::{Freed, HABIT, InnerFrees, LastFrees},
    stacks::StackIndex,
};
use crate::{
    cow::Part,
    event::{Allocation, Image},
    profile::Values,
};

/// How much later than it says a block may have been allocated, nanoseconds: its thread reads the clock once per timer tick
/// (10 ms at 100 Hz, the slowest that Linux has), and what is stored is rounded down.
const RESOLUTION: u64 = 10_000_000 + 2 * TICK;

/// How long the headers are that allocators of a program's own put before each block, bytes, where they have their memory from another one.
const HEADERS: [u64; 2] = [16, 8];
/// What runs of small blocks of equal size begin at, bytes.
const PAGE: u64 = 4096;

/// Threads whose last free is remembered, by the low bits of the thread id.
const LAST_FREES: usize = 256;

pub(super) struct ProcessHeap {
    image: Image,
    blocks: Blocks,
    /// Bytes of all outstanding blocks.
    held: u64,
    footprint: Footprint,
    /// Old blocks of reallocs in flight, by thread and call slot: neither freed nor kept until the outcome is known.
    suspended: HashMap<(u32, u8), Block>,
    /// Blocks that were allocated within [`RESOLUTION`] of a lost free of their address: nobody knows which came first.
    ambiguous: Part<HashSet<u64>>,
    /// Blocks from before may have been freed unseen.
    uncertain_until: Option<u64>,
    /// The last frees of each thread.
    last_frees: Box<[LastFrees; LAST_FREES]>,
    /// Frees of blocks that were not known, and how many of those were of what lies right below a block.
    unknown_frees: u64,
    below: u64,
    inner: InnerFrees,
    /// Whether it began as a copy of another one, whose blocks it has, too, but not here.
    inherits: bool,
    pub(super) counters: Counters,
}

/// What is outstanding at one moment.
pub(super) struct Outstanding {
    blocks: Shared,
    suspended: Vec<Block>,
    ambiguous: Arc<HashSet<u64>>,
    uncertain_until: Option<u64>,
}

impl Outstanding {
    /// Calls `f` with every block and whether a lost free may have ended it.
    pub(super) fn for_each(self, mut f: impl FnMut(Block, bool)) {
        let Self { blocks, suspended, ambiguous, uncertain_until } = self;
        let may_be_gone = |block: &Block| uncertain_until.is_some_and(|until| block.time <= until);
        blocks.for_each(|block| {
            f(block, may_be_gone(&block) || !ambiguous.is_empty() && ambiguous.contains(&block.addr));
        });
        suspended.into_iter().for_each(|block| f(block, may_be_gone(&block)));
    }
}

/// Most blocks that a thread's cache holds, and the cache itself: of glibc's up to 2.41 with its default of 7 for each of 64
/// sizes, and those of later ones.
const MOST_CACHED: u32 = 76 * 16 + 1;

impl ProcessHeap {
    pub(super) fn new(image: Image) -> Self {
        Self {
            image,
            blocks: Blocks::default(),
            held: 0,
            footprint: Footprint::default(),
            suspended: HashMap::new(),
            ambiguous: Part::default(),
            uncertain_until: None,
            last_frees: Box::new([LastFrees::default(); LAST_FREES]),
            unknown_frees: 0,
            below: 0,
            inner: InnerFrees::default(),
            inherits: false,
            counters: Counters::default(),
        }
    }

    /// One that begins as a copy of another one.
    pub(super) fn inheriting(image: Image) -> Self {
        Self { inherits: true, ..Self::new(image) }
    }

    /// How many frees of blocks there were that were not known.
    pub(super) fn unknown_frees(&self) -> u64 {
        self.unknown_frees
    }

    /// Drops everything, with what the books have of it: the process has become another program.
    pub(super) fn forget_all(self, books: &mut Books<'_>) {
        books.room.taken -= (self.blocks.len() + self.suspended.len()) as u64;
        let own: Vec<StackIndex> = books.stacks.of(self.image).collect();
        for stack in &own {
            if let Some(values) = books.usage.get_mut(stack.index()) {
                *values = Values::default();
            }
        }
        if let Some(young) = books.young {
            young.drop_stacks(&own);
        }
    }

    #[inline]
    pub(super) fn alloc(&mut self, tid: u32, new: Allocation, books: &mut Books<'_>) {
        self.does_something_else(tid);
        self.may_free_anew(tid);
        if !books.has_room() {
            self.counters.refused_blocks += 1;
            return self.forget(new.addr, books);
        }
        let stack = books.stacks.intern(self.image, new.stack);
        let block = Block { addr: new.addr, size: new.size, stack, time: new.time };
        self.held = self.held.saturating_add(books.begin(&block));
        let reach = books.weights.reach(new.size);
        let size = new.size.saturating_add(2 * reach);
        self.footprint.add(new.addr.saturating_sub(reach), size);
        self.unmark(new.addr);
        if let Some(old) = self.blocks.insert(block) {
            // Its memory is the new block's.
            self.held = self.held.saturating_sub(books.end(&old));
            self.counters.missed_frees += 1;
        }
    }

    /// Ends the block at an address that another one has now, of which nothing else is kept.
    fn forget(&mut self, addr: u64, books: &mut Books<'_>) {
        self.unmark(addr);
        if let Some(old) = self.blocks.remove(addr) {
            self.held = self.held.saturating_sub(books.end(&old));
            self.counters.missed_frees += 1;
        }
    }

    #[inline]
    pub(super) fn free(&mut self, tid: u32, addr: u64, books: &mut Books<'_>) {
        let before = self.freed_before(tid, addr);
        let is_repeated = before.is_some_and(|before| before.addr == addr);
        // One function that frees has jumped to another: no other block can be there by now.
        let is_same_call = is_repeated && before.is_some_and(|before| before.is_settled);
        let mut of = Freed::Other;
        if let Some(block) = self.blocks.remove(addr) {
            self.end(block, books);
            self.unmark(addr);
            self.inner.of_known += 1;
            of = Freed::Known;
        } else if self.free_suspended(addr, books) {
            of = Freed::Known;
        } else if !is_same_call && self.free_from_below(addr, books) {
            self.counters.missed_frees += 1;
            // The next one of this address may be of another block there, which another thread has allocated.
            self.last_frees[tid as usize % LAST_FREES].is_settled = false;
        } else if is_repeated {
            of = before.map_or(of, |before| before.of);
        } else {
            let below = before.map_or(0, |before| before.distance_to(addr));
            if below == 0 || below != self.inner.distance || !self.inner.is_habit() {
                // Of a block that is not known it may be the next one down of a row of such.
                let below = if before.is_some_and(|before| before.of == Freed::Known) { below } else { 0 };
                return self.free_unknown(tid, below);
            }
            self.inner.times += 1;
        }
        self.does_something_else(tid);
        self.last_frees[tid as usize % LAST_FREES].of = of;
    }

    /// A block is freed that is not known, so far below a known one that was freed right before by the same thread, bytes; 0: by none.
    fn free_unknown(&mut self, tid: u32, below: u16) {
        self.count_unknown();
        let last = &mut self.last_frees[tid as usize % LAST_FREES];
        last.unknown += 1;
        (last.of, last.below) = (Freed::Unknown, below);
    }

    /// realloc was entered: the old block waits for the outcome.
    pub(super) fn take(&mut self, tid: u32, slot: u8, addr: u64, books: &mut Books<'_>) {
        // A realloc that never returned (longjmp) did not end its block either. One in another slot may be running: threads have several
        // stacks.
        self.put_back(tid, slot, books);
        let repeated = self.freed_before(tid, addr).is_some_and(|before| before.addr == addr);
        self.does_something_else(tid);
        if let Some(block) = self.blocks.remove(addr) {
            self.unmark(addr);
            self.suspended.insert((tid, slot), block);
        } else if let Some(block) = self.take_suspended(addr) {
            self.suspended.insert((tid, slot), block);
        } else if !repeated {
            self.count_unknown();
        }
    }

    pub(super) fn realloc_done(&mut self, tid: u32, slot: u8, new: Allocation, books: &mut Books<'_>) {
        self.realloc_freed(tid, slot, books);
        self.alloc(tid, new, books);
    }

    pub(super) fn realloc_freed(&mut self, tid: u32, slot: u8, books: &mut Books<'_>) {
        if let Some(old) = self.suspended.remove(&(tid, slot)) {
            self.end(old, books);
        }
    }

    /// The block of so many bytes at an address is a part of another one, which is about to be told: it was none of its own. If it has
    /// ended since, there is another one, or none.
    pub(super) fn is_part(&mut self, addr: u64, size: u64, books: &mut Books<'_>) {
        if self.blocks.get(addr).is_some_and(|block| block.size == size)
            && let Some(block) = self.blocks.remove(addr)
        {
            self.held = self.held.saturating_sub(books.take_back(&block));
            self.unmark(addr);
        }
    }

    /// The realloc failed: its old block lives on, with its age and its stack.
    pub(super) fn put_back(&mut self, tid: u32, slot: u8, books: &mut Books<'_>) {
        if let Some(old) = self.suspended.remove(&(tid, slot))
            && let Some(other) = self.blocks.insert(old)
        {
            self.held = self.held.saturating_sub(books.end(&other));
            self.counters.missed_frees += 1;
        }
    }

    /// A thread has ended. The last thing that glibc does for one that ends by itself (`alone`) is to free what is in its cache, by the
    /// function that everybody frees by: blocks that were freed before, and the cache, which nobody saw it allocate.
    pub(super) fn thread_exit(&mut self, tid: u32, alone: bool, books: &mut Books<'_>) {
        self.put_all_back(tid, books);
        let last = std::mem::take(&mut self.last_frees[tid as usize % LAST_FREES]);
        if last.tid == tid && alone {
            self.uncount_unknown(u64::from(last.unknown.min(MOST_CACHED)));
        }
    }

    /// A free that was not told in its turn. Blocks that are younger than it are others, at the same address.
    pub(super) fn lost_free(&mut self, addr: u64, time: u64, books: &mut Books<'_>) {
        if self.suspended.values().any(|block| block.addr == addr && block.time <= time) {
            self.free_suspended(addr, books);
        }
        match self.blocks.get(addr) {
            Some(block) if block.time + RESOLUTION < time => {
                self.blocks.remove(addr);
                self.unmark(addr);
                self.end(block, books);
            }
            Some(block) if block.time <= time => {
                self.ambiguous.get_mut().insert(addr);
            }
            _ => {}
        }
    }

    /// Bytes of all outstanding blocks.
    pub(super) fn held(&self) -> u64 {
        self.held
    }

    /// What was mapped in `range` before is not any more.
    pub(super) fn was_unmapped(&mut self, range: &Range<u64>) {
        self.footprint.clear(range);
    }

    /// Bytes of `range` that blocks have been in, outstanding or not, or in the same huge page.
    pub(super) fn covered(&self, range: &Range<u64>, huge_pages: bool) -> u64 {
        self.footprint.covered(range, huge_pages)
    }

    /// Frees were not seen, up to `time`.
    pub(super) fn frees_lost_without_trace(&mut self, time: u64) {
        self.uncertain_until = self.uncertain_until.max(Some(time));
    }

    /// All that is outstanding now.
    pub(super) fn outstanding(&mut self) -> Outstanding {
        Outstanding {
            blocks: self.blocks.share(),
            suspended: self.suspended.values().copied().collect(),
            ambiguous: self.ambiguous.share(),
            uncertain_until: self.uncertain_until,
        }
    }

    #[inline]
    fn end(&mut self, block: Block, books: &mut Books<'_>) {
        self.held = self.held.saturating_sub(books.end(&block));
        self.footprint.free(block.addr, block.size);
    }

    /// The block of a realloc that never returned (longjmp), by whichever thread.
    fn take_suspended(&mut self, addr: u64) -> Option<Block> {
        let (call, _) = self.suspended.iter().find(|(_, block)| block.addr == addr)?;
        let call = *call;
        self.suspended.remove(&call)
    }

    /// A thread has ended, and none of its reallocs will return.
    fn put_all_back(&mut self, tid: u32, books: &mut Books<'_>) {
        if self.suspended.is_empty() {
            return;
        }
        let unresolved: Vec<(u32, u8)> = self.suspended.keys().copied().filter(|(other, _)| *other == tid).collect();
        for (tid, slot) in unresolved {
            self.put_back(tid, slot, books);
        }
    }

    /// A thread does something else than to free an unknown block.
    #[inline]
    fn does_something_else(&mut self, tid: u32) {
        let last = &mut self.last_frees[tid as usize % LAST_FREES];
        if last.tid != tid {
            return;
        }
        let below = std::mem::take(&mut last.below);
        (last.unknown, last.of) = (0, Freed::Other);
        if below != 0 {
            // It was not the first one of those that end the thread.
            let others = self.inner.learn(below);
            self.uncount_unknown(others);
        }
    }

    /// Takes down that a thread frees an address: its last free, if that is known. Of the same address, it is this one: `operator delete` that
    /// jumps to `free`, both probed.
    #[inline]
    fn freed_before(&mut self, tid: u32, addr: u64) -> Option<LastFrees> {
        let last = &mut self.last_frees[tid as usize % LAST_FREES];
        if last.tid == tid {
            let before = *last;
            (last.addr, last.is_settled) = (addr, true);
            return Some(before);
        }
        *last = LastFrees { tid, addr, is_settled: true, ..LastFrees::default() };
        None
    }

    /// A thread has allocated: if it frees the address again that it freed last, another block may be there.
    #[inline]
    fn may_free_anew(&mut self, tid: u32) {
        let last = &mut self.last_frees[tid as usize % LAST_FREES];
        last.is_settled &= last.tid != tid;
    }

    /// Ends a block that a realloc holds: the allocator's realloc calls its free, or it never returned (longjmp) and the
    /// program has freed the block since. Whether there was one.
    fn free_suspended(&mut self, addr: u64, books: &mut Books<'_>) -> bool {
        let Some(key) = self.suspended.iter().find(|(_, block)| block.addr == addr).map(|(key, _)| *key) else {
            return false;
        };
        self.realloc_freed(key.0, key.1, books);
        true
    }

    /// Ends a block that lies so close above the address that both are one: an allocator that keeps a header before each block has been
    /// inlined where it takes blocks back, and what is seen is that it gives back its own. Whether there was one.
    fn free_from_below(&mut self, addr: u64, books: &mut Books<'_>) -> bool {
        // Hardly an allocator has two blocks as close, unless both are as small, or the upper one begins a page. But one may, as musl's does in
        // places, where a block from before is freed: so it has to be a habit.
        let is_one = |above: &Block, header: u64| above.size > header && !above.addr.is_multiple_of(PAGE);
        let above = HEADERS.iter().find_map(|header| {
            let above = self.blocks.get(addr.checked_add(*header)?)?;
            is_one(&above, *header).then_some(above.addr)
        });
        let Some(above) = above else { return false };
        self.below += 1;
        if self.below < HABIT || self.below.saturating_mul(2) < self.unknown_frees {
            return false;
        }
        let Some(block) = self.blocks.remove(above) else { return false };
        self.unmark(block.addr);
        self.end(block, books);
        true
    }

    fn count_unknown(&mut self) {
        self.unknown_frees += 1;
        *self.unknown() += 1;
    }

    /// So many that were counted were not of blocks from before.
    fn uncount_unknown(&mut self, frees: u64) {
        self.unknown_frees = self.unknown_frees.saturating_sub(frees);
        *self.unknown() = self.unknown().saturating_sub(frees);
    }

    /// Where frees of blocks that are not known are counted.
    fn unknown(&mut self) -> &mut u64 {
        if self.inherits { &mut self.counters.inherited_frees } else { &mut self.counters.unmatched_frees }
    }

    #[inline]
    fn unmark(&mut self, addr: u64) {
        let ambiguous = self.ambiguous.get();
        if !ambiguous.is_empty() && ambiguous.contains(&addr) {
            self.ambiguous.get_mut().remove(&addr);
        }
    }
}
