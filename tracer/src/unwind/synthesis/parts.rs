//! What is found of a function, and what it is made of while it is looked for.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::{
    caller::Shown,
    frame::{Essence, Frame},
    proof::Proof,
};

/// Bytes of code from an address on, and the rule that holds there.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub(super) address: u64,
    pub(super) length: u32,
    pub(super) rule: Option<u64>,
}

/// What was found of a function.
#[derive(Default)]
pub(super) struct Function {
    pub(super) entry: u64,
    /// Nothing, where its parts do not agree.
    pub(super) pieces: Vec<Piece>,
    /// What it calls.
    pub(super) calls: Vec<u64>,
    /// Code whose address it takes.
    pub(super) pointers: Vec<u64>,
    /// Returns that take arguments off the stack.
    pub(super) popping: Vec<u64>,
    /// What it shows of its caller.
    pub(super) shown: Shown,
}

impl Function {
    /// Whether its code goes on where one of these, whose entries go up, is found to begin.
    pub(super) fn goes_over(&self, entries: &[u64]) -> bool {
        self.pieces.iter().any(|piece| {
            let behind = &entries[entries.partition_point(|entry| *entry < piece.address)..];
            let mut inside = behind.iter().take_while(|entry| **entry - piece.address < piece.length.into());
            inside.any(|entry| *entry != self.entry)
        })
    }
}

/// What a function is made of.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) blocks: Vec<Block>,
    /// By index in the code, which block begins there: its index + 1, or 0.
    begins: Vec<u32>,
    pub(super) edges: Vec<Edge>,
    /// Pieces of blocks, each with the turn that it is of.
    pub(super) pieces: Vec<(u32, u32, Piece)>,
    /// Blocks to be walked, by address: ways meet before what is behind is walked.
    pub(super) work: BinaryHeap<Reverse<(u64, u32)>>,
    pub(super) proof: Proof,
    /// Where the blocks are that are parts.
    pub(super) ranges: Vec<(u64, u64)>,
}

impl Parts {
    /// Room for so many bytes of code.
    pub(super) fn new(code: usize) -> Self {
        Self { begins: vec![0; code], ..Self::default() }
    }

    /// The block that begins at an index in the code.
    pub(super) fn block(&self, at: usize) -> Option<u32> {
        self.begins.get(at)?.checked_sub(1)
    }

    /// Adds a block, to be walked, that begins there.
    pub(super) fn add(&mut self, block: Block) {
        let index = self.blocks.len() as u32;
        self.work.push(Reverse((block.start, index)));
        if let Some(begins) = self.begins.get_mut(block.at) {
            *begins = index + 1;
        }
        self.blocks.push(block);
    }

    pub(super) fn clear(&mut self) {
        for block in self.blocks.drain(..) {
            if let Some(begins) = self.begins.get_mut(block.at) {
                *begins = 0;
            }
        }
        self.proof.clear();
        self.ranges.clear();
        self.edges.clear();
        self.pieces.clear();
        self.work.clear();
    }
}

/// A way out of a block, which it was last found to have in this turn.
pub(super) struct Edge {
    pub(super) from: u32,
    pub(super) turn: u32,
    pub(super) to: u32,
    pub(super) essence: Essence,
    pub(super) is_jump: bool,
    pub(super) is_return: bool,
}

pub(super) struct Block {
    pub(super) start: u64,
    /// Index of its first byte in the code; of none where it is outside of that.
    pub(super) at: usize,
    pub(super) end: u64,
    pub(super) frame: Frame,
    /// From which block it was reached first, and by the return of which call.
    pub(super) via: (u32, u64),
    /// How often its instructions were applied.
    pub(super) turn: u32,
    pub(super) is_waiting: bool,
    pub(super) is_end: bool,
    /// Whether a jump leads here with a frame that holds here.
    pub(super) is_loop: bool,
}
