//! The address space of a process: its mappings as /proc tells them, what lies in each, what its loader and its generators of
//! code say of it.

pub mod address_space;

pub mod link_map;
pub mod maps;
pub mod memory_map;
pub mod perf_map;
