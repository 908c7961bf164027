//! What an ELF file tells about its code: the bytes, what its pointers to functions are bound to, functions that are known
//! by their names, frames.

use hashbrown::HashMap;
use object::{
    Object, ObjectSection, ObjectSegment, ObjectSymbol, ObjectSymbolTable, ReadRef, RelocationFlags, RelocationTarget,
    SegmentFlags,
    elf::{PF_X, R_X86_64_GLOB_DAT, R_X86_64_IRELATIVE, R_X86_64_JUMP_SLOT, SHN_UNDEF},
    read::elf::Sym as _,
};

use super::{
    exits::{Analysis, Image, Known, Pointer},
    symbols::{Elf, each_function, tables},
};
use crate::{
    files::elf::Bounded,
    unwind::{Frames, Sections},
};

/// Functions that allocators call when nothing else is left, and that never return.
const NO_RETURN: [&str; 14] = [
    "_ZSt17__throw_bad_allocv",
    "_ZSt9terminatev",
    "__cxa_throw",
    "__cxa_rethrow",
    "_Unwind_Resume",
    "__cxa_throw_bad_array_new_length",
    "_ZSt28__throw_bad_array_new_lengthv",
    "abort",
    "__assert_fail",
    "__stack_chk_fail",
    "__fortify_fail",
    "__libc_fatal",
    "exit",
    "_exit",
];
/// Functions that return their first argument (ISO C 7.26, LSB for the checked ones).
const RETURNS_FIRST: [&str; 6] = ["memset", "memcpy", "memmove", "__memset_chk", "__memcpy_chk", "__memmove_chk"];

/// Most of `.eh_frame` that is read, bytes.
const MAX_SECTION: u64 = 64 << 20;
/// Most of a static executable's relocations, bytes. Usual are some hundred.
const MAX_RELOCATIONS: u64 = 1 << 20;
/// Code is read in pieces of this size, bytes, and a little more: the longest instruction has 15.
const PIECE: u64 = 64 << 10;
const MORE: u64 = 16;

fn known(name: &str) -> Option<Known> {
    if never_returns(name) {
        Some(Known::NoReturn)
    } else if RETURNS_FIRST.contains(&name) {
        Some(Known::ReturnsFirst)
    } else {
        None
    }
}

/// Whether the library function `name` never returns.
pub(super) fn never_returns(name: &str) -> bool {
    NO_RETURN.contains(&name)
}

/// Addresses of the file's own functions that never return, as their names say.
pub(super) fn endless<'data>(elf: &Elf<'data>, data: Bounded<'data>) -> Vec<u64> {
    let named = named(elf, data).into_iter();
    named.filter(|(_, known)| *known == Known::NoReturn).map(|(address, _)| address).collect()
}

/// Calls `f` with an analysis of the file. `family` and `entries` as in [`Image`].
pub(super) fn with_analysis<'data, T>(
    elf: &Elf<'data>,
    data: Bounded<'data>,
    family: &[u64],
    entries: &[u64],
    f: impl FnOnce(&mut Analysis<'_>) -> T,
) -> T {
    let named = named(elf, data);
    let pointers = pointers(elf, &named);
    let frames = Frames::of(&sections(elf, data));
    f(&mut Analysis::new(Image {
        code: &|address| executable(elf, data, address),
        pointer: &|slot| pointers.get(&slot).copied().unwrap_or(Pointer::Elsewhere),
        known: &|address| named.get(&address).copied(),
        family,
        entries,
        frames: &frames,
    }))
}

/// Whether what is in a segment may run.
pub(super) fn is_code<'data>(segment: &impl ObjectSegment<'data>) -> bool {
    matches!(segment.flags(), SegmentFlags::Elf { p_flags, .. } if p_flags.0 & PF_X.0 != 0)
}

/// The code from an address on, to the end of its piece at least.
pub(super) fn executable<'data>(elf: &Elf<'data>, data: Bounded<'data>, address: u64) -> Option<&'data [u8]> {
    let piece = address - address % PIECE;
    elf.segments().filter(is_code).find_map(|segment| {
        let (offset, size) = segment.file_range();
        let inside = address.checked_sub(segment.address()).filter(|inside| *inside < size)?;
        let start = piece.saturating_sub(segment.address());
        let length = (PIECE + MORE).min(size.checked_sub(start)?);
        let bytes = data.read_bytes_at(offset.checked_add(start)?, length).ok()?;
        bytes.get(usize::try_from(inside - start).ok()?..)
    })
}

/// The file's own functions whose names say what becomes of a call, by address.
fn named<'data>(elf: &Elf<'data>, data: Bounded<'data>) -> HashMap<u64, Known> {
    let endian = elf.endian();
    let begins = |name: &[u8]| NO_RETURN.iter().chain(&RETURNS_FIRST).any(|known| name.starts_with(known.as_bytes()));
    let mut named = HashMap::new();
    each_function(&tables(elf, data), begins, |name, symbol| {
        let (address, is_here) = (symbol.st_value(endian), symbol.st_shndx(endian) != SHN_UNDEF);
        if let Some(known) = std::str::from_utf8(name).ok().and_then(known).filter(|_| is_here && address != 0) {
            named.insert(address, known);
        }
    });
    named
}

/// What the loader puts into pointers that belong to it, by the pointer's address. Others may be written to.
fn pointers(elf: &Elf<'_>, named: &HashMap<u64, Known>) -> HashMap<u64, Pointer> {
    let resolved = |resolver: u64| named.get(&resolver).map_or(Pointer::Elsewhere, |known| Pointer::Known(*known));
    let (Some(relocations), Some(symbols)) = (elf.dynamic_relocations(), elf.dynamic_symbol_table()) else {
        return chosen_at_start(elf).map(|(slot, resolver)| (slot, resolved(resolver))).collect();
    };
    let bound = relocations.filter_map(|(slot, relocation)| {
        let RelocationFlags::Elf { r_type } = relocation.flags() else { return None };
        match (r_type, relocation.target()) {
            // Which of a function's versions it is, is found out at run time; its name is that of the one that finds out.
            (R_X86_64_IRELATIVE, _) => Some((slot, resolved(relocation.addend().cast_unsigned()))),
            (R_X86_64_JUMP_SLOT | R_X86_64_GLOB_DAT, RelocationTarget::Symbol(index)) => {
                let symbol = symbols.symbol_by_index(index).ok()?;
                let pointer = match symbol.name().ok().and_then(known) {
                    Some(known) => Pointer::Known(known),
                    None if !symbol.is_undefined() && symbol.address() != 0 && !is_chosen(&symbol) => {
                        Pointer::Here(symbol.address())
                    }
                    None => Pointer::Elsewhere,
                };
                Some((slot, pointer))
            }
            _ => None,
        }
    });
    bound.collect()
}

/// Pointers that a static executable sets itself when it starts, each with the function that chooses what to.
pub(super) fn chosen_at_start(elf: &Elf<'_>) -> impl Iterator<Item = (u64, u64)> {
    let section = elf.section_by_name(".rela.plt").filter(|section| section.size() <= MAX_RELOCATIONS);
    let bytes = section.and_then(|section| section.data().ok()).unwrap_or_default();
    bytes.chunks_exact(24).filter_map(|entry| {
        let word = |at: usize| entry.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word));
        (word(8)? == u64::from(R_X86_64_IRELATIVE.0)).then_some((word(0)?, word(16)?))
    })
}

/// Whether the symbol is not of a function, but of one that chooses it at run time.
fn is_chosen<'data>(symbol: &impl ObjectSymbol<'data>) -> bool {
    use object::{SymbolFlags, elf::STT_GNU_IFUNC};
    matches!(symbol.flags(), SymbolFlags::Elf { st_info, .. } if st_info.st_type() == STT_GNU_IFUNC)
}

/// What says of code where functions begin and how they are left.
pub(super) fn sections<'data>(elf: &Elf<'data>, data: Bounded<'data>) -> Sections<'data> {
    let section = |name: &str| elf.section_by_name(name);
    let eh_frame = section(".eh_frame").and_then(|section| {
        let (offset, size) = section.file_range()?;
        Some((data.read_bytes_at(offset, size.min(MAX_SECTION)).ok()?, section.address()))
    });
    Sections {
        eh_frame,
        debug_frame: None,
        text_address: section(".text").map_or(0, |section| section.address()),
        got_address: section(".got").map(|section| section.address()),
        code: None,
    }
}
