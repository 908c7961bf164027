//! Frees of what lies right below a block.

use super::{MS, block, heap, held, origin};
use crate::event::Event;

/// Of an allocator that has a header before each block and is inlined where it takes one back.
#[test]
fn free_of_what_lies_right_below_a_block_ends_it() {
    let freed = |header: u64, size: u64, offset: u64| {
        let mut events = Vec::new();
        for at in (1..=20).map(|number| number * 0x1000 + offset) {
            events.push((origin(1), Event::Alloc(block(at, size, 7, MS))));
            events.push((origin(1), Event::Free(at - header)));
        }
        let heap = heap(&events);
        (heap.blocks(), heap.counters().missed_frees, heap.counters().unmatched_frees)
    };
    // One may be by chance.
    assert_eq!(freed(16, 100, 0x10), (15, 5, 15));
    assert_eq!(freed(8, 9, 0x18), (15, 5, 15));
    // Both may be blocks of the same size.
    assert_eq!(freed(16, 16, 0x10), (20, 0, 20));
    // The last of one run of blocks, and the first of another.
    assert_eq!(freed(16, 100, 0), (20, 0, 20));
    assert_eq!(freed(32, 100, 0x20), (20, 0, 20));
}

/// Of a C library whose `free` jumps to another function that is probed, too: the neighbours of what is freed live on.
#[test]
fn a_free_that_is_told_twice_ends_no_neighbour() {
    let mut events = Vec::new();
    for at in (1..=40).map(|number| number * 0x100) {
        events.push((origin(1), Event::Alloc(block(at, 8, 7, MS))));
        events.push((origin(1), Event::Alloc(block(at + 16, 57, 8, MS))));
    }
    for at in (1..=40).map(|number| number * 0x100) {
        events.extend([(origin(1), Event::Free(at)), (origin(2), Event::Free(0x9)), (origin(1), Event::Free(at))]);
    }
    let mut heap = heap(&events);
    assert_eq!((held(&mut heap, 7), held(&mut heap, 8)), ((0, 0), (40 * 57, 40)));
    assert_eq!(heap.counters().missed_frees, 0);
}

/// The same of a realloc that gives back the old block by both.
#[test]
fn a_realloc_whose_free_is_told_twice_ends_no_neighbour() {
    let mut events = Vec::new();
    for at in (1..=40).map(|number| number * 0x1000) {
        events.push((origin(1), Event::Alloc(block(at, 8, 7, MS))));
        events.push((origin(1), Event::Alloc(block(at + 16, 57, 8, MS))));
        events.push((origin(1), Event::ReallocTake(at)));
        events.push((origin(1), Event::Alloc(block(at + 0x400, 200, 9, MS))));
        events.extend([(origin(1), Event::Free(at)), (origin(1), Event::Free(at))]);
        events.push((origin(1), Event::Part { addr: at + 0x400, size: 200 }));
        events.push((origin(1), Event::ReallocDone(block(at + 0x400, 200, 9, MS))));
    }
    let mut heap = heap(&events);
    assert_eq!((held(&mut heap, 7), held(&mut heap, 8), held(&mut heap, 9)), ((0, 0), (40 * 57, 40), (40 * 200, 40)));
    assert_eq!((heap.counters().missed_frees, heap.counters().unmatched_frees), (0, 0));
}

/// Blocks behind headers that are freed at the same address again and again, by who allocates them and by another thread.
#[test]
fn one_place_is_freed_from_below_again_and_again() {
    for allocates in [1, 2] {
        let mut events = Vec::new();
        for at in (1..=20).map(|number| number * 0x1000 + 0x10) {
            events.push((origin(1), Event::Alloc(block(at, 100, 7, MS))));
            events.push((origin(1), Event::Free(at - 16)));
        }
        for _ in 0..20 {
            events.push((origin(allocates), Event::Alloc(block(0x90010, 100, 8, MS))));
            events.push((origin(1), Event::Free(0x90000)));
        }
        let mut heap = heap(&events);
        assert_eq!((held(&mut heap, 8), heap.counters().missed_frees), ((0, 0), 25), "allocated by thread {allocates}");
    }
}
