//! What all heaps of a trace have in common: the sums by stack, how many blocks there are; and what is counted of each.

use std::ops::AddAssign;

use super::{
    blocks::Block,
    stacks::{StackIndex, Stacks},
    weights::{Weight, Weights},
    young::Young,
};
use crate::{cow::Chunks, profile::Values};

/// The parts of the heap that all processes share.
pub(super) struct Books<'a> {
    pub(super) stacks: &'a mut Stacks,
    pub(super) usage: &'a mut Chunks<Values>,
    pub(super) room: &'a mut Room,
    pub(super) weights: Weights,
    pub(super) young: &'a mut Option<Young>,
}

impl Books<'_> {
    #[inline]
    pub(super) fn usage(&mut self, stack: StackIndex) -> &mut Values {
        self.usage.at(stack.index())
    }

    /// Whether there is room for another block.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        self.room.taken < self.room.most
    }

    /// A block has begun: the bytes that it stands for.
    #[inline]
    pub(super) fn begin(&mut self, block: &Block) -> u64 {
        self.room.taken += 1;
        let Weight { bytes, blocks } = self.weights.of(block);
        let usage = self.usage(block.stack);
        // An allocator of the target's own may claim to have given more than there is.
        usage.outstanding_bytes = usage.outstanding_bytes.saturating_add(bytes);
        usage.outstanding_blocks += blocks;
        usage.allocated_bytes = usage.allocated_bytes.saturating_add(bytes);
        usage.allocated_blocks += blocks;
        if let Some(young) = self.young {
            young.begin(block, bytes);
        }
        bytes
    }

    /// A block was none of its own: all is as if it had never begun. The bytes that it stood for.
    pub(super) fn take_back(&mut self, block: &Block) -> u64 {
        self.end(block);
        let Weight { bytes, blocks } = self.weights.of(block);
        let usage = self.usage(block.stack);
        usage.allocated_bytes = usage.allocated_bytes.saturating_sub(bytes);
        usage.allocated_blocks = usage.allocated_blocks.saturating_sub(blocks);
        usage.freed_blocks = usage.freed_blocks.saturating_sub(blocks);
        bytes
    }

    /// A block has ended: the bytes that it stood for.
    #[inline]
    pub(super) fn end(&mut self, block: &Block) -> u64 {
        self.room.taken -= 1;
        let Weight { bytes, blocks } = self.weights.of(block);
        let usage = self.usage(block.stack);
        usage.outstanding_bytes = usage.outstanding_bytes.saturating_sub(bytes);
        usage.outstanding_blocks -= blocks;
        usage.freed_blocks += blocks;
        if let Some(young) = self.young {
            young.end(block, bytes);
        }
        bytes
    }
}

/// What went through a heap, and what did not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Events taken in.
    pub events: u64,
    /// Frees of blocks that were not known.
    pub unmatched_frees: u64,
    /// The same in processes that were forked: of blocks that they have from their parents, or that are not known.
    pub inherited_frees: u64,
    /// Blocks whose address was handed out again without a free, or that a free of what lies right below has ended.
    pub missed_frees: u64,
    /// Blocks that there was no room for.
    pub refused_blocks: u64,
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.events += other.events;
        self.unmatched_frees += other.unmatched_frees;
        self.inherited_frees += other.inherited_frees;
        self.missed_frees += other.missed_frees;
        self.refused_blocks += other.refused_blocks;
    }
}

/// How many blocks there are, and may be.
pub(super) struct Room {
    pub(super) taken: u64,
    pub(super) most: u64,
}
