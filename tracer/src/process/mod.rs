//! A process as the rest of the program sees it: what /proc says of it, its address space, its start and its end.

#[path = "/tmp/stub/address_space.rs"]
pub mod address_space;
pub mod launch;
pub mod link_map;
#[path = "/tmp/stub/maps.rs"]
pub mod maps;
pub mod memory;
#[path = "/tmp/stub/module.rs"]
pub mod module;
pub mod status;
