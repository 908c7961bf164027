//! Tests of tables: what the passes over rows in place do, beside naive models of them.

use proptest::prelude::*;

use super::*;

#[test]
fn what_is_said_already_stays() {
    let (one, two) = (rule(kind::SP, fp::SAME, 0, 8), rule(kind::SP, fp::SAME, 0, 16));
    let rows = vec![(0x10, one), (0x20, NONE), (0x30, one), (0x40, NONE)];
    for (given, expected) in [
        (vec![], rows.clone()),
        (
            vec![(0, two), (0x50, NONE)],
            vec![(0, two), (0x10, one), (0x20, two), (0x30, one), (0x40, two), (0x50, NONE)],
        ),
        (vec![(0x12, two), (0x18, NONE)], rows.clone()),
        (vec![(0x18, two), (0x38, NONE)], vec![(0x10, one), (0x20, two), (0x30, one), (0x40, NONE)]),
        (vec![(0x18, one), (0x28, two), (0x38, NONE)], vec![(0x10, one), (0x28, two), (0x30, one), (0x40, NONE)]),
    ] {
        let mut table = Table::of(rows.clone());
        table.fill(&given);
        assert_eq!(table.rows(), expected, "{given:?}");
    }
    let table = Table::of(rows);
    assert_eq!(table.gaps(0x8..0x28), [0x8..0x10, 0x20..0x28]);
    assert_eq!(table.gaps(0x18..u64::MAX), [0x20..0x30, 0x40..u64::MAX]);
    assert_eq!(table.gaps(0x12..0x18), []);
}

#[test]
fn where_a_program_begins_has_no_caller_and_what_is_behind_it_has_no_rule() {
    let (one, stop) = (rule(kind::SP, fp::SAME, 0, 8), rule(kind::STOP, fp::SAME, 0, 0));
    let rows = vec![(0x10, one), (0x20, NONE), (0x30, one), (0x40, NONE)];
    for (code, expected) in [
        (0x2..0x6, vec![(0x2, stop), (0x6, NONE), (0x10, one), (0x20, NONE), (0x30, one), (0x40, NONE)]),
        (0x20..0x28, vec![(0x10, one), (0x20, stop), (0x28, NONE), (0x30, one), (0x40, NONE)]),
        (0x24..0x60, vec![(0x10, one), (0x20, NONE), (0x24, stop), (0x30, one), (0x40, NONE)]),
        (0x50..0x60, vec![(0x10, one), (0x20, NONE), (0x30, one), (0x40, NONE), (0x50, stop), (0x60, NONE)]),
        (0x18..0x28, rows.clone()),
        (0x24..0x24, rows.clone()),
    ] {
        let mut table = Table::of(rows.clone());
        table.mark_entry(code.clone());
        assert_eq!(table.rows(), expected, "{code:x?}");
    }
}

#[test]
fn gos_code_fills_what_is_left_with_one_row_for_an_address() {
    let (known, go) = (rule(kind::FRAME_POINTERS, fp::SAME, 0, 0), rule(kind::GO, fp::SAME, 0, 0));
    for (rows, text, expected) in [
        (vec![], 0x20..0x40, vec![(0x20, go), (0x40, NONE)]),
        (
            vec![(0x10, known), (0x20, NONE), (0x40, known), (0x50, NONE)],
            0x20..0x60,
            vec![(0x10, known), (0x20, go), (0x40, known), (0x50, go), (0x60, NONE)],
        ),
        (
            vec![(0x10, known), (0x20, NONE), (0x40, known), (0x50, NONE)],
            0..0x30,
            vec![(0, go), (0x10, known), (0x20, go), (0x30, NONE), (0x40, known), (0x50, NONE)],
        ),
    ] {
        let mut table = Table::of(rows);
        table.fill_with_go(text);
        assert_eq!(table.rows(), expected);
    }
}

/// Rows as files have them: from these addresses on one of a few rules holds, or none. Neighbours differ, and the last one says that there is none.
fn rows_of(starts: &[(u64, u8)]) -> Vec<(u64, u64)> {
    let mut table = Table::default();
    let mut starts = starts.to_vec();
    starts.sort_unstable();
    for (address, number) in starts {
        let kind = [kind::NONE, kind::SP, kind::FP, kind::DEREF_SP][usize::from(number) % 4];
        table.push(address, if kind == kind::NONE { NONE } else { rule(kind, fp::SAME, 0, i32::from(number) * 8) });
    }
    table.push(LAST, NONE);
    table.rows
}

/// The rows that say this of each address up to [`LAST`].
fn rows_that_say(says: impl Fn(u64) -> u64) -> Vec<(u64, u64)> {
    let mut table = Table::default();
    (0..=LAST).for_each(|address| table.push(address, says(address)));
    table.rows
}

/// The last address of tables in these tests.
const LAST: u64 = 256;

fn starts() -> impl Strategy<Value = Vec<(u64, u8)>> {
    prop::collection::vec((0..LAST, 0..8u8), 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Rows are changed where they are: what they say of each address is what was to be said.
    #[test]
    fn rows_that_are_changed_in_place_say_what_they_should(own in starts(), given in starts(), odd in 0..3u64) {
        let table = Table::of(rows_of(&own));
        let other = Table::of(rows_of(&given));
        let mut filled = table.clone();
        filled.fill(other.rows());
        let said = |address: u64| Some(table.rule_at(address)).filter(|rule| *rule != NONE);
        prop_assert_eq!(&filled.rows, &rows_that_say(|address| said(address).unwrap_or(other.rule_at(address))));

        let is_padding = |gap: &Range<u64>| gap.start % 3 != odd;
        let is_bridged = |address: u64| {
            let first = table.rows.first().is_some_and(|row| row.0 <= address);
            let gap = first.then(|| table.gaps(0..LAST + 1).into_iter().find(|gap| gap.contains(&address))).flatten();
            gap.filter(|gap| gap.end <= LAST && gap.end - gap.start < PADDING && gap.start > 0 && is_padding(gap))
        };
        let mut bridged = table.clone();
        bridged.bridge(|gap| is_padding(&gap));
        let before = |gap: Range<u64>| table.rule_at(gap.start - 1);
        prop_assert_eq!(&bridged.rows, &rows_that_say(|address| is_bridged(address).map_or(table.rule_at(address), before)));

        let find = |part: &Range<u64>| (part.start % 3 != odd).then_some(part.start + (part.end - part.start) / 2);
        let mut switched = table.clone();
        switched.mark_switches(|part| find(&part));
        let parts = table.rows.windows(2).map(|pair| (pair[0].0..pair[1].0, pair[0].1));
        let parts: Vec<_> = parts.filter(|(_, rule)| *rule as u8 == kind::FP).collect();
        let is_switched = |address: u64| {
            let (part, rule) = parts.iter().find(|(part, _)| part.contains(&address))?;
            find(part).filter(|from| *from <= address).map(|_| rule & !0xff | u64::from(kind::SWITCHED))
        };
        prop_assert_eq!(&switched.rows, &rows_that_say(|address| is_switched(address).unwrap_or(table.rule_at(address))));
    }
}
