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

/// Which blocks are part of the function that begins with the first one. Code behind a call is where the call is known to
/// return: from there on a consistent end is reached, or nothing else leads to it (`only_behind`). `ends`: blocks with one.
pub(super) fn proven(blocks: usize, ways: &[Way], mut ends: Vec<u32>, only_behind: impl Fn(u32) -> bool) -> Vec<bool> {
    let (forth, back) = (Lists::new(blocks, ways, |way| way.from), Lists::new(blocks, ways, |way| way.to));
    let mut lead_to_end = vec![false; blocks];
    let mut parts = vec![false; blocks];
    for _ in 0..TURNS {
        while let Some(block) = ends.pop() {
            if !std::mem::replace(&mut lead_to_end[block as usize], true) {
                ends.extend(back.of(block).map(|way| way.from));
            }
        }
        parts.fill(false);
        let mut todo = vec![0];
        while let Some(block) = todo.pop() {
            if !std::mem::replace(&mut parts[block as usize], true) {
                let is_trusted = |way: &&Way| !way.is_return || lead_to_end[way.to as usize] || only_behind(way.to);
                todo.extend(forth.of(block).filter(is_trusted).map(|way| way.to));
            }
        }
        let confirms = |way: &&Way| way.confirms && parts[way.to as usize] && !lead_to_end[way.from as usize];
        ends.extend(ways.iter().filter(confirms).map(|way| way.from));
        if ends.is_empty() {
            break;
        }
    }
    parts
}

/// Ways by block.
struct Lists<'w> {
    ways: &'w [Way],
    /// Indices of ways, those of a block together.
    order: Vec<u32>,
    first: Vec<u32>,
}

impl<'w> Lists<'w> {
    fn new(blocks: usize, ways: &'w [Way], block: impl Fn(&Way) -> u32) -> Self {
        let mut first = vec![0; blocks + 2];
        for way in ways {
            first[block(way) as usize + 2] += 1;
        }
        for at in 2..first.len() {
            first[at] += first[at - 1];
        }
        let mut order = vec![0; ways.len()];
        for (index, way) in ways.iter().enumerate() {
            // Where the next one of the block goes, which in the end is where those of the block behind begin.
            let next = &mut first[block(way) as usize + 1];
            order[*next as usize] = index as u32;
            *next += 1;
        }
        Self { ways, order, first }
    }

    fn of(&self, block: u32) -> impl Iterator<Item = &Way> {
        let range = self.first[block as usize] as usize..self.first[block as usize + 1] as usize;
        self.order[range].iter().map(|index| &self.ways[*index as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
