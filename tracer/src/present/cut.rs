//! Stacks that hold something and end before the thread's root: of which process each is, and why it ends there.

use hashbrown::HashMap;

use super::go::GoTrace;
use crate::{
    collector::{Snapshot, Trail},
    event::Image,
    go::heap::HeapStack,
    heap::StackIndex,
    profile::quality::Truncation,
};

/// Those of a snapshot in which equal stacks are one, each with the reason that the BPF side gave. `is_held`: whether what stacks of an
/// image held counts as outstanding.
pub(super) fn of(snapshot: &Snapshot, go: &[GoTrace], is_held: impl Fn(Image) -> bool) -> Vec<(Image, Truncation)> {
    let native = snapshot.stacks.iter().filter(|stack| stack.values.outstanding_blocks > 0);
    let native = native.map(|stack| (stack.image, &stack.trail, stack.end));
    let trails: HashMap<StackIndex, (&Trail, u32)> =
        snapshot.go_stacks.iter().map(|stack| (stack.stack, (&stack.trail, stack.end))).collect();
    let mut sampled = Vec::new();
    for go in go {
        for usage in go.heap.stacks.iter().filter(|usage| usage.values.outstanding_blocks > 0) {
            if let HeapStack::Sampled(stack) = &usage.stack
                && let Some((trail, end)) = trails.get(&StackIndex::from_raw(*stack))
            {
                sampled.push((go.image, *trail, *end));
            }
        }
    }
    let mapped = snapshot.mapped.iter().flatten().filter(|stack| stack.values.bytes > 0);
    let mapped = mapped.map(|stack| (stack.image, &stack.trail, stack.end));
    let all = native.chain(sampled).chain(mapped).filter(|(image, ..)| is_held(*image));
    all.filter_map(|(image, trail, end)| {
        let is_known = matches!(trail, Trail::Known(_));
        Truncation::of(end).filter(|_| is_known).map(|reason| (image, reason))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tracer_ebpf::{Loss, end};

    use super::*;
    use crate::{collector::StackSnapshot, heap::Counters, present::same, profile::Values};

    fn stack(image: u32, index: u32, trail: Trail, blocks: u64) -> StackSnapshot {
        StackSnapshot {
            pid: image,
            image: Image(image),
            stack: StackIndex::from_raw(index),
            values: Values { outstanding_blocks: blocks, ..Values::default() },
            younger: (0, 0),
            uncertain_bytes: 0,
            oldest: None,
            estimate: None,
            holders: 1,
            held: None,
            trail,
            end: end::NO_RULE,
        }
    }

    /// As many as there are in what is shown: not those that differ in what was cut off only, nor those of processes that have ended.
    #[test]
    fn each_is_counted_once_and_where_it_holds_something() {
        let known = || Trail::Known(Arc::from([]));
        let stacks = vec![
            stack(1, 0, known(), 1),
            stack(1, 1, known(), 1),
            stack(1, 2, Trail::Lost, 1),
            stack(2, 3, known(), 1),
            stack(3, 4, known(), 1),
            stack(4, 5, known(), 0),
        ];
        let snapshot = Snapshot {
            at: 0,
            stacks: same::merged(stacks),
            mapped: None,
            refused_remappings: 0,
            go_stacks: Vec::new(),
            counters: Counters::default(),
            loss: Loss::default(),
            folded: (0, 0),
            unknown_records: 0,
            late: (0, Duration::ZERO),
            unheard: 0,
            undecided_events: 0,
            unwind_tables: Vec::new(),
        };
        let cut = |is_held: fn(Image) -> bool| of(&snapshot, &[], is_held);
        assert_eq!(cut(|_| true), [1, 2, 3].map(|image| (Image(image), Truncation::NoRule)));
        assert_eq!(cut(|image| image != Image(2)).len(), 2);
    }
}
