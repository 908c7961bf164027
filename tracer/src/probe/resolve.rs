//! The allocator functions of an ELF file, as probe sites: symbols, addresses, file offsets.
//!
//! The file belongs to the target: every offset and size in it is checked by the reader, and nothing is trusted.

use std::fs::File;

use hashbrown::HashMap;
use object::{
    Object, ObjectSegment, ObjectSymbol, ObjectSymbolTable, ReadRef, RelocationTarget, SymbolFlags,
    elf::{EM_X86_64, STT_GNU_IFUNC},
    read::elf::FileHeader as _,
};

use super::{
    allocators::{CATALOGUE, Shape},
    exits::{Exits, exits},
    image::{self, Elf, with_analysis},
    returns::{self, Bound, Returns},
    site::{self, WINDOW},
};
use crate::files::elf::{Bounded, Bytes};

/// A function of the allocator and where to probe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: &'static str,
    /// How it takes its arguments.
    pub shape: Shape,
    /// Offset of the probed instruction in the file, bytes.
    pub file_offset: u64,
    /// Whether the kernel emulates that instruction (cheap) or steps it.
    pub emulated: bool,
    /// Where the outcomes of its calls are known; `None` where it allocates nothing.
    pub exits: Option<Exits>,
    /// Those places in the file: offset (bytes), and what the program there is told.
    pub exit_places: Vec<(u64, u64)>,
    /// Its `ret` instructions; none where it allocates nothing.
    pub returns: Returns,
}

/// Why a file gives no functions.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// It could not be parsed.
    #[error("not a readable ELF file: {0}")]
    Corrupt(#[from] object::read::Error),
    /// It is for another kind of machine.
    #[error("made for another architecture (ELF machine {0}); only x86-64 is supported")]
    Machine(u16),
}

/// Which symbols count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binding {
    /// Those that the dynamic loader binds to.
    Dynamic,
    /// All: for a static executable, which has no loader.
    Static,
}

/// Functions of the catalogue that `file` defines, if `malloc` is one of them; `None` if it is not.
///
/// # Errors
/// [`ResolveError`] when the file cannot be read as an x86-64 ELF file.
pub fn allocator(file: File, binding: Binding) -> Result<Option<Vec<Function>>, ResolveError> {
    let bytes = Bytes::new(&file);
    let data = bytes.bounded();
    let elf = Elf::parse(data)?;
    let machine = elf.elf_header().e_machine(elf.endian());
    if machine != EM_X86_64 {
        return Err(ResolveError::Machine(machine.0));
    }
    let found = match binding {
        Binding::Dynamic => catalogued(&elf, elf.dynamic_symbols()),
        Binding::Static => catalogued(&elf, elf.symbols()),
    };
    if !found.iter().any(|(name, ..)| *name == "malloc") {
        return Ok(None);
    }
    let entries: Vec<u64> = found.iter().map(|(_, _, address, _)| *address).collect();
    let mut pointers = None;
    let mut functions: Vec<Function> = Vec::new();
    let mut sites = Vec::new();
    for (name, shape, address, size) in found {
        let Some((mut function, site)) = function(&elf, data, name, shape, address, size) else { continue };
        // Aliases are one function; the first name in the catalogue stands for it.
        if functions.iter().any(|known| known.file_offset == function.file_offset) {
            continue;
        }
        if shape != Shape::Free {
            let pointers = pointers.get_or_insert_with(|| pointers_to_code(&elf));
            function.returns = returns::returns(
                address,
                |address| code(&elf, data, address, WINDOW as u64).map(|(_, code)| code),
                |slot| pointers.get(&slot).copied().unwrap_or(Bound::Elsewhere),
                |address| entries.contains(&address),
            );
            let offsets = function.returns.addresses.iter().filter_map(|address| offset(&elf, *address));
            function.returns.offsets = offsets.collect();
        }
        sites.push(site);
        functions.push(function);
    }
    with_analysis(&elf, data, &entries, &sites, |analysis| {
        for (function, site) in functions.iter_mut().zip(&sites) {
            if function.shape != Shape::Free {
                let exits = exits(analysis, *site, function.shape);
                let places = exits.sites().iter().map(|site| Some((offset(&elf, site.address)?, site.exit.pack()?)));
                function.exit_places = places.collect::<Option<_>>().unwrap_or_default();
                function.returns.complete &= exits.knows_all_returns();
                function.exits = Some(exits);
            }
        }
    });
    Ok(Some(functions))
}

/// Symbols of the catalogue with address and size, in the catalogue's order.
fn catalogued<'data, I>(elf: &Elf<'data>, symbols: I) -> Vec<(&'static str, Shape, u64, u64)>
where
    I: Iterator<Item: ObjectSymbol<'data>>,
{
    let _ = elf;
    let mut found: Vec<(usize, u64, u64)> = Vec::new();
    for symbol in symbols {
        let Ok(name) = symbol.name() else { continue };
        let Some(index) = CATALOGUE.iter().position(|(known, _)| *known == name) else { continue };
        if symbol.is_undefined() || symbol.address() == 0 {
            continue;
        }
        if matches!(symbol.flags(), SymbolFlags::Elf { st_info, .. } if st_info.st_type() == STT_GNU_IFUNC) {
            tracing::warn!("{name} is chosen at run time (IFUNC) and cannot be probed by its symbol");
            continue;
        }
        if !found.iter().any(|(other, ..)| *other == index) {
            found.push((index, symbol.address(), symbol.size()));
        }
    }
    found.sort_unstable();
    found.into_iter().map(|(index, address, size)| (CATALOGUE[index].0, CATALOGUE[index].1, address, size)).collect()
}

fn function<'data>(
    elf: &Elf<'data>,
    data: Bounded<'data>,
    name: &'static str,
    shape: Shape,
    address: u64,
    size: u64,
) -> Option<(Function, u64)> {
    let (start, code) = code(elf, data, address, if size == 0 { 256 } else { size.min(WINDOW as u64) })?;
    let site = site::choose(code, shape.arguments());
    let file_offset = start + site.offset;
    let function = Function {
        name,
        shape,
        file_offset,
        emulated: site.emulated,
        exits: None,
        exit_places: Vec::new(),
        returns: Returns::default(),
    };
    Some((function, address + site.offset))
}

/// Where the code at an address is in the file, bytes.
fn offset(elf: &Elf<'_>, address: u64) -> Option<u64> {
    elf.segments().find_map(|segment| {
        let inside = address.checked_sub(segment.address())?;
        let (offset, file_size) = segment.file_range();
        if inside < file_size { offset.checked_add(inside) } else { None }
    })
}

/// The code at an address, at most `wanted` bytes, and its offset in the file.
fn code<'data>(elf: &Elf<'data>, data: Bounded<'data>, address: u64, wanted: u64) -> Option<(u64, &'data [u8])> {
    let (start, available) = elf.segments().find_map(|segment| {
        let inside = address.checked_sub(segment.address()).filter(|inside| *inside < segment.size())?;
        let (offset, file_size) = segment.file_range();
        Some((offset.checked_add(inside)?, file_size.checked_sub(inside)?))
    })?;
    Some((start, data.read_bytes_at(start, wanted.min(available)).ok()?))
}

/// What the loader will put into pointers to functions, by the pointer's address.
fn pointers_to_code(elf: &Elf<'_>) -> HashMap<u64, Bound> {
    let (Some(relocations), Some(symbols)) = (elf.dynamic_relocations(), elf.dynamic_symbol_table()) else {
        return HashMap::new();
    };
    let bound = relocations.filter_map(|(slot, relocation)| {
        let RelocationTarget::Symbol(index) = relocation.target() else { return None };
        let symbol = symbols.symbol_by_index(index).ok()?;
        let bound = match symbol.name() {
            Ok(name) if image::never_returns(name) => Bound::NoReturn,
            _ if symbol.is_definition() => Bound::Here(symbol.address()),
            _ => Bound::Elsewhere,
        };
        Some((slot, bound))
    });
    bound.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libc_has_the_family() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let path = maps.lines().find(|line| line.contains("libc.so") || line.contains("libc-")).unwrap();
        let path = path.split_whitespace().last().unwrap();
        let functions = allocator(File::open(path).unwrap(), Binding::Dynamic).unwrap().unwrap();
        for name in ["malloc", "calloc", "realloc", "free", "posix_memalign"] {
            assert!(functions.iter().any(|function| function.name == name), "{name} in {functions:?}");
        }
        for name in ["malloc", "calloc", "realloc", "memalign"] {
            let function = functions.iter().find(|function| function.name == name).unwrap();
            assert!(function.exits.as_ref().is_some_and(|exits| exits.are_cheap(function.shape)), "{function:?}");
        }
        // One probe per instruction: aliases were folded.
        let mut offsets: Vec<u64> = functions.iter().map(|function| function.file_offset).collect();
        offsets.sort_unstable();
        offsets.dedup();
        assert_eq!(offsets.len(), functions.len());
    }

    #[test]
    fn a_file_that_only_uses_malloc_has_none() {
        let own = File::open("/proc/self/exe").unwrap();
        assert!(allocator(own, Binding::Dynamic).unwrap().is_none());
    }

    #[test]
    fn garbage_is_refused() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"\x7fELF\x02\x01\x01 but nothing that follows makes sense").unwrap();
        assert!(matches!(allocator(file, Binding::Dynamic), Err(ResolveError::Corrupt(_))));
    }
}
