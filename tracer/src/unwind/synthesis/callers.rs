//! Which functions have a caller, by all that is known of them together.

use hashbrown::{HashMap, HashSet};

use super::{
    code::{Text, mark},
    parts::Function,
};

/// Functions that are known to have a caller.
#[derive(Default)]
pub(super) struct Callers {
    /// Those of which others may learn it.
    known: HashSet<u64>,
    /// Those that show it for themselves only.
    alone: HashSet<u64>,
}

impl Callers {
    /// Learns from functions that are kept what they call.
    pub(super) fn learn_calls<'f>(&mut self, functions: impl IntoIterator<Item = &'f Function>) {
        let kept = functions.into_iter().filter(|function| !function.pieces.is_empty());
        self.known.extend(kept.flat_map(|function| &function.calls));
    }

    /// Learns from what returns, and what goes on in another one.
    pub(super) fn learn(&mut self, functions: &[Function], text: &Text<'_>) {
        let mut beside: HashMap<u64, Vec<u64>> = HashMap::new();
        let mut todo = Vec::new();
        for Function { entry, pieces, shown, .. } in functions {
            if text.is(*entry, mark::CALLED) {
                todo.push(*entry);
            }
            if pieces.is_empty() {
                continue;
            }
            if shown.returns {
                todo.push(*entry);
            } else if shown.has_caller {
                self.alone.insert(*entry);
            }
            for other in &shown.goes_on {
                for (one, other) in [(*entry, *other), (*other, *entry)] {
                    beside.entry(one).or_default().push(other);
                    if self.known.contains(&one) {
                        todo.push(other);
                    }
                }
            }
        }
        while let Some(entry) = todo.pop() {
            if self.known.insert(entry) {
                todo.extend(beside.remove(&entry).unwrap_or_default());
            }
        }
    }

    /// Whether the function that begins there has one.
    pub(super) fn has(&self, entry: u64) -> bool {
        self.known.contains(&entry) || self.alone.contains(&entry)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::parts::Piece, *};

    #[test]
    fn only_what_is_kept_teaches_what_it_calls() {
        let pieces = vec![Piece { address: 0x10, length: 1, rule: None }];
        let kept = Function { entry: 0x10, pieces, calls: vec![0x20], ..Function::default() };
        let nonsense = Function { entry: 0x30, calls: vec![0x40], ..Function::default() };
        let text = Text::new(&[]);
        let mut callers = Callers::default();
        callers.learn(std::slice::from_ref(&kept), &text);
        assert!(!callers.has(0x20), "it is not known yet whether it is kept");
        callers.learn_calls([&kept, &nonsense]);
        assert!(callers.has(0x20) && !callers.has(0x40));
    }
}
