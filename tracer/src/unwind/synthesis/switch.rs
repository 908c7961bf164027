//! Tables of jumps, as compilers make them of `switch`.

use std::collections::BTreeSet;

use iced_x86::{Instruction, OpKind};

use super::{
    code::{Text, mark},
    effects::Effects,
    frame::{
        Frame,
        Value::{Entry, Target},
    },
};

/// Most entries of a table.
const MAX_ENTRIES: u64 = 4096;
/// Most bytes that the next function is looked for in.
const MAX_FUNCTION: usize = 1 << 18;
/// What it takes to look at a table, beside instructions that are looked at; and at one whose end is that of the function.
const STEPS: u64 = 64;
const STEPS_TO_END: u64 = 1024;

/// Where a table is.
pub(super) struct Table {
    address: u64,
    /// Whether its entries are distances from it, of four bytes; else addresses.
    is_relative: bool,
    /// The last entry that is used, where that is known.
    pub(super) bound: Option<u32>,
}

impl Table {
    /// That by which an instruction jumps.
    pub(super) fn of(effects: &Effects, frame: &Frame, instruction: &Instruction) -> Option<Self> {
        let (near, is_relative) = if instruction.op0_kind() == OpKind::Register {
            match frame.register(instruction.op0_register()) {
                Target(table) => (table, true),
                Entry(table) => (table, false),
                _ => return None,
            }
        } else {
            (effects.table(frame, instruction)?, false)
        };
        Some(Self { address: effects.address(near), is_relative, bound: frame.bound })
    }
}

/// How much work it is to look at a table.
pub(super) fn steps(table: &Table) -> u64 {
    if table.bound.is_none() { STEPS_TO_END } else { STEPS }
}

/// Where a jump by a table may lead, in the function that begins at `entry`. `others`: addresses of what may be other tables.
/// `None` where what the table holds is no code of the function.
pub(super) fn targets<'a>(
    table: &Table,
    text: &Text<'_>,
    loaded: &dyn Fn(u64) -> Option<&'a [u8]>,
    entry: u64,
    others: &BTreeSet<u64>,
) -> Option<Vec<u64>> {
    let bytes = loaded(table.address)?;
    let size = if table.is_relative { 4 } else { 8 };
    let next_table = others.range(table.address.saturating_add(1)..).next().copied().unwrap_or(u64::MAX);
    let most = match table.bound {
        Some(last) => u64::from(last) + 1,
        None => (next_table - table.address).div_ceil(size),
    };
    // A table whose end is not known leads to no other function.
    let function = entry..if table.bound.is_none() { end_of_function(text, entry) } else { u64::MAX };
    let mut targets = Vec::new();
    for word in bytes.chunks_exact(size as usize).take(most.min(MAX_ENTRIES) as usize) {
        let target = match word.first_chunk() {
            Some(word) => u64::from_le_bytes(*word),
            None => table.address.wrapping_add_signed(i64::from(i32::from_le_bytes(*word.first_chunk()?))),
        };
        if !text.contains(target) || !(function.contains(&target) || table.bound.is_some()) {
            if table.bound.is_some() {
                return None;
            }
            break;
        }
        targets.push(target);
    }
    targets.sort_unstable();
    targets.dedup();
    (!targets.is_empty()).then_some(targets)
}

/// Where the next function begins, or the code ends.
fn end_of_function(text: &Text<'_>, entry: u64) -> u64 {
    let Some((bytes, first)) = text.from(entry) else { return entry };
    let length = bytes.len().min(MAX_FUNCTION);
    entry.wrapping_add(text.next(first + 1..first + length, mark::ENTRY).map_or(length, |at| at - first) as u64)
}
