//! Symbols of an ELF file: by name, and what each is called.

use std::{ffi::CStr, slice};

use object::{
    Endianness,
    elf::{SHT_DYNSYM, SHT_STRTAB, SHT_SYMTAB, SectionType, Sym64},
    read::elf::{SectionHeader as _, Sym as _, SymbolTable},
};

use super::{Bounded, Elf, Header};

/// Longest name, bytes: what has no end is not looked through for each symbol.
const MAX_NAME: usize = 4096;

type Symbol = Sym64<Endianness>;

/// A table of symbols.
pub(super) struct Symbols<'data> {
    endian: Endianness,
    table: SymbolTable<'data, Header, Bounded<'data>>,
    /// All names, read at once: to read them one by one takes a call of the kernel and room of its own for each.
    names: Option<&'data [u8]>,
}

impl<'data> Symbols<'data> {
    pub(super) fn iter(&self) -> slice::Iter<'data, Symbol> {
        self.table.iter()
    }

    /// The symbol of this number, which relocations tell.
    pub(super) fn get(&self, number: usize) -> Option<&'data Symbol> {
        self.table.symbol(object::SymbolIndex(number)).ok()
    }

    /// What a symbol is called; `None` when that cannot be read.
    pub(super) fn name(&self, symbol: &Symbol) -> Option<&'data [u8]> {
        let Some(names) = self.names else { return symbol.name(self.endian, self.table.strings()).ok() };
        let name = names.get(symbol.st_name(self.endian) as usize..)?;
        let name = name.get(..MAX_NAME).unwrap_or(name);
        CStr::from_bytes_until_nul(name).ok().map(CStr::to_bytes)
    }

    /// Whether a symbol is called so. That is faster than to find out what it is called.
    fn is_called(&self, symbol: &Symbol, name: &str) -> bool {
        let Some(names) = self.names else { return self.name(symbol) == Some(name.as_bytes()) };
        let found = names.get(symbol.st_name(self.endian) as usize..);
        found.and_then(|found| found.strip_prefix(name.as_bytes())).is_some_and(|behind| behind.first() == Some(&0))
    }
}

impl<'data> Elf<'data> {
    /// The symbols of a table, none when it cannot be read.
    pub(super) fn symbol_table(&self, kind: SectionType) -> Symbols<'data> {
        let endian = self.endian;
        let table = self.sections.symbols(endian, self.data, kind).unwrap_or_default();
        // Names that are too many at once are left to be read one by one.
        let names = (!table.is_empty()).then(|| self.sections.section(table.string_section()).ok()).flatten();
        let names = names.filter(|section| section.sh_type(endian) == SHT_STRTAB);
        let names = names.and_then(|section| section.data(endian, self.data).ok());
        Symbols { endian, table, names: names.filter(|names| !names.is_empty()) }
    }

    /// Address and size of the first symbol of each name, as the file was linked; `None` for those that are not there. Only
    /// the table that `strip` removes is looked at.
    pub fn symbols<const N: usize>(&self, names: [&str; N]) -> [Option<(u64, u64)>; N] {
        self.symbols_in(SHT_SYMTAB, names)
    }

    /// Address and size of a symbol that other files may use, or of one in the table that `strip` removes.
    pub fn exported(&self, name: &str) -> Option<(u64, u64)> {
        self.symbols_in(SHT_DYNSYM, [name])[0].or_else(|| self.symbols([name])[0])
    }

    /// Whether other files may use a symbol of this name.
    pub fn exports(&self, name: &str) -> bool {
        self.exports_any([name])
    }

    /// Whether other files may use a symbol of one of these names.
    pub(super) fn exports_any<const N: usize>(&self, names: [&str; N]) -> bool {
        self.symbols_in(SHT_DYNSYM, names).iter().any(Option::is_some)
    }

    fn symbols_in<const N: usize>(&self, kind: SectionType, names: [&str; N]) -> [Option<(u64, u64)>; N] {
        let mut found = [None; N];
        let symbols = self.symbol_table(kind);
        for symbol in symbols.iter() {
            if let Some(index) = names.iter().position(|name| symbols.is_called(symbol, name)) {
                found[index].get_or_insert((symbol.st_value(self.endian), symbol.st_size(self.endian)));
            }
        }
        found
    }
}
