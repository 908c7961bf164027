//! Images that have ended told as one: what they held and went through, by stack, is told of one of them.

use super::{Heap, StackIndex, StackKind};
use crate::{event::Image, profile::Values};

impl Heap {
    /// Whether an image has no block any more.
    pub fn has_ended(&self, image: Image) -> bool {
        !self.processes.contains_key(&image)
    }

    /// Whether something was allocated by an image.
    pub fn has_allocated(&self, image: Image) -> bool {
        self.stacks.of(image).any(|stack| self.values(stack).allocated_blocks > 0)
    }

    /// The same stack of another image.
    pub fn counterpart(&mut self, stack: StackIndex, of: Image) -> StackIndex {
        self.stacks.counterpart(stack, of)
    }

    /// Has what an image held and went through, which has ended, told of another one that has, too. No sum changes, and what
    /// an id stands for stays known. The stacks that have nothing any more, and those of them whose indexes others may have, of which
    /// nothing may be kept.
    pub fn merge(&mut self, from: Image, into: Image) -> (Vec<StackIndex>, Vec<StackIndex>) {
        let Self { stacks, usage, left, .. } = self;
        let emptied: Vec<StackIndex> = stacks.of(from).collect();
        for stack in &emptied {
            let values = usage.get_mut(stack.index()).map(std::mem::take).unwrap_or_default();
            let held = left.get_mut(stack.index()).and_then(Option::take);
            if values == Values::default() && held.is_none() && stacks.is_shared(*stack) {
                continue;
            }
            let target = stacks.counterpart(*stack, into);
            *usage.at(target.index()) += values;
            if let Some(held) = held {
                left.at(target.index()).get_or_insert_default().absorb(&held);
            }
        }
        // What nobody else has is one for which there was no room.
        let is_unwanted =
            |stack: &&StackIndex| stacks.is_shared(**stack) || *stacks.kind(**stack) == StackKind::TableFull;
        let unwanted = emptied.iter().filter(is_unwanted).copied().collect();
        let freed = stacks.release_all(from, unwanted);
        (emptied, freed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Allocation, Event, Origin},
        heap::StackUsage,
    };

    const ONE: Image = Image(1);
    const TWO: Image = Image(2);
    const ALIVE: Image = Image(3);

    fn apply(heap: &mut Heap, image: Image, event: Event<'_>) {
        heap.apply(Origin { image, tid: image.0, slot: 0 }, event);
    }

    fn allocate(heap: &mut Heap, image: Image, addr: u64, size: u64, stack: u64) {
        apply(heap, image, Event::Alloc(Allocation { addr, size, stack, time: 1 << 20 }));
    }

    /// Outstanding and allocated bytes, freed blocks and holders.
    type Amounts = (u64, u64, u64, u64);

    /// By image and id of the stack.
    fn books(heap: &mut Heap) -> Vec<(Image, u64, Amounts)> {
        let usage = heap.usage(u64::MAX, 0);
        let of = |usage: StackUsage| {
            let StackUsage { stack, values, holders, .. } = usage;
            let amounts = (values.outstanding_bytes, values.allocated_bytes, values.freed_blocks, holders);
            (heap.stacks().image(stack), heap.stacks().id(stack), amounts)
        };
        let mut books: Vec<_> = usage.into_iter().map(of).collect();
        books.sort_unstable();
        books
    }

    #[test]
    fn what_two_held_and_went_through_is_told_of_one() {
        let mut heap = Heap::new(100);
        for (image, size) in [(ONE, 100), (TWO, 20), (ALIVE, 3)] {
            allocate(&mut heap, image, 0x10, size, 7);
            allocate(&mut heap, image, 0x20, size, 8);
            apply(&mut heap, image, Event::Free(0x20));
        }
        allocate(&mut heap, TWO, 0x30, 1, 9);
        assert!(!heap.has_ended(TWO));
        heap.end(ONE, 2 << 20, 0);
        heap.end(TWO, 2 << 20, 0);
        assert!(heap.has_ended(TWO));
        let (emptied, freed) = heap.merge(TWO, ONE);
        assert_eq!((emptied.len(), freed.len()), (3, 2), "its stack 9 is the first with that id");
        let one = [(ONE, 7, (120, 120, 0, 2)), (ONE, 8, (0, 120, 2, 0)), (ONE, 9, (1, 1, 0, 1))];
        let alive = [(ALIVE, 7, (3, 3, 0, 1)), (ALIVE, 8, (0, 3, 1, 0))];
        assert_eq!(books(&mut heap), [&one[..], &alive].concat());
        assert!(!heap.has_allocated(TWO) && heap.has_allocated(ONE));
        assert_eq!(heap.merge(TWO, ONE), (Vec::new(), Vec::new()));
        // Once more, of one that has three already.
        allocate(&mut heap, TWO, 0x10, 1000, 7);
        heap.end(TWO, 2 << 20, 0);
        heap.merge(TWO, ONE);
        assert_eq!(books(&mut heap)[0], (ONE, 7, (1120, 1120, 0, 3)));
    }

    #[test]
    fn thousands_leave_no_stack_of_their_own() {
        let mut heap = Heap::new(100);
        allocate(&mut heap, ONE, 0x10, 5, 7);
        heap.end(ONE, 2 << 20, 0);
        for image in (10..5_010).map(Image) {
            allocate(&mut heap, image, 0x10, 5, 7);
            heap.intern(image, 8);
            heap.end(image, 2 << 20, 0);
            heap.merge(image, ONE);
        }
        assert_eq!(books(&mut heap), [(ONE, 7, (25_005, 25_005, 0, 5_001))]);
        assert!(heap.stacks().len() < 10, "{}", heap.stacks().len());
    }

    #[test]
    fn what_did_not_fit_stays_what_did_not_fit() {
        let mut heap = Heap::new(2);
        allocate(&mut heap, ONE, 0x10, 5, 7);
        allocate(&mut heap, TWO, 0x10, 6, 9);
        for image in [ONE, TWO] {
            allocate(&mut heap, image, 0x20, 100, 8);
            heap.end(image, 2 << 20, 0);
        }
        heap.merge(TWO, ONE);
        assert_eq!(books(&mut heap), [(ONE, 0, (206, 206, 0, 3)), (ONE, 7, (5, 5, 0, 1))]);
        assert!(heap.stacks().find(9).is_some(), "it is not sent again");
    }
}
