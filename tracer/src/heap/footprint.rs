//! Where the blocks of a process have ever been: what an allocator keeps of them after they are freed lies there.

use std::{collections::BTreeMap, ops::Range};

/// Bytes of a unit that is marked as a whole, as a power of two.
const UNIT: u32 = 16;
/// Units of one chunk: 2 GiB of addresses, 4 KiB of marks.
const CHUNK: u64 = 1 << 15;
/// Most chunks: addresses of 8 TiB. What a hostile process claims beyond is not marked.
const MAX_CHUNKS: usize = 1 << 12;
/// Most units of one block that are marked: 1 TiB.
const MAX_UNITS: u64 = 1 << (40 - UNIT);
/// Least size of blocks that glibc may map on their own, and where in their first page those lie: it unmaps them when they are
/// freed, and others may be mapped there. (malloc/malloc.c, `sysmalloc_mmap` and `mmap_threshold`.)
const OWN_MAPPING: (u64, u64) = (64 << 10, 0x10);

/// Units of a huge page, 2 MiB: half a word of marks.
const HUGE_PAGE: u64 = 32;

type Marks = Box<[u64; (CHUNK / 64) as usize]>;

/// The addresses of all blocks that there have been, in units of 64 KiB.
#[derive(Default)]
pub(super) struct Footprint {
    chunks: BTreeMap<u64, Marks>,
    /// The unit that was marked last: most blocks are near each other.
    last: Option<u64>,
}

impl Footprint {
    /// A block is there.
    #[inline]
    pub(super) fn add(&mut self, addr: u64, size: u64) {
        let (first, last) = units(addr, size);
        if first == last && self.last == Some(first) {
            return;
        }
        self.last = Some(last);
        self.set(first..last + 1, true);
    }

    /// A block has been freed. It may be handed out again, unless its memory is no longer the allocator's.
    #[inline]
    pub(super) fn free(&mut self, addr: u64, size: u64) {
        if size < OWN_MAPPING.0 || addr & 0xfff != OWN_MAPPING.1 {
            return;
        }
        let (first, last) = units(addr, size);
        self.last = None;
        // Those at its ends may be others' too.
        self.set(first + 1..last, false);
    }

    /// What was there before is not any more, and what comes is none of the allocator's unless blocks are told to be there.
    pub(super) fn clear(&mut self, range: &Range<u64>) {
        // Those at its ends may be others' too.
        let (first, last) = (range.start.div_ceil(1 << UNIT), range.end >> UNIT);
        if first < last {
            self.last = None;
            self.set(first..last, false);
        }
    }

    /// Bytes of `range` that blocks have been in or near to: in the same huge page or the one beside it, if `huge_pages` come unasked. Allocators have
    /// books of their own beside what they hand out, and a few bytes of those take a whole one.
    pub(super) fn covered(&self, range: &Range<u64>, huge_pages: bool) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let (first, last) = units(range.start, range.end - range.start);
        let mut bytes: u64 = 0;
        for (chunk, marks) in self.chunks.range(first / CHUNK..=last / CHUNK) {
            let base = chunk * CHUNK;
            for unit in base.max(first)..=(base + CHUNK - 1).min(last) {
                let index = unit - base;
                let is_near = if huge_pages {
                    let page = index / HUGE_PAGE;
                    (page.saturating_sub(1)..=page + 1).any(|page| has_any(marks, page))
                } else {
                    marks[(index / 64) as usize] & 1 << (index % 64) != 0
                };
                if is_near {
                    let start = unit << UNIT;
                    bytes += start.saturating_add(1 << UNIT).min(range.end) - start.max(range.start);
                }
            }
        }
        bytes
    }

    fn set(&mut self, units: Range<u64>, present: bool) {
        let units = units.start..units.end.min(units.start.saturating_add(MAX_UNITS));
        let mut unit = units.start;
        while unit < units.end {
            let (chunk, end) = (unit / CHUNK, units.end.min((unit / CHUNK + 1) * CHUNK));
            let full = self.chunks.len() >= MAX_CHUNKS || !present;
            let marks = match self.chunks.get_mut(&chunk) {
                Some(marks) => Some(marks),
                None if full => None,
                None => Some(self.chunks.entry(chunk).or_insert_with(|| Box::new([0; (CHUNK / 64) as usize]))),
            };
            if let Some(marks) = marks {
                set_within(marks, unit % CHUNK..end - chunk * CHUNK, present);
            }
            unit = end;
        }
    }
}

/// Marks units of one chunk, by their places in it: as many at once as there are in the same word.
fn set_within(marks: &mut Marks, units: Range<u64>, present: bool) {
    let mut index = units.start;
    while index < units.end {
        let number = (64 - index % 64).min(units.end - index);
        let mask = (u64::MAX >> (64 - number)) << (index % 64);
        let word = &mut marks[(index / 64) as usize];
        *word = if present { *word | mask } else { *word & !mask };
        index += number;
    }
}

/// Whether there is a mark in a huge page of a chunk, by its place in that.
fn has_any(marks: &Marks, page: u64) -> bool {
    marks.get((page / 2) as usize).is_some_and(|word| (word >> (page % 2 * HUGE_PAGE)) as u32 != 0)
}

/// First and last unit of a block; one of no bytes has one too.
fn units(addr: u64, size: u64) -> (u64, u64) {
    (addr >> UNIT, addr.saturating_add(size.max(1) - 1) >> UNIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const K64: u64 = 1 << UNIT;

    #[test]
    fn a_huge_page_is_there_as_a_whole_and_so_is_the_one_beside() {
        let mut footprint = Footprint::default();
        footprint.add(37 * K64, 1);
        footprint.add(224 * K64, 1);
        assert_eq!(footprint.covered(&(0..400 * K64), false), 2 * K64);
        // 0 to 96, and 192 to 288.
        assert_eq!(footprint.covered(&(0..400 * K64), true), 192 * K64);
        assert_eq!(footprint.covered(&(90 * K64..194 * K64), true), 8 * K64);
        assert_eq!(footprint.covered(&(96 * K64..192 * K64), true), 0);
    }

    #[test]
    fn units_of_blocks_are_covered_and_no_others() {
        let mut footprint = Footprint::default();
        footprint.add(5 * K64 + 100, 200);
        footprint.add(5 * K64 + 300, 0);
        footprint.add(200 * K64 - 1, 2 * K64);
        assert_eq!(footprint.covered(&(0..u64::MAX), false), 4 * K64);
        assert_eq!(footprint.covered(&(5 * K64 + 8..5 * K64 + 12), false), 4);
        assert_eq!(footprint.covered(&(6 * K64..199 * K64), false), 0);
        assert_eq!(footprint.covered(&(200 * K64 + 1..300 * K64), false), 2 * K64 - 1);
        assert_eq!(footprint.covered(&(7..7), false), 0);
    }

    #[test]
    fn freed_memory_stays_covered_unless_it_was_a_mapping_of_its_own() {
        let mut footprint = Footprint::default();
        footprint.add(0x10_0000, 10 * K64);
        footprint.free(0x10_0000, 10 * K64);
        assert_eq!(footprint.covered(&(0..u64::MAX), false), 10 * K64);
        footprint.add(0x8000_0010, 10 * K64);
        footprint.free(0x8000_0010, 10 * K64);
        // Its first unit and its last are not known to be its alone.
        assert_eq!(footprint.covered(&(0x8000_0000..u64::MAX), false), 2 * K64);
        footprint.add(0x8000_0010, 10 * K64);
        assert_eq!(footprint.covered(&(0x8000_0000..u64::MAX), false), 11 * K64);
    }

    #[test]
    fn what_is_unmapped_is_covered_no_more() {
        let mut footprint = Footprint::default();
        footprint.add(0x8000_0000, 10 * K64);
        footprint.clear(&(0x8000_0000 + 1..0x8000_0000 + 4 * K64));
        assert_eq!(footprint.covered(&(0..u64::MAX), false), 7 * K64, "the first unit was not unmapped as a whole");
        footprint.clear(&(0x8000_0000..0x8000_0000 + K64 - 1));
        assert_eq!(footprint.covered(&(0..u64::MAX), false), 7 * K64);
        footprint.clear(&(0..u64::MAX));
        footprint.add(0x8000_0000, 1);
        assert_eq!(footprint.covered(&(0..u64::MAX), false), K64);
    }

    #[test]
    fn across_words_and_chunks_as_one_by_one() {
        for (start, number) in [(0, 64), (63, 2), (60, 200), (CHUNK - 1, 2), (CHUNK - 70, 2 * CHUNK + 100), (1, 1)] {
            let mut footprint = Footprint::default();
            footprint.add(start * K64, number * K64);
            assert_eq!(footprint.covered(&(0..u64::MAX), false), number * K64, "{start} {number}");
            assert_eq!(
                footprint.covered(&((start + 1) * K64..u64::MAX), false),
                (number - 1) * K64,
                "{start} {number}"
            );
        }
    }

    #[test]
    fn claims_of_more_than_there_is_are_bounded() {
        let mut footprint = Footprint::default();
        for addr in [0, u64::MAX, 1 << 63, 5 << 50] {
            footprint.add(addr, u64::MAX);
            footprint.free(addr | 0x10, u64::MAX);
        }
        for chunk in 0..2 * MAX_CHUNKS as u64 {
            footprint.add(chunk * CHUNK * K64, 1);
        }
        assert!(footprint.chunks.len() <= MAX_CHUNKS);
    }
}
