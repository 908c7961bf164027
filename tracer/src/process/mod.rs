//! A process as the rest of the program sees it: what /proc says of it, its address space, its start and its end.

pub mod status;

pub mod address_space;
pub mod cgroups;
mod channel;
pub mod elf;
mod file_system;
pub mod link_map;
pub mod maps;
pub mod memory;
pub mod memory_map;
pub mod module;
pub mod opener;
pub mod perf_map;
pub mod root;

pub mod launch;
