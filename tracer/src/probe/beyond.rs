//! What an allocator does that no probe tells: functions whose arguments do not say how much they allocate.

use std::ops::Range;

use object::{
    Endianness,
    elf::{SHN_UNDEF, STT_NOTYPE},
    read::elf::Sym as _,
};

use super::{
    asked::calls_of,
    catalogue::UNTOLD,
    symbols::{Elf, Table, each_function},
};
use crate::files::elf::Bounded;

/// Most functions of its own that an allocator has.
const MAX_OWN: usize = 1 << 20;
/// How names of functions begin that allocators have for themselves.
const OWN: [&str; 6] = ["mi_", "_mi_", "rpmalloc", "_ZN3rml", "__interceptor_", "___interceptor_"];

/// A function of an allocator that is not probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beyond {
    /// Its name.
    pub name: &'static str,
    /// Whether code of its own file calls it.
    pub is_called: bool,
}

/// Which of a file's functions are such; `is_seen` says of an address whether what it allocates is seen otherwise, and
/// `is_program` whether the file is one: libraries have them for others.
pub(super) fn find<'data>(
    elf: &Elf<'data>,
    data: Bounded<'data>,
    tables: &[Table<'_>],
    is_program: bool,
    is_seen: impl Fn(u64) -> bool,
) -> Vec<Beyond> {
    let endian = Endianness::Little;
    let mut found: Vec<(&'static str, u64)> = Vec::new();
    each(tables, |name, symbol| {
        let address = symbol.st_value(endian);
        let is_there = symbol.st_shndx(endian) != SHN_UNDEF && symbol.st_type() != STT_NOTYPE && address != 0;
        if is_there && !found.iter().any(|(known, _)| *known == name) && !is_seen(address) {
            found.push((name, address));
        }
    });
    if found.is_empty() {
        return Vec::new();
    }
    let targets: Vec<u64> = found.iter().map(|(_, address)| *address).collect();
    let calls = if is_program { calls_of(elf, data, &targets) } else { Some(Vec::new()) };
    // Where that cannot be told, it may be.
    let may_all = calls.is_none();
    let mut calls = calls.unwrap_or_default();
    // They call each other, and are called by what else the allocator has.
    if !calls.is_empty() {
        let is_own = |name: &[u8]| OWN.iter().any(|own| name.starts_with(own.as_bytes()));
        let mut own = Vec::new();
        each_function(tables, is_own, |_, symbol| {
            let start = symbol.st_value(endian);
            let end = start.saturating_add(symbol.st_size(endian));
            // Those of a hostile file may be millions, each of all code.
            if own.len() < MAX_OWN {
                own.push(start..end);
            }
        });
        leave_out(&mut calls, own);
    }
    let mut told = Vec::new();
    let beyond = found.iter().map(|(name, address)| {
        // Of several names of a function, one is told.
        let is_called = (may_all || calls.iter().any(|(_, to)| to == address)) && !told.contains(address);
        told.push(*address);
        Beyond { name, is_called }
    });
    beyond.collect()
}

/// Leaves out the calls in these ranges: in one pass.
fn leave_out(calls: &mut Vec<(u64, u64)>, mut ranges: Vec<Range<u64>>) {
    ranges.sort_unstable_by_key(|range| range.start);
    calls.sort_unstable();
    let mut ranges = ranges.into_iter().peekable();
    let mut end = 0;
    calls.retain(|(at, _)| {
        while let Some(range) = ranges.next_if(|range| range.start <= *at) {
            end = end.max(range.end);
        }
        *at >= end
    });
}

/// Names of such functions that a file takes from others.
pub(super) fn wanted(tables: &[Table<'_>]) -> Vec<&'static str> {
    let mut wanted = Vec::new();
    each(tables, |name, symbol| {
        if symbol.st_shndx(Endianness::Little) == SHN_UNDEF && !wanted.contains(&name) {
            wanted.push(name);
        }
    });
    wanted
}

fn each(tables: &[Table<'_>], mut f: impl FnMut(&'static str, &object::elf::Sym64<Endianness>)) {
    let begins = |name: &[u8]| matches!(name, [b's' | b'_' | b'w' | b'm', ..]);
    each_function(tables, begins, |name, symbol| {
        if let Some(name) = UNTOLD.iter().find(|known| known.as_bytes() == name) {
            f(name, symbol);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_by_what_an_allocator_has_are_left_out() {
        let mut calls = vec![(30, 1), (5, 1), (10, 2), (19, 1), (20, 1), (25, 1), (70, 1)];
        leave_out(&mut calls, vec![22..24, 10..20, 60..u64::MAX, 12..15, 0..0]);
        assert_eq!(calls, [(5, 1), (20, 1), (25, 1), (30, 1)]);
    }
}
