//! What may have been freed unseen.

use super::*;

#[test]
fn frees_lost_without_trace_make_what_is_older_uncertain() {
    let mut heap =
        heap(&[(origin(1), Event::Alloc(block(0x10, 1, 7, MS))), (origin(1), Event::Alloc(block(0x20, 2, 7, 9 * MS)))]);
    heap.frees_lost_without_trace(5 * MS);
    heap.frees_lost_without_trace(4 * MS);
    let usage = heap.usage(u64::MAX, 0)[0];
    assert_eq!((usage.values.outstanding_bytes, usage.uncertain_bytes), (3, 1));
}

#[test]
fn frees_of_one_image_that_nobody_saw_make_no_other_one_uncertain() {
    let other = Origin { image: Image(IMAGE.0 + 1), ..origin(1) };
    let mut heap = heap(&[
        (origin(1), Event::Alloc(block(0x10, 1, 7, MS))),
        (origin(1), Event::Alloc(block(0x20, 2, 7, 9 * MS))),
        (other, Event::Alloc(block(0x10, 4, 7, MS))),
    ]);
    heap.frees_of_lost_without_trace(IMAGE, 5 * MS);
    heap.frees_of_lost_without_trace(Image(IMAGE.0 + 2), 5 * MS);
    let usage = heap.usage(u64::MAX, 0);
    let mut held: Vec<_> = usage.iter().map(|of| (of.values.outstanding_bytes, of.uncertain_bytes)).collect();
    held.sort_unstable();
    assert_eq!(held, [(3, 1), (4, 0)]);
}

/// Also of an image that ends meanwhile, and of a block that a realloc has.
#[test]
fn what_is_held_while_no_free_is_seen_is_uncertain() {
    let events = [
        (origin(1), Event::Alloc(block(0x10, 1, 7, MS))),
        (origin(1), Event::Alloc(block(0x20, 2, 7, MS))),
        (origin(1), Event::ReallocTake(0x20)),
    ];
    let uncertain = |heap: &mut Heap| heap.usage(u64::MAX, 0)[0].uncertain_bytes;
    let mut ended = heap(&events);
    ended.frees_are_unseen();
    assert_eq!(uncertain(&mut ended), 3);
    ended.end(IMAGE, 2 * MS, 0);
    ended.frees_are_seen(3 * MS);
    assert_eq!(uncertain(&mut ended), 3, "it ended when nobody saw");
    let mut goes_on = heap(&events);
    goes_on.frees_are_unseen();
    goes_on.frees_are_seen(2 * MS);
    goes_on.apply(origin(1), Event::Alloc(block(0x30, 4, 7, 3 * MS)));
    assert_eq!(uncertain(&mut goes_on), 3, "what is allocated since is seen");
}

/// Each of two stacks of a thread has a realloc that runs: neither is over because the other is entered later.
#[test]
fn reallocs_of_one_thread_return_in_any_order() {
    let other = Origin { slot: 1, ..origin(1) };
    let begun = [
        (origin(1), Event::Alloc(block(0x10, 1, 7, MS))),
        (origin(1), Event::Alloc(block(0x20, 2, 7, MS))),
        (other, Event::ReallocTake(0x10)),
        (origin(1), Event::ReallocTake(0x20)),
    ];
    let mut returned = heap(&begun);
    returned.apply(other, Event::ReallocDone(block(0x30, 4, 8, 2 * MS)));
    returned.apply(origin(1), Event::ReallocFailed(0x20));
    assert_eq!((held(&mut returned, 7), held(&mut returned, 8)), ((2, 1), (4, 1)));
    // One that was left (longjmp) has ended nothing: its block may be resized by another call.
    let mut left = heap(&begun);
    left.apply(Origin { slot: 2, ..origin(1) }, Event::ReallocTake(0x10));
    left.apply(Origin { slot: 2, ..origin(1) }, Event::ReallocDone(block(0x10, 4, 8, 2 * MS)));
    assert_eq!((held(&mut left, 7), held(&mut left, 8), left.counters().unmatched_frees), ((2, 1), (4, 1), 0));
}
