//! Finds memory leaks in a running, unmodified service.
//!
//! The library behind the `tracer` command. `ARCHITECTURE.md` has the data flow and a map of the code.

pub mod cli;
pub mod config;
pub mod control;
pub mod doctor;
pub mod exit;
pub mod limits;
pub mod preflight;
pub mod privileges;
pub mod signals;
pub mod top;

pub mod attach;
pub mod clock;
pub mod collector;
pub mod cost;
pub mod coverage;
pub mod files;
pub mod go;
mod last_will;
pub mod launch;
pub mod memory;
pub mod outputs;
pub mod present;
mod replacement;
pub mod resolve;
pub mod trails;
pub mod unwinder;
pub mod writer;

pub mod bpf;
pub mod cow;
pub mod event;
pub mod golang;
pub mod heap;
pub mod mapped;
pub mod probe;
pub mod process;
pub mod ranges;
pub mod select;
pub mod share;
pub mod space;
pub mod symbolize;
pub mod unwind;

pub mod priority;
pub mod profile;
pub mod report;
