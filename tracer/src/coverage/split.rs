//! Addresses cut by the mappings that they lie in. Pure.

use std::ops::Range;

use crate::space::memory_map::Region;

/// The parts of a range, cut where mappings begin and end, which are in the order of their addresses: each with the place of the mapping that
/// it lies in; `None` where there is none.
pub(super) fn split(range: &Range<u64>, regions: &[Region]) -> Vec<(Range<u64>, Option<usize>)> {
    let mut parts = Vec::new();
    let mut at = range.start;
    let first = regions.partition_point(|region| region.range.end <= at);
    let hit = regions.iter().enumerate().skip(first).take_while(|(_, region)| region.range.start < range.end);
    for (place, region) in hit {
        let shared = region.range.start.max(at)..region.range.end.min(range.end);
        if shared.is_empty() {
            continue;
        }
        if at < shared.start {
            parts.push((at..shared.start, None));
        }
        at = shared.end;
        parts.push((shared, Some(place)));
    }
    if at < range.end {
        parts.push((at..range.end, None));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_in_one_mapping_or_in_none() {
        let region = |range| Region { range, name: String::new(), anonymous: 0, usable: true };
        let regions = [region(0..10), region(20..30), region(30..40), region(50..60)];
        for (range, expected) in [
            (2..8, vec![(2..8, Some(0))]),
            (5..35, vec![(5..10, Some(0)), (10..20, None), (20..30, Some(1)), (30..35, Some(2))]),
            (12..18, vec![(12..18, None)]),
            (55..70, vec![(55..60, Some(3)), (60..70, None)]),
            (7..7, vec![]),
        ] {
            assert_eq!(split(&range, &regions), expected);
        }
    }
}
