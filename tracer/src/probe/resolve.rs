//! The allocator functions of an ELF file, as probe sites: symbols, addresses, file offsets.
//!
//! The file belongs to the target: every offset and size in it is checked by the reader, and nothing is trusted.

use std::{cell::OnceCell, fs::File};

use hashbrown::HashMap;
use object::{
    Object, ObjectSection, ObjectSegment, ObjectSymbol, ObjectSymbolTable, ReadRef, RelocationFlags, RelocationTarget,
    elf::{DF_1_PIE, DT_FLAGS_1, EM_X86_64, ET_EXEC, PT_DYNAMIC, PT_INTERP, R_X86_64_RELATIVE},
    read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _},
};

use super::{
    allocators,
    asked::{self, Asked, Refusal},
    beyond::{self, Beyond},
    catalogue::{FAMILIES, MAIN},
    exits::{Exits, exits},
    family::{Evidence, Shape},
    image::{self, executable, is_code, with_analysis},
    packed,
    reach::{Target, always_calls, may_call},
    returns::{self, Bound, Returns},
    shims,
    site::{self, WINDOW},
    symbols::{self, Candidate, Elf, Found, Table},
};
use crate::files::elf::{Bounded, Bytes};

/// A function of the allocator and where to probe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
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

/// What a hit of a probe on an instruction costs, which the kernel emulates or steps.
pub fn cost(emulated: bool) -> &'static str {
    if emulated { "cheap" } else { "dear: the kernel steps over it" }
}

/// The functions of a file that allocate and free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Functions {
    /// They themselves, at least one unless some are chosen at run time.
    pub functions: Vec<Function>,
    /// Names of those that are chosen at run time (IFUNC), which are not probed.
    pub chosen: Vec<String>,
    /// What people call the allocator, where its names tell.
    pub name: Option<&'static str>,
    /// Whether all of them are of allocators that are known: those call no code of the program's but by hooks.
    pub is_known: bool,
    /// What else the file has that allocates or frees, and is not seen.
    pub beyond: Vec<Beyond>,
    /// What its global allocator does (Rust) by calls that may be inlined, and are not seen.
    pub inlined: Vec<&'static str>,
}

/// What a file was searched for.
#[derive(Debug, Default)]
pub struct Search {
    /// Its functions that allocate and free.
    pub functions: Option<Functions>,
    /// What it takes of other files that is not seen.
    pub wanted: Vec<&'static str>,
    /// Whether it is a program.
    pub is_program: bool,
}

impl Functions {
    /// What people call the allocator, or how it is known that it is one.
    pub fn allocator(&self) -> &'static str {
        self.name.unwrap_or("by the names of the C library or of C++")
    }
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
    /// What the command line asks for cannot be.
    #[error(transparent)]
    Asked(#[from] Refusal),
}

/// Functions of `file` by which memory is allocated and freed; `None` if there are none.
///
/// # Errors
/// [`ResolveError`] when the file cannot be read as an x86-64 ELF file.
pub fn allocator(file: &File) -> Result<Option<Functions>, ResolveError> {
    search(file, None, &[]).map(|search| search.functions)
}

/// The same, where symbols that were stripped from the file may be in another one, and functions of it are `asked` for by name
/// or place.
///
/// # Errors
/// [`ResolveError`] when the file cannot be read as an x86-64 ELF file, or has not what is asked for.
pub fn search(file: &File, symbols: Option<&File>, asked: &[&Asked]) -> Result<Search, ResolveError> {
    read(file, symbols, |elf, data, tables| {
        let wanted = beyond::wanted(tables);
        let functions = functions(elf, data, tables, asked)?;
        Ok(Search { functions, wanted, is_program: is_program(elf, data) })
    })
}

/// Those of the functions that are `asked` for which begin where they are said to.
pub fn beginning<'asked>(file: &File, asked: &'asked [Asked]) -> Vec<&'asked Asked> {
    let found = read(file, None, |elf, data, tables| {
        let begins = |one: &&Asked| asked::find(elf, data, tables, &[one]).is_ok();
        Ok(asked.iter().filter(begins).collect())
    });
    found.unwrap_or_default()
}

/// Calls `f` with what there is of a file, and of one with its symbols.
fn read<T>(
    file: &File,
    symbols: Option<&File>,
    f: impl for<'data> FnOnce(&Elf<'data>, Bounded<'data>, &[Table<'_>]) -> Result<T, ResolveError>,
) -> Result<T, ResolveError> {
    let bytes = Bytes::new(file);
    let data = bytes.bounded();
    let elf = Elf::parse(data)?;
    let machine = elf.elf_header().e_machine(elf.endian());
    if machine != EM_X86_64 {
        return Err(ResolveError::Machine(machine.0));
    }
    let mut tables = symbols::tables(&elf, data).to_vec();
    let packed = if tables[1].is_empty() { packed::symbols(&elf) } else { None };
    let others: Vec<Bytes<'_>> = symbols.into_iter().chain(&packed).map(Bytes::new).collect();
    let others: Vec<(Elf<'_>, Bounded<'_>)> = others
        .iter()
        .filter_map(|bytes| {
            let other = Elf::parse(bytes.bounded());
            let other = other.inspect_err(|error| tracing::debug!("symbols beside a file make no sense: {error}"));
            Some((other.ok()?, bytes.bounded()))
        })
        .collect();
    tables.extend(others.iter().flat_map(|(elf, data)| symbols::tables(elf, *data)).map(Table::beside));
    f(&elf, data, &tables)
}

fn functions<'data>(
    elf: &Elf<'data>,
    data: Bounded<'data>,
    tables: &[Table<'_>],
    asked: &[&Asked],
) -> Result<Option<Functions>, Refusal> {
    let found = symbols::find(tables);
    if found.candidates.is_empty() && asked.is_empty() {
        return Ok(None);
    }
    let code = |address: u64| executable(elf, data, address);
    let is_known = |name: &str| asked.iter().any(|asked| asked.is_chosen_for(name));
    let chosen = found.candidates.iter().filter(|candidate| candidate.chooses && !is_known(&candidate.name));
    let mut chosen: Vec<String> = chosen.map(|candidate| candidate.name.clone()).collect();
    chosen.dedup();
    // What was asked for stands for what else is known of a function.
    let mut accepted =
        [asked::find(elf, data, tables, asked)?, accepted(elf, data, found, code, is_static(elf, data))].concat();
    if accepted.is_empty() && chosen.is_empty() {
        return Ok(None);
    }
    let shims = shims::of(elf, data, &accepted);
    accepted.extend(shims.functions);
    // Read once, and only for those who have such functions.
    let bound = OnceCell::new();
    let is_seen = |address| comes_to_one(bound.get_or_init(|| to_allocators(elf)), code, &accepted, address);
    let beyond = beyond::find(elf, data, tables, is_program(elf, data), is_seen);
    let (name, is_known) = allocators_of(&accepted);
    let mut functions: Vec<Function> = Vec::new();
    let (mut entries, mut sites) = (Vec::new(), Vec::new());
    for candidate in &accepted {
        let Some((function, site)) = function(elf, data, candidate) else {
            tracing::warn!("{} has no code in its file: it is not probed", candidate.name);
            continue;
        };
        // Aliases are one function; the first name stands for it.
        if let Some(known) = functions.iter_mut().find(|known| known.file_offset == function.file_offset) {
            if function.shape.throws() && function.shape.arguments() == known.shape.arguments() {
                known.shape = function.shape;
            }
            continue;
        }
        entries.push(candidate.address);
        sites.push(site);
        functions.push(function);
    }
    let mut pointers = None;
    for (function, entry) in functions.iter_mut().zip(&entries).filter(|(function, _)| !function.shape.frees()) {
        let pointers = pointers.get_or_insert_with(|| pointers_to_code(elf));
        function.returns = returns::returns(
            *entry,
            code,
            |slot| pointers.get(&slot).copied().unwrap_or(Bound::Elsewhere),
            |address| entries.contains(&address),
        );
        let offsets = function.returns.addresses.iter().filter_map(|address| offset(elf, *address));
        function.returns.offsets = offsets.collect();
    }
    with_analysis(elf, data, &entries, &sites, |analysis| {
        let mut all: Vec<_> =
            functions.iter_mut().zip(&sites).filter(|(function, _)| !function.shape.frees()).collect();
        // Those whose outcome is not what they return come last: code that they share with others is the others'.
        all.sort_by_key(|(function, _)| function.shape.stores());
        for (function, site) in all {
            let exits = exits(analysis, *site, function.shape);
            let places = exits.sites().iter().map(|site| Some((offset(elf, site.address)?, site.exit.pack()?)));
            function.exit_places = places.collect::<Option<_>>().unwrap_or_default();
            function.returns.complete &= exits.knows_all_returns();
            function.exits = Some(exits);
        }
    });
    let is_any = !functions.is_empty() || !chosen.is_empty();
    Ok(is_any.then_some(Functions { functions, chosen, name, is_known, beyond, inlined: shims.unseen }))
}

/// How many calls deep a function is followed to one that allocates and is probed. Stubs by which the loader binds calls are one.
/// Further down, slow ways of an allocator come to many of its functions.
const DEEP: usize = 1;

/// What the pointers lead to that the loader binds: to functions that allocate, by their names, and to the file's own.
fn to_allocators(elf: &Elf<'_>) -> HashMap<u64, Target> {
    let allocates = |name: &[u8]| allocators::known(name).is_some_and(|known| !known.shape.frees());
    bound_to(elf, |name, here| match here {
        _ if allocates(name) => Some(Target::Wanted),
        here => here.map(Target::Here),
    })
}

/// Whether the function at an address comes to one that allocates, by its own name or another file's; `bound`: what pointers lead to.
fn comes_to_one<'data>(
    bound: &HashMap<u64, Target>,
    code: impl Fn(u64) -> Option<&'data [u8]>,
    accepted: &[Candidate],
    address: u64,
) -> bool {
    let at = |address: u64| {
        let is_one = accepted.iter().any(|one| one.address == address && !one.known.shape.frees());
        if is_one { Target::Wanted } else { Target::Here(address) }
    };
    at(address) == Target::Wanted
        || may_call(address, DEEP, code, |slot| bound.get(&slot).copied().unwrap_or(Target::Elsewhere), at)
}

/// Whether the file is a program, whoever loads it.
fn is_program<'data>(elf: &Elf<'data>, data: Bounded<'data>) -> bool {
    elf.elf_program_headers().iter().any(|header| header.p_type(elf.endian()) == PT_INTERP) || is_static(elf, data)
}

/// What people call the allocator, and whether nothing but what is known of it is there.
fn allocators_of(accepted: &[Candidate]) -> (Option<&'static str>, bool) {
    let own = |candidate: &&Candidate| FAMILIES[candidate.known.family].is_known;
    let known = accepted.iter().find(own);
    // What brings the names of the C library with it has no prefix, or defines them as other names for its own functions.
    let is_plain = |candidate: &Candidate| {
        accepted.iter().filter(own).any(|other| {
            let is_alias = other.address == candidate.address;
            is_alias || FAMILIES[other.known.family].functions.iter().any(|(name, _)| *name == other.name)
        })
    };
    let name = known.map(|known| FAMILIES[known.known.family].name);
    let is_known = accepted.iter().all(|candidate| own(&candidate) || is_plain(candidate));
    (name, is_known)
}

/// The functions of a file that are taken for what their names say, in the order of the catalogue.
fn accepted<'data>(
    elf: &Elf<'data>,
    data: Bounded<'data>,
    found: Found,
    code: impl Fn(u64) -> Option<&'data [u8]> + Copy,
    is_static: bool,
) -> Vec<Candidate> {
    let evidence = |candidate: &Candidate| FAMILIES[candidate.known.family].evidence;
    let mut accepted: Vec<Candidate> = Vec::new();
    let mut others: Vec<&Candidate> = Vec::new();
    for candidate in &found.candidates {
        // A function of the file's own that only has that name: it calls the real one of another file.
        let has_namesake = !candidate.is_exported && found.imports.contains(&candidate.name);
        if candidate.chooses || has_namesake {
            continue;
        }
        match evidence(candidate) {
            Evidence::Names => accepted.push(candidate.clone()),
            Evidence::ExportOr(names) => {
                // Linkers leave out what a static program does not call.
                let is_enough = candidate.is_exported && found.has_any(&MAIN)
                    || found.has_all(names)
                    || is_static && (found.has_all(&["malloc"]) || found.has_a_pair());
                accepted.extend(is_enough.then(|| candidate.clone()));
            }
            Evidence::Several(least) => {
                accepted.extend((found.like(candidate) >= least).then(|| candidate.clone()));
            }
            Evidence::All(names) => accepted.extend(found.has_all(names).then(|| candidate.clone())),
            Evidence::NoImport | Evidence::NothingBehind => others.push(candidate),
            Evidence::ExportAndNothingBehind => {
                let is_enough =
                    candidate.is_exported && found.has_any(&MAIN) || is_static && found.has_all(&["malloc"]);
                others.extend(is_enough.then_some(candidate));
            }
        }
    }
    let endless = if others.is_empty() { Vec::new() } else { image::endless(elf, data) };
    for kind in [Evidence::NoImport, Evidence::NothingBehind, Evidence::ExportAndNothingBehind] {
        let of_kind = others.iter().copied().filter(|other| evidence(other) == kind);
        let (frees, allocates): (Vec<&Candidate>, Vec<&Candidate>) =
            of_kind.partition(|other| other.known.shape.frees());
        let known = if kind == Evidence::NoImport { Vec::new() } else { accepted.clone() };
        // Whether others that do the same, free or allocate, are behind all calls.
        let is_behind = |others: &[&Candidate], free: bool| -> Vec<bool> {
            if others.is_empty() {
                return Vec::new();
            }
            let ours = known.iter().filter(|other| other.known.shape.frees() == free);
            let ours: Vec<u64> = ours.map(|other| other.address).collect();
            let imported = imported(elf, free);
            let at = |address: u64| match address {
                _ if ours.contains(&address) => Target::Wanted,
                _ if endless.contains(&address) => Target::Endless,
                _ => Target::Here(address),
            };
            let pointer = |slot: u64| imported.get(&slot).copied().unwrap_or(Target::Elsewhere);
            others.iter().map(|other| always_calls(other.address, code, pointer, at)).collect()
        };
        let behind = is_behind(&allocates, false);
        // One that gives out blocks of its own, and seldom others', is seen; those that it takes from others count once.
        let own: Vec<&Candidate> =
            allocates.iter().zip(behind).filter(|(_, behind)| !behind).map(|(own, _)| *own).collect();
        if own.is_empty() {
            // Blocks of others may be given back on a way of its own.
            let behind = is_behind(&frees, true);
            accepted.extend(frees.iter().zip(behind).filter(|(_, behind)| !behind).map(|(own, _)| (*own).clone()));
        } else {
            accepted.extend(own.into_iter().chain(frees).cloned());
        }
    }
    for clone in &found.clones {
        tracing::debug!("{clone} may take other arguments than the function that it was made of: it is not probed");
    }
    accepted.sort_by(|a, b| {
        let key = |candidate: &Candidate| (candidate.known.family, candidate.name.len());
        key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
    });
    accepted
}

/// What the pointers lead to that the loader binds, by the pointer's address: to the file's own functions, and to those of other
/// files that free, or allocate, or never return.
fn imported(elf: &Elf<'_>, free: bool) -> HashMap<u64, Target> {
    let mut imported = bound_to(elf, |name, here| match here {
        Some(address) => Some(Target::Here(address)),
        None if allocators::known(name).is_some_and(|known| known.shape.frees() == free) => Some(Target::Wanted),
        None => std::str::from_utf8(name).is_ok_and(image::never_returns).then_some(Target::Endless),
    });
    // Pointers to the file's own functions that nobody writes to.
    let got =
        elf.section_by_name(".got").map(|section| section.address()..section.address().saturating_add(section.size()));
    for (slot, relocation) in elf.dynamic_relocations().into_iter().flatten() {
        let is_own = relocation.flags() == RelocationFlags::Elf { r_type: R_X86_64_RELATIVE };
        if is_own && got.as_ref().is_some_and(|got| got.contains(&slot)) {
            imported.insert(slot, Target::Here(relocation.addend().cast_unsigned()));
        }
    }
    imported
}

/// What `of` makes of the symbols that the loader binds pointers to, by the pointer's address: of a symbol's name, and its address if
/// the file itself has it.
fn bound_to<T>(elf: &Elf<'_>, of: impl Fn(&[u8], Option<u64>) -> Option<T>) -> HashMap<u64, T> {
    let (Some(relocations), Some(symbols)) = (elf.dynamic_relocations(), elf.dynamic_symbol_table()) else {
        return HashMap::new();
    };
    let bound = relocations.filter_map(|(slot, relocation)| {
        let RelocationTarget::Symbol(index) = relocation.target() else { return None };
        let symbol = symbols.symbol_by_index(index).ok()?;
        let here = symbol.is_definition().then(|| symbol.address());
        Some((slot, of(symbol.name_bytes().unwrap_or_default(), here)?))
    });
    bound.collect()
}

/// Whether the file is a program that the kernel alone loads.
fn is_static<'data>(elf: &Elf<'data>, data: Bounded<'data>) -> bool {
    let endian = elf.endian();
    let headers = elf.elf_program_headers();
    if headers.iter().any(|header| header.p_type(endian) == PT_INTERP) {
        return false;
    }
    let is_pie = || {
        let dynamic = headers.iter().filter(|header| header.p_type(endian) == PT_DYNAMIC);
        let entries = dynamic.filter_map(|header| header.dynamic(endian, data).ok().flatten()).flatten();
        let mut flags = entries.filter(|entry| entry.d_tag(endian) == DT_FLAGS_1);
        flags.any(|flags| flags.d_val(endian) & DF_1_PIE.0 != 0)
    };
    elf.elf_header().e_type(endian) == ET_EXEC || is_pie()
}

fn function<'data>(elf: &Elf<'data>, data: Bounded<'data>, candidate: &Candidate) -> Option<(Function, u64)> {
    let Candidate { name, known, address, size, .. } = candidate;
    let (start, code) = code(elf, data, *address, if *size == 0 { 256 } else { (*size).min(WINDOW as u64) })?;
    let site = site::choose(code, known.shape.read());
    let function = Function {
        name: name.clone(),
        shape: known.shape,
        file_offset: start + site.offset,
        emulated: site.emulated,
        exits: None,
        exit_places: Vec::new(),
        returns: Returns::default(),
    };
    Some((function, address + site.offset))
}

/// Where the code at an address is in the file, bytes.
fn offset(elf: &Elf<'_>, address: u64) -> Option<u64> {
    elf.segments().filter(is_code).find_map(|segment| {
        let inside = address.checked_sub(segment.address())?;
        let (offset, file_size) = segment.file_range();
        if inside < file_size { offset.checked_add(inside) } else { None }
    })
}

/// The code at an address, at most `wanted` bytes, and its offset in the file.
fn code<'data>(elf: &Elf<'data>, data: Bounded<'data>, address: u64, wanted: u64) -> Option<(u64, &'data [u8])> {
    let (start, available) = elf.segments().filter(is_code).find_map(|segment| {
        let inside = address.checked_sub(segment.address()).filter(|inside| *inside < segment.size())?;
        let (offset, file_size) = segment.file_range();
        Some((offset.checked_add(inside)?, file_size.checked_sub(inside)?))
    })?;
    Some((start, data.read_bytes_at(start, wanted.min(available)).ok()?))
}

/// What the loader will put into pointers to functions, by the pointer's address.
fn pointers_to_code(elf: &Elf<'_>) -> HashMap<u64, Bound> {
    bound_to(elf, |name, here| {
        let never_returns = std::str::from_utf8(name).is_ok_and(image::never_returns);
        Some(if never_returns { Bound::NoReturn } else { here.map_or(Bound::Elsewhere, Bound::Here) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libc_has_the_family() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let path = maps.lines().find(|line| line.contains("libc.so") || line.contains("libc-")).unwrap();
        let path = path.split_whitespace().last().unwrap();
        let functions = allocator(&File::open(path).unwrap()).unwrap().unwrap().functions;
        for name in ["malloc", "calloc", "realloc", "free", "posix_memalign"] {
            assert!(functions.iter().any(|function| function.name == name), "{name} in {functions:?}");
        }
        for name in ["malloc", "calloc", "realloc", "memalign", "posix_memalign"] {
            let function = functions.iter().find(|function| function.name == name).unwrap();
            assert!(function.exits.as_ref().is_some_and(|exits| exits.are_cheap()), "{function:?}");
        }
        // Behind its copies of strings is malloc.
        assert!(!functions.iter().any(|function| function.name.ends_with("dup")), "{functions:?}");
        // One probe per instruction: aliases were folded.
        let mut offsets: Vec<u64> = functions.iter().map(|function| function.file_offset).collect();
        offsets.sort_unstable();
        offsets.dedup();
        assert_eq!(offsets.len(), functions.len());
    }

    #[test]
    fn a_file_that_only_uses_malloc_has_none() {
        let own = File::open("/proc/self/exe").unwrap();
        assert_eq!(allocator(&own).unwrap(), None);
    }

    #[test]
    fn garbage_is_refused() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"\x7fELF\x02\x01\x01 but nothing that follows makes sense").unwrap();
        assert!(matches!(allocator(&file), Err(ResolveError::Corrupt(_))));
    }
}
