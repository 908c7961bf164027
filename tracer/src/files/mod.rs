//! Files that others have chosen: opened with bounds, told apart, read without being mapped.
//!
//! Nothing else in the library opens a file that a traced process has chosen.

pub mod registry;

pub mod module;
pub mod opener;
pub mod root;

pub(crate) mod channel;
mod file_system;

pub mod elf;
