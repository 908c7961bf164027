//! The arithmetic: which memory is new, and in how much of that recorded blocks have ever been. Pure.

use std::{collections::BTreeMap, ops::Range};

use crate::{profile::Area, space::memory_map::Region};

/// Where Go's runtime puts its heap on x86-64 (`arenaHints` in runtime/malloc.go, the first of them).
const GO_ARENAS: Range<u64> = 0xc0_0000_0000..0x100_0000_0000;
/// Size of what the runtime reserves at a time, which is also aligned to it (`heapArenaBytes` there); from Go 1.26 on it begins
/// anywhere below where the kernel puts libraries and the C library its own of that size.
const GO_ARENA: u64 = 64 << 20;
const LIBRARIES: u64 = 0x7e00_0000_0000;
/// What Go's runtime may have mapped for its own books where it does not name that: so many bytes, which are worth no word
/// anyway, and 1 of so many of those mapped for the heap.
const GO_BOOKS: (u64, u64) = (8 << 20, 8);
/// What names of mappings begin with that Go's runtime gives all of its own where the kernel keeps such (from Go 1.25 on).
const GO_NAME: &str = "[anon: Go:";
/// Largest guard of a thread's stack, and largest stack, bytes.
const STACK: (u64, u64) = (64 << 10, 64 << 20);

/// The new memory of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// Bytes that are resident and were not.
    pub(super) fresh: u64,
    /// Those of them in which no recorded block has been, by the kind of memory.
    pub(super) unexplained: BTreeMap<Area, u64>,
    /// Those that are in the heap of Go, where it is followed. Whoever follows it knows how much of them it explains.
    pub(super) in_go: u64,
}

impl Account {
    /// All bytes in which no recorded block has been.
    pub(super) fn unexplained(&self) -> u64 {
        self.unexplained.values().sum()
    }
}

/// A part of a mapping that was in one mapping before as a whole, or in none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Place of the mapping in the list of them.
    region: usize,
    /// Its addresses.
    pub(super) range: Range<u64>,
    /// Anonymous memory in it at the beginning; `None` when nothing was mapped there.
    before: Option<u64>,
}

impl Piece {
    /// How much there is room for beside what was there at the beginning.
    fn room(&self) -> u64 {
        (self.range.end - self.range.start).saturating_sub(self.before.unwrap_or(0))
    }
}

/// The mappings at the end that have anonymous memory, cut where those at the beginning begin and end.
pub(super) fn pieces(begin: &[Region], end: &[Region]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (region, now) in end.iter().enumerate().filter(|(_, region)| region.anonymous > 0) {
        let mut at = now.range.start;
        let first = begin.partition_point(|before| before.range.end <= at);
        for before in begin[first..].iter().take_while(|before| before.range.start < now.range.end) {
            let shared = before.range.start.max(at)..before.range.end.min(now.range.end);
            if shared.is_empty() {
                continue;
            }
            if at < shared.start {
                pieces.push(Piece { region, range: at..shared.start, before: None });
            }
            // Its pages are taken to be spread evenly.
            let share = u128::from(before.anonymous) * u128::from(shared.end - shared.start)
                / u128::from(before.range.end - before.range.start);
            at = shared.end;
            pieces.push(Piece { region, range: shared, before: Some(share as u64) });
        }
        if at < now.range.end {
            pieces.push(Piece { region, range: at..now.range.end, before: None });
        }
    }
    pieces
}

/// What became resident, and what of that recorded blocks explain. `covered`: how many bytes of each piece recorded blocks
/// have been in. `go`: the heap of Go is followed; what its runtime has for its books is explained.
pub(super) fn account(begin: &[Region], end: &[Region], pieces: &[Piece], covered: &[u64], go: bool) -> Account {
    let mut account = Account::default();
    let mut rest = covered.iter().copied();
    for parts in pieces.chunk_by(|a, b| a.region == b.region) {
        let index = parts[0].region;
        let before = parts.iter().filter_map(|part| part.before).fold(0, u64::saturating_add);
        // Blocks in pages that were there already explain nothing.
        let explained = parts.iter().zip(rest.by_ref()).map(|(part, covered)| covered.min(part.room()));
        let explained = explained.fold(0, u64::saturating_add);
        let fresh = end[index].anonymous.saturating_sub(before);
        account.fresh = account.fresh.saturating_add(fresh);
        let from_before = parts.iter().all(|part| part.before.is_some());
        let area = area(end, index, from_before);
        let rest = fresh.saturating_sub(explained);
        if rest == 0 || go && !is_heap_of_go(end, index) && is_named_by_go(&end[index]) {
            continue;
        }
        if go && is_heap_of_go(end, index) {
            account.in_go = account.in_go.saturating_add(rest);
        } else {
            *account.unexplained.entry(area).or_default() += rest;
        }
    }
    // Where the runtime names what it has mapped, nothing else is its own.
    if go && !end.iter().any(is_named_by_go) {
        let heap = |regions: &[Region]| -> u64 {
            let heap = (0..regions.len()).filter(|index| regions[*index].usable && is_heap_of_go(regions, *index));
            heap.map(|index| regions[index].range.end - regions[index].range.start).sum()
        };
        // The books on what was there before are older, too.
        let heap = heap(end).saturating_sub(heap(begin));
        let unexplained = &mut account.unexplained;
        let own = [Area::Mapped, Area::FromBefore];
        let mapped: u64 = own.iter().filter_map(|area| unexplained.get(area)).sum();
        if mapped <= GO_BOOKS.0 + heap / GO_BOOKS.1 {
            unexplained.retain(|area, _| !own.contains(area));
        }
    }
    account
}

/// Whether a mapping is memory of Go's heap, in a process that has one: it lies in what the runtime reserves for that, a range
/// that begins and ends as it does and has no hole.
fn is_heap_of_go(regions: &[Region], index: usize) -> bool {
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

fn is_named_by_go(region: &Region) -> bool {
    region.name.starts_with(GO_NAME)
}

/// What kind of memory a mapping is. `from_before`: it was mapped at the beginning.
fn area(regions: &[Region], index: usize, from_before: bool) -> Area {
    let region = &regions[index];
    let length = |region: &Region| region.range.end - region.range.start;
    let is_guard =
        |before: &Region| !before.usable && before.range.end == region.range.start && length(before) <= STACK.0;
    let guarded = index.checked_sub(1).is_some_and(|before| is_guard(&regions[before]));
    match &*region.name {
        "[heap]" => Area::Break,
        name if name.starts_with("[stack") => Area::Stacks,
        name if name.starts_with('/') => Area::Files,
        _ if GO_ARENAS.contains(&region.range.start) => Area::Go,
        _ if guarded && length(region) <= STACK.1 => Area::Stacks,
        _ if from_before => Area::FromBefore,
        _ => Area::Mapped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(range: Range<u64>, anonymous: u64) -> Region {
        Region { range, name: String::new(), anonymous, usable: true }
    }

    /// Checks the account where recorded blocks have been in `blocks`.
    #[track_caller]
    fn check(begin: &[Region], end: &[Region], blocks: Range<u64>, fresh: u64, unexplained: &[(Area, u64)]) {
        let pieces = pieces(begin, end);
        let overlap = |range: &Range<u64>| blocks.end.min(range.end).saturating_sub(blocks.start.max(range.start));
        let covered: Vec<u64> = pieces.iter().map(|piece| overlap(&piece.range)).collect();
        let expected = Account { fresh, unexplained: unexplained.iter().copied().collect(), in_go: 0 };
        assert_eq!(account(begin, end, &pieces, &covered, false), expected);
    }

    #[test]
    fn a_mapping_of_its_own_is_unexplained_and_one_with_blocks_is_not() {
        let (own, heap) = (region(0x1_0000..0x9_0000, 0x8_0000), region(0x20_0000..0x30_0000, 0x5_0000));
        check(&[], &[own.clone(), heap.clone()], 0x20_0000..0x26_0000, 0xd_0000, &[(Area::Mapped, 0x8_0000)]);
        check(&[own.clone(), heap.clone()], &[own, heap], 0..0, 0, &[]);
    }

    #[test]
    fn what_is_freed_and_kept_is_explained_and_memory_without_pages_explains_nothing() {
        // Blocks were in all of it; whether they still are makes no difference.
        check(&[], &[region(0..0x1000_0000, 0x1000_0000)], 0..0x1000_0000, 0x1000_0000, &[]);
        // A block that was never touched leaves nothing over for others.
        let untouched = region(0..0x1000_0000, 0);
        let own = region(0x2000_0000..0x3000_0000, 0x800_0000);
        check(&[], &[untouched, own], 0..0x1000_0000, 0x800_0000, &[(Area::Mapped, 0x800_0000)]);
    }

    #[test]
    fn mappings_that_have_become_one_are_told_apart_by_where_blocks_are() {
        let end = [region(0..0x50_0000, 0x50_0000)];
        check(&[], &end, 0..0x10_0000, 0x50_0000, &[(Area::Mapped, 0x40_0000)]);
        // Blocks that reuse what was there at the beginning explain nothing of what came.
        let begin = [region(0..0x10_0000, 0x10_0000)];
        check(&begin, &end, 0..0x10_0000, 0x40_0000, &[(Area::Mapped, 0x40_0000)]);
        check(&begin, &end, 0x8_0000..0x50_0000, 0x40_0000, &[]);
    }

    #[test]
    fn memory_that_goes_hides_none_that_comes() {
        let begin = [region(0..0x50_0000, 0x50_0000)];
        let end = [region(0..0x50_0000, 0), region(0x60_0000..0x90_0000, 0x30_0000)];
        check(&begin, &end, 0..0, 0x30_0000, &[(Area::Mapped, 0x30_0000)]);
    }

    #[test]
    fn a_mapping_that_was_cut_keeps_its_share() {
        let begin = [region(0..0x40_0000, 0x20_0000)];
        check(&begin, &[region(0x20_0000..0x40_0000, 0x18_0000)], 0..0, 0x8_0000, &[(Area::FromBefore, 0x8_0000)]);
    }

    #[test]
    fn kinds_of_memory_are_told_apart() {
        let named = |range, name: &str| Region { name: name.to_owned(), ..region(range, 0x1000) };
        let guard = Region { usable: false, ..region(0x40_0000..0x40_1000, 0) };
        let end = [
            named(0x1_0000..0x2_0000, "/usr/lib/a.so"),
            named(0x2_0000..0x3_0000, "[heap]"),
            guard,
            named(0x40_1000..0xc0_1000, ""),
            named(0xc0_0040_0000..0xc0_0080_0000, ""),
            named(0x7f00_0000_0000..0x7f01_0000_0000, "[anon:arena]"),
            named(0x7ffd_0000_0000..0x7ffd_0001_0000, "[stack]"),
        ];
        let unexplained = [
            (Area::Files, 0x1000),
            (Area::Break, 0x1000),
            (Area::Stacks, 0x2000),
            (Area::Go, 0x1000),
            (Area::Mapped, 0x1000),
        ];
        check(&[], &end, 0..0, 0x6000, &unexplained);
        let pieces = pieces(&[], &end);
        let followed = account(&[], &end, &pieces, &vec![0; pieces.len()], true);
        assert!(!followed.unexplained.contains_key(&Area::Go) && followed.fresh == 0x6000, "{followed:?}");
        assert_eq!(followed.in_go, 0x1000, "its follower knows how much it explains");
        assert!(!followed.unexplained.contains_key(&Area::Mapped), "what the runtime needs itself: {followed:?}");
    }

    #[test]
    fn the_heap_of_go_is_known_by_what_is_reserved_for_it() {
        let reserved = |range, usable| Region { usable, ..region(range, 0) };
        let base = 0xee5_6800_0000;
        let arena = |end| [region(base..base + 0x140_0000, 0x100_0000), reserved(base + 0x140_0000..end, false)];
        let whole = arena(base + GO_ARENA);
        assert!(is_heap_of_go(&whole, 0));
        let names = ["[anon: Go: heap]", "[anon: Go: heap reservation]"];
        let named: Vec<Region> =
            whole.iter().zip(names).map(|(region, name)| Region { name: name.to_owned(), ..region.clone() }).collect();
        assert!(is_heap_of_go(&named, 0));
        assert!(!is_heap_of_go(&arena(base + GO_ARENA - 0x1000), 0), "it ends elsewhere");
        let [heap, rest] = whole;
        assert!(!is_heap_of_go(std::slice::from_ref(&heap), 0), "nothing is reserved");
        let later = reserved(rest.range.start + 0x1000..rest.range.end, false);
        assert!(!is_heap_of_go(&[heap, later], 0), "there is a hole");
        let library = LIBRARIES..LIBRARIES + GO_ARENA;
        assert!(!is_heap_of_go(&[region(library, 0x1000)], 0), "the C library's");
    }

    #[test]
    fn buffers_beside_the_heap_of_go_are_more_than_its_books() {
        let end = |mapped| {
            [region(0xc0_0000_0000..0xc0_1000_0000, 0x1000), region(0x7f00_0000_0000..0x7f01_0000_0000, mapped)]
        };
        let unexplained = |begin: &[Region], mapped: u64| {
            let end = end(mapped);
            let pieces = pieces(begin, &end);
            account(begin, &end, &pieces, &vec![0; pieces.len()], true).unexplained()
        };
        // 256 MiB of addresses for the heap.
        let books = (8 << 20) + (32 << 20);
        assert_eq!((unexplained(&[], books), unexplained(&[], books + 1)), (0, books + 1));
        // The heap was there before, and its books.
        let before = [region(0xc0_0000_0000..0xc0_1000_0000, 0x1000)];
        assert_eq!((unexplained(&before, 8 << 20), unexplained(&before, 16 << 20)), (0, 16 << 20));
    }

    #[test]
    fn where_go_names_its_books_nothing_else_is_of_them() {
        let named =
            |start: u64, name: &str| Region { name: name.to_owned(), ..region(start..start + 0x1000_0000, 0x100_0000) };
        let end = [
            named(0xc0_0000_0000, "[anon: Go: heap]"),
            named(0x7f00_0000_0000, ""),
            named(0x7f10_0000_0000, "[anon: Go: immortal metadata]"),
        ];
        let pieces = pieces(&[], &end);
        let account = account(&[], &end, &pieces, &vec![0; pieces.len()], true);
        assert_eq!((account.in_go, account.unexplained), (0x100_0000, [(Area::Mapped, 0x100_0000)].into()));
    }
}
