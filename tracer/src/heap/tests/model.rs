//! The rules of truth all together, against a naive model.

use std::collections::HashMap as NaiveMap;

use proptest::prelude::*;

use super::{
    super::{Heap, History, MAX_STACKS},
    IMAGE, MS, block, held, origin,
};
use crate::{event::Event, profile::Values};

/// What a program does, as the BPF side would record it.
#[derive(Clone, Debug)]
enum Step {
    Alloc { tid: u32, addr: u64, size: u64, stack: u64 },
    Free { tid: u32, addr: u64 },
    Realloc { tid: u32, old: u64, new: u64, size: u64, stack: u64, outcome: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    // Few addresses, threads and stacks, so that they meet. No allocator has large blocks 16 bytes apart.
    let (tid, addr, stack) = (1..4u32, (1..20u64).prop_map(|n| n * 48), 1..5u64);
    let size = prop_oneof![0..1000u64, Just(u64::from(u32::MAX)), Just(1 << 33)];
    prop_oneof![
        (tid.clone(), addr.clone(), size.clone(), stack.clone()).prop_map(|(tid, addr, size, stack)| Step::Alloc {
            tid,
            addr,
            size,
            stack
        }),
        (tid.clone(), addr.clone()).prop_map(|(tid, addr)| Step::Free { tid, addr }),
        (tid, addr.clone(), addr, size, stack, 0..3u8)
            .prop_map(|(tid, old, new, size, stack, outcome)| Step::Realloc { tid, old, new, size, stack, outcome }),
    ]
}

proptest! {
    #[test]
    fn agrees_with_a_naive_model(steps in proptest::collection::vec(step(), 0..300)) {
        let mut heap = Heap::new(MAX_STACKS);
        let mut model: NaiveMap<u64, (u64, u64)> = NaiveMap::new();
        let mut allocated: NaiveMap<u64, (u64, u64)> = NaiveMap::new();
        let mut allocate = |model: &mut NaiveMap<u64, (u64, u64)>, addr, size, stack| {
            model.insert(addr, (size, stack));
            let sums = allocated.entry(stack).or_default();
            *sums = (sums.0 + size, sums.1 + 1);
        };
        let mut before = None;
        for (time, step) in steps.iter().enumerate() {
            if time == steps.len() / 2 {
                before = Some((heap.view(), heap.usage(u64::MAX, 0)));
            }
            let time = time as u64 * MS;
            match *step {
                Step::Alloc { tid, addr, size, stack } => {
                    heap.apply(origin(tid), Event::Alloc(block(addr, size, stack, time)));
                    allocate(&mut model, addr, size, stack);
                }
                Step::Free { tid, addr } => {
                    heap.apply(origin(tid), Event::Free(addr));
                    model.remove(&addr);
                }
                Step::Realloc { tid, old, new, size, stack, outcome } => {
                    heap.apply(origin(tid), Event::ReallocTake(old));
                    match outcome {
                        0 => {
                            heap.apply(origin(tid), Event::ReallocDone(block(new, size, stack, time)));
                            model.remove(&old);
                            allocate(&mut model, new, size, stack);
                        }
                        1 => heap.apply(origin(tid), Event::ReallocFailed(old)),
                        _ => {
                            heap.apply(origin(tid), Event::ReallocFreed(old));
                            model.remove(&old);
                        }
                    }
                }
            }
        }
        let usage = heap.usage(u64::MAX, 0);
        if let Some((mut view, held)) = before {
            prop_assert_eq!(view.usage_at(|_| u64::MAX, 0), held, "whatever has come of it since");
        }
        for stack in 1..5u64 {
            let mine = model.values().filter(|(_, s)| *s == stack);
            let expected = mine.fold((0, 0), |sum, (size, _)| (sum.0 + size, sum.1 + 1));
            prop_assert_eq!(held(&mut heap, stack), expected, "stack {}", stack);
            let Some(index) = heap.stacks().find(stack) else { continue };
            let values = usage.iter().find(|usage| usage.stack == index).map_or(Values::default(), |usage| usage.values);
            let (bytes, blocks) = allocated.get(&stack).copied().unwrap_or_default();
            prop_assert_eq!((values.allocated_bytes, values.allocated_blocks), (bytes, blocks));
            prop_assert_eq!(values.allocated_blocks, values.outstanding_blocks + values.freed_blocks);
        }
        for usage in usage {
            prop_assert_eq!(heap.values(usage.stack), usage.values, "both ways to count agree");
        }
    }
}

proptest! {
    /// What is held by old blocks, as it is known at any time, against a look at all blocks.
    #[test]
    fn blocks_of_an_age_are_known_without_looking_at_all(
        steps in proptest::collection::vec((step(), 1..4_u64), 1..300), age in 1..40_u64,
    ) {
        let age = age * 16 * MS;
        let mut heap = Heap::new(MAX_STACKS).with_min_age(age);
        let mut now = 0;
        for (step, pause) in &steps {
            now += pause * MS;
            match *step {
                Step::Alloc { tid, addr, size, stack } => {
                    heap.apply(origin(tid), Event::Alloc(block(addr, size, stack, now)));
                }
                Step::Free { tid, addr } => heap.apply(origin(tid), Event::Free(addr)),
                Step::Realloc { tid, old, new, size, stack, outcome } => {
                    heap.apply(origin(tid), Event::ReallocTake(old));
                    heap.apply(origin(tid), match outcome {
                        0 => Event::ReallocDone(block(new, size, stack, now)),
                        1 => Event::ReallocFailed(old),
                        _ => Event::ReallocFreed(old),
                    });
                }
            }
        }
        // At the end of an interval, when hardly a part of one counts: a nanosecond of a millisecond.
        let now = now.next_multiple_of(age / 16) + age / 16 - 1;
        for _ in [0, 1] {
            let mut history = History::new(0);
            heap.look(now, &mut history);
            let times = history.times();
            for usage in heap.usage(now, age) {
                let series = history.series(usage.stack.index(), &times, 0);
                let held = series.map(|series| series.values().to_vec()).unwrap_or_default();
                let expected = usage.values.outstanding_bytes as f32;
                prop_assert!((held[0] - expected).abs() <= expected / 4e5, "{held:?}, not {expected}");
            }
            // The process becomes another program, with nothing.
            heap.forget(IMAGE);
        }
    }
}
