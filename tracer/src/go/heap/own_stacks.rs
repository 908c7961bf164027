//! The stacks of one heap, numbered from 0 on. The numbers that stacks have in the trace are those of all its processes: what is kept
//! by these would take room for all stacks of all processes in each heap.

use hashbrown::HashMap;

/// Which stack of the trace has which number of its own.
#[derive(Default)]
pub(super) struct OwnStacks {
    own: HashMap<u32, u32>,
    of_trace: Vec<u32>,
}

impl OwnStacks {
    /// The own number of a stack of the trace.
    pub(super) fn own(&mut self, of_trace: u32) -> u32 {
        *self.own.entry(of_trace).or_insert_with(|| {
            self.of_trace.push(of_trace);
            self.of_trace.len() as u32 - 1
        })
    }

    /// The number in the trace of a stack that has this own one.
    pub(super) fn of_trace(&self, own: u32) -> Option<u32> {
        self.of_trace.get(own as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_numbered_as_they_come() {
        let mut stacks = OwnStacks::default();
        let own = [7_000_000, 3, 7_000_000, 9].map(|stack| stacks.own(stack));
        assert_eq!(own, [0, 1, 0, 2]);
        assert_eq!([0, 1, 2, 3].map(|own| stacks.of_trace(own)), [Some(7_000_000), Some(3), Some(9), None]);
    }
}
