//! What an attempt at a function has found.

use super::Attempt;
use crate::unwind::synthesis::{
    caller::Shown,
    code::{Flow, mark},
    function::Program,
    parts::{Function, Parts},
    proof::Way,
    returns::is_stub,
};

impl Attempt<'_> {
    /// The function, of which nothing is told where its parts do not agree.
    pub(super) fn finish(&mut self, program: &Program<'_, '_>) -> Function {
        let Parts { blocks, edges, pieces, proof, ranges, .. } = &mut self.parts;
        for edge in &*edges {
            if edge.turn == blocks[edge.from as usize].turn {
                let to = &mut blocks[edge.to as usize];
                let confirms = edge.is_jump && to.frame.essence() == edge.essence;
                to.is_loop |= confirms;
                proof.ways.push(Way { from: edge.from, to: edge.to, is_return: edge.is_return, confirms });
            }
        }
        let blocks = &*blocks;
        proof.ends.extend((0..).zip(blocks).filter(|(_, block)| block.is_end).map(|(index, _)| index));
        let only_behind = |block: u32| {
            let (block, text) = (&blocks[block as usize], &program.text);
            // Of a loop that never ends, its own jump may be the only one.
            let elsewhere = if block.is_loop && !text.looks_like_start(block.start) {
                mark::JUMPED_OFTEN | mark::CALLED
            } else {
                mark::JUMPED
            };
            !text.is(block.start, elsewhere | mark::ENTRY | mark::POINTED)
                && !matches!(text.flow(block.start), Some((Flow::Nothing | Flow::Trap, _)))
        };
        proof.prove(blocks.len(), only_behind);
        let parts = &*proof.parts;
        let is_last_of = |block: u32, turn: u32| parts[block as usize] && blocks[block as usize].turn == turn;
        self.is_refused |= self.bad.iter().any(|block| parts[*block as usize])
            || self.lost.iter().any(|(block, turn)| is_last_of(*block, *turn));
        let exits = self.exits.iter().filter(|(block, turn, _)| blocks[*block as usize].turn == *turn);
        let exits = exits.map(|(block, _, exit)| (*exit, parts[*block as usize]));
        let described = |to| !program.text.contains(to) && (is_stub(program.loaded, to) || (program.has_caller)(to));
        self.function.shown = Shown::of(exits, described);
        let shown = self.aligned_calls > 0 && program.text.is(self.entry, mark::POINTED | mark::CALLED);
        self.is_refused |= !self.is_certain && !self.returns && !shown;
        let of_parts = blocks.iter().zip(parts).filter(|(_, is_part)| **is_part);
        ranges.extend(of_parts.map(|(block, _)| (block.start, block.end)));
        ranges.sort_unstable();
        // One byte in two instructions.
        self.is_refused |= ranges.windows(2).any(|pair| pair[1].0 < pair[0].1);
        if !self.is_refused {
            let last = pieces.iter().filter(|(block, turn, _)| is_last_of(*block, *turn));
            self.function.pieces.reserve_exact(pieces.len());
            self.function.pieces.extend(last.map(|(.., piece)| *piece));
        }
        std::mem::take(&mut self.function)
    }
}
