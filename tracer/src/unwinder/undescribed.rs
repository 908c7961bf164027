//! Rules for what a file's unwind information leaves out, from its code.

use std::ops::Range;

use tracer_ebpf::unwind::kind;

use super::{entry, window::Window};
use crate::{
    files::elf::{Elf, code::CodeHints},
    unwind::{MAX_CODE, Table, Undescribed, synthesize},
};

/// What functions begin at, bytes: those in assembler, too.
const ALIGNMENT: u64 = 16;

/// Bridges short gaps between functions that hold nothing but padding. What is in the others may be a function of its own, which its author
/// describes nothing of.
pub(super) fn bridge(code: &mut Window<'_>, table: &mut Table) {
    // Before what is aligned there is no room for another function that is, and so nothing to be read.
    table.bridge(|gap| gap.end.is_multiple_of(ALIGNMENT) || code.code(&gap).is_some_and(is_padding));
}

/// Code that the table says nothing of, by address, but padding.
pub(super) fn code<'data>(elf: &Elf<'data>, table: &mut Table) -> Vec<(u64, &'data [u8])> {
    let gaps: Vec<Range<u64>> =
        elf.code().iter().flat_map(|code| table.gaps(code.address..code.address.saturating_add(code.size))).collect();
    let (mut room, mut unseen) = (MAX_CODE as u64, 0u64);
    let code = gaps.iter().filter_map(|gap| {
        let size = gap.end - gap.start;
        let Some(left) = room.checked_sub(size) else {
            unseen = unseen.saturating_add(size);
            return None;
        };
        room = left;
        Some((gap.start, elf.loaded_range(gap.start, size)?))
    });
    let code = code.filter(|(_, bytes)| !is_padding(bytes)).collect();
    table.stats.unseen_bytes = unseen;
    code
}

/// Adds rules for that, where its instructions prove them.
pub(super) fn describe(elf: &Elf<'_>, code: Vec<(u64, &[u8])>, table: &mut Table) {
    if code.is_empty() {
        return;
    }
    let is_wanted = |address: u64| {
        let before = code.partition_point(|(start, _)| *start <= address).checked_sub(1);
        before.is_some_and(|index| address - code[index].0 < code[index].1.len() as u64)
    };
    let CodeHints { functions, pointers, no_return } = elf.code_hints(is_wanted);
    let synthesized = synthesize(&Undescribed {
        loaded: &|address| elf.loaded(address),
        functions,
        pointers,
        no_return,
        has_caller: &|address| has_caller(table.rule_at(address)),
        entry: entry::function(elf).unwrap_or(0..0),
        is_fixed: elf.has_fixed_addresses(),
        code,
    });
    table.fill(&synthesized.rows);
    let pairs = synthesized.rows.windows(2);
    let sizes = pairs.filter(|pair| pair[0].1 as u8 != kind::NONE).map(|pair| pair[1].0 - pair[0].0);
    table.stats.synthesized_bytes = sizes.sum();
}

/// Whether a rule says that the return address is on top of the stack, as it is where functions begin.
fn has_caller(rule: u64) -> bool {
    rule as u8 == kind::PLT || (rule as u8 == kind::SP && rule >> 32 == 8)
}

/// Whether these bytes are no more than what compilers and linkers put between functions: `nop` in its forms, `int3`, zeroes.
fn is_padding(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| [0, 0xcc, 0x90, 0x66, 0x2e, 0x0f, 0x1f, 0x40, 0x44, 0x80, 0x84].contains(byte))
}

#[cfg(test)]
mod tests;
