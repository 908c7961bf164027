//! What to hook: which file holds the allocator, which of its functions there are, and which instruction of each to
//! probe. Knows ELF and machine code; knows nothing of BPF.

pub mod allocators;
pub mod asked;
pub mod beyond;
pub mod bound;
mod catalogue;
mod dynamic;
pub mod exits;
pub mod family;
pub mod hidden;
mod image;
pub mod outcomes;
mod packed;
mod reach;
pub mod resolve;
pub mod returns;
pub mod risks;
mod shims;
pub mod site;
mod symbols;
mod thunks;
