//! Which parts of a function are proved: those that lead to where it returns as a function does.

/// How often what is found is looked at again.
const TURNS: usize = 64;

/// A way from one block to another one.
#[derive(Clone, Copy)]
pub(super) struct Way {
    pub(super) from: u32,
    pub(super) to: u32,
    /// By the return of a call.
    pub(super) is_return: bool,
    /// By a jump that says of the frame what holds where it leads to.
    pub(super) confirms: bool,
}

/// What functions are proved with, in room that they take by turns.
#[derive(Default)]
pub(super) struct Proof {
    /// The ways of a function.
    pub(super) ways: Vec<Way>,
    /// Its blocks where it ends as functions do.
    pub(super) ends: Vec<u32>,
    /// Which of its blocks are parts of it.
    pub(super) parts: Vec<bool>,
    lead_to_end: Vec<bool>,
    todo: Vec<u32>,
    forth: Lists,
    back: Lists,
}

impl Proof {
    pub(super) fn clear(&mut self) {
        self.ways.clear();
        self.ends.clear();
    }

    /// Finds which blocks are part of the function that begins with the first one. Code behind a call is where the call is known to
    /// return: from there on a consistent end is reached, or nothing else leads to it (`only_behind`).
    pub(super) fn prove(&mut self, blocks: usize, only_behind: impl Fn(u32) -> bool) {
        let Self { ways, ends, parts, lead_to_end, todo, forth, back } = self;
        forth.fill(blocks, ways, |way| way.from);
        back.fill(blocks, ways, |way| way.to);
        for marks in [&mut *parts, &mut *lead_to_end] {
            marks.clear();
            marks.resize(blocks, false);
        }
        for _ in 0..TURNS {
            while let Some(block) = ends.pop() {
                if !std::mem::replace(&mut lead_to_end[block as usize], true) {
                    ends.extend(back.of(block).iter().map(|way| ways[*way as usize].from));
                }
            }
            parts.fill(false);
            todo.push(0);
            while let Some(block) = todo.pop() {
                if !std::mem::replace(&mut parts[block as usize], true) {
                    let is_trusted = |way: &&Way| !way.is_return || lead_to_end[way.to as usize] || only_behind(way.to);
                    let ways = forth.of(block).iter().map(|way| &ways[*way as usize]);
                    todo.extend(ways.filter(is_trusted).map(|way| way.to));
                }
            }
            let confirms = |way: &&Way| way.confirms && parts[way.to as usize] && !lead_to_end[way.from as usize];
            ends.extend(ways.iter().filter(confirms).map(|way| way.from));
            if ends.is_empty() {
                break;
            }
        }
    }
}

/// Ways by block.
#[derive(Default)]
struct Lists {
    /// Indices of ways, those of a block together.
    order: Vec<u32>,
    first: Vec<u32>,
}

impl Lists {
    fn fill(&mut self, blocks: usize, ways: &[Way], block: impl Fn(&Way) -> u32) {
        let Self { order, first } = self;
        first.clear();
        first.resize(blocks + 2, 0);
        order.clear();
        order.resize(ways.len(), 0);
        for way in ways {
            first[block(way) as usize + 2] += 1;
        }
        for at in 2..first.len() {
            first[at] += first[at - 1];
        }
        for (index, way) in ways.iter().enumerate() {
            // Where the next one of the block goes, which in the end is where those of the block behind begin.
            let next = &mut first[block(way) as usize + 1];
            order[*next as usize] = index as u32;
            *next += 1;
        }
    }

    fn of(&self, block: u32) -> &[u32] {
        let range = self.first[block as usize] as usize..self.first[block as usize + 1] as usize;
        &self.order[range]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which blocks are parts.
    fn proven(blocks: usize, ways: &[Way], ends: Vec<u32>, only_behind: impl Fn(u32) -> bool) -> Vec<bool> {
        let mut proof = Proof { ways: ways.to_vec(), ends, ..Proof::default() };
        proof.prove(blocks, only_behind);
        proof.parts
    }

    fn way(from: u32, to: u32, is_return: bool, confirms: bool) -> Way {
        Way { from, to, is_return, confirms }
    }

    #[test]
    fn code_behind_a_call_is_a_part_where_the_call_is_known_to_return() {
        let ways = [way(0, 1, true, false), way(1, 2, false, false)];
        assert_eq!(proven(3, &ways, vec![], |_| false), [true, false, false]);
        assert_eq!(proven(3, &ways, vec![2], |_| false), [true, true, true], "there is an end");
        assert_eq!(proven(3, &ways, vec![], |block| block == 1), [true, true, true], "nothing else leads there");
    }

    #[test]
    fn a_jump_back_into_the_function_is_an_end() {
        let ways = [way(0, 1, true, false), way(1, 0, false, true)];
        assert_eq!(proven(2, &ways, vec![], |_| false), [true, true]);
        let ways = [way(0, 1, true, false), way(1, 0, false, false)];
        assert_eq!(proven(2, &ways, vec![], |_| false), [true, false], "the frame there is another one");
    }
}
