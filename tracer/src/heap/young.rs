//! What each stack holds in blocks that are younger than some age, so that what it held in older ones is known at any time.
//!
//! Bytes are kept by when their blocks were born, in intervals of a sixteenth of that age. Whole intervals grow old at once;
//! of the one that is just growing old the part counts that has passed.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::{
    StackIndex,
    blocks::{Block, TICK},
};

/// Intervals in the age.
const INTERVALS: u64 = 16;

/// Bytes of young blocks. Times are nanoseconds.
pub(super) struct Young {
    /// From this age on a block is old.
    age: u64,
    width: u64,
    /// Number of the first interval that is kept: the time that it began, in widths.
    first: u64,
    intervals: VecDeque<HashMap<StackIndex, u64>>,
}

impl Young {
    pub(super) fn new(age: u64) -> Self {
        let width = (age / INTERVALS).max(TICK);
        Self { age, width, first: 0, intervals: VecDeque::new() }
    }

    /// A block was born that stands for so many bytes.
    pub(super) fn begin(&mut self, block: &Block, held: u64) {
        let number = self.interval(block);
        if self.intervals.is_empty() {
            self.first = number;
        }
        self.forget(block.time);
        let Some(at) = number.checked_sub(self.first) else { return };
        // What has been forgotten leaves no more than there are in the age, and one at each end.
        while self.intervals.len() as u64 <= at {
            self.intervals.push_back(HashMap::new());
        }
        if let Some(interval) = self.intervals.get_mut(at as usize) {
            let bytes = interval.entry(block.stack).or_default();
            *bytes = bytes.saturating_add(held);
        }
    }

    /// A block has ended.
    pub(super) fn end(&mut self, block: &Block, held: u64) {
        let at = self.interval(block).checked_sub(self.first);
        let interval = at.and_then(|at| self.intervals.get_mut(at as usize));
        if let Some(interval) = interval
            && let Some(bytes) = interval.get_mut(&block.stack)
        {
            *bytes = bytes.saturating_sub(held);
            if *bytes == 0 {
                interval.remove(&block.stack);
            }
        }
    }

    /// Forgets what these stacks hold.
    pub(super) fn drop_stacks(&mut self, stacks: &[StackIndex]) {
        for interval in &mut self.intervals {
            for stack in stacks {
                interval.remove(stack);
            }
        }
    }

    /// Takes from what each stack holds, by its index, what is young at `now`.
    pub(super) fn subtract_from(&mut self, held: &mut [u64], now: u64) {
        self.forget(now);
        let border = now.saturating_sub(self.age);
        for (number, interval) in (self.first..).zip(&self.intervals) {
            let end = (number + 1).saturating_mul(self.width);
            let young = end.saturating_sub(border).min(self.width) as f64 / self.width as f64;
            for (stack, bytes) in interval {
                if let Some(held) = held.get_mut(stack.index()) {
                    *held = held.saturating_sub((*bytes as f64 * young) as u64);
                }
            }
        }
    }

    fn interval(&self, block: &Block) -> u64 {
        // As it is stored, so that its end finds what its birth has counted.
        block.time / TICK * TICK / self.width
    }

    /// Forgets the intervals that have grown old.
    fn forget(&mut self, now: u64) {
        let border = now.saturating_sub(self.age) / self.width;
        let old = border.saturating_sub(self.first).min(self.intervals.len() as u64);
        self.intervals.drain(..old as usize);
        self.first = if self.intervals.is_empty() { self.first.max(border) } else { self.first + old };
    }
}
