//! The rules of truth, each by hand; all together against a naive model in [`model`].

mod below;
mod frees;
mod model;
mod uncertain;

use super::{Heap, MAX_STACKS, StackKind};
use crate::event::{Allocation, Event, Image, Origin, parse};

const IMAGE: Image = Image(100);
const MS: u64 = 1_048_576;

fn origin(tid: u32) -> Origin {
    Origin { image: IMAGE, tid, slot: 0 }
}

fn block(addr: u64, size: u64, stack: u64, time: u64) -> Allocation {
    Allocation { addr, size, stack, time }
}

fn heap(events: &[(Origin, Event<'_>)]) -> Heap {
    let mut heap = Heap::new(MAX_STACKS);
    for (origin, event) in events {
        heap.apply(*origin, *event);
    }
    heap
}

/// Outstanding (bytes, blocks) of the stack with this id.
fn held(heap: &mut Heap, stack: u64) -> (u64, u64) {
    let index = heap.stacks().find(stack);
    let usage = heap.usage(u64::MAX, 0).into_iter().find(|usage| Some(usage.stack) == index);
    usage.map_or((0, 0), |usage| (usage.values.outstanding_bytes, usage.values.outstanding_blocks))
}

#[test]
fn realloc_moves_a_block_to_its_new_stack() {
    let mut heap = heap(&[
        (origin(1), Event::Alloc(block(0x10, 100, 7, MS))),
        (origin(1), Event::ReallocTake(0x10)),
        (origin(1), Event::ReallocDone(block(0x10, 300, 8, 2 * MS))),
    ]);
    assert_eq!((held(&mut heap, 7), held(&mut heap, 8)), ((0, 0), (300, 1)));
    assert_eq!(heap.counters().missed_frees, 0);
}

#[test]
fn failed_realloc_keeps_the_old_block_with_its_stack_and_age() {
    let mut heap = heap(&[
        (origin(1), Event::Alloc(block(0x10, 100, 7, 5 * MS))),
        (origin(1), Event::ReallocTake(0x10)),
        (origin(1), Event::ReallocFailed(0x10)),
    ]);
    assert_eq!(held(&mut heap, 7), (100, 1));
    assert_eq!(heap.usage(12 * MS, 0)[0].oldest, Some(7 * MS));
}

#[test]
fn realloc_to_nothing_ends_the_block() {
    let mut heap = heap(&[
        (origin(1), Event::Alloc(block(0x10, 100, 7, MS))),
        (origin(1), Event::ReallocTake(0x10)),
        (origin(1), Event::ReallocFreed(0x10)),
    ]);
    assert_eq!(held(&mut heap, 7), (0, 0));
}

/// A block that another one is made of was none of its own, unless it has ended and something else has its place.
#[test]
fn a_part_of_a_block_is_none() {
    let inner = Event::Alloc(block(0x10, 100, 7, MS));
    let part = Event::Part { addr: 0x10, size: 100 };
    let outer = Event::Alloc(block(0x18, 60, 8, MS));
    let heap_after = |events: &[Event<'_>]| {
        let events: Vec<_> = events.iter().map(|event| (origin(1), *event)).collect();
        heap(&events)
    };
    let mut made_of = heap_after(&[inner, part, outer]);
    assert_eq!((held(&mut made_of, 7), held(&mut made_of, 8)), ((0, 0), (60, 1)));
    let allocated: u64 = made_of.usage(u64::MAX, 0).iter().map(|usage| usage.values.allocated_blocks).sum();
    assert_eq!((allocated, made_of.counters().missed_frees), (1, 0));
    let other = Event::Alloc(block(0x10, 32, 9, MS));
    let mut ended = heap_after(&[inner, Event::Free(0x10), other, part, outer]);
    assert_eq!((held(&mut ended, 9), held(&mut ended, 8)), ((32, 1), (60, 1)));
}

#[test]
fn block_in_a_running_realloc_is_still_held() {
    let mut heap = heap(&[(origin(1), Event::Alloc(block(0x10, 100, 7, MS))), (origin(1), Event::ReallocTake(0x10))]);
    assert_eq!(held(&mut heap, 7), (100, 1));
}

#[test]
fn realloc_that_never_returns_does_not_end_its_block() {
    for end in [Event::ThreadExit { alone: true }, Event::ReallocTake(0x20)] {
        let mut heap = heap(&[
            (origin(1), Event::Alloc(block(0x10, 100, 7, MS))),
            (origin(1), Event::ReallocTake(0x10)),
            (origin(1), end),
            (origin(1), Event::Free(0x10)),
        ]);
        assert_eq!(held(&mut heap, 7), (0, 0), "{end:?}: put back, so that its free finds it");
    }
}

#[test]
fn the_end_of_a_thread_gives_back_what_its_realloc_held() {
    let mut heap = heap(&[
        (origin(1), Event::Alloc(block(0x10, 100, 7, MS))),
        (origin(2), Event::Alloc(block(0x20, 50, 8, MS))),
        (origin(1), Event::ReallocTake(0x10)),
        (origin(2), Event::ReallocTake(0x20)),
        (origin(1), Event::ThreadExit { alone: true }),
        // The thread id is another thread's now.
        (origin(1), Event::ReallocFreed(0x10)),
        (origin(2), Event::ReallocFreed(0x20)),
    ]);
    assert_eq!((held(&mut heap, 7), held(&mut heap, 8)), ((100, 1), (0, 0)));
}

#[test]
fn a_free_ends_a_block_whose_realloc_never_returned() {
    for tid in [1, 2] {
        let mut heap = heap(&[
            (origin(1), Event::Alloc(block(0x10, 100, 7, MS))),
            (origin(1), Event::ReallocTake(0x10)),
            (origin(tid), Event::Free(0x10)),
            (origin(1), Event::ReallocTake(0x30)),
        ]);
        assert_eq!(held(&mut heap, 7), (0, 0), "freed by thread {tid}");
    }
}

#[test]
fn reallocs_of_two_threads_do_not_mix() {
    let mut heap = heap(&[
        (origin(1), Event::Alloc(block(0x10, 1, 7, MS))),
        (origin(2), Event::Alloc(block(0x20, 2, 7, MS))),
        (origin(1), Event::ReallocTake(0x10)),
        (origin(2), Event::ReallocTake(0x20)),
        (origin(1), Event::ReallocFailed(0x10)),
        (origin(2), Event::ReallocDone(block(0x30, 4, 8, MS))),
    ]);
    assert_eq!((held(&mut heap, 7), held(&mut heap, 8)), ((1, 1), (4, 1)));
}

#[test]
fn free_by_another_thread_ends_the_block() {
    let mut heap = heap(&[(origin(1), Event::Alloc(block(0x10, 100, 7, MS))), (origin(2), Event::Free(0x10))]);
    assert_eq!(held(&mut heap, 7), (0, 0));
    assert_eq!(heap.counters().unmatched_frees, 0);
}

#[test]
fn free_of_an_unknown_block_is_counted_and_no_error() {
    let heap = heap(&[(origin(1), Event::Free(0x10)), (origin(1), Event::ReallocTake(0x20))]);
    assert_eq!(heap.counters().unmatched_frees, 2);
}

#[test]
fn free_within_delete_or_realloc_is_the_same_free() {
    // operator delete that jumps to free, both probed.
    let twice = heap(&[
        (origin(1), Event::Alloc(block(0x10, 1, 7, MS))),
        (origin(1), Event::Free(0x10)),
        (origin(1), Event::Free(0x10)),
    ]);
    assert_eq!(twice.counters().unmatched_frees, 0);
    // An allocator whose realloc calls its own free.
    let mut inner = heap(&[
        (origin(1), Event::Alloc(block(0x10, 1, 7, MS))),
        (origin(1), Event::ReallocTake(0x10)),
        (origin(2), Event::Free(0x99)),
        (origin(1), Event::Free(0x10)),
        (origin(1), Event::ReallocDone(block(0x20, 2, 7, MS))),
    ]);
    assert_eq!(inner.counters().unmatched_frees, 1, "only the other thread's");
    assert_eq!(held(&mut inner, 7), (2, 1));
}

#[test]
fn address_that_is_handed_out_again_ends_the_old_block() {
    let mut heap = heap(&[
        (origin(1), Event::Alloc(block(0x10, 100, 7, MS))),
        (origin(1), Event::Alloc(block(0x10, 5, 8, 2 * MS))),
    ]);
    assert_eq!((held(&mut heap, 7), held(&mut heap, 8)), ((0, 0), (5, 1)));
    assert_eq!(heap.counters().missed_frees, 1);
}

#[test]
fn exec_drops_everything() {
    let mut heap = heap(&[
        (origin(1), Event::Alloc(block(0x10, 100, 7, MS))),
        (origin(1), Event::Alloc(block(0x18, 100, 7, MS))),
        (origin(1), Event::ReallocTake(0x10)),
    ]);
    heap.forget(IMAGE);
    let new = Origin { image: Image(101), ..origin(1) };
    // What was there before is unknown to the new program.
    heap.apply(new, Event::Free(0x18));
    heap.apply(new, Event::ReallocFreed(0x10));
    assert_eq!(heap.counters().unmatched_frees, 1);
    assert_eq!((held(&mut heap, 7), heap.blocks()), ((0, 0), 0));
    assert!(heap.usage(u64::MAX, 0).is_empty());
}

#[test]
fn what_a_forked_process_frees_of_its_parents_is_counted_apart() {
    let mut heap = heap(&[(origin(1), Event::Alloc(block(0x10, 100, 7, MS)))]);
    let child = Origin { image: Image(101), ..origin(2) };
    heap.inherit(child.image);
    heap.apply(child, Event::Free(0x10));
    heap.apply(origin(1), Event::Free(0x99));
    assert_eq!(held(&mut heap, 7), (100, 1));
    let counters = heap.counters();
    assert_eq!((counters.inherited_frees, counters.unmatched_frees), (1, 1));
}

#[test]
fn what_an_ended_image_held_is_kept_without_its_blocks() {
    let mut heap = heap(&[
        (origin(1), Event::Alloc(block(0x10, 100, 7, MS))),
        (origin(1), Event::Alloc(block(0x20, 10, 7, 5 * MS))),
        (origin(1), Event::Alloc(block(0x30, 1, 7, 9 * MS))),
        (origin(1), Event::Free(0x20)),
        // Another image has the same addresses.
        (Origin { image: Image(101), ..origin(2) }, Event::Alloc(block(0x10, 1000, 8, MS))),
    ]);
    heap.end(IMAGE, 10 * MS, 2 * MS);
    assert_eq!((held(&mut heap, 7), held(&mut heap, 8)), ((100, 1), (1000, 1)));
    let usage = heap.usage(50 * MS, 0);
    assert_eq!((usage[0].oldest, usage[0].values.allocated_bytes), (Some(9 * MS), 111), "as old as it was at the end");
    assert_eq!((heap.blocks(), heap.held(IMAGE)), (1, 0));
}

#[test]
fn processes_do_not_share_addresses() {
    let other = Origin { image: Image(200), ..origin(1) };
    let mut heap = heap(&[
        (origin(1), Event::Alloc(block(0x10, 100, 7, MS))),
        (other, Event::Alloc(block(0x10, 50, 8, MS))),
        (other, Event::Free(0x10)),
        (other, Event::Free(0x10)),
    ]);
    assert_eq!((held(&mut heap, 7), held(&mut heap, 8)), ((100, 1), (0, 0)));
}

#[test]
fn lost_free_ends_older_blocks_only() {
    let mut heap = heap(&[
        (origin(1), Event::Alloc(block(0x10, 1, 7, MS))),
        (origin(1), Event::Alloc(block(0x20, 2, 7, 29 * MS))),
        (origin(1), Event::Alloc(block(0x30, 4, 7, 18 * MS))),
    ]);
    for addr in [0x10, 0x20, 0x30, 0x40] {
        heap.apply_lost_free(IMAGE, addr, 25 * MS + 17);
    }
    heap.apply_lost_free(Image(7), 0x20, u64::MAX);
    heap.apply_lost_free(Image(999), 0x20, u64::MAX);
    // The one of the same timer tick stays, but not with certainty.
    assert_eq!(held(&mut heap, 7), (6, 2));
    assert_eq!(heap.usage(u64::MAX, 0)[0].uncertain_bytes, 4);
    heap.apply(origin(1), Event::Free(0x30));
    heap.apply(origin(1), Event::Alloc(block(0x30, 4, 7, 40 * MS)));
    assert_eq!(heap.usage(u64::MAX, 0)[0].uncertain_bytes, 0);
}

#[test]
fn lost_free_of_a_realloc_in_suspense_ends_it() {
    let mut heap = heap(&[(origin(1), Event::Alloc(block(0x10, 1, 7, MS))), (origin(1), Event::ReallocTake(0x10))]);
    heap.apply_lost_free(IMAGE, 0x10, 5 * MS);
    assert_eq!(held(&mut heap, 7), (0, 0));
}

#[test]
fn young_blocks_are_left_out_when_asked() {
    let mut heap =
        heap(&[(origin(1), Event::Alloc(block(0x10, 1, 7, MS))), (origin(1), Event::Alloc(block(0x20, 2, 7, 9 * MS)))]);
    let usage = heap.usage(10 * MS, 5 * MS)[0];
    assert_eq!((usage.values.outstanding_bytes, usage.values.allocated_bytes), (1, 3));
}

#[test]
fn full_stack_table_shows_under_its_own_name() {
    let mut heap = Heap::new(1);
    heap.apply(origin(1), Event::Alloc(block(0x10, 1, 7, MS)));
    heap.apply(origin(1), Event::Alloc(block(0x20, 2, 8, MS)));
    heap.apply(origin(1), Event::Alloc(block(0x30, 4, 9, MS)));
    let mut usage = heap.usage(u64::MAX, 0);
    usage.sort_by_key(|usage| usage.values.outstanding_bytes);
    let seen: Vec<_> =
        usage.iter().map(|u| (u.values.outstanding_bytes, heap.stacks().kind(u.stack).clone())).collect();
    assert_eq!(seen, [(1, StackKind::Unknown), (6, StackKind::TableFull)]);
}

#[test]
fn stack_that_was_lost_is_known_once_it_is_sent_again() {
    let mut heap = heap(&[(origin(1), Event::Alloc(block(0x10, 1, 7, MS)))]);
    let index = heap.stacks().find(7).unwrap();
    assert_eq!(heap.stacks().kind(index), &StackKind::Unknown);
    let record: Vec<u8> = [tracer_ebpf::Header::new(tracer_ebpf::kind::STACK, IMAGE.0, 0, 1).0, 7, 2, 0xa, 0xb]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    let (origin, event) = parse(&record).unwrap();
    heap.apply(origin, event);
    assert_eq!(heap.stacks().kind(index), &StackKind::Recorded([0xa, 0xb].into()));
}

fn stack_record(id: u64) -> Vec<u8> {
    [tracer_ebpf::Header::new(tracer_ebpf::kind::STACK, IMAGE.0, 0, 1).0, id, 2, 0xa, 0xb]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect()
}

/// It is sent once, whoever has it: each has its amounts, and all lose and get back its places.
#[test]
fn a_stack_that_several_images_have_is_known_once() {
    let mut heap = heap(&[]);
    let other = Origin { image: Image(IMAGE.0 + 1), ..origin(2) };
    heap.apply(origin(1), Event::Alloc(block(0x10, 1, 7, MS)));
    heap.apply(other, Event::Alloc(block(0x10, 2, 7, MS)));
    let record = stack_record(7);
    let (of_stack, stack) = parse(&record).unwrap();
    heap.apply(of_stack, stack);
    let (mine, others) = (heap.intern(IMAGE, 7), heap.intern(other.image, 7));
    assert_ne!(mine, others);
    assert_eq!((heap.stacks().image(mine), heap.stacks().image(others)), (IMAGE, other.image));
    assert_eq!((heap.values(mine).outstanding_bytes, heap.values(others).outstanding_bytes), (1, 2));
    let third = heap.intern(Image(IMAGE.0 + 2), 7);
    for stack in [mine, others, third] {
        assert_eq!(heap.stacks().first(stack), mine);
        assert_eq!(heap.stacks().kind(stack), &StackKind::Recorded([0xa, 0xb].into()));
    }
    heap.fold(others);
    assert_eq!(heap.stacks().kind(mine), &StackKind::Folded);
    heap.define(Image(IMAGE.0 + 3), 7, frames(&record), 1);
    assert_eq!(heap.stacks().kind(others), &StackKind::Recorded([0xa, 0xb].into()));
}

fn frames(record: &[u8]) -> crate::event::Frames<'_> {
    let Ok((_, Event::Stack { frames, .. })) = parse(record) else { panic!("no stack") };
    frames
}

/// Its amounts stay its own, and it is itself again when it is sent again.
#[test]
fn a_stack_whose_addresses_are_forgotten_keeps_its_amounts() {
    let mut heap = heap(&[]);
    let record = stack_record(7);
    let (of_stack, stack) = parse(&record).unwrap();
    heap.apply(of_stack, stack);
    heap.apply(origin(1), Event::Alloc(block(0x10, 5, 7, MS)));
    let index = heap.stacks().find(7).unwrap();
    for forget in [Heap::placed, Heap::fold] {
        forget(&mut heap, index);
        assert!(matches!(heap.stacks().kind(index), StackKind::Placed | StackKind::Folded));
    }
    heap.apply(origin(1), Event::Alloc(block(0x20, 7, 7, MS)));
    assert_eq!(heap.values(index).outstanding_bytes, 12);
    assert_eq!(heap.stacks().ids(&[index].into_iter().collect()), [7]);
    let (of_stack, stack) = parse(&record).unwrap();
    heap.apply(of_stack, stack);
    assert_eq!(heap.stacks().kind(index), &StackKind::Recorded([0xa, 0xb].into()));
    assert_eq!(heap.values(index).allocated_blocks, 2);
}

/// What there is no room for is counted, and takes no part; what it replaces has ended.
#[test]
fn blocks_are_bounded() {
    let mut heap = Heap::with_room(8, 2);
    for (addr, size) in [(0x10, 1), (0x20, 2), (0x30, 4), (0x20, 8)] {
        heap.apply(origin(1), Event::Alloc(block(addr, size, 7, MS)));
    }
    let values = |heap: &Heap| heap.values(heap.stacks().find(7).unwrap());
    assert_eq!((heap.blocks(), values(&heap).outstanding_bytes, values(&heap).allocated_blocks), (1, 1, 2));
    assert_eq!((heap.counters().refused_blocks, heap.counters().missed_frees), (2, 1));
    heap.apply(origin(1), Event::Free(0x10));
    heap.apply(origin(1), Event::Free(0x30));
    assert_eq!((heap.blocks(), heap.counters().unmatched_frees), (0, 1));
    for addr in 1..=3 {
        heap.apply(origin(1), Event::Alloc(block(addr, 1, 7, MS)));
    }
    assert_eq!((heap.blocks(), heap.counters().refused_blocks), (2, 3));
    // Another program: all is gone, and there is room again.
    heap.forget(IMAGE);
    assert_eq!(heap.blocks(), 0);
}

#[test]
fn sizes_that_cannot_be_end_at_the_largest_number() {
    let mut heap = heap(&[
        (origin(1), Event::Alloc(block(0x10, u64::MAX, 7, MS))),
        (origin(1), Event::Alloc(block(0x20, u64::MAX, 7, MS))),
        (origin(1), Event::Alloc(block(0x30, 5, 7, MS))),
        (origin(1), Event::Free(0x10)),
        (origin(1), Event::Free(0x30)),
    ]);
    assert_eq!(held(&mut heap, 7), (u64::MAX, 1));
    let mut values = heap.usage(u64::MAX, 0)[0].values;
    values += values;
    assert_eq!((values.outstanding_bytes, values.allocated_bytes, values.freed_blocks), (u64::MAX, u64::MAX, 4));
}

#[test]
fn samples_stand_for_what_they_were_taken_from_and_what_is_freed_leaves_nothing() {
    let mut heap = Heap::new(MAX_STACKS).with_samples(Some(1 << 20)).with_min_age(100 * MS);
    let usage = |heap: &mut Heap| heap.usage(u64::MAX, 0)[0];
    for addr in 1..=4 {
        heap.apply(origin(1), Event::Alloc(block(addr << 4, 1 << 10, 7, MS)));
    }
    heap.apply(origin(1), Event::ReallocTake(0x10));
    heap.apply(origin(1), Event::ReallocDone(block(0x50, 1 << 30, 7, MS)));
    heap.apply(origin(1), Event::Part { addr: 0x20, size: 1 << 10 });
    let held = usage(&mut heap);
    // Two that stand for 1,024.5 each, and a huge one.
    assert_eq!(held.values.outstanding_blocks, 2 * 1024 + 2);
    assert!(held.values.outstanding_bytes.abs_diff((2 << 20) + (1 << 30)) < 2_000, "{held:?}");
    let estimate = held.estimate.unwrap();
    assert_eq!(estimate.samples, 3);
    assert!(
        (estimate.standard_error() / f64::from(1 << 20) - (2.0_f64 * 4.0 / 3.0).sqrt()).abs() < 1e-3,
        "{estimate:?}"
    );
    assert_eq!(heap.held(IMAGE), held.values.outstanding_bytes);
    for addr in [0x30, 0x40, 0x50] {
        heap.apply(origin(1), Event::Free(addr));
    }
    let held = usage(&mut heap);
    assert_eq!((held.values.outstanding_bytes, held.estimate), (0, Some(Default::default())));
    assert_eq!((heap.held(IMAGE), heap.counters().unmatched_frees), (0, 0));
}

/// The BPF side keeps the addresses of samples until they end, and nobody ends those of an image that is no more.
#[test]
fn samples_of_images_that_are_no_more_are_told() {
    let event = Event::Alloc(block(0x10, 1, 7, MS));
    for ends in [|heap: &mut Heap| heap.end(IMAGE, MS, 0), |heap: &mut Heap| heap.forget(IMAGE)] {
        let mut heap = Heap::new(MAX_STACKS).with_samples(Some(1 << 20));
        heap.apply(origin(1), event);
        assert_eq!(heap.take_gone(), []);
        ends(&mut heap);
        assert_eq!((heap.take_gone(), heap.take_gone()), (vec![(IMAGE, 0x10)], vec![]));
    }
    let mut heap = Heap::new(MAX_STACKS).with_samples(Some(1 << 20));
    heap.disown(IMAGE, 0x20);
    assert_eq!(heap.take_gone(), [(IMAGE, 0x20)], "of an image that is not recorded");
    let mut exact = self::heap(&[(origin(1), event)]);
    exact.forget(IMAGE);
    assert_eq!(exact.take_gone(), []);
}
