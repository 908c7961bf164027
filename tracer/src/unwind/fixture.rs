//! What the tests of unwinding share: ELF files and programs made for a test, hand-made sections, random numbers.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use object::{Object as _, ObjectSection as _, ObjectSegment as _, ObjectSymbol as _, SegmentFlags};

use super::{Sections, Table, compile};

/// An ELF file that was read.
pub(super) struct Binary {
    sections: HashMap<String, (Vec<u8>, u64)>,
    /// Functions and labels: name, address and size.
    symbols: Vec<(String, u64, u64)>,
    /// Executable segments: offset in the file, address, size.
    pub(super) code: Vec<(u64, u64, u64)>,
}

impl Binary {
    pub(super) fn load(path: &Path) -> Self {
        let data = fs::read(path).unwrap();
        let file = object::File::parse(&*data).unwrap();
        let sections = [".eh_frame", ".debug_frame", ".text", ".got"].into_iter().filter_map(|name| {
            let section = file.section_by_name(name)?;
            Some((name.to_owned(), (section.data().ok()?.to_vec(), section.address())))
        });
        let symbols = file.symbols().chain(file.dynamic_symbols());
        let executable =
            |flags: &SegmentFlags| matches!(flags, SegmentFlags::Elf { p_flags, .. } if p_flags.0 & 1 != 0);
        Self {
            sections: sections.collect(),
            symbols: symbols.map(|s| (s.name().unwrap().to_owned(), s.address(), s.size())).collect(),
            code: file
                .segments()
                .filter(|segment| executable(&segment.flags()))
                .map(|segment| (segment.file_range().0, segment.address(), segment.size()))
                .collect(),
        }
    }

    pub(super) fn section(&self, name: &str) -> Option<(&[u8], u64)> {
        self.sections.get(name).map(|(bytes, address)| (&**bytes, *address))
    }

    pub(super) fn sections(&self) -> Sections<'_> {
        Sections {
            eh_frame: self.section(".eh_frame"),
            debug_frame: self.section(".debug_frame"),
            text_address: self.section(".text").map_or(0, |(_, address)| address),
            got_address: self.section(".got").map(|(_, address)| address),
            code: None,
        }
    }

    pub(super) fn table(&self) -> Table {
        compile(&self.sections()).unwrap()
    }

    pub(super) fn address(&self, name: &str) -> u64 {
        self.symbols.iter().find(|symbol| symbol.0 == name).unwrap_or_else(|| panic!("no symbol {name}")).1
    }

    /// The function that an address lies in.
    pub(super) fn function(&self, address: u64) -> Option<&str> {
        let symbol = self.symbols.iter().find(|(_, start, size)| (*start..start + size).contains(&address))?;
        Some(&symbol.0)
    }
}

/// A shared object of what the assembler makes of `text`.
pub(super) fn assemble(text: &str) -> Binary {
    let folder = tempfile::tempdir().unwrap();
    let object = folder.path().join("assembled.so");
    build(&folder.path().join("assembled.s"), text, &["-shared", "-nostdlib"], &object);
    Binary::load(&object)
}

/// Compiles the source file, which is given `text` first.
pub(crate) fn build(source: &Path, text: &str, options: &[&str], output: &Path) {
    fs::write(source, text).unwrap();
    let gcc = Command::new("gcc").arg(source).arg("-o").arg(output).args(options).output().unwrap();
    assert!(gcc.status.success(), "{}", String::from_utf8_lossy(&gcc.stderr));
}

/// The file that a command names in its output.
pub(super) fn file_named_by(command: &str, arguments: &[&str]) -> PathBuf {
    let output = Command::new(command).args(arguments).output().unwrap();
    fs::canonicalize(String::from_utf8(output.stdout).unwrap().trim()).unwrap()
}

/// The library of this name that this process has mapped.
pub(super) fn mapped(name: &str) -> PathBuf {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let path = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.contains(name));
    PathBuf::from(path.unwrap_or_else(|| panic!("{name} is not mapped")))
}

/// A hand-made .eh_frame at address 0, whose addresses are absolute.
#[derive(Default)]
pub(super) struct Frames {
    pub(super) bytes: Vec<u8>,
    cie: usize,
}

/// Initial instructions of compilers: CFA = rsp + 8, return address right below.
pub(super) const USUAL: &[u8] = &[0x0c, 7, 8, 0x90, 1];

impl Frames {
    /// Adds what the functions after it have in common.
    pub(super) fn cie(mut self, instructions: &[u8]) -> Self {
        self.cie = self.bytes.len();
        // Version 1, no augmentation, factors 1 and -8, return address in column 16.
        self.entry(&[&[0, 0, 0, 0, 1, 0, 1, 0x78, 16], instructions].concat())
    }

    /// Adds a function.
    pub(super) fn fde(self, start: u64, length: u64, instructions: &[u8]) -> Self {
        let back = (self.bytes.len() + 4 - self.cie) as u32;
        let head = [back.to_le_bytes().as_slice(), &start.to_le_bytes(), &length.to_le_bytes()].concat();
        self.entry(&[&head, instructions].concat())
    }

    pub(super) fn entry(mut self, content: &[u8]) -> Self {
        self.bytes.extend_from_slice(&(content.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(content);
        self
    }

    pub(super) fn sections(&self) -> Sections<'_> {
        Sections { eh_frame: Some((&self.bytes, 0)), ..Sections::default() }
    }
}

/// Pseudo-random numbers: xorshift64* (Vigna, 2016).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit
    }
}
