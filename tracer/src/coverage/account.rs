//! The arithmetic: which memory is new, and in how much of that recorded blocks have ever been. Pure.

use std::{collections::BTreeMap, ops::Range};

use hashbrown::HashMap;

use super::{
    go::{GO_ARENAS, GO_BOOKS, GoMemory, is_heap_by_name, is_named_by_go},
    split::split,
};
use crate::{profile::Area, space::memory_map::Region};

/// Largest guard of a thread's stack, and largest stack, bytes.
const STACK: (u64, u64) = (64 << 10, 64 << 20);

/// The new memory of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// Bytes that are resident and were not.
    pub(super) fresh: u64,
    /// Those of them in which no recorded block has been, by the kind of memory.
    pub(super) unexplained: BTreeMap<Area, u64>,
    /// What lies in memory that stacks are known of which have mapped it: of those, as far as they are left.
    pub(super) by_stacks: u64,
    /// Those that are in the heap of Go, where it is followed. Whoever follows it knows how much of them it explains.
    pub(super) in_go: u64,
    /// Whether only counters were read: what was freed and kept is not explained by what is held.
    pub(super) is_counted: bool,
}

impl Account {
    /// All bytes in which no recorded block has been.
    pub(super) fn unexplained(&self) -> u64 {
        self.unexplained.values().sum()
    }

    /// What was there before is that of a parent.
    pub(super) fn be_inherited(&mut self) {
        if let Some(bytes) = self.unexplained.remove(&Area::FromBefore) {
            self.unexplained.insert(Area::Inherited, bytes);
        }
    }

    /// No more is new than that.
    pub(super) fn be_at_most(&mut self, most: u64) {
        self.fresh = self.fresh.min(most);
        self.in_go = self.in_go.min(most);
        let mut left = most - self.in_go;
        for bytes in self.unexplained.values_mut() {
            *bytes = left.min(*bytes);
            left -= *bytes;
        }
        self.unexplained.retain(|_, bytes| *bytes > 0);
    }
}

/// A part of a mapping that was in one mapping before as a whole, or in none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Place of the mapping in the list of them.
    region: usize,
    /// Its addresses.
    pub(super) range: Range<u64>,
    /// Place of the mapping that was there at the beginning in the list of those; `None` when nothing was mapped there.
    before: Option<usize>,
}

impl Piece {
    fn length(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// The mappings at the end that have anonymous memory, cut where those at the beginning begin and end.
pub(super) fn pieces(begin: &[Region], end: &[Region]) -> Vec<Piece> {
    let with_memory = end.iter().enumerate().filter(|(_, region)| region.anonymous > 0);
    let pieces = with_memory.flat_map(|(region, now)| {
        let parts = split(&now.range, begin).into_iter();
        parts.map(move |(range, before)| Piece { region, range, before })
    });
    pieces.collect()
}

/// How much of the memory in each piece may have been there at the beginning: as much as possible. Where in a mapping its memory was is
/// not known, and what may have been there is not told to be new.
fn old(begin: &[Region], end: &[Region], pieces: &[Piece]) -> Vec<u64> {
    // Pieces are in the order of both: to take what there is from the first on leaves least over.
    let mut left: BTreeMap<usize, u64> = BTreeMap::new();
    let mut old = Vec::with_capacity(pieces.len());
    for parts in pieces.chunk_by(|a, b| a.region == b.region) {
        let mut now = end[parts[0].region].anonymous;
        for part in parts {
            let taken = part.before.map_or(0, |place| {
                let left = left.entry(place).or_insert(begin[place].anonymous);
                let taken = part.length().min(*left).min(now);
                *left -= taken;
                taken
            });
            now -= taken;
            old.push(taken);
        }
    }
    old
}

/// What became resident, and what of that recorded blocks explain. `covered`: how many bytes of each piece recorded blocks
/// have been in. `own`: how many bytes of each mapping at the end the program has mapped itself, and are there, if that is known. `go`: where the
/// heaps of Go are that are followed; what their runtimes have for their books is explained.
pub(super) fn account(
    begin: &[Region],
    end: &[Region],
    (pieces, covered): (&[Piece], &[u64]),
    own: Option<&HashMap<usize, u64>>,
    go: &GoMemory,
) -> Account {
    let mut account = Account::default();
    let mut rest = old(begin, end, pieces).into_iter().zip(covered.iter().copied().chain(std::iter::repeat(0)));
    for parts in pieces.chunk_by(|a, b| a.region == b.region) {
        let index = parts[0].region;
        let (mut before, mut explained, mut new_heap) = (0u64, 0u64, 0u64);
        for (part, (old, covered)) in parts.iter().zip(rest.by_ref()) {
            before = before.saturating_add(old);
            // Blocks in pages that were there already explain nothing.
            explained = explained.saturating_add(covered.min(part.length().saturating_sub(old)));
            // Nor is a heap new where memory was already.
            let heap = go.bytes_in_part(end, index, &part.range);
            new_heap = new_heap.saturating_add(heap.saturating_sub(old));
        }
        let fresh = end[index].anonymous.saturating_sub(before);
        account.fresh = account.fresh.saturating_add(fresh);
        let from_before = parts.iter().all(|part| part.before.is_some());
        let area = area(end, index, from_before);
        let rest = fresh.saturating_sub(explained);
        let heap = go.bytes_in(end, index);
        let is_books = go.is_followed() && heap == 0 && is_named_by_go(&end[index]) && !is_heap_by_name(&end[index]);
        if rest == 0 || is_books {
            continue;
        }
        // What adjoins a heap may be one mapping with it, and is no heap; nor is what no runtime has where all are asked.
        let is_none = heap > 0 || matches!(go, GoMemory::At(_)) && !is_heap_by_name(&end[index]);
        let area = match area {
            Area::Go if is_none && from_before => Area::FromBefore,
            Area::Go if is_none => Area::Mapped,
            area => area,
        };
        let in_go = rest.min(new_heap);
        account.in_go = account.in_go.saturating_add(in_go);
        let rest = rest - in_go;
        let by_stacks = own.and_then(|own| own.get(&index)).map_or(0, |own| rest.min(*own));
        account.by_stacks = account.by_stacks.saturating_add(by_stacks);
        // What was there before may be one mapping with what has come.
        let is_both = area == Area::Mapped && own.is_some() && parts.iter().any(|part| part.before.is_some());
        let others = if is_both { Area::FromBefore } else { area };
        for (area, bytes) in [(area, by_stacks), (others, rest - by_stacks)] {
            if bytes > 0 {
                *account.unexplained.entry(area).or_default() += bytes;
            }
        }
    }
    // Where the runtime names what it has mapped, nothing else is its own.
    if go.is_followed() && !end.iter().any(is_named_by_go) {
        let heap = |regions: &[Region]| -> u64 {
            let usable = (0..regions.len()).filter(|index| regions[*index].usable);
            usable.map(|index| go.bytes_in(regions, index)).sum()
        };
        // The books on what was there before are older, too. No arena of then has gone.
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
        _ if GO_ARENAS.contains(&region.range.start) || is_heap_by_name(region) => Area::Go,
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
        let expected = Account { fresh, unexplained: unexplained.iter().copied().collect(), ..Account::default() };
        assert_eq!(account(begin, end, (&pieces, &covered), None, &GoMemory::Nowhere), expected);
    }

    #[test]
    fn a_mapping_of_its_own_is_unexplained_and_one_with_blocks_is_not() {
        let (own, heap) = (region(0x1_0000..0x9_0000, 0x8_0000), region(0x20_0000..0x30_0000, 0x5_0000));
        check(&[], &[own.clone(), heap.clone()], 0x20_0000..0x26_0000, 0xd_0000, &[(Area::Mapped, 0x8_0000)]);
        check(&[own.clone(), heap.clone()], &[own, heap], 0..0, 0, &[]);
    }

    /// A heap that was there as a part, and has grown since, is one mapping.
    #[test]
    fn what_stacks_have_mapped_is_told_from_what_was_there_before() {
        const MIB: u64 = 1 << 20;
        let begin = [region(0..100 * MIB, 10 * MIB)];
        let end = [region(0..300 * MIB, 120 * MIB), region(400 * MIB..500 * MIB, 50 * MIB)];
        let pieces = pieces(&begin, &end);
        let of = |own: Option<&HashMap<usize, u64>>, covered: &[u64]| {
            let account = account(&begin, &end, (&pieces, covered), own, &GoMemory::Nowhere);
            (account.unexplained, account.by_stacks)
        };
        assert_eq!(of(None, &[]), ([(Area::Mapped, 160 * MIB)].into(), 0), "nobody knows");
        let own = HashMap::from_iter([(0, 30 * MIB), (1, 50 * MIB)]);
        let both = [(Area::Mapped, 80 * MIB), (Area::FromBefore, 80 * MIB)].into();
        assert_eq!(of(Some(&own), &[]), (both, 80 * MIB));
        // Blocks have been in most of it.
        let rest = [(Area::Mapped, 10 * MIB)].into();
        assert_eq!(of(Some(&own), &[0, 100 * MIB, 50 * MIB]), (rest, 10 * MIB));
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
    fn of_a_mapping_that_was_cut_nobody_knows_where_its_memory_was() {
        let begin = [region(0..0x40_0000, 0x20_0000)];
        check(&begin, &[region(0x20_0000..0x40_0000, 0x18_0000)], 0..0, 0, &[]);
        // All of it is in the first half, or in the second one.
        for (first, second) in [(0x20_0000, 0), (0x8_0000, 0x18_0000), (0, 0x20_0000)] {
            let end = [region(0..0x20_0000, first), region(0x20_0000..0x40_0000, second)];
            check(&begin, &end, 0..0, 0, &[]);
        }
        let end = [region(0..0x20_0000, 0x10_0000), region(0x20_0000..0x40_0000, 0x18_0000)];
        check(&begin, &end, 0..0, 0x8_0000, &[(Area::FromBefore, 0x8_0000)]);
    }

    #[test]
    fn of_a_mapping_that_is_cut_where_its_memory_was_nothing_is_left_open() {
        let begin = [region(0..0x20_0000, 0x20_0000), region(0x20_0000..0x40_0000, 0)];
        let whole = [region(0..0x40_0000, 0x20_0000)];
        check(&begin, &whole, 0..0, 0, &[]);
        let second = [region(0x20_0000..0x40_0000, 0x18_0000)];
        check(&begin, &second, 0..0, 0x18_0000, &[(Area::FromBefore, 0x18_0000)]);
        let elsewhere = [region(0x10_0000..0x30_0000, 0x18_0000)];
        check(&begin, &elsewhere, 0..0, 0x8_0000, &[(Area::FromBefore, 0x8_0000)]);
    }

    #[test]
    fn mappings_that_overlap_on_both_sides_take_what_there_was_once() {
        let begin = [region(0..0x20, 0x10), region(0x20..0x40, 0x20)];
        // As much as possible is old: 0x10 of the first, and all of the second.
        let end = [region(0..0x10, 0x10), region(0x10..0x30, 0x20), region(0x30..0x40, 0x10)];
        let pieces = pieces(&begin, &end);
        assert_eq!(old(&begin, &end, &pieces), [0x10, 0, 0x10, 0x10]);
    }

    #[test]
    fn what_is_not_known_to_be_new_is_not_told_to_be() {
        let unexplained = [(Area::Mapped, 50), (Area::FromBefore, 30)].into();
        let mut account = Account { fresh: 100, unexplained, in_go: 20, ..Account::default() };
        account.be_inherited();
        assert_eq!(account.unexplained, [(Area::Mapped, 50), (Area::Inherited, 30)].into());
        account.be_at_most(200);
        assert_eq!((account.fresh, account.unexplained(), account.in_go), (100, 80, 20));
        account.be_at_most(40);
        assert_eq!((account.fresh, account.unexplained(), account.in_go), (40, 20, 20));
        account.be_at_most(0);
        assert_eq!(account, Account::default());
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
        let followed = account(&[], &end, (&pieces, &vec![0; pieces.len()]), None, &GoMemory::Unknown);
        assert!(!followed.unexplained.contains_key(&Area::Go) && followed.fresh == 0x6000, "{followed:?}");
        assert_eq!(followed.in_go, 0x1000, "its follower knows how much it explains");
        assert!(!followed.unexplained.contains_key(&Area::Mapped), "what the runtime needs itself: {followed:?}");
    }

    #[test]
    fn buffers_beside_the_heap_of_go_are_more_than_its_books() {
        let end = |mapped| {
            [region(0xc0_0000_0000..0xc0_1000_0000, 0x1000), region(0x7f00_0000_0000..0x7f01_0000_0000, mapped)]
        };
        let unexplained = |begin: &[Region], mapped: u64| {
            let end = end(mapped);
            let pieces = pieces(begin, &end);
            account(begin, &end, (&pieces, &vec![0; pieces.len()]), None, &GoMemory::Unknown).unexplained()
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
        let account = account(&[], &end, (&pieces, &vec![0; pieces.len()]), None, &GoMemory::Unknown);
        assert_eq!((account.in_go, account.unexplained), (0x100_0000, [(Area::Mapped, 0x100_0000)].into()));
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "ranges are what is meant")]
    fn what_a_program_maps_beside_the_arenas_of_go_is_its_own() {
        const MIB: u64 = 1 << 20;
        let heap = 0xc0_0000_0000;
        // The shadow of a sanitizer, or buffers, in the shape of arenas; and a heap that is one mapping with what adjoins it.
        let end = [
            region(heap..heap + 160 * MIB, 150 * MIB),
            region(0x2000_0000_0000..0x2000_0000_0000 + 512 * MIB, 256 * MIB),
        ];
        let pieces = pieces(&[], &end);
        let of = |go: &GoMemory| account(&[], &end, (&pieces, &vec![0; pieces.len()]), None, go);
        let asked = of(&GoMemory::at(vec![heap..heap + 128 * MIB]));
        assert_eq!((asked.fresh, asked.in_go), (406 * MIB, 128 * MIB));
        assert_eq!(asked.unexplained, [(Area::Mapped, 278 * MIB)].into());
        assert_eq!(of(&GoMemory::Unknown).in_go, 406 * MIB, "nobody can be asked");
    }

    #[test]
    fn what_adjoins_an_arena_of_before_is_none_of_it() {
        const MIB: u64 = 1 << 20;
        let arena = 0xc0_0000_0000..0xc0_0400_0000;
        let end = [region(arena.start..arena.end + 60 * MIB, 124 * MIB)];
        let of = |resident| {
            let begin = [region(arena.clone(), resident)];
            let pieces = pieces(&begin, &end);
            let go = GoMemory::at(vec![arena.clone()]);
            let account = account(&begin, &end, (&pieces, &vec![0; pieces.len()]), None, &go);
            (account.in_go, account.unexplained())
        };
        assert_eq!(of(64 * MIB), (0, 60 * MIB));
        assert_eq!(of(24 * MIB), (40 * MIB, 60 * MIB), "what has come in the arena is its");
    }

    #[test]
    fn what_no_runtime_has_is_no_heap_wherever_it_is() {
        let (heap, other) = (0xc0_0000_0000..0xc0_0400_0000, 0xc8_0000_0000..0xc8_0400_0000);
        let now = [region(heap.clone(), 0x400_0000), region(other.clone(), 0x400_0000)];
        let of = |begin: &[Region], end: &[Region], go: &GoMemory| {
            let pieces = pieces(begin, end);
            let account = account(begin, end, (&pieces, &vec![0; pieces.len()]), None, go);
            (account.in_go, account.unexplained)
        };
        let at = GoMemory::at(vec![heap.clone()]);
        assert_eq!(of(&[], &now, &at), (0x400_0000, [(Area::Mapped, 0x400_0000)].into()));
        let before = [region(heap, 0), region(other.clone(), 0)];
        assert_eq!(of(&before, &now, &at), (0x400_0000, [(Area::FromBefore, 0x400_0000)].into()));
        assert_eq!(of(&[], &now, &GoMemory::Nowhere), (0, [(Area::Go, 0x800_0000)].into()), "nobody follows it");
        // A runtime that is not followed says so itself.
        let named = [Region { name: "[anon: Go: heap]".to_owned(), ..region(other, 0x400_0000) }];
        assert_eq!(of(&[], &named, &at), (0, [(Area::Go, 0x400_0000)].into()));
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "ranges are what is meant")]
    fn a_heap_of_a_runtime_that_is_not_followed_is_none_of_one_that_is() {
        let named =
            |start: u64, name: &str| Region { name: name.to_owned(), ..region(start..start + 0x400_0000, 0x100_0000) };
        let (followed, other) = (0x1ee5_6800_0000, 0x2ee5_6800_0000);
        let end = [named(followed, "[anon: Go: heap]"), named(other, "[anon: Go: heap]")];
        let pieces = pieces(&[], &end);
        let go = GoMemory::at(vec![followed..followed + 0x400_0000]);
        let account = account(&[], &end, (&pieces, &vec![0; pieces.len()]), None, &go);
        assert_eq!((account.in_go, account.unexplained), (0x100_0000, [(Area::Go, 0x100_0000)].into()));
    }
}
