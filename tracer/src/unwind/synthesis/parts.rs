//! What is found of a function, and what it is made of while it is looked for.

use std::{cmp::Reverse, collections::BinaryHeap};

use hashbrown::HashMap;

use super::frame::{Essence, Frame};

/// Places in a table that is used again.
const MAX_KEPT: usize = 1 << 12;

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
}

impl Function {
    /// Whether its code goes on where another one is found to begin.
    pub(super) fn goes_over(&self, entry: u64) -> bool {
        let holds = |piece: &Piece| entry.checked_sub(piece.address).is_some_and(|inside| inside < piece.length.into());
        entry != self.entry && self.pieces.iter().any(holds)
    }
}

/// What a function is made of.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) blocks: Vec<Block>,
    pub(super) by_address: HashMap<u64, u32>,
    pub(super) edges: Vec<Edge>,
    /// Pieces of blocks, each with the turn that it is of.
    pub(super) pieces: Vec<(u32, u32, Piece)>,
    /// Blocks to be walked, by address: ways meet before what is behind is walked.
    pub(super) work: BinaryHeap<Reverse<(u64, u32)>>,
}

impl Parts {
    pub(super) fn clear(&mut self) {
        self.blocks.clear();
        self.edges.clear();
        self.pieces.clear();
        self.work.clear();
        // To empty a large one takes as long as to fill it.
        if self.by_address.capacity() > MAX_KEPT { self.by_address = HashMap::new() } else { self.by_address.clear() }
    }
}

/// A way out of a block, which it was last found to have in this turn.
pub(super) struct Edge {
    pub(super) from: u32,
    pub(super) turn: u32,
    pub(super) to: u64,
    pub(super) essence: Essence,
    pub(super) is_jump: bool,
    pub(super) is_return: bool,
}

pub(super) struct Block {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) frame: Frame,
    /// From which block it was reached first, and by the return of which call.
    pub(super) via: (u32, u64),
    /// How often its instructions were applied.
    pub(super) turn: u32,
    pub(super) is_waiting: bool,
    pub(super) is_end: bool,
}
