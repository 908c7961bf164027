//! What an ELF file tells about its code besides unwind information: where it is, where functions begin, what pointers hold.

use object::{
    elf::{
        PT_LOAD, R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT, R_X86_64_RELATIVE, SHF_ALLOC, SHF_EXECINSTR, SHN_UNDEF,
        SHT_DYNSYM, SHT_NOBITS, SHT_PROGBITS, SHT_RELA, SHT_SYMTAB, STT_FUNC, STT_GNU_IFUNC,
    },
    read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _, Sym as _},
};

use super::{Elf, Segment};

/// Most of a section of pointers, or of relocations, that is read, bytes.
const MAX_POINTERS: u64 = 32 << 20;
/// What is loaded is read in pieces of this size, bytes, and as much more as is asked for at a time.
const PIECE: u64 = 64 << 10;
const MORE: u64 = 32 << 10;

/// Library functions that never return: of C, of C++, and what compilers call when a check fails.
const NO_RETURN: [&str; 30] = [
    "abort",
    "exit",
    "_exit",
    "_Exit",
    "quick_exit",
    "err",
    "errx",
    "verr",
    "verrx",
    "pthread_exit",
    "_longjmp",
    "siglongjmp",
    "__longjmp_chk",
    "__assert_fail",
    "__assert_perror_fail",
    "__stack_chk_fail",
    "__stack_chk_fail_local",
    "__fortify_fail",
    "__chk_fail",
    "__libc_fatal",
    "__cxa_throw",
    "__cxa_rethrow",
    "__cxa_bad_cast",
    "__cxa_pure_virtual",
    "__cxa_throw_bad_array_new_length",
    "_Unwind_Resume",
    "_ZSt9terminatev",
    "_ZSt17__throw_bad_allocv",
    "_ZSt20__throw_length_errorPKc",
    "_ZSt19__throw_logic_errorPKc",
];

/// What a file tells about its code.
#[derive(Default)]
pub struct CodeHints {
    /// Where functions begin.
    pub functions: Vec<u64>,
    /// Where they may: what pointers hold when the file is loaded.
    pub pointers: Vec<u64>,
    /// Functions that never return, and pointers to such.
    pub no_return: Vec<u64>,
}

impl<'data> Elf<'data> {
    /// Where code is, by address: sections of it, but for stubs that linkers describe themselves; without sections, segments.
    pub fn code(&self) -> Vec<Segment> {
        let endian = self.endian;
        let sections = self.sections.iter().filter(|section| {
            let flags = section.sh_flags(endian).0;
            let name = self.sections.section_name(endian, section).unwrap_or_default();
            section.sh_type(endian) != SHT_NOBITS
                && flags & (SHF_ALLOC.0 | SHF_EXECINSTR.0) == SHF_ALLOC.0 | SHF_EXECINSTR.0
                && !name.starts_with(b".plt")
        });
        let sections = sections.filter_map(|section| {
            let (offset, size) = section.file_range(endian)?;
            Some(Segment { offset, size, address: section.sh_addr(endian), executable: true })
        });
        let mut code: Vec<Segment> = sections.collect();
        if self.is_bare() {
            code = self.segments();
            code.retain(|segment| segment.executable);
        }
        code.sort_by_key(|segment| segment.address);
        // They do not overlap, but in files that want to be read for ever.
        let mut end = 0;
        code.retain(|segment| {
            let is_behind = segment.address >= end;
            end = segment.address.saturating_add(segment.size).max(end);
            is_behind
        });
        code
    }

    /// Size of the function that begins at an address, as symbols tell it, and where the next one begins that they tell of.
    pub fn function(&self, address: u64) -> (Option<u64>, Option<u64>) {
        let (mut size, mut next) = (None, None);
        for kind in [SHT_DYNSYM, SHT_SYMTAB] {
            let table = self.sections.symbols(self.endian, self.data, kind).unwrap_or_default();
            for symbol in table.iter().filter(|symbol| symbol.st_shndx(self.endian) != SHN_UNDEF) {
                let (start, length) = (symbol.st_value(self.endian), symbol.st_size(self.endian));
                if start == address && length > 0 {
                    size = Some(length);
                } else if start > address && symbol.st_type() == STT_FUNC {
                    next = Some(next.map_or(start, |next: u64| next.min(start)));
                }
            }
        }
        (size, next)
    }

    /// What is loaded from an address on, to the end of its segment or 32 KiB of it at least.
    pub fn loaded(&self, address: u64) -> Option<&'data [u8]> {
        let headers = self.header.program_headers(self.endian, self.data).unwrap_or_default();
        headers.iter().filter(|header| header.p_type(self.endian) == PT_LOAD).find_map(|header| {
            let (offset, size) = header.file_range(self.endian);
            let inside = address.checked_sub(header.p_vaddr(self.endian)).filter(|inside| *inside < size)?;
            let start = inside - inside % PIECE;
            let bytes = object::ReadRef::read_bytes_at(
                self.data,
                offset.checked_add(start)?,
                (PIECE + MORE).min(size.checked_sub(start)?),
            );
            bytes.ok()?.get(usize::try_from(inside - start).ok()?..)
        })
    }

    /// The code of a range of addresses that lies in one segment.
    pub fn loaded_range(&self, start: u64, size: u64) -> Option<&'data [u8]> {
        let headers = self.header.program_headers(self.endian, self.data).unwrap_or_default();
        headers.iter().filter(|header| header.p_type(self.endian) == PT_LOAD).find_map(|header| {
            let (offset, length) = header.file_range(self.endian);
            let inside = start.checked_sub(header.p_vaddr(self.endian))?;
            inside.checked_add(size).filter(|end| *end <= length)?;
            object::ReadRef::read_bytes_at(self.data, offset.checked_add(inside)?, size).ok()
        })
    }

    /// What symbols, relocations and constants say about code; `is_wanted` knows which addresses matter.
    pub fn code_hints(&self, is_wanted: impl Fn(u64) -> bool) -> CodeHints {
        let endian = self.endian;
        let mut hints = CodeHints::default();
        for kind in [SHT_DYNSYM, SHT_SYMTAB] {
            let symbols = self.symbol_table(kind);
            for symbol in symbols.iter() {
                let address = symbol.st_value(endian);
                let is_function = [STT_FUNC, STT_GNU_IFUNC].contains(&symbol.st_type());
                if !is_function || symbol.st_shndx(endian) == SHN_UNDEF || address == 0 {
                    continue;
                }
                let name = symbols.name(symbol).unwrap_or_default();
                if never_returns(name) {
                    hints.no_return.push(address);
                }
                // A part of a function that compilers put elsewhere.
                let is_part = name.windows(5).any(|part| part == b".cold");
                if is_wanted(address) && !is_part {
                    hints.functions.push(address);
                }
            }
        }
        self.read_relocations(&is_wanted, &mut hints);
        if self.has_fixed_addresses() {
            self.read_pointers(&is_wanted, &mut hints);
        }
        hints
    }

    /// Whether it was linked for one place: its code and its constants may hold addresses.
    pub fn has_fixed_addresses(&self) -> bool {
        self.header.e_type(self.endian) == object::elf::ET_EXEC
    }

    fn read_relocations(&self, is_wanted: &impl Fn(u64) -> bool, hints: &mut CodeHints) {
        let endian = self.endian;
        let symbols = self.symbol_table(SHT_DYNSYM);
        let is_read = |section: &&object::elf::SectionHeader64<object::Endianness>| {
            section.sh_type(endian) == SHT_RELA
                && section.sh_flags(endian).0 & SHF_ALLOC.0 != 0
                && section.sh_size(endian) <= MAX_POINTERS
        };
        for section in self.sections.iter().filter(is_read) {
            let Ok(Some((relocations, _))) = section.rela(endian, self.data) else { continue };
            for relocation in relocations {
                match relocation.r_type(endian, false) {
                    R_X86_64_RELATIVE => {
                        let target = relocation.r_addend.get(endian).cast_unsigned();
                        hints.pointers.extend(Some(target).filter(|target| is_wanted(*target)));
                    }
                    R_X86_64_JUMP_SLOT | R_X86_64_GLOB_DAT => {
                        let symbol = symbols.get(relocation.r_sym(endian, false) as usize);
                        if symbol.and_then(|symbol| symbols.name(symbol)).is_some_and(never_returns) {
                            hints.no_return.push(relocation.r_offset.get(endian));
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// Words of constants and variables that may be addresses of code.
    fn read_pointers(&self, is_wanted: &impl Fn(u64) -> bool, hints: &mut CodeHints) {
        let endian = self.endian;
        let is_data = |section: &&object::elf::SectionHeader64<object::Endianness>| {
            let flags = section.sh_flags(endian).0;
            let kind = section.sh_type(endian);
            (kind == SHT_PROGBITS || [object::elf::SHT_INIT_ARRAY, object::elf::SHT_FINI_ARRAY].contains(&kind))
                && flags & (SHF_ALLOC.0 | SHF_EXECINSTR.0) == SHF_ALLOC.0
                && section.sh_size(endian) <= MAX_POINTERS
        };
        for section in self.sections.iter().filter(is_data) {
            let words = section.data(endian, self.data).unwrap_or_default().chunks_exact(8);
            let words = words.filter_map(|word| word.first_chunk()).map(|word| u64::from_le_bytes(*word));
            hints.pointers.extend(words.filter(|word| is_wanted(*word)));
        }
    }
}

/// Whether the library function of this name never returns.
fn never_returns(name: &[u8]) -> bool {
    NO_RETURN.iter().any(|known| known.as_bytes() == name)
}
