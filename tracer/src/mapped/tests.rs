//! Against a model of single pages.

use std::collections::BTreeMap;

use super::*;
use crate::profile::MappedKind;

const IMAGE: Image = Image(1);
const PAGE: u64 = 4096;
/// Pages of the model.
const PAGES: u64 = 48;

fn change(change: Change, range: Range<u64>, old: Range<u64>) -> Remapping {
    let [range, old] = [range, old].map(|range| (range.start * PAGE, range.end.saturating_mul(PAGE)));
    Remapping {
        change,
        range,
        old,
        kind: MappedKind::Anonymous,
        by_allocator: false,
        reserved: false,
        stack: 0,
        time: 1,
    }
}

/// By stack: pages that may be used, and pages that are reserved.
fn pages(mapped: &Mapped) -> BTreeMap<u32, (u64, u64)> {
    let usage = mapped.usage().into_iter().map(|usage| {
        let MappedValues { bytes, reserved_bytes, .. } = usage.values;
        assert_eq!((bytes % PAGE, reserved_bytes % PAGE), (0, 0));
        (usage.owner.stack.raw(), (bytes / PAGE, reserved_bytes / PAGE))
    });
    usage.filter(|(_, pages)| *pages != (0, 0)).collect()
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn range(&mut self) -> Range<u64> {
        let start = self.below(PAGES - 1);
        start..start + 1 + self.below((PAGES - start).min(12))
    }
}

#[test]
fn agrees_with_pages() {
    for seed in 0..200 {
        let mut random = Random(seed);
        let mut mapped = Mapped::with_room(1 << 16);
        // Of each page: the stack, and whether it may be used.
        let mut model: Vec<Option<(u32, bool)>> = vec![None; PAGES as usize];
        for stack in 1..200u32 {
            let range = random.range();
            let indexes = range.start as usize..range.end as usize;
            let remapping = match random.below(6) {
                0 => {
                    let reserved = random.below(3) == 0;
                    model[indexes].fill(Some((stack, !reserved)));
                    Remapping { reserved, ..change(Change::Mapped, range, 0..0) }
                }
                1 => {
                    model[indexes].fill(None);
                    change(Change::Unmapped, range, 0..0)
                }
                2 => {
                    for page in model[indexes].iter_mut().flatten().filter(|page| !page.1) {
                        *page = (stack, true);
                    }
                    change(Change::Opened { of_file: true }, range, 0..0)
                }
                3 => {
                    model[indexes].iter_mut().flatten().for_each(|page| page.1 = false);
                    change(Change::Closed, range, 0..0)
                }
                shape => {
                    // Longer or shorter, elsewhere without an overlap, or in place.
                    let old = random.range();
                    let new =
                        if shape == 4 { old.start..(old.start + range.end - range.start).min(PAGES) } else { range };
                    let overlap = old.start.max(new.start) < old.end.min(new.end);
                    if shape == 5 && overlap {
                        continue;
                    }
                    let left = shape == 5 && old.end - old.start == new.end - new.start && random.below(2) == 0;
                    let moved: Vec<_> = model[old.start as usize..old.end as usize].to_vec();
                    let last = moved.iter().rev().find_map(|page| *page);
                    if !left {
                        model[old.start as usize..old.end as usize].fill(None);
                    }
                    for (at, page) in (new.start as usize..new.end as usize).enumerate() {
                        let more = Some((stack, last.is_none_or(|(_, usable)| usable)));
                        model[page] = moved.get(at).copied().unwrap_or(more);
                    }
                    change(Change::Moved { left }, new, old)
                }
            };
            mapped.apply(IMAGE, &remapping, StackIndex::from_raw(stack));
            let mut expected: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
            for (stack, usable) in model.iter().copied().flatten() {
                let (used, reserved) = expected.entry(stack).or_default();
                *(if usable { used } else { reserved }) += 1;
            }
            assert_eq!(pages(&mapped), expected, "seed {seed}, step {stack}: {remapping:?}");
            assert_eq!(mapped.taken, mapped.images[&IMAGE].get().taken());
        }
        mapped.forget(IMAGE);
        assert_eq!((mapped.taken, mapped.usage()), (0, Vec::new()));
    }
}

#[test]
fn what_is_opened_is_whose_call_that_was_and_what_was_mapped_is_counted_once() {
    let mut mapped = Mapped::with_room(1 << 16);
    let apply = |mapped: &mut Mapped, remapping: Remapping, stack| {
        mapped.apply(IMAGE, &remapping, StackIndex::from_raw(stack));
    };
    apply(&mut mapped, Remapping { reserved: true, ..change(Change::Mapped, 0..100, 0..0) }, 1);
    assert_eq!(pages(&mapped), BTreeMap::from([(1, (0, 100))]));
    let opened = Change::Opened { of_file: false };
    apply(&mut mapped, change(opened, 10..20, 0..0), 2);
    apply(&mut mapped, change(opened, 15..30, 0..0), 3);
    assert_eq!(pages(&mapped), BTreeMap::from([(1, (0, 80)), (2, (10, 0)), (3, (10, 0))]));
    apply(&mut mapped, change(Change::Closed, 0..100, 0..0), 4);
    assert_eq!(pages(&mapped), BTreeMap::from([(1, (0, 80)), (2, (0, 10)), (3, (0, 10))]));
    let ever = |stack| {
        let usage = mapped.usage().into_iter().find(|usage| usage.owner.stack.raw() == stack).unwrap();
        (usage.values.mapped_bytes / PAGE, usage.values.mapped_ranges)
    };
    assert_eq!((ever(1), ever(2), ever(3)), ((0, 0), (10, 1), (10, 1)));
    // What was reserved before anybody looked, and what is a file's.
    apply(&mut mapped, change(opened, 95..120, 0..0), 5);
    apply(&mut mapped, change(Change::Opened { of_file: true }, 200..220, 0..0), 6);
    // What was in use before, closed and opened again; and reserved anew where it was.
    apply(&mut mapped, change(Change::Closed, 300..310, 0..0), 7);
    apply(&mut mapped, change(opened, 300..310, 0..0), 7);
    apply(&mut mapped, change(Change::Closed, 400..410, 0..0), 7);
    apply(&mut mapped, change(Change::Unmapped, 400..410, 0..0), 7);
    apply(&mut mapped, change(opened, 400..401, 0..0), 5);
    assert_eq!(pages(&mapped), BTreeMap::from([(1, (0, 75)), (2, (0, 10)), (3, (0, 10)), (5, (26, 0))]));
}

#[test]
fn what_was_not_seen_to_be_mapped_is_nobodys_even_if_it_moves() {
    let mut mapped = Mapped::with_room(1 << 16);
    mapped.apply(IMAGE, &change(Change::Moved { left: false }, 50..60, 0..8), StackIndex::from_raw(1));
    assert_eq!(pages(&mapped), BTreeMap::from([(1, (2, 0))]), "only what there is more of it");
    mapped.apply(IMAGE, &change(Change::Unmapped, 0..u64::MAX / PAGE, 0..0), StackIndex::from_raw(0));
    assert_eq!(pages(&mapped), BTreeMap::new());
}

#[test]
fn where_nobodys_memory_has_moved_is_told_once() {
    let mut mapped = Mapped::with_room(1 << 16);
    let mut apply = |remapping: Remapping, time| {
        mapped.apply(IMAGE, &Remapping { time, ..remapping }, StackIndex::from_raw(1));
        mapped.memory_of(IMAGE).moves
    };
    let moves = |all: &[(Range<u64>, u64, u64)]| {
        let all = all.iter().map(|(old, to, time)| (old.start * PAGE..old.end * PAGE, to * PAGE, *time));
        Moves { all: all.collect(), is_short: false }
    };
    assert_eq!(apply(change(Change::Mapped, 10..12, 0..0), 1), moves(&[]));
    let moved = Change::Moved { left: false };
    // What it has mapped is its own wherever it is; of what becomes shorter the rest is gone.
    assert_eq!(apply(change(moved, 100..115, 4..20), 2), moves(&[(4..10, 100, 2), (12..19, 108, 2)]));
    assert_eq!(apply(change(moved, 200..208, 50..54), 3), moves(&[(50..54, 200, 3)]));
    assert_eq!(apply(change(moved, 300..308, 300..304), 4), moves(&[]), "it has grown where it is");
    assert_eq!(apply(change(Change::Moved { left: true }, 400..402, 106..108), 5), moves(&[]), "its own");
    for page in 0..300 {
        let old = 1000 + 2 * page..1001 + 2 * page;
        mapped.apply(IMAGE, &change(moved, 5000 + page..5001 + page, old), StackIndex::from_raw(1));
    }
    let many = mapped.memory_of(IMAGE).moves;
    assert!(many.is_short && many.all.len() < 300, "{}", many.all.len());
    assert_eq!(mapped.memory_of(IMAGE).moves, Moves::default());
}

#[test]
fn what_is_opened_again_is_no_new_memory_and_the_rest_is() {
    let opened = Change::Opened { of_file: false };
    let mut mapped = Mapped::with_room(1 << 16);
    let mut apply = |how, range| {
        mapped.apply(IMAGE, &change(how, range, 0..0), StackIndex::from_raw(1));
        pages(&mapped).get(&1).copied().unwrap_or_default()
    };
    // An arena gives up a page, and grows by a hundred and that page in one call.
    assert_eq!(apply(Change::Closed, 49..50), (0, 0));
    assert_eq!(apply(opened, 49..150), (100, 0));
    // However many parts were closed, of what is opened elsewhere it is known that it is new.
    for page in 0..3_000 {
        assert_eq!(apply(Change::Closed, 1_000 + 2 * page..1_001 + 2 * page), (100, 0));
    }
    assert_eq!(apply(opened, 10_000..10_200), (300, 0));
    assert_eq!(apply(opened, 1_000..1_010), (305, 0), "five of them were closed");
}

#[test]
#[expect(clippy::single_range_in_vec_init, reason = "ranges are what is meant")]
fn only_what_was_reserved_is_new_where_that_is_known() {
    let opened = Change::Opened { of_file: false };
    let mut mapped = Mapped::with_room(1 << 16);
    let reserved = [10..20, 30..40, 50..60, 70..80].map(|range: Range<u64>| range.start * PAGE..range.end * PAGE);
    let mut apply = |how, range| {
        mapped.apply(IMAGE, &change(how, range, 0..0), StackIndex::from_raw(1));
        pages(&mapped).get(&1).copied().unwrap_or_default()
    };
    // Before it was said.
    assert_eq!(apply(opened, 70..75), (5, 0));
    assert_eq!(apply(Change::Closed, 50..52), (5, 0));
    mapped.were_reserved(IMAGE, &reserved);
    let mut apply = |how, range| {
        mapped.apply(IMAGE, &change(how, range, 0..0), StackIndex::from_raw(1));
        assert_eq!(mapped.taken, mapped.images[&IMAGE].get().taken());
        pages(&mapped).get(&1).copied().unwrap_or_default()
    };
    // Of one call some was in use and some was not.
    assert_eq!(apply(opened, 0..40), (25, 0));
    assert_eq!(apply(opened, 0..40), (25, 0), "nothing is reserved there any more");
    assert_eq!(apply(Change::Closed, 5..15), (20, 5));
    assert_eq!(apply(opened, 5..15), (25, 0));
    // What was closed before it was said was in use, and what was reserved already is not.
    assert_eq!(apply(Change::Closed, 48..60), (25, 0));
    assert_eq!(apply(opened, 48..60), (33, 0));
    assert_eq!(apply(opened, 70..80), (38, 0));
    // It is reserved wherever it is, and is no more where other memory is.
    mapped.were_reserved(IMAGE, &[500 * PAGE..510 * PAGE]);
    mapped.apply(IMAGE, &change(Change::Closed, 510..515, 0..0), StackIndex::from_raw(1));
    mapped.apply(IMAGE, &change(Change::Moved { left: false }, 600..615, 500..515), StackIndex::from_raw(1));
    mapped.apply(IMAGE, &change(Change::Unmapped, 600..602, 0..0), StackIndex::from_raw(0));
    let mut apply = |how, range| {
        mapped.apply(IMAGE, &change(how, range, 0..0), StackIndex::from_raw(1));
        pages(&mapped).get(&1).copied().unwrap_or_default()
    };
    assert_eq!(apply(opened, 500..515), (38, 0));
    assert_eq!(apply(opened, 600..615), (46, 0));
    let mut full = Mapped::with_room(5);
    full.were_reserved(IMAGE, &reserved);
    assert_eq!((full.refused(), full.taken), (1, 0), "what there is no room for is counted");
}

#[test]
fn what_was_reserved_before_is_not_new() {
    let mut mapped = Mapped::with_room(1 << 16);
    let opened = Change::Opened { of_file: false };
    for remapping in [
        Remapping { reserved: true, ..change(Change::Mapped, 0..10, 0..0) },
        change(opened, 2..4, 0..0),
        change(opened, 20..30, 0..0),
        change(Change::Closed, 25..30, 0..0),
    ] {
        mapped.apply(IMAGE, &remapping, StackIndex::from_raw(1));
    }
    let parts = mapped.memory_of(IMAGE).parts;
    let parts: Vec<_> =
        parts.iter().map(|part| (part.range.start / PAGE..part.range.end / PAGE, part.reserved, part.is_new)).collect();
    let expected =
        [(0..2, true, true), (2..4, false, true), (4..10, true, true), (20..25, false, false), (25..30, true, false)];
    assert_eq!(parts, expected);
}

#[test]
fn claims_of_all_addresses_are_survived() {
    let mut mapped = Mapped::with_room(1 << 16);
    for (start, end) in [(0, u64::MAX), (u64::MAX - 1, u64::MAX), (5, 5), (9, 3)] {
        for how in [
            Change::Mapped,
            Change::Opened { of_file: false },
            Change::Closed,
            Change::Moved { left: true },
            Change::Unmapped,
        ] {
            let remapping = Remapping { range: (start, end), old: (3, u64::MAX), ..change(how, 0..0, 0..0) };
            mapped.apply(IMAGE, &remapping, StackIndex::from_raw(1));
        }
    }
    assert!(mapped.usage().len() <= 1);
}

#[test]
fn what_there_is_no_room_for_is_counted_and_nobodys() {
    let mut mapped = Mapped::with_room(10);
    for page in 0..40 {
        mapped.apply(IMAGE, &change(Change::Mapped, 2 * page..2 * page + 1, 0..0), StackIndex::from_raw(1));
    }
    // One of the ten places is the stack's.
    assert_eq!((mapped.taken, mapped.refused(), mapped.changes()), (7, 34, 40));
    // One that has somebody else's memory now is not told any more as his who had it.
    mapped.apply(IMAGE, &change(Change::Mapped, 0..1, 0..0), StackIndex::from_raw(2));
    assert_eq!(pages(&mapped), BTreeMap::from([(1, (5, 0))]));
    // Nor what has moved to where nobody knows.
    mapped.apply(IMAGE, &change(Change::Mapped, 90..91, 0..0), StackIndex::from_raw(1));
    mapped.apply(IMAGE, &change(Change::Moved { left: false }, 80..81, 2..3), StackIndex::from_raw(1));
    assert_eq!((pages(&mapped), mapped.taken), (BTreeMap::from([(1, (5, 0))]), 6));
}

#[test]
fn stacks_that_have_mapped_something_are_bounded_whatever_is_left_of_it() {
    let mut mapped = Mapped::with_room(100);
    for stack in 0..1_000 {
        mapped.apply(IMAGE, &change(Change::Mapped, 0..1, 0..0), StackIndex::from_raw(stack));
        mapped.apply(IMAGE, &change(Change::Unmapped, 0..1, 0..0), StackIndex::from_raw(0));
    }
    assert_eq!((mapped.usage().len(), mapped.taken, mapped.refused()), (97, 97, 903));
}

#[test]
fn what_is_left_where_it_was_is_bounded() {
    let mut mapped = Mapped::with_room(100);
    for page in 0..40 {
        mapped.apply(IMAGE, &change(Change::Mapped, page..page + 1, 0..0), StackIndex::from_raw(1));
    }
    for to in [100, 200, 300] {
        mapped.apply(IMAGE, &change(Change::Moved { left: true }, to..to + 40, 0..40), StackIndex::from_raw(1));
    }
    assert_eq!((mapped.taken, mapped.refused()), (81, 2));
}

#[test]
fn a_change_of_very_many_ranges_is_refused_and_they_are_nobodys() {
    for (how, old) in
        [(Change::Opened { of_file: true }, 0..0), (Change::Closed, 0..0), (Change::Moved { left: false }, 0..1 << 20)]
    {
        let mut mapped = Mapped::with_room(1 << 20);
        let count = MOST_CHANGED as u64 + 1;
        for page in 0..count {
            let reserved = matches!(how, Change::Opened { .. });
            let new = Remapping { reserved, ..change(Change::Mapped, page..page + 1, 0..0) };
            mapped.apply(IMAGE, &new, StackIndex::from_raw(1));
        }
        let range = if old.is_empty() { 0..1 << 20 } else { 1 << 20..2 << 20 };
        mapped.apply(IMAGE, &change(how, 1..2, 1..2), StackIndex::from_raw(2));
        assert_eq!(mapped.refused(), 0);
        mapped.apply(IMAGE, &change(how, range, old), StackIndex::from_raw(2));
        assert_eq!((mapped.refused(), pages(&mapped)), (1, BTreeMap::new()), "{how:?}");
    }
}

#[test]
fn what_an_ended_image_had_mapped_is_told_and_may_be_told_of_another_one() {
    let mut mapped = Mapped::with_room(1 << 16);
    for image in [1, 2] {
        let apply = |mapped: &mut Mapped, remapping, stack| {
            mapped.apply(Image(image), &remapping, StackIndex::from_raw(10 * image + stack));
        };
        apply(&mut mapped, change(Change::Mapped, 0..10, 0..0), 1);
        apply(&mut mapped, change(Change::Mapped, 20..25, 0..0), 2);
        apply(&mut mapped, change(Change::Unmapped, 20..25, 0..0), 0);
        let before = pages(&mapped);
        mapped.end(Image(image), || unreachable!("there is room"));
        assert_eq!((pages(&mapped), mapped.taken), (before, 0));
        assert_eq!(mapped.memory_of(Image(image)), OwnMemory::default());
    }
    mapped.merge(Image(1), Image(2), |stack| StackIndex::from_raw(stack.map_or(99, |stack| stack.raw() + 10)));
    let mut usage = mapped.usage();
    usage.sort_by_key(|usage| usage.owner);
    let values = |usage: &MappedUsage| {
        let MappedValues { bytes, ranges, mapped_bytes, .. } = usage.values;
        (usage.image, usage.owner.stack.raw(), (bytes / PAGE, ranges, mapped_bytes / PAGE), usage.oldest)
    };
    let expected = [(Image(2), 21, (20, 2, 20), Some(1)), (Image(2), 22, (0, 0, 10), None)];
    assert_eq!((usage.iter().map(values).collect::<Vec<_>>(), mapped.kept), (expected.to_vec(), 2));
    mapped.forget(Image(2));
    assert_eq!((mapped.usage(), mapped.kept), (Vec::new(), 0));
}

#[test]
fn what_ended_images_had_mapped_takes_no_room_of_others() {
    let mut mapped = Mapped::with_room(40);
    for image in 1..=50 {
        for stack in 0..5u32 {
            let page = u64::from(2 * stack);
            let new = change(Change::Mapped, page..page + 1, 0..0);
            mapped.apply(Image(image), &new, StackIndex::from_raw(100 * image + stack));
        }
        mapped.end(Image(image), || StackIndex::from_raw(100 * image + 99));
    }
    assert_eq!((mapped.refused(), mapped.taken), (0, 0));
    assert_eq!(mapped.usage().len(), 10 + 48, "one for each image that there is no room for");
    assert_eq!(pages(&mapped).values().map(|(used, _)| used).sum::<u64>(), 250);
}
