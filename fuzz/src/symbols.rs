//! The symbols and the debug information of an ELF file.

use std::sync::Arc;

use tracer::{
    files::{
        elf::{Bytes, Elf},
        module::{Location, Module},
    },
    space::address_space::Place,
    symbolize::{Query, Symbolizer},
};

use crate::input::with_file;

/// Addresses that are named, by file.
const QUERIES: usize = 64;

/// The input is the file. Every address has a frame, whatever the file says.
pub fn run(data: &[u8]) {
    with_file(data, |file| {
        let offsets = offsets(file);
        let file = file.try_clone().expect("a second handle");
        let module = Arc::new(Module::of_file("input", file).expect("an identity"));
        let place = |offset| Place::File(Location { module: Arc::clone(&module), offset });
        let places: Vec<(u64, Place)> = offsets.into_iter().map(|offset| (offset, place(offset))).collect();
        let queries: Vec<Query<'_>> = places.iter().map(|(addr, place)| Query { pid: 1, addr: *addr, place }).collect();
        let frames = Symbolizer::with_debug_directories(Vec::new()).resolve(&queries);
        assert_eq!(frames.len(), queries.len());
        for frame in frames.iter().flat_map(|frames| frames.iter()) {
            assert!(frame.function.as_ref().is_none_or(|name| name.len() <= 16 << 10));
            assert!(frame.file.as_ref().is_none_or(|path| path.len() <= 4096));
        }
        assert!(frames.iter().all(|frames| (1..=129).contains(&frames.len())));
    });
}

/// Some offsets in every executable segment, and some that may be in none.
fn offsets(file: &std::fs::File) -> Vec<u64> {
    let bytes = Bytes::new(file);
    let Ok(elf) = Elf::parse(&bytes) else { return Vec::new() };
    let segments = elf.segments().into_iter().filter(|segment| segment.executable);
    let inside = segments.flat_map(|segment| {
        let step = (segment.size / 16).max(1);
        (0..16).map(move |index| segment.offset.wrapping_add(index * step + 1))
    });
    inside.chain([0, 1, u64::MAX]).take(QUERIES).collect()
}
