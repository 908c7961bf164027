//! A set of addresses, by the ranges that it is made of.

use std::{collections::BTreeMap, ops::Range};

/// By their first addresses, where they end; none overlaps another, or adjoins it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Spans(BTreeMap<u64, u64>);

impl Spans {
    /// How many ranges there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them, in order.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(start, end)| *start..*end)
    }

    /// The addresses of a range that are in, in order.
    pub(super) fn within(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let before = self.0.range(..=range.start).next_back().map_or(range.start, |(start, _)| *start);
        let all = self.0.range(before..range.end.max(before));
        let parts = all.map(|(start, end)| *start.max(&range.start)..*end.min(&range.end));
        parts.filter(|part| !part.is_empty()).collect()
    }

    /// Adds the addresses of a range.
    pub(super) fn add(&mut self, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Those that it overlaps or adjoins become one with it: the last of them first.
        while let Some((&first, &last)) = self.0.range(..=end).next_back()
            && last >= start
        {
            self.0.remove(&first);
            (start, end) = (start.min(first), end.max(last));
        }
        self.0.insert(start, end);
    }

    /// Takes the addresses of a range out. Those that were in, in order.
    pub(super) fn take(&mut self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut taken = Vec::new();
        if range.is_empty() {
            return taken;
        }
        while let Some((&first, &last)) = self.0.range(..range.end).next_back()
            && last > range.start
        {
            self.0.remove(&first);
            if range.end < last {
                self.0.insert(range.end, last);
            }
            taken.push(first.max(range.start)..last.min(range.end));
            if first < range.start {
                self.0.insert(first, range.start);
                break;
            }
        }
        taken.reverse();
        taken
    }
}

/// What of a range is in none of these parts, which are in order and do not overlap.
pub(super) fn beside(range: &Range<u64>, parts: impl IntoIterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    let mut at = range.start;
    for part in parts {
        left.push(at..part.start.min(range.end));
        at = at.max(part.end);
    }
    left.push(at..range.end);
    left.retain(|part| !part.is_empty());
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_single_addresses() {
        const END: u64 = 40;
        let mut random: u64 = 1;
        let mut below = |end: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % end
        };
        let (mut spans, mut model) = (Spans::default(), [false; END as usize]);
        for _ in 0..5_000 {
            let start = below(END);
            let range = start..start + below((END - start + 1).min(9));
            let indexes = range.start as usize..range.end as usize;
            if below(2) == 0 {
                spans.add(&range);
                model[indexes].fill(true);
            } else {
                let within = spans.within(&range);
                let taken = spans.take(&range);
                assert_eq!(within, taken);
                let addresses: Vec<u64> = taken.iter().cloned().flatten().collect();
                let expected: Vec<u64> = range.clone().filter(|address| model[*address as usize]).collect();
                assert_eq!(addresses, expected, "{range:?}");
                let rest: Vec<u64> = beside(&range, taken).into_iter().flatten().collect();
                let others: Vec<u64> = range.clone().filter(|address| !model[*address as usize]).collect();
                assert_eq!(rest, others, "{range:?}");
                model[indexes].fill(false);
            }
            let all: Vec<u64> = spans.0.iter().flat_map(|(start, end)| *start..*end).collect();
            let expected: Vec<u64> = (0..END).filter(|address| model[*address as usize]).collect();
            assert_eq!(all, expected);
            assert!(spans.0.values().all(|end| !spans.0.contains_key(end)), "some adjoin: {spans:?}");
        }
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "ranges are what is meant")]
    fn all_addresses_are_survived() {
        let mut spans = Spans::default();
        spans.add(&(0..u64::MAX));
        spans.add(&(5..u64::MAX));
        assert_eq!(spans.take(&(7..9)), [7..9]);
        assert_eq!((spans.len(), spans.take(&(0..u64::MAX)).len(), spans.len()), (2, 2, 0));
    }
}
