//! Ranges of addresses as a set. Pure.

use std::ops::Range;

/// The same addresses in as few ranges, which go up: those that overlap or adjoin are one.
pub fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, known| {
        let is_one = next.start <= known.end;
        if is_one {
            known.end = known.end.max(next.end);
        }
        is_one
    });
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_or_adjoins_is_one() {
        let ranges = vec![0x30..0x40, 0x10..0x20, 0x18..0x28, 0x28..0x2f, 0x12..0x14];
        assert_eq!(joined(ranges), [0x10..0x2f, 0x30..0x40]);
        assert_eq!(joined(Vec::new()), []);
    }
}
