//! Machine code that no unwind information describes: the rules that come of it are in order, and lie in the code.

use tracer::unwind::{Reason, Table, Undescribed, synthesize};
use tracer_ebpf::unwind::kind;

use crate::input::take;

/// Where the code begins, and how far the second part of it is from the first.
const BASE: u64 = 0x1000;
const HOLE: u64 = 0x100;

/// The input is where functions, pointers and what does not return are, where the code has a hole, what kind of file it is, and the
/// code.
pub fn run(data: &[u8]) {
    let ([kind, first, second, pointer, endless, hole], text) = take(data);
    let (one, other) = text.split_at(text.len().min(usize::from(hole) * 16));
    let begins = BASE + one.len() as u64 + HOLE;
    let end = begins + other.len() as u64;
    let loaded = |address: u64| match address.checked_sub(begins) {
        Some(inside) => other.get(usize::try_from(inside).ok()?..),
        None => one.get(usize::try_from(address.checked_sub(BASE)?).ok()?..),
    };
    let synthesized = synthesize(&Undescribed {
        code: vec![(BASE, one), (begins, other)],
        loaded: &loaded,
        functions: vec![BASE + u64::from(first), begins + u64::from(second)],
        pointers: vec![BASE + 4 * u64::from(pointer)],
        no_return: vec![BASE + u64::from(endless)],
        entry: if kind & 1 == 0 { 0..0 } else { BASE + u64::from(first)..BASE + u64::from(first) + u64::from(pointer) },
        has_caller: &|address| address & 1 == 0,
        is_fixed: kind & 2 != 0,
    });
    let rows = &synthesized.rows;
    assert!(rows.is_sorted_by(|a, b| a.0 < b.0));
    assert!(rows.last().is_none_or(|last| last.1 as u8 == kind::NONE));
    assert!(rows.len() <= text.len() + 2, "{} rows of {} bytes", rows.len(), text.len());
    for pair in rows.windows(2) {
        let ((from, rule), (to, next)) = (pair[0], pair[1]);
        assert!(rule != next, "neighbours differ");
        assert!(Reason::of(rule).is_none() && [kind::NONE, kind::SP, kind::FP, kind::STOP].contains(&(rule as u8)));
        assert!(rule as u8 == kind::NONE || BASE <= from && to <= end && (to <= begins - HOLE || begins <= from));
        // The return address lies above the stack pointer.
        assert!(rule as u8 != kind::SP || (rule >> 32) as i32 >= 8, "{rule:#x}");
    }
    let mut table = Table::frame_pointers(BASE + 8..BASE + 16);
    table.fill(rows);
    assert_eq!(table.rule_at(BASE + 12) as u8, kind::FRAME_POINTERS, "what was said before stays");
}
