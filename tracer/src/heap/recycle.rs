//! Giving up stacks of images that have ended, so that others have room; no sum changes by it.

use hashbrown::HashSet;

use super::{Heap, StackIndex, StackKind};
use crate::{cow::Chunks, event::Image, profile::Values};

impl Heap {
    /// Gives up stacks of an image that has ended: those that hold nothing, or `all`, but for those whose first one is in
    /// `except`. What they held and went through is told by the image's stand-in from now on. The indexes that others may have by
    /// that, of which nothing may be kept.
    pub fn recycle(&mut self, image: Image, all: bool, except: &HashSet<StackIndex>) -> Vec<StackIndex> {
        let Self { stacks, usage, left, .. } = self;
        let values = |usage: &Chunks<Values>, stack: StackIndex| usage.get(stack.index()).copied().unwrap_or_default();
        let own = stacks.of(image).filter(|stack| !matches!(stacks.kind(*stack), StackKind::TableFull));
        let unwanted = own.filter(|stack| all || values(usage, *stack).outstanding_blocks == 0);
        let unwanted: HashSet<StackIndex> = unwanted.filter(|stack| !except.contains(&stacks.first(*stack))).collect();
        for stack in &unwanted {
            let values = values(usage, *stack);
            if values == Values::default() {
                continue;
            }
            let stand_in = stacks.stand_in(image);
            *usage.at(stack.index()) = Values::default();
            *usage.at(stand_in.index()) += values;
            if let Some(held) = left.get_mut(stack.index()).and_then(Option::take) {
                left.at(stand_in.index()).get_or_insert_default().absorb(&held);
            }
        }
        stacks.release(image, &unwanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Allocation, Event, Origin};

    const ONE: Image = Image(1);
    const OTHER: Image = Image(2);

    fn allocate(heap: &mut Heap, image: Image, addr: u64, size: u64, stack: u64) -> StackIndex {
        let origin = Origin { image, tid: image.0, slot: 0 };
        heap.apply(origin, Event::Alloc(Allocation { addr, size, stack, time: 1 << 20 }));
        heap.intern(image, stack)
    }

    fn free(heap: &mut Heap, image: Image, addr: u64) {
        heap.apply(Origin { image, tid: image.0, slot: 0 }, Event::Free(addr));
    }

    /// What is being looked up of a stack is told by the index of the first with its id, whoever has it by now.
    #[test]
    fn a_stack_that_waits_stays_although_its_image_is_told_of_another() {
        let mut heap = Heap::new(100);
        let waits = allocate(&mut heap, ONE, 0x10, 5, 7);
        allocate(&mut heap, OTHER, 0x10, 5, 8);
        for image in [ONE, OTHER] {
            free(&mut heap, image, 0x10);
            heap.end(image, 2 << 20, 0);
        }
        heap.merge(ONE, OTHER);
        let except = HashSet::from_iter([waits]);
        assert!(!heap.recycle(OTHER, true, &except).contains(&waits));
        assert!(heap.recycle(OTHER, true, &HashSet::new()).contains(&waits));
    }

    /// Allocated and outstanding bytes of an image.
    fn sums(heap: &mut Heap, image: Image) -> (u64, u64) {
        let usage = heap.usage(u64::MAX, 0);
        let own = usage.iter().filter(|usage| heap.stacks().image(usage.stack) == image);
        own.fold((0, 0), |sums, usage| (sums.0 + usage.values.allocated_bytes, sums.1 + usage.values.outstanding_bytes))
    }

    #[test]
    fn what_is_given_up_keeps_its_sums_and_what_others_have_stays() {
        let mut heap = Heap::new(100);
        let none = HashSet::new();
        let shared = allocate(&mut heap, ONE, 0x10, 100, 7);
        let idle = allocate(&mut heap, ONE, 0x20, 30, 8);
        let holding = allocate(&mut heap, ONE, 0x30, 5, 9);
        let others = allocate(&mut heap, OTHER, 0x10, 1000, 7);
        free(&mut heap, ONE, 0x10);
        free(&mut heap, ONE, 0x20);
        heap.end(ONE, 2 << 20, 0);
        assert_eq!(
            heap.recycle(ONE, false, &HashSet::from_iter([idle])),
            [],
            "one waits, another has its places from it"
        );
        assert_eq!(heap.recycle(ONE, false, &none), [idle]);
        assert_eq!((sums(&mut heap, ONE), sums(&mut heap, OTHER)), ((135, 5), (1000, 1000)));
        assert_eq!(heap.stacks().first(others), shared);
        assert_eq!(allocate(&mut heap, OTHER, 0x40, 1, 10), idle, "its index is used again");
        assert_eq!(heap.recycle(ONE, true, &none), [holding]);
        assert_eq!((sums(&mut heap, ONE), sums(&mut heap, OTHER)), ((135, 5), (1001, 1001)));
        heap.end(OTHER, 2 << 20, 0);
        let mut freed = heap.recycle(OTHER, true, &none);
        freed.sort_unstable();
        assert_eq!(freed, [shared, idle, others], "the last one that had it");
        assert_eq!((sums(&mut heap, ONE), sums(&mut heap, OTHER)), ((135, 5), (1001, 1001)));
        assert!(heap.stacks().find(7).is_none());
    }

    #[test]
    fn an_image_that_is_forgotten_leaves_nothing_to_tell() {
        let mut heap = Heap::new(100).with_min_age(1 << 30);
        let stack = allocate(&mut heap, ONE, 0x10, 100, 7);
        let others = allocate(&mut heap, OTHER, 0x10, 3, 8);
        heap.forget(ONE);
        assert_eq!((sums(&mut heap, ONE), sums(&mut heap, OTHER)), ((0, 0), (3, 3)));
        assert_eq!((heap.values(stack), heap.values(others).outstanding_bytes), (Values::default(), 3));
        assert_eq!(heap.recycle(ONE, false, &HashSet::new()), [stack]);
        assert_eq!(heap.stacks().len(), 2, "no stand-in for nothing");
    }
}
