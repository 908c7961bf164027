//! An ELF file: all that is read of a mapped file but for its symbols' names.

use tracer::{
    files::{
        elf::{Bytes, Elf},
        module::Module,
    },
    probe::resolve::allocator,
    symbolize::language,
    unwinder,
};

use crate::input::with_file;

/// Most that is asked of one section, bytes.
const LIMIT: u64 = 1 << 20;

/// The input is the file.
pub fn run(data: &[u8]) {
    with_file(data, |file| {
        outline(file, data.len() as u64);
        if let Ok((segments, table)) = unwinder::compile_file(file) {
            assert!(table.rows().is_sorted_by(|a, b| a.0 < b.0));
            assert!(unwinder::uncovered_bytes(&segments, &table) <= unwinder::code_bytes(&segments));
        }
        for function in allocator(file).ok().flatten().map(|found| found.functions).unwrap_or_default() {
            for offset in function.returns.offsets.into_iter().chain([function.file_offset]) {
                assert!(offset < data.len() as u64, "a probe outside of the file");
            }
        }
        let module = Module::of_file("input", file.try_clone().expect("a second handle")).expect("an identity");
        assert!(module.build_id().is_none_or(|id| (1..=64).contains(&id.len())));
        let _ = language(&module);
    });
}

fn outline(file: &std::fs::File, length: u64) {
    let bytes = Bytes::new(file);
    let Ok(elf) = Elf::parse(&bytes) else { return };
    assert!(elf.segments().len() as u64 <= length / 56);
    for name in [".eh_frame", ".debug_frame", ".text", ".got", ".comment"] {
        if let Some((section, _)) = elf.section_at(name, LIMIT) {
            assert!(section.len() as u64 <= length.min(LIMIT));
        }
    }
    for name in [".debug_info", ".debug_abbrev"] {
        assert!(elf.unpacked(name, LIMIT).is_none_or(|section| section.len() as u64 <= LIMIT));
    }
    if let Some((name, _)) = elf.debug_link() {
        assert!(name.len() < 4096 && !name.contains(&0));
    }
    let _ = (elf.is_runnable(), elf.unpacks_sanely(), elf.entry());
}
