//! Where names of a file's addresses would come from, for those who wonder what a report will show.

use std::{fmt, path::PathBuf};

use super::{debug_file, work::Work};
use crate::files::{
    elf::{Bytes, Elf},
    module::Module,
};

/// Table of a Go program that has all its functions and lines.
const GO_TABLE: &str = ".gopclntab";

/// Where names come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Whether the file has its table of symbols.
    pub table: bool,
    /// Whether it has debug information: inlined functions, files and lines.
    pub debug_information: bool,
    /// Whether it has Go's own table of functions and lines.
    pub go: bool,
    /// Whether a separate debug file was found.
    pub separate: bool,
    /// The linker's identification of the build, by which one is looked for.
    pub build_id: Option<String>,
}

impl Names {
    /// Whether functions have names only where other files may use them.
    pub fn are_exports_only(&self) -> bool {
        !(self.table || self.debug_information || self.go || self.separate)
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { separate: true, .. } => f.write_str("names and lines from a debug file"),
            Self { debug_information: true, .. } => f.write_str("names and lines of its own"),
            Self { go: true, .. } => f.write_str("names and lines from Go's table"),
            Self { table: true, .. } => f.write_str("names of its own, no lines"),
            _ => f.write_str("exported names only"),
        }
    }
}

/// Where names of `module` come from, with debug files under `directories`; `None` when it is no ELF file, or cannot be read.
pub(super) fn names(module: &Module, directories: &[PathBuf], work: &mut Work) -> Option<Names> {
    let bytes = Bytes::new(module.file()?);
    let elf = Elf::parse(&bytes).ok()?;
    Some(Names {
        table: elf.has_section(".symtab"),
        debug_information: elf.has_section(".debug_info"),
        go: elf.has_section(GO_TABLE),
        separate: debug_file::find(module, &elf, directories, work).is_some(),
        build_id: elf.build_id_text(),
    })
}
