//! Which addresses are memory of a Go heap, by the runtime's own table of its arenas (`mheap_.arenas`, which `sysAlloc` of
//! runtime/malloc.go fills): what a program, or the runtime of C in it, maps beside them is not in it.

use std::ops::Range;

use super::{
    cycles::layout,
    liveness::{ARENA_BASE, ARENA_SHIFT},
};
use crate::{
    golang::{ReadMemory, Runtime, Unreadable, bytes::u64_at, executable::HEAP},
    process::memory::Span,
    ranges::joined,
};

/// Behind the last address that a process can have.
const ADDRESSES: u64 = 1 << 47;
/// Entries of the table that are read at once; each has 8 bytes.
const PART: u64 = 1 << 14;

/// The arenas that there are in some address ranges, which begin and end anywhere; in order, and those that adjoin are one. An arena
/// stays once it is there.
///
/// # Errors
/// The table is not found, or not readable.
pub fn arenas(
    runtime: &Runtime,
    memory: &ReadMemory<'_>,
    ranges: impl IntoIterator<Item = Range<u64>>,
) -> Result<Vec<Range<u64>>, Unreadable> {
    let table = runtime.variable(HEAP)?.wrapping_add(layout(runtime)?.mheap.1 as u64);
    of_table(table, memory, ranges)
}

/// The same by the address of the pointer to the table.
fn of_table(
    table: u64,
    memory: &ReadMemory<'_>,
    ranges: impl IntoIterator<Item = Range<u64>>,
) -> Result<Vec<Range<u64>>, Unreadable> {
    let list = u64_at(&read(memory, table, 8)?, 0).unwrap_or(0);
    // A runtime that has not begun has none.
    if list == 0 {
        return Ok(Vec::new());
    }
    let mut found: Vec<Range<u64>> = Vec::new();
    for indexes in indexes(ranges) {
        for first in indexes.clone().step_by(PART as usize) {
            let len = PART.min(indexes.end - first);
            // Where addresses below 0 would be comes first in the table.
            let place = list.wrapping_add(8 * (first + (ARENA_BASE >> ARENA_SHIFT)));
            let entries = read(memory, place, 8 * len as usize)?;
            let there = (first..).zip(entries.chunks_exact(8)).filter(|(_, entry)| entry.iter().any(|byte| *byte != 0));
            for (index, _) in there {
                let (start, end) = (index << ARENA_SHIFT, (index + 1) << ARENA_SHIFT);
                match found.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => found.push(start..end),
                }
            }
        }
    }
    Ok(found)
}

/// Which arenas the ranges may be in, counted from address 0 on: each once, in order.
fn indexes(ranges: impl IntoIterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let ranges = ranges.into_iter().filter(|range| range.start < range.end && range.end <= ADDRESSES);
    joined(ranges.map(|range| range.start >> ARENA_SHIFT..((range.end - 1) >> ARENA_SHIFT) + 1).collect())
}

fn read(memory: &ReadMemory<'_>, addr: u64, len: usize) -> Result<Vec<u8>, Unreadable> {
    let mut bytes = vec![0; len];
    let readable = memory(&[Span { addr, len }], &mut bytes)?;
    if readable == [true] { Ok(bytes) } else { Err(Unreadable::Nonsense("the arenas of its heap")) }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "ranges are what is meant")]
mod tests {
    use super::{super::fixture::Fake, *};

    const ARENA: u64 = 1 << ARENA_SHIFT;
    const TABLE: u64 = 0x5000;
    const LIST: u64 = 0x7f00_0000_0000;
    const HEAP_AT: u64 = 0xc0_0000_0000;

    /// Memory of a runtime that has arenas at these addresses, and of whose table so much around them can be read.
    fn memory(arenas: &[u64], entries: Range<u64>) -> Fake {
        let fake = Fake::default();
        fake.word(TABLE, LIST);
        // As the runtime cuts addresses (`arenaIndex`).
        let place = |addr: u64| LIST + 8 * (addr.wrapping_sub(0xffff_8000_0000_0000) / ARENA);
        let entries = place(entries.start)..place(entries.end);
        entries.step_by(8).for_each(|at| fake.word(at, 0));
        arenas.iter().for_each(|addr| fake.word(place(*addr), 0x7f11_0000_0000));
        fake
    }

    #[test]
    fn only_what_the_runtime_has_in_its_table_is_its_heap() {
        let other = 0x2000_0000_0000;
        let fake = memory(&[HEAP_AT, HEAP_AT + ARENA, HEAP_AT + 3 * ARENA], HEAP_AT..HEAP_AT + 8 * ARENA);
        (0..8).for_each(|index| fake.word(LIST + 8 * ((other + index * ARENA + ARENA_BASE) >> ARENA_SHIFT), 0));
        let read = |spans: &[Span], buffer: &mut [u8]| fake.read(spans, buffer);
        let ask = |ranges: &[Range<u64>]| of_table(TABLE, &read, ranges.to_vec()).unwrap();
        let whole = [HEAP_AT..HEAP_AT + 2 * ARENA, HEAP_AT + 3 * ARENA..HEAP_AT + 4 * ARENA];
        assert_eq!(ask(&[HEAP_AT..HEAP_AT + 5 * ARENA]), whole);
        // Parts of mappings that overlap, in any order, and a mapping that is shaped like arenas and is none.
        let parts = [
            other..other + 2 * ARENA,
            HEAP_AT + 3 * ARENA + 0x1000..HEAP_AT + 4 * ARENA - 0x1000,
            HEAP_AT + 0x40_0000..HEAP_AT + ARENA + 1,
            HEAP_AT..HEAP_AT + 0x1000,
        ];
        assert_eq!(ask(&parts), whole);
        assert_eq!(ask(&[other..other + 2 * ARENA]), []);
        assert_eq!(ask(&[0xffff_ffff_ff60_0000..0xffff_ffff_ff60_1000, 5..5]), [], "no address of a heap");
    }

    #[test]
    fn a_large_table_is_read_in_parts_and_what_cannot_be_read_is_an_error() {
        let end = HEAP_AT + (PART + 3) * ARENA;
        let last = end - ARENA;
        let fake = memory(&[HEAP_AT + (PART - 1) * ARENA, HEAP_AT + PART * ARENA, last], HEAP_AT..end);
        let read = |spans: &[Span], buffer: &mut [u8]| fake.read(spans, buffer);
        let found = of_table(TABLE, &read, [HEAP_AT..end]).unwrap();
        assert_eq!(found, [HEAP_AT + (PART - 1) * ARENA..HEAP_AT + (PART + 1) * ARENA, last..end]);
        assert_eq!(fake.reads(), 3);
        assert!(of_table(TABLE, &read, [HEAP_AT..end + ARENA]).is_err());
        assert!(of_table(TABLE + 8, &read, [HEAP_AT..end]).is_err());
        fake.word(TABLE, 0);
        assert_eq!(of_table(TABLE, &read, [HEAP_AT..end]).unwrap(), [], "it has not begun");
    }
}
