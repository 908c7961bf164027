//! What to hook: which file holds the allocator, which of its functions there are, and which instruction of each to
//! probe. Knows ELF and machine code; knows nothing of BPF.

pub mod allocators;
pub mod exits;
mod image;
pub mod outcomes;
pub mod resolve;
pub mod returns;
pub mod risks;
pub mod site;
