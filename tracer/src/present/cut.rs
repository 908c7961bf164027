//! Stacks that end before the thread's root, and why: of which process each is that holds something, and how many others there are.

use hashbrown::HashMap;

use super::go::GoTrace;
use crate::{
    collector::{GoStack, Snapshot, StackSnapshot, Trail},
    event::Image,
    go::heap::HeapStack,
    heap::StackIndex,
    profile::{Values, quality::Truncation},
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
    all.filter_map(|(image, trail, end)| reason(trail, end).map(|reason| (image, reason))).collect()
}

/// Why a stack ends before the root, by what the BPF side gave; `None` where it does not, or nothing of it is known.
pub(super) fn reason(trail: &Trail, end: u32) -> Option<Truncation> {
    Truncation::of(end).filter(|_| matches!(trail, Trail::Known(_)))
}

/// The same of all stacks of samples that are cut.
pub(super) fn of_samples(stacks: &[GoStack]) -> HashMap<StackIndex, Truncation> {
    stacks.iter().filter_map(|stack| Some((stack.stack, reason(&stack.trail, stack.end)?))).collect()
}

/// What the reader should know of stacks that are cut and hold nothing, or nothing any more: what was allocated by them is told, and by whom
/// is not known.
pub(super) fn told_of_others(snapshot: &Snapshot, is_held: impl Fn(Image) -> bool) -> Option<String> {
    let holds = |stack: &&StackSnapshot| stack.values.outstanding_blocks > 0 && is_held(stack.image);
    let others = snapshot.stacks.iter().filter(|stack| !holds(stack) && reason(&stack.trail, stack.end).is_some());
    let (mut count, mut values) = (0_u64, Values::default());
    for stack in others {
        count += 1;
        values += stack.values;
    }
    let Values { allocated_blocks: blocks, allocated_bytes: bytes, .. } = values;
    (count > 0).then(|| {
        format!("stacks that hold nothing and are cut before the root: {count}, by which {blocks} blocks ({bytes} bytes) were allocated")
    })
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tracer_ebpf::{Loss, end};

    use super::*;
    use crate::{
        heap::Counters,
        present::{quality, same},
    };

    fn stack(image: u32, index: u32, trail: Trail, blocks: u64) -> StackSnapshot {
        StackSnapshot {
            pid: image,
            image: Image(image),
            stack: StackIndex::from_raw(index),
            values: Values {
                outstanding_blocks: blocks,
                allocated_blocks: 3,
                allocated_bytes: 300,
                ..Values::default()
            },
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

    fn snapshot(stacks: Vec<StackSnapshot>) -> Snapshot {
        Snapshot {
            at: 0,
            stacks,
            mapped: None,
            remappings: 0,
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
        }
    }

    #[test]
    fn what_there_was_no_room_for_is_told() {
        let known = || stack(1, 0, Trail::Known(Arc::from([])), 1);
        assert_eq!(quality::without_room(&snapshot(vec![known()]), |_| true), None);
        let full = |image| stack(image, 1, Trail::TableFull, 2);
        let snapshot = snapshot(vec![known(), full(1), full(2)]);
        let told = |is_held: fn(Image) -> bool| quality::without_room(&snapshot, is_held).unwrap();
        assert!(told(|_| true).contains("[stack table full], which holds 0 bytes in 4 blocks:"));
        assert!(told(|image| image == Image(1)).contains("in 2 blocks:"));
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
        let snapshot = snapshot(same::merged(stacks));
        let cut = |is_held: fn(Image) -> bool| of(&snapshot, &[], is_held);
        assert_eq!(cut(|_| true), [1, 2, 3].map(|image| (Image(image), Truncation::NoRule)));
        assert_eq!(cut(|image| image != Image(2)).len(), 2);
        let others = |is_held: fn(Image) -> bool| told_of_others(&snapshot, is_held).unwrap();
        let told =
            "stacks that hold nothing and are cut before the root: 1, by which 3 blocks (300 bytes) were allocated";
        assert_eq!(others(|_| true), told);
        assert!(others(|image| image != Image(2)).contains(": 2, by which 6 blocks (600 bytes)"));
    }
}
