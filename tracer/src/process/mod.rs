//! A process as /proc tells of it: what it is, where it belongs, what is in its memory.

pub mod cgroups;
pub mod memory;
pub mod mounts;
pub mod stat;
pub mod status;
pub mod text;
