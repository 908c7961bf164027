//! Keeping within the bound of memory: stacks of what has ended are given up, and places of stacks forgotten, when there is little room.

use std::time::{Duration, Instant};

use hashbrown::{HashMap, HashSet};

use super::{Collector, block};
use crate::{
    event::Image,
    heap::{Heap, StackIndex, Stacks},
    mapped::{Mapped, MappedUsage},
    memory,
    profile::Values,
};

/// Eighths of the room for stacks that are taken when stacks are given up, and when there is enough room again.
const MANY_STACKS: u64 = 7;
const ENOUGH_STACKS: u64 = 5;
/// Least time between two times that stacks are given up.
const RECYCLE_PAUSE: Duration = Duration::from_secs(1);
/// How many times as long as forgetting places of stacks took the next time waits at least.
const KEEP_REST: u32 = 4;

impl Collector {
    /// Gives up stacks of images that have ended when there is little room for others: those that hold nothing, and if need be all.
    pub(super) fn recycle_stacks(&mut self) {
        let room = self.room_for_stacks();
        if !takes_more(self.heap.stacks(), room, MANY_STACKS) || Instant::now() < self.recycle_next {
            return;
        }
        let of_go: HashSet<Image> = self.go.keys().map(|(image, _)| *image).collect();
        let stacks = self.heap.stacks();
        let has_ended = |image: &Image| self.images.get(*image).is_none() && !of_go.contains(image);
        let mut ended: Vec<Image> = stacks.images().filter(has_ended).collect();
        // The oldest first.
        ended.sort_unstable();
        // Whoever has one of them is to send it again, and what was sent until then is taken in.
        let ids: Vec<u64> = ended.iter().flat_map(|image| stacks.of(*image)).map(|stack| stacks.id(stack)).collect();
        self.events.forget_stacks(ids);
        self.take_in_all();
        let mut freed = Vec::new();
        for all in [false, true] {
            for image in &ended {
                if takes_more(self.heap.stacks(), room, ENOUGH_STACKS) {
                    let heap = &mut self.heap;
                    self.mapped.end(*image, || heap.stand_in(*image));
                    self.mapped.merge(*image, *image, |_| heap.stand_in(*image));
                    freed.extend(self.heap.recycle(*image, all, self.places.pending()));
                }
            }
        }
        self.places.trails.forget(&freed);
        self.history.forget(freed.iter().map(|stack| stack.index()));
        tracing::debug!(freed = freed.len(), "stacks of processes that have ended");
        self.recycle_next = Instant::now() + RECYCLE_PAUSE;
    }

    /// Forgets the addresses of stacks when they take too much memory: of those that hold nothing first, then of those that hold
    /// the least.
    pub(super) fn keep_within_memory(&mut self) {
        let room = self.room_for_stacks();
        let stacks = self.heap.stacks().len() as u64 * memory::STACK;
        let (frames, places) = self.places.trails.size();
        let used = stacks + frames as u64 * memory::FRAME + places as u64 * memory::PLACE;
        let begun = Instant::now();
        if used <= room || begun < self.keep_next {
            return;
        }
        self.forget_places(used, room);
        // All stacks were looked at: whatever came of that, there is more to do.
        self.keep_next = Instant::now() + begun.elapsed() * KEEP_REST;
    }

    /// What stacks may take beside the blocks that there are, bytes.
    fn room_for_stacks(&self) -> u64 {
        self.memory.for_books().saturating_sub(self.heap.blocks() * block(self.min_age))
    }

    /// Forgets places of stacks, which take `used` bytes with all that belongs to them, where there is `room` for so many.
    fn forget_places(&mut self, used: u64, room: u64) {
        let of_go: HashSet<StackIndex> = self.go.values().flat_map(|process| &process.stacks).copied().collect();
        let of_go: HashSet<StackIndex> = of_go.into_iter().map(|stack| self.heap.stacks().first(stack)).collect();
        let mut known: Vec<(StackIndex, usize)> =
            self.places.trails.lengths().filter(|(stack, _)| !of_go.contains(stack)).collect();
        let values = held_by(&self.heap, &self.mapped);
        known.sort_by_cached_key(|(stack, _)| {
            let Values { outstanding_bytes, outstanding_blocks, allocated_bytes, allocated_blocks, .. } =
                values.get(stack).copied().unwrap_or_default();
            // The first block of one that has had none is on its way.
            (outstanding_blocks > 0 || allocated_blocks == 0, outstanding_bytes, allocated_bytes)
        });
        // By a quarter less than there is room for, so that this is not done at once again.
        let mut excess = used - room / 4 * 3;
        let folded: Vec<StackIndex> = known
            .into_iter()
            .take_while(|(_, frames)| {
                let more = excess > 0;
                excess = excess.saturating_sub(*frames as u64 * memory::FRAME);
                more
            })
            .map(|(stack, _)| stack)
            .collect();
        if folded.is_empty() {
            return;
        }
        tracing::debug!(used, room, folded = folded.len(), "stacks take too much memory");
        self.places.trails.forget(&folded);
        folded.iter().for_each(|stack| self.heap.fold(*stack));
        self.events.forget_stacks(self.heap.stacks().ids(&folded.into_iter().collect()));
    }
}

/// What all processes hold by each stack of those that came first, what is mapped included.
fn held_by(heap: &Heap, mapped: &Mapped) -> HashMap<StackIndex, Values> {
    let mut values: HashMap<StackIndex, Values> = HashMap::new();
    for (index, first) in heap.stacks().firsts().enumerate() {
        *values.entry(first).or_default() += heap.values(StackIndex::from_raw(index as u32));
    }
    for MappedUsage { owner, values: mapped, .. } in mapped.usage() {
        *values.entry(heap.stacks().first(owner.stack)).or_default() += Values {
            outstanding_bytes: mapped.bytes,
            outstanding_blocks: mapped.ranges + u64::from(mapped.reserved_bytes > 0),
            allocated_bytes: mapped.mapped_bytes,
            allocated_blocks: mapped.mapped_ranges,
            ..Values::default()
        };
    }
    values
}

/// Whether stacks take so many eighths of what there may be of them, or, by themselves, so many sixteenths of the room for them and their
/// places.
fn takes_more(stacks: &Stacks, room: u64, eighths: u64) -> bool {
    stacks.fill(eighths as usize) || stacks.taken() as u64 * memory::STACK > room / 16 * eighths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Change, Remapping},
        profile::MappedKind,
    };

    #[test]
    fn what_a_stack_has_mapped_is_what_it_holds() {
        let (mut heap, mut mapped) = (Heap::with_room(1 << 10, 1 << 10), Mapped::with_room(1 << 10));
        heap.intern(Image(1), 1);
        let (first, same) = (heap.intern(Image(1), 2), heap.intern(Image(2), 2));
        let remapping = Remapping {
            change: Change::Mapped,
            range: (1 << 20, 3 << 20),
            old: (0, 0),
            kind: MappedKind::Anonymous,
            by_allocator: false,
            reserved: false,
            stack: 2,
            time: 1,
        };
        mapped.apply(Image(1), &remapping, first);
        mapped.apply(Image(2), &Remapping { reserved: true, ..remapping }, same);
        let held = held_by(&heap, &mapped)[&first];
        assert_eq!((held.outstanding_bytes, held.outstanding_blocks, held.allocated_blocks), (2 << 20, 2, 1));
    }

    #[test]
    fn stacks_are_given_up_before_they_take_the_room_of_all_places() {
        let mut heap = Heap::with_room(1 << 20, 1 << 20);
        for id in 0..1_000 {
            heap.intern(Image(1), id);
        }
        let all = 1_000 * memory::STACK;
        for (room, many) in [(2 * all, true), (3 * all, false)] {
            assert_eq!(takes_more(heap.stacks(), room, MANY_STACKS), many, "{room}");
        }
    }
}
