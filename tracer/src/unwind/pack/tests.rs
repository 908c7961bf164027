//! Tests of packing: the packed tables, and what the kernel's maps hold of them, read as the rows that went in.

use proptest::prelude::*;
use tracer_ebpf::unwind::fp;

use super::*;
use crate::unwind::fixture::Random;

/// The maps as the BPF programs see them.
#[derive(Default)]
struct Kernel {
    pages: Vec<Vec<u64>>,
    rows: Vec<Vec<u32>>,
    rules: Vec<u64>,
}

impl Kernel {
    fn write(&mut self, changes: Changes) {
        if let Some(rules) = changes.rules {
            assert_eq!(rules.len(), MAX_RULES);
            self.rules = rules;
        }
        for (shard, rows) in changes.rows {
            assert_eq!(rows.len(), ROWS_PER_SHARD);
            replace(&mut self.rows, shard, rows);
        }
        for (shard, pages) in changes.pages {
            assert_eq!(pages.len(), PAGES_PER_SHARD);
            replace(&mut self.pages, shard, pages);
        }
    }

    /// The BPF programs' search, step by step: ten halvings, all in one shard.
    fn rule_at(&self, placed: &Placed, address: u64) -> u64 {
        let offset = address.wrapping_sub(placed.base);
        if offset >> PAGE_BITS >= u64::from(placed.pages) {
            return NONE;
        }
        let index = (u64::from(placed.first_page) + (offset >> PAGE_BITS)) as usize;
        let entry = self.pages[index / PAGES_PER_SHARD][index % PAGES_PER_SHARD];
        let (first, mut size) = (entry as u32 as usize, (entry >> 32) as usize);
        let rows = &self.rows[first / ROWS_PER_SHARD];
        let mut base = first % ROWS_PER_SHARD;
        for _ in 0..PAGE_BITS {
            if size <= 1 {
                break;
            }
            let half = size / 2;
            if rows[base + half] & IN_PAGE <= offset as u32 & IN_PAGE {
                base += half;
            }
            size -= half;
        }
        assert!(size == 1, "more than {PAGE_BITS} steps");
        self.rules[(rows[base] >> PAGE_BITS) as usize]
    }
}

fn replace<T>(shards: &mut Vec<Vec<T>>, shard: u32, values: Vec<T>) {
    let shard = shard as usize;
    assert!(shard <= shards.len());
    shards.truncate(shards.len().max(shard));
    if shard == shards.len() {
        shards.push(values);
    } else {
        shards[shard] = values;
    }
}

fn sp(offset: i32) -> u64 {
    rule(kind::SP, fp::SAME, 0, offset)
}

/// A table whose rows follow at the given distances with the given rules (0: none), and then end.
fn table(start: u64, rows: &[(u64, i32)]) -> Table {
    let mut address = start;
    let mut all = Vec::new();
    for &(distance, offset) in rows {
        all.push((address, if offset == 0 { NONE } else { sp(offset) }));
        address += distance;
    }
    all.push((address, NONE));
    Table::of(all)
}

/// Looks up around every row and at some other addresses, here and in the kernel.
fn check(packed: &Packed, kernel: &Kernel, placed: &Placed, table: &Table) {
    let mut random = Random(9);
    let (first, last) = (table.rows()[0].0, table.rows()[table.rows().len() - 1].0);
    let around = table.rows().iter().flat_map(|row| [row.0.saturating_sub(1), row.0, row.0 + 1]);
    let anywhere = (0..100).map(|_| first + random.next() % (last - first + 4096));
    for address in around.chain(anywhere).chain([0, last + 1024, u64::MAX]) {
        let expected = table.rows().iter().rev().find(|row| row.0 <= address).map_or(NONE, |row| row.1);
        assert_eq!(packed.rule_at(placed, address), expected, "{address:#x}");
        assert_eq!(kernel.rule_at(placed, address), expected, "{address:#x} in the kernel");
    }
}

/// Packed tables that need few more rows to reach the next shard.
fn nearly_full_shard() -> (Packed, Kernel) {
    let mut packed = Packed::default();
    packed.add(&table(0, &[(1, 8), (1, 16)].repeat(32_700))).unwrap();
    assert!((ROWS_PER_SHARD - 300..ROWS_PER_SHARD).contains(&packed.rows.len()), "{}", packed.rows.len());
    let mut kernel = Kernel::default();
    kernel.write(packed.changed());
    (packed, kernel)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn packed_tables_read_as_they_were(
        tables in prop::collection::vec(
            (0u64..1 << 40, prop::collection::vec((prop_oneof![1u64..4, 1u64..2000, 1000u64..100_000], 0i32..6), 1..300)),
            1..4,
        )
    ) {
        let (mut packed, mut kernel) = nearly_full_shard();
        let mut all = Vec::new();
        for (start, rows) in &tables {
            let table = table(*start, rows);
            all.push((packed.add(&table).unwrap(), table));
            kernel.write(packed.changed());
        }
        for (placed, table) in &all {
            check(&packed, &kernel, placed, table);
        }
    }
}

#[test]
fn pages_of_full_length_and_borders_of_shards() {
    let mut packed = Packed::default();
    let mut kernel = Kernel::default();
    let mut all = Vec::new();
    // Each page but the first of a table has all of its 1024 rows; three tables take more than two shards.
    for start in [0x40_0000, 0x1_0203, 0x7fff_0000_03ff] {
        let table = table(start, &[(1, 8), (1, 16), (1, 24)].repeat(20_000));
        all.push((packed.add(&table).unwrap(), table));
        kernel.write(packed.changed());
    }
    assert!(packed.rows.len() > 2 * ROWS_PER_SHARD);
    for (placed, table) in &all {
        for address in table.rows()[0].0 - 2..table.rows()[table.rows().len() - 1].0 + 2 {
            assert_eq!(kernel.rule_at(placed, address), table.rule_at(address), "{address:#x}");
            assert_eq!(packed.rule_at(placed, address), table.rule_at(address), "{address:#x}");
        }
    }
}

#[test]
fn borders_of_page_shards() {
    let mut packed = Packed::default();
    let mut kernel = Kernel::default();
    let mut all = Vec::new();
    for start in [0x1000, 0x2000] {
        let table = table(start, &[(1 << 24, 8), (1 << 24, 0), (5000, 16)]);
        all.push((packed.add(&table).unwrap(), table));
        kernel.write(packed.changed());
    }
    assert_eq!(kernel.pages.len(), 3);
    // Pages of a single rule share their row.
    assert!(packed.rows.len() < 20, "{}", packed.rows.len());
    for (placed, table) in &all {
        check(&packed, &kernel, placed, table);
    }
}

#[test]
fn room_of_what_is_removed_is_used_again() {
    let (mut packed, mut kernel) = nearly_full_shard();
    let tables: Vec<Table> =
        (1..6).map(|n| table(n << 32, &[(1, 8), (700, 16), (3, 8), (5000, 24)].repeat(100 * n as usize))).collect();
    let mut placed: Vec<Placed> = tables.iter().map(|table| packed.add(table).unwrap()).collect();
    kernel.write(packed.changed());
    let lengths = (packed.pages.len(), packed.rows.len(), packed.size());
    for turn in 0..20 {
        // The largest first, so that the others may take its room.
        let gone = [[4, 1], [3, 0], [2, 4]][turn % 3];
        gone.iter().for_each(|gone| packed.remove(&placed[*gone]));
        for gone in gone {
            placed[gone] = packed.add(&tables[gone]).unwrap();
        }
        kernel.write(packed.changed());
        placed.iter().zip(&tables).for_each(|(placed, table)| check(&packed, &kernel, placed, table));
    }
    assert_eq!(packed.size(), lengths.2);
    assert!(packed.pages.len() <= 2 * lengths.0 && packed.rows.len() <= 2 * lengths.1, "{lengths:?}");
    placed.iter().for_each(|placed| packed.remove(placed));
    let (rest, _) = nearly_full_shard();
    assert_eq!((packed.pages.len(), packed.rows.len()), (rest.pages.len(), rest.rows.len()));
}

#[test]
fn changes_are_told_once() {
    let mut packed = Packed::default();
    packed.add(&table(0x1000, &[(100, 8)])).unwrap();
    let first = packed.changed();
    assert_eq!((first.rows.len(), first.pages.len(), first.rules.is_some()), (1, 1, true));
    assert_eq!(packed.changed(), Changes::default());
    packed.add(&table(0x1000, &[(100, 8)])).unwrap();
    let second = packed.changed();
    assert_eq!((second.rows.len(), second.pages.len(), second.rules.is_some()), (1, 1, false));
}

#[test]
fn a_table_that_does_not_fit_leaves_nothing_behind() {
    let mut packed = Packed::default();
    packed.add(&table(0x1000, &[(100, 8)])).unwrap();
    let before = (packed.pages.clone(), packed.rows.clone(), packed.rules.clone(), packed.ids.clone());
    let far = Table::of(vec![(0, sp(8)), (1 << 32, NONE)]);
    assert_eq!(packed.add(&far), Err(Full::Pages));
    assert_eq!(packed.add(&Table::of(vec![(0, sp(8)), (u64::MAX, NONE)])), Err(Full::Pages));
    let many: Vec<(u64, i32)> = (0..=MAX_RULES as i32).map(|offset| (1, 8 * offset)).collect();
    assert_eq!(packed.add(&table(0, &many)), Err(Full::Rules));
    assert_eq!((packed.pages, packed.rows, packed.rules, packed.ids), before);
}

#[test]
fn rows_can_run_out() {
    let mut packed = Packed::default();
    let dense = table(0, &[(1, 8), (1, 16)].repeat(1 << 20));
    let fitting = (0..10).take_while(|_| packed.add(&dense) != Err(Full::Rows)).count();
    assert_eq!(fitting, MAX_ROWS / (2 << 20) - 1);
    assert!(packed.rows.len() <= MAX_ROWS);
}

#[test]
fn nothing_written_yet_means_no_rule() {
    let kernel = Kernel { pages: vec![vec![0]], rows: vec![vec![0]], rules: vec![0] };
    let placed = Placed { first_page: 0, pages: 1, base: 0 };
    assert_eq!(kernel.pages[0][0], page(0, 0));
    let packed = Packed { pages: vec![0], ..Packed::default() };
    assert_eq!(packed.rule_at(&placed, 5), NONE);
    // A page of gaps has an entry, but takes no row.
    let mut packed = Packed::default();
    packed.add(&table(0, &[(10, 8), (5000, 0), (10, 8)])).unwrap();
    assert_eq!(packed.pages[2], page(0, 1));
}

#[test]
fn code_that_keeps_frame_pointers_has_one_rule() {
    let text = 0x1234..0x5678;
    let table = Table::frame_pointers(text.clone());
    let mut packed = Packed::default();
    let placed = packed.add(&table).unwrap();
    let follow = rule(kind::FRAME_POINTERS, fp::SAME, 0, 0);
    for (address, expected) in [(text.start - 1, NONE), (text.start, follow), (text.end - 1, follow), (text.end, NONE)]
    {
        assert_eq!(table.rule_at(address), expected);
        assert_eq!(packed.rule_at(&placed, address), expected);
    }
    let nothing = packed.add(&Table::frame_pointers(5..5)).unwrap();
    assert_eq!((nothing.pages, packed.rule_at(&nothing, 5)), (0, NONE));
}
