//! Who is traced, told from what /proc says of processes. Pure.

pub mod containers;
