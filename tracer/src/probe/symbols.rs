//! The symbols of a file that may be functions of an allocator: found fast among millions of others.

use object::{
    Endianness,
    elf::{FileHeader64, SHN_ABS, SHN_UNDEF, STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE, Sym64},
    read::elf::{ElfFile, SectionHeader as _, Sym as _, SymbolTable},
};

use super::{
    allocators::{self, FamilyIndex, Known, LONGEST, cloned_from, jemalloc_prefix},
    catalogue::{FAMILIES, MAIN},
    dynamic,
};
use crate::files::elf::Bounded;

/// A 64-bit ELF file.
pub(super) type Elf<'data> = ElfFile<'data, FileHeader64<Endianness>, Bounded<'data>>;

/// Most symbols of one table that are looked at.
const MAX_SYMBOLS: usize = 1 << 24;
/// Most that are taken from one file.
const MAX_FOUND: usize = 1024;
/// Most prefixes of jemalloc in one file.
const MAX_PREFIXES: usize = 8;
/// Bytes of a name that are looked at: mangled, and with what compilers add.
const MAX_NAME: usize = LONGEST + 64;

/// A function of the file that has a name of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Its name.
    pub(super) name: String,
    /// What the catalogue says of that.
    pub(super) known: Known,
    /// Its address, as the file was linked.
    pub(super) address: u64,
    /// Bytes; 0 when it is not known.
    pub(super) size: u64,
    /// Whether other files can call it by its name.
    pub(super) is_exported: bool,
    /// Whether it is one that chooses the function at run time (IFUNC).
    pub(super) chooses: bool,
}

impl Candidate {
    /// What its name has in front of that in the catalogue, where nothing is behind it.
    fn prefix(&self) -> Option<&str> {
        self.name.strip_suffix(self.known.function)
    }
}

/// What a file has.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Functions, those that are exported first.
    pub(super) candidates: Vec<Candidate>,
    /// Names of functions that were made of such by a compiler, with other arguments.
    pub(super) clones: Vec<String>,
    /// Names of the catalogue that the file takes from others.
    pub(super) imports: Vec<String>,
}

impl Found {
    /// Whether the file has functions by all these names.
    pub(super) fn has_all(&self, names: &[&str]) -> bool {
        names.iter().all(|name| self.candidates.iter().any(|candidate| candidate.name == *name))
    }
}

impl Found {
    /// Whether the file has a function by any of these names.
    pub(super) fn has_any(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.candidates.iter().any(|candidate| candidate.name == *name))
    }

    /// Whether the file has what gives blocks back to the C library, and something that takes them from there.
    pub(super) fn has_a_pair(&self) -> bool {
        self.has_all(&["free"]) && MAIN.iter().any(|name| *name != "free" && self.has_any(&[*name]))
    }

    /// How many functions of its family the file has with the prefix that this one has.
    pub(super) fn like(&self, candidate: &Candidate) -> usize {
        let is_alike =
            |other: &&Candidate| other.known.family == candidate.known.family && other.prefix() == candidate.prefix();
        let alike = self.candidates.iter().filter(is_alike);
        let mut names: Vec<&str> = alike.map(|candidate| candidate.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names.len()
    }
}

/// A table of symbols.
#[derive(Clone, Copy)]
pub(super) struct Table<'data> {
    symbols: &'data [Sym64<Endianness>],
    /// Their names, one behind the other.
    names: &'data [u8],
    /// Whether it is what other files find symbols by.
    is_exported: bool,
}

impl Table<'_> {
    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }

    /// The same, of a file that is not loaded itself: nobody finds symbols by it.
    pub(super) fn beside(self) -> Self {
        Self { is_exported: false, ..self }
    }
}

/// The tables of a file: that for other files, and its own. The former is found without section headers, too, as the loader finds it.
pub(super) fn tables<'data>(elf: &Elf<'data>, data: Bounded<'data>) -> [Table<'data>; 2] {
    let table = |table: &SymbolTable<'data, FileHeader64<Endianness>, Bounded<'data>>, is_exported| {
        let section = elf.elf_section_table().section(table.string_section());
        let names = section.and_then(|section| section.data(elf.endian(), data)).unwrap_or_default();
        Table { symbols: table.symbols(), names, is_exported }
    };
    let (exported, own) = (table(elf.elf_dynamic_symbol_table(), true), table(elf.elf_symbol_table(), false));
    let as_loaded = || {
        let (symbols, names) = dynamic::symbols(elf, data)?;
        Some(Table { symbols, names, is_exported: true })
    };
    [if exported.is_empty() { as_loaded().unwrap_or(exported) } else { exported }, own]
}

/// Looks through tables of symbols: first those for other files.
pub(super) fn find(tables: &[Table<'_>]) -> Found {
    let mut found = Found::default();
    let mut prefixes: Vec<(Vec<u8>, u32)> = Vec::new();
    for table in tables {
        each(table, begins_like_one, |name, symbol| {
            if let Some((prefix, which)) = jemalloc_prefix(name) {
                note(&mut prefixes, prefix, which);
            }
            take(&mut found, name, symbol, table.is_exported, allocators::known);
        });
    }
    // Two names that only jemalloc has make a prefix one of its.
    prefixes.retain(|(prefix, seen)| {
        seen.count_ones() >= 2
            && !FAMILIES[allocators::jemalloc()].prefixes.iter().any(|known| known.as_bytes() == prefix)
    });
    for (prefix, _) in &prefixes {
        for table in tables {
            each(table, begins_like_one, |name, symbol| {
                take(&mut found, name, symbol, table.is_exported, |name| with_prefix(name, prefix));
            });
        }
    }
    found
}

/// What jemalloc's function of this name is, where it was given this prefix.
fn with_prefix(name: &[u8], prefix: &[u8]) -> Option<Known> {
    let family: FamilyIndex = allocators::jemalloc();
    let plain = name.strip_prefix(prefix)?;
    let (function, shape) = FAMILIES[family].functions.iter().find(|(known, _)| known.as_bytes() == plain)?;
    Some(Known { family, shape: *shape, function })
}

fn note(prefixes: &mut Vec<(Vec<u8>, u32)>, prefix: &[u8], which: usize) {
    if let Some((_, seen)) = prefixes.iter_mut().find(|(known, _)| known == prefix) {
        *seen |= 1 << which;
    } else if prefixes.len() < MAX_PREFIXES {
        prefixes.push((prefix.to_vec(), 1 << which));
    }
}

fn take(
    found: &mut Found,
    name: &[u8],
    symbol: &Sym64<Endianness>,
    is_exported: bool,
    known: impl Fn(&[u8]) -> Option<Known>,
) {
    let endian = Endianness::Little;
    let text = || String::from_utf8_lossy(name).into_owned();
    let Some(known) = known(name) else {
        if cloned_from(name).and_then(known).is_some() && found.clones.len() < MAX_FOUND {
            found.clones.push(text());
        }
        return;
    };
    if symbol.st_shndx(endian) == SHN_UNDEF {
        if is_exported && found.imports.len() < MAX_FOUND {
            found.imports.push(text());
        }
        return;
    }
    // What has no type, and is not for others, may be a label in front of anything.
    let is_label = symbol.st_type() == STT_NOTYPE && !is_exported;
    if is_label || symbol.st_shndx(endian) == SHN_ABS {
        return;
    }
    let (address, size) = (symbol.st_value(endian), symbol.st_size(endian));
    let is_there = found.candidates.iter().any(|other| other.address == address && other.name.as_bytes() == name);
    if address == 0 || is_there || found.candidates.len() >= MAX_FOUND {
        return;
    }
    let chooses = symbol.st_type() == STT_GNU_IFUNC;
    found.candidates.push(Candidate { name: text(), known, address, size, is_exported, chooses });
}

/// Calls `f` with the name of each function of the tables whose name begins as `begins` wants.
pub(super) fn each_function<'data>(
    tables: &[Table<'data>],
    begins: impl Fn(&[u8]) -> bool,
    mut f: impl FnMut(&'data [u8], &'data Sym64<Endianness>),
) {
    for table in tables {
        each(table, &begins, &mut f);
    }
}

fn each<'data>(
    table: &Table<'data>,
    begins: impl Fn(&[u8]) -> bool,
    mut f: impl FnMut(&'data [u8], &'data Sym64<Endianness>),
) {
    let (endian, names) = (Endianness::Little, table.names);
    if names.is_empty() {
        return;
    }
    for symbol in table.symbols.iter().take(MAX_SYMBOLS) {
        if !matches!(symbol.st_type(), STT_FUNC | STT_GNU_IFUNC | STT_NOTYPE) {
            continue;
        }
        let Some(rest) = names.get(symbol.st_name(endian) as usize..) else { continue };
        if !begins(rest) {
            continue;
        }
        let rest = &rest[..rest.len().min(MAX_NAME)];
        if let Some(end) = rest.iter().position(|byte| *byte == 0) {
            f(&rest[..end], symbol);
        }
    }
}

/// Whether it may be worth reading a name to its end: most of those that are mangled are not.
fn begins_like_one(name: &[u8]) -> bool {
    match name {
        [b'_', b'Z', rest @ ..] => matches!(rest, [b'n' | b'd', ..]) || rest.starts_with(b"N3rml"),
        [b'_', b'R', rest @ ..] => rest.starts_with(b"NvCs"),
        [0, ..] | [] => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Found {
        let candidate = |name: &&str| Candidate {
            name: (*name).to_owned(),
            known: allocators::known(name.as_bytes()).unwrap(),
            address: 0x1000,
            size: 16,
            is_exported: false,
            chooses: false,
        };
        Found { candidates: names.iter().map(candidate).collect(), ..Found::default() }
    }

    #[test]
    fn what_gives_back_and_what_takes_are_a_pair() {
        for (names, expected) in [
            (&["free", "aligned_alloc"][..], true),
            (&["malloc", "free"], true),
            (&["__libc_free", "posix_memalign", "free"], true),
            (&["free"], false),
            (&["malloc", "aligned_alloc"], false),
            (&["free", "__libc_malloc"], false),
        ] {
            assert_eq!(found(names).has_a_pair(), expected, "{names:?}");
        }
    }
}
