//! What all stacks hold at one moment, counted by whoever wants to know while the heap goes on: to look at millions of blocks takes its time.

use super::{
    blocks::Block,
    process::Outstanding,
    stacks::{KnownStacks, StackIndex},
    weights::{Weight, Weights},
};
use crate::{
    cow::Chunks,
    event::Image,
    profile::{Estimate, Values},
};

/// What a stack holds, as its blocks are counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Left {
    bytes: u64,
    blocks: u64,
    uncertain_bytes: u64,
    /// Age of the oldest, nanoseconds: what has ended grows no older.
    oldest: u64,
    estimate: Estimate,
    /// How many images that have ended held something by it.
    pub(super) images: u64,
}

impl Left {
    pub(super) fn absorb(&mut self, other: &Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.blocks += other.blocks;
        self.uncertain_bytes = self.uncertain_bytes.saturating_add(other.uncertain_bytes);
        self.oldest = self.oldest.max(other.oldest);
        self.estimate.absorb(&other.estimate);
        self.images += other.images;
    }

    /// A block is held at `now`.
    #[inline]
    pub(super) fn add(
        &mut self,
        block: &Block,
        now: u64,
        weights: Weights,
        ambiguous: bool,
        uncertain_until: Option<u64>,
    ) {
        let Weight { bytes, blocks } = weights.of(block);
        self.bytes = self.bytes.saturating_add(bytes);
        self.blocks += blocks;
        self.oldest = self.oldest.max(now.saturating_sub(block.time));
        self.estimate.absorb(&weights.estimate(block));
        if ambiguous || uncertain_until.is_some_and(|until| block.time <= until) {
            self.uncertain_bytes = self.uncertain_bytes.saturating_add(bytes);
        }
    }
}

/// Whether a block is at least `min_age` nanoseconds old at `now`.
#[inline]
pub(super) fn is_of_age(block: &Block, now: u64, min_age: u64) -> bool {
    min_age == 0 || block.time <= now.saturating_sub(min_age)
}

/// What one stack holds at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StackUsage {
    /// Which stack.
    pub stack: StackIndex,
    /// Its amounts.
    pub values: Values,
    /// Bytes and blocks that it holds besides, younger than is asked for.
    pub younger: (u64, u64),
    /// Outstanding bytes that a lost free may have ended.
    pub uncertain_bytes: u64,
    /// Age of its oldest outstanding block, nanoseconds; of what has ended, as it was at its end.
    pub oldest: Option<u64>,
    /// How what it holds was estimated; `None` where every block was recorded.
    pub estimate: Option<Estimate>,
    /// How many images hold something by it: several where they have ended and are told as one.
    pub holders: u64,
}

/// What was held at one moment.
pub struct HeapView {
    pub(super) processes: Vec<(Image, Outstanding)>,
    pub(super) left: Chunks<Option<Box<Left>>>,
    pub(super) stacks: KnownStacks,
    pub(super) usage: Chunks<Values>,
    pub(super) weights: Weights,
    pub(super) uncertain_until: Option<u64>,
}

impl HeapView {
    /// The stacks.
    pub fn stacks(&self) -> &KnownStacks {
        &self.stacks
    }

    /// The stacks that something was allocated by.
    pub fn used(&self) -> impl Iterator<Item = StackIndex> {
        let used = self.usage.iter().enumerate().filter(|(_, values)| values.allocated_blocks > 0);
        used.map(|(index, _)| StackIndex::new(index))
    }

    /// What every stack holds, in no order, at a time of its own for each image: that of its end, for one that has ended. Blocks younger than
    /// `min_age` nanoseconds at that time are left out of the outstanding amounts. The blocks are let go by that.
    pub fn usage_at(&mut self, time: impl Fn(Image) -> u64, min_age: u64) -> Vec<StackUsage> {
        let mut held = vec![Left::default(); self.usage.len()];
        for (held, left) in held.iter_mut().zip(self.left.iter()) {
            *held = left.as_deref().copied().unwrap_or_default();
        }
        for (image, process) in std::mem::take(&mut self.processes) {
            let now = time(image);
            process.for_each(|block, ambiguous| {
                if is_of_age(&block, now, min_age)
                    && let Some(held) = held.get_mut(block.stack.index())
                {
                    held.add(&block, now, self.weights, ambiguous, self.uncertain_until);
                }
            });
        }
        let usage = self.usage.iter().zip(held).enumerate().filter(|(_, (values, _))| values.allocated_blocks > 0);
        let usage =
            usage.map(|(index, (values, Left { bytes, blocks, uncertain_bytes, oldest, estimate, images }))| {
                let all = self.weights.whole(*values);
                let values = Values { outstanding_bytes: bytes, outstanding_blocks: blocks, ..*values };
                let values = self.weights.whole(values);
                StackUsage {
                    stack: StackIndex::new(index),
                    values,
                    younger: (
                        all.outstanding_bytes.saturating_sub(values.outstanding_bytes),
                        all.outstanding_blocks.saturating_sub(values.outstanding_blocks),
                    ),
                    uncertain_bytes,
                    oldest: (blocks > 0).then_some(oldest),
                    estimate: self.weights.told(estimate),
                    holders: if blocks > 0 { images.max(1) } else { 0 },
                }
            });
        usage.collect()
    }
}
