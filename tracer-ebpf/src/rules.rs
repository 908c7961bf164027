//! The unwinding tables that user space has compiled ([`tracer_ebpf::unwind`]), and the rule that holds at an address.

use aya_ebpf::{macros::map, maps::Array};
use tracer_ebpf::unwind::{GENERATED, MAX_RULES, Mapping, PAGE_BITS, PAGES_PER_SHARD, ROWS_PER_SHARD, kind};

use crate::branchless::less;

// The number of shards is set by user space before loading.
#[map]
static PAGES: Array<[u64; PAGES_PER_SHARD]> = Array::with_max_entries(1, 0);
#[map]
static ROWS: Array<[u32; ROWS_PER_SHARD]> = Array::with_max_entries(1, 0);
#[map]
static RULES: Array<[u64; MAX_RULES]> = Array::with_max_entries(1, 0);

/// The rule that holds at `pc`, which lies in `mapping`.
#[inline(always)]
pub(crate) fn rule_at(mapping: &Mapping, pc: u64) -> u64 {
    if mapping.pages == 0 {
        return u64::from(if mapping.first_page == GENERATED { kind::FRAME_POINTERS } else { kind::NONE });
    }
    let offset = pc.wrapping_sub(mapping.bias);
    let page = offset >> PAGE_BITS;
    if page >= u64::from(mapping.pages) {
        return u64::from(kind::NONE);
    }
    let index = u64::from(mapping.first_page) + page;
    let Some(pages) = PAGES.get_ptr((index / PAGES_PER_SHARD as u64) as u32) else { return u64::from(kind::NONE) };
    // SAFETY: the pointer comes from a map lookup, and the index is below the shard's size.
    let entry = unsafe { (*pages)[index as usize & (PAGES_PER_SHARD - 1)] };
    let first = entry & 0xffff_ffff;
    let mut size = entry >> 32 & 0x7ff;
    let Some(rows) = ROWS.get_ptr((first / ROWS_PER_SHARD as u64) as u32) else { return u64::from(kind::NONE) };
    let mut base = first & (ROWS_PER_SHARD as u64 - 1);
    let in_page = offset & ((1 << PAGE_BITS) - 1);
    for _ in 0..PAGE_BITS {
        if size <= 1 {
            break;
        }
        let half = size >> 1;
        let middle = (base + half) as usize & (ROWS_PER_SHARD - 1);
        // SAFETY: as above.
        let row = u64::from(unsafe { (*rows)[middle] });
        base += half & !less(in_page, row & ((1 << PAGE_BITS) - 1));
        size -= half;
    }
    // SAFETY: as above.
    let row = unsafe { (*rows)[base as usize & (ROWS_PER_SHARD - 1)] };
    let Some(rules) = RULES.get_ptr(0) else { return u64::from(kind::NONE) };
    // SAFETY: as above.
    unsafe { (*rules)[(row >> PAGE_BITS) as usize & (MAX_RULES - 1)] }
}
