//! Keeping within the bound of memory: stacks of what has ended are given up, and places of stacks forgotten, when there is little room.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hashbrown::{HashMap, HashSet};

use super::{Collector, block};
use crate::{
    event::Image,
    heap::{Heap, StackIndex, Stacks},
    mapped::{Mapped, MappedUsage},
    memory,
    profile::Values,
    trails::{Site, Sites, Trails},
};

/// Eighths of the room for stacks that are taken when stacks are given up, and when there is enough room again.
const MANY_STACKS: u64 = 7;
const ENOUGH_STACKS: u64 = 5;
/// Share of the room for stacks that places may have whatever else stacks take: the largest have names beside any number of small ones.
const LEAST_FOR_PLACES: u64 = 4;
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
        let used = frames as u64 * memory::FRAME + places as u64 * memory::PLACE;
        let may = room_for_places(room, stacks);
        let begun = Instant::now();
        if used <= may || begun < self.keep_next {
            return;
        }
        tracing::debug!(used, may, stacks, "places of stacks take too much memory");
        self.forget_places(may);
        // All stacks were looked at: whatever came of that, there is more to do.
        self.keep_next = Instant::now() + begun.elapsed() * KEEP_REST;
    }

    /// What stacks may take beside the blocks that there are, bytes.
    fn room_for_stacks(&self) -> u64 {
        self.memory.for_books().saturating_sub(self.heap.blocks() * block(self.min_age))
    }

    /// Forgets places of stacks, which may take so many bytes together.
    fn forget_places(&mut self, may: u64) {
        let of_go: HashSet<StackIndex> = self.go.values().flat_map(|process| &process.stacks).copied().collect();
        let of_go: HashSet<StackIndex> = of_go.into_iter().map(|stack| self.heap.stacks().first(stack)).collect();
        let folded = least(&self.heap, &self.mapped, &self.places.trails, &of_go, may);
        if folded.is_empty() {
            // Places that only whoever looked had are nobody's any more.
            return self.places.trails.forget(&[]);
        }
        tracing::debug!(folded = folded.len(), "stacks whose places are forgotten");
        self.places.trails.forget(&folded);
        folded.iter().for_each(|stack| self.heap.fold(*stack));
        self.events.forget_stacks(self.heap.stacks().ids(&folded.into_iter().collect()));
    }
}

/// What places of stacks may take, bytes, where there is `room` for them and for stacks, which take so many bytes without.
fn room_for_places(room: u64, stacks: u64) -> u64 {
    room.saturating_sub(stacks).max(room / LEAST_FOR_PLACES)
}

/// The stacks whose places are to be forgotten so that those of all others, and of the stacks `of_go`, take no more than `may` bytes, and a
/// quarter less, so that this is not done at once again: those that hold nothing first, then those that hold the least.
fn least(heap: &Heap, mapped: &Mapped, trails: &Trails, of_go: &HashSet<StackIndex>, may: u64) -> Vec<StackIndex> {
    let mut known: Vec<StackIndex> = trails.stacks().filter(|stack| !of_go.contains(stack)).collect();
    let values = held_by(heap, mapped);
    known.sort_by_cached_key(|stack| {
        let Values { outstanding_bytes, outstanding_blocks, allocated_bytes, allocated_blocks, .. } =
            values.get(stack).copied().unwrap_or_default();
        // The first block of one that has had none is on its way.
        (outstanding_blocks > 0 || allocated_blocks == 0, outstanding_bytes, allocated_bytes)
    });
    let mut kept = Kept::default();
    of_go.iter().filter_map(|stack| trails.get(*stack)).for_each(|sites| kept.add(sites));
    // Those of Go stay; they leave something to others in any case.
    let may = (may / 4 * 3).max(kept.bytes + may / 4);
    let fits = |stack: &StackIndex| {
        trails.get(*stack).into_iter().for_each(|sites| kept.add(sites));
        kept.bytes <= may
    };
    // The largest are kept first.
    known.into_iter().rev().skip_while(fits).collect()
}

/// Places that are kept, and what they take.
#[derive(Default)]
struct Kept {
    /// The different ones.
    places: HashSet<*const Site>,
    /// With their part of each stack, bytes.
    bytes: u64,
}

impl Kept {
    /// Keeps those of one more stack.
    fn add(&mut self, sites: &Sites) {
        let new = sites.iter().filter(|site| self.places.insert(Arc::as_ptr(site))).count();
        self.bytes += sites.len() as u64 * memory::FRAME + new as u64 * memory::PLACE;
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
        space::address_space::Place,
    };

    /// What maps so many pages behind `start`, by the stack with the id.
    fn mapping(start: u64, pages: u64, stack: u64) -> Remapping {
        Remapping {
            change: Change::Mapped,
            range: (start, start + (pages << 12)),
            old: (0, 0),
            kind: MappedKind::Anonymous,
            by_allocator: false,
            reserved: false,
            stack,
            time: 1,
        }
    }

    /// A thousand stacks of eight places, two of them its own, of which each holds a page more than the next one; by size, and what all of
    /// their places take, bytes.
    fn thousand(heap: &mut Heap, mapped: &mut Mapped, trails: &mut Trails) -> (Vec<StackIndex>, u64) {
        let mut stacks = Vec::new();
        for number in 0..1_000u64 {
            let stack = heap.intern(Image(1), number + 1);
            mapped.apply(Image(1), &mapping((number + 1) << 30, 1_000 - number, number + 1), stack);
            let own = (0..2).map(|at| 1 << 20 | number << 1 | at);
            let sites = (1..=6).chain(own).map(|addr| Site { addr, place: Place::Unknown });
            trails.keep(stack, sites.collect(), false);
            stacks.push(stack);
        }
        (stacks, 8_000 * memory::FRAME + 2_006 * memory::PLACE)
    }

    #[test]
    fn what_a_stack_has_mapped_is_what_it_holds() {
        let (mut heap, mut mapped) = (Heap::with_room(1 << 10, 1 << 10), Mapped::with_room(1 << 10));
        heap.intern(Image(1), 1);
        let (first, same) = (heap.intern(Image(1), 2), heap.intern(Image(2), 2));
        let remapping = mapping(1 << 20, 512, 2);
        mapped.apply(Image(1), &remapping, first);
        mapped.apply(Image(2), &Remapping { reserved: true, ..remapping }, same);
        let held = held_by(&heap, &mapped)[&first];
        assert_eq!((held.outstanding_bytes, held.outstanding_blocks, held.allocated_blocks), (2 << 20, 2, 1));
    }

    #[test]
    fn the_largest_stacks_keep_their_places() {
        let (mut heap, mut mapped) = (Heap::with_room(1 << 10, 1 << 10), Mapped::with_room(1 << 10));
        let mut trails = Trails::default();
        let (stacks, used) = thousand(&mut heap, &mut mapped, &mut trails);
        let folded = |of_go: &[StackIndex], may| {
            let mut folded = least(&heap, &mapped, &trails, &of_go.iter().copied().collect(), may);
            folded.sort_unstable();
            folded
        };
        assert!(folded(&[], 2 * used).is_empty());
        // Without their places they take more than there is room for.
        let may = room_for_places(used, 3 * used);
        let each = 8 * memory::FRAME + 2 * memory::PLACE;
        let kept = ((may / 4 * 3 - 6 * memory::PLACE) / each) as usize;
        assert!(kept > 100 && kept < 500, "{kept}");
        assert_eq!(folded(&[], may), stacks[kept..]);
        // The places of Go's take all.
        let (others, of_go) = stacks.split_at(500);
        let folded = folded(of_go, may);
        assert!(!folded.contains(&others[0]) && folded.contains(&others[499]), "{}", folded.len());
        assert!(folded.iter().all(|stack| others.contains(stack)));
    }

    #[test]
    fn places_have_the_room_that_stacks_leave_and_some_in_any_case() {
        for (stacks, expected) in [(0, 1_000), (600, 400), (900, 250), (1_000, 250), (9_000, 250)] {
            assert_eq!(room_for_places(1_000, stacks), expected, "{stacks}");
        }
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
