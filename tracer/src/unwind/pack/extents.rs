//! Which parts of an array are free.

use std::{collections::BTreeMap, ops::Range};

/// Parts of an array that are free, none beside another: a part never reaches from one shard into the next.
#[derive(Clone, Debug)]
pub(super) struct Extents {
    /// Where each begins and ends.
    free: BTreeMap<usize, usize>,
    /// Length of a shard.
    shard: usize,
}

impl Extents {
    pub(super) fn new(shard: usize) -> Self {
        Self { free: BTreeMap::new(), shard }
    }

    /// How much is free.
    pub(super) fn sum(&self) -> usize {
        self.free.iter().map(|(start, end)| end - start).sum()
    }

    /// Makes a part free, which lies in one shard.
    pub(super) fn give(&mut self, part: Range<usize>) {
        let Range { mut start, mut end } = part;
        if start == end {
            return;
        }
        if !start.is_multiple_of(self.shard)
            && let Some((&before, _)) = self.free.range(..start).next_back().filter(|(_, behind)| **behind == start)
        {
            self.free.remove(&before);
            start = before;
        }
        if !end.is_multiple_of(self.shard)
            && let Some(behind) = self.free.remove(&end)
        {
            end = behind;
        }
        self.free.insert(start, end);
    }

    /// Takes the first part that is at least so long, as a whole.
    pub(super) fn take_whole(&mut self, least: usize) -> Option<Range<usize>> {
        let (&start, &end) = self.free.iter().find(|(start, end)| *end - *start >= least)?;
        self.free.remove(&start);
        Some(start..end)
    }

    /// Takes so much in one piece.
    pub(super) fn take(&mut self, length: usize) -> Option<Range<usize>> {
        let Range { start, end } = self.take_whole(length)?;
        self.give(start + length..end);
        Some(start..start + length)
    }

    /// Takes the part that ends there, if there is one.
    pub(super) fn take_last(&mut self, end: usize) -> Option<Range<usize>> {
        let (&start, _) = self.free.last_key_value().filter(|(_, behind)| **behind == end)?;
        self.free.remove(&start);
        Some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_becomes_one_again() {
        let mut extents = Extents::new(100);
        for part in [10..20, 30..40, 20..30] {
            extents.give(part);
        }
        assert_eq!((extents.sum(), extents.take_whole(31), extents.take(7)), (30, None, Some(10..17)));
        assert_eq!((extents.take_whole(23), extents.sum()), (Some(17..40), 0));
        // But not beyond a shard.
        extents.give(90..100);
        extents.give(100..110);
        assert_eq!(extents.take(11), None);
        assert_eq!((extents.take_last(109), extents.take_last(110)), (None, Some(100..110)));
    }
}
