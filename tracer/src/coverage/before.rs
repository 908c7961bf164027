//! What a process had when recording began: its mappings of that time, cut where it is known how much of them was there, moved as they
//! move, and without what it has mapped over them since. Where that is not known, more is taken to be from before than may be. Pure.

use std::{cmp::Reverse, ops::Range};

use crate::space::memory_map::Region;

/// Least memory of a mapping of which it is worth to know where it is, bytes: so much is there, and so much is not.
const WORTH_A_LOOK: u64 = 256 << 10;
/// Most addresses that are looked at page by page, bytes.
const MOST_LOOKED_AT: u64 = 1 << 30;

/// Anonymous memory of a process, by where it was.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Before(Vec<Region>);

impl Before {
    /// Memory in these mappings, which are in the order of their addresses.
    pub(super) fn new(regions: Vec<Region>) -> Self {
        Self(regions)
    }

    /// By address. In each it may lie anywhere.
    pub(super) fn regions(&self) -> &[Region] {
        &self.0
    }

    /// Addresses that may not be used, by address.
    pub(super) fn reserved(&self) -> Vec<Range<u64>> {
        self.0.iter().filter(|region| !region.usable).map(|region| region.range.clone()).collect()
    }

    /// Cuts mappings where `there` says that memory is in a part of them: parts in order, and how many bytes of each. It is asked of those
    /// first of which that makes most of a difference.
    pub(super) fn refine(&mut self, mut there: impl FnMut(&Range<u64>) -> Option<Vec<(Range<u64>, u64)>>) {
        let unknown = |region: &Region| region.anonymous.min(length(&region.range).saturating_sub(region.anonymous));
        let mut order: Vec<usize> = (0..self.0.len()).filter(|at| unknown(&self.0[*at]) >= WORTH_A_LOOK).collect();
        order.sort_by_key(|at| Reverse(unknown(&self.0[*at])));
        let mut left = MOST_LOOKED_AT;
        let mut known = Vec::new();
        for at in order {
            let range = &self.0[at].range;
            if length(range) <= left {
                left -= length(range);
                // More than the kernel counts has pages of zeros among it, or what the process has given up.
                let is_all = |parts: &Vec<(Range<u64>, u64)>| {
                    parts.iter().map(|(_, bytes)| bytes).sum::<u64>() <= self.0[at].anonymous
                };
                known.extend(there(range).filter(is_all).map(|parts| (at, parts)));
            }
        }
        known.sort_unstable_by_key(|(at, _)| *at);
        let mut known = known.into_iter().peekable();
        let mut refined = Vec::with_capacity(self.0.len());
        for (at, region) in std::mem::take(&mut self.0).into_iter().enumerate() {
            let Some((_, parts)) = known.next_if(|(of, _)| *of == at) else {
                refined.push(region);
                continue;
            };
            let mut reached = region.range.start;
            let mut add = |range: Range<u64>, anonymous| {
                if !range.is_empty() {
                    refined.push(Region { anonymous, ..part(&region, range) });
                }
            };
            for (range, bytes) in parts {
                add(reached..range.start, 0);
                reached = range.end;
                add(range, bytes);
            }
            add(reached..region.range.end, 0);
        }
        self.0 = refined;
    }

    /// There is other memory now in these ranges, which are in order. How many bytes are surely gone with that.
    pub(super) fn cut(&mut self, ranges: &[Range<u64>]) -> u64 {
        let mut gone: u64 = 0;
        let mut left = Vec::with_capacity(self.0.len());
        for region in std::mem::take(&mut self.0) {
            let first = ranges.partition_point(|cut| cut.end <= region.range.start);
            let cuts = ranges[first..].iter().take_while(|cut| cut.start < region.range.end);
            let (mut at, mut rest) = (region.range.start, 0);
            for cut in cuts {
                if at < cut.start {
                    left.push(part(&region, at..cut.start));
                    rest += cut.start - at;
                }
                at = at.max(cut.end);
            }
            if at == region.range.start {
                left.push(region);
                continue;
            }
            if at < region.range.end {
                left.push(part(&region, at..region.range.end));
                rest += region.range.end - at;
            }
            gone = gone.saturating_add(region.anonymous.saturating_sub(rest));
        }
        self.0 = left;
        gone
    }

    /// What was in `old` is at `to` now.
    pub(super) fn relocate(&mut self, old: &Range<u64>, to: u64) {
        let moved = self.take(old);
        let new = to..to.saturating_add(length(old));
        self.take(&new);
        let moved = moved.into_iter().map(|region| {
            let at = |address: u64| to.saturating_add(address - old.start);
            Region { range: at(region.range.start)..at(region.range.end), ..region }
        });
        let moved = moved.filter(|region| !region.range.is_empty());
        let at = self.0.partition_point(|region| region.range.end <= new.start);
        self.0.splice(at..at, moved);
    }

    /// Takes out what is in a range.
    fn take(&mut self, range: &Range<u64>) -> Vec<Region> {
        if range.is_empty() {
            return Vec::new();
        }
        let first = self.0.partition_point(|region| region.range.end <= range.start);
        let count = self.0[first..].partition_point(|region| region.range.start < range.end);
        let hit: Vec<Region> = self.0.drain(first..first + count).collect();
        let (mut taken, mut left) = (Vec::with_capacity(hit.len()), Vec::new());
        for region in hit {
            let Range { start, end } = region.range.clone();
            if start < range.start {
                left.push(part(&region, start..range.start));
            }
            taken.push(part(&region, start.max(range.start)..end.min(range.end)));
            if range.end < end {
                left.push(part(&region, range.end..end));
            }
        }
        self.0.splice(first..first, left);
        taken
    }
}

fn length(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

/// A part of a mapping: as much as there is room for may lie in it.
fn part(region: &Region, range: Range<u64>) -> Region {
    Region { anonymous: region.anonymous.min(length(&range)), range, name: region.name.clone(), usable: region.usable }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(range: Range<u64>, anonymous: u64) -> Region {
        Region { range, name: String::new(), anonymous, usable: true }
    }

    #[track_caller]
    fn check(before: &Before, expected: &[(Range<u64>, u64)]) {
        let parts: Vec<_> = before.regions().iter().map(|region| (region.range.clone(), region.anonymous)).collect();
        assert_eq!(parts, expected);
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "ranges are what is meant")]
    fn what_is_mapped_over_it_is_none_of_it() {
        let mut before = Before::new(vec![region(0..100, 100), region(200..300, 0), region(400..500, 30)]);
        assert_eq!(before.cut(&[]), 0);
        assert_eq!(before.cut(&[20..40, 90..210, 250..260]), 30);
        check(&before, &[(0..20, 20), (40..90, 50), (210..250, 0), (260..300, 0), (400..500, 30)]);
        // It may lie in any part of what is left.
        assert_eq!(before.cut(&[450..460, 480..600]), 0);
        check(&before, &[(0..20, 20), (40..90, 50), (210..250, 0), (260..300, 0), (400..450, 30), (460..480, 20)]);
        assert_eq!(before.cut(&[0..1000]), 120);
        check(&before, &[]);
    }

    #[test]
    fn it_moves_as_mappings_do() {
        let mut before = Before::new(vec![region(0..100, 100), region(200..300, 100), region(500..600, 100)]);
        before.relocate(&(50..250), 520);
        check(&before, &[(0..50, 50), (250..300, 50), (500..520, 20), (520..570, 50), (670..720, 50)]);
        before.relocate(&(500..520), 0);
        check(&before, &[(0..20, 20), (20..50, 30), (250..300, 50), (520..570, 50), (670..720, 50)]);
        before.relocate(&(1000..2000), 600);
        check(&before, &[(0..20, 20), (20..50, 30), (250..300, 50), (520..570, 50)]);
        before.relocate(&(0..u64::MAX), u64::MAX - 10);
        before.relocate(&(7..7), 3);
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "ranges are what is meant")]
    fn it_is_cut_where_it_is() {
        const MIB: u64 = 1 << 20;
        let all = [region(0..MIB, MIB), region(2 * MIB..10 * MIB, 4 * MIB), region(20 * MIB..21 * MIB, 4096)];
        let mut before = Before::new(all.to_vec());
        before.refine(|range| {
            assert_eq!(range, &(2 * MIB..10 * MIB), "of the others it is known, or they are too small");
            Some(vec![(2 * MIB..5 * MIB, 3 * MIB), (6 * MIB..7 * MIB, MIB)])
        });
        let parts = [
            (0..MIB, MIB),
            (2 * MIB..5 * MIB, 3 * MIB),
            (5 * MIB..6 * MIB, 0),
            (6 * MIB..7 * MIB, MIB),
            (7 * MIB..10 * MIB, 0),
            (20 * MIB..21 * MIB, 4096),
        ];
        check(&before, &parts);
        let mut before = Before::new(all.to_vec());
        before.refine(|_| None);
        assert_eq!(before.regions(), all);
        let huge = [region(0..1 << 40, 1 << 39), region(1 << 40..(1 << 40) + 8 * MIB, 4 * MIB)];
        let mut before = Before::new(huge.to_vec());
        let mut asked = Vec::new();
        before.refine(|range| {
            asked.push(range.clone());
            None
        });
        assert_eq!(asked, [1 << 40..(1 << 40) + 8 * MIB], "what is too large is left as it is");
    }
}
