//! What outsiders can make the tracer read, as functions of bytes: one module per target of fuzzing.
//!
//! Each has a `run` that takes any bytes, and panics when what the tracer makes of them cannot be. libFuzzer searches for
//! such bytes (`examples/fuzz.rs`); `cargo test` runs those that were kept (`corpus/TARGET/`).

pub mod frames;
pub mod synthesis;

pub mod elf;
pub mod symbols;

pub mod names;

pub mod code;
pub mod exits;

pub mod link_map;
pub mod maps;
pub mod perf_map;

pub mod events;

pub mod go_heap;
pub mod go_tables;
pub mod goroutines;

mod input;
mod memory;
#[cfg(test)]
mod replay;

/// What runs an input.
pub type Target = fn(&[u8]);

/// All targets, each by the name of its folder in `corpus/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("frames", frames::run),
    ("synthesis", synthesis::run),
    ("elf", elf::run),
    ("symbols", symbols::run),
    ("names", names::run),
    ("code", code::run),
    ("exits", exits::run),
    ("link_map", link_map::run),
    ("maps", maps::run),
    ("perf_map", perf_map::run),
    ("events", events::run),
    ("go_tables", go_tables::run),
    ("go_heap", go_heap::run),
    ("goroutines", goroutines::run),
];
