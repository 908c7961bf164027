//! Which mappings of a process are memory of Go heaps that are followed: as their runtimes say, or, where that cannot be read, by
//! address and shape. Pure.

use std::ops::Range;

use crate::{ranges::joined, space::memory_map::Region};

/// Where Go's runtime puts its heap on x86-64 (`arenaHints` in runtime/malloc.go, the first of them).
pub(super) const GO_ARENAS: Range<u64> = 0xc0_0000_0000..0x100_0000_0000;
/// Size of what the runtime reserves at a time, which is also aligned to it (`heapArenaBytes` there); from Go 1.26 on it begins
/// anywhere below where the kernel puts libraries and the C library its own of that size.
const GO_ARENA: u64 = 64 << 20;
const LIBRARIES: u64 = 0x7e00_0000_0000;
/// What Go's runtime may have mapped for its own books where it does not name that: so many bytes, which are worth no word
/// anyway, and 1 of so many of those mapped for the heap.
pub(super) const GO_BOOKS: (u64, u64) = (8 << 20, 8);
/// What names of mappings begin with that Go's runtime gives all of its own where the kernel keeps such (from Go 1.25 on), and those of
/// its heap.
const GO_NAME: &str = "[anon: Go:";
const GO_HEAPS: [&str; 2] = ["[anon: Go: heap]", "[anon: Go: heap reservation]"];

/// Where the Go heaps of a process are that are followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GoMemory {
    /// It has none.
    Nowhere,
    /// In these ranges and nowhere else, as their runtimes say.
    At(Vec<Range<u64>>),
    /// Their runtimes cannot be asked.
    Unknown,
}

impl GoMemory {
    /// Of heaps that are in these ranges, in any order.
    pub fn at(ranges: Vec<Range<u64>>) -> Self {
        // What two runtimes have, which cannot be, counts once.
        Self::At(joined(ranges))
    }

    /// Whether there is any.
    pub(super) fn is_followed(&self) -> bool {
        *self != Self::Nowhere
    }

    /// How many bytes of a mapping are of the heaps.
    pub(super) fn bytes_in(&self, regions: &[Region], index: usize) -> u64 {
        self.bytes_in_part(regions, index, &regions[index].range)
    }

    /// How many bytes of this part of a mapping are.
    pub(super) fn bytes_in_part(&self, regions: &[Region], index: usize, range: &Range<u64>) -> u64 {
        match self {
            Self::Nowhere => 0,
            Self::At(heaps) => {
                let first = heaps.partition_point(|heap| heap.end <= range.start);
                let inside = heaps[first..].iter().take_while(|heap| heap.start < range.end);
                inside.map(|heap| heap.end.min(range.end) - heap.start.max(range.start)).sum()
            }
            Self::Unknown if looks_like_heap(regions, index) => range.end - range.start,
            Self::Unknown => 0,
        }
    }
}

/// Whether a mapping may have memory of a Go heap: runtimes need be asked of no other. Of a large one that has none, such as a shadow,
/// the question alone would bring parts of their tables into memory.
pub fn may_be_heap(region: &Region) -> bool {
    region.anonymous > 0 && !region.name.starts_with('/')
}

/// Whether a mapping looks like memory of Go's heap, in a process that has one: it lies in what the runtime reserves for that, a
/// range that begins and ends as it does and has no hole.
fn looks_like_heap(regions: &[Region], index: usize) -> bool {
    let range = &regions[index].range;
    let arena = range.start - range.start % GO_ARENA;
    if !may_be_go_s(&regions[index]) || range.start >= LIBRARIES {
        return false;
    }
    let first = regions.partition_point(|region| region.range.end <= arena);
    let mut reached = arena;
    for region in regions[first..].iter().take_while(|region| may_be_go_s(region)) {
        // What adjoins from below may be one mapping with it.
        if region.range.start > reached || reached >= arena + GO_ARENA {
            break;
        }
        reached = region.range.end;
    }
    GO_ARENAS.contains(&range.start) || reached >= arena + GO_ARENA
}

/// Whether a mapping has no name, or one that runtimes of Go give theirs.
fn may_be_go_s(region: &Region) -> bool {
    region.name.is_empty() || is_named_by_go(region)
}

/// Whether a runtime of Go has given a mapping its name.
pub(super) fn is_named_by_go(region: &Region) -> bool {
    region.name.starts_with(GO_NAME)
}

/// Whether that name says that it is of a heap.
pub(super) fn is_heap_by_name(region: &Region) -> bool {
    GO_HEAPS.contains(&region.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(range: Range<u64>, anonymous: u64) -> Region {
        Region { range, name: String::new(), anonymous, usable: true }
    }

    #[test]
    fn runtimes_know_how_much_of_a_mapping_is_their_heap() {
        let at = GoMemory::at(vec![0x30..0x40, 0x10..0x20, 0x18..0x28]);
        assert_eq!(at, GoMemory::At(vec![0x10..0x28, 0x30..0x40]));
        let regions = [region(0..0x10, 1), region(0x10..0x20, 1), region(0x20..0x38, 1), region(0x38..0x50, 1)];
        assert_eq!([0, 1, 2, 3].map(|index| at.bytes_in(&regions, index)), [0, 0x10, 0x10, 8]);
        assert_eq!(GoMemory::Nowhere.bytes_in(&regions, 1), 0);
        // Shaped like arenas, where they may be: but the runtime knows better.
        let shaped = [region(0xc0_0000_0000..0xc0_0800_0000, 1), region(0x2000_0000_0000..0x2000_0800_0000, 1)];
        assert_eq!([0, 1].map(|index| at.bytes_in(&shaped, index)), [0, 0]);
        assert_eq!([0, 1].map(|index| GoMemory::Unknown.bytes_in(&shaped, index)), [0x800_0000, 0x800_0000]);
    }

    #[test]
    fn runtimes_are_asked_only_for_what_has_memory() {
        assert!(may_be_heap(&region(0..0x10, 1)));
        assert!(!may_be_heap(&region(0..0x10, 0)));
        assert!(!may_be_heap(&Region { name: "/lib/x".to_owned(), ..region(0..0x10, 1) }));
    }

    #[test]
    fn where_nobody_can_be_asked_a_heap_is_known_by_what_is_reserved_for_it() {
        let reserved = |range, usable| Region { usable, ..region(range, 0) };
        let base = 0xee5_6800_0000;
        let arena = |end| [region(base..base + 0x140_0000, 0x100_0000), reserved(base + 0x140_0000..end, false)];
        let whole = arena(base + GO_ARENA);
        assert!(looks_like_heap(&whole, 0));
        let names = ["[anon: Go: heap]", "[anon: Go: heap reservation]"];
        let named: Vec<Region> =
            whole.iter().zip(names).map(|(region, name)| Region { name: name.to_owned(), ..region.clone() }).collect();
        assert!(looks_like_heap(&named, 0));
        assert!(!looks_like_heap(&arena(base + GO_ARENA - 0x1000), 0), "it ends elsewhere");
        let [heap, rest] = whole;
        assert!(!looks_like_heap(std::slice::from_ref(&heap), 0), "nothing is reserved");
        let later = reserved(rest.range.start + 0x1000..rest.range.end, false);
        assert!(!looks_like_heap(&[heap, later], 0), "there is a hole");
        let library = LIBRARIES..LIBRARIES + GO_ARENA;
        assert!(!looks_like_heap(&[region(library, 0x1000)], 0), "the C library's");
    }
}
