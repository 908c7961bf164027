//! The language that an executable is written in, from what even `strip` leaves in it.

use crate::{
    files::{
        elf::{Bytes, Elf},
        module::Module,
    },
    profile::Language,
};

/// How much of a section is looked through, bytes.
const MAX_SEARCHED: u64 = 32 << 20;

/// Language of `module`, the executable of a process. C when nothing says otherwise.
pub fn language(module: &Module) -> Language {
    let Some(file) = module.file() else { return Language::C };
    let bytes = Bytes::new(file);
    let Ok(elf) = Elf::parse(&bytes) else { return Language::C };
    if elf.has_section(".go.buildinfo") || elf.has_section(".note.go.buildid") {
        Language::Go
    } else if is_rust(&elf) {
        Language::Rust
    } else if is_cpp(&elf) {
        Language::Cpp
    } else {
        Language::C
    }
}

fn is_rust(elf: &Elf<'_>) -> bool {
    // The compiler's own mark, then its run-time support, then the paths in the messages of its standard library.
    contains(elf, ".comment", b"rustc version")
        || contains(elf, ".strtab", b"\0rust_eh_personality\0")
        || contains(elf, ".rodata", b"/rustc/")
}

fn is_cpp(elf: &Elf<'_>) -> bool {
    // A linked library, an imported function, one of its own, then the name of a class of the run-time support.
    [&b"\0libstdc++.so"[..], b"\0libc++.so", b"\0__gxx_personality_v0\0"]
        .into_iter()
        .any(|name| contains(elf, ".dynstr", name))
        || contains(elf, ".strtab", b"\0__gxx_personality_v0\0")
        || contains(elf, ".strtab", b"\0_ZN")
        || contains(elf, ".rodata", b"N10__cxxabiv1")
}

fn contains(elf: &Elf<'_>, section: &str, text: &[u8]) -> bool {
    let section = elf.section(section, MAX_SEARCHED).unwrap_or_default();
    // Comparing at every byte is several times slower than skipping to the first one that can match.
    let mut rest = section;
    while let Some(at) = rest.iter().position(|byte| *byte == text[0]) {
        rest = &rest[at..];
        if rest.starts_with(text) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}
