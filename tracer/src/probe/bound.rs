//! Where the loader keeps which function was chosen at run time (IFUNC): pointers of the files that call it.

use std::fs::File;

use hashbrown::HashMap;
use object::{
    Object as _, ObjectSegment as _, ObjectSymbol as _, ObjectSymbolTable as _, RelocationFlags, RelocationTarget,
    elf::{R_X86_64_64, R_X86_64_GLOB_DAT, R_X86_64_IRELATIVE, R_X86_64_JUMP_SLOT},
};

use super::{
    image::{chosen_at_start, is_code},
    symbols::Elf,
};
use crate::files::elf::Bytes;

/// Most pointers of one file that are looked at.
const MAX_SLOTS: usize = 256;

/// Pointers of a file that are bound to functions.
pub struct Slots {
    /// Each with the index of the function's name, and its address as the file was linked.
    pub slots: Vec<(usize, u64)>,
    /// Offset, length (bytes) and address of what is loaded as code.
    code: Vec<(u64, u64, u64)>,
}

impl Slots {
    /// How far from where it was linked for a file lies that has code from `offset` on at `start`.
    pub fn moved_by(&self, offset: u64, start: u64) -> Option<u64> {
        let (from, _, address) = self.code.iter().find(|(from, length, _)| {
            // Mappings begin at pages, segments may begin behind that.
            offset.checked_add(0xfff).is_some_and(|end| end >= *from) && offset < from.saturating_add(*length)
        })?;
        Some(start.wrapping_sub(address.wrapping_add(offset).wrapping_sub(*from)))
    }
}

/// The pointers of `file` that are bound to functions of these names.
pub fn slots(file: &File, names: &[String]) -> Option<Slots> {
    let bytes = Bytes::new(file);
    let elf = Elf::parse(bytes.bounded()).ok()?;
    let mut indexes: HashMap<&[u8], usize> = HashMap::new();
    for (index, name) in names.iter().enumerate() {
        indexes.entry(name.as_bytes()).or_insert(index);
    }
    let index = |name: &[u8]| indexes.get(name).copied();
    // By address: there may be millions of symbols, and of pointers.
    let mut own: HashMap<u64, usize> = HashMap::new();
    for symbol in elf.symbols().chain(elf.dynamic_symbols()).filter(|symbol| symbol.address() != 0) {
        if let Some(index) = symbol.name_bytes().ok().and_then(index) {
            own.entry(symbol.address()).or_insert(index);
        }
    }
    let chosen_by = |resolver: u64| own.get(&resolver).copied();
    let symbols = elf.dynamic_symbol_table();
    let bound = elf.dynamic_relocations().into_iter().flatten().filter_map(|(slot, relocation)| {
        let RelocationFlags::Elf { r_type } = relocation.flags() else { return None };
        let name = match (r_type, relocation.target()) {
            (R_X86_64_IRELATIVE, _) => chosen_by(relocation.addend().cast_unsigned()),
            (R_X86_64_JUMP_SLOT | R_X86_64_GLOB_DAT | R_X86_64_64, RelocationTarget::Symbol(symbol)) => {
                index(symbols.as_ref()?.symbol_by_index(symbol).ok()?.name_bytes().ok()?)
            }
            _ => None,
        };
        Some((name?, slot))
    });
    let at_start = chosen_at_start(&elf).filter_map(|(slot, resolver)| Some((chosen_by(resolver)?, slot)));
    let slots = bound.chain(at_start).take(MAX_SLOTS).collect();
    let code = elf.segments().filter(is_code).map(|segment| {
        let (offset, length) = segment.file_range();
        (offset, length, segment.address())
    });
    let code = code.collect();
    Some(Slots { slots, code })
}
