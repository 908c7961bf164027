//! What outsiders can make the tracer read, as functions of bytes: one module per target of fuzzing.
//!
//! Each has a `run` that takes any bytes, and panics when what the tracer makes of them cannot be. libFuzzer searches for
//! such bytes (`targets/`, one program each); `cargo test` runs those that were kept (`corpus/TARGET/`).

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
