//! Frees of blocks that are not known, and what only looks like those.

use super::*;

fn by_program(tid: u32, addr: u64) -> (Origin, Event<'static>) {
    (origin(tid), Event::Free(addr))
}

/// What the C library frees at the end of a thread are blocks that were freed before, and one that nobody saw it allocate.
#[test]
fn the_end_of_a_thread_empties_its_cache() {
    let heap = heap(&[
        by_program(1, 0x10),
        by_program(1, 0x20),
        (origin(1), Event::Alloc(block(0x30, 100, 7, MS))),
        by_program(1, 0x30),
        by_program(2, 0x40),
        // Its cache, and then itself.
        by_program(1, 0x50),
        by_program(1, 0x30),
        by_program(1, 0x60),
        (origin(1), Event::ThreadExit { alone: true }),
        (origin(1), Event::ThreadExit { alone: true }),
        // The thread id is another thread's now.
        by_program(1, 0x70),
        (origin(257), Event::ThreadExit { alone: true }),
    ]);
    assert_eq!(heap.counters().unmatched_frees, 4);
}

/// Nobody empties the cache of a thread that ends with its process: what it freed last was of blocks from before.
#[test]
fn the_end_of_a_process_empties_no_cache() {
    for (alone, unknown) in [(false, 3), (true, 0)] {
        let frees = (1..=3).map(|number| by_program(1, number * 0x10));
        let heap = heap(&frees.chain([(origin(1), Event::ThreadExit { alone })]).collect::<Vec<_>>());
        assert_eq!(heap.counters().unmatched_frees, unknown, "{alone}");
    }
}

/// Each block is freed, and what lies `header` bytes below it right after that, by the same thread: `frees` times.
fn with_headers(
    frees: u64,
    header: u64,
    inner: fn(u32, u64) -> (Origin, Event<'static>),
) -> Vec<(Origin, Event<'static>)> {
    let block = |at| (origin(1), Event::Alloc(block(at, 100, 7, MS)));
    (1..=frees)
        .map(|number| number << 12)
        .flat_map(|at| [block(at), by_program(1, at), inner(1, at - header)])
        .collect()
}

#[test]
fn what_an_interposer_gives_back_within_a_free_is_no_block() {
    for header in [8, 16, 32, 64, 256] {
        let mut heap = heap(&with_headers(100, header, by_program));
        assert_eq!(heap.counters().unmatched_frees, 0, "{header}");
        // Also of blocks from before: each once.
        for at in (1000..1010).map(|number| number << 12) {
            for (origin, event) in [by_program(1, at), by_program(1, at - header)] {
                heap.apply(origin, event);
            }
        }
        assert_eq!(heap.counters().unmatched_frees, 10, "{header}");
    }
}

#[test]
fn what_is_freed_below_a_block_now_and_then_is_one() {
    let unmatched = |events: &[(Origin, Event<'static>)]| heap(events).counters().unmatched_frees;
    // By chance.
    assert_eq!(unmatched(&with_headers(10, 32, by_program)), 10);
    // Too far below.
    assert_eq!(unmatched(&with_headers(100, 272, by_program)), 100);
    // Never as far below as before.
    let mut events = Vec::new();
    for number in 1..=100 {
        let at = number << 12;
        events.push((origin(1), Event::Alloc(block(at, 100, 7, MS))));
        events.extend([by_program(1, at), by_program(1, at - 16 * (1 + number % 10))]);
    }
    assert_eq!(unmatched(&events), 100);
    // By another thread.
    assert_eq!(unmatched(&with_headers(100, 32, |_, addr| by_program(2, addr))), 100);
    // After few frees only.
    let mut events = Vec::new();
    for (number, at) in (1..=300_u64).map(|number| (number, number << 12)) {
        events.push((origin(1), Event::Alloc(block(at, 100, 7, MS))));
        events.push(by_program(1, at));
        if number % 3 == 0 {
            events.push(by_program(1, at - 32));
        }
    }
    assert_eq!(unmatched(&events), 100);
    // Something else is done in between.
    let mut events = Vec::new();
    for at in (1..=100).map(|number| number << 12) {
        let other = (origin(1), Event::Alloc(block(at + 0x800, 100, 7, MS)));
        events.extend([
            (origin(1), Event::Alloc(block(at, 100, 7, MS))),
            by_program(1, at),
            other,
            by_program(1, at - 32),
        ]);
    }
    assert_eq!(unmatched(&events), 100);
}
