//! Growth that may be none of the whole: blocks that one stack holds take the place of those of another, as when a cache that
//! was filled at the start is renewed by requests.

use std::collections::HashMap;

use crate::{
    heap::REPLACED,
    profile::{Heap, StackEntry, Trend},
};

/// What takes the place of a block is at most so many times as large, or as small.
const ALIKE: f64 = 2.0;

/// What grows is shown by memory that is less than so many times as small; and what is too little to be shown, bytes.
const SHOWN: f64 = 1.5;
const LITTLE: f64 = 256.0 * 1024.0;

/// What shrinks in one heap: average size of its blocks, rising, and bytes per second of all up to it.
#[derive(Default)]
struct Shrinking(Vec<(f64, f64)>);

impl Shrinking {
    /// Bytes per second by which stacks shrink whose blocks are of about this size.
    fn of_about(&self, block: f64) -> f64 {
        let up_to = |size: f64| match self.0.partition_point(|(block, _)| *block <= size) {
            0 => 0.0,
            number => self.0[number - 1].1,
        };
        up_to(block * ALIKE) - up_to(block / ALIKE)
    }
}

/// Says that it is too early to tell of stacks that grow hardly faster than others shrink.
pub(crate) fn doubt_what_replaces_others(stacks: &mut [StackEntry]) {
    let mut heaps: HashMap<(u32, Heap), Shrinking> = HashMap::new();
    for stack in &*stacks {
        if let Some(growth) = stack.growth
            && growth.trend == Trend::Shrinking
            && let Some(rate) = growth.rate
        {
            let heap = heaps.entry((stack.image, stack.heap.clone())).or_default();
            heap.0.push((block(stack), rate.per_second.abs()));
        }
    }
    for Shrinking(heap) in heaps.values_mut() {
        heap.sort_by(|a, b| a.0.total_cmp(&b.0));
        heap.iter_mut().fold(0.0, |sum, (_, rate)| {
            *rate += sum;
            *rate
        });
    }
    for stack in stacks {
        let block = block(stack);
        if let Some(growth) = &mut stack.growth
            && growth.trend == Trend::Growing
            && let Some(rate) = growth.rate
            && let Some(shrinking) = heaps.get(&(stack.image, stack.heap.clone()))
            && shrinking.of_about(block) >= REPLACED * rate.per_second
        {
            growth.trend = Trend::TooEarly;
        }
    }
}

/// Says the same of stacks whose blocks may have ended unseen, or taken the place of others whose end is not looked for, in processes whose
/// memory has not grown by as much: where samples are recorded nobody looks for frees of other blocks, and while probes are away for none.
pub(crate) fn doubt_what_memory_does_not_show(
    stacks: &mut [StackEntry],
    is_sampled: bool,
    seconds: f64,
    memory: impl Fn(u32) -> Option<u64>,
) {
    for stack in stacks.iter_mut().filter(|stack| stack.heap == Heap::Native) {
        let values = &stack.values;
        let held = values.outstanding_bytes as f64;
        let may_have_ended = stack.uncertain_bytes as f64 > held / 2.0;
        if (is_sampled || may_have_ended)
            && let Some(growth) = &mut stack.growth
            && growth.trend == Trend::Growing
            && let Some(rate) = growth.rate
            && let Some(fresh) = memory(stack.image)
            && (rate.per_second * seconds).min(held) > SHOWN * fresh as f64 + LITTLE
        {
            growth.trend = Trend::TooEarly;
        }
    }
}

/// Average size of the blocks of a stack, bytes; of those that it had, if it has none.
fn block(stack: &StackEntry) -> f64 {
    let values = &stack.values;
    let (bytes, blocks) = match values.outstanding_blocks {
        0 => (values.allocated_bytes, values.allocated_blocks),
        blocks => (values.outstanding_bytes, blocks),
    };
    bytes as f64 / blocks.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Growth, Rate, Values};

    fn stack(pid: u32, block: u64, per_second: f64) -> StackEntry {
        let trend = if per_second > 0.0 { Trend::Growing } else { Trend::Shrinking };
        let values = Values { outstanding_bytes: 10 * block, outstanding_blocks: 10, ..Values::default() };
        StackEntry {
            pid,
            image: pid,
            heap: Heap::Native,
            frames: [].into_iter().collect(),
            values,
            uncertain_bytes: 0,
            oldest: None,
            estimate: None,
            growth: Some(Growth { trend, rate: Some(Rate { per_second, error: 1.0 }) }),
            at_end: None,
            holders: 1,
            truncated: None,
        }
    }

    #[test]
    fn what_memory_does_not_show_is_not_said_to_grow() {
        let grows = |uncertain_bytes: u64, is_sampled: bool, fresh: Option<u64>| {
            let values = Values { outstanding_bytes: 9 << 20, outstanding_blocks: 9 << 10, ..Values::default() };
            let mut stacks = [StackEntry { uncertain_bytes, values, ..stack(1, 100, 1e6) }];
            doubt_what_memory_does_not_show(&mut stacks, is_sampled, 10.0, |image| fresh.filter(|_| image == 1));
            stacks[0].growth.unwrap().trend == Trend::Growing
        };
        assert!(grows(0, true, Some(10 << 20)));
        assert!(!grows(0, true, Some(1 << 20)));
        assert!(grows(0, false, Some(1 << 20)), "each free is seen");
        assert!(!grows(8 << 20, false, Some(1 << 20)), "but for a while");
        assert!(grows(8 << 20, false, Some(6 << 20)));
        assert!(grows(0, true, None), "it is not known");
    }

    /// Whether the first one is said to grow beside the others.
    fn grows(stacks: &[StackEntry]) -> bool {
        let mut stacks = stacks.to_vec();
        doubt_what_replaces_others(&mut stacks);
        stacks[0].growth.unwrap().trend == Trend::Growing
    }

    #[test]
    fn what_takes_the_place_of_other_blocks_is_not_said_to_grow() {
        let grown = || stack(1, 100, 1000.0);
        assert!(grows(&[grown()]));
        assert!(!grows(&[grown(), stack(1, 100, -1000.0)]));
        assert!(!grows(&[grown(), stack(1, 150, -400.0), stack(1, 60, -400.0)]));
        assert!(grows(&[grown(), stack(1, 100, -700.0)]), "faster than the other shrinks");
        assert!(grows(&[grown(), stack(2, 100, -1000.0)]), "in another process");
        assert!(grows(&[grown(), stack(1, 300, -9000.0), stack(1, 30, -9000.0)]), "blocks of other sizes");
        let other_heap = StackEntry { heap: Heap::Go, ..stack(1, 100, -1000.0) };
        assert!(grows(&[grown(), other_heap]), "in another heap");
        assert!(grows(&[grown(), stack(1, 100, 1000.0)]), "both grow");
    }
}
