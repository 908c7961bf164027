//! The heap of each image of a traced process, from events: which blocks are outstanding, and what each stack holds.
//!
//! Plain values: no I/O, no clock (times come with the events), no thread. The rules of truth that concern one process
//! live here and in the BPF programs; CONTRIBUTING.md lists the test of each.

mod blocks;
mod books;
mod footprint;
mod history;
mod last_frees;
mod merge;
mod process;
mod recycle;
mod stacks;
mod trend;
mod view;
mod weights;
mod young;

use std::ops::Range;

use hashbrown::HashMap;

pub use self::{
    books::Counters,
    history::{History, REPLACED, Series},
    stacks::{KnownStacks, MAX_STACKS, StackIndex, StackKind, Stacks},
    view::{HeapView, StackUsage},
};
use self::{
    books::{Books, Room},
    process::ProcessHeap,
    view::{Left, is_of_age},
    weights::Weights,
    young::Young,
};
use crate::{
    cow::Chunks,
    event::{Event, Frames, Image, Origin},
    profile::Values,
};

/// All heaps of one trace.
pub struct Heap {
    processes: HashMap<Image, ProcessHeap>,
    /// What images that have ended held.
    left: Chunks<Option<Box<Left>>>,
    stacks: Stacks,
    usage: Chunks<Values>,
    room: Room,
    weights: Weights,
    /// Blocks that the BPF side is to forget, where it keeps those that are outstanding.
    gone: Option<Vec<(Image, u64)>>,
    /// What is held by blocks that are too young to be of interest, if some are.
    young: Option<Young>,
    /// Blocks at least this old when frees were lost without a trace may have been freed.
    uncertain_until: Option<u64>,
    /// Whether no free is seen at present.
    blind: bool,
    /// Of images that are not kept any more.
    counters: Counters,
}

impl Heap {
    /// An empty heap that keeps at most `max_stacks` distinct stacks.
    pub fn new(max_stacks: usize) -> Self {
        Self {
            processes: HashMap::new(),
            left: Chunks::default(),
            stacks: Stacks::new(max_stacks),
            usage: Chunks::default(),
            room: Room { taken: 0, most: u64::MAX },
            weights: Weights::default(),
            gone: None,
            young: None,
            uncertain_until: None,
            blind: false,
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

    /// The same of allocations of which only samples are recorded, so many bytes apart on average.
    pub fn with_samples(self, mean: Option<u64>) -> Self {
        let Some(mean) = mean else { return self };
        Self { weights: Weights::sampled(mean), gone: Some(Vec::new()), ..self }
    }

    /// The blocks of images that were dropped, or are not recorded, since this was last asked, where only samples are recorded.
    pub fn take_gone(&mut self) -> Vec<(Image, u64)> {
        self.gone.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// A block is of an image that is not recorded.
    pub fn disown(&mut self, image: Image, addr: u64) {
        if let Some(gone) = &mut self.gone {
            gone.push((image, addr));
        }
    }

    /// Takes one event in.
    #[inline]
    pub fn apply(&mut self, origin: Origin, event: Event<'_>) {
        let process = self.processes.entry(origin.image).or_insert_with(|| ProcessHeap::new(origin.image));
        process.counters.events += 1;
        let Self { stacks, usage, room, young, weights, .. } = self;
        let mut books = Books { stacks, usage, room, weights: *weights, young };
        match event {
            Event::Alloc(block) => process.alloc(origin.tid, block, &mut books),
            Event::Free(addr) => process.free(origin.tid, addr, &mut books),
            Event::ReallocTake(addr) => process.take(origin.tid, origin.slot, addr, &mut books),
            Event::ReallocDone(block) => process.realloc_done(origin.tid, origin.slot, block, &mut books),
            Event::ReallocFailed(_) => process.put_back(origin.tid, origin.slot, &mut books),
            Event::ReallocFreed(_) => process.realloc_freed(origin.tid, origin.slot, &mut books),
            Event::Part { addr, size } => process.is_part(addr, size, &mut books),
            Event::Stack { id, frames, end } => books.stacks.define(origin.image, id, frames, end),
            // Objects of Go, files and what stacks are found in are kept elsewhere.
            Event::Began(_) | Event::Ended { .. } | Event::SharerEnded | Event::GoSample(_) => {}
            Event::UnknownFile(_) | Event::Loaded(..) | Event::StackRest(_) | Event::Remapping(_) => {}
            Event::HeapEnded(time) => process.frees_lost_without_trace(time),
            Event::ThreadExit { alone } => process.thread_exit(origin.tid, alone, &mut books),
        }
    }

    /// Learns what a stack id stands for from an image of which nothing else is kept: others have the same stack.
    pub fn define(&mut self, image: Image, id: u64, frames: Frames<'_>, end: u32) {
        self.stacks.define(image, id, frames, end);
    }

    /// Learns what follows the places of a stack, and how it ends.
    pub fn lengthen(&mut self, stack: StackIndex, places: &[u64], end: u32) {
        self.stacks.lengthen(stack, places, end);
    }

    /// A free that was lost at `time`, found in the set of lost frees. All events from before that time must have been
    /// applied.
    pub fn apply_lost_free(&mut self, image: Image, addr: u64, time: u64) {
        let Self { processes, stacks, usage, room, young, weights, .. } = self;
        let Some(process) = processes.get_mut(&image) else { return };
        process.lost_free(addr, time, &mut Books { stacks, usage, room, weights: *weights, young });
    }

    /// An image begins as a copy of another one: its process was forked.
    pub fn inherit(&mut self, image: Image) {
        self.processes.insert(image, ProcessHeap::inheriting(image));
    }

    /// Drops what an image held: its process has become another program.
    pub fn forget(&mut self, image: Image) {
        let counters = self.remove(image);
        self.counters += counters;
    }

    /// Drops an image as if it had never been; what went through it is counted no more, and given back.
    pub fn remove(&mut self, image: Image) -> Counters {
        let Self { processes, stacks, usage, room, young, weights, gone, .. } = self;
        let Some(mut process) = processes.remove(&image) else { return Counters::default() };
        let counters = process.counters;
        if let Some(gone) = gone {
            process.outstanding().for_each(|block, _| gone.push((image, block.addr)));
        }
        process.forget_all(&mut Books { stacks, usage, room, weights: *weights, young });
        counters
    }

    /// An image has ended at `now`: what its stacks held by blocks of at least `min_age` is kept, its blocks are not.
    pub fn end(&mut self, image: Image, now: u64, min_age: u64) {
        let Some(mut process) = self.processes.remove(&image) else { return };
        self.counters += process.counters;
        let uncertain_until = self.uncertain_until();
        let Self { left, room, weights, gone, young, .. } = self;
        process.outstanding().for_each(|block, ambiguous| {
            room.taken -= 1;
            if let Some(gone) = gone {
                gone.push((image, block.addr));
            }
            if let Some(young) = young {
                young.end(&block, weights.of(&block).bytes);
            }
            if is_of_age(&block, now, min_age) {
                let left = left.at(block.stack.index()).get_or_insert_default();
                left.add(&block, now, *weights, ambiguous, uncertain_until);
                left.images = 1;
            }
        });
    }

    /// Frees were lost, up to `time`, and not even their addresses are known: all blocks from before are uncertain.
    pub fn frees_lost_without_trace(&mut self, time: u64) {
        self.uncertain_until = self.uncertain_until.max(Some(time));
    }

    /// No free is seen from now on: all blocks are uncertain.
    pub fn frees_are_unseen(&mut self) {
        self.blind = true;
    }

    /// Frees are seen again since this time: those that were lost until then are as others that have left no trace.
    pub fn frees_are_seen(&mut self, since: u64) {
        self.blind = false;
        self.frees_lost_without_trace(since);
    }

    /// What is older, or as old, may have been freed.
    fn uncertain_until(&self) -> Option<u64> {
        if self.blind { Some(u64::MAX) } else { self.uncertain_until }
    }

    /// Frees of an image were not seen, up to `time`: all its blocks from before are uncertain.
    pub fn frees_of_lost_without_trace(&mut self, image: Image, time: u64) {
        if let Some(process) = self.processes.get_mut(&image) {
            process.frees_lost_without_trace(time);
        }
    }

    /// All that is held now, to be looked at by whoever has the time.
    pub fn view(&mut self) -> HeapView {
        let uncertain_until = self.uncertain_until();
        HeapView {
            processes: self.processes.iter_mut().map(|(image, process)| (*image, process.outstanding())).collect(),
            left: self.left.share(),
            stacks: self.stacks.share(),
            usage: self.usage.share(),
            weights: self.weights,
            uncertain_until,
        }
    }

    /// What every stack holds at `now`, in no order, but for blocks that are younger than `min_age` nanoseconds.
    #[cfg(test)]
    fn usage(&mut self, now: u64, min_age: u64) -> Vec<StackUsage> {
        self.view().usage_at(|_| now, min_age)
    }

    /// Bytes of all outstanding blocks of an image.
    pub fn held(&self, image: Image) -> u64 {
        self.processes.get(&image).map_or(0, ProcessHeap::held)
    }

    /// How many bytes of each of these parts of an image's memory its blocks have been in, outstanding or not, to 64 KiB, or to
    /// huge pages.
    pub fn covered(&self, image: Image, ranges: &[Range<u64>], huge_pages: bool) -> Vec<u64> {
        let process = self.processes.get(&image);
        ranges.iter().map(|range| process.map_or(0, |process| process.covered(range, huge_pages))).collect()
    }

    /// What an image had mapped in `range` is not there any more: what comes there is no allocator's because blocks were there once.
    pub fn was_unmapped(&mut self, image: Image, range: &Range<u64>) {
        if let Some(process) = self.processes.get_mut(&image) {
            process.was_unmapped(range);
        }
    }

    /// How many blocks are outstanding.
    pub fn blocks(&self) -> u64 {
        self.room.taken
    }

    /// Forgets the places of a stack, which are kept elsewhere from now on.
    pub fn placed(&mut self, stack: StackIndex) {
        self.stacks.placed(stack);
    }

    /// Forgets the places of a stack in all processes; amounts are kept: [`StackKind::Folded`].
    pub fn fold(&mut self, stack: StackIndex) {
        self.stacks.fold(stack);
    }

    /// Amounts of a stack, of blocks of every age.
    pub fn values(&self, stack: StackIndex) -> Values {
        self.weights.whole(self.usage.get(stack.index()).copied().unwrap_or_default())
    }

    /// Takes a look at what is held at `now`, for growth: by blocks of the age that the heap was made with.
    pub fn look(&mut self, now: u64, history: &mut History) {
        let unknown = self.processes.iter().map(|(image, process)| (*image, process.unknown_frees()));
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
    pub fn intern(&mut self, image: Image, id: u64) -> StackIndex {
        self.stacks.intern(image, id)
    }

    /// What stands for stacks of an image that there is no room for.
    pub fn stand_in(&mut self, image: Image) -> StackIndex {
        self.stacks.stand_in(image)
    }

    /// The stacks.
    pub fn stacks(&self) -> &Stacks {
        &self.stacks
    }

    /// What went through.
    pub fn counters(&self) -> Counters {
        let mut sum = self.counters;
        self.processes.values().for_each(|process| sum += process.counters);
        sum
    }
}

#[cfg(test)]
mod tests;
