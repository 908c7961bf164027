//! Finds memory leaks in a running, unmodified service.
//!
//! The library behind the `tracer` command. `ARCHITECTURE.md` has the data flow and a map of the code.

pub mod profile;
pub mod quality;
pub mod report;
